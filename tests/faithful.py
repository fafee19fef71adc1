"""Faithful runs: random small networks, seeds and shapes, all of which must pass the check.

    python tests/faithful.py --runs 200

A false alarm here would mean that the bounds are too narrow. `test_faithful.py` runs a sample.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import parity
from ports.errors import UserError
from ports.resnet.spec import SHORTCUTS, Block, ResNetSpec, Stage, Stem


def network(seed: int) -> tuple[ResNetSpec, dict[str, Any]]:
    """A random network, and the batch, image size and seed of its check."""
    rng = random.Random(seed)
    preactivation = rng.random() < 0.3
    kernels = rng.choice([(3, 3), (3, 3), (1, 3, 1), (1, 3, 1), (3, 3, 3), (3, 1), (5, 3)])
    bottleneck = kernels == (1, 3, 1)
    grouped = bottleneck and rng.random() < 0.3
    block = Block(
        kernels=kernels,
        expansion=rng.choice([2, 4]) if bottleneck else 1,
        stride_at=rng.randrange(len(kernels)),
        preactivation=preactivation,
        shortcut=rng.choice(SHORTCUTS),
        shortcut_norm=rng.random() < 0.7,
        residual=rng.random() < 0.85,
        bias=rng.random() < 0.3,
        groups=rng.choice([2, 4]) if grouped else 1,
        base_width=64,
    )
    stem = rng.choice(
        [
            Stem(((8, 3, 1),), norm="none" if preactivation else "after", bias=rng.random() < 0.3),
            Stem(((8, 7, 2),), max_pool=True, norm="none" if preactivation else "after"),
            Stem(((4, 3, 2), (8, 3, 1)), norm="none" if preactivation else "after"),
            Stem(((8, 3, 1),), norm="inside", name="stem"),
        ]
    )
    stages = [Stage(8, rng.randint(1, 2))]
    for i in range(rng.randint(1, 2)):
        stages.append(Stage(16 << i, rng.randint(1, 2), stride=rng.choice([1, 2, 2]), transition=rng.random() < 0.2))
    spec = ResNetSpec(
        f"random_{seed}",
        stem,
        tuple(stages),
        block,
        num_classes=rng.randint(2, 12),
        in_channels=rng.choice([1, 3, 3, 3]),
        input_size=rng.randint(20, 33),
        init=rng.choice(["torchvision", "pytorch"]),
        features_only=rng.random() < 0.2,
    )
    size = (spec.input_size, rng.randint(17, 33))
    return spec, {"batch": rng.randint(2, 4), "image_size": size, "seed": seed, "steps": rng.choice([1, 3, 3, 5])}


def run(seed: int) -> dict[str, Any]:
    """One faithful run: whether it passed, and the worst multiple of the rounding response."""
    spec, options = network(seed)
    model = parity.check(spec, **options).models[0]
    worst = max(
        (multiple, f"{port} {quantity}")
        for port, found in model.multiple.items()
        for quantity, multiple in found.items()
    )
    return {
        "seed": seed,
        "ok": model.ok,
        "multiple": worst[0],
        "at": worst[1],
        "undecided": model.undecided,
        "first_divergence": str(model.first_divergence or ""),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="seed of the first run")
    parser.add_argument("--json", type=Path, help="write every run there")
    arguments = parser.parse_args()
    results, begin = [], time.monotonic()
    for seed in range(arguments.first, arguments.first + arguments.runs):
        try:
            result = run(seed)
        except UserError as error:
            result = {"seed": seed, "ok": False, "multiple": 0.0, "at": f"could not be asked: {error}"}
        results.append(result)
        mark = "ok" if result["ok"] else f"NOT OK {result}"
        print(f"{seed:4d}  {result['multiple']:5.2f}  {result['at']:30s}  {mark}", flush=True)
    passed = sum(r["ok"] for r in results)
    worst = max(results, key=lambda r: r["multiple"])
    print(
        f"{passed} of {len(results)} faithful runs passed; the worst tensor stands at {worst['multiple']:.1f} times "
        f"its rounding response (seed {worst['seed']}); {time.monotonic() - begin:.0f} s"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0 if passed == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
