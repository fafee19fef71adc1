"""Tables and sentences of README and the site, made from the measurements in `benchmarks/results/`.

A page says `<!-- table: parity -->` where a table belongs, and the site puts it there. README must be readable without
the site, so `python -m docs.generator.tables` writes its sentences into README, between two marks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.depth import plot
from benchmarks.reporting import intervals, tables
from benchmarks.reporting import results as speeds
from benchmarks.reporting.schema import ResultRow
from benchmarks.reporting.schema import Results as SpeedResults
from benchmarks.subjects.roster import SUBJECTS
from benchmarks.subjects.subject import SWEPT

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
Results = dict[str, Any]
REDUCED = "†"  # marks a network that was checked with fewer blocks


def worst(model: Results, field: str, quantity: str) -> str:
    """Return the largest value of a quantity in any port; nothing if the network has no such tensor."""
    if not any(row["quantity"] == quantity and row["tensor"] != "(none)" for row in model["rows"]):
        return ""
    return f"{max(found[quantity] for found in model[field].values()):.1e}"


def rows(*lines: tuple[object, ...]) -> list[str]:
    """A table in Markdown; the first line is its head."""
    cells = ["| " + " | ".join(map(str, line)) + " |" for line in lines]
    return [cells[0], "|" + "---|" * len(lines[0]), *cells[1:]]


def parity(results: Results) -> list[str]:
    """One row per network: relative L2 distances of the worst port, and the largest multiple of any quantity."""
    lines: list[tuple[object, ...]] = [
        ("network", "eval output", "parameter gradients", "statistics", "3 SGD steps", "worst / response")
    ]
    for model in results["models"]:
        quantities = ("output.eval", "gradient.parameter", "statistics", "training.parameter")
        distances = (worst(model, "largest", quantity) for quantity in quantities)
        multiple = max(times for found in model["multiple"].values() for times in found.values())
        mark = f" {REDUCED}" if re.search(r"\d of \d|\) of \(", model["note"]) else ""
        lines.append((f"`{model['model']}`{mark}", *distances, f"{multiple:.1f}"))
    where = results["environment"]
    return [
        *rows(*lines),
        "",
        f"Measured on {where['date'][:10]}: {where['cores']} CPU cores, Python {where['python']}, "
        f"torch {where['torch']}, jax {where['jax']}, flax {where['flax']}, optax {where['optax']}. A tensor passes at "
        f"up to {where['multiple']} times its response.",
        "",
        f"{REDUCED}: checked with fewer blocks, and with a smaller vocabulary, as `parity check --all` does. "
        "`parity check NAME` checks the whole network.",
    ]


def score(results: Results) -> list[str]:
    """One row per family of mistakes."""
    lines: list[tuple[object, ...]] = [("mistakes of", "entries", "cases", "caught", "right layer", "right name")]
    found = results["results"]
    for family in (*dict.fromkeys(r["family"] for r in found), "all"):
        some = [r for r in found if family in ("all", r["family"])]
        counts = (sum(r[what] for r in some) for what in ("caught", "layer", "name"))
        lines.append((family, len({(r["family"], r["trap"]) for r in some}), len(some), *counts))
    return [
        *rows(*lines),
        "",
        f"Commit `{results['commit'][:10]}`.",
    ]


def cost(results: Results) -> list[str]:
    """One row per network: the check compared with the plain passes that it needs, in one run."""
    head = ("network", "check", "again", "plain passes", "compiling", "ratio", "again", "memory", "all layers' outputs")
    lines: list[tuple[object, ...]] = [head]
    for r in results["results"]:
        seconds = (f"{r[f'{what}_seconds']:.0f} s" for what in ("check", "again", "passes", "compile"))
        sizes = (f"{r[f'{what}_bytes'] / 1e9:.2f} GB" for what in ("peak", "activation"))
        ratios = (f"{r[what]:.1f}" for what in ("ratio", "ratio_again"))
        lines.append((f"`{r['model']}`", *seconds, *ratios, *sizes))
    return rows(*lines)


def decoding(results: Results) -> list[str]:
    """Tokens a second of every decoder, and in brackets the multiple of transformers'."""
    names = [row["subject"] for row in results["networks"][0]["subjects"]]
    lines: list[tuple[object, ...]] = [("network", "batch", "prompt", "new tokens", *(f"`{name}`" for name in names))]
    for r in results["networks"]:
        found = {row["subject"]: row for row in r["subjects"]}
        figures = (f"{found[n]['tokens_per_second']:.1f} ({found[n]['times_transformers']:.2f})" for n in names)
        lines.append((f"`{r['network']}`", r["batch"], r["prompt"], r["new"], *figures))
    return rows(*lines)


