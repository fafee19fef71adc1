"""A process that takes commands and gives answers, a line of JSON each; one that dies is an answer too."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine.checkout import ROOT
from benchmarks.subjects.roster import SUBJECTS


def environment(folder: Path, device: str, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a subject's process; compiler caches are in the folder of the run.

    Args:
        more: variables of a subject; its XLA flags are added to those that are set already.
    """
    own = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "CUDA_CACHE_PATH": str(folder / "cuda"),
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
    """A process that was started with a command; `failed` says why it can no longer be used."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], log: Path) -> None:
        self.log, self.failed = log, None
        self.failed: str | None
        self._text, self._ended = b"", False
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**variables},
                cwd=ROOT,
            )

    def send(self, do: str, **arguments: object) -> None:
        """Give it a command, and do not wait for the answer."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it has died: the answer says how
            self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self.process.stdin.flush()

    def answers(self) -> list[dict[str, Any]]:
        """Return the answers that have arrived; if the process has ended, the last one is {"error": how}."""
        while not self._ended and _readable([self], 0):
            self._read()
        *lines, self._text = self._text.split(b"\n")
        found = [json.loads(line) for line in lines]
        if self._ended and self.failed is None:
            code = self.process.wait()
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            said = " (out of memory?)" if name == "SIGKILL" else f"; {last}" if (last := self._last()) else ""
            self.failed = f"its process ended: {name}{said}"
            found.append({"error": self.failed, "ended": code})
        return found

    def _read(self) -> None:
        assert self.process.stdout is not None
        part = os.read(self.process.stdout.fileno(), 1 << 20)
        self._text, self._ended = self._text + part, not part

    def _last(self) -> str:
        """Return the last line in the log, which this process or another one wrote."""
        lines = self.log.read_text(errors="replace").split("\n") if self.log.exists() else []
        return next((line.strip()[-200:] for line in reversed(lines) if line.strip()), "")

    def stop(self, why: str) -> None:
        """End it at once, with the processes that it has started."""
        self.failed = why
        for one in self._family():
            with contextlib.suppress(psutil.Error):
                one.kill()
        self.close()

    def pause(self) -> None:
        """Pause it, and the processes that it has started, until `resume`."""
        for one in self._family():
            with contextlib.suppress(psutil.Error):
                one.suspend()

    def resume(self) -> None:
        for one in self._family():
            with contextlib.suppress(psutil.Error):
                one.resume()

    def _family(self) -> list[psutil.Process]:
        try:
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.Error:
            return []

    def leave(self) -> None:
        """Tell it to end."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def close(self) -> None:
        """End it, within ten seconds."""
        self.leave()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._ended = True


def _readable(processes: Sequence[Process], seconds: float | None) -> list[Process]:
    streams = {p.process.stdout: p for p in processes if p.process.stdout is not None and not p._ended}
    if not streams:  # they have all ended: nothing can come
        return []
    found, _, _ = select.select([*streams], [], [], seconds)
    return [streams[stream] for stream in found]


class World:
    """The surroundings of a run: processes, the clock and the machine. Tests replace it."""

    def __init__(
        self, folder: Path, device: str, log: Path, threads: int | None = None, compilers: Path | None = None
    ) -> None:
        self.folder, self.device, self.log, self.compilers = folder, device, log, compilers or folder
        # Inductor compiles in as many processes as there are cores, for each program that compiles.
        self.threads = {} if threads is None else {"TORCHINDUCTOR_COMPILE_THREADS": str(threads)}

    def now(self) -> float:
        return time.monotonic()

    def launch(self, subject: str) -> Process:
        """Start a subject's process; its first answer says that it is ready."""
        variables = environment(self.compilers, self.device, {**self.threads, **SUBJECTS[subject].environment})
        return Process(["-m", "benchmarks.measure.worker", subject, str(self.folder)], variables, self.log)

    def references(self) -> Process:
        """Start the process that computes references, one at a time."""
        command = ["-m", "benchmarks.measure.reference_worker", str(self.folder)]
        return Process(command, environment(self.compilers, self.device), self.log)

    def wait(self, processes: Sequence[Process], until: float | None) -> list[tuple[Process, dict[str, Any]]]:
        """Return the first answers that arrive; an empty list if none came in time."""
        while True:
            found = [(process, answer) for process in processes for answer in process.answers()]
            seconds = None if until is None else max(0.0, until - self.now())
            if found or not _readable(processes, seconds):
                return found

    def readings(self) -> dict[str, Any]:
        """Return the machine's clock, temperature and load."""
        from benchmarks.machine import description

        return description.readings()

    def gpu(self) -> dict[str, str] | None:
        """Return the GPU's clocks, power and temperature."""
        from benchmarks.machine import description

        return description.gpu() if self.device == "gpu" else None
