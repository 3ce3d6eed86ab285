"""Figures from result rows: what pruning costs in accuracy, and what it saves in time."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mmg_bench.benchmarks.reserved import ALL, AVERAGE, NO_BENCHMARK
from mmg_bench.options import check_number, check_text
from mmg_bench.report.labels import label_among, label_meant
from mmg_bench.report.leading import WITHIN, is_control
from mmg_bench.report.needed import KEPT, RATIOS, tokens_needed
from mmg_bench.report.rows import DENSE, OVER, headline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart, without yellow, which is faint on white
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "osD^vP*X"
_GREY = "#777777"
_IN_A_ROW = 5
"""Maximum number of panels in a row."""


def accuracy_vs_retention(
    rows: pd.DataFrame,
    *,
    methods: Collection[str] | None = None,
    bands: Collection[str] | None = None,
    chance: float | None = None,
) -> Figure:
    """Accuracy over retention ratio: one line per method with its 95 % band, and dense as a horizontal line.

    rows: those of one model and number of frames; with several benchmarks, their average is drawn.
    methods: labels to draw, all by default. bands: those of them to draw with a band, all by default.
    chance: accuracy of guessing, in percent, drawn as a horizontal line.
    """
    accuracy = _select(rows, "accuracy")
    figure, axes = _axes()
    dense = accuracy[accuracy.method == DENSE]
    ratios = sorted({100 * r for r in accuracy.retention_ratio if r < 1})
    if len(dense):
        axes.axhspan(dense.ci_low.iloc[0], dense.ci_high.iloc[0], color="black", alpha=0.06, lw=0)
        axes.axhline(dense.value.iloc[0], color="black", lw=1.4, label=f"dense ({dense.value.iloc[0]:.1f} %)")
    styles = _styles(accuracy, methods)
    banded = styles.keys() if bands is None else _among("bands", bands, [*styles])
    for method, style in styles.items():
        line = accuracy[accuracy.method == method].sort_values("retention_ratio")
        x = 100 * line.retention_ratio
        axes.plot(x, line.value, label=method, **style)
        if method in banded:
            axes.fill_between(x, line.ci_low, line.ci_high, color=style["color"], alpha=0.1, lw=0)
    if chance is not None:
        check_number("chance", chance)
        axes.axhline(chance, color=_GREY, lw=1, ls=":", label=f"chance ({chance:.1f} %)")
    axes.set_xticks(ratios, [f"{r:g}" for r in ratios])
    axes.set_xlabel("retention ratio, %")
    axes.set_ylabel("accuracy, %")
    _finish(figure, axes, accuracy)
    return figure


def accuracy_vs_tokens(rows: pd.DataFrame, *, methods: Collection[str] | None = None) -> Figure:
    """Accuracy over the tokens that a layer sees: one panel per method with its 95 % band, all others faint behind it.

    rows: those of one model and number of frames. methods: labels that get a panel, all by default; controls come last.
    Tokens are the average over the layers, in percent of all visual tokens. This is what a method spends; it differs
    from the retention ratio if it prunes inside the language model or has its own budget. Each point is a ratio.
    """
    accuracy, seen = _select(rows, "accuracy"), _select(rows, "retention_layer_mean")
    styles = _styles(accuracy, methods)
    both = accuracy.merge(seen, on=["method", "retention_ratio"], suffixes=("", "_seen"))
    both = both.sort_values("retention_ratio").assign(share=100 * both.value_seen)
    dense, pruned = both[both.method == DENSE], both[both.method != DENSE]
    if pruned.empty:
        raise ValueError("the rows hold no method but dense: run one first")
    figure, panels = _panels(len(styles))
    for axes, (method, style) in zip(panels, styles.items(), strict=True):
        for level in dense.value:
            axes.axhline(level, color="black", lw=0.8)
        for _, line in pruned.groupby("method", sort=False):
            axes.plot(line.share, line.value, color="black", alpha=0.12, lw=0.7)
        line = pruned[pruned.method == method]
        axes.fill_between(line.share, line.ci_low, line.ci_high, color=style["color"], alpha=0.2, lw=0)
        axes.plot(line.share, line.value, **{**style, "markersize": 3.5, "lw": 1.5})
        axes.set_title(textwrap.fill(method, 34), fontsize=7, loc="left")
    _log_scale(panels[0])
    figure.supylabel("accuracy, %", fontsize=9)
    _finish_panels(figure, accuracy, "visual tokens that a layer sees on average, %")
    return figure


def accuracy_vs_speedup(
    rows: pd.DataFrame, *, methods: Collection[str] | None = None, metric: str = "prefill_speedup"
) -> Figure:
    """Accuracy over speed-up: one point per cell with its 95 % intervals; line ends are labelled with the ratio.

    rows: those of one model and number of frames. metric: which speed-up. Up and to the right is better. If labels
    would overlap, only the first is drawn.
    """
    accuracy = _select(rows, "accuracy")
    speed = rows[(rows.metric == metric) & (rows.skill == ALL)].drop_duplicates(["method", "retention_ratio"])
    both = accuracy.merge(speed, on=["method", "retention_ratio"], suffixes=("", "_speed"))
    if both.empty:
        known = [m for m in rows.metric.unique() if m.endswith("_speedup")]
        there = f"the rows have {', '.join(known)}; for others, " if known else ""
        raise ValueError(f"no cell has both accuracy and {metric}: {there}measure latency for this table first")
    figure, axes = _axes()
    dense = both[both.method == DENSE]
    if len(dense):
        axes.axhline(dense.value.iloc[0], color="black", lw=1, alpha=0.5)
        axes.plot(1, dense.value.iloc[0], "ko", label="dense")
    ends: list[tuple[float, float, float]] = []  # of all lines: speed-up, accuracy, ratio
    for method, style in _styles(both, methods).items():
        points = both[both.method == method].sort_values("value_speed")
        axes.plot(points.value_speed, points.value, label=method, **style)
        axes.errorbar(
            points.value_speed,
            points.value,
            xerr=_errors(points.value_speed, points.ci_low_speed, points.ci_high_speed),
            yerr=_errors(points.value, points.ci_low, points.ci_high),
            fmt="none",
            ecolor=style["color"],
            elinewidth=1,
            alpha=0.4,
        )
        ends += points.iloc[[0, -1]][["value_speed", "value", "retention_ratio"]].itertuples(index=False, name=None)
    axes.set_xlabel(f"{metric.removesuffix('_speedup')} speed-up over dense, ×  (labels: retention ratio, %)")
    axes.set_ylabel("accuracy, %")
    _finish(figure, axes, both)
    _label(figure, axes, ends)
    return figure


def accuracy_vs_fidelity(rows: pd.DataFrame, *, ratio: float | None = None) -> Figure:
    """Accuracy kept over what kept tokens lose of the video (quantisation error): one named point per method.

    rows: those of one model and number of frames. ratio: the smallest by default. Methods that let all tokens enter the
    language model are left out. The label of the x-axis has the rank correlation over the methods, without controls.
    """
    kept, error = _select(rows, "accuracy_kept_percent"), _select(rows, "quantisation_error")
    ratio = _ratios(sorted(set(error.retention_ratio)), None if ratio is None else [ratio])[0]
    both = kept.merge(error, on=["method", "retention_ratio"], suffixes=("", "_error"))
    both = both[both.retention_ratio == ratio].sort_values("value", ascending=False)
    both = both.assign(percent=100 * both.value_error, control=both.method.map(is_control))
    figure, axes = _axes()
    axes.axhline(100, color="black", lw=0.8)
    for control, colour in ((False, _COLOURS[0]), (True, _GREY)):
        points = both[both.control == control]
        axes.plot(points.percent, points.value, "o", ms=4, color=colour)
    main = both[~both.control]
    ranks = main.value.rank().corr(main.percent.rank())
    axes.set_xlabel(
        f"quantisation error, % of the tokens' variance (rank correlation of methods, without controls: {ranks:.2f})"
    )
    axes.set_ylabel(f"accuracy kept at R = {100 * ratio:g} %, % of dense")
    axes.set_xlim(both.percent.min() / 1.2, 1.2 * both.percent.max() * (both.percent.max() / both.percent.min()) ** 0.1)
    _log_scale(axes)
    _finish(figure, axes, both)
    figure.set_figheight(6)
    methods = [label.split("(")[0] for label in both.method]
    of_method = Counter(methods)
    names = [m if of_method[m] == 1 else label for m, label in zip(methods, both.method, strict=True)]
    _name(figure, axes, list(zip(names, both.percent, both.value, strict=True)))
    return figure


def kept_by_method(
    rows: pd.DataFrame, *, ratios: Collection[float] | None = None, highlight: Collection[str] = ()
) -> Figure:
    """Percent of dense accuracy kept: one line per method, with a point and its paired 95 % interval per ratio.

    rows: those of one model and number of frames. Methods measured at all `ratios` are drawn, the best at the smallest
    ratio on top. By default, `ratios` are the largest and the smallest below 1 in the rows. Names in `highlight` are
    bold, controls grey. A point is hollow if the cell's layers see more than its ratio of the tokens.
    """
    kept = _select(rows, "accuracy_kept_percent")
    known = {r: kept[kept.retention_ratio == r].set_index("method") for r in sorted(kept.retention_ratio.unique())}
    columns = {ratio: known[ratio] for ratio in _ratios(known, ratios)}
    first, *others = columns.values()
    order = first.value.sort_values(kind="stable")
    methods = [m for m in order.index if m != DENSE and all(m in column.index for column in others)]
    if not methods:
        raise ValueError(
            f"no method was measured at each of the ratios {_numbers(columns)}: choose others of {_numbers(known)}"
        )
    bold = _among("highlight", highlight, list(dict.fromkeys(kept.method)))
    seen = headline(rows)
    seen = seen[(seen.metric == "retention_layer_mean") & (seen.value > seen.retention_ratio + WITHIN)]
    over = set(zip(seen.method, seen.retention_ratio, strict=True))
    figure, axes = _axes()
    ends = pd.concat([column.value.loc[methods] for column in columns.values()], axis=1)
    axes.hlines(range(len(methods)), ends.min(axis=1), ends.max(axis=1), color=_GREY, alpha=0.4, lw=1)
    more = {ratio: np.array([(method, ratio) in over for method in methods]) for ratio in columns}
    _by_method(
        axes,
        methods,
        {f"R = {100 * ratio:g} %": (column.loc[methods], more[ratio]) for ratio, column in columns.items()},
        hollow="layers see more than R",
        bold=bold,
    )
    axes.axvline(100, color="black", lw=1.2, label="dense")
    axes.set_xlabel("accuracy kept, % of dense")
    _finish(figure, axes, kept, lines=len(methods))
    return figure


def needed_by_method(
    rows: pd.DataFrame, *, kept_percent: Sequence[float] = KEPT, highlight: Collection[str] = ()
) -> Figure:
    """Tokens that each method needs to keep `kept_percent` of dense's accuracy (`needed.tokens_needed`), fewest on top.

    rows: those of one model and number of frames, with methods measured at several ratios. Tokens are in percent of all
    visual tokens, averaged over the layers. Hollow points are bounds at an end of the measured range: a method needs
    fewer tokens at the left end, more at the right end. Names in `highlight` are bold, controls grey.
    """
    kept = _select(rows, "accuracy_kept_percent")
    found = tokens_needed(rows, kept_percent)
    if not found:
        raise ValueError(f"no method was measured at {RATIOS} or more retention ratios: run one at more ratios")
    bold = _among("highlight", highlight, list(found))
    methods = list(found)[::-1]
    figure, axes = _axes()
    columns = {}
    for i, percent in enumerate(kept_percent):
        points = pd.DataFrame([found[method][i] for method in methods])
        shares = 100 * points[["share", "low", "high"]].set_axis(["value", "ci_low", "ci_high"], axis=1)
        columns[f"{percent:g} % kept"] = shares, (points.bound != "").to_numpy()
    _by_method(axes, methods, columns, hollow="outside what was measured", bold=bold)
    _log_scale(axes)
    axes.set_xlabel("visual tokens that a layer sees on average, %")
    _finish(figure, axes, kept, lines=len(methods))
    return figure


def points_over(rows: pd.DataFrame, reference: str) -> Figure:
    """Accuracy gained by each method over a `reference` method: one panel per retention ratio, one line per method.

    rows: those of one model and number of frames, from a table made `against` the reference. Shows percentage points
    with their paired 95 % intervals, in the order of the rows; those whose interval contains 0 are grey.
    """
    check_text("reference", reference)
    known = [m.removeprefix(OVER) for m in rows.metric.unique() if m.startswith(OVER)]
    label = label_among(reference, known)
    if label is None:
        raise ValueError(
            f"the rows compare methods with {', '.join(known) or 'dense alone'}, not with {reference!r}: make the "
            f"table with table.against={reference!r}"
        )
    gains = _select(rows, f"{OVER}{label}")
    methods = list(dict.fromkeys(gains.method))
    ratios = sorted(gains.retention_ratio.unique(), reverse=True)
    figure, panels = _panels(len(ratios))
    for axes, ratio in zip(panels, ratios, strict=True):
        column = gains[gains.retention_ratio == ratio].set_index("method").reindex(methods)
        gained, lost = column.ci_low > 0, column.ci_high < 0
        for part, colour in ((gained, _COLOURS[0]), (lost, _COLOURS[1]), (~gained & ~lost, _GREY)):
            some, y = column[part], np.flatnonzero(part)
            errors = _errors(some.value, some.ci_low, some.ci_high)
            axes.errorbar(some.value, y, xerr=errors, fmt="o", color=colour, markersize=4, elinewidth=1.4)
        axes.axvline(0, color="black", lw=1)
        axes.set_title(f"R = {100 * ratio:g} %", fontsize=9, loc="left")
    panels[0].set_yticks(range(len(methods)), methods, fontsize=7)
    panels[0].invert_yaxis()
    columns = min(len(ratios), _IN_A_ROW)
    figure.set_size_inches(2.4 + 1.6 * columns, (0.17 * len(methods) + 0.6) * math.ceil(len(ratios) / columns) + 0.6)
    _finish_panels(figure, gains, f"points of accuracy over {label}")
    return figure


def save(figure: Figure, path: Path | str) -> list[Path]:
    """Save as both .png and .svg, whichever `path` ends in, and return both paths. Equal figures give equal files."""
    import matplotlib as mpl

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name.removesuffix(".png").removesuffix(".svg")
    files = [path.with_name(f"{name}.{kind}") for kind in ("png", "svg")]
    with mpl.rc_context({"svg.hashsalt": "mmg_bench", "svg.fonttype": "none"}):
        figure.savefig(files[0], dpi=160)
        figure.savefig(files[1], metadata={"Date": None})
    return files


def _ratios(known: Collection[float], wanted: Collection[float] | None) -> list[float]:
    """The wanted ratios, in order; by default, the smallest and the largest known ratio below 1."""
    if wanted is None:
        below = sorted(ratio for ratio in known if ratio < 1)
        if not below:
            raise ValueError("the rows hold no method at a retention ratio below 1: run one first")
        return list(dict.fromkeys((below[0], below[-1])))
    if not isinstance(wanted, Collection) or isinstance(wanted, str):
        raise ValueError(f"ratios={wanted!r}: give a list of numbers, such as [{_numbers(known)}]")
    for ratio in wanted:
        check_number("ratios", ratio)
    if len(wanted) == 0 or not set(wanted) <= set(known):
        raise ValueError(f"ratios={list(wanted)}: the rows have {_numbers(known)}; choose from these")
    return sorted(wanted)


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _numbers(ratios: Collection[float]) -> str:
    return ", ".join(f"{ratio:g}" for ratio in ratios)


def _select(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows of a metric for whole cells, one per cell, checked to be of one model and number of frames."""
    if rows.empty:
        raise ValueError("there are no rows to draw")
    for column in ("model", "weights", "frames"):
        if len(values := rows[column].unique()) > 1:
            raise ValueError(
                f"rows with several values of {column} ({_listed(values)}): choose the rows with one of them"
            )
    main = headline(rows)
    benchmarks = [b for b in rows.benchmark.unique() if b != NO_BENCHMARK]
    if main.empty and len(benchmarks) > 1:
        raise ValueError(
            f"rows of several benchmarks ({_listed(benchmarks)}) without their average: choose the rows of one"
        )
    found = main[(main.metric == metric) & main.value.notna()]
    if found.empty:
        raise ValueError(f"the rows hold no measured {metric} to draw")
    cell = ["method", "retention_ratio"]
    found = found.drop_duplicates([*cell, "value"])  # joined tables may share cells
    if len(twice := found[found.duplicated(cell)]):
        method, ratio = twice.iloc[0][cell]
        raise ValueError(f"two values of {metric} for {method} at {ratio:g}: choose the rows of one run for a figure")
    return found