def conversion(results: Results) -> list[str]:
    """The cost of conversions, compared with their baselines."""
    file, live = results["files"], results["live"]
    copy = sum(file["copy_seconds"]) / len(file["copy_seconds"])
    size = f"{file['bytes'] / 1e9:.1f} GB"
    lines: list[tuple[object, ...]] = [("what", "takes", "beside", "extra memory")]
    for name, text in (("safetensors", "to safetensors"), ("sharded", f"to {file['shards']} shards")):
        took = file[name]
        beside = f"{took['seconds'] / copy:.1f} times copying the file ({copy:.0f} s)"
        lines.append((f"{size} of safetensors {text}", f"{took['seconds']:.0f} s", beside, _extra(took["extra_bytes"])))
    seconds = f"{file['inspect_seconds']:.2f} s"
    lines.append(
        (f"`parity inspect` of that file, {file['tensors']} tensors", seconds, "", _extra(file["inspect_extra_bytes"]))
    )
    for memory, text in (("fresh", "memory that is new to the process"), ("reused", "memory used before")):
        took = live[memory]
        for way, words in (("copied", "copied"), ("shared", "`copy=False`")):
            beside = f"{took[f'{way}_ratio']:.2f} times copying its bytes ({took['memcpy_ms']:.0f} ms)"
            lines.append(
                (f"`{live['model']}` from PyTorch to NNX, {words}, {text}", f"{took[f'{way}_ms']:.0f} ms", beside, "")
            )
    return [
        *rows(*lines),
        "",
        f"Extra memory is compared with the same command on an empty file; the largest tensor has "
        f"{file['largest_bytes'] / 1e6:.0f} MB. Measured on {results['environment']['date'][:10]}, "
        f"{results['environment']['cores']} CPU cores.",
    ]


