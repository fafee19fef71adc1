"""Build wheel and sdist, install the wheel into an empty environment, and run README's commands there.

`python -m tests.installed --out dist` keeps what was built. With `--borrow` the empty environment takes its
dependencies from the one that runs this, which needs no network; the package itself always comes from the wheel.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from parity.reports import terminal
from ports.errors import UserError

ROOT = Path(__file__).resolve().parents[1]

Out = Annotated[Path, typer.Option(metavar="FOLDER", help="Wheel and sdist are left there.")]
Borrow = Annotated[bool, typer.Option("--borrow", help="Take the dependencies from this environment.")]

app = typer.Typer(add_completion=False, rich_markup_mode=None)

# What README's commands are given: a checkpoint by the name that they use, of a smaller network.
CHECKPOINT = """
import torch
import ports

net = ports.create("cifar_resnet20", "pytorch", seed=0)
torch.save(net.state_dict(), "resnet50.pth")
"""

# What README's sentence about the command line is about: the pair of its code.
PAIR = "\n\ndef make():\n    return torch_model, model, x\n"


def built(out: Path) -> tuple[Path, Path]:
    """Return the wheel and the sdist; each is built from a copy, so that nothing of an older build gets in."""
    out.mkdir(parents=True, exist_ok=True)
    for old in (*out.glob("ports_parity-*.whl"), *out.glob("ports_parity-*.tar.gz")):
        old.unlink()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "source"
        copy.mkdir()
        listed = _output(["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], ROOT)
        for name in listed.split("\0"):
            if name and (ROOT / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                (copy / name).write_bytes((ROOT / name).read_bytes())
        code = f"from setuptools import build_meta as b; b.build_sdist({str(out)!r}); b.build_wheel({str(out)!r})"
        _output([sys.executable, "-c", code], copy)
    (wheel,), (sdist,) = out.glob("ports_parity-*.whl"), out.glob("ports_parity-*.tar.gz")
    return wheel, sdist


def environment(folder: Path, wheel: Path, borrow: bool) -> Path:
    """Return the folder of the commands of a new environment that has the wheel."""
    _output([sys.executable, "-m", "venv", *(["--without-pip"] if borrow else []), str(folder)], ROOT)
    python = folder / "bin" / "python"
    if borrow:
        site = next((folder / "lib").glob("python*")) / "site-packages"
        _output([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)], ROOT)
        (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        command = folder / "bin" / "parity"
        command.write_text(f"#!{python}\nimport sys\nfrom parity.__main__ import main\nsys.exit(main())\n")
        command.chmod(0o755)
    else:
        for what in ("torch", str(wheel)):
            _output([str(python), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), what], ROOT)
    return folder / "bin"


def commands(text: str) -> Iterator[str]:
    """Yield README's commands that need nothing but the package: those of its shell blocks that begin with parity."""
    for line in re.findall(r"(?m)^    (parity .*)$", text):
        yield line.partition("#")[0].strip()


def run(binaries: Path, folder: Path, text: str) -> list[tuple[str, int]]:
    """Return README's commands, and its Python, each with its exit code in an empty folder."""
    code = re.findall(r"(?s)```python\n(.*?)```", text)[0]
    (folder / "pair.py").write_text(code.partition("report =")[0] + PAIR)
    found = []
    given = {"PATH": f"{binaries}:{os.environ['PATH']}"}
    where = _run(
        [str(binaries / "python"), "-c", "import parity, ports; print(parity.__file__, ports.__file__)"], folder
    )
    for file in where.stdout.split():
        if not Path(file).is_relative_to(binaries.parent):
            raise UserError(f"installed: got {file}, expected a file of the new environment: {where.stderr}")
    for name, program in (("README's Python", code), ("a checkpoint", CHECKPOINT)):
        found.append((name, _run([str(binaries / "python"), "-c", program], folder).returncode))
    for command in ("parity check ./pair.py:make", "parity --version", "parity traps gelu-tanh", *commands(text)):
        found.append((command, _run(command.split(), folder, given).returncode))
    return found


# A command may find that the pair of README differs: its port has a mistake, on purpose.
EXPECTED = {"parity check ./pair.py:make": 1}


def _run(
    command: Sequence[str], folder: Path, more: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    apart = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        command, cwd=folder, env=apart | {**(more or {})}, capture_output=True, text=True, check=False
    )


def _output(command: Sequence[str], folder: Path) -> str:
    done = _run(command, folder)
    if done.returncode:
        raise UserError(
            f"installed: {' '.join(command)[:80]}: exit code {done.returncode}: {done.stderr.strip()[-400:]}"
        )
    return done.stdout


@app.command()
def installed(out: Out = ROOT / "dist", borrow: Borrow = False) -> int:
    """Build the package, install it into an empty environment, and run README's commands there.

    Exit 0 where each of them ends as it should.
    """
    wheel, sdist = built(out.resolve())
    print(f"built {wheel.name} and {sdist.name}")
    with tempfile.TemporaryDirectory() as folder:
        binaries = environment(Path(folder) / "env", wheel, borrow)
        work = Path(folder) / "empty"
        work.mkdir()
        outcomes = run(binaries, work, (ROOT / "README.md").read_text())
    for command, code in outcomes:
        print(f"{command}: exit code {code}")
    return int(any(code != EXPECTED.get(command, 0) for command, code in outcomes))


if __name__ == "__main__":
    sys.exit(terminal.run(app, "installed", None, "python -m tests.installed"))
