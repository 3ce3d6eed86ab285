"""What `mmg-bench browse` does with its composed configuration."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from omegaconf import DictConfig

from mmg_bench import config as cfg
from mmg_bench import specs
from mmg_bench.benchmarks.lmms import Benchmark, Question
from mmg_bench.commands.answered import read_answered
from mmg_bench.files import written_whole
from mmg_bench.options import check_path
from mmg_bench.report.answers import date_of, newest
from mmg_bench.report.browse import Asked, page
from mmg_bench.report.pairs import Side
from mmg_bench.runner.records import Record


def browse(config: DictConfig) -> int:
    """Write the page of a run or a table, from its records and the benchmarks' own data.

    Where a benchmark's data cannot be read here the page has its answers without prompts and videos, and says so.
    """
    values = cfg.plain(config)
    folder = check_path("output_dir", values["output_dir"])
    file = folder / "browse.html" if values["page"] is None else check_path("page", values["page"])
    found = read_answered(folder)
    records, versions = newest(found.records, found.sources)
    notes = [*found.notes]
    for label, note in versions.items():
        where = f"on {label.benchmark} ({label.model}, {label.frames} frames)"
        notes.append(f"{Side(label.method, label.retention_ratio)} {where} answered {note}")
    asked: dict[tuple[str, str], Asked] = {}
    for name in dict.fromkeys(r.benchmark for r in records):
        answered = [r for r in records if r.benchmark == name]
        latest = max((found.sources[key] for key in {r.provenance for r in answered}), key=date_of)
        try:
            benchmark = _benchmark(latest.get("benchmark"))
            asked |= _asked(benchmark, answered, file.parent)
            notes += _counts(benchmark, answered)
        except (ValueError, OSError) as error:
            notes.append(f"Prompts and videos of {name} are left out: {error}")
    for note in notes:
        print(note)
    with written_whole(file) as temporary:
        temporary.write_text(page(folder.name, records, found.sources, asked, notes), encoding="utf-8")
    print(f"Written: {file}; open it in a browser")
    return 0


def _benchmark(config: Any) -> Benchmark:
    """The benchmark that provenance describes so. Raises ValueError or OSError where its data cannot be read."""
    if not isinstance(config, Mapping):
        raise ValueError("provenance.json does not describe the benchmark")
    return Benchmark(specs.benchmark_spec(config))


def _counts(benchmark: Benchmark, records: Collection[Record]) -> list[str]:
    """What to say where the questions that were answered are not those of the benchmark."""
    now = {(q.id, q.digest) for q in benchmark.questions}
    done = {(r.question, r.asked) for r in records}
    name, some, old = benchmark.spec.name, len(done & now), len(done - now)
    notes = [f"Of the {len(now)} questions of {name}, {some} were asked"] if some < len(now) else []
    return [*notes, *([f"{old} questions of {name} are asked in other words by now, or no more"] if old else [])]


def _asked(benchmark: Benchmark, records: Collection[Record], beside: Path) -> dict[tuple[str, str], Asked]:
    """What the questions of a benchmark ask, as far as they are still those that were answered."""
    answered = {(r.question, r.asked) for r in records}
    videos: dict[tuple[str, str], str | None] = {}
    found = {}
    for question in benchmark.questions:
        if (question.id, question.digest) in answered:
            which = (question.task, question.video)
            if which not in videos:
                videos[which] = _video(benchmark, question, beside)
            found[benchmark.spec.name, question.id] = Asked(question.prompt, videos[which])
    return found


def _video(benchmark: Benchmark, question: Question, beside: Path) -> str | None:
    """The address of a question's video, for a page in the folder `beside`; None where it is not on this machine."""
    try:
        path = benchmark.video_path(question)
    except ValueError:
        return None
    return quote(os.path.relpath(path.resolve(), beside.resolve())) if path.exists() else None
