"""Carries out `mmg-bench check-method`: checks a method against what every method must do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmg_bench.cells import make_cell
from mmg_bench.contract import CHECKS, Build, ContractError
from mmg_bench.faults import told


def check_method(config: Mapping[str, Any]) -> int:
    """Print the outcome of every check of a method (its `name` and parameters). Returns how many it fails."""
    parameters = dict(config)
    name = parameters.pop("name")
    build = building(name, **parameters)
    build(0.25)  # faults in building the method show first
    broken = 0
    for check in CHECKS:
        what = check.__name__.replace("_", " ")
        try:
            check(build)
        except Exception as error:  # a method may raise anything
            broken += 1
            print(f"  FAILED  {what:20} {told(error, (ContractError,))}", flush=True)
        else:
            print(f"  ok      {what:20} {(check.__doc__ or '').splitlines()[0]}", flush=True)
    print(f"{name} fails {broken} of {len(CHECKS)} checks" if broken else f"{name} passes all {len(CHECKS)} checks")
    return broken


def building(name: str, **parameters: Any) -> Build:
    """A function that builds a method at any ratio, as a run does; `dense` has only one."""
    return lambda ratio: make_cell(name, ratio, **parameters).method
