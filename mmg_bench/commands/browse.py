"""Carries out `mmg-bench browse` with its composed configuration."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from omegaconf import DictConfig

from mmg_bench import config as cfg
from mmg_bench import specs
from mmg_bench.benchmarks.lmms import Benchmark, Question
from mmg_bench.benchmarks.video import pictures
from mmg_bench.commands.answered import read_answered
from mmg_bench.files import written_whole
from mmg_bench.methods.registry import at_ratio
from mmg_bench.options import check_path
from mmg_bench.report.answers import Label, Sources, date_of, newest
from mmg_bench.report.browse import Asked, page
from mmg_bench.runner.records import Record

_PICTURES = 6
"""Maximum number of pictures of a video that the page shows."""


def browse(config: DictConfig) -> int:
    """Write the page of a run or a table, from its records and the benchmarks' own data.

    If a benchmark's data cannot be read here, the page shows its answers without prompts and videos, and says so.
    """
    values = cfg.plain(config)
    folder = check_path("output_dir", values["output_dir"])
    file = folder / "browse.html" if values["page"] is None else check_path("page", values["page"])
    found = read_answered(folder)
    records, versions = newest(found.records, found.sources)
    notes = [*found.notes]
    for label, note in versions.items():
        notes.append(f"{at_ratio(label.method, label.retention_ratio)} {label.where} answered {note}")
    notes += _of_several_commits(records, found.sources)
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
    try:
        with written_whole(file) as temporary:
            temporary.write_text(page(folder.name, records, found.sources, asked, notes), encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{file} cannot be written ({error.strerror}): name another file with page=") from error
    print(f"Written: {file}; open it in a browser")
    return 0


def _of_several_commits(records: Collection[Record], sources: Sources) -> list[str]:
    """Notes on labels whose answers at different ratios come from different commits of this code."""
    cells: dict[tuple[str, str], dict[float, set[str]]] = defaultdict(lambda: defaultdict(set))
    for r in records:
        cells[Label.of(r).where, r.method][r.retention_ratio].add(str(sources[r.provenance].get("commit")))
    alike: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (where, method), ratios in cells.items():
        if len({frozenset(commits) for commits in ratios.values()}) > 1:
            listed = (f"R = {100 * ratio:.4g} % from {' and '.join(sorted(c))}" for ratio, c in ratios.items())
            alike[where, ", ".join(listed)].append(method)
    what = "answers come from different commits, so perhaps from different code"
    return [f"{', '.join(methods)} {where}: {what} ({listed})" for (where, listed), methods in alike.items()]


def _benchmark(config: Any) -> Benchmark:
    """The benchmark described by a provenance entry. Raises ValueError or OSError if its data cannot be read."""
    if not isinstance(config, Mapping):
        raise ValueError("provenance.json does not describe the benchmark")
    return Benchmark(specs.benchmark_spec(config))


def _counts(benchmark: Benchmark, records: Collection[Record]) -> list[str]:
    """Notes if the answered questions are not those of the benchmark."""
    now = {(q.id, q.digest) for q in benchmark.questions}
    done = {(r.question, r.asked) for r in records}
    name, some, old = benchmark.spec.name, len(done & now), len(done - now)
    notes = [f"Only {some} of the {len(now)} questions of {name} were asked"] if some < len(now) else []
    return [*notes, *([f"{old} answered questions of {name} have since changed or been removed"] if old else [])]


def _asked(benchmark: Benchmark, records: Collection[Record], beside: Path) -> dict[tuple[str, str], Asked]:
    """Prompts and videos of a benchmark's questions that are still the same as when they were answered."""
    answered = {(r.question, r.asked) for r in records}
    videos: dict[tuple[str, str], tuple[str | None, list[str]]] = {}
    found = {}
    for question in benchmark.questions:
        if (question.id, question.digest) in answered:
            which = (question.task, question.video)
            if which not in videos:
                videos[which] = _video(benchmark, question, beside)
            found[benchmark.spec.name, question.id] = Asked(question.prompt, *videos[which])
    return found


def _video(benchmark: Benchmark, question: Question, beside: Path) -> tuple[str | None, list[str]]:
    """The address of a question's video, and those of its pictures; None, and no pictures, if it is not here.

    Addresses are relative to the page's folder `beside`, which need not exist yet.
    """
    try:
        path = benchmark.video_path(question)
    except ValueError:
        return None, []
    if not path.exists():
        return None, []
    return quote(os.path.relpath(path.resolve(), beside.resolve())), _pictures(path)


def _pictures(video: Path) -> list[str]:
    """Addresses of some pictures, spread over a video that is a folder of them, relative to it; none for a file."""
    found = pictures(video) if video.is_dir() else []
    return [quote(picture.name) for picture in found[:: math.ceil(len(found) / _PICTURES) or 1]]
