"""All published ports by name."""

from __future__ import annotations

from . import bonsai_images, bonsai_sam2, bonsai_text, others

ALL = (*bonsai_images.PORTS, *bonsai_sam2.PORTS, *bonsai_text.PORTS, *others.PORTS)
