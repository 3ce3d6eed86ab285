"""Carries out `mmg-bench measure`, and `mmg-bench table` for tables of speed, with their composed configuration."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from mmg_bench import config as cfg
from mmg_bench import specs
from mmg_bench.benchmarks.reserved import ALL, NO_BENCHMARK
from mmg_bench.benchmarks.video import VideoError, pictures, read_clip
from mmg_bench.cells import Cell, codes_of, described_plug_ins, needs_of
from mmg_bench.commands.profiles import choose, named
from mmg_bench.commands.publish import publish, results_folder
from mmg_bench.files import digest_of
from mmg_bench.measure.clock import Clock
from mmg_bench.measure.efficiency import CellResult, Value, measure_efficiency
from mmg_bench.measure.failures import Failure, free, listed, within_memory
from mmg_bench.measure.latency import LatencySettings, check_engine
from mmg_bench.measure.roofline import measure_ceilings
from mmg_bench.measure.workload import PIXELS, Workload, random_prompt, video_file
from mmg_bench.models.checking import ModelError, check_method, check_model
from mmg_bench.models.geometry import is_named
from mmg_bench.models.loading import VideoLLM, settings_of
from mmg_bench.models.spec import ModelSpec
from mmg_bench.options import check_folder, check_number, check_path, check_text, check_whole
from mmg_bench.report.efficiency import cell_key, efficiency_layout
from mmg_bench.report.rows import Measurement, pending_rows, result_rows
from mmg_bench.runner import provenance
from mmg_bench.runner.claims import Claim, claimed
from mmg_bench.runner.lines import LineFile, read_lines

DONE = "measurements.jsonl"
"""Measurements so far, one line per unit: an interrupted command continues after the last complete line."""
LINE = frozenset({"key", "model", "entry", "whole", "measurements"})
"""Fields of a line in DONE."""
_MEASURED = {f.name for f in fields(Measurement)}
_OWN = {"weights": "weights", "frames": "frames"}
"""Options of the model that `mmg-bench measure` takes as its own."""


@dataclass(frozen=True)
class Unit:
    """Cells measured together, each interleaved with dense: one model, frame count and batch size."""

    model: ModelSpec
    batch: int
    cells: tuple[Cell, ...]

    def __post_init__(self) -> None:
        check_whole("batch_size", self.batch, 1)

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"{self.model.name}: {self.model.frames} frames, batch {self.batch}"


@dataclass(frozen=True)
class Job:
    """Units under the same conditions."""

    table: str
    units: list[Unit]
    pending: list[Unit]
    """Units that the table lists as not yet measured."""
    video: str
    text_tokens: int
    settings: LatencySettings
    energy_seconds: float
    folder: Path
    """Folder in which measurements are collected."""
    results: Path
    """Folder for the rows, the table and their provenance once everything is measured; until then, `folder`."""
    option: str
    """The option that lists the methods, for messages that say where to leave one out."""


def measure(configs: Sequence[DictConfig]) -> int:
    """Measure what measure.yaml composes, everything of one model together."""
    plain = [cfg.plain(c) for c in configs]
    of_unit = ("model", "weights", "frames", "batch_size")
    cfg.check_alike(
        plain,
        (*of_unit, "method", "retention_ratio", "positions", "output_dir"),
        "measurements that differ in {} do not fit in one table; run them one by one, each with its own `output_dir`",
    )
    told = ("model.name", "model.frames", "frames", "batch_size")
    cfg.check_told_apart(
        [{k: c[k] for k in of_unit} for c in plain], told, "run them one by one, each with its own `output_dir`"
    )
    groups: dict[tuple[ModelSpec, int], list[dict[str, Any]]] = {}
    for c in plain:
        groups.setdefault((_spec(c["model"], c["weights"], c["frames"]), c["batch_size"]), []).append(c)
    cells = {key: tuple(specs.cells(members)) for key, members in groups.items()}
    folders = [check_folder("output_dir", c["output_dir"]) for c in plain]
    if len({folder.is_absolute() for folder in folders}) > 1:
        folders = [folder.absolute() for folder in folders]
    # for several models, the parent of their folders, by default outputs/measure
    folder = Path(os.path.commonpath(folders))
    return _do(
        Job(
            table="measure",
            units=[Unit(spec, batch, found) for (spec, batch), found in cells.items()],
            pending=[],
            video=plain[0]["video"],
            text_tokens=plain[0]["text_tokens"],
            settings=specs.latency_settings(plain[0]),
            energy_seconds=plain[0]["energy_seconds"],
            folder=folder,
            results=folder,
            option="method",
        )
    )


def table(config: DictConfig) -> int:
    """Make a table of speed composed from table.yaml."""
    plain = cfg.plain(config)
    spec = plain["table"]
    name, profile = choose(plain)
    pending = profile.get("pending")
    if plain["limit"] is not None:
        raise ValueError(f"limit={plain['limit']!r}: a table of speed answers no questions; leave it null")
    if plain["latency"] is not True:
        raise ValueError(f"latency={plain['latency']!r}: a table of speed always measures it; leave it true")
    return _do(
        Job(
            table=spec["name"],
            units=units(profile),
            pending=[] if pending is None else units(named({**plain, "profile": pending})[pending]),
            video=spec["video"],
            text_tokens=spec["text_tokens"],
            settings=specs.latency_settings(plain),
            energy_seconds=spec["energy_seconds"],
            folder=check_folder("output_dir", plain["output_dir"]) / name,
            results=results_folder(plain, name),
            option=f"table.profiles.{name}.methods",
        )
    )


def units(profile: dict[str, Any]) -> list[Unit]:
    """The units that a profile of a composed table of speed measures."""
    return [
        Unit(specs.table_model(run.key, {**run.model, "frames": frames}), batch, tuple(run.cells))
        for run in profile["runs"]
        for frames in cfg.listed(f"{run.key}.frames", run.workload["frames"])
        for batch in cfg.listed(f"{run.key}.batch_sizes", run.workload["batch_sizes"])
    ]


def _spec(model: dict[str, Any], weights: str, frames: int | None) -> ModelSpec:
    changed = {"weights": weights} if frames is None else {"weights": weights, "frames": frames}
    return specs.model_spec({**model, **changed}, _OWN)


def _do(job: Job) -> int:
    """Measure what is not measured yet, and report everything. Returns how many models and cells failed.

    If a model fails, the others are still measured; if it is the only one, its error is raised. If a cell fails, its
    unit's other cells are kept, and also its own times if it failed after the rounds. Raises ClaimedError if another
    command measures the same.
    """
    check_whole("text_tokens", job.text_tokens, 1)
    check_number("energy_seconds", job.energy_seconds)
    check_text("video", job.video)
    for unit in job.units:
        check_engine(job.settings, unit.model)
    plans = {provenance.key_of(entry): (unit, entry) for unit in job.units for entry in [_entry(job, unit)]}
    path = job.folder / DONE
    done = _done(path)
    # incomplete units are reported, and measured again
    todo = [(key, unit, entry) for key, (unit, entry) in plans.items() if not done.get(key, {}).get("whole")]
    groups = [list(group) for _, group in groupby(todo, key=lambda item: replace(item[1].model, frames=1))]
    for group in groups:
        _check(group[0][1].model, [cell for _, unit, _ in group for cell in unit.cells])
    _check_video(job.video, {unit.model.frames for _, unit, _ in todo})
    failed = 0
    claims = [Claim(job.folder, {key: unit.name for key, unit, _ in todo})] if todo else []
    with claimed(claims):
        for group in groups:
            try:
                for line in _measure_model(job, group):
                    with LineFile(path) as file:
                        file.append([line])
                    done[line["key"]] = line
                    part = _rows(job, [done[key] for key in plans if key in done])
                    publish(*part, job.folder, efficiency_layout, shown=False)
            except (ValueError, RuntimeError, OSError) as error:
                if len(plans) == len(group):
                    raise
                failed += 1
                print(f"{group[0][1].model.name} could not be measured: {error}", flush=True)
    faults = [
        (f"{cell} ({unit.name})", why)
        for key, (unit, _) in plans.items()
        if key in done
        for cell, why in done[key]["entry"].get("failed", {}).items()
    ]
    failed += len(faults)
    whole = _rows(job, [done[key] for key in plans if key in done])
    publish(*whole, job.folder if failed else job.results, efficiency_layout)
    if faults:
        print(
            f"{listed(faults)}\n{len(faults)} cells were not measured, or only partly; rerun the command to retry them."
        )
    return failed


def _check(spec: ModelSpec, cells: Sequence[Cell]) -> None:
    """Like `check_model`; if only the weights are missing, the error adds that speed does not depend on them."""
    methods = {cell.label: cell.method for cell in cells}
    try:
        check_model(spec, methods)
    except ModelError as error:
        if spec.weights == "random" or spec.device_map or not is_named(bare := replace(spec, weights="random")):
            raise
        check_model(bare, methods)  # SigLIP's checkpoint is needed all the same
        raise ModelError(
            f"{error}; or set {spec.option('weights')}=random: speed does not depend on the weights"
        ) from error


def _done(path: Path) -> dict[str, dict[str, Any]]:
    """Key -> line of each unit measured so far. Raises ValueError, naming the line, for one that is not valid."""
    found = {}
    for number, line in read_lines(path, LINE):
        entry, parts = line["entry"], line["measurements"]
        whole = isinstance(entry, dict) and isinstance(parts, list)
        if not whole or not all(isinstance(part, dict) and part.keys() == _MEASURED for part in parts):
            raise ValueError(f"{path}:{number}: not a measurement: delete the line and run again")
        found[line["key"]] = line
    return found


def _entry(job: Job, unit: Unit) -> dict[str, Any]:
    """What determines a unit's numbers, and the machine: known before the model is loaded."""
    settings = {
        "model": unit.model.described(),
        "settings": settings_of(unit.model),
        "batch_size": unit.batch,
        "video": _video(job.video),
        "text_tokens": job.text_tokens,
        "latency": asdict(job.settings),
        "energy_seconds": job.energy_seconds,
        "cells": [cell_key(cell.label, cell.method.retention_ratio) for cell in unit.cells],
        "code": codes_of(unit.cells),
        **described_plug_ins(unit.cells),
    }
    return provenance.describe(settings, unit.model.torch_device)


