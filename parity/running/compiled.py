"""Keep the programs that XLA compiles in a folder, so that the next check of the same models takes them from there.

The folder is `parity/xla` in the user's cache (`$XDG_CACHE_HOME`, or `~/.cache`). `PARITY_CACHE` names another one, and
`PARITY_CACHE=0` keeps nothing. A folder that the caller gave JAX (`JAX_COMPILATION_CACHE_DIR`) is used as it is.

JAX's key of a program holds its text, its options and the versions of the compiler. It does not hold the processor. In
a home that several machines share, one machine would get what another compiled, so each kind of processor has its own
folder.
"""

from __future__ import annotations

import hashlib
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

LIMIT = 1 << 30
"""Bytes of a folder. Beyond them, the oldest half of its programs goes."""

SETTINGS: dict[str, Any] = {
    "jax_persistent_cache_min_compile_time_secs": 0,  # a check of a small pair compiles many small programs
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def folder() -> Path | None:
    """Return the folder for this machine's programs; None if programs are not kept."""
    if (asked := os.environ.get("PARITY_CACHE", "")) == "0":
        return None
    home = Path(asked) if asked else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "parity"
    return home / "xla" / hashlib.sha256(_processor().encode()).hexdigest()[:16]


def _processor() -> str:
    """Return the model and the abilities of the processor, as far as the system reports them."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        return "\n".join(dict.fromkeys(line for line in lines if line.startswith(("model name", "flags", "Features"))))
    return f"{platform.machine()} {platform.processor()}"


@contextmanager
def kept() -> Iterator[None]:
    """Take programs from the folder, and put new ones there, in the block. JAX's settings are restored afterwards."""
    place = folder()
    if jax.config.jax_compilation_cache_dir is not None or place is None:  # pyright: ignore[reportAttributeAccessIssue]
        yield
        return
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:  # no writable home: the check compiles everything, as it would without a folder
        yield
        return
    settings = {**SETTINGS, "jax_compilation_cache_dir": str(place)}
    before = {name: getattr(jax.config, name) for name in settings}
    _use(settings)
    try:
        with warnings.catch_warnings():
            # Another process has not finished writing the file: compile the program.
            warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
            yield
    finally:
        _use(before)
        _pruned(place)


def _use(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX reads the settings only once, at its first program


def _pruned(place: Path, limit: int = LIMIT) -> None:
    """Delete the oldest programs if the folder holds more than its limit, until it holds half of the limit."""
    with suppress(OSError):  # another process does the same
        held = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in place.iterdir())
        over = sum(size for _, size, _ in held) - limit
        if over <= 0:
            return
        over += limit // 2
        for _, size, path in held:
            if over <= 0:
                break
            path.unlink()
            over -= size
