"""The process that makes the inputs of the subjects and their expected results (`expected.prepare`).

Each input line is a case in JSON: a setting, and the changes of its network. Output lines in JSON say which differences
the check accepts for somebody's own pair, and for every case that it is done, or the error.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

from benchmarks.measure import expected
from benchmarks.measure.plan import case_of
from benchmarks.subjects.settings import OWN, Setting
from ports.errors import UserError


def main(folder: str) -> int:
    errors: dict[str, str] = {}  # by network: a pair without parity has none in any setting
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
        except Exception as error:  # a framework may raise anything, and the next case may work
            traceback.print_exc()
            say(case=case, error=f"the reference: {type(error).__name__}: {str(error).partition(chr(10))[0][:300]}")
            continue
        finally:
            rest(setting.device)
        if setting.network in errors:
            say(case=case, error=errors[setting.network])
        else:
            say(done=case)
    return 0


def one(setting: Setting, changes: dict[str, Any], folder: Path) -> None:
    if OWN in setting.network:
        from benchmarks.measure import own_expected  # it loads JAX, which the networks of this package do not need here

        if accepted := own_expected.prepare(setting, folder):
            say(network=setting.network, accepted=accepted)
    else:
        expected.prepare(setting, changes, folder)


def rest(device: str) -> None:
    """Give back the GPU memory that PyTorch would keep: the subjects need it."""
    if device == "gpu":
        import torch

        torch.cuda.empty_cache()


def say(**line: object) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
