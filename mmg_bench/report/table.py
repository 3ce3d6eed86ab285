"""A laid-out table, printed as Markdown or on the terminal, and the format of its values.

The layout is the usual one of the field: dense on top, then a block for each retention ratio with one line per method.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from mmg_bench.models.spec import TOLD_IF_SET
from mmg_bench.report.answers import Key, Sources
from mmg_bench.report.leading import is_control
from mmg_bench.report.rows import DENSE, ResultRow
from mmg_bench.runner.provenance import last_date

if TYPE_CHECKING:
    import pandas as pd

STEADY = 1.5
"""Largest ratio of the 95th to the 5th percentile of dense's own prefill at which times are trusted."""
FEW_VIDEOS = 20
"""With fewer videos, the percentiles of a bootstrap over videos lie too close together."""
FEW_ROUNDS = 10
"""With fewer rounds, the 5th and 95th percentile are almost the minimum and the maximum."""
NONE = "–"
FLAG = "⚠"


@dataclass(frozen=True)
class Entry:
    """The text of a line in a column."""

    text: str
    bold: bool = False


Column = tuple[str, Mapping[Key, Entry]]
"""A column's name, which need not be unique (a skill may be called `Tokens`), and its entries."""


@dataclass(frozen=True)
class Block:
    """Lines of one retention ratio. The title of the first block, dense, is empty."""

    title: str
    lines: tuple[tuple[Entry, ...], ...]


@dataclass(frozen=True)
class Table:
    """A laid-out table, for Markdown and the terminal."""

    title: str
    header: tuple[str, ...]
    """What was measured, on what, and how to reproduce it; one line each."""
    columns: tuple[str, ...]
    blocks: tuple[Block, ...]
    footnotes: tuple[str, ...]


def named(method: str) -> str:
    """The name in tables of the method of a label."""
    return f"{method} (control)" if is_control(method) else method


def table_by_ratio(
    title: str, header: tuple[str, ...], cells: Sequence[Key], columns: Iterable[Column], footnotes: tuple[str, ...]
) -> Table:
    """The table of `cells`, one line each: dense on top, then a block for each ratio.

    columns: the columns after that of the methods' names. Columns without any value are left out.
    """

    def block(cell: Key) -> float:
        return math.inf if cell[0] == DENSE else cell[1]

    names = {cell: Entry(named(cell[0])) for cell in cells}
    filled = [(name, column) for name, column in columns if any(e.text != NONE for e in column.values())]
    shown = [("Method", names), *filled]
    blocks = []
    for ratio, found in groupby(sorted(cells, key=block, reverse=True), key=block):
        lines = tuple(tuple(column[cell] for _, column in shown) for cell in found)
        blocks.append(Block("" if ratio == math.inf else f"R = {100 * ratio:.4g} %", lines))
    return Table(title, header, tuple(name for name, _ in shown), tuple(blocks), footnotes)


def to_markdown(tables: Sequence[Table]) -> str:
    """The tables as one Markdown document."""
    return "\n\n".join(_markdown(t) for t in tables) + "\n"


def print_tables(tables: Sequence[Table]) -> None:
    """Print the tables on the terminal."""
    import rich.table
    from rich.console import Console
    from rich.text import Text

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # as print does; Rich would exit with 1, which means failed answers here

    # a log is not a terminal: wrapping to a terminal's width would not help there
    console = Terminal(width=None if sys.stdout.isatty() else 200)
    for table in tables:
        grid = rich.table.Table(title=Text(table.title), title_justify="left")
        for i, column in enumerate(table.columns):
            grid.add_column(Text(column), justify="right" if i else "left")
        for block in table.blocks:
            if block.title:
                grid.add_row(Text(block.title, style="bold"))
            for line in block.lines:
                grid.add_row(*(Text(e.text, style="bold" if e.bold else "") for e in line))
            grid.add_section()
        console.print(grid)
        for note in (*table.header, *table.footnotes):
            console.print(Text(note))


def _markdown(table: Table) -> str:
    def line(texts: Sequence[str]) -> str:
        return "| " + " | ".join(t.replace("|", r"\|") for t in texts) + " |"

    body = [line(table.columns), "|:--" + "|--:" * (len(table.columns) - 1) + "|"]
    for block in table.blocks:
        if block.title:
            body.append(line([f"**{block.title}**"] + [""] * (len(table.columns) - 1)))
        body += [line([f"**{e.text}**" if e.bold else e.text for e in entries]) for entries in block.lines]
    parts = [f"## {table.title}", "\n".join(f"- {h}" for h in table.header), "\n".join(body)]
    if table.footnotes:
        parts.append("\n".join(f"- {n}" for n in table.footnotes))
    return "\n\n".join(parts)


def three_digits(value: float) -> str:
    """A number with three significant digits, or all digits before the point if there are more."""
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def unsteady(dense: ResultRow | None) -> list[str]:
    """A warning line if dense's prefill varied too much for its speed-ups to be trusted."""
    if dense is None or not dense.ci_high > STEADY * dense.ci_low:
        return []
    return [
        f"dense's own prefill took from {three_digits(dense.ci_low)} to {three_digits(dense.ci_high)} ms (5th to 95th "
        "percentile): the machine was busy with other work, so do not trust the speed-ups here"
    ]


