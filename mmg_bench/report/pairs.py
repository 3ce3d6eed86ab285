"""Two methods on the same questions: what one gains over the other, and how sure that is."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from mmg_bench.report.answers import ALL, AVERAGE, Answers, Label, Sources, answers_by_cell, date_of, newest
from mmg_bench.report.statistics import Bootstrap, Comparison, Estimate, compare
from mmg_bench.report.table import NONE, Block, Entry, Table, mean_lines, measured_line, over_skills, p_value
from mmg_bench.runner.records import Record


@dataclass(frozen=True)
class Side:
    """One of the two that are compared."""

    method: str
    """Label."""
    retention_ratio: float
    frames: int | None = None
    """None, of both sides: a table for each number of frames with which both answered; of one: the only one it has."""

    def __str__(self) -> str:
        return f"{self.method} at R = {100 * self.retention_ratio:.4g} %"

    def answered(self, record: Record) -> bool:
        """Whether a record is one of its answers."""
        mine = (record.method, record.retention_ratio) == (self.method, self.retention_ratio)
        return mine and self.frames in (None, record.frames)


class Pair(NamedTuple):
    """The answers of both sides to the same questions."""

    one: Answers
    other: Answers


_Key = tuple[str, str, Side]
"""Model, benchmark, and a side with its number of frames."""
_WHERE = ("device", "device_map", "path", "revision", "siglip", "siglip_revision")
"""Settings of where a model runs and comes from: what its weights are is compared apart."""
COLUMNS = ("", "Questions", "Failed", "A", "B", "A − B [95 % CI]", "p (McNemar)", "Only A", "Only B")
MEANING = (
    "A, B: accuracy in percent over the questions that both answered; failed: left out, as one of them failed there",
    "A − B: in points, with a paired interval from a bootstrap over videos; p: exact two-sided McNemar test",
    "Only A, only B: questions that only one got right (where scores are graded, that it answered better)",
)


def pair_tables(
    records: Iterable[Record], provenance: Sources, a: Side, b: Side, *, bootstrap: Bootstrap | None = None
) -> list[Table]:
    """A table for each model with which both `a` and `b` answered: all questions, then each skill.

    records: of all methods there are. Those of others tell which questions there are, so that a table of a part of them
        says so.
    provenance: what provenance.json holds, which must explain the records. Of a method that answered anew, because its
        code or a setting had changed, the newest answers count, and the table says so.

    Raises ValueError when the two have nothing in common, when they were not asked the same questions, and when they
    answered under different settings. Only numbers of frames may differ, where the sides ask for that.
    """
    records = list(records)
    mine = [r for r in records if a.answered(r) or b.answered(r)]
    latest, versions = newest(mine, provenance)
    found = {
        (model, benchmark, Side(*key, frames)): answers
        for (model, frames), by_benchmark in answers_by_cell(latest).items()
        for benchmark, cells in by_benchmark.items()
        for key, answers in cells.items()
    }
    tables: list[Table] = []
    elsewhere: list[str] = []
    for match in _matches(found, a, b):
        pairs: dict[str, Pair] = {}
        notes: list[str] = []
        alone: list[str] = []
        for benchmark in sorted({b for model, b, side in found if model == match.model and side in match.sides}):
            where = f"on {benchmark} {match.where}"
            keys = [(match.model, benchmark, side) for side in match.sides]
            one, other = map(found.get, keys)
            if one is None or other is None:
                alone.append(f"On {benchmark} {match.where}, only {match.names[one is None]} has answers")
                continue
            pairs[benchmark] = pair = Pair(one, other)
            _check_questions(pair, match.names, provenance, where)
            _check_wording(pair, match.names, where)
            _check_settings(pair, match.names, provenance, where, match.apart)
            for name, key in zip(match.names, keys, strict=True):
                label = Label(key[0], key[1], key[2].method, key[2].retention_ratio, key[2].frames or 0)
                notes += [f"{name} answered {benchmark} {versions[label]}"] if label in versions else []
            notes += _part(benchmark, pair, provenance, records)
        if pairs:
            tables.append(_table(match.title, pairs, provenance, [*notes, *alone], bootstrap))
        else:
            elsewhere += alone
    if not tables:
        raise ValueError(_apart(found, a, b))
    return [*tables[:-1], replace(tables[-1], footnotes=(*tables[-1].footnotes, *elsewhere))]


@dataclass(frozen=True)
class _Match:
    """What a table is of: a model, and two sides with their numbers of frames."""

    model: str
    a: Side
    b: Side

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.a, self.b

    @property
    def apart(self) -> tuple[str, ...]:
        """Settings in which the two are to differ."""
        return () if self.a.frames == self.b.frames else ("model.frames",)

    @property
    def names(self) -> tuple[str, str]:
        """What to call the two in a sentence: no more than tells one from the other."""
        a, b = self.sides
        if a.method != b.method:
            return a.method, b.method
        if a.retention_ratio != b.retention_ratio:
            return str(a), str(b)
        return f"{a.method} with {a.frames} frames", f"{b.method} with {b.frames} frames"

    @property
    def where(self) -> str:
        frames = f"{self.a.frames} and {self.b.frames}" if self.apart else f"{self.a.frames}"
        return f"({self.model}, {frames} frames)"

    @property
    def title(self) -> str:
        if self.apart:
            return f"A: {self.a}, {self.a.frames} frames; B: {self.b}, {self.b.frames} frames; {self.model}"
        return f"A: {self.a}; B: {self.b}; {self.model}, {self.a.frames} frames"


def _matches(found: Iterable[_Key], a: Side, b: Side) -> list[_Match]:
    """Each model with the two sides, and with each number of frames where they do not name theirs.

    Raises ValueError where one alone names its frames, and the other has several numbers of them, or the same alone.
    """
    if a.frames is None and b.frames is None:
        cells = sorted({(model, side.frames or 0) for model, _, side in found})
        return [_Match(model, replace(a, frames=frames), replace(b, frames=frames)) for model, frames in cells]
    matches = []
    for model in sorted({model for model, _, _ in found}):
        match = _Match(model, _with_frames("a", a, b, model, found), _with_frames("b", b, a, model, found))
        if match.a == match.b:
            raise ValueError(
                f"A and B are both {match.a} with {match.a.frames} frames: give one of them another number"
            )
        matches.append(match)
    return matches


def _with_frames(letter: str, side: Side, other: Side, model: str, found: Iterable[_Key]) -> Side:
    """A side with its number of frames: where it names none, the only one with which it answered, of a model."""
    if side.frames is not None:
        return side
    numbers = _frames(side, model, found)
    if len(numbers) > 1 and _frames(other, model, found):
        every = " and ".join(map(str, numbers))
        raise ValueError(f"{letter}.frames=null: {side} has answers of {model} with {every} frames; choose one")
    return replace(side, frames=numbers[0] if numbers else other.frames)  # of none, to say so


def _frames(side: Side, model: str, found: Iterable[_Key]) -> list[int]:
    """With which numbers of frames a side has answers of a model."""
    sides = {s for name, _, s in found if name == model and replace(s, frames=None) == replace(side, frames=None)}
    return sorted(s.frames or 0 for s in sides if side.frames in (None, s.frames))


def _apart(found: Iterable[_Key], a: Side, b: Side) -> str:
    """Why there is no table of the two, and what to do."""
    for model in sorted({model for model, _, _ in found}):
        frames = [_frames(side, model, found) for side in (a, b)]
        if a.frames is b.frames is None and all(frames) and not set(frames[0]) & set(frames[1]):
            one, other = (" and ".join(map(str, numbers)) for numbers in frames)
            return (
                f"{a} answered with {one} frames and {b} with {other}: run both in one command, or compare them so: "
                f"a.frames={frames[0][0]} b.frames={frames[1][0]}"
            )
    return f"{a} and {b} have no benchmark in common: run both in one command"


def _entries(answers: Answers, provenance: Sources) -> list[Mapping[str, Any]]:
    """What the provenance of answers says, oldest first."""
    return sorted((provenance[key] for key in sorted({r.provenance for r in answers.records})), key=date_of)


def _limit(entries: Iterable[Mapping[str, Any]]) -> int | None:
    """The first how many questions were asked for; None for all."""
    limits: list[int | None] = [entry.get("limit") for entry in entries]
    given = [limit for limit in limits if limit is not None]
    return max(given) if len(given) == len(limits) else None


def _command(entry: Mapping[str, Any], limit: int | None) -> str | None:
    """The command of a provenance entry, changed to ask all of the first `limit` questions; None where unknown."""
    words = shlex.split(entry.get("command") or "")
    kept = [word for word in words if not word.startswith(("limit=", "shard."))]
    return shlex.join([*kept, *([] if limit is None else [f"limit={limit}"])]) if kept else None


def _check_questions(pair: Pair, names: tuple[str, str], provenance: Sources, where: str) -> None:
    """Raise ValueError unless both were asked the same questions; it says what to run to get the rest."""
    by_name = dict(zip(names, pair, strict=True))
    few, many = sorted(names, key=lambda name: len(by_name[name].records))
    fewer, more = ({r.question for r in by_name[name].records} for name in (few, many))
    if not (different := sorted(fewer ^ more)):
        return
    limit = _limit(_entries(by_name[many], provenance))
    command = _command(_entries(by_name[few], provenance)[-1], limit) if fewer < more else None
    fix = f"run `{command}` to ask {few} the others" if command else "run both in one command, into a new output_dir"
    raise ValueError(
        f"{few} {where} was asked {len(fewer)} questions, and {many} {len(more)}: {len(different)} were put to only "
        f"one, such as {different[0]!r}; {fix}"
    )


def _changed(entry: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the questions changed between two provenance entries: of other limits, that cannot be told."""
    data = {entry.get("data"), other.get("data")}
    return len(data - {None}) > 1 and entry.get("limit") == other.get("limit")


