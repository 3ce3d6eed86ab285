"""The tables of docs/published.md, made from results/paper/published.csv."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from mmg_bench.report.published import published

PAGE = Path(__file__).resolve().parents[2] / "docs" / "published.md"
NUMBERS = "<!-- numbers:begin -->", "<!-- numbers:end -->"
SPREAD = "<!-- spread:begin -->", "<!-- spread:end -->"
BENCHMARKS = {"mvbench": "MVBench", "longvideobench": "LongVideoBench", "mlvu": "MLVU", "videomme": "Video-MME"}
CELL = ["model", "frames", "method", "retention"]
AT_LEAST = 1.0
"""Points of accuracy between two papers from which a line of the second table is shown."""


def numbers() -> str:
    """A table per model and number of frames: methods at every retention ratio, one line for each source."""
    scores = _scores()
    sources = {source: number for number, source in enumerate(dict.fromkeys(scores.source), 1)}
    parts = []
    for (model, frames), part in scores.groupby(["model", "frames"], sort=False):
        dense = part[part.method == "dense"].set_index(["paper", "benchmark"]).score
        lines = [
            f"### {model}, {frames} frames",
            "",
            f"| method | R | {' | '.join(BENCHMARKS.values())} | source |",
            f"|:--|--:|{'--:|' * len(BENCHMARKS)}--:|",
        ]
        ordered = part.assign(rank=-part.retention).sort_values(["rank", "method"], kind="stable")
        for (_, method, ratio, source), line in ordered.groupby(["rank", "method", "retention", "source"], sort=False):
            of = line.set_index("benchmark").score
            paper = line.paper.iloc[0]
            texts = [_text(of.get(b, math.nan), dense.get((paper, b), math.nan), method) for b in BENCHMARKS]
            lines.append(f"| {method} | {100 * ratio:g} % | {' | '.join(texts)} | {sources[source]} |")
        parts.append("\n".join(lines))
    notes = scores.groupby("source", sort=False).note.unique()
    listed = [f"{number}. {source}{_noted(notes[source])}" for source, number in sources.items()]
    return "\n\n".join([*parts, "### Sources", "\n".join(listed)])


def spread() -> str:
    """Cells that several papers report, `AT_LEAST` points or more apart, the widest first."""
    cells = _scores().groupby([*CELL, "benchmark"], sort=False)
    found = cells.agg(low=("score", "min"), high=("score", "max"), papers=("paper", "nunique")).reset_index()
    found = found.assign(apart=(found.high - found.low).round(1))
    found = found[(found.apart >= AT_LEAST) & (found.papers > 1)]
    found = found.sort_values("apart", ascending=False, kind="stable")
    lines = ["| model | method | R | benchmark | lowest | highest | apart |", "|:--|:--|--:|:--|--:|--:|--:|"]
    for row in found.itertuples():
        where = f"{row.model}, {row.frames} frames | {row.method} | {100 * row.retention:g} %"
        lines.append(f"| {where} | {BENCHMARKS[row.benchmark]} | {row.low:.1f} | {row.high:.1f} | {row.apart:.1f} |")
    return "\n".join(lines)


def _scores() -> pd.DataFrame:
    table = published()
    scores = table[table.benchmark.isin(list(BENCHMARKS))]
    return scores.assign(paper=scores.source.str.replace(r" Table \w+$", "", regex=True))


def _text(score: float, dense: float, method: str) -> str:
    if math.isnan(score):
        return "–"
    kept = "" if math.isnan(dense) or method == "dense" else f" ({100 * score / dense:.1f} %)"
    return f"{score:.1f}{kept}"


def _noted(notes: list[str]) -> str:
    known = [note for note in notes if note]
    return f" ({'; '.join(known)})" if known else ""
