"""Carries out `mmg-bench run`, and `mmg-bench table` for tables of accuracy, with their composed configuration."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from transformers.utils import logging

from mmg_bench import config as cfg
from mmg_bench import specs
from mmg_bench.benchmarks.lmms import Benchmark, Question
from mmg_bench.cells import Cell, described_plug_ins, needs_of
from mmg_bench.commands.profiles import choose
from mmg_bench.commands.publish import publish, results_folder
from mmg_bench.measure.flops import TextGeometry
from mmg_bench.measure.latency import LatencySettings, check_engine, measure_cells, time_values
from mmg_bench.measure.workload import Workload
from mmg_bench.methods.registry import at_ratio
from mmg_bench.models.checking import check_method, check_model
from mmg_bench.models.loading import VideoLLM
from mmg_bench.models.spec import ModelSpec
from mmg_bench.options import check_folder, check_text
from mmg_bench.report.accuracy import layout
from mmg_bench.report.labels import label_among, label_meant
from mmg_bench.report.rows import DENSE, Measurement, result_rows
from mmg_bench.report.table import over_skills
from mmg_bench.runner import provenance
from mmg_bench.runner.claims import Claim, claimed
from mmg_bench.runner.evaluate import Shard, collect, evaluate, key_of
from mmg_bench.runner.records import Record
from mmg_bench.runner.workers import in_processes, workers_for

_SHOWN = 10
"""Number of faults to print; the records hold all."""
_PLACE = ("device", "device_map")
"""Options of a model that say where it runs: answers are the same elsewhere."""
_TOLD = ("output_dir", "model.name", "model.frames", "benchmark.name")
"""Options, besides the cells, that tell the rows of several jobs in one folder apart."""


@dataclass(frozen=True)
class Job:
    """One model, some benchmarks and the cells to compare on them."""

    table: str
    model: ModelSpec
    benchmarks: list[dict[str, Any]]
    cells: list[Cell]
    """The first is dense."""
    folders: list[Path]
    """Folder for the records of each benchmark."""
    results: Path
    """Folder for the rows, the table and their provenance."""
    limit: int | None
    latency: LatencySettings | None
    shard: Shard
    workers: int
    """Number of processes that share the videos on this machine."""
    option: str = "method"
    """The option that lists the methods, for messages that say where to leave one out."""
    against: tuple[str, ...] = ()
    """Labels of methods, in addition to dense, with which the others are compared."""

    @property
    def reports(self) -> bool:
        """Whether the job makes rows and a table; a shard of the videos leaves that to a later command."""
        return self.shard.count == 1


@dataclass(frozen=True)
class Outcome:
    """The results of a job, without its model."""

    job: Job
    weights: str
    geometry: TextGeometry
    questions: dict[str, int]
    """Benchmark -> its number of questions, before `limit`."""
    records: list[Record]
    measurements: list[Measurement]
    sources: dict[str, Any]
    """Provenance of records and measurements."""
    whole: bool
    """Whether it is everything that was asked for."""
    untimed: tuple[str, ...] = ()
    """Cells whose timing failed for other reasons than running out of memory."""

    @property
    def failed(self) -> int:
        """Number of answers and timings that failed."""
        return sum(r.error is not None for r in self.records) + len(self.untimed)


def run(configs: Sequence[DictConfig]) -> int:
    """Run the jobs composed from run.yaml; configurations that differ only in their cell become one job.

    Returns how many answers and timings failed.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for config in map(cfg.plain, configs):
        config["output_dir"] = str(check_folder("output_dir", config["output_dir"]))
        apart = {k: v for k, v in config.items() if k not in ("method", "retention_ratio", "positions")}
        groups.setdefault(json.dumps(apart, sort_keys=True), []).append(config)
    jobs = [_job(members) for members in groups.values()]  # all are checked before the first model is loaded
    reported = [members[0] for members, job in zip(groups.values(), jobs, strict=True) if job.reports]
    cfg.check_told_apart(reported, _TOLD, "add {} to output_dir, in single quotes")
    return _do(jobs)


