"""The process that makes what the subjects are fed with and must give (`gate.prepare`).

It is given a JSON list of settings, each with what its network has otherwise, and a folder. A line of JSON out is the
setting that is begun, what somebody's own pair has the check accept, or the error that ended it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import gate, pair
from benchmarks.settings import OWN, Setting
from ports.errors import UserError


def main(wanted: str, folder: str) -> int:
    for setting, changes in json.loads(wanted):
        chosen = Setting.of(setting)
        say(at=str(chosen))
        try:
            if OWN in chosen.network:
                if accepted := pair.prepare(chosen, Path(folder)):
                    say(network=chosen.network, accepted=accepted)
            else:
                gate.prepare(chosen, changes, Path(folder))
        except UserError as error:
            say(error=str(error))
            return 2
        except MemoryError:
            say(error="out of memory for the reference in float64; take a smaller --batch")
            return 2
    return 0


def say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
