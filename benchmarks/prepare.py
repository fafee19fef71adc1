"""The process that makes what the subjects are fed with and must give (`gate.prepare`).

A line of JSON in is a case: a setting, and what its network has otherwise. Lines of JSON out say what somebody's own
pair has the check accept, and for every case that it is done, or the error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import gate, pair
from benchmarks.plan import case_of
from benchmarks.settings import OWN, Setting
from ports.errors import UserError


def main(folder: str) -> int:
    errors: dict[str, str] = {}  # by network: one that has no parity has none in any setting
    for line in sys.stdin:
        command = json.loads(line)
        setting, changes = Setting.of(command["setting"]), command["changes"]
        case = case_of(setting, changes)
        try:
            if setting.network not in errors:
                one(setting, changes, Path(folder))
        except UserError as error:
            errors[setting.network] = str(error)
        except MemoryError:
            say(case=case, error="out of memory for the reference in float64; take a smaller --batch")
            continue
        if setting.network in errors:
            say(case=case, error=errors[setting.network])
        else:
            say(done=case)
    return 0


def one(setting: Setting, changes: dict[str, Any], folder: Path) -> None:
    if OWN in setting.network:
        if accepted := pair.prepare(setting, folder):
            say(network=setting.network, accepted=accepted)
    else:
        gate.prepare(setting, changes, folder)
    if setting.device == "gpu":  # the subjects need the memory that PyTorch would keep
        import torch

        torch.cuda.empty_cache()


def say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
