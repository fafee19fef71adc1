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

ROOT = Path(__file__).resolve().parents[1]


def environment(folder: Path, device: str) -> dict[str, str]:
    """What compilers keep goes into the folder of this run, so that its first start compiles everything."""
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
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    return {**os.environ, **own, "PYTHONPATH": path}


class Process:
    """One started subject; `failed` says why it cannot be used."""

    def __init__(self, subject: str, folder: Path, device: str, log: Path, limit: float = 1800) -> None:
        self.subject, self.limit, self.failed = subject, limit, None
        begin = time.perf_counter()
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker", subject, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment(folder, device),
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
            self.failed = f"its process ended: {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        return {"error": self.failed}

    def close(self) -> None:
        """Ends it."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
