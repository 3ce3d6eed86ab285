"""Checks that two cells are comparable on a benchmark: same questions, same wording, same settings."""

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
"""Settings that may differ: where a model runs and comes from (its weights are compared separately), and how accuracy
is averaged (the last command counts)."""


@dataclass(frozen=True)
class Pair:
    """The answers of two cells to one benchmark."""

    one: Answers
    other: Answers
    names: tuple[str, str]
    """Names of the two in messages."""
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
        """Number of videos that the comparison rests on: those of the questions that both answered."""
        answered = zip(self.one.videos, self.one.scores, self.other.scores, strict=True)
        return len({video for video, *scores in answered if not any(map(math.isnan, scores))})


def check_pair(pair: Pair, provenance: Sources, apart: Collection[str]) -> None:
    """Raise ValueError, saying what to run, unless both were asked the same questions under the same settings.

    apart: settings that may differ.
    """
    _check_questions(pair, provenance)
    _check_wording(pair)
    _check_settings(pair, provenance, apart)


def notes_on(pair: Pair, provenance: Sources, records: Iterable[Record]) -> list[str]:
    """Notes if a method's code may differ, or if the questions are outdated or incomplete.

    records: those of all methods. They show which questions there are, leaving out records of changed data.
    """
    return [*_of_other_code(pair, provenance), *_on_questions(pair, provenance, records)]


def _of_other_code(pair: Pair, provenance: Sources) -> list[str]:
    """Notes if both sides use the same method of another package, with different code."""
    sides = [_plug_ins(answers, provenance) for answers in (pair.one, pair.other)]
    return [
        f"{name} may have answered {pair.benchmark} with different code on the two sides "
        f"({'; '.join(sorted(sides[0][name] | sides[1][name]))}): run both again in one command"
        for name in sorted(sides[0].keys() & sides[1].keys())
        if len(sides[0][name] | sides[1][name]) > 1
    ]


def _plug_ins(answers: Answers, provenance: Sources) -> dict[str, set[str]]:
    """Methods of other packages among the answers, even as part of a chain: name -> package and code."""
    found: dict[str, set[str]] = {}
    for label, key in {(r.method, r.provenance) for r in answers.records}:
        for name, package in (provenance[key].get("plug_ins") or {}).items():
            if re.search(rf"\b{re.escape(name)}\b", label):
                found.setdefault(name, set()).add(package)
    return found


def _on_questions(pair: Pair, provenance: Sources, records: Iterable[Record]) -> list[str]:
    """Notes if the questions of a pair are outdated, or not all of its benchmark."""
    seen = last_seen(provenance)
    last = max(pair.sources, key=lambda key: seen[key])
    others = {key for key, entry in provenance.items() if _changed(entry, provenance[last])}
    later = [key for key in others if seen[key] > seen[last] and _of(provenance[key], "name") == pair.benchmark]
    if later or others.intersection(pair.sources):
        return [
            f"The questions of {pair.benchmark} have changed since: answers to some that are no longer asked may count "
            "here; run both again in one command, into a new output_dir"
        ]
    known = {r.question for r in records if r.benchmark == pair.benchmark and r.provenance not in others}
    return _missing(pair, provenance, max(len(known), provenance[last].get("questions") or 0))


def _changed(entry: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the questions changed between two provenance entries; False if limits differ, as it cannot be told."""
    data = {entry.get("data"), other.get("data")}
    return len(data - {None}) > 1 and entry.get("limit") == other.get("limit")


def _of(entry: Mapping[str, Any], field: str) -> Any:
    """A field of a provenance entry's benchmark; None if it has none."""
    return (entry.get("benchmark") or {}).get(field)


def _missing(pair: Pair, provenance: Sources, known: int) -> list[str]:
    """Notes if a pair does not have all questions of its benchmark.

    known: a lower bound of their number. The number in the benchmark's configuration counts as well: if the data had
        another, nothing was answered.
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
    """The largest `limit` of the entries; None if any of them asked for all questions."""
    limits: list[int | None] = [entry.get("limit") for entry in entries]
    given = [limit for limit in limits if limit is not None]
    return max(given) if len(given) == len(limits) else None


def _command(answers: Answers, provenance: Sources, limit: int | None) -> str | None:
    """The last command of some answers, changed to ask the first `limit` questions, unsharded; None if unknown."""
    last = max((provenance[key] for key in answers.sources), key=date_of)
    words = shlex.split(last.get("command") or "")
    kept = [word for word in words if not word.startswith(("limit=", "shard."))]
    return shlex.join([*kept, *([] if limit is None else [f"limit={limit}"])]) if kept else None


def _check_questions(pair: Pair, provenance: Sources) -> None:
    """Raise ValueError, saying what to run for the rest, unless both were asked the same questions."""
    sides = zip(pair.names, (pair.one, pair.other), strict=True)
    (few, fewer), (many, more) = sorted(sides, key=lambda side: len(side[1].records))
    some, others = ({r.question for r in answers.records} for answers in (fewer, more))
    if not (different := sorted(some ^ others)):
        return
    limit = _limit(provenance[key] for key in more.sources)
    command = _command(fewer, provenance, limit) if some < others else None
    fix = f"run `{command}` to ask {few} the rest" if command else "run both in one command, into a new output_dir"
    raise ValueError(
        f"{few} on {pair.benchmark} {pair.where} was asked {len(some)} questions, but {many} {len(others)}: "
        f"{len(different)} were asked of only one, such as {different[0]!r}; {fix}"
    )


def _check_wording(pair: Pair) -> None:
    """Raise ValueError if the two were asked a question in different words, or with different targets."""
    one, other = ({r.question: r.asked for r in answers.records} for answers in (pair.one, pair.other))
    if different := [question for question in one if one[question] != other[question]]:
        raise ValueError(
            f"{pair} were asked {len(different)} questions in different words, such as {different[0]!r}: run both in "
            "one command"
        )


def _check_settings(pair: Pair, provenance: Sources, apart: Collection[str]) -> None:
    """Raise ValueError if the two differ in weights or in settings of the model or the benchmark."""
    entries = [provenance[key] for key in pair.sources]
    first, *others = map(_settings, entries)
    unlike = (name for other in others for name in first | other if first.get(name) != other.get(name))
    differ = [name for name in unlike if name not in apart]
    weights = [f"{entry.get('weights')} " for entry in entries]
    # SigLIP's weights follow the model's own if any method of the command used them
    if not all(other.startswith(weights[0]) or weights[0].startswith(other) for other in weights):
        differ.append("weights")
    if differ:
        what = ", ".join(dict.fromkeys(differ))
        raise ValueError(f"{pair} differ in {what} as well: run both in one command, into a new output_dir")


def _settings(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a provenance entry that determine answers, except weights, versions and machine."""
    flat = {name: entry.get(name) for name in ("settings", "dtype", "attention")}
    for section in ("model", "benchmark"):
        flat |= {f"{section}.{name}": value for name, value in entry.get(section, {}).items() if name not in _APART}
    return flat
