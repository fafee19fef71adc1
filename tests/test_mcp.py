"""`parity mcp` answers a real client of the SDK over stdin and stdout."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity.commands import agents
from parity.commands.cli import main

INSTALLED = importlib.util.find_spec("mcp") is not None
with_sdk = pytest.mark.skipif(not INSTALLED, reason="the package mcp is not installed")

PAIR = """import numpy as np
import torch
from flax import nnx

import parity

print("what a user's file prints must not reach the client")


class Port(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(4, rngs=rngs)

    def __call__(self, x):
        return self.norm(x)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(4)

    def forward(self, x):
        return self.norm(x)


def make():
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    return Model(), Port(nnx.Rngs(0)), x
"""


def asked(folder: Path, calls: list[tuple[str, dict[str, Any]]]) -> tuple[list[str], list[tuple[bool, str]]]:
    """Return the names of the tools, and of each call whether it failed and what it said."""
    import anyio
    from mcp import ClientSession, StdioServerParameters, stdio_client

    async def run() -> tuple[list[str], list[tuple[bool, str]]]:
        server = StdioServerParameters(command=sys.executable, args=["-m", "parity", "mcp"], cwd=folder)
        async with stdio_client(server) as (read, write), ClientSession(read, write) as session:
            await session.initialize()
            tools = [tool.name for tool in (await session.list_tools()).tools]
            answers = []
            for name, arguments in calls:
                found = await session.call_tool(name, arguments)
                (content,) = found.content
                assert content.type == "text"
                answers.append((bool(found.is_error), content.text))
            return tools, answers

    return anyio.run(run)


@pytest.mark.nightly
@with_sdk
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_client_of_the_sdk_gets_answers(tmp_path: Path) -> None:
    (tmp_path / "pair.py").write_text(PAIR)
    np.savez(tmp_path / "weights.npz", a=np.ones(3))
    calls: list[tuple[str, dict[str, Any]]] = [
        ("check", {"pair": "./pair.py:make", "steps": 1}),
        ("check", {"pair": "./pair.py:absent"}),
        ("explain", {"trap": "gelu-tanh"}),
        ("inspect", {"file": "weights.npz"}),
    ]
    tools, (found, absent, page, held) = asked(tmp_path, calls)
    assert tools == ["check", "explain", "pairs", "convert", "inspect"]
    model = json.loads(found[1])
    assert model["ok"] is False
    assert [one["trap"] for one in model["findings"]] == ["norm-epsilon-1e-6"]
    assert model["findings"][0]["fix"][0]["expected"] == 1e-5
    assert absent[0]
    assert "pair.py:absent: AttributeError" in absent[1]
    assert absent[1].count("\n") == 0
    assert "approximate=False" in page[1]
    assert "npz" in held[1]


def test_without_the_sdk_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    monkeypatch.setitem(sys.modules, "mcp.server", None)
    assert main(["mcp"]) == 2
    assert (
        capsys.readouterr().err == "parity: mcp: needs the package mcp; install it: pip install 'ports-parity[mcp]'\n"
    )


@with_sdk
def test_what_a_tool_is_given_is_no_option(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, ...]] = []
    monkeypatch.setattr(
        agents, "run", lambda *arguments: (seen.append(arguments), (0, '{"models": [{"ok": true}]}'))[1]
    )
    assert agents.check("--fix") == '{"ok": true}'
    agents.convert("a.pth", "--force", to="nnx")
    assert [one[one.index("--") :] for one in seen] == [("--", "--fix"), ("--", "a.pth", "--force")]
