"""Kill a process that writes at random moments, in every format and way: `python tests/killed.py --times 50`.

After each kill the outputs are whole, an old one is not lost, and the next run leaves nothing hidden.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from test_bad_files import WAYS, killed

from ports.weights.formats import FORMATS


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", nargs="*", default=list(FORMATS))
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    for name, way in itertools.product(arguments.formats, WAYS):
        for i in range(arguments.times):
            with tempfile.TemporaryDirectory() as folder:
                killed(Path(folder) / str(i), FORMATS[name], rng.uniform(0, 0.3), way)
        print(f"{name}, {way}: killed {arguments.times} times, no partial and no lost output, nothing hidden left")


if __name__ == "__main__":
    main()