def _styles(rows: pd.DataFrame, methods: Collection[str] | None) -> dict[str, dict[str, Any]]:
    """A style for each method; controls are grey and dashed. Depends on all methods of the rows, not on the choice."""
    known = [m for m in dict.fromkeys(rows.method) if m != DENSE]
    if methods is not None and not methods:
        raise ValueError(f"methods={methods!r}: give a list of labels, such as {known[:2]}")
    chosen = known if methods is None else _among("methods", methods, known)
    styles: dict[str, dict[str, Any]] = {}
    for control in (False, True):
        for i, method in enumerate(m for m in known if is_control(m) == control):
            colour, marker = _look(i)
            look: dict[str, Any] = (
                {"ls": "--", "lw": 1.0, "markersize": 4.5} if control else {"ls": "-", "lw": 1.8, "markersize": 5.5}
            )
            styles[method] = {"color": _GREY if control else colour, "marker": marker, **look}
    return {m: s for m, s in styles.items() if m in chosen}


def _among(option: str, given: Collection[str], known: Sequence[str]) -> set[str]:
    """The `known` labels that are given, as `label_among` reads them. Raises ValueError, naming the option."""
    if isinstance(given, str):
        raise ValueError(f"{option}={given!r}: give a list of labels, such as {known[:2]}")
    found = {label: label_among(label, known) for label in given}
    if unknown := sorted(label for label in found if found[label] is None):
        raise ValueError(
            f"{option}: no rows of {', '.join(unknown)}; {label_meant(unknown[0], known)}there are: {', '.join(known)}"
        )
    return {label for label in found.values() if label is not None}