def _part(benchmark: str, pair: Pair, provenance: Sources, records: Iterable[Record]) -> list[str]:
    """What to say where the questions of a pair are not all of its benchmark, or not those of today.

    records: of all methods. They tell which questions there are, apart from those that were asked before the data
    changed. What the benchmark's configuration says counts as well: where the data had another number, nothing was
    answered.
    """
    entries = [_entries(answers, provenance) for answers in pair]
    every = sorted((entry for found in entries for entry in found), key=date_of)
    last = every[-1]
    of_benchmark = [e for e in provenance.values() if (e.get("benchmark") or {}).get("name") == benchmark]
    later = [entry for entry in of_benchmark if date_of(entry) > date_of(last)]
    if any(_changed(entry, last) for entry in [*every, *later]):
        return [
            f"The questions of {benchmark} have changed since: answers to some that are asked no more may count here; "
            "run both again in one command, into a new output_dir"
        ]
    old = {key for key, entry in provenance.items() if _changed(entry, last)}
    known = {r.question for r in records if r.benchmark == benchmark and r.provenance not in old}
    whole = max(len(known), *((entry.get("benchmark") or {}).get("questions") or 0 for entry in every))
    limit = _limit(every)
    wanted = min(whole, limit or whole)
    count = len(pair.one.records)
    if count >= whole:
        return []
    if count >= wanted:
        return [f"Of the {whole} questions of {benchmark}, both were asked only the first {count} (limit={limit})"]
    commands = dict.fromkeys(filter(None, (_command(found[-1], limit) for found in entries)))
    rest = f"; for the rest, run {' and '.join(f'`{command}`' for command in commands)}" if commands else ""
    part = f" with limit={limit}" if wanted < whole else ""
    return [
        f"Of the {wanted} questions of {benchmark}{part}, both were asked only {count}: a shard is missing, or a "
        f"command was stopped{rest}"
    ]


