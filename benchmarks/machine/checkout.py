"""The checkout whose code is measured: where it is, and which commit it has."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def commit() -> str | None:
    """Return the commit, with `+` if the code has changes; None outside a checkout."""
    try:
        run = [
            subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True).stdout
            for arguments in (
                ("rev-parse", "HEAD"),
                ("status", "--porcelain", "--", "ports", "parity", "benchmarks/*.py"),
            )
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return run[0].strip() + ("+" if run[1].strip() else "")
