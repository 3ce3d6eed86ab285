"""One self-contained HTML page: every question of a run with each method's answer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from mmg_bench.report.answers import Sources
from mmg_bench.report.rows import DENSE
from mmg_bench.report.table import frames_told, measured_line, named, over_skills
from mmg_bench.runner.records import Record

_DATA = "{{data}}"
"""Placeholder of the data in the template."""


@dataclass(frozen=True)
class Asked:
    """The parts of a question that records do not hold."""

    prompt: str
    video: str | None
    """Address of the video relative to the page; None if it cannot be shown."""
    pictures: Sequence[str] = ()
    """For a video that is a folder of pictures: addresses, relative to it, of those to show."""


def page(
    title: str,
    records: Iterable[Record],
    provenance: Sources,
    asked: Mapping[tuple[str, str], Asked],
    notes: Sequence[str] = (),
) -> str:
    """The page as text.

    records: one per cell and question. Cells need not have answered everything: missing answers are left blank.
    provenance: the content of provenance.json.
    asked: (benchmark, question) -> what it asks, if known.
    """
    groups: dict[tuple[str, str, int], list[Record]] = {}
    for r in records:
        groups.setdefault((r.model, r.benchmark, r.frames), []).append(r)
    parts = [_part(*key, members, provenance, asked) for key, members in groups.items()]
    text = json.dumps({"title": title, "notes": list(notes), "parts": parts}, ensure_ascii=False)
    template = (files("mmg_bench.report") / "browse.html").read_text(encoding="utf-8")
    return template.replace(_DATA, text.replace("<", r"\u003c"))  # an answer may contain tags


def _part(
    model: str,
    benchmark: str,
    frames: int,
    records: Sequence[Record],
    provenance: Sources,
    asked: Mapping[tuple[str, str], Asked],
) -> dict[str, Any]:
    """One model's answers to one benchmark, in the form that the page's script reads."""
    cells = list(dict.fromkeys((r.method, r.retention_ratio) for r in records))
    cells.sort(key=lambda cell: (cell[0] != DENSE, -cell[1]))  # within a ratio, in the command's order
    columns = {cell: number for number, cell in enumerate(cells)}
    dense = {r.question: r for r in records if r.method == DENSE}
    texts: dict[str, int] = {}
    rows: dict[str, dict[str, Any]] = {}
    for r in records:
        row = rows.setdefault(r.question, _row(r, asked.get((benchmark, r.question)), len(cells)))
        said = texts.setdefault((r.prediction if r.error is None else r.error) or "", len(texts))
        row["answers"][columns[r.method, r.retention_ratio]] = [_kind(r, dense.get(r.question)), r.score, said]
    _name(list(rows.values()))
    entries = [provenance[key] for key in {r.provenance for r in records}]
    return {
        "title": f"{model}, {benchmark}, {frames_told(frames, entries)}",
        "by_skill": benchmark in over_skills(provenance),
        "measured": [measured_line(key, provenance) for key in dict.fromkeys(r.provenance for r in records)],
        "cells": [[named(m), ratio] for m, ratio in cells],
        "texts": list(texts),
        "questions": list(rows.values()),
    }


def _name(rows: Sequence[dict[str, Any]]) -> None:
    """Give each question a line to recognise it by: the first of its prompt that at most half of the questions share.

    If there is none, it is the first line of the prompt, or else the video's id.
    """
    lines = [[line for line in (row["prompt"] or "").splitlines() if line.strip()] for row in rows]
    common = Counter(line for found in lines for line in set(found))
    for row, found in zip(rows, lines, strict=True):
        own = [line for line in found if 2 * common[line] <= len(rows)]
        row["line"] = next(iter([*own, *found, row["video"]]))


def _kind(r: Record, dense: Record | None) -> str:
    """The kind of an answer: `failed`; `lost` or `won` against dense; `right` or `wrong` if equal or without dense."""
    if r.score is None:
        return "failed"
    if dense is not None and dense.score is not None and dense.score != r.score:
        return "lost" if r.score < dense.score else "won"
    return "right" if r.score == 1 else "wrong"


def _row(r: Record, asked: Asked | None, cells: int) -> dict[str, Any]:
    """A question without any answers yet; an answer is `[kind, score, number of its text]`."""
    return {
        "id": r.question,
        "skill": r.skill,
        "video": r.video,
        "target": r.target,
        "prompt": None if asked is None else asked.prompt,
        "address": None if asked is None else asked.video,
        **({"pictures": asked.pictures} if asked is not None and asked.pictures else {}),
        "answers": [None] * cells,
    }
