"""Two methods on the same questions: what one gains over the other, and how sure that is."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from mmg_bench.report.answers import (
    ALL,
    AVERAGE,
    Answers,
    Cells,
    answers_by_cell,
    check_same_questions,
    over_benchmarks,
)
from mmg_bench.report.statistics import Bootstrap, Comparison, Estimate, compare
from mmg_bench.report.table import NONE, Block, Entry, Table, mean_lines, measured_line, over_skills, p_value
from mmg_bench.runner.records import Record

Name = tuple[str, float]
"""Label of a method, and retention ratio."""
_WHERE = ("device", "device_map", "path", "revision", "siglip", "siglip_revision")
"""Settings of where a model runs and comes from: what its weights are is compared apart."""
COLUMNS = ("", "Questions", "Failed", "A", "B", "A − B [95 % CI]", "p (McNemar)", "Only A", "Only B")
MEANING = (
    "A, B: accuracy in percent over the questions that both answered; failed: left out, as one of them failed there",
    "A − B: in points, with a paired interval from a bootstrap over videos; p: exact two-sided McNemar test",
    "Only A, only B: questions that only one got right (where scores are graded, that it answered better)",
)


def pair_tables(
    records: Iterable[Record],
    provenance: Mapping[str, Mapping[str, Any]],
    a: Name,
    b: Name,
    *,
    bootstrap: Bootstrap | None = None,
) -> list[Table]:
    """A table for each model and number of frames with which both `a` and `b` answered: all questions, then each skill.

    provenance: what provenance.json holds, which must explain the records. Of a method that answered anew, because its
    code or a setting had changed, the newest answers count, and the table says so.

    Raises ValueError when the two have nothing in common, when they were not asked the same questions, and when they
    answered under different settings.
    """
    mine = [r for r in records if (r.method, r.retention_ratio) in (a, b)]
    if lost := sorted({r.provenance for r in mine} - set(provenance)):
        raise ValueError(f"provenance.json lacks {', '.join(lost)}, which records name: restore it, or run anew")
    newest, notes = _newest(mine, provenance)
    tables = []
    for (model, frames), by_benchmark in answers_by_cell(newest).items():
        both = {benchmark: cells for benchmark, cells in by_benchmark.items() if len(cells) == 2}
        where = f"({model}, {frames} frames)"
        for benchmark, cells in both.items():
            check_same_questions(cells, b, f"on {benchmark} {where}")
            _check_wording(cells, f"on {benchmark} {where}")
            _check_settings(cells, provenance, f"on {benchmark} {where}")
        alone = [
            f"On {benchmark} {where}, only {label} has answers"
            for benchmark, cells in by_benchmark.items()
            if benchmark not in both
            for label, _ in cells
        ]
        if both:
            title = f"A: {_named(a)}; B: {_named(b)}; {model}, {frames} frames"
            tables.append(_table(title, both, a, b, provenance, [*notes[model, frames], *alone], bootstrap))
    if not tables:
        raise ValueError(f"{_named(a)} and {_named(b)} have no benchmark in common: run both in one command")
    return tables


def _newest(
    records: Sequence[Record], provenance: Mapping[str, Mapping[str, Any]]
) -> tuple[list[Record], Mapping[tuple[str, int], list[str]]]:
    """The records of the cell that answered last of those with one label, and where there were others, a note.

    Of a question that was reworded the newest answer.
    """

    def date(r: Record) -> str:
        return str(provenance[r.provenance].get("date"))

    versions: dict[tuple[str, int, str, str, float], dict[str, list[Record]]] = defaultdict(dict)
    for r in records:
        label = (r.model, r.frames, r.benchmark, r.method, r.retention_ratio)
        versions[label].setdefault(r.cell, []).append(r)
    kept: list[Record] = []
    notes: dict[tuple[str, int], list[str]] = defaultdict(list)
    for (model, frames, benchmark, method, _), cells in versions.items():
        dates = [max(map(date, found)) for found in cells.values()]
        last = max(range(len(dates)), key=lambda i: (dates[i], i))
        kept += {r.question: r for r in sorted(list(cells.values())[last], key=date)}.values()
        if len(cells) > 1:
            notes[model, frames].append(
                f"{method} answered {benchmark} in {len(cells)} versions of its code or settings: the newest counts, "
                f"of {dates[last]}"
            )
    return kept, notes


def _check_wording(cells: Cells, where: str) -> None:
    """Raise ValueError where the same question was put to the cells in other words, or with another target."""
    one, other = ({r.question: r.asked for r in cell.records} for cell in cells.values())
    if different := [question for question in one if one[question] != other[question]]:
        labels = " and ".join(label for label, _ in cells)
        raise ValueError(
            f"{labels} {where} were asked {len(different)} questions in different words, such as {different[0]!r}: run "
            "both in one command"
        )


def _check_settings(cells: Cells, provenance: Mapping[str, Mapping[str, Any]], where: str) -> None:
    """Raise ValueError where the cells were answered by other weights or settings of the model or the benchmark."""
    entries = [provenance[key] for cell in cells.values() for key in sorted({r.provenance for r in cell.records})]
    first, *others = map(_settings, entries)
    differ = [name for other in others for name in first | other if first.get(name) != other.get(name)]
    weights = [f"{entry.get('weights')} " for entry in entries]
    # behind the model's own stand those of SigLIP, where any method of the command read them
    if not all(other.startswith(weights[0]) or weights[0].startswith(other) for other in weights):
        differ.append("weights")
    if differ:
        labels, what = " and ".join(label for label, _ in cells), ", ".join(dict.fromkeys(differ))
        raise ValueError(f"{labels} {where} differ in {what} as well: run both in one command, into a new output_dir")


def _settings(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What of a provenance entry decides answers, but for weights, versions and machine."""
    flat = {name: entry.get(name) for name in ("settings", "dtype", "attention")}
    for section in ("model", "benchmark"):
        flat |= {f"{section}.{name}": value for name, value in entry.get(section, {}).items() if name not in _WHERE}
    return flat


