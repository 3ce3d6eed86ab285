"""Accuracy tables from result rows: one per model and frame count, and below it the tokens that each method needs.

With one benchmark, its skills are the columns; with several, the benchmarks are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd

from mmg_bench.benchmarks.reserved import ALL, AVERAGE, NO_BENCHMARK
from mmg_bench.report.answers import Key, Sources
from mmg_bench.report.leading import competes, leaders
from mmg_bench.report.needed import KEPT, Needed, tokens_needed
from mmg_bench.report.published import published as published_numbers
from mmg_bench.report.rows import (
    DENSE,
    FROM_BEST,
    OVER,
    ResultRow,
    as_tuples,
    headline,
    measured_over_pending,
    provenance_keys,
    prunes_inside,
)
from mmg_bench.report.table import (
    FLAG,
    NONE,
    Block,
    Column,
    Entry,
    Table,
    count_videos,
    few_rounds,
    flops_of_dense,
    frames_told,
    mean_lines,
    measured_line,
    named,
    over_skills,
    p_value,
    signed,
    table_by_ratio,
    too_few,
    unsteady,
    with_interval,
)

_MARKS = "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ"


def layout(
    rows: pd.DataFrame,
    provenance: Sources,
    published: pd.DataFrame | None = None,
    *,
    whole: Mapping[str, int] | None = None,
) -> list[Table]:
    """The tables of `rows`, one per model and number of frames. A pending row is dropped if it was also measured.

    Up to two more tables follow each: how the methods do on the questions that plain downsampling (`pooled`) loses, if
    it is among them, and the tokens they need to keep most of dense, if they were measured at enough ratios.

    provenance: the content of provenance.json; the header shows device, dtype, attention, date, commit and command of
        each key that the rows name.
    published: numbers to show beside ours, as `mmg_bench.report.published.published` returns them (the default).
    whole: benchmark -> its number of questions, if known: a table of fewer says so.

    Raises ValueError if there are no rows, or if they name a provenance key that is missing.
    """
    if rows.empty:
        raise ValueError("there are no rows to make a table from")
    published, questions = published_numbers() if published is None else published, whole or {}
    tables = []
    for (model, frames), part in measured_over_pending(rows).groupby(["model", "frames"], sort=False):
        cited = published[(published.model == model) & (published.frames == frames)]
        table = _Layout(part, provenance, cited, questions).table()
        tables += [table, *_lost_by_pooled(table.title, part), *_tokens_needed(table.title, part)]
    return tables


def leading(rows: pd.DataFrame) -> set[Key]:
    """(method, retention ratio) of all cells that cannot be distinguished from the leader at their ratio (`leaders`).

    These are the cells that keep as much, and those whose paired interval of accuracy less the leader's contains 0.
    """
    main = [row for row in as_tuples(headline(rows)) if row.method != DENSE]

    def of(metric: str) -> dict[Key, ResultRow]:
        return {(row.method, row.retention_ratio): row for row in main if row.metric == metric}

    kept = {key: row.value for key, row in of("accuracy_kept_percent").items()}
    seen = {key: row.value for key, row in of("retention_layer_mean").items()}
    best = {ratio: kept[leader] for ratio, leader in leaders(kept, seen).items()}
    near = {key for key, row in of(FROM_BEST).items() if row.ci_high >= 0}
    return {k for k, value in kept.items() if competes(k, seen.get(k)) and (k in near or value == best.get(k[1]))}


class _Notes:
    """Footnotes, each with a mark that the table's entries refer to."""

    def __init__(self) -> None:
        self.sources: dict[str, str] = {}
        self.flags: list[str] = []

    def mark(self, text: str) -> str:
        repeat, index = divmod(len(self.sources), len(_MARKS))
        return self.sources.setdefault(text, _MARKS[index] * (repeat + 1))

    @property
    def lines(self) -> tuple[str, ...]:
        return (*(f"{mark} {text}" for text, mark in self.sources.items()), *(f"{FLAG} {f}" for f in self.flags))


