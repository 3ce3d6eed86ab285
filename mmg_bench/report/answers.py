"""Records grouped into answers: those of each cell, and of the same cell on several benchmarks."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from mmg_bench.benchmarks.reserved import ALL, AVERAGE, NO_BENCHMARK
from mmg_bench.runner.provenance import ASKED, last_date
from mmg_bench.runner.records import Record


@dataclass(frozen=True)
class Answers:
    """The answers of one method at one retention ratio, ordered by benchmark and question."""

    records: tuple[Record, ...]

    @property
    def scores(self) -> list[float]:
        return [math.nan if r.error is not None or r.score is None else r.score for r in self.records]

    @property
    def videos(self) -> list[str]:
        """Video of each record. The benchmark is part of it, as two benchmarks may use the same id."""
        return [f"{r.benchmark}/{r.video}" for r in self.records]

    @property
    def benchmarks(self) -> list[str]:
        return [r.benchmark for r in self.records]

    @property
    def sources(self) -> list[str]:
        """Keys into provenance."""
        return sorted({r.provenance for r in self.records})

    def subgroups(self, over_skills: Collection[str]) -> list[str]:
        """Group of each record that a benchmark's accuracy averages over: its skill, or one group for all questions."""
        return [r.skill if r.benchmark in over_skills else ALL for r in self.records]

    def of_skill(self, skill: str) -> Answers:
        return Answers(tuple(r for r in self.records if r.skill == skill))

    def to(self, questions: Collection[str]) -> Answers:
        return Answers(tuple(r for r in self.records if r.question in questions))


Key = tuple[str, float]
"""(method, retention ratio) of a cell."""
Cells = dict[Key, Answers]
Sources = Mapping[str, Mapping[str, Any]]
"""The content of provenance.json."""


class Label(NamedTuple):
    """What identifies a cell in tables."""

    model: str
    benchmark: str
    method: str
    retention_ratio: float
    frames: int

    @property
    def where(self) -> str:
        return f"on {self.benchmark} ({self.model}, {self.frames} frames)"

    @classmethod
    def of(cls, r: Record) -> Label:
        return cls(r.model, r.benchmark, r.method, r.retention_ratio, r.frames)


def newest(records: Iterable[Record], provenance: Sources) -> tuple[list[Record], dict[Label, str]]:
    """The newest records of each label, and a note for each label that several cells share.

    Cells share a label if the code, or a setting that no table shows, has changed: the one that answered last counts.
    If a question was reworded, the answer to its last wording counts. Raises ValueError if `provenance` lacks the key
    of a record.
    """
    cells: dict[Label, dict[str, list[Record]]] = defaultdict(dict)
    lost: set[str] = set()
    wanted: dict[str, str] = {}  # key of a cell -> when it was last asked for
    for entry in provenance.values():
        for cell in entry.get(ASKED, ()):
            wanted[cell] = max(wanted.get(cell, ""), last_date(entry))
    for r in records:
        cells[Label.of(r)].setdefault(r.cell, []).append(r)
        lost |= {r.provenance} - provenance.keys()
    if lost:
        raise ValueError(
            f"provenance.json lacks {', '.join(sorted(lost))}, which records refer to: restore it, or run again into "
            "a new output_dir"
        )
    seen = last_seen(provenance)
    kept: list[Record] = []
    notes: dict[Label, str] = {}
    for label, versions in cells.items():
        numbered = enumerate(versions.values())
        # its last date: if old code or settings are restored, their answers count again, without being asked anew
        dated = (([_date_of(r, provenance[r.provenance]) for r in v], i, v) for i, v in numbered)
        date, _, found = max((max([*dates, wanted.get(v[0].cell, "")]), i, v) for dates, i, v in dated)
        kept += {r.question: r for r in sorted(found, key=lambda r: seen[r.provenance])}.values()
        if len(versions) > 1:
            notes[label] = f"in {len(versions)} versions of its code or settings: the newest, of {date}, counts"
    return kept, notes


def _date_of(r: Record, entry: Mapping[str, Any]) -> str:
    """When a record was last asked for, according to its entry: the entry's last command may be of another version."""
    return last_date(entry) if r.cell in entry.get(ASKED, (r.cell,)) else date_of(entry)


def date_of(entry: Mapping[str, Any]) -> str:
    """When the numbers of a provenance entry were measured."""
    return str(entry.get("date"))


def last_seen(provenance: Sources) -> dict[str, str]:
    """For each entry, when its benchmark last had exactly the same questions.

    That is the last date of any entry with the same `data`: if questions are reworded and then restored, their old
    answers count again, without being asked anew.
    """
    last: dict[str, str] = {}
    data = {key: entry.get("data") or key for key, entry in provenance.items()}
    for key, entry in provenance.items():
        last[data[key]] = max(last.get(data[key], ""), last_date(entry))
    return {key: last[data[key]] for key in provenance}


def answers_by_label(records: Iterable[Record]) -> dict[Label, Answers]:
    """The answers of each label.

    Raises ValueError if two cells share a label, if a question has two records, and for names that rows reserve.
    """
    grouped: dict[Label, list[Record]] = defaultdict(list)
    for r in records:
        grouped[Label.of(r)].append(r)
    for label, members in grouped.items():
        who = f"{label.method} at retention ratio {label.retention_ratio:g} {label.where}"
        if len({r.cell for r in members}) > 1:
            raise ValueError(f"{who}: cells with different parameters share this label: give each its own label")
        if len({r.question for r in members}) < len(members):
            raise ValueError(f"{who}: a question has more than one record: pass each record once")
        if label.benchmark in (AVERAGE, NO_BENCHMARK):
            raise ValueError(f"{who}: a benchmark cannot be called {label.benchmark!r}; result rows reserve this name")
        if any(r.skill == ALL for r in members):
            raise ValueError(f"{who}: a skill cannot be called {ALL!r}; result rows reserve this name")
    return {label: Answers(tuple(sorted(members, key=lambda r: r.question))) for label, members in grouped.items()}


def answers_by_cell(records: Iterable[Record]) -> dict[tuple[str, int], dict[str, Cells]]:
    """(model, frames) -> benchmark -> (method, retention ratio) -> answers. Raises ValueError as `answers_by_label`."""
    cells: dict[tuple[str, int], dict[str, Cells]] = defaultdict(lambda: defaultdict(dict))
    found = answers_by_label(records)
    for label in sorted(found, key=lambda label: (label.model, label.frames, label)):
        cells[label.model, label.frames][label.benchmark][label.method, label.retention_ratio] = found[label]
    return cells


def over_benchmarks(by_benchmark: Mapping[str, Cells]) -> Cells:
    """The cells that ran on every benchmark, with their records joined."""
    everywhere = set.intersection(*(set(cells) for cells in by_benchmark.values()))
    return {
        key: Answers(tuple(r for cells in by_benchmark.values() for r in cells[key].records))
        for key in sorted(everywhere)
    }


def lost_questions(other: Answers, dense: Answers) -> set[tuple[str, str]]:
    """(benchmark, question) of those that dense answered better than `other`, without those that failed in either."""
    scores = {(r.benchmark, r.question): score for r, score in zip(other.records, other.scores, strict=True)}
    asked = zip(dense.records, dense.scores, strict=True)
    return {key for r, score in asked if score > scores.get(key := (r.benchmark, r.question), math.nan)}
