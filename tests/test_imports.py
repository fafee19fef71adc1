"""Imports go one way, and light modules stay light."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What may not be imported: by package, and by the name of a file in any of them.
PACKAGES = {"ports": {"parity", "benchmarks"}, "parity": {"benchmarks"}, "benchmarks": set[str]()}
JAX, TORCH = {"jax", "jaxlib", "flax", "optax"}, {"torch", "torchvision"}
FRAMEWORKS = {
    "pytorch.py": JAX,
    "nnx.py": TORCH,
    "linen.py": TORCH,
    "flax.py": TORCH,
    "optim.py": TORCH,
    "schedules.py": TORCH,
    "spec.py": JAX | TORCH,
    "config.py": JAX | TORCH,
    "torch_form.py": JAX | TORCH,
    "layers/leaves.py": JAX | TORCH,
    "layers/kinds.py": JAX | TORCH,
    "family.py": JAX | TORCH,
    "families.py": JAX | TORCH,
    "frameworks.py": JAX | TORCH,
    "ports/optimizers.py": JAX | TORCH,
    "building/classes.py": JAX | TORCH,
    "layers/initializers.py": TORCH,
    "building/dtypes.py": TORCH,
    "fast/filtering.py": JAX,
    "fast/convolution.py": TORCH,
    "fast/winograd.py": TORCH,
    "dialects.py": JAX | TORCH,
    "recognise.py": JAX | TORCH,
    "convert.py": JAX | TORCH,
    "rulesfile.py": JAX | TORCH,
    "safetensors.py": JAX | TORCH,
    "msgpack.py": JAX | TORCH,
    "npz.py": JAX | TORCH,
    "torchfile.py": JAX,
    "orbax.py": TORCH,
}


@functools.cache
def parsed(text: str) -> ast.Module:
    """The tree of a file's text: several tests look at every file."""
    return ast.parse(text)