class _Layout:
    """Makes the table of one model and number of frames."""

    def __init__(
        self,
        rows: pd.DataFrame,
        provenance: Sources,
        published: pd.DataFrame,
        questions: Mapping[str, int],
    ):
        self.rows, self.provenance, self.published, self.questions = rows, provenance, published, questions
        self.notes = _Notes()
        self.by_key = {(r.benchmark, r.skill, r.method, r.retention_ratio, r.metric): r for r in as_tuples(rows)}
        self.benchmarks = [b for b in rows.benchmark.unique() if b not in (AVERAGE, NO_BENCHMARK)]
        main = headline(rows)
        self.main = str(main.benchmark.iloc[0]) if len(main) else NO_BENCHMARK
        self.skills = [s for s in rows.skill.unique() if s != ALL] if len(self.benchmarks) == 1 else []
        if len(self.skills) < 2:  # a single skill would repeat the whole benchmark
            self.skills = []
        self.prunes_inside = prunes_inside(rows)
        metrics = rows.metric.unique()
        self.covered = "coverage_percent" in metrics
        self.others = {m: m.removeprefix(OVER) for m in metrics if m.startswith(OVER)}
        """Metric -> label, for each metric that compares with a method other than dense."""
        self.cells = list(dict.fromkeys(zip(rows.method, rows.retention_ratio, strict=True)))
        accuracy = rows[(rows.metric == "accuracy") & (rows.source != "pending")]
        whole = (self.by_key.get((b, ALL, DENSE, 1.0, "accuracy")) for b in self.benchmarks)
        self.whole = [row for row in whole if row is not None]
        """Dense on each benchmark."""
        self.no_mean = set(accuracy[(accuracy.skill == ALL) & accuracy.value.isna() & (accuracy.n > 0)].benchmark)
        """Benchmarks with answers but no accuracy: it is a mean over skills, and one skill has no answer."""
        lacking = accuracy[accuracy.benchmark.isin(self.no_mean) & (accuracy.skill != ALL) & accuracy.value.isna()]
        for benchmark, part in lacking.groupby("benchmark", sort=False):
            skills = ", ".join(part.skill.unique())
            self.notes.flags.append(f"{benchmark}: no mean over the skills, because every question of {skills} failed")
        for row in self.whole:
            if row.value == 0:
                self.notes.flags.append(
                    f"{row.benchmark}: dense answers no question right, so there is nothing to keep. Read its answers "
                    "(`mmg-bench browse`): the weights are wrong, or answers are not in the format that the task scores"
                )
        self.notes.flags += unsteady(self._row("prefill_ms", DENSE, 1.0, *self.benchmarks)) + few_rounds(rows)

    @property
    def frames(self) -> str:
        """How many frames of a video were shown, in words."""
        known = [self.provenance[key] for key in provenance_keys(self.rows) if key in self.provenance]
        return frames_told(int(self.rows.iloc[0]["frames"]), known)

    def table(self) -> Table:
        first = self.rows.iloc[0]
        names = ", ".join(self.benchmarks) or "no benchmark"
        title = f"{first['table']}: {first['model']}, {names}, {self.frames}"
        if parts := [row.n + row.n_errors for row in self.whole if self._first(row)]:
            title += f", only the first {max(parts)} questions{' of each' if len(self.benchmarks) > 1 else ''}"
        columns = self._columns()  # this also fills the notes
        return table_by_ratio(title, self._header(), self.cells, columns, self.notes.lines)

    def _columns(self) -> list[Column]:
        scores = [(skill, self.benchmarks[0], skill) for skill in self.skills]
        if len(self.benchmarks) == 1:
            scores.append(("All" if self.skills else self.benchmarks[0], self.benchmarks[0], ALL))
        elif self.benchmarks:
            scores += [*((b, b, ALL) for b in self.benchmarks), ("Avg.", AVERAGE, ALL)]
        columns: list[Column] = [
            (name, {cell: Entry(self._score(benchmark, skill, *cell)) for cell in self.cells})
            for name, benchmark, skill in scores
        ]
        lead = leading(self.rows)
        columns.append(("Kept % [95 % CI]", {cell: Entry(self._kept(*cell), cell in lead) for cell in self.cells}))
        over = [(f"Over {label} [95 % CI]", partial(self._over, metric)) for metric, label in self.others.items()]
        texts: Sequence[tuple[str, Callable[[str, float], str]]] = (
            ("Lost / won", self._flips),
            ("p (McNemar)", self._p),
            *over,
            ("Tokens", self._tokens),
            *([("Layer mean", self._layer_mean)] if self.prunes_inside else []),
            *([("Covered", self._covered)] if self.covered else []),
            ("FLOPs (of dense)", self._flops),
            ("Prefill speed-up [95 % CI]", self._speedup),
            *([("Errors", self._errors)] if (self.rows.n_errors > 0).any() else []),
        )
        return columns + [(name, {cell: Entry(text(*cell)) for cell in self.cells}) for name, text in texts]

    def _row(self, metric: str, method: str, ratio: float, *others: str) -> ResultRow | None:
        """The row of a metric on the main benchmark, else on no benchmark or one of `others`; None without a value."""
        for benchmark in (self.main, NO_BENCHMARK, *others):
            row = self.by_key.get((benchmark, ALL, method, ratio, metric))
            if row is not None and math.isfinite(row.value):
                return row
        return None

    def _score(self, benchmark: str, skill: str, method: str, ratio: float) -> str:
        row = self.by_key.get((benchmark, skill, method, ratio, "accuracy"))
        cited = self._published(benchmark, method, ratio) if skill == ALL else ""
        if row is None or not math.isfinite(row.value):
            pending = row is not None and row.source == "pending"
            return f"{'pending' if pending else self._none(row)}{cited}"
        flag = f" {FLAG}" if skill == ALL and method == DENSE and self._differs(row) else ""
        return f"{row.value:.1f}{flag}{cited}"

    def _none(self, whole: ResultRow | None) -> str:
        """The text in place of an accuracy that `whole` lacks."""
        return FLAG if whole is not None and whole.n and whole.benchmark in self.no_mean else NONE

    def _published(self, benchmark: str, method: str, ratio: float) -> str:
        """The published numbers of a cell in parentheses, each with the marks of its sources; may be empty."""
        found = self._published_rows(benchmark, method, ratio)
        texts = []
        for score, same in found.groupby("score", sort=False):
            notes = [f"{s} ({n})" if n else s for s, n in zip(same.source, same.note, strict=True)]
            texts.append(f"{score:.1f}{''.join(self.notes.mark(n) for n in notes)}")
        return f" ({', '.join(texts)})" if texts else ""

    def _published_rows(self, benchmark: str, method: str, ratio: float) -> pd.DataFrame:
        p = self.published
        return p[(p.benchmark == benchmark) & (p.method == method) & np.isclose(p.retention, ratio)]

    def _differs(self, row: ResultRow) -> bool:
        """Whether a dense accuracy contradicts a published one; if so, adds a footnote."""
        found = self._published_rows(row.benchmark, row.method, row.retention_ratio)
        outside = found[(found.score < row.ci_low) | (found.score > row.ci_high)]
        for score, source in zip(outside.score, outside.source, strict=True):
            self.notes.flags.append(
                f"{row.benchmark}: dense scores {row.value:.1f} [{row.ci_low:.1f}, {row.ci_high:.1f}] here, but "
                f"{score:.1f} in {source}: the difference is larger than the 95 % interval"
            )
        return len(outside) > 0

    def _kept(self, method: str, ratio: float) -> str:
        cited = self._published("average_retention_percent", method, ratio) if self.main == AVERAGE else ""
        row = self._row("accuracy_kept_percent", method, ratio)
        if row is None:
            return self._none(self.by_key.get((self.main, ALL, method, ratio, "accuracy"))) + cited
        return (f"{row.value:.1f}" if method == DENSE else with_interval(row, 1)) + cited

    def _flips(self, method: str, ratio: float) -> str:
        lost, won = (self._row(f"flips_{which}", method, ratio) for which in ("lost", "won"))
        return NONE if lost is None or won is None or method == DENSE else f"{lost.value:.0f} / {won.value:.0f}"

    def _p(self, method: str, ratio: float) -> str:
        row = self._row("p_mcnemar", method, ratio)
        if row is None or method == DENSE:
            return NONE
        return p_value(row.value)

    def _over(self, metric: str, method: str, ratio: float) -> str:
        row = self._row(metric, method, ratio)
        return NONE if row is None else signed(row.value, row.ci_low, row.ci_high)

    def _tokens(self, method: str, ratio: float) -> str:
        here = self.rows[(self.rows.method == method) & (self.rows.retention_ratio == ratio)]
        known = here[here.benchmark.isin((self.main, NO_BENCHMARK))].realised_tokens.dropna()
        return f"{known.iloc[0]:.1f}".removesuffix(".0") if len(known) else NONE

    def _layer_mean(self, method: str, ratio: float) -> str:
        row = self._row("retention_layer_mean", method, ratio)
        return NONE if row is None else f"{100 * row.value:.1f} %"

    def _covered(self, method: str, ratio: float) -> str:
        row = self._row("coverage_percent", method, ratio)
        return NONE if row is None else f"{row.value:.1f} %"

    def _flops(self, method: str, ratio: float) -> str:
        return flops_of_dense(self._row("flops_gqa", method, ratio), self._row("flops_gqa", DENSE, 1.0))

    def _speedup(self, method: str, ratio: float) -> str:
        cited = self._published("prefill_speedup", method, ratio)
        row = self._row("prefill_speedup", method, ratio, *self.benchmarks)
        if row is None:
            return NONE + cited
        return ("1×" if method == DENSE else with_interval(row, 2, "×")) + cited

    def _errors(self, method: str, ratio: float) -> str:
        row = self.by_key.get((self.main, ALL, method, ratio, "accuracy"))
        return NONE if row is None or row.source == "pending" else f"{row.n_errors} of {row.n + row.n_errors}"

    def _first(self, row: ResultRow) -> bool:
        """Whether a row covers only the first questions of its benchmark."""
        return row.source != "pending" and row.n + row.n_errors < self.questions.get(row.benchmark, 0)

    def _asked(self, row: ResultRow) -> str:
        """How many questions a row covers, in words; empty if it is pending."""
        if row.source == "pending":
            return ""
        count, videos = row.n + row.n_errors, self._videos(row)
        of = f"first {count} of {self.questions[row.benchmark]}" if self._first(row) else count
        return f" ({of} questions{f' on {count_videos(videos)}' if videos else ''})"

    def _videos(self, row: ResultRow) -> int:
        """How many videos the questions of dense are about; 0 if the rows do not say."""
        videos = self.by_key.get((row.benchmark, ALL, DENSE, 1.0, "videos"))
        return 0 if videos is None else int(videos.value)

    def _header(self) -> tuple[str, ...]:
        weights = ", ".join(self.rows.weights.unique())
        counts = [f"{row.benchmark}{self._asked(row)}" for row in self.whole]
        first = self.rows.iloc[0]
        lines = [f"Model: {first['model']}, weights: {weights}; {self.frames}; {', '.join(counts)}"]
        keys = provenance_keys(self.rows)
        lines += [measured_line(key, self.provenance) for key in keys]
        lines += [few for row in self.whole for few in too_few(row.benchmark, self._videos(row))]
        if self.benchmarks:
            compared = (self.rows.metric == FROM_BEST).any()
            level = ", and those whose paired difference from it has 0 in its interval" if compared else ""
            lines += [
                "Accuracy: percent of the answered questions. Kept: percent of dense's accuracy, with a 95 % interval "
                "paired with dense, from a bootstrap over videos. Bold: the best of each block among methods (no "
                f"controls) whose layers see at most R on average{level}",
                "Lost / won: questions that dense answered better / worse than the method; p: McNemar's test",
            ]
        if self.others:
            lines.append("Over ...: accuracy less that method's at the same ratio, in points, with a paired interval")
        lines += mean_lines([name for name in over_skills(self.provenance) if name in self.benchmarks])
        if self.prunes_inside:
            lines.append(
                "Tokens: visual tokens that enter layer 0. Layer mean: the share of visual tokens that a layer sees, "
                "averaged over the layers"
            )
        if self.covered:
            lines.append(
                "Covered: the share of the video's tokens that resemble one that enters layer 0 (cosine of 0.9 or more)"
            )
        if self._row("flops_gqa", DENSE, 1.0) is not None:
            lines.append("FLOPs: multiply-adds of the language model's prefill over visual tokens (`flops_gqa`)")
        timed = self._row("prefill_speedup", DENSE, 1.0, *self.benchmarks)
        if timed is not None:
            where = "" if timed.benchmark in (self.main, NO_BENCHMARK) else f", on {timed.benchmark}"
            lines.append(
                f"Prefill speed-up: dense's prefill time over that of pruning + prefill, {timed.n} rounds{where}"
            )
        if len(self.published):
            lines.append("In parentheses: published numbers")
        return tuple(lines)


