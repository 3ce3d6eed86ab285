"""Whether two may be compared on a benchmark: the same questions, in the same words, under the same settings."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mmg_bench.report.answers import Answers, Sources, date_of, last_seen
from mmg_bench.runner.records import Record

_APART = ("device", "device_map", "path", "revision", "siglip", "siglip_revision", "average")
"""Settings of where a model runs and comes from, for what its weights are is compared apart; and of how accuracy is
averaged, for which the last command counts."""


@dataclass(frozen=True)
class Pair:
    """The answers of two to one benchmark."""

    one: Answers
    other: Answers
    names: tuple[str, str]
    """What to call the two in a sentence."""
    benchmark: str
    where: str
    """Model and frames, in words."""

    def __str__(self) -> str:
        return f"{' and '.join(self.names)} on {self.benchmark} {self.where}"

    @property
    def sources(self) -> list[str]:
        """Keys into provenance."""
        return [*self.one.sources, *self.other.sources]

    @property
    def videos(self) -> int:
        """How many videos the comparison rests on: those of questions that both answered."""
        answered = zip(self.one.videos, self.one.scores, self.other.scores, strict=True)
        return len({video for video, *scores in answered if not any(map(math.isnan, scores))})


def check_pair(pair: Pair, provenance: Sources, apart: Collection[str]) -> None:
    """Raise ValueError, saying what to run, unless both were asked the same under the same settings.

    apart: settings in which they are to differ.
    """
    _check_questions(pair, provenance)
    _check_wording(pair)
    _check_settings(pair, provenance, apart)


def notes_on(pair: Pair, provenance: Sources, records: Iterable[Record]) -> list[str]:
    """What to say where a method's code may differ, or where the questions are not those of today, or not all.

    records: of all methods. They tell which questions there are, apart from those of other data.
    """
    return [*_of_other_code(pair, provenance), *_on_questions(pair, provenance, records)]


def _of_other_code(pair: Pair, provenance: Sources) -> list[str]:
    """What to say where both sides are of one method from another package, and of different code of it."""
    sides = [_plug_ins(answers, provenance) for answers in (pair.one, pair.other)]
    return [
        f"{name} may have answered {pair.benchmark} with different code on the two sides "
        f"({'; '.join(sorted(sides[0][name] | sides[1][name]))}): run both again in one command"
        for name in sorted(sides[0].keys() & sides[1].keys())
        if len(sides[0][name] | sides[1][name]) > 1
    ]


def _plug_ins(answers: Answers, provenance: Sources) -> dict[str, set[str]]:
    """Methods of other packages that answers are of, also as a part of a chain: package and code of each."""
    found: dict[str, set[str]] = {}
    for label, key in {(r.method, r.provenance) for r in answers.records}:
        for name, package in (provenance[key].get("plug_ins") or {}).items():
            if re.search(rf"\b{re.escape(name)}\b", label):
                found.setdefault(name, set()).add(package)
    return found


def _on_questions(pair: Pair, provenance: Sources, records: Iterable[Record]) -> list[str]:
    """What to say where the questions of a pair are not those of today, or not all of its benchmark."""
    seen = last_seen(provenance)
    last = max(pair.sources, key=lambda key: seen[key])
    others = {key for key, entry in provenance.items() if _changed(entry, provenance[last])}
    later = [key for key in others if seen[key] > seen[last] and _of(provenance[key], "name") == pair.benchmark]
    if later or others.intersection(pair.sources):
        return [
            f"The questions of {pair.benchmark} have changed since: answers to some that are asked no more may count "
            "here; run both again in one command, into a new output_dir"
        ]
    known = {r.question for r in records if r.benchmark == pair.benchmark and r.provenance not in others}
    return _missing(pair, provenance, max(len(known), provenance[last].get("questions") or 0))


def _changed(entry: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the questions changed between two provenance entries: of other limits, that cannot be told."""
    data = {entry.get("data"), other.get("data")}
    return len(data - {None}) > 1 and entry.get("limit") == other.get("limit")


def _of(entry: Mapping[str, Any], field: str) -> Any:
    """What a provenance entry says of its benchmark; None where it does not."""
    return (entry.get("benchmark") or {}).get(field)