def few_rounds(rows: pd.DataFrame) -> list[str]:
    """A warning line if intervals of speed-ups rest on too few rounds to mean anything."""
    speedups = rows.metric.str.endswith("_speedup") & (rows.method != DENSE)
    shown = rows[speedups & rows.ci_low.notna()]
    if shown.empty or (rounds := int(shown.n.min())) >= FEW_ROUNDS:
        return []
    return [
        f"only {rounds} rounds: below {FEW_ROUNDS}, intervals of speed-ups and percentiles of times in rows.csv mean "
        "little; set measure.repeats higher (20 is usual)"
    ]


def count_videos(videos: int) -> str:
    """The number of videos, in words."""
    return f"{videos} video{'s' * (videos != 1)}"


def too_few(benchmark: str, videos: int) -> list[str]:
    """A warning line if a benchmark has so few videos that intervals over them are too narrow; 0 means unknown."""
    if not 0 < videos < FEW_VIDEOS:
        return []
    return [f"Intervals on {benchmark} are too narrow: they rest on {count_videos(videos)}, fewer than {FEW_VIDEOS}"]


_USUAL = {"engine": "stock", "sdpa": "auto"}
"""Latency settings that are shown if not at these defaults, which are those of `LatencySettings`, without torch."""


def measured_line(key: str, provenance: Sources) -> str:
    """How the rows of a provenance key were measured. Raises ValueError for a key that is missing."""
    if key not in provenance:
        raise ValueError(f"the rows refer to provenance {key!r}, which provenance.json lacks: write both again")
    facts = provenance[key]
    settings = {**(facts["model"] if isinstance(facts.get("model"), Mapping) else {}), **facts}
    known = [str(settings[f]) for f in ("device", "dtype", "attention", "date") if settings.get(f)]
    known += [f"{name}={settings[name]}" for name in TOLD_IF_SET if settings.get(name)]
    latency = facts.get("latency") or {}
    known += [f"measure.{o}={latency[o]}" for o, usual in _USUAL.items() if latency.get(o, usual) != usual]
    known += [f"commit {facts['commit']}"] if facts.get("commit") else []
    known += [f"{name} of {package}" for name, package in (facts.get("plug_ins") or {}).items()]
    again = f"; reproduce with `{facts['command']}`" if facts.get("command") else ""
    return f"Measured ({key}): {', '.join(known) or 'nothing recorded'}{again}"


def frames_told(frames: int, entries: Iterable[Mapping[str, Any]]) -> str:
    """How many frames of a video were shown, in words, by the provenance entries: a fixed number, or a maximum."""
    models = (entry.get("model") for entry in entries)
    rates = {fps for model in models if isinstance(model, Mapping) and (fps := model.get("fps"))}
    if not rates:
        return f"{frames} frames"
    return f"{' or '.join(f'{fps:g}' for fps in sorted(rates))} frames a second, {frames} at most"


def last_of_benchmarks(provenance: Sources) -> dict[str, str]:
    """Benchmark -> key of the entry whose command was run last: it decides how accuracy is averaged for all answers."""
    last: dict[str, str] = {}
    for key, entry in sorted(provenance.items(), key=lambda item: last_date(item[1])):
        if isinstance(benchmark := entry.get("benchmark"), Mapping):
            last[str(benchmark.get("name"))] = key
    return last


def over_skills(provenance: Sources) -> list[str]:
    """Benchmarks whose accuracy is the mean over their skills, according to their last command."""
    last = last_of_benchmarks(provenance).items()
    return [name for name, key in last if provenance[key]["benchmark"].get("average") == "skills"]


def mean_lines(benchmarks: Sequence[str]) -> list[str]:
    """A header line on benchmarks whose accuracy is the mean over their skills, if there are any."""
    if not benchmarks:
        return []
    return [f"Accuracy on {', '.join(benchmarks)}: the mean over the skills, as in the benchmark's own scoring"]


def p_value(p: float) -> str:
    """A p-value as tables show it."""
    if math.isnan(p):
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def with_interval(row: ResultRow, digits: int, unit: str = "") -> str:
    """A row's value, and its interval if it has one."""
    interval = f" [{row.ci_low:.{digits}f}, {row.ci_high:.{digits}f}]" if math.isfinite(row.ci_low) else ""
    return f"{row.value:.{digits}f}{unit}{interval}"


def signed(value: float, low: float, high: float) -> str:
    """A difference with its sign, and its interval if it has one."""
    interval = f" [{low:+.1f}, {high:+.1f}]" if math.isfinite(low) else ""
    return f"{value:+.1f}{interval}"


def with_unit(value: float, scale: float) -> str:
    """`value` in the SI unit that suits `scale`, so that a whole column has one unit."""
    power = min(12, max(0, 3 * int(math.log10(scale) // 3))) if scale > 0 else 0
    unit = {12: " T", 9: " G", 6: " M", 3: " k", 0: ""}[power]
    return f"{value / 10**power:.2f}{unit}"


def flops_of_dense(row: ResultRow | None, dense: ResultRow | None) -> str:
    """A row's FLOPs in the unit that suits dense, and their share of dense's, if known."""
    if row is None:
        return NONE
    share = f" ({100 * row.value / dense.value:.1f} %)" if dense is not None and row.method != DENSE else ""
    return with_unit(row.value, scale=row.value if dense is None else dense.value) + share