def _extra(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


def beneath(results: SpeedResults) -> list[str]:
    """The line below a table of speeds: what was measured, where and when."""
    return ["", *tables.below(results), f"Commit `{results['machine']['commit'][:10]}`."]


def speed(results: SpeedResults) -> list[str]:
    """A row per subject, a column per setting: images a second, and how many times as fast as eager PyTorch."""
    settings = speeds.settings_of(results)
    measured = {setting: {row["subject"]: row for row in speeds.rows_of(results, setting)} for setting in settings}
    head = [f"{s.network}, {s.mode}, batch {s.batch}" for s in settings]
    lines: list[tuple[object, ...]] = [("images/s (times eager)", *head)]
    for subject in (name for name in SUBJECTS if any(name in measured[s] for s in settings)):
        cells = []
        for setting in settings:
            row, base = measured[setting].get(subject), measured[setting].get(tables.BASES[0])
            if row is None or base is None:
                cells.append("")
                continue
            times = "1" if row is base else tables.times(speeds.ratio(row, base))
            cells.append(f"{speeds.throughput(row):.4g} ({times})")
        lines.append((f"`{subject}`", *cells))
    notes = [f"- {head[i]}: {note}" for i, s in enumerate(settings) for note in tables.table(results, s).notes]
    return [*rows(*lines), "", *notes, *beneath(results)]


def families(results: SpeedResults) -> list[str]:
    """A row per setting: the ports, and how many times as fast they are as the original and as the fastest JAX peer.

    A cell is empty where nothing was measured: there is no such peer, or the machine's memory did not hold it.
    """
    lines: list[tuple[object, ...]] = [
        ("images or texts/s", "`pytorch-compile`", "times the original", "`nnx`", "`linen`", "times the JAX peer")
    ]
    for setting in speeds.settings_of(results):
        found = {row["subject"]: row for row in speeds.rows_of(results, setting)}
        flax = max((found[name] for name in ("nnx", "linen") if name in found), key=speeds.throughput)
        ratios: list[str] = []
        for framework, ours in (("pytorch", found["pytorch-compile"]), ("jax", flax)):
            peers = [r for name, r in found.items() if SUBJECTS[name].peer and SUBJECTS[name].framework == framework]
            best = max(peers, key=speeds.throughput, default=None)
            ratios.append("" if best is None else f"`{best['subject']}`: {tables.times(speeds.ratio(ours, best))}")
        ports = ("pytorch-compile", "nnx", "linen")
        figures = [f"{speeds.throughput(found[name]):.3g}" if name in found else "" for name in ports]
        what = f"{setting.network}, {setting.mode}, batch {setting.batch}"
        lines.append((what, figures[0], ratios[0], *figures[1:], ratios[1]))
    return [*rows(*lines), *beneath(results)]


# What a port does to be fast, compared with the same port without it.
MEANS = (
    ("nnx", "nnx-jit"),
    ("nnx-fast", "nnx"),
    ("linen-fast", "linen"),
    ("nnx-folded", "nnx"),
    ("nnx-export", "nnx"),
    ("pytorch-folded", "pytorch-compile"),
    ("pytorch-compile-fast", "pytorch-compile"),
    ("pytorch-max-autotune-fast", "pytorch-max-autotune"),
    ("pytorch-max-autotune", "transformers-max-autotune"),
)


# XLA's options, measured before the first step: how much each subject gains from them.
AUTOTUNE = (
    ("nnx-autotune", "nnx"),
    ("linen-autotune", "linen"),
    ("haiku-autotune", "haiku"),
    ("keras-jax-autotune", "keras-jax"),
    ("nnx-autotune", "haiku-autotune"),
    ("nnx-autotune", "keras-jax-autotune"),
    ("linen-autotune", "haiku-autotune"),
    ("linen-autotune", "keras-jax-autotune"),
)


def means(results: SpeedResults, pairs: Sequence[tuple[str, str]] = MEANS) -> list[str]:
    """A row per setting and pair: how many times as fast, and the host's part of a step."""
    lines: list[tuple[object, ...]] = [("setting", "subject", "beside", "times as fast", "host ms", "beside it")]
    for setting in speeds.settings_of(results):
        found = {row["subject"]: row for row in speeds.rows_of(results, setting)}
        for ours, other in pairs:
            if ours in found and other in found:
                hosts = ((f"{ms:.2g}" if (ms := speeds.host(found[name])) else "") for name in (ours, other))
                times = tables.times(speeds.ratio(found[ours], found[other]))
                lines.append((f"{setting.network}, {setting.mode}", f"`{ours}`", f"`{other}`", times, *hosts))
    return rows(*lines)


def autotune(results: SpeedResults) -> list[str]:
    return [*means(results, AUTOTUNE), *beneath(results)]


def flags(results: SpeedResults) -> list[str]:
    """A row per environment variable, a column per setting: how many times as fast a subject is with it."""
    settings = speeds.settings_of(results)
    measured = {setting: {row["subject"]: row for row in speeds.rows_of(results, setting)} for setting in settings}
    lines: list[tuple[object, ...]] = [("", *(f"{s.network}, {s.mode}, batch {s.batch}" for s in settings))]
    refused = {(row["subject"], speeds.Setting.of(row["setting"])): row["why"] for row in results["refused"]}
    tried = {row["subject"] for row in (*results["rows"], *results["refused"])}
    for plain in (name for name, about in SUBJECTS.items() if not about.swept):
        if plain not in tried:
            continue
        lines.append((f"`{plain}`", *(_latency(measured[s][plain]) for s in settings)))
        for name, about in SUBJECTS.items():
            if name.startswith(plain + SWEPT) and name in tried:
                cells = [
                    tables.times(speeds.ratio(measured[s][name], measured[s][plain]))
                    if name in measured[s]
                    else refused[name, s].partition(":")[0]
                    for s in settings
                ]
                value = about.environment.get("XLA_FLAGS", name.partition(SWEPT)[2])
                lines.append((f"`{plain}`, `{value}`", *cells))
    return [*rows(*lines), *beneath(results)]


def _latency(row: ResultRow) -> str:
    late = speeds.p99(row)
    return f"{tables.number(speeds.median(row))} ms" + (f", p99 {tables.number(late)} ms" if late else "")


# The setting of README's sentence on speed, and what its two rows are called there.
FASTEST = ("resnet50", ("inference", "training"))


def fastest(results: SpeedResults) -> list[str]:
    """Return one sentence: how the fastest Flax port compares with the fastest PyTorch port, in each mode."""
    network, modes = FASTEST
    said = []
    for setting in (s for mode in modes for s in speeds.settings_of(results) if (s.network, s.mode) == (network, mode)):
        note = next(note for note in tables.table(results, setting).notes if note.startswith("fastest Flax port ("))
        ratio = re.search(r"is ([\d.]+) \[", note)
        assert ratio, note
        said.append(f"{ratio[1]} times as fast in {setting.mode}")
    return [
        f"On two CPU cores the fastest Flax port of `{network}` is {' and '.join(said)} as the fastest PyTorch port."
    ]


def evidence(results: Results) -> list[str]:
    """Return one line: how many planted mistakes the check found."""
    found = results["results"]
    caught, named = (sum(row[what] for row in found) for what in ("caught", "name"))
    rate = intervals.said(caught, len(found))
    return [f"- The check caught {caught} of {len(found)} planted mistakes ({rate}) and named {named}."]


def faithful(results: Results) -> list[str]:
    """Return one line: the false alarms."""
    alarms, runs = results["false_alarms"], results["faithful"]
    said = "1 false alarm" if alarms == 1 else f"{alarms} false alarms"
    return [f"- It raised {said} in {runs:,} faithful runs ({intervals.said(alarms, runs)})."]


def kinds(results: Results) -> list[str]:
    """One row per kind of network: its faithful runs."""
    counted = [(kind, n["runs"], n["false_alarms"]) for kind, n in results["kinds"].items()]
    every = ("all", results["faithful"], results["false_alarms"])
    lines: list[tuple[object, ...]] = [("networks", "faithful runs", "false alarms", "rate of false alarms")]
    lines += [(kind, f"{runs:,}", alarms, intervals.said(alarms, runs)) for kind, runs, alarms in [*counted, every]]
    return [*rows(*lines), "", f"The worst tensor has {results['worst_multiple']:.1f} times its response."]


def moves(results: Results) -> list[str]:
    """Return one sentence: where `parity.move` put the weights of generated pairs."""
    right, refused, wrong, pairs = (results[name] for name in ("right", "refused", "wrong", "pairs"))
    return [
        f"Of {pairs:,} pairs it moved {right} rightly and refused {refused}; {wrong or 'none'} got a tensor in a wrong "
        f"place ({intervals.said(wrong, pairs)})."
    ]


def published(results: Results) -> list[str]:
    """Return one line: the published pairs."""
    rows = results["twins"].values()
    equal = sum(row["verdict"] == "parity" for row in rows)
    return [
        f"- It checked {len(rows)} pairs that others published in both frameworks. {equal} are equal, "
        "and the differences of the others are in their sources."
    ]


def ports_of_others(results: Results) -> list[str]:
    """Return one line: the ports that others published."""
    rows = results["ports"].values()
    equal = sum(row["verdict"] == "parity" for row in rows)
    wrong = f"It is wrong about {len(results['wrong'])}. " if results["wrong"] else ""
    return [
        f"- It checked {len(rows)} Flax ports of {len(results['projects'])} projects on GitHub. {equal} are equal to "
        f"PyTorch. {wrong}The differences of the others are in their sources."
    ]


def depth(results: Results) -> list[str]:
    """One row per network and framework: errors at the end, the gradient at the start, and the first steps apart."""
    plan, machine = results["plan"], results["machine"]
    return [
        *rows(plot.HEAD, *plot.rows(results)),
        "",
        f"{plan['steps']} steps of {plan['batch']} images of {plan['size']} by {plan['size']} pixels, of "
        f"{results['images']['train']:,}; {plan['test_images']:,} test images. Measured on {machine['date'][:10]}, "
        f"{machine['cores']} CPU cores, commit `{machine['commit'][:10]}`.",
    ]


def replay(results: Results) -> list[str]:
    """Return how many ports reach parity when a script applies each `fix` and checks again."""
    lines: list[tuple[object, ...]] = [("what is planted", "ports", "mistakes", "end in parity", "checks of a port")]
    for said, arguments in (("arguments alone", True), ("one mistake that is not an argument", False)):
        found = [port for port in results["ports"] if port["arguments"] is arguments]
        checks = sorted(port["checks"] for port in found)
        mistakes = sum(len(port["planted"]) for port in found)
        right = sum(port["right"] for port in found)
        lines.append((said, len(found), mistakes, right, f"{checks[0]} to {checks[-1]}"))
    return rows(*lines)


# By name: the file, and what is made of it.
TABLES: dict[str, tuple[str, Callable[[Any], list[str]]]] = {
    "parity": ("parity-cpu.json", parity),
    "score": ("score-cpu.json", score),
    "cost": ("check-cost-cpu.json", cost),
    "conversion": ("conversion-cpu.json", conversion),
    "decoding": ("decoding-cpu.json", decoding),
    "speed": ("speed-cpu-*.json", speed),
    "families": ("families-cpu-*.json", families),
    "means": ("speed-cpu-*.json", means),
    "autotune": ("autotune-cpu-*.json", autotune),
    "flags": ("flags-cpu-*.json", flags),
    "fastest": ("speed-cpu-*.json", fastest),
    "depth": ("depth-cpu.json", depth),
    "evidence": ("score-cpu.json", evidence),
    "faithful": ("faithful-cpu.json", faithful),
    "kinds": ("faithful-cpu.json", kinds),
    "moves": ("moves-cpu.json", moves),
    "replay": ("agent-replay-cpu.json", replay),
    "published": ("../../tests/twins/verdicts.json", published),
    "ports": ("../../tests/twins/published/verdicts.json", ports_of_others),
}
IN_README = ("fastest", "evidence", "faithful", "published", "ports")
PLACE = re.compile(r"(?m)^<!-- table: (\w+) -->$")


def load(name: str) -> Results:
    """Return the results of a table; of several files, take the newest by the date in its name."""
    folder, _, pattern = TABLES[name][0].rpartition("/")
    return json.loads(max((RESULTS / folder).glob(pattern)).read_text())


def made(name: str, results: Results | None = None) -> str:
    """Return a table in Markdown."""
    return "\n".join(TABLES[name][1](results or load(name)))


def filled(text: str) -> str:
    """Return the text of a page with its tables filled in."""
    return PLACE.sub(lambda place: made(place[1]), text)


def readme(text: str, results: dict[str, Results]) -> str:
    """Return README with its sentences filled in."""
    for name, found in results.items():
        place = f"(?s)<!-- {name} -->.*?<!-- end -->"
        text, count = re.subn(place, lambda _, n=name, f=found: f"<!-- {n} -->\n{made(n, f)}\n<!-- end -->", text)
        assert count == 1, f"README.md has no place for {name}"
    return text


if __name__ == "__main__":
    file = ROOT / "README.md"
    file.write_text(readme(file.read_text(), {name: load(name) for name in IN_README}))
