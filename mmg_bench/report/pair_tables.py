"""Tables of two methods on the same questions: what one gains over the other, and how certain that is."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from mmg_bench.benchmarks.reserved import ALL, AVERAGE
from mmg_bench.report.answers import Answers, Label, Sources, answers_by_label, lost_questions, newest
from mmg_bench.report.comparable import Pair, check_pair, notes_on
from mmg_bench.report.pairs import Match, Side, matches, why_apart
from mmg_bench.report.rows import DENSE
from mmg_bench.report.statistics import USUAL, Bootstrap, compare
from mmg_bench.report.table import (
    NONE,
    Block,
    Entry,
    Table,
    mean_lines,
    measured_line,
    over_skills,
    p_value,
    signed,
    too_few,
)
from mmg_bench.runner.records import Record

COLUMNS = ("", "Questions", "Failed", "A", "B", "A − B [95 % CI]", "p (McNemar)", "Only A", "Only B")
MEANING = (
    "A, B: accuracy in percent over the questions that both answered. Failed: left out, because one of them failed",
    "A − B: in points, with a paired interval from a bootstrap over videos; p: exact two-sided McNemar test",
    "Only A, only B: questions that only one got right (where scores are graded, that it answered better)",
)
_DENSE = Side(DENSE, 1.0)


def pair_tables(
    records: Iterable[Record],
    provenance: Sources,
    a: Side,
    b: Side,
    *,
    lost_by: Side | None = None,
    bootstrap: Bootstrap = USUAL,
) -> list[Table]:
    """A table for each model with which both `a` and `b` answered: all questions, then each skill.

    With `lost_by`, the questions that dense answered better than it get their own line, after that of all questions.

    records: those of all methods. Other methods show which questions there are, so that a table that covers only part
        of them says so.
    provenance: the content of provenance.json, which must explain the records. If a method answered again, because its
        code or a setting had changed, the newest answers count, and the table says so.

    Raises ValueError if the two have nothing in common, if they were not asked the same questions, or if they answered
    under different settings. Only the number of frames may differ, if the sides ask for it, and not with `lost_by`.
    """
    records = list(records)
    latest, versions = newest([r for r in records if a.answered(r) or b.answered(r)], provenance)
    found = answers_by_label(latest)
    judges = () if lost_by is None else (_DENSE, lost_by)
    judged = answers_by_label(newest([r for r in records if any(s.answered(r) for s in judges)], provenance)[0])
    tables: list[Table] = []
    elsewhere: list[str] = []
    for match in matches(found, a, b):
        pairs: list[Pair] = []
        lost: dict[str, set[str]] = {}
        notes: list[str] = []
        alone: list[str] = []
        of_a, of_b = match.labels(found)
        for benchmark in sorted({*of_a, *of_b}):
            one, other = of_a.get(benchmark), of_b.get(benchmark)
            if one is None or other is None:
                alone.append(f"On {benchmark} {match.where}, only {match.names[one is None]} has answers")
                continue
            pair = Pair(found[one], found[other], match.names, benchmark, match.where)
            check_pair(pair, provenance, match.apart)
            for name, label in zip(match.names, (one, other), strict=True):
                notes += [f"{name} answered {benchmark} {versions[label]}"] if label in versions else []
            notes += notes_on(pair, provenance, records)
            pairs.append(pair)
            if lost_by is not None:
                lost[benchmark] = _lost(pair, match, judged, lost_by)
        if pairs:
            tables.append(_table(match.title, pairs, provenance, [*notes, *alone], bootstrap, lost_by, lost))
        else:
            elsewhere += alone
    if not tables:
        raise ValueError(why_apart(found, a, b))
    return [*tables[:-1], replace(tables[-1], footnotes=(*tables[-1].footnotes, *elsewhere))]


def _lost(pair: Pair, match: Match, judged: Mapping[Label, Answers], lost_by: Side) -> set[str]:
    """The questions that dense answered better than `lost_by`, on a pair's benchmark and with its model and frames.

    Raises ValueError if A and B differ in frames, or if dense or `lost_by` was not asked all of the pair's questions.
    """
    if match.apart:
        raise ValueError(
            f"lost_by={lost_by.method}: A has {match.a.frames} frames and B {match.b.frames}, and it lost "
            "different questions with each: compare at one number of frames"
        )
    judges: list[Answers] = []
    for side in (_DENSE, lost_by):
        label = Label(match.model, pair.benchmark, side.method, side.retention_ratio, match.a.frames or 0)
        judges.append(judged.get(label, Answers(())))
        asked = {r.question for r in judges[-1].records}
        if missing := sorted({r.question for r in pair.one.records} - asked):
            raise ValueError(
                f"lost_by={lost_by.method}: {side} on {pair.benchmark} {pair.where} was not asked {len(missing)} of "
                f"the questions, such as {missing[0]!r}: run it in one command with {' and '.join(pair.names)}"
            )
    dense, other = judges
    return {question for _, question in lost_questions(other, dense)}


def _table(
    title: str,
    pairs: Sequence[Pair],
    provenance: Sources,
    notes: Sequence[str],
    bootstrap: Bootstrap,
    lost_by: Side | None,
    lost: Mapping[str, Collection[str]],
) -> Table:
    keys = sorted({key for pair in pairs for key in pair.sources})
    means = [name for name in over_skills(provenance) if name in {pair.benchmark for pair in pairs}]
    blocks = []
    if len(pairs) > 1:
        one = Answers(tuple(r for pair in pairs for r in pair.one.records))
        other = Answers(tuple(r for pair in pairs for r in pair.other.records))
        blocks.append(Block("", (_line(AVERAGE, one, other, means, bootstrap),)))
    for pair in pairs:
        lines = [_line(ALL, pair.one, pair.other, means, bootstrap)]
        if lost_by is not None:
            one, other = (answers.to(lost[pair.benchmark]) for answers in (pair.one, pair.other))
            lines.append(_line(f"lost by {lost_by.method}", one, other, (), bootstrap))
        skills = sorted({r.skill for r in pair.one.records})
        if len(skills) > 1:  # a single skill would repeat the whole benchmark
            lines += [_line(s, pair.one.of_skill(s), pair.other.of_skill(s), (), bootstrap) for s in skills]
        blocks.append(Block(pair.benchmark, tuple(lines)))
    meaning = (
        MEANING if lost_by is None else (*MEANING, f"Lost by: questions that dense answered better than {lost_by}")
    )
    few = [line for pair in pairs for line in too_few(pair.benchmark, pair.videos)]
    header = (*(measured_line(key, provenance) for key in keys), *few, *meaning, *mean_lines(means))
    return Table(title, header, COLUMNS, tuple(blocks), tuple(notes))


def _line(name: str, one: Answers, other: Answers, means: Collection[str], bootstrap: Bootstrap) -> tuple[Entry, ...]:
    """Entries of a comparison, in the order of `COLUMNS`."""
    if not one.records:
        return tuple(map(Entry, [name, "0", "0", *[NONE] * (len(COLUMNS) - 3)]))
    pair = compare(one.scores, other.scores, one.videos, one.benchmarks, one.subgroups(means), bootstrap=bootstrap)
    numbers = [f"{pair.difference.n}", f"{pair.difference.n_errors}"]
    accuracies = [NONE if math.isnan(value) else f"{value:.1f}" for value in (pair.accuracy, pair.other_accuracy)]
    gain = pair.difference
    points = NONE if math.isnan(gain.value) else signed(gain.value, gain.low, gain.high)
    flips = [NONE if math.isnan(count) else f"{count:.0f}" for count in (pair.flips_won, pair.flips_lost)]
    texts = [name, *numbers, *accuracies, points, p_value(pair.p_mcnemar), *flips]
    return tuple(map(Entry, texts))