def imported(file: Path) -> Iterator[str]:
    """The top packages that a file imports anywhere in it: in a function, under a condition, by a constant name."""
    for node in ast.walk(parsed(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").split(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            yield from (str(arg.value).split(".")[0] for arg in node.args[:1] if isinstance(arg, ast.Constant))


@functools.cache
def named(text: str) -> frozenset[str]:
    """The modules, and what is taken from them, that a file's text names where it runs when it is imported."""
    names: set[str] = set()
    for node in loaded(parsed(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def loaded(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported: not what stands in functions, nor what is for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from loaded(node)


def graph(root: Path) -> dict[str, set[str]]:
    """What each module loads at once when it is imported: modules of this project, and top packages of others."""
    files = {
        ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file
        for package in PACKAGES
        for file in (root / package).rglob("*.py")
    }
    found: dict[str, set[str]] = {}
    for module, file in files.items():
        names = named(file.read_text())
        parents = {".".join(name.split(".")[:i]) for name in names for i in range(1, name.count(".") + 2)}
        found[module] = (parents & files.keys()) | ({name.split(".")[0] for name in names} - PACKAGES.keys())
    return found


def reached(edges: dict[str, set[str]], module: str) -> dict[str, list[str]]:
    """All that a module loads, each with the way to it."""
    ways = {module: [module]}
    waiting = [module]
    while waiting:
        at = waiting.pop(0)
        for name in sorted(edges.get(at, ())):
            if name not in ways:
                ways[name] = [*ways[at], name]
                waiting.append(name)
    return ways


def indirect(root: Path) -> list[str]:
    """Files about one framework that load another one through other files."""
    edges, found = graph(root), []
    for module in edges:
        path = f"/{module.replace('.', '/')}.py"
        forbidden = set[str]().union(*(names for end, names in FRAMEWORKS.items() if path.endswith(f"/{end}")))
        ways = reached(edges, module)
        found += [" -> ".join(ways[name]) for name in sorted(forbidden & ways.keys())]
    return sorted(found)


def violations(root: Path) -> list[str]:
    found = []
    for package, forbidden in PACKAGES.items():
        for file in sorted((root / package).rglob("*.py")):
            named = (names for end, names in FRAMEWORKS.items() if file.as_posix().endswith(f"/{end}"))
            wrong = set(imported(file)) & forbidden.union(*named)
            found += [f"{file.relative_to(root)} imports {name}" for name in sorted(wrong)]
    return found


def families_named(root: Path) -> list[str]:
    """Files that know one family of networks: all but that family's own and the registry must not."""
    names = {folder.parent.name for folder in (root / "ports").glob("*/family.py")}
    found = []
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            path = file.relative_to(root).as_posix()
            inside = path == "ports/families.py" or any(path.startswith(f"ports/{name}/") for name in names)
            modules = {module for node in ast.walk(parsed(file.read_text())) for module in _modules(node)}
            for name in sorted(names):
                if not inside and any(f"{module}.".startswith(f"ports.{name}.") for module in modules):
                    found.append(f"{path} imports ports.{name}")
    return found


def _modules(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.cache
def every_import(root: Path) -> dict[str, set[str]]:
    """The modules of this project that each module imports, in functions too, but not what is for type checkers."""
    files = {
        ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file
        for package in PACKAGES
        for file in sorted((root / package).rglob("*.py"))
    }
    edges: dict[str, set[str]] = {}
    for module, file in files.items():
        tree = parsed(file.read_text())
        typed = {id(inner) for node in ast.walk(tree) if _is_for_types(node) for inner in ast.walk(node)}
        names = {name for node in ast.walk(tree) if id(node) not in typed for name in _modules(node)}
        edges[module] = {_module_of(name, files) for name in names} - {module, ""}
    return edges


def circles(edges: dict[str, set[str]]) -> list[str]:
    """Modules, or rooms, that import each other, directly or through others."""
    found = []
    for module in edges:
        ways = reached(edges, module)
        found += [f"{module} <-> {other}" for other in ways if module < other and module in reached(edges, other)]
    return sorted(found)


def rooms(edges: dict[str, set[str]], package: str) -> dict[str, set[str]]:
    """What each package and module directly in `package` imports of the others there; `package` is its own facade."""

    def room(module: str) -> str:
        inner = module.removeprefix(f"{package}.")
        return package if module == package else f"{package}.{inner.partition('.')[0]}"

    found: dict[str, set[str]] = {}
    for module, others in edges.items():
        if f"{module}.".startswith(f"{package}."):
            inside = {room(other) for other in others if f"{other}.".startswith(f"{package}.")}
            found.setdefault(room(module), set()).update(inside - {room(module)})
    return found


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _module_of(name: str, files: dict[str, Path]) -> str:
    """The module that a dotted name is of: itself, or what holds it."""
    while name and name not in files:
        name = name.rpartition(".")[0]
    return name


def test_directions() -> None:
    assert violations(ROOT) == []


def test_no_two_modules_import_each_other() -> None:
    assert circles(every_import(ROOT)) == []


# Which room of `ports.weights` imports which: what stands further up never imports what stands further down.
ARROWS = {
    "form": set[str](),
    "layers": set[str](),
    "live": {"form", "layers"},
    "optimizer": {"form", "live"},
    "files": {"form", "live"},
    "known": {"form", "layers"},
    "rules": {"form", "layers", "known"},
    "checkpoints": {"form", "layers", "optimizer", "files", "known", "rules"},
}


# The rooms of the check, from below: each imports rooms above it in this list alone.
ORDER = ("numerics", "options", "reports", "traps", "running", "pairing", "verdict", "diagnosis")
ORDER = (*ORDER, "moving", "subjects", "pipeline", "api", "commands", "plugin")

PLACES = ("ports", "ports.weights", "ports.weights.files", "ports.weights.checkpoints", "parity", "benchmarks")


@pytest.mark.parametrize("package", PLACES)
def test_no_two_rooms_import_each_other(package: str) -> None:
    found = rooms(every_import(ROOT), package)
    assert len(found) > 3
    assert circles(found) == []


def test_the_rooms_for_weights_import_what_is_stated() -> None:
    found = rooms(every_import(ROOT), "ports.weights")
    facade = found.pop("ports.weights")
    assert found == {f"ports.weights.{a}": {f"ports.weights.{b}" for b in others} for a, others in ARROWS.items()}
    assert facade <= found.keys()


def test_the_check_s_rooms_stand_on_one_another() -> None:
    found = rooms(every_import(ROOT), "parity")
    above = {f"parity.{room}": i for i, room in enumerate(ORDER)}
    outside = {"parity", "parity.__main__"}  # the facade loads what is asked for
    assert found.keys() - outside == above.keys()
    pairs = [(a, b) for a, others in found.items() for b in others if not {a, b} & outside]
    assert [(a, b) for a, b in pairs if above[b] >= above[a]] == []


def test_a_planted_circle_of_rooms_is_found(tmp_path: Path) -> None:
    """No two of these modules import each other, but two rooms do; and one room imports the facade."""
    for file, text in {
        "ports/weights/__init__.py": "from ports.weights.a.one import name",
        "ports/weights/a/one.py": "from ports.weights.b import two",
        "ports/weights/a/three.py": "import ports.errors",
        "ports/weights/b/two.py": "import ports.errors",
        "ports/weights/b/four.py": "def f():\n    from ports.weights.a.three import name",
        "ports/weights/c.py": "from ports.weights import name",
        "ports/errors.py": "",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    edges = every_import(tmp_path)
    assert circles(edges) == []
    assert circles(rooms(edges, "ports.weights")) == ["ports.weights.a <-> ports.weights.b"]
    assert rooms(edges, "ports.weights")["ports.weights.c"] == {"ports.weights"}


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    for file, text in {
        "ports/a.py": "from ports import b",
        "ports/b.py": "from ports.c import name",
        "ports/c.py": "def f():\n    import ports.a",
        "ports/d.py": "import ports.a",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    assert circles(every_import(tmp_path)) == ["ports.a <-> ports.b", "ports.a <-> ports.c", "ports.b <-> ports.c"]


def test_every_folder_of_code_is_a_package() -> None:
    """The wheel has packages alone: a folder without `__init__.py` would be left out."""
    folders = {file.parent for package in PACKAGES for file in (ROOT / package).rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_families_are_known_by_their_record_alone() -> None:
    assert families_named(ROOT) == []


def test_a_planted_import_of_a_family_is_found(tmp_path: Path) -> None:
    for file, text in {
        "ports/resnet/family.py": "",
        "ports/tutorial/family.py": "",
        "ports/families.py": "from ports.resnet.family import RESNET_FAMILY",
        "ports/tutorial/nnx.py": "import ports.tutorial.spec",
        "ports/weights/a.py": "from ports import resnet",
        "parity/b.py": "def f():\n    from ports.tutorial import spec",
        "benchmarks/c.py": "import ports.resnet.spec\nimport ports.resnetting",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    assert families_named(tmp_path) == [
        "ports/weights/a.py imports ports.resnet",
        "parity/b.py imports ports.tutorial",
        "benchmarks/c.py imports ports.resnet",
    ]


def test_no_file_loads_another_framework_through_others() -> None:
    assert indirect(ROOT) == []
    assert "torch" in reached(graph(ROOT), "parity.api")


def test_a_planted_way_to_another_framework_is_found(tmp_path: Path) -> None:
    for file, text in {
        "ports/resnet/nnx.py": "import jax\nfrom ports.resnet import shared",
        "ports/resnet/shared.py": "import ports.deep",
        "ports/deep.py": "class Net:\n    from torch import nn",
        "ports/resnet/linen.py": "def f():\n    import ports.deep",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    assert indirect(tmp_path) == ["ports.resnet.nnx -> ports.resnet.shared -> ports.deep -> torch"]


def test_the_files_that_the_rules_are_about_are_there() -> None:
    """A checker that looks into empty folders finds nothing wrong."""
    found = {
        file.relative_to(ROOT).as_posix() for package in ("ports", "parity") for file in (ROOT / package).rglob("*.py")
    }
    for port in ("pytorch", "nnx", "linen"):
        assert {f"ports/{room}/{port}.py" for room in ("resnet", "weights/live", "export")} <= found
        assert {f"parity/running/{port}.py"} <= found
    assert [end for end in FRAMEWORKS if not any(f"/{name}".endswith(f"/{end}") for name in found)] == []
    assert "torch" in set(imported(ROOT / "ports/resnet/pytorch.py"))
    assert {"jax", "flax"} <= set(imported(ROOT / "ports/resnet/nnx.py")) & set(
        imported(ROOT / "ports/resnet/linen.py")
    )
    assert "ports" in set(imported(ROOT / "parity/api.py"))


@pytest.mark.parametrize(
    ("file", "code", "said"),
    [
        (
            "ports/weights/form/torch_form.py",
            "def f():\n    import parity.api",
            "ports/weights/form/torch_form.py imports parity",
        ),
        ("parity/commands/cli.py", "from benchmarks import run", "parity/commands/cli.py imports benchmarks"),
        ("ports/resnet/nnx.py", "import torch.nn", "ports/resnet/nnx.py imports torch"),
        ("ports/resnet/pytorch.py", "from jax import numpy", "ports/resnet/pytorch.py imports jax"),
        ("ports/weights/live/linen.py", "if x:\n    import torch as t", "ports/weights/live/linen.py imports torch"),
        ("parity/running/pytorch.py", "def f():\n    from flax import nnx", "parity/running/pytorch.py imports flax"),
        ("ports/new/pytorch.py", "import os, optax", "ports/new/pytorch.py imports optax"),
        ("ports/a.py", "import importlib\nimportlib.import_module('parity.commands.cli')", "ports/a.py imports parity"),
        ("ports/b.py", "from parity.commands import cli", "ports/b.py imports parity"),
    ],
)
def test_a_planted_violation_is_found(file: str, code: str, said: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(code)
    assert violations(tmp_path) == [said]


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("parity/a.py", "import ports, torch, jax"),
        ("benchmarks/a.py", "import ports, parity"),
        ("ports/resnet/nnx.py", "import jax\nfrom ports.resnet import spec"),
        ("ports/a.py", "text = 'import parity'"),
        ("ports/b.py", "import parity_of_something_else"),
    ],
)
def test_what_is_allowed_is_not_reported(file: str, code: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(code)
    assert violations(tmp_path) == []


PORT_NAMES = {"pytorch", "nnx", "linen"}
MODELS = {"net", "model", "flax_model", "made", "held", "port"}  # what a live network is called


def ports_asked(file: Path) -> list[int]:
    """The lines that ask which framework something is of: by its name, or whether it is Linen's pair."""
    found = []
    for node in ast.walk(parsed(file.read_text())):
        if isinstance(node, ast.Compare | ast.match_case):
            names = {inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant)} & PORT_NAMES
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
            one, of = map(ast.unparse, node.args)
            names = {one} & MODELS if of == "tuple" else set[str]()
        else:
            continue
        if names:
            found.append(node.pattern.lineno if isinstance(node, ast.match_case) else node.lineno)
    return found


def test_only_the_record_asks_which_framework_a_network_is_of() -> None:
    files = [*(ROOT / "ports").rglob("*.py"), *(ROOT / "benchmarks/subjects").rglob("own_pair.py")]
    files += [ROOT / "parity/commands/converted.py"]
    found = {file.relative_to(ROOT).as_posix(): lines for file in files if (lines := ports_asked(file))}
    assert found.keys() == {"ports/frameworks.py"}


def test_a_planted_question_which_framework_it_is_is_found(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    lines = (
        'if to == "linen":\n    pass',
        'x = 1 if "nnx" != port else 2',
        'y = port in ("pytorch", "nnx")',
        'match port:\n    case "linen" | "nnx":\n        pass',
        "z = net[0] if isinstance(net, tuple) else net",
        'fine = create("nnx"), {"linen": 1}, isinstance(shape, tuple), port == other',
    )
    file.write_text("\n".join(lines))
    assert sorted(ports_asked(file)) == [1, 3, 4, 6, 8]


# `parity.plugin` loads with every run of pytest.
LIGHT = (
    "ports",
    "ports.export",
    "ports.frameworks",
    "ports.families",
    "ports.fast",
    "ports.optimizers",
    "ports.weights",
    "parity",
    "parity.commands.cli",
    "parity.plugin",
    "parity.reports.diff",
)


@pytest.mark.sample(5)
@pytest.mark.parametrize("module", LIGHT)
def test_loads_no_framework(module: str) -> None:
    code = f"import sys, {module}; print({{'torch', 'jax', 'flax', 'optax'}} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.strip() == "set()"


def test_what_loads_a_framework_is_seen() -> None:
    """The question put above, to a module whose answer is known."""
    code = "import sys, ports.resnet.pytorch; print({'torch', 'jax', 'flax'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.strip() == "{'torch'}"