def _job(configs: Sequence[dict[str, Any]]) -> Job:
    """The job of configurations that differ only in their cell."""
    first = configs[0]
    cells = specs.cells(configs)
    folder, model = Path(first["output_dir"]), specs.model_spec(first["model"])
    return Job(
        table="run",
        model=model,
        benchmarks=[first["benchmark"]],
        cells=cells,
        folders=[folder],
        results=folder,
        limit=first["limit"],
        latency=timing(first),
        shard=_shard(first["shard"]),
        workers=workers_for(first["workers"], model.torch_device.type),
    )


def table(config: DictConfig) -> int:
    """Make a whole table composed from table.yaml. Returns how many answers and timings failed."""
    plain = cfg.plain(config)
    spec = plain["table"]
    name, profile = choose(plain)
    records = check_folder("output_dir", plain["output_dir"]) / name
    benchmarks = [cfg.changed(plain, "benchmark", b) for b in profile["benchmarks"]]
    (found,) = profile["runs"]
    model, cells = found.spec, found.cells
    job = Job(
        table=spec["name"],
        model=model,
        benchmarks=benchmarks,
        cells=cells,
        folders=[records / b["name"] for b in benchmarks],
        results=results_folder(plain, name),
        limit=plain["limit"],
        latency=timing(plain),
        shard=Shard(),
        workers=workers_for(plain["workers"], model.torch_device.type),
        option=f"table.profiles.{name}.methods",
        against=_against(spec.get("against"), cells),
    )
    return _do([job])


def _against(given: Any, cells: Sequence[Cell]) -> tuple[str, ...]:
    """The labels that a table's `against` names. Raises ValueError, listing the rows, if one of them is not there."""
    known = [label for label in dict.fromkeys(cell.label for cell in cells) if label != DENSE]
    found = []
    for name in [] if given is None else cfg.listed("table.against", given):
        check_text("table.against", name)
        label = label_among(name, known)
        if label is None:
            raise ValueError(
                f"table.against={name!r}: no such row; {label_meant(name, known)}there are {', '.join(known)}"
            )
        found.append(label)
    return tuple(dict.fromkeys(found))


def timing(config: dict[str, Any]) -> LatencySettings | None:
    """A configuration's settings for latency; None if it measures none. The settings are checked even then."""
    settings, given = specs.latency_settings(config), config["latency"]
    if not isinstance(given, bool):
        raise ValueError(f"latency={given!r}: choose true or false")
    return settings if given else None


def _shard(given: Any) -> Shard:
    if not isinstance(given, dict):
        raise ValueError(f"shard={given!r}: give shard.index and shard.count")
    return Shard(**cfg.known(Shard, given, "shard"))


def _do(jobs: Sequence[Job]) -> int:
    """Answer, measure, report; jobs in one folder share its rows. Returns how many answers and timings failed.

    Rows are written as soon as there are any, so that a later fault or a stop loses nothing. They are shown once.
    Raises ClaimedError, before anything is done, if another command is answering the same questions.
    """
    for job in jobs:
        _check(job)
    done: dict[Path, list[Outcome]] = {}
    failed = 0
    with claimed(claim for job in jobs for claim in _claims(job)):
        for number, job in enumerate(jobs, start=1):
            before = done.setdefault(job.results, [])
            more = any(other.reports and other.results == job.results for other in jobs[number:])
            for outcome in _carry_out(job):
                # an earlier table, which may have times, stays until the new one has them too
                if job.reports and (outcome.whole or before or not (job.results / "rows.csv").exists()):
                    _report([*before, outcome], shown=outcome.whole and not more)
            before += [outcome] if job.reports else []
            failed += outcome.failed
    for folder in dict.fromkeys(os.path.commonpath(job.folders) for job in jobs if job.reports):
        print(f"To see every question: mmg-bench browse {shlex.quote(f'output_dir={folder}')}")
    return failed


def _claims(job: Job) -> Iterator[Claim]:
    """Claims on a job's cells, one per benchmark. Dense, which every command has, is claimed only if it is alone."""
    cells = [cell for cell in job.cells if cell.method.name != DENSE] or job.cells
    model = {k: v for k, v in job.model.described().items() if k not in _PLACE}
    for benchmark, folder in zip(job.benchmarks, job.folders, strict=True):
        yield Claim(folder, {c.key(model=model, benchmark=benchmark["name"]): str(c) for c in cells}, job.shard)


