"""The commands for coding agents: `parity skill`, and `parity mcp`, a server of the Model Context Protocol.

Every call of a tool is a process of its own. So the port's file is read again each time, its output does not mix with
the protocol, and any damage ends with the process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import typer

from ports.errors import UserError

# The parts of a report about every layer and tensor: they are long, and `--json` writes them.
LONG = ("profile", "largest", "multiple", "pairing", "precision")

INSTRUCTIONS = (
    "Proves that a Flax port computes what a PyTorch model computes, or names the first mistake. Call `check` with "
    "FILE.py:function, read the first finding, mend it, check again. `ok` is the verdict."
)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(skill)
    app.command()(mcp)


def skill() -> int:
    """How a coding agent verifies a port: a file for its folder of skills (`parity skill > SKILL.md`)."""
    sys.stdout.write((Path(__file__).parents[1] / "SKILL.md").read_text(encoding="utf-8"))
    return 0


def mcp() -> int:
    """Serve check, explain, pairs, convert and inspect to a coding agent (Model Context Protocol, stdin and stdout).

    Needs the extra `mcp`: pip install 'ports-parity[mcp]'.
    """
    server().run()
    return 0


def server() -> Any:
    """Return the server with its tools.

    Raises:
        UserError: the SDK is not installed.
    """
    try:
        from mcp.server import MCPServer
    except ImportError:
        raise UserError("mcp: needs the package mcp; install it: pip install 'ports-parity[mcp]'") from None
    found = MCPServer("parity", instructions=INSTRUCTIONS)
    for tool in (check, explain, pairs, convert, inspect):
        found.tool(structured_output=False)(tool)
    return found


def run(*arguments: str) -> tuple[int, str]:
    """Run a command; return its exit code and what it printed on stdout.

    Raises:
        ToolError: the command failed; the message is its one line on stderr.
    """
    from mcp.server.mcpserver.exceptions import ToolError

    command = [sys.executable, "-m", "parity", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode not in (0, 1):
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ToolError(lines[-1] if lines else f"parity: exit code {done.returncode}")
    return done.returncode, done.stdout


def check(pair: str, diff: bool = False, steps: int = 3) -> str:
    """Prove in float64 that a Flax port computes what a PyTorch model computes, or say what is wrong.

    Args:
        pair: FILE.py:function, which returns (torch_model, flax_model, *inputs); or the name of a network of `parity`.
        diff: also look for changes of the port's source that mend findings; each is confirmed by another check.
        steps: of training that are compared.

    Returns:
        JSON: `ok`, and `findings` in execution order with `layer`, `trap`, `text`, `fix` and `diff`.
    """
    _, out = run("check", "--json", "-", "--steps", str(steps), *(["--diff"] if diff else []), "--", pair)
    report = json.loads(out)
    (model,) = report["models"]
    return json.dumps({name: value for name, value in model.items() if name not in LONG})


def explain(trap: str) -> str:
    """Explain a known mistake that a finding names as `trap`: what the port does, and how to mend it."""
    return run("traps", "--", trap)[1]


def pairs(pair: str) -> str:
    """Show which tensor of PyTorch's model is which of the port's, and in what form.

    Args:
        pair: FILE.py:function, which returns (torch_model, flax_model, *inputs).
    """
    return run("pairs", "--", pair)[1]


def convert(
    source: str,
    destination: str,
    to: str | None = None,
    model: str | None = None,
    rules: str | None = None,
    config: str | None = None,
) -> str:
    """Convert a checkpoint between PyTorch, NNX and Linen, without losing a bit. It does not replace a file.

    Args:
        source: a file, or a folder of Orbax.
        destination: the format goes by its suffix (.safetensors, .npz, .msgpack, .pth); none is a folder of Orbax.
        to: torch, nnx or linen, if the format does not show it.
        model: the name of a network, if the tensors do not show it.
        rules: a TOML file that says what is what in a network of your own.
        config: a transformers' config.json of the network, if there is none beside the source.
    """
    given = {"--to": to, "--model": model, "--rules": rules, "--config": config}
    options = [part for name, value in given.items() if value is not None for part in (name, value)]
    return run("convert", *options, "--", source, destination)[1]


def inspect(file: str) -> str:
    """Say what a checkpoint holds: format, network, tensors, and what is unusual."""
    return run("inspect", "--", file)[1]