def _check_wording(pair: Pair, names: tuple[str, str], where: str) -> None:
    """Raise ValueError where the same question was put to the two in other words, or with another target."""
    one, other = ({r.question: r.asked for r in answers.records} for answers in pair)
    if different := [question for question in one if one[question] != other[question]]:
        raise ValueError(
            f"{' and '.join(names)} {where} were asked {len(different)} questions in different words, such as "
            f"{different[0]!r}: run both in one command"
        )


def _check_settings(
    pair: Pair, names: tuple[str, str], provenance: Sources, where: str, apart: Collection[str]
) -> None:
    """Raise ValueError where the two were answered by other weights or settings of the model or the benchmark.

    apart: settings in which they are to differ.
    """
    entries = [provenance[key] for answers in pair for key in sorted({r.provenance for r in answers.records})]
    first, *others = map(_settings, entries)
    unlike = (name for other in others for name in first | other if first.get(name) != other.get(name))
    differ = [name for name in unlike if name not in apart]
    weights = [f"{entry.get('weights')} " for entry in entries]
    # behind the model's own stand those of SigLIP, where any method of the command read them
    if not all(other.startswith(weights[0]) or weights[0].startswith(other) for other in weights):
        differ.append("weights")
    if differ:
        what = ", ".join(dict.fromkeys(differ))
        raise ValueError(
            f"{' and '.join(names)} {where} differ in {what} as well: run both in one command, into a new output_dir"
        )


def _settings(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What of a provenance entry decides answers, but for weights, versions and machine."""
    flat = {name: entry.get(name) for name in ("settings", "dtype", "attention")}
    for section in ("model", "benchmark"):
        flat |= {f"{section}.{name}": value for name, value in entry.get(section, {}).items() if name not in _WHERE}
    return flat


def _table(
    title: str, pairs: Mapping[str, Pair], provenance: Sources, notes: Sequence[str], bootstrap: Bootstrap | None
) -> Table:
    keys = sorted({r.provenance for pair in pairs.values() for answers in pair for r in answers.records})
    means = over_skills(provenance[key] for key in keys)
    blocks = []
    if len(pairs) > 1:
        one, other = (
            Answers(tuple(r for answers in of_side for r in answers.records))
            for of_side in zip(*pairs.values(), strict=True)
        )
        blocks.append(Block("", (_line(AVERAGE, one, other, means, bootstrap),)))
    for benchmark, (one, other) in pairs.items():
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
    flips = [NONE if math.isnan(count) else f"{count:.0f}" for count in (pair.flips_won, pair.flips_lost)]
    texts = [name, *numbers, *accuracies, _points(pair.difference), p_value(pair.p_mcnemar), *flips]
    return tuple(map(Entry, texts))


def _points(difference: Estimate) -> str:
    if math.isnan(difference.value):
        return NONE
    interval = f" [{difference.low:+.1f}, {difference.high:+.1f}]" if math.isfinite(difference.low) else ""
    return f"{difference.value:+.1f}{interval}"
