"""A short run of each kind of fuzzing, and mistakes planted in the readers and writers that the harness must report."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz import guided, judge, kills, mutate, names, runs, seeds, states
from fuzz.judge import Options

from ports.weights import convert
from ports.weights.files import atomic, formats
from ports.weights.files.formats import FORMATS, npz, safetensors

ROOT = Path(__file__).resolve().parents[1]


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, env=os.environ)


@pytest.mark.nightly
def test_a_short_run_finds_nothing(tmp_path: Path) -> None:
    """Of each kind and every format; `make fuzz` takes minutes, `make soak` an hour."""
    done = fuzz("all", "--count", "12", "--small", "--keep", str(tmp_path / "faults"))
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in ("mutations", "guided", "kills", "names", "states"):
        assert f"{kind}\n" in done.stdout
    assert done.stdout.count("safetensors") == 5
    assert done.stderr == ""
    assert not (tmp_path / "faults").exists()


def case(folder: Path, name: str = "npz", how: Options | None = None, cpu: float = judge.CPU) -> list[str]:
    """Return the faults of a whole file of this package."""
    formats.write(folder / f"made{seeds.suffix(name)}", formats.Content(seeds.plain(), {}), FORMATS[name])
    files = seeds.collected(folder / f"made{seeds.suffix(name)}")
    how = how or Options(convert=("--format", "safetensors", "--to", "torch"), target="safetensors")
    with judge.watched():
        return judge.judge(judge.emptied(folder / "case"), name, files, how, cpu).faults


def test_a_whole_file_has_no_fault(tmp_path: Path) -> None:
    assert case(tmp_path) == []


def planted(monkeypatch: pytest.MonkeyPatch, folder: Path, reader: Any, **options: Any) -> str:
    """Return the faults of a file that such a reader reads."""
    monkeypatch.setattr(npz, "read", reader)
    return "\n".join(case(folder, **options))


def raising(error: Exception) -> Any:
    def read(source: Any) -> Any:
        raise error

    return read


@pytest.mark.parametrize(
    "error", [KeyError("x"), TypeError("no"), AssertionError(), ZeroDivisionError(), IndexError(1)]
)
def test_an_error_of_programming_is_a_fault(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = planted(monkeypatch, tmp_path, raising(error))
    assert f"an error of programming is hidden: {type(error).__name__}" in said


def test_a_file_that_is_refused_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert planted(monkeypatch, tmp_path, raising(ValueError("damaged"))) == ""


def test_a_reader_that_hangs_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(source: Any) -> Any:
        while True:
            pass

    assert "inspect: took " in planted(monkeypatch, tmp_path, read, cpu=0.2)


def test_a_reader_that_takes_too_much_memory_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = npz.read

    def read(source: Any) -> Any:
        np.ones(200 << 20, np.uint8)
        return whole(source)

    assert "bytes of memory, limit " in planted(monkeypatch, tmp_path, read)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("parity: note: fine\n\x1b[31m", "characters that cannot be seen"),
        ("Traceback (most recent call last):\n", "a traceback"),
        ("a warning\n", "stderr: 'a warning"),
        ("parity: note: again\n" * 99, "99 lines on stderr"),
    ],
    ids=["escape", "traceback", "warning", "many"],
)
def test_what_should_not_be_printed_is_a_fault(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = npz.read

    def read(source: Any) -> Any:
        sys.stderr.write(text)
        return whole(source)

    assert said in planted(monkeypatch, tmp_path, read)


@pytest.mark.parametrize("code", [1, 3])
def test_another_exit_code_is_a_fault(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge.cli, "main", lambda _: code)
    assert f"inspect: exit code {code}" in "\n".join(case(tmp_path))


def test_a_defect_of_the_package_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, content: Any) -> None:
        raise KeyError("x")

    monkeypatch.setattr(safetensors, "write", write)
    assert "this is a defect of this package" in "\n".join(case(tmp_path))


def test_a_partial_output_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is left in its hidden folder, and one at its place."""

    @contextmanager
    def publish(path: Path, **_: Any) -> Iterator[Path]:
        yield path

    def write(path: Path, content: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors, "write", write)
    assert "convert: the folder holds" not in "\n".join(case(tmp_path))
    monkeypatch.setattr(atomic, "_settle", lambda box: None)
    assert "convert: the folder holds ['.out.safetensors." in "\n".join(case(tmp_path))
    monkeypatch.setattr(sys.modules[convert.__module__], "publish", publish)
    assert "convert: the folder holds ['out.safetensors', 'w.npz'], expected ['w.npz']" in "\n".join(case(tmp_path))