def _check(job: Job) -> None:
    """Raise ValueError or ModelError for faults that would end a job and can be found before a model is loaded."""
    for benchmark in job.benchmarks:
        specs.benchmark_spec(benchmark)
    if job.latency is not None:
        check_engine(job.latency, job.model)
    check_model(job.model, {cell.label: cell.method for cell in job.cells})


def _carry_out(job: Job) -> Iterator[Outcome]:
    """Answer, then measure latency if asked to; yields the job's results after each of the two."""
    # all benchmarks now: missing data must fail before the model is loaded and hours are spent on the first one
    benchmarks = [Benchmark(specs.benchmark_spec(b), job.limit) for b in job.benchmarks]
    for benchmark in benchmarks:
        _ = benchmark.questions
    llm = VideoLLM(job.model)
    llm.prepare(needs_of(job.cells))
    for cell in job.cells:
        check_method(llm.adapter, cell.method, cell.label)
    records, sources = _answer(job, llm, benchmarks)
    _tell_failures(records)
    if not job.reports:
        shard = f"shard.index={job.shard.index} of shard.count={job.shard.count}"
        print(f"{shard} is done; run once without shards to make the table")
    latency = job.latency if job.reports else None
    outcome = Outcome(
        job=job,
        weights=llm.weights,
        geometry=TextGeometry.from_config(llm.model.config.get_text_config()),
        questions={b.spec.name: b.whole for b in benchmarks if b.whole is not None},
        records=records,
        measurements=[],
        sources=sources,
        whole=latency is None,
    )
    yield outcome
    if latency is not None:
        times, timed, untimed = _time(job, llm, benchmarks[0], records, latency)
        yield replace(outcome, measurements=times, sources=sources | timed, whole=True, untimed=untimed)


def _answer(job: Job, llm: VideoLLM, benchmarks: Sequence[Benchmark]) -> tuple[list[Record], dict[str, Any]]:
    """Every cell's answers to every question, and their provenance."""
    records: list[Record] = []
    sources: dict[str, Any] = {}
    for benchmark, config, folder in zip(benchmarks, job.benchmarks, job.folders, strict=True):
        entry = provenance.describe(_settings(job, llm, benchmark, config), llm.device)
        key = provenance.register(folder, entry, (key_of(cell, llm, benchmark) for cell in job.cells))
        kept = collect(llm, benchmark, job.cells, folder)
        provenance.check_explains(folder, {r.provenance for r in kept})  # before answering, not after
        print(
            f"{benchmark.spec.name}: {len(benchmark.questions)} questions, {len(job.cells)} cells -> {folder}",
            flush=True,
        )
        if job.workers > 1 and job.shard.count == 1:
            in_processes(job.workers, _answer_share, job.model, config, job.limit, job.cells, folder, key)
            records += collect(llm, benchmark, job.cells, folder)
        else:
            records += evaluate(llm, benchmark, job.cells, folder, key, job.shard)
        sources |= provenance.read(folder)
    return records, sources


def _time(
    job: Job, llm: VideoLLM, benchmark: Benchmark, records: Sequence[Record], settings: LatencySettings
) -> tuple[list[Measurement], dict[str, Any], tuple[str, ...]]:
    """Times and speed-ups of all cells on the first question that all could answer; provenance; cells that failed."""
    question = _question_to_time(benchmark, records)
    if question is None:
        print("nothing was timed, because no question has an answer in every cell")
        return [], {}, ()
    how = {"latency": asdict(settings), "timed": question.id}
    entry = provenance.describe({**_settings(job, llm, benchmark, job.benchmarks[0]), **how}, llm.device)
    key = provenance.register(job.folders[0], entry)
    workload = Workload(benchmark.video_path(question), question.prompt, llm.spec.frames)
    times = measure_cells(llm, job.cells, workload, settings, job.option)
    untimed = []
    for cell, measured in zip(job.cells, times, strict=True):
        if measured.failure is not None:
            print(f"{cell} was not timed: {measured.failure.why}")
            untimed += [] if measured.failure.memory else [str(cell)]
    measurements = [
        Measurement(
            model=llm.spec.name,
            benchmark=benchmark.spec.name,
            frames=llm.spec.frames,
            method=cell.label,
            retention_ratio=cell.method.retention_ratio,
            metric=metric,
            value=value,
            ci_low=low,
            ci_high=high,
            n=settings.repeats,
            provenance=key,
        )
        for cell, measured in zip(job.cells, times, strict=True)
        for metric, (value, low, high) in time_values(times[0], measured).items()
    ]
    return measurements, provenance.read(job.folders[0]), tuple(untimed)


