"""What `mmg-bench check-method` does: holds a method to what every method must do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmg_bench.cells import make_cell
from mmg_bench.contract import CHECKS, Build, ContractError
from mmg_bench.faults import told


def check_method(config: Mapping[str, Any]) -> int:
    """Print the outcome of every check of a method (`name`, and its parameters). Returns how many it does not pass."""
    parameters = dict(config)
    name = parameters.pop("name")
    build = building(name, **parameters)
    build(0.25)  # its own faults first
    broken = 0
    for check in CHECKS:
        what = check.__name__.replace("_", " ")
        try:
            check(build)
        except Exception as error:  # the method's, whatever it is
            broken += 1
            print(f"  FAILED  {what:20} {told(error, (ContractError,))}", flush=True)
        else:
            print(f"  ok      {what:20} {(check.__doc__ or '').splitlines()[0]}", flush=True)
    print(f"{name} does not pass {broken} of {len(CHECKS)} checks" if broken else f"{name} passes all {len(CHECKS)}")
    return broken


def building(name: str, **parameters: Any) -> Build:
    """A way to build a method at any ratio, as a run does; at its only one, of `dense`."""
    return lambda ratio: make_cell(name, ratio, **parameters).method
