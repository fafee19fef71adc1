"""Everything that is measured on a GPU, in one command and within a time: `make gpu`.

First the check on the GPU: in float64, and what float32, TF32 and bfloat16 do. Then the speed of the networks that it
proved equal, the most wanted settings first. Each part is a results file of its own; a part for which no time is left
is said to be left out.

    python3 -m benchmarks.gpu --out benchmarks/results --minutes 8
"""

from __future__ import annotations

import argparse
import datetime
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.subjects import SUBJECTS

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Part:
    """One command; `share` of the whole time is the most it may take, if it can be told to stop."""

    name: str
    arguments: tuple[str, ...]
    share: float = 0.0


CHECK = ("-m", "parity", "check", "resnet50", "--device", "gpu")
SPEED = ("-m", "benchmarks", "--device", "gpu", "--starts", "5", "--rounds", "2", "--seconds", "0.3")

# The subjects that stand a chance to be the fastest there, and nnx.jit, which most write.
EAGER, COMPILED = "pytorch-channels-last", "pytorch-compile,pytorch-max-autotune,pytorch-cuda-graphs"
TRAINED = ("--subjects", f"{EAGER},{COMPILED},nnx,nnx-jit,linen")
INFERRED = ("--subjects", f"{EAGER},{COMPILED},pytorch-folded,nnx,nnx-folded,nnx-export,linen-folded")
BOTH = ("--subjects", f"{EAGER},pytorch-compile,pytorch-folded,nnx,nnx-folded,linen")
SWEEP = (
    "--subjects",
    ",".join(["nnx", *(name for name, row in SUBJECTS.items() if row.swept and "gpu" in row.devices)]),
)
HALF = ("--precision", "bfloat16")

PARTS = (
    Part("parity-float32-bfloat16", (*CHECK, "--dtype", "float32", "--dtype", "bfloat16", "--tf32", "off")),
    Part("parity-tf32", (*CHECK, "--dtype", "float32", "--tf32", "on")),
    Part("resnet50-training", (*SPEED, "resnet50", "--mode", "training", "--batch", "256", *HALF, *TRAINED), 0.2),
    Part("resnet50-inference", (*SPEED, "resnet50", "--mode", "inference", "--batch", "256", *HALF, *INFERRED), 0.15),
    Part("resnet50-batches", (*SPEED, "resnet50", "--batch", "1,32", *HALF, *BOTH), 0.15),
    Part("resnet50-tf32", (*SPEED, "resnet50", "--batch", "32,256", "--precision", "tf32", *BOTH), 0.1),
    Part("others", (*SPEED, "cifar_resnet20", "resnet18", "resnet152", "--batch", "32", *HALF, *BOTH), 0.1),
    Part("flags", (*SPEED, "resnet50", "--mode", "training", "--batch", "256", *HALF, *SWEEP), 0.1),
)


def device() -> str | None:
    """The GPU's name as part of a file's; None where there is none."""
    from benchmarks.machine import gpu

    found = gpu()
    return re.sub(r"[^a-z0-9]+", "-", found["name"].lower()).strip("-") if found else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    parser.add_argument("--minutes", type=float, default=8, help="after which nothing new is begun")
    arguments = parser.parse_args()
    card = device()
    if card is None:
        print(
            "benchmarks.gpu: got a machine without an NVIDIA GPU (nvidia-smi finds none), expected one", file=sys.stderr
        )
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    begin, whole, worst = time.monotonic(), arguments.minutes * 60, 0
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    for part in PARTS:
        left = whole - (time.monotonic() - begin)
        file = arguments.out / f"{card}-{part.name}-{day}.json"
        if left < 30:
            print(f"left out, for its time is over: {part.name}")
            continue
        option = ("--json", str(file)) if "parity" in part.arguments else ("--out", str(file))
        budget = ("--budget", f"{min(left, part.share * whole):.0f}") if part.share else ()
        print(f"{part.name}: {' '.join(part.arguments)}", flush=True)
        code = subprocess.run([sys.executable, *part.arguments, *option, *budget], cwd=ROOT, check=False).returncode
        worst = max(worst, code)
    print(f"{time.monotonic() - begin:.0f} s")
    return worst


if __name__ == "__main__":
    sys.exit(main())