def _tell_failures(records: Sequence[Record]) -> None:
    """Print each fault once, the most common first, with the questions and cells that it affected."""
    failed = [r for r in records if r.error is not None]
    by_fault: dict[tuple[str, str | None], list[Record]] = {}
    for r in failed:
        by_fault.setdefault((r.benchmark, r.error), []).append(r)
    for (benchmark, error), alike in sorted(by_fault.items(), key=lambda item: -len(item[1]))[:_SHOWN]:
        cells = [at_ratio(r.method, r.retention_ratio) for r in alike]
        print(f"failed: {_first_of([r.question for r in alike])} of {benchmark}, {_first_of(cells)}: {error}")
    if failed:
        rest = f" for {len(by_fault)} reasons" if len(by_fault) > _SHOWN else ""
        print(f"{len(failed)} answers failed{rest} (they are not scored as wrong); rerun the command to retry them.")


def _first_of(names: Sequence[str]) -> str:
    """The first of several names, and the number of others."""
    others = len(set(names)) - 1
    return f"{names[0]} and {others} more" if others else names[0]


def _report(outcomes: Sequence[Outcome], *, shown: bool) -> None:
    """Write the rows of jobs that share a folder, and show their tables."""
    jobs = [outcome.job for outcome in outcomes]
    sources: dict[str, Any] = {}
    whole: dict[str, int] = {}
    for outcome in outcomes:
        sources |= outcome.sources
        whole |= outcome.questions
    rows = result_rows(
        [record for outcome in outcomes for record in outcome.records],
        table=jobs[0].table,
        weights={outcome.job.model.name: outcome.weights for outcome in outcomes},
        methods=list(dict.fromkeys(cell.label for job in jobs for cell in job.cells)),
        benchmarks=list(dict.fromkeys(benchmark["name"] for job in jobs for benchmark in job.benchmarks)),
        over_skills=over_skills(sources),
        against=jobs[0].against,
        measurements=[measurement for outcome in outcomes for measurement in outcome.measurements],
        geometries={outcome.job.model.name: outcome.geometry for outcome in outcomes},
    )
    publish(rows, sources, jobs[0].results, partial(layout, whole=whole), shown=shown)


def _answer_share(
    index: int,
    count: int,
    model: ModelSpec,
    benchmark: dict[str, Any],
    limit: int | None,
    cells: list[Cell],
    folder: Path,
    key: str,
) -> None:
    """The work of one of several worker processes."""
    logging.disable_progress_bar()
    llm = VideoLLM(model)
    llm.prepare(needs_of(cells))
    evaluate(llm, Benchmark(specs.benchmark_spec(benchmark), limit), cells, folder, key, Shard(index, count))


def _settings(job: Job, llm: VideoLLM, benchmark: Benchmark, config: dict[str, Any]) -> dict[str, Any]:
    """What determines the numbers, apart from machine and versions: as configured, so without this machine's paths."""
    return {
        **described_plug_ins(job.cells),
        "model": llm.spec.described(),
        "weights": llm.weights_for(needs_of(job.cells)),
        "settings": llm.settings,
        "dtype": llm.spec.dtype,
        "attention": llm.model.config._attn_implementation,
        "benchmark": config,
        "data": benchmark.digest,
        "questions": benchmark.whole,
        "limit": job.limit,
    }


def _question_to_time(benchmark: Benchmark, records: Sequence[Record]) -> Question | None:
    """The benchmark's first question that every cell could answer, if there is any."""
    failed = {r.question for r in records if r.error is not None and r.benchmark == benchmark.spec.name}
    return next((q for q in benchmark.questions if q.id not in failed), None)
