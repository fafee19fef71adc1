"""The process that makes what a setting's subjects are fed with and must give (`gate.prepare`)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks import gate, pair
from benchmarks.settings import OWN, Setting
from ports.errors import UserError


def main(setting: str, changes: str, folder: str) -> int:
    chosen = Setting.of(json.loads(setting))
    try:
        if OWN in chosen.network:
            pair.prepare(chosen, Path(folder))
        else:
            gate.prepare(chosen, json.loads(changes), Path(folder))
    except UserError as error:
        print(error)
        return 2
    except MemoryError:
        print("out of memory for the reference in float64; take a smaller --batch")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
