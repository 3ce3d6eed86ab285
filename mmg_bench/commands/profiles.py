"""Chooses the profile of a table: the one asked for, or the first that this machine can run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mmg_bench import config as cfg
from mmg_bench import specs
from mmg_bench.cells import Cell
from mmg_bench.methods.registry import read_label
from mmg_bench.models.spec import ModelSpec
from mmg_bench.options import check_ratio, check_text
from mmg_bench.runner import provenance
from mmg_bench.runner.requirements import Check, check_all


class Run(NamedTuple):
    """A model that a profile runs, and the cells to compare on it."""

    key: str
    """Name of the model's file, as in the table and in options that change the model."""
    workload: dict[str, Any]
    """The model's entry in a table of speed; empty in a table of accuracy, which has one model."""
    model: dict[str, Any]
    """The model's configuration, with the changes made by its workload and the options."""
    cells: list[Cell]
    """Cells of the profile's methods, without the methods that the workload leaves out."""

    @property
    def spec(self) -> ModelSpec:
        return specs.table_model(self.key, self.model)


def choose(config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The profile that a composed table asks for, with its name. Prints which, why, and what the others lack."""
    profiles, spec, wanted = named(config), config["table"], config["profile"]
    if wanted != "auto":
        _check_device(wanted, profiles[wanted])
        print(f"Profile {wanted}, as requested.", flush=True)
        return wanted, profiles[wanted]
    for name, profile in profiles.items():
        missing = [check for check in checks(config, profile) if check.missing is not None]
        if not missing:
            print(f"Profile {name} ({what(profile)}) runs: everything it needs is here.\n", flush=True)
            return name, profile
        print(f"Profile {name} ({what(profile)}) is skipped. Missing here:", *missing, sep="\n  - ")
        again = [word for word in shlex.split(provenance.command()) if not word.startswith("profile=")]
        print(f"  Then:  {shlex.join([*again, f'profile={name}'])}\n", flush=True)
    raise ValueError(f"no profile of table {spec['name']!r} can run here; what each is missing is listed above")


def _check_device(name: str, profile: dict[str, Any]) -> None:
    """Raise ValueError if a GPU profile would run on the CPU, for hours, without having been told to."""
    if not profile["needs_gpu"]:
        return
    for run in profile["runs"]:
        spec = run.spec
        if spec.device == "auto" and spec.torch_device.type == "cpu":
            raise ValueError(
                f"profile={name} is for a GPU, but torch sees none here; choose another profile, or set "
                f"{spec.option('device')}=cpu to run it anyway"
            )


def named(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> profile, for the profile that a composed table asks for, or for `auto` all of them in order.

    Each has its list of `Run` under `runs`.
    """
    spec, wanted = config["table"], config["profile"]
    profiles = profiles_of(spec)
    cfg.check_changes(config, profiles.values())
    if wanted not in ("auto", *profiles):
        raise ValueError(f"table {spec['name']!r} has no profile {wanted!r}; choose auto or {', '.join(profiles)}")
    found = profiles if wanted == "auto" else {wanted: profiles[wanted]}
    return {name: {**profile, "runs": list(_runs(config, name, profile))} for name, profile in found.items()}


_MAY_HAVE = ("few_ratios", "against", "video", "text_tokens", "energy_seconds")
"""Optional entries of a table's file: `few_ratios` is for references to it, the last three for tables of speed."""


def profiles_of(spec: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The profiles of a table's file, by name, each in full form: lists as lists, methods as their options.

    Raises ValueError, naming the entry, for one that is missing, unknown or of the wrong kind.
    """
    wanted = cfg.MUST_HAVE["table"]
    _check_entries("table", spec, (*wanted, *_MAY_HAVE), wanted)
    _check_ratios("table.retention_ratios", spec["retention_ratios"])
    profiles = spec["profiles"]
    if not isinstance(profiles, dict) or not profiles or not all(isinstance(p, dict) for p in profiles.values()):
        raise ValueError(
            "table.profiles: give at least one by name, with its model, benchmarks and methods (for a table of speed, "
            "its workloads and methods)"
        )
    full = {name: _full(f"table.profiles.{name}", profile) for name, profile in profiles.items()}
    for name, profile in full.items():
        if (pending := profile.get("pending")) not in (None, *full):
            raise ValueError(f"table.profiles.{name}.pending={pending!r}: choose null or {', '.join(full)}")
    if len({"workloads" in profile for profile in full.values()}) > 1:
        raise ValueError("table.profiles: either all of them have workloads, for a table of speed, or none")
    if spec.get("against") is not None and any("workloads" in profile for profile in full.values()):
        raise ValueError(f"table.against={spec['against']!r}: a table of speed compares only with dense; leave it out")
    return full


def _full(where: str, profile: Mapping[str, Any]) -> dict[str, Any]:
    wanted = ("workloads", "methods") if "workloads" in profile else ("model", "benchmarks", "methods")
    _check_entries(where, profile, (*wanted, "needs_gpu", "pending"), wanted)
    full = {"needs_gpu": False, **profile}
    if not isinstance(full["needs_gpu"], bool):
        raise ValueError(f"{where}.needs_gpu={full['needs_gpu']!r}: it must be true or false")
    if "workloads" in full:
        _check_workloads(f"{where}.workloads", full["workloads"])
    else:
        check_text(f"{where}.model", full["model"])
        full["benchmarks"] = cfg.listed(f"{where}.benchmarks", full["benchmarks"])
        for benchmark in full["benchmarks"]:
            check_text(f"{where}.benchmarks", benchmark)
    methods = cfg.listed(f"{where}.methods", full["methods"])
    return {**full, "methods": [method_entry(f"{where}.methods", method) for method in methods]}


def _check_entries(where: str, given: Mapping[str, Any], known: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise ValueError for the first entry that is not `known`, and for the first of the `wanted` that is missing."""
    if unknown := [str(entry) for entry in given if entry not in known]:
        raise ValueError(f"{where}.{unknown[0]}: no such entry; the entries are {', '.join(known)}")
    if lost := [entry for entry in wanted if given.get(entry) is None]:
        raise ValueError(f"{where}.{lost[0]} is missing; the required entries are {', '.join(wanted)}")


def _check_workloads(where: str, workloads: Any) -> None:
    if not isinstance(workloads, dict) or not workloads:
        raise ValueError(f"{where}={workloads!r}: give each model by name, with its frames and batch_sizes")
    for model, workload in workloads.items():
        for entry in ("frames", "batch_sizes"):
            if not isinstance(workload, dict) or entry not in workload:
                raise ValueError(f"{where}.{model}.{entry} is missing: give each model its frames and batch_sizes")


def method_entry(where: str, given: Any) -> dict[str, Any]:
    """An entry of a list of methods: a name, or a name and options that differ from the method's configuration.

    Raises ValueError, naming `where`, for anything else.
    """
    entry = {"name": given} if isinstance(given, str) else given
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ValueError(f"{where}: {given!r} is not a method; write a name, or {{name: mmg_vid, tau: 0.9}}")
    name = entry["name"]
    if "(" in name:
        raise ValueError(f"{where}: {name!r} is a label as printed in a table; write {_as_entry(name)}")
    if "retention_ratio" in entry:
        raise ValueError(f"{where}: {name}: retention_ratio is not an entry; write retention_ratios: [0.25, 0.1]")
    if "retention_ratios" in entry:
        _check_ratios(f"{where}: {name}: retention_ratios", entry["retention_ratios"])
    return {str(option): value for option, value in entry.items()}


def _as_entry(label: str) -> str:
    """What to write in a table's file for a label that the table prints."""
    name, parameters = read_label(label)
    texts = {o: "null" if v == "None" else f"'{v}'" if "(" in v else v for o, v in parameters.items()}
    changed = [f"{option}: {text}" for option, text in texts.items()]
    return f"{{{', '.join([f'name: {name}', *changed])}}}" if changed else name


def _check_ratios(where: str, given: Any) -> None:
    """Raise ValueError, naming the entry, unless it is one or several retention ratios."""
    for ratio in cfg.listed(where, given):
        check_ratio(where, ratio, ", or a list of them")


def what(profile: dict[str, Any]) -> str:
    """What a profile measures, in words."""
    if "workloads" in profile:
        return ", ".join(profile["workloads"])
    return f"{profile['model']} on {', '.join(profile['benchmarks'])}"


def _runs(config: dict[str, Any], name: str, profile: dict[str, Any]) -> Iterator[Run]:
    """What a profile of a composed table runs."""
    where, ratios = f"table.profiles.{name}.methods", config["table"]["retention_ratios"]
    found: dict[str, dict[str, Any]] = profile.get("workloads") or {profile["model"]: {}}
    for key, workload in found.items():
        changes = {k: v for k, v in workload.items() if k not in ("frames", "batch_sizes", "without")}
        methods = [method for method in profile["methods"] if method["name"] not in workload.get("without", ())]
        model = {**cfg.changed(config, "model", key), **changes}
        yield Run(key, workload, model, specs.table_cells(methods, ratios, where))


def checks(config: dict[str, Any], profile: dict[str, Any]) -> list[Check]:
    """What a profile of a composed table needs, and whether it is there."""
    found: list[Check] = []
    benchmarks = [cfg.changed(config, "benchmark", name) for name in profile.get("benchmarks", ())]
    described = [(specs.benchmark_spec(benchmark), benchmark) for benchmark in benchmarks]
    for run in profile["runs"]:
        methods = {cell.label: cell.method for cell in run.cells}
        found += check_all(run.model, run.spec, described, profile["needs_gpu"], methods)
    return list(dict.fromkeys(found))