def _missing(pair: Pair, provenance: Sources, known: int) -> list[str]:
    """What to say where a pair has not all questions of its benchmark.

    known: how many there are at least. What the benchmark's configuration says counts as well: where the data had
        another number, nothing was answered.
    """
    entries = [provenance[key] for key in pair.sources]
    whole = max(known, *(_of(entry, "questions") or 0 for entry in entries))
    limit = _limit(entries)
    wanted = min(whole, limit or whole)
    count = len(pair.one.records)
    if count >= whole:
        return []
    if count >= wanted:
        return [f"Of the {whole} questions of {pair.benchmark}, both were asked only the first {count} (limit={limit})"]
    commands = dict.fromkeys(_command(answers, provenance, limit) for answers in (pair.one, pair.other))
    runs = " and ".join(f"`{command}`" for command in commands if command)
    part = f" with limit={limit}" if wanted < whole else ""
    return [
        f"Of the {wanted} questions of {pair.benchmark}{part}, both were asked only {count}: a shard is missing, or a "
        f"command was stopped{f'; for the rest, run {runs}' if runs else ''}"
    ]


def _limit(entries: Iterable[Mapping[str, Any]]) -> int | None:
    """The first how many questions were asked for; None for all."""
    limits: list[int | None] = [entry.get("limit") for entry in entries]
    given = [limit for limit in limits if limit is not None]
    return max(given) if len(given) == len(limits) else None


def _command(answers: Answers, provenance: Sources, limit: int | None) -> str | None:
    """The last command of answers, changed to ask all of the first `limit` questions; None where unknown."""
    last = max((provenance[key] for key in answers.sources), key=date_of)
    words = shlex.split(last.get("command") or "")
    kept = [word for word in words if not word.startswith(("limit=", "shard."))]
    return shlex.join([*kept, *([] if limit is None else [f"limit={limit}"])]) if kept else None


def _check_questions(pair: Pair, provenance: Sources) -> None:
    """Raise ValueError unless both were asked the same questions; it says what to run to get the rest."""
    sides = zip(pair.names, (pair.one, pair.other), strict=True)
    (few, fewer), (many, more) = sorted(sides, key=lambda side: len(side[1].records))
    some, others = ({r.question for r in answers.records} for answers in (fewer, more))
    if not (different := sorted(some ^ others)):
        return
    limit = _limit(provenance[key] for key in more.sources)
    command = _command(fewer, provenance, limit) if some < others else None
    fix = f"run `{command}` to ask {few} the others" if command else "run both in one command, into a new output_dir"
    raise ValueError(
        f"{few} on {pair.benchmark} {pair.where} was asked {len(some)} questions, and {many} {len(others)}: "
        f"{len(different)} were put to only one, such as {different[0]!r}; {fix}"
    )


def _check_wording(pair: Pair) -> None:
    """Raise ValueError where the same question was put to the two in other words, or with another target."""
    one, other = ({r.question: r.asked for r in answers.records} for answers in (pair.one, pair.other))
    if different := [question for question in one if one[question] != other[question]]:
        raise ValueError(
            f"{pair} were asked {len(different)} questions in different words, such as {different[0]!r}: run both in "
            "one command"
        )


def _check_settings(pair: Pair, provenance: Sources, apart: Collection[str]) -> None:
    """Raise ValueError where the two were answered by other weights or settings of the model or the benchmark."""
    entries = [provenance[key] for key in pair.sources]
    first, *others = map(_settings, entries)
    unlike = (name for other in others for name in first | other if first.get(name) != other.get(name))
    differ = [name for name in unlike if name not in apart]
    weights = [f"{entry.get('weights')} " for entry in entries]
    # behind the model's own stand those of SigLIP, where any method of the command read them
    if not all(other.startswith(weights[0]) or weights[0].startswith(other) for other in weights):
        differ.append("weights")
    if differ:
        what = ", ".join(dict.fromkeys(differ))
        raise ValueError(f"{pair} differ in {what} as well: run both in one command, into a new output_dir")


def _settings(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What of a provenance entry decides answers, but for weights, versions and machine."""
    flat = {name: entry.get(name) for name in ("settings", "dtype", "attention")}
    for section in ("model", "benchmark"):
        flat |= {f"{section}.{name}": value for name, value in entry.get(section, {}).items() if name not in _APART}
    return flat