def _lost_by_pooled(title: str, rows: pd.DataFrame) -> list[Table]:
    """A table titled after `title`: accuracy on the questions that plain downsampling loses; none without such rows."""
    main = headline(rows)
    main = main[main.metric == "accuracy_lost_by_pooled"]
    if main.empty:
        return []
    found = {(row.method, row.retention_ratio): row for row in as_tuples(main)}
    asked: dict[float, int] = {}
    for row in sorted(found.values(), key=lambda row: -row.retention_ratio):
        asked[row.retention_ratio] = max(asked.get(row.retention_ratio, 0), row.n + row.n_errors)

    def entry(method: str, ratio: float) -> Entry:
        row = found.get((method, ratio))
        return Entry(with_interval(row, 1) if row is not None and math.isfinite(row.value) else NONE)

    lines = tuple((Entry(named(m)), *(entry(m, ratio) for ratio in asked)) for m in dict.fromkeys(m for m, _ in found))
    header = (
        "Accuracy in percent, with its 95 % interval, on the questions that dense answers better than pooled at this "
        "R: those that plain downsampling loses (VTC-Bench, arXiv 2510.07143)",
        "Of right and wrong answers dense has 100 there and pooled 0, by construction; several benchmarks: their mean",
    )
    names = ("Method", *(f"R = {100 * ratio:.4g} % ({count} questions)" for ratio, count in asked.items()))
    return [Table(f"{title}: questions lost by pooled", header, names, (Block("", lines),), ())]


def _tokens_needed(title: str, rows: pd.DataFrame) -> list[Table]:
    """A table titled after `title`: the tokens that methods need to keep most of dense; none with too few ratios."""
    found = tokens_needed(rows)
    if not found:
        return []

    def entry(needed: Needed) -> Entry:
        share, low, high = 100 * needed.share, 100 * needed.low, 100 * needed.high
        interval = f" [{low:.1f}, {high:.1f}]" if high > low else ""
        return Entry(f"{needed.bound} {share:.1f} %{interval}".lstrip())

    lines = tuple((Entry(named(method)), *map(entry, each)) for method, each in found.items())
    header = (
        "The layer mean (average share of visual tokens that a layer sees) at which the percentage of dense's accuracy "
        "kept first falls below the one named, interpolated linearly between the ratios above; ≤ and >: outside them",
        "In brackets: the same for the upper and the lower end of that percentage's 95 % interval",
    )
    names = ("Method", *(f"{percent:g} % kept" for percent in KEPT))
    return [Table(f"{title}: tokens needed", header, names, (Block("", lines),), ())]