def _look(i: int) -> tuple[str, str]:
    """Colour and marker of the i-th method; markers shift each round, so that no pair repeats before all are used."""
    return _COLOURS[i % len(_COLOURS)], _MARKERS[(i + i // len(_COLOURS)) % len(_MARKERS)]


def _errors(value: pd.Series, low: pd.Series, high: pd.Series) -> list[pd.Series]:
    return [(value - low).clip(lower=0), (high - value).clip(lower=0)]


def _label(figure: Figure, axes: Axes, points: Iterable[tuple[float, float, float]]) -> None:
    """Write ratios beside points `(x, y, ratio)`, in percent, leaving out those that would overlap another."""
    figure.draw_without_rendering()  # computes the layout, which gives the distances
    width, height = (size * figure.dpi / 72 for size in (14, 8))  # of a label, in pixels
    taken: list[tuple[float, float]] = []
    for x, y, ratio in points:
        right, up = axes.transData.transform((x, y)).tolist()
        if all(abs(right - r) >= width or abs(up - u) >= height for r, u in taken):
            taken.append((right, up))
            axes.annotate(f"{100 * ratio:g}", (x, y), (4, 4), textcoords="offset points", fontsize=7, color=_GREY)


def _name(figure: Figure, axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Write names beside points `(name, x, y)`, moved up or down where they would overlap another name or a point."""
    from matplotlib.transforms import Bbox

    names = []
    for name, x, y in points:
        text = axes.annotate(name, (x, y), (5, 0), textcoords="offset points", fontsize=6.5, va="center")
        text.set_in_layout(False)  # else the axes would shrink, and the points move
        names.append(text)
    figure.draw_without_rendering()  # computes the layout, which gives the distances
    line = 8 * figure.dpi / 72
    centres = (axes.transData.transform((x, y)) for _, x, y in points)
    taken = [Bbox.from_extents(x - line / 4, y - line / 4, x + line / 4, y + line / 4) for x, y in centres]
    for text in names:
        if text.get_window_extent().x1 > figure.bbox.x1:
            text.set(ha="right", position=(-5, 0))
        (side, _), box = text.get_position(), text.get_window_extent()
        steps = (line * n * sign for n in itertools.count() for sign in (1, -1))
        moved = next(m for m in (box.translated(0, step) for step in steps) if not any(m.overlaps(t) for t in taken))
        taken.append(moved)
        if step := (moved.y0 - box.y0) * 72 / figure.dpi:
            text.set_position((side, step))
            arrow = {"arrowstyle": "-", "lw": 0.3}
            line_to = axes.annotate("", text.xy, (side, step), textcoords="offset points", arrowprops=arrow)
            line_to.set_in_layout(False)


def _by_method(
    axes: Axes,
    methods: Sequence[str],
    columns: Mapping[str, tuple[pd.DataFrame, NDArray[np.bool_]]],
    *,
    hollow: str,
    bold: Collection[str],
) -> None:
    """One line per method, from the bottom, with a point and its interval per column, each column in its own lane.

    columns: label -> values and intervals of all `methods`, and which of their points are hollow. `hollow` is the
    legend's text for these. Names in `bold` are bold, controls grey.
    """
    y = np.arange(len(methods))
    lanes = np.linspace(-0.14, 0.14, len(columns)) if len(columns) > 1 else [0.0]  # equal points do not hide each other
    for i, ((label, (points, some)), lane) in enumerate(zip(columns.items(), lanes, strict=True)):
        colour, marker = _look(i)
        axes.errorbar(
            points.value,
            y + lane,
            xerr=_errors(points.value, points.ci_low, points.ci_high),
            fmt=marker,
            color=colour,
            markersize=5.5,
            elinewidth=1.2,
            alpha=0.9,
            label=label,
        )
        axes.plot(points.value[some], y[some] + lane, marker, mfc="white", mec=colour, markersize=5.5, zorder=3)
    if any(some.any() for _, some in columns.values()):
        axes.plot([], [], "o", mfc="white", mec=_GREY, markersize=5.5, label=hollow)
    axes.set_yticks(y, methods, fontsize=8)
    for name, method in zip(axes.get_yticklabels(), methods, strict=True):
        name.set(fontweight="bold" if method in bold else None, color=_GREY if is_control(method) else "black")


def _log_scale(axes: Axes) -> None:
    """Make the x-axis a logarithmic scale of percentages."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    steps = ((1, 2, 5, 10, 20, 50, 100), (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100))
    coarse, fine = ([tick for tick in of if low < tick < high] for of in steps)
    ticks = coarse if len(coarse) > 2 else fine  # with two ticks it would look linear
    axes.set_xticks(ticks, [f"{tick}" for tick in ticks])
    axes.set_xticks([], minor=True)


def _axes() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure as NewFigure  # not pyplot: no global state, no window

    figure = NewFigure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.25, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure of `count` small panels in rows, all with the same scale."""
    from matplotlib.figure import Figure as NewFigure

    columns = min(count, _IN_A_ROW)
    rows = math.ceil(count / columns)
    width = 1.9 * max(columns, 2) + 0.4  # title and label are wider than a single panel
    figure = NewFigure(figsize=(width, 1.5 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten().tolist()
    for axes in panels:
        axes.grid(alpha=0.25, lw=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7)
    for axes in panels[count:]:
        axes.remove()
    for axes in panels[count - columns : count]:  # the lowest of each column, even if the last row is not full
        axes.tick_params(labelbottom=True)
    return figure, panels[:count]


def _title(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    where = "the average of benchmarks" if first["benchmark"] == AVERAGE else first["benchmark"]
    return f"{first['model']} on {where}, {first['frames']} frames"


def _finish(figure: Figure, axes: Axes, rows: pd.DataFrame, lines: int = 0) -> None:
    """Add title and legend, and fit the size. `lines`: number of methods named beside the axes, if any."""
    handles, labels = axes.get_legend_handles_labels()
    labels = [textwrap.fill(label, 48) for label in labels]  # longer ones would leave no room for the axes
    entries = "\n".join(labels).count("\n") + 1
    figure.set_figheight(max(4.2, 0.18 * entries + 0.3, 0.2 * lines + 0.9))  # inches: a legend's line takes 0.18
    if lines:
        figure.set_figwidth(8.4)
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    _without_mathematics(figure)
    figure.draw_without_rendering()  # computes the layout: where the axes begin, and with them the title
    room = (1 - axes.get_position().x0) * figure.get_figwidth()
    axes.set_title(_folded(_title(rows), room, 10), loc="left", fontsize=10)


def _finish_panels(figure: Figure, rows: pd.DataFrame, label: str) -> None:
    """Add a title, and a label below all panels; grow the figure for their lines beyond one each."""
    width = figure.get_figwidth() - 0.2
    title, label = _folded(_title(rows), width, 10), _folded(label, width, 9)
    figure.supxlabel(label, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    figure.set_figheight(figure.get_figheight() + 0.16 * f"{title}{label}".count("\n"))
    _without_mathematics(figure)


def _folded(text: str, inches: float, size: float) -> str:
    """Wrap a text of font size `size` to a width of `inches`, but at least 20 letters; long names are broken."""
    return textwrap.fill(text, max(20, int(inches / (0.7 * size / 72))))  # letters, with capitals, are 0.7 em wide


def _without_mathematics(figure: Figure) -> None:
    """Draw `$` in names as it is: matplotlib would read the text between two of them as a formula."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