def _table(
    title: str,
    by_benchmark: Mapping[str, Cells],
    a: Name,
    b: Name,
    provenance: Mapping[str, Mapping[str, Any]],
    notes: Sequence[str],
    bootstrap: Bootstrap | None,
) -> Table:
    keys = sorted({r.provenance for cells in by_benchmark.values() for cell in cells.values() for r in cell.records})
    means = over_skills(provenance[key] for key in keys)
    blocks = []
    if len(by_benchmark) > 1:
        cells = over_benchmarks(by_benchmark)
        blocks.append(Block("", (_line(AVERAGE, cells[a], cells[b], means, bootstrap),)))
    for benchmark, cells in by_benchmark.items():
        one, other = cells[a], cells[b]
        lines = [_line(ALL, one, other, means, bootstrap)]
        skills = sorted({r.skill for r in one.records})
        if len(skills) > 1:  # a single skill is the whole benchmark once more
            lines += [_line(skill, one.of_skill(skill), other.of_skill(skill), (), bootstrap) for skill in skills]
        blocks.append(Block(benchmark, tuple(lines)))
    header = (*(measured_line(key, provenance) for key in keys), *MEANING, *mean_lines(means))
    return Table(title, header, COLUMNS, tuple(blocks), tuple(notes))


def _line(
    name: str, one: Answers, other: Answers, means: Collection[str], bootstrap: Bootstrap | None
) -> tuple[Entry, ...]:
    """Entries of a comparison, as `COLUMNS` has them."""
    pair: Comparison = compare(
        one.scores, other.scores, one.videos, one.benchmarks, one.subgroups(means), bootstrap=bootstrap
    )
    numbers = [f"{pair.difference.n}", f"{pair.difference.n_errors}"]
    accuracies = [NONE if math.isnan(value) else f"{value:.1f}" for value in (pair.accuracy, pair.other_accuracy)]
    flips = [f"{pair.flips_won}", f"{pair.flips_lost}"]
    texts = [name, *numbers, *accuracies, _points(pair.difference), p_value(pair.p_mcnemar), *flips]
    return tuple(map(Entry, texts))


def _points(difference: Estimate) -> str:
    if math.isnan(difference.value):
        return NONE
    interval = f" [{difference.low:+.1f}, {difference.high:+.1f}]" if math.isfinite(difference.low) else ""
    return f"{difference.value:+.1f}{interval}"


def _named(name: Name) -> str:
    return f"{name[0]} at R = {100 * name[1]:.4g} %"
