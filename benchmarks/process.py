"""A subject's process, from the outside: commands in, answers out; one that dies is an answer too."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.subjects import SUBJECTS

ROOT = Path(__file__).resolve().parents[1]


def environment(folder: Path, device: str, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """What compilers keep goes into the folder of this run, so that its first start compiles everything.

    Args:
        more: variables of a subject; flags of XLA are added to those that are set.
    """
    own = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "KERAS_HOME": str(folder / "keras"),
        "HF_HUB_OFFLINE": "1",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    if device == "cpu":
        own["JAX_PLATFORMS"] = "cpu"
    own |= more or {}
    if more and "XLA_FLAGS" in more:
        own["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {more['XLA_FLAGS']}".strip()
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    return {**os.environ, **own, "PYTHONPATH": path}


class Process:
    """One started subject; `failed` says why it cannot be used."""

    def __init__(self, subject: str, folder: Path, device: str, log: Path, limit: float = 1800) -> None:
        self.subject, self.log, self.limit, self.failed = subject, log, limit, None
        begin = time.perf_counter()
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker", subject, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment(folder, device, SUBJECTS[subject].environment),
                cwd=ROOT,
            )
        ready = self._answer()
        self.start_seconds = time.perf_counter() - begin
        self.failed: str | None = ready.get("error")

    def ask(self, do: str, **arguments: Any) -> Mapping[str, Any]:
        """The answer to a command; {"error": why} where there is none."""
        if self.failed:
            return {"error": self.failed}
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it has died: the answer says how
            self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], self.limit)
        line = self.process.stdout.readline() if ready else b""
        if line:
            return json.loads(line)
        if not ready:
            self.process.kill()
            self.failed = f"gave no answer within {self.limit:.0f} s"
        else:
            code = self.process.wait()
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            said = " (out of memory?)" if name == "SIGKILL" else f"; {last}" if (last := self._last()) else ""
            self.failed = f"its process ended: {name}{said}"
        return {"error": self.failed}

    def _last(self) -> str:
        """The last line that it, or whatever else writes into the log, left there."""
        lines = self.log.read_text(errors="replace").split("\n") if self.log.exists() else []
        return next((line.strip()[-200:] for line in reversed(lines) if line.strip()), "")

    def leave(self) -> None:
        """Tells it to end."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def close(self) -> None:
        """Ends it."""
        self.leave()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