def test_an_old_output_that_is_lost_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, content: Any) -> None:
        out = tmp_path / "case" / "out.safetensors"
        if path != out:  # not where the old one is made
            out.write_bytes(b"")
            raise formats.WeightsError("no")
        whole(path, content)

    whole = safetensors.write
    monkeypatch.setattr(safetensors, "write", write)
    how = Options(convert=("--format", "safetensors", "--to", "torch"), target="safetensors", old=True)
    assert "convert: the old output is lost or changed" in case(tmp_path, how=how)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tree: tree["fc.weight"].view(np.uint8).reshape(-1).__setitem__(0, 77), "1 tensors differ"),
        (lambda tree: tree.pop("fc.weight"), "other names than in the source"),
        (lambda tree: tree.clear(), "what it wrote cannot be read"),
    ],
    ids=["bit", "name", "empty"],
)
def test_wrong_numbers_are_a_fault(change: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = safetensors.write

    def write(path: Path, content: Any) -> None:
        tree = {name: np.array(array) for name, array in content.tree.items()}
        change(tree)
        whole(path, formats.Content(tree, content.metadata))

    monkeypatch.setattr(safetensors, "write", write)
    assert said in "\n".join(case(tmp_path))


@pytest.mark.parametrize("name", FORMATS)
def test_a_flipped_bit_of_a_state_dict_is_a_fault(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = formats.importlib.import_module(f"ports.weights.files.formats.{FORMATS[name].module}")
    whole, rng, plan = module.write, runs.random.Random(0), {"a.b": np.arange(6.0).reshape(2, 3)}

    def write(path: Path, content: Any, **options: Any) -> None:
        tree = {".".join(at): np.array(array) for at, array in formats.flat(content.tree)}
        tree["a.b"].view(np.uint64)[1, 1] ^= 1
        nested = formats.nested((tuple(n.split(".")), array) for n, array in tree.items())
        whole(path, formats.Content(nested if FORMATS[name].nested else tree, content.metadata), **options)

    assert states.there_and_back(judge.emptied(tmp_path / "a"), name, plan, rng)["faults"] == []
    monkeypatch.setattr(module, "write", write)
    faults = states.there_and_back(judge.emptied(tmp_path / "b"), name, plan, rng)["faults"]
    assert f"in {name}: 1 tensors differ, such as 'a.b'" in faults


@pytest.mark.parametrize("way", kills.WAYS)
def test_what_a_kill_should_not_leave_is_a_fault(way: str, tmp_path: Path) -> None:
    def faults(content: Any, *, hidden: bool = False, how: str = "killed") -> list[str]:
        folder = judge.emptied(tmp_path / "killed")
        if isinstance(content, bytes):
            (folder / "out.npz").write_bytes(content)
        elif content is not None:
            np.savez(folder / "out.npz", **content)
        if hidden:
            (folder / ".out.npz.partial").mkdir()
        return kills.wrong(kills.look(folder, "npz"), "npz", way, how)

    old, lost = (["the output after the next run: old"], []) if way.startswith("new") else ([], ["nothing"])
    assert faults(kills.NEW) == []
    assert faults(kills.OLD)[-1:] == old
    assert [fault.rpartition(" ")[2] for fault in faults(None)[-1:]] == lost
    assert "after the next run there is ['.out.npz.partial']" in faults(kills.NEW, hidden=True)
    assert "the output: cannot be read" in "".join(faults(b"PK half"))
    assert "the output: holds other numbers" in faults({"t0": np.ones(3)})
    assert "the writer died of 6" in faults(kills.NEW, how="died of 6")


def test_a_name_that_is_printed_raw_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert names.reported(tmp_path, "a\x1b\n") == []
    monkeypatch.setattr("parity.reports.html.printable", lambda text: text)
    assert names.reported(tmp_path, "a\x1b\n") != []


def test_every_case_follows_from_its_seed() -> None:
    files = [{"": bytes(range(200))}, {"": b'{"a": {"b": [1, 2.5, "x"]}, "crc32": "1"}'}, {"a/b": b"1", "c": b"{}"}]

    def drawn(seed: int) -> list[Any]:
        plan = runs.Plan(seed=seed)
        rngs = [runs.rng_of(plan, ("npz", i)) for i in range(200)]
        return [(mutate.changed(rng, runs.drawn(rng, files), files), judge.options(rng, "npz")) for rng in rngs]

    assert drawn(1) == drawn(1) != drawn(2)
    assert len({str(files) for files, _ in drawn(1)}) > 150


def test_a_file_that_reaches_new_code_joins_the_corpus(tmp_path: Path) -> None:
    corpus = guided.Corpus([{"": b"a"}])

    def reached(content: bytes) -> set[guided.Step]:
        steps: set[guided.Step] = set()
        (tmp_path / "w.npz").write_bytes(content)
        with guided.traced(steps), pytest.raises(formats.WeightsError):
            formats.read(tmp_path / "w.npz")
        return steps

    assert corpus.add({"": b"1"}, reached(b"")) > 0
    assert corpus.add({"": b"2"}, reached(b"")) == 0
    assert corpus.add({"": b"3"}, reached(b"PK\5\6" + bytes(18))) > 0
    assert [one[""] for one in corpus.files] == [b"a", b"1", b"3"]
    assert corpus.found == 2


def test_faults_are_counted_and_kept(tmp_path: Path) -> None:
    plan = runs.Plan(count=1, keep=tmp_path / "kept", formats=("npz",))
    table = runs.Table("mutations", {"npz": runs.Row()})
    how = Options(convert=("--format", "msgpack"), target="msgpack")
    runs.SEEN.clear()
    kept = runs.keep(plan, ("npz", 5), {"": b"damaged"}, how, ["convert: took 11.0 s of CPU time"])
    assert kept
    table.add(("npz", 5), {"faults": ["convert: took 11.0 s of CPU time"], "kept": True, "cpu": 11.0})
    table.add(("npz", 6), {"faults": [], "written": True})
    assert [line.split() for line in str(table).splitlines()[1:]] == [
        ["format", "cases", "written", "refused", "CPU", "s", "memory", "faults"],
        ["npz", "2", "1", "1", "11.00", "0%", "1"],
    ]
    assert runs.replay(tmp_path / "kept" / "npz-0-5") == []  # the file is refused, as it should be


def test_faults_of_one_kind_are_put_together() -> None:
    one, two = (runs.signature(f"convert: took {n} bytes of memory, limit {n + 7:,}") for n in (10, 2000))
    assert one == two != runs.signature("convert: exit code 1")
