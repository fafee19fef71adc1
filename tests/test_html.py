"""The page of a report: it opens by itself, shows every layer, and leads to the mistake."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from markup import Elements, loads

from parity.reports import drawing
from parity.reports.html import page, parts
from parity.reports.report import Divergence, Finding, Model, Point, Precision, Report, Row

LAYERS = ("conv1", "bn1", *(f"layer{i}.{j}.conv1" for i in (1, 2) for j in range(4)), "fc")
QUANTITIES = ("layer.eval", "layer.train", "gradient.parameter")
WRONG = {"layer1.2.conv1": "conv-padding-same", "layer2.1.conv1": None}
HOSTILE = "<script>alert('&')</script>"


def points(quantity: str, wrong: Sequence[int] = ()) -> tuple[Point, ...]:
    suffix = ".weight" if quantity.startswith("gradient") else ""
    return tuple(Point(n + suffix, 1e-3 if i in wrong else 1e-15, 1e-14, i not in wrong) for i, n in enumerate(LAYERS))


def model(wrong: Sequence[int] = (), name: str = "net", port: str = "nnx") -> Model:
    """One port; a mistake shows at the layers of these numbers."""
    row = Row(port, "layer.eval", "fc", 1e-3 if wrong else 1e-15, 1e-14, not wrong)
    findings = [Finding(port, layer, trap, f"{layer} is wrong; put {layer} right") for layer, trap in WRONG.items()]
    return Model(
        name,
        (row,),
        Divergence(port, LAYERS[wrong[0]], "layer.eval") if wrong else None,
        findings=tuple(findings) if wrong else (),
        profile={port: {quantity: points(quantity, wrong) for quantity in QUANTITIES}},
    )


def panels(*models: Model) -> list[drawing.Panel]:
    return [panel for m in models for _, found in drawing.drawings(m) for panel in found]


def heights(panel: drawing.Panel) -> list[float]:
    return [mark.y for mark in panel.marks]


WHOLE = Report(
    (model(), replace(model((4, 5, 6)), model="wrong"), Model("none", (), undecided="no rows")), {"torch": "2"}
)


def test_the_page_is_self_contained_and_well_formed() -> None:
    text = page(WHOLE)
    assert loads(text) == []
    found = Elements(text)
    assert found.open == []
    identities = [a["id"] for _, a in found.tags if "id" in a]
    assert len(identities) == len(set(identities))


@pytest.mark.parametrize(
    "planted",
    [
        '<script src="x.js"></script>',
        '<img src="x.png">',
        '<link rel="stylesheet" href="x.css">',
        '<a href="x.html">x</a>',
        '<p onclick="x()">x</p>',
        "<style>@import 'x.css';</style>",
        "<p>https://x.y</p>",
    ],
)
def test_what_would_be_fetched_is_seen(planted: str) -> None:
    assert loads(page(WHOLE).replace("</main>", f"{planted}</main>")) != []


def test_every_layer_is_a_mark() -> None:
    drawn = panels(*WHOLE.models)
    assert [panel.quantity for panel in drawn] == [*QUANTITIES, *QUANTITIES]
    for panel in drawn:
        names = [n + (".weight" if panel.backward else "") for n in LAYERS]
        assert [mark.text.partition(":")[0] for mark in panel.marks] == names
        assert all(a.x < b.x for a, b in pairwise(panel.marks))
    titles = [text for text in Elements(page(WHOLE)).text if re.fullmatch(r"\S+: \S+ \(bound 1.0e-14\)", text)]
    assert len(titles) == 2 * len(QUANTITIES) * len(LAYERS)


def test_a_layer_beyond_its_bound_is_drawn_beyond_it() -> None:
    forward, *_ = panels(model((4, 5)))
    assert [mark.shape for mark in forward.marks] == ["out" if i in (4, 5) else "dot" for i in range(len(LAYERS))]
    assert all((mark.y < mark.bound) == (mark.shape == "out") for mark in forward.marks)
    assert page(Report((model((4, 5)),))).count('class="stem"') == 2 * len(QUANTITIES)
    assert 'class="stem"' not in page(Report((model(),)))


def test_the_first_beyond_its_bound_is_labelled() -> None:
    """Forward from the left, backward from the right."""
    forward, train, backward = panels(model((4, 5, 6)))
    for panel, layer, i in ((forward, LAYERS[4], 4), (train, LAYERS[4], 4), (backward, f"{LAYERS[6]}.weight", 6)):
        assert panel.first is not None
        assert panel.first.text == f"{layer}: 1.0e-03, 1e+11 times its bound"
        assert panel.pointer == panel.marks[i]
        assert f"{layer}: 1.0e-03 (bound 1.0e-14)" in panel.summary
        assert panel.outside == 3
    assert [panel.backward for panel in (forward, train, backward)] == [False, False, True]
    assert [panel.first for panel in panels(model())] == [None] * 3


def test_a_label_stays_within_the_drawing() -> None:
    for i in range(len(LAYERS)):
        (label,) = (panel.first for panel in panels(model((i,)))[:1])
        assert label is not None
        width = len(label.text) * drawing.LETTER
        left = label.x if label.anchor == "start" else label.x - width
        assert left >= 0
        assert left + width <= drawing.WIDTH


def test_findings_are_flagged_at_their_layers() -> None:
    for panel in panels(model((4, 5, 6))):
        x = {mark.text.partition(":")[0].removesuffix(".weight"): mark.x for mark in panel.marks}
        assert [(flag.text, flag.x) for flag in panel.flags] == [(str(i), x[n]) for i, n in enumerate(WRONG, 1)]
    wrong = model((4,))
    other = replace(wrong, findings=(Finding("linen", "fc", None, ""), Finding("nnx", "(the network)", None, "")))
    assert [panel.flags for panel in panels(other)] == [[]] * 3


def test_findings_side_by_side_do_not_overlap() -> None:
    names = [f"l.{i}" for i in range(300)]
    crowded = Model(
        "net",
        (),
        findings=tuple(Finding("nnx", name, None, "") for name in names),
        profile={"nnx": {"layer.eval": tuple(Point(name, 1.0, 1e-14, False) for name in names)}},
    )
    (panel,) = panels(crowded)
    assert len(panel.flags) == len(names)
    for y in {flag.y for flag in panel.flags}:
        row = [flag for flag in panel.flags if flag.y == y]
        assert all(b.x - a.x >= (len(a.text) + len(b.text)) * 3.7 for a, b in pairwise(row))
    assert max(flag.y for flag in panel.flags) < panel.top


@pytest.mark.parametrize(
    ("layer", "flagged"),
    [("conv", "conv"), ("conv", "conv#2"), ("conv", "conv.weight"), ("block", "block.conv"), ("conv", "conv2")],
)
def test_a_finding_is_of_a_layer_its_calls_and_parameters(layer: str, flagged: str) -> None:
    row = (Point("other", 1.0, 1e-14, False), Point(flagged, 1.0, 1e-14, False))
    one = Model("net", (), findings=(Finding("nnx", layer, None, ""),), profile={"nnx": {"layer.eval": row}})
    assert len(panels(one)[0].flags) == (flagged != "conv2")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_distance_that_is_not_finite_stands_above_all_others(value: float) -> None:
    row = (Point("a", 1e-15, 1e-14, True), Point("b", 1e3, 1e-14, False), Point("c", value, 1e-14, False))
    one = Model("net", (Row("nnx", "layer.eval", "c", value, 1e-14, False),), profile={"nnx": {"layer.eval": row}})
    (panel,) = panels(one)
    assert [mark.shape for mark in panel.marks] == ["dot", "out", "lost"]
    assert heights(panel) == sorted(heights(panel), reverse=True)
    assert panel.marks[1].y - panel.marks[2].y >= drawing.LINE
    assert panel.ticks[-1].text == "not finite"
    assert ("not a number" if math.isnan(value) else "infinite") in page(Report((one,)))


def test_zero_stands_below_all_others() -> None:
    row = (Point("a", 0.0, 1e-14, True), Point("b", 1e-17, 1e-14, True), Point("c", 2e-17, 1e-14, True))
    (panel,) = panels(Model("net", (), profile={"nnx": {"layer.eval": row}}))
    assert heights(panel)[0] == heights(panel)[1] == panel.bottom > heights(panel)[2]
    assert "0" in [tick.text for tick in panel.ticks]
    assert "0" not in [tick.text for tick in panels(model())[0].ticks]


@pytest.mark.parametrize(
    "row",
    [
        (Point("a", 0.0, 0.0, True),),
        (Point("a", math.nan, math.nan, False), Point("b", math.inf, 0.0, False)),
        (Point("a", 1e-15, 1e-15, True),),
        (Point("a", 1e300, 1e-300, False),),
    ],
    ids=["zeros", "not-finite", "one-number", "far-apart"],
)
def test_degenerate_scales(row: tuple[Point, ...]) -> None:
    (panel,) = panels(Model("net", (), profile={"nnx": {"layer.eval": row}}))
    assert all(panel.top <= y <= panel.bottom for mark in panel.marks for y in (mark.y, mark.bound))
    assert "nan" not in panel.limit
    assert len(panel.ticks) >= 2


def test_what_somebody_named_is_text() -> None:
    row = Row(HOSTILE, HOSTILE, HOSTILE, 1.0, 1e-14, False)
    profile = {HOSTILE: {HOSTILE: (Point(HOSTILE, 1.0, 1e-14, False),)}}
    findings = (Finding(HOSTILE, HOSTILE, HOSTILE, HOSTILE),)
    first = Divergence(HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    one = Model(HOSTILE, (row,), first, HOSTILE, HOSTILE, findings=findings, profile=profile)
    text = page(Report((one, one), {HOSTILE: HOSTILE}))
    assert loads(text) == []
    assert "<script" not in text
    assert Elements(text).open == []
    assert HOSTILE in Elements(text).text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("it is wrong; put it right", ("it is wrong", "put it right")),
        ("it is wrong; PyTorch is right; put it right", ("it is wrong; PyTorch is right", "put it right")),
        ("it is wrong", ("it is wrong", "")),
        ("", ("", "")),
    ],
)
def test_a_finding_says_what_and_how_to_mend_it(text: str, expected: tuple[str, str]) -> None:
    assert parts(text) == expected


def test_findings_are_listed_with_their_mend() -> None:
    text = Elements(page(Report((model((4,)),)))).text
    for layer, trap in WRONG.items():
        assert layer in text
        assert f"put {layer} right" in text
        assert trap is None or trap in text
    assert text.count("Mend:") == len(WRONG)


VERDICTS = {
    "equal": (model(), "✓ Parity"),
    "different": (model((4,)), "✗ No parity"),
    "undecided": (replace(model(), undecided="too wide"), "? Cannot tell"),
    "empty": (Model("none", (), undecided="one value a channel"), "? Cannot tell"),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_the_verdict_comes_first(case: str) -> None:
    one, said = VERDICTS[case]
    text = [line for line in Elements(page(Report((one,)))).text if line]
    assert text[0] == f"{said[2:]}: {one.model}"
    assert text[1] == said
    assert (one.undecided or "") in " ".join(text)
    assert any("Every tensor of every quantity" in line for line in text) == one.ok


def test_several_networks_are_listed_first() -> None:
    """Two of one name too; drawings of networks that are right are folded."""
    report = Report((model(), model((4,)), VERDICTS["empty"][0]))
    found = Elements(page(report))
    assert [a["href"] for tag, a in found.tags if tag == "a"] == ["#network-1", "#network-2", "#network-3"]
    assert [a["id"] for tag, a in found.tags if tag == "section"] == ["network-1", "network-2", "network-3"]
    assert ["open" in a for tag, a in found.tags if tag == "details"] == [False, True]
    assert "No parity: 3 networks" in found.text


def test_parts_of_the_network_are_named_below_it() -> None:
    forward, _, backward = panels(model())
    assert [label.text for label in forward.groups] == ["conv1", "bn1", "layer1", "layer2", "fc"]
    assert [label.text for label in backward.groups] == [label.text for label in forward.groups]
    deep = tuple(Point(f"encoder.layers.{i}.up", 1e-15, 1e-14, True) for i in range(60))
    (panel,) = panels(Model("net", (), profile={"nnx": {"layer.eval": deep}}))
    assert panel.groups[0].text == "encoder.layers.0"
    assert 3 < len(panel.groups) < 10  # that have room
    for a, b in pairwise(panel.groups):
        assert b.x - a.x > (len(a.text) + len(b.text)) / 2 * drawing.LETTER


def test_drawings_say_what_they_show_to_those_who_do_not_see_them() -> None:
    found = Elements(page(Report((model((4,)),))))
    ids = {a["id"] for _, a in found.tags if "id" in a}
    drawn = [a for tag, a in found.tags if tag == "svg" and a.get("role") == "img"]
    assert len(drawn) == len(QUANTITIES)
    assert all(set((a["aria-labelledby"] or "").split()) <= ids for a in drawn)
    assert any("1 of 11 tensors beyond their bounds; first layer: layer1.2.conv1" in line for line in found.text)


def test_working_precision_stands_on_the_page_with_its_flips() -> None:
    measured = Precision("nnx", "float32", "output.eval", "logits", 2e-7, 1e-7, 2.0, 3e-7, 7, 1000)
    text = page(Report((replace(model(), precision=(measured,)),)))
    assert "Working precision" in text
    assert '<td class="n">2.0e-07</td>' in text
    assert "7 of 1,000 ReLUs" in text
    assert "Working precision" not in page(Report((model(),)))