def _video(given: str) -> str:
    """Describe a video before it is decoded, without this machine's paths."""
    if given == "random":
        return f"random pixels {PIXELS[1]}x{PIXELS[0]}"
    if given == "generated":
        return given
    path = check_path("video", given)
    if not path.exists():
        raise ValueError(f"video={given!r}: no such video; name a file, a folder of pictures, generated or random")
    return f"{path.name}@{digest_of(pictures(path) if path.is_dir() else [path])}"


def _check_video(given: str, frames: Collection[int]) -> None:
    """Raise VideoError, naming the option, unless a video can be decoded: before minutes are spent on loading a model.

    frames: the numbers of frames to sample; each is tried. Prints a line if the video has fewer.
    """
    if given == "random":
        return
    path = video_file(given)
    for count in sorted(frames):
        try:
            whole = read_clip(path, count).timing.total
        except VideoError as error:
            raise VideoError(f"video={given!r}: {str(error).removeprefix(f'{path}: ')}") from error
        if whole < count:
            print(f"video={given!r} has {whole} frames: some of the {count} sampled frames are repeats", flush=True)


def _measure_model(job: Job, todo: list[tuple[str, Unit, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """The lines of several units of one model, which is loaded once."""
    spec = todo[0][1].model
    print(f"{spec.name}: loading ({spec.weights} weights)", flush=True)
    clock = Clock(spec.torch_device)
    clock.stage_now = "loading the weights"
    llm = within_memory(clock, VideoLLM, spec)
    if isinstance(llm, Failure):
        for key, unit, entry in todo:
            failed = [CellResult({}, math.nan, llm) for _ in unit.cells]
            yield _line(key, unit, {**entry, "weights": spec.weights}, failed)
        return
    cells = [cell for _, unit, _ in todo for cell in unit.cells]
    needs = needs_of(cells)
    llm.prepare(needs)
    for cell in cells:
        check_method(llm.adapter, cell.method, cell.label)
    ceilings = measure_ceilings(llm.device, llm.model.dtype)
    known = {
        "weights": llm.weights_for(needs),
        "attention": llm.model.config._attn_implementation,
        "ceilings": asdict(ceilings),
    }
    prompt = random_prompt(llm.processor.tokenizer, job.text_tokens)
    video = None if job.video == "random" else video_file(job.video)
    for key, unit, entry in todo:
        print(f"{unit.name}, {len(unit.cells)} cells", flush=True)
        workload = Workload(video, prompt, unit.model.frames, unit.batch)
        results = measure_efficiency(llm, unit.cells, workload, job.settings, ceilings, job.energy_seconds, job.option)
        yield _line(key, unit, {**entry, **known}, results)
    del llm
    free()


def _line(key: str, unit: Unit, entry: dict[str, Any], results: list[CellResult]) -> dict[str, Any]:
    """A unit's measurements with their provenance, as stored on disk."""
    failures = {
        cell_key(cell.label, cell.method.retention_ratio): result.failure
        for cell, result in zip(unit.cells, results, strict=True)
        if result.failure is not None
    }
    failed = {cell: failure.why for cell, failure in failures.items() if not failure.memory}
    out_of_memory = {cell: failure.why for cell, failure in failures.items() if failure.memory}
    measurements = [
        Measurement(
            model=unit.model.name,
            benchmark=NO_BENCHMARK,
            frames=unit.model.frames,
            method=cell.label,
            retention_ratio=cell.method.retention_ratio,
            metric=metric,
            value=value.value,
            ci_low=value.low,
            ci_high=value.high,
            n=value.n,
            provenance=key,
            skill=ALL if unit.batch == 1 else f"batch={unit.batch}",
            realised_tokens=result.realised_tokens,
            n_errors=int(math.isnan(value.value)),
        )
        for cell, result in zip(unit.cells, results, strict=True)
        for metric, value in (result.values or {"prefill_ms": Value(math.nan, n=0)}).items()
    ]
    return {
        "key": key,
        "model": unit.model.name,
        "entry": {**entry, "out_of_memory": out_of_memory, "failed": failed},
        "whole": not failed,
        "measurements": [asdict(m) for m in measurements],
    }


def _rows(job: Job, lines: list[dict[str, Any]]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """All rows, including pending ones, and their provenance."""
    measurements = [Measurement(**m) for line in lines for m in line["measurements"]]
    rows = result_rows(
        [],
        table=job.table,
        weights={line["model"]: line["entry"]["weights"] for line in lines},
        methods=list(dict.fromkeys(m.method for m in measurements)),
        measurements=measurements,
    )
    pending = [
        pending_rows(
            table=job.table,
            model=unit.model.name,
            weights=unit.model.weights,
            frames=unit.model.frames,
            benchmarks=[NO_BENCHMARK],
            cells=[(cell.label, cell.method.retention_ratio) for cell in unit.cells],
            metric="prefill_ms",
        )
        for unit in job.pending
    ]
    return pd.concat([rows, *pending], ignore_index=True), {line["key"]: line["entry"] for line in lines}
