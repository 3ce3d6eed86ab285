"""The profile of a table that is made here: the one asked for, or the first that this machine can run."""

from __future__ import annotations

from typing import Any

from mmg_bench import config as cfg
from mmg_bench.runner.requirements import Check, check_all


def choose(spec: dict[str, Any], wanted: str) -> tuple[str, dict[str, Any]]:
    """A profile of a table, by name; says which, why, and what the others lack."""
    profiles = named(spec, wanted)
    if wanted != "auto":
        print(f"Profile {wanted}: asked for.", flush=True)
        return wanted, profiles[wanted]
    for name, profile in profiles.items():
        missing = [check for check in checks(profile) if check.missing is not None]
        if not missing:
            print(f"Profile {name} ({what(profile)}) runs: everything it needs is at hand.\n", flush=True)
            return name, profile
        print(f"Profile {name} ({what(profile)}) is passed over. Missing here:", *missing, sep="\n  - ")
        print(f"  Then:  mmg-bench table table={spec['name']} profile={name}\n", flush=True)
    raise ValueError(f"no profile of table {spec['name']!r} can run here; what each lacks is listed above")


def named(spec: dict[str, Any], wanted: str) -> dict[str, dict[str, Any]]:
    """The profile of a table that is wanted, or for `auto` all of them in order, by name."""
    profiles: dict[str, dict[str, Any]] = spec["profiles"]
    if wanted not in ("auto", *profiles):
        raise ValueError(f"table {spec['name']!r} has no profile {wanted!r}; choose auto or {', '.join(profiles)}")
    return profiles if wanted == "auto" else {wanted: profiles[wanted]}


def what(profile: dict[str, Any]) -> str:
    """What a profile measures, in words."""
    if "workloads" in profile:
        return ", ".join(profile["workloads"])
    return f"{profile['model']} on {', '.join(profile['benchmarks'])}"


def checks(profile: dict[str, Any]) -> list[Check]:
    """What a profile needs, and whether it is there."""
    workloads: dict[str, dict[str, Any]] = profile.get("workloads") or {profile["model"]: {}}
    models = [{**cfg.load("model", name), **workload} for name, workload in workloads.items()]
    configs = [cfg.load("benchmark", name) for name in profile.get("benchmarks", ())]
    benchmarks = [(cfg.benchmark_spec(config), config) for config in configs]
    needs = {field for cell in cfg.table_cells(profile["methods"], [0.5]) for field in cell.method.needs}
    found = [check for model in models for check in check_all(model, benchmarks, profile["needs_gpu"], needs)]
    return list(dict.fromkeys(found))
