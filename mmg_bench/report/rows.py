"""Result rows: records and measurements as one tidy table, one measured value per row.

Tables, figures and pages are made from these rows alone. `accuracy` and `accuracy_kept_percent` are in percent,
`points_over ...` in percentage points, times in ms, sizes in bytes, FLOPs in multiply-adds; speed-ups are factors
relative to dense. `retention_layer_mean` is the share of all visual tokens that a layer sees, averaged over the layers:
the spend of methods that prune inside the language model.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import pandas as pd

from mmg_bench.benchmarks.reserved import ALL, AVERAGE, NO_BENCHMARK
from mmg_bench.files import written_whole
from mmg_bench.measure.flops import TextGeometry, flops_4nd2, flops_gqa, layer_counts
from mmg_bench.report.answers import Answers, Cells, Key, answers_by_cell, lost_questions, over_benchmarks
from mmg_bench.report.leading import leaders
from mmg_bench.report.statistics import USUAL, Bootstrap, Estimate, accuracy, compare
from mmg_bench.runner.records import Record


class ResultRow(NamedTuple):
    """A row, with one measured value. Its fields are the columns, in order."""

    table: str
    model: str
    weights: str
    benchmark: str
    skill: str
    frames: int
    method: str
    retention_ratio: float
    realised_tokens: float
    """Visual tokens that entered layer 0, averaged over the questions."""
    metric: str
    value: float
    ci_low: float
    ci_high: float
    n: int
    """Questions (or repeats) that the value rests on."""
    n_errors: int
    """Questions that failed and are left out; 1 for a cell that ran out of memory, or failed, while it was measured."""
    source: str
    """`measured`, `cited` or `pending`."""
    provenance: str
    """Key into provenance.json; several, if a cell was resumed elsewhere, are joined by `;`."""


COLUMNS = ResultRow._fields
_DTYPES = {str: "str", int: "int64", float: "float64"}
_TYPES = {name: _DTYPES[kind] for name, kind in get_type_hints(ResultRow).items()}
METRICS = (
    *("accuracy", "accuracy_kept_percent", "flips_lost", "flips_won", "p_mcnemar", "points_from_best"),
    *("accuracy_lost_by_pooled", "videos"),
    *("decode_ms", "preprocess_ms", "encode_ms", "prune_ms", "prefill_ms", "decode_token_ms", "ttft_ms", "e2e_ms"),
    *("tokens_per_second", "prefill_speedup", "ttft_speedup", "e2e_speedup", "retention_layer_mean"),
    *("coverage_percent", "quantisation_error"),
    *("prefill_roofline_ms", "decode_roofline_ms", "prefill_over_roofline", "decode_over_roofline"),
    *("flops_gqa", "flops_4nd2", "flops_counted", "kv_cache_bytes", "peak_memory_bytes"),
    *("weights_bytes", "activation_memory_bytes", "encode_memory_bytes", "prefill_energy_joules"),
    *("gram_ms", "gram_ratio", "frames_growth"),
)
DENSE = "dense"
FROM_BEST = "points_from_best"
"""Metric that compares accuracy with that of the leader at the same ratio."""
OVER = "points_over "
"""Prefix of metrics that compare accuracy with another method's at the same ratio, followed by its label."""


@dataclass(frozen=True)
class Measurement:
    """A value measured outside the evaluation, such as a latency. Fields are the columns of the same name."""

    model: str
    benchmark: str
    """`-` for a measurement that belongs to no benchmark."""
    frames: int
    method: str
    retention_ratio: float
    metric: str
    value: float
    ci_low: float
    ci_high: float
    n: int
    """Repeats."""
    provenance: str
    skill: str = ALL
    """For a measurement without benchmark: `all`, or `batch=B` for more than one prompt at a time."""
    realised_tokens: float = math.nan
    """Used if there are no records that give it."""
    n_errors: int = 0
    """1 if memory ran out or the cell failed, and the value is NaN."""

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"Measurement.metric={self.metric!r}: choose one of {', '.join(METRICS)}")


def result_rows(
    records: Iterable[Record],
    *,
    table: str,
    weights: Mapping[str, str],
    methods: Sequence[str] = (),
    benchmarks: Sequence[str] = (),
    over_skills: Collection[str] = (),
    against: Collection[str] = (),
    measurements: Iterable[Measurement] = (),
    geometries: Mapping[str, TextGeometry] | None = None,
    bootstrap: Bootstrap = USUAL,
) -> pd.DataFrame:
    """The rows of a table, in an order that does not depend on the order of `records`.

    weights: model -> what its weights are, such as `pretrained`.
    methods, benchmarks: the order to list them in; those not named follow by name. Dense comes first.
    over_skills: benchmarks whose accuracy is the unweighted mean over their skills, not the mean over questions.
    against: labels of methods, in addition to dense, with which all others are compared at the same ratio.
    geometries: model -> sizes of its language model; a model without one gets no FLOPs and no mean over its layers.

    Accuracy is the mean over the answered questions (with `over_skills`, the mean of each skill's mean); failed
    questions are counted in `n_errors`. With several benchmarks, rows of benchmark `average` hold the unweighted mean
    over them, for cells that ran on all. If `pooled` is among the cells, `accuracy_lost_by_pooled` is the accuracy on
    the questions that dense answers better than it at the same ratio. If several methods share a ratio,
    `points_from_best` compares each with the one that keeps most of dense there (`leading.leaders`).

    Raises ValueError if dense is missing, if the questions of a cell are not those of dense, and if two cells would
    share a row.
    """
    rows: list[dict[str, Any]] = []
    realised: dict[_Where, float] = {}
    for (model, frames), by_benchmark in answers_by_cell(records).items():
        for benchmark, cells in by_benchmark.items():
            _check_dense(cells, f"on {benchmark} ({model}, {frames} frames)")
        cost = _Cost((geometries or {}).get(model))
        if len(by_benchmark) > 1:
            by_benchmark[AVERAGE] = over_benchmarks(by_benchmark)
        for benchmark, cells in by_benchmark.items():
            found: dict[Key, list[tuple[str, str, Estimate]]] = {}
            for (method, ratio), cell in cells.items():
                others = {o: cells[o, ratio] for o in against if o != method and (o, ratio) in cells}
                pooled = cells.get(("pooled", ratio))
                statistics = _statistics(cell, cells[DENSE, 1.0], pooled, others, over_skills, cost, bootstrap)
                found[method, ratio] = list(statistics)
            for key, estimate in _from_best(cells, found, over_skills, bootstrap):
                found[key].append((ALL, FROM_BEST, estimate))
            for (method, ratio), estimates in found.items():
                where, answered = _Where(model, frames, benchmark, method, ratio), cells[method, ratio].records
                realised[where] = _mean(r.realised_tokens for r in answered)
                provenance = ";".join(sorted({r.provenance for r in answered}))
                for skill, metric, estimate in estimates:
                    rows.append(_row(where, skill, metric, estimate, realised[where], "measured", provenance))
    for m in measurements:
        where = _Where(m.model, m.frames, m.benchmark, m.method, m.retention_ratio)
        estimate = Estimate(m.value, m.ci_low, m.ci_high, m.n, m.n_errors)
        tokens = realised.get(where, m.realised_tokens)
        rows.append(_row(where, m.skill, m.metric, estimate, tokens, "measured", m.provenance))
    return _frame(_sorted(rows, methods, benchmarks), table, weights)


def pending_rows(
    *,
    table: str,
    model: str,
    weights: str,
    frames: int,
    benchmarks: Sequence[str],
    cells: Sequence[tuple[str, float]],
    metric: str = "accuracy",
) -> pd.DataFrame:
    """Rows for (method, retention ratio) `cells` still to be measured: tables show them as pending, not as gaps."""
    nothing = Estimate(math.nan, math.nan, math.nan, 0, 0)
    rows = [
        _row(_Where(model, frames, benchmark, method, ratio), ALL, metric, nothing, math.nan, "pending", "")
        for benchmark in benchmarks
        for method, ratio in cells
    ]
    return _frame(_sorted(rows, [method for method, _ in cells], benchmarks), table, {model: weights})


def to_frame(rows: Sequence[ResultRow] | Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A frame of single rows, in the order given.

    Numbers are rounded to ten significant digits, as in the file, so that both give the same tables and figures; more
    digits would differ between machines.
    """
    frame = pd.DataFrame(rows, columns=list(COLUMNS)).astype(_TYPES)
    floats = [column for column in COLUMNS if _TYPES[column] == "float64"]
    frame[floats] = frame[floats].map(lambda number: float(f"{number:.10g}"))
    return frame


def write_rows(rows: pd.DataFrame, path: Path) -> None:
    """Write `rows` as CSV, completely or not at all."""
    if tuple(rows.columns) != COLUMNS:
        raise ValueError(f"columns {list(rows.columns)} are not those of result rows: {list(COLUMNS)}")
    with written_whole(path) as file:
        rows.to_csv(file, index=False, float_format="%.10g", lineterminator="\n")


def read_rows(path: Path | str) -> pd.DataFrame:
    """Read rows written by `write_rows`; given a table's folder, those in its `rows.csv`.

    Raises ValueError for a file that is incomplete or of another version.
    """
    path = Path(path)
    path = path / "rows.csv" if path.is_dir() else path
    with path.open(encoding="utf-8", newline="") as file:
        header, *lines = list(csv.reader(file)) or [[]]
    if not header:
        raise ValueError(f"{path}: empty: make it again")
    if tuple(header) != COLUMNS:
        raise ValueError(f"{path}: columns {header} are not those of result rows: {list(COLUMNS)}")
    for number, fields in enumerate(lines, start=2):
        if len(fields) != len(COLUMNS):
            raise ValueError(f"{path}:{number}: {len(fields)} fields instead of {len(COLUMNS)}: make it again")
    frame = pd.DataFrame(lines, columns=list(COLUMNS))
    numbers = [column for column in COLUMNS if _TYPES[column] != "str"]
    # not pandas' own reader, which may be off in the last bit and reads "NA" as missing
    frame[numbers] = frame[numbers].map(lambda text: float(text) if text else math.nan)
    return frame.astype(_TYPES)


def as_tuples(rows: pd.DataFrame) -> list[ResultRow]:
    """The rows of a frame as typed tuples."""
    return [ResultRow(*row) for row in rows[list(COLUMNS)].itertuples(index=False)]


def provenance_keys(rows: pd.DataFrame) -> list[str]:
    """The provenance keys that rows name, in order of appearance; a row may join several by `;`."""
    return list(dict.fromkeys(key for keys in rows.provenance for key in str(keys).split(";") if key))


def measured_over_pending(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows without pending ones that were also measured, even if memory ran out."""
    what = ["model", "benchmark", "skill", "frames", "method", "retention_ratio", "metric"]
    values = pd.MultiIndex.from_frame(rows[what])
    return rows[(rows.source != "pending") | ~values.isin(values[rows.source == "measured"])]


def headline(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows for whole cells: those of the only benchmark, or of the average over several."""
    overall = rows[(rows.skill == ALL) & (rows.benchmark != NO_BENCHMARK)]
    benchmarks = overall.benchmark.unique()
    return overall if len(benchmarks) == 1 else overall[overall.benchmark == AVERAGE]


def prunes_inside(rows: pd.DataFrame) -> bool:
    """Whether there is a cell in which some layer sees fewer tokens than enter layer 0."""
    inside = as_tuples(rows[rows.metric == "retention_layer_mean"])
    whole = {row.benchmark: row.realised_tokens for row in inside if row.method == DENSE}
    known = (row for row in inside if row.benchmark in whole)  # leaves out benchmarks where every dense answer failed
    return any(row.value < row.realised_tokens / whole[row.benchmark] - 1e-6 for row in known)


def _check_dense(cells: Cells, where: str) -> None:
    """Raise ValueError unless dense is among the cells, and every cell was asked the same questions as dense."""
    if (DENSE, 1.0) not in cells:
        raise ValueError(f"no records of dense at retention ratio 1 {where}: every table compares with dense")
    wanted = {r.question for r in cells[DENSE, 1.0].records}
    for (method, ratio), cell in cells.items():
        if different := sorted(wanted ^ {r.question for r in cell.records}):
            raise ValueError(
                f"{method} at retention ratio {ratio:g} {where}: {len(different)} questions are missing either in this "
                f"cell or in {DENSE}, such as {different[0]!r}: run the same command again to complete it"
            )


class _Cost:
    """Visual tokens over all layers, if the model's geometry is known, and their FLOPs, if the formulas hold for it."""

    def __init__(self, geometry: TextGeometry | None):
        self.geometry = geometry
        self.formulas: dict[str, Callable[[tuple[int, ...]], int]] = {}
        if geometry is not None and geometry.dense:  # questions share their token counts: compute each once
            self.formulas["flops_gqa"] = cache(partial(flops_gqa, geometry))
            self.formulas["flops_4nd2"] = cache(partial(flops_4nd2, geometry))

    def means(self, records: Sequence[Record]) -> Iterator[tuple[str, Estimate]]:
        known = [r for r in records if r.realised_tokens is not None]
        if self.geometry is None or not known:
            return
        depth = self.geometry.layers
        tokens = [tuple(layer_counts(r.realised_tokens or 0, r.stages or (), depth)) for r in known]
        shares = [sum(t) / depth / r.total_tokens for t, r in zip(tokens, known, strict=True) if r.total_tokens]
        means = {"retention_layer_mean": _mean(shares)}
        means |= {name: _mean(formula(t) for t in tokens) for name, formula in self.formulas.items()}
        for name, mean in means.items():
            yield name, Estimate(mean, math.nan, math.nan, len(known), len(records) - len(known))


def _fidelity(records: Sequence[Record]) -> Iterator[tuple[str, Estimate]]:
    """How well the tokens that enter the language model stand for the video; nothing for cells in which all enter."""
    known, failed = [r for r in records if r.coverage is not None], sum(r.error is not None for r in records)
    for metric, values in (
        ("coverage_percent", [100 * r.coverage for r in known if r.coverage is not None]),
        ("quantisation_error", [r.quantisation_error for r in known]),
    ):
        if known:
            yield metric, Estimate(_mean(values), math.nan, math.nan, len(known), failed)


def _statistics(
    cell: Answers,
    dense: Answers,
    pooled: Answers | None,
    others: Mapping[str, Answers],
    over_skills: Collection[str],
    cost: _Cost,
    bootstrap: Bootstrap,
) -> Iterator[tuple[str, str, Estimate]]:
    """(skill, metric, estimate) of a cell.

    pooled: the cell of plain downsampling at the same ratio. others: label -> a further cell to compare with.
    """
    groups, subgroups = cell.benchmarks, cell.subgroups(over_skills)
    whole = accuracy(cell.scores, cell.videos, groups, subgroups, bootstrap=bootstrap)
    yield ALL, "accuracy", whole
    yield ALL, "videos", Estimate(whole.videos, math.nan, math.nan, whole.n, whole.n_errors)
    pair = compare(cell.scores, dense.scores, cell.videos, groups, subgroups, bootstrap=bootstrap)
    kept = pair.kept_percent
    yield ALL, "accuracy_kept_percent", kept
    for metric in ("flips_lost", "flips_won", "p_mcnemar"):
        yield ALL, metric, Estimate(getattr(pair, metric), math.nan, math.nan, kept.n, kept.n_errors)
    if pooled is not None and pooled is not cell:
        lost = lost_questions(pooled, dense)
        part = Answers(tuple(r for r in cell.records if (r.benchmark, r.question) in lost))
        if set(part.benchmarks) == set(groups):  # only if every benchmark has such questions
            estimate = accuracy(part.scores, part.videos, part.benchmarks, bootstrap=bootstrap)
            yield ALL, "accuracy_lost_by_pooled", estimate
    for label, other in others.items():
        pair = compare(cell.scores, other.scores, cell.videos, groups, subgroups, bootstrap=bootstrap)
        yield ALL, f"{OVER}{label}", pair.difference
    for metric, estimate in (*cost.means(cell.records), *_fidelity(cell.records)):
        yield ALL, metric, estimate
    if len(set(groups)) == 1:
        for skill in sorted({r.skill for r in cell.records}):
            part = cell.of_skill(skill)
            yield skill, "accuracy", accuracy(part.scores, part.videos, bootstrap=bootstrap)


def _from_best(
    cells: Cells,
    found: Mapping[Key, Sequence[tuple[str, str, Estimate]]],
    over_skills: Collection[str],
    bootstrap: Bootstrap,
) -> Iterator[tuple[Key, Estimate]]:
    """Accuracy of each cell less that of the leader at its ratio, in points; not for dense and the leaders.

    found: cell -> its (skill, metric, estimate).
    """

    def values(wanted: str) -> dict[Key, float]:
        pruned = ((key, each) for key, each in found.items() if key[0] != DENSE)
        return {key: e.value for key, each in pruned for skill, metric, e in each if (skill, metric) == (ALL, wanted)}

    best = leaders(values("accuracy_kept_percent"), values("retention_layer_mean"))
    for key, cell in cells.items():
        if key[0] != DENSE and (leader := best.get(key[1], key)) != key:
            groups = cell.benchmarks, cell.subgroups(over_skills)
            yield key, compare(cell.scores, cells[leader].scores, cell.videos, *groups, bootstrap=bootstrap).difference


def _mean(values: Iterable[float | None]) -> float:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else math.nan


@dataclass(frozen=True)
class _Where:
    """What a row is about, except skill and metric."""

    model: str
    frames: int
    benchmark: str
    method: str
    retention_ratio: float


def _row(
    where: _Where, skill: str, metric: str, estimate: Estimate, realised: float, source: str, provenance: str
) -> dict[str, Any]:
    return {
        **vars(where),
        "skill": skill,
        "realised_tokens": realised,
        "metric": metric,
        "value": estimate.value,
        "ci_low": estimate.low,
        "ci_high": estimate.high,
        "n": estimate.n,
        "n_errors": estimate.n_errors,
        "source": source,
        "provenance": provenance,
    }


def _sorted(rows: list[dict[str, Any]], methods: Sequence[str], benchmarks: Sequence[str]) -> list[dict[str, Any]]:
    method_rank = {name: i for i, name in enumerate(dict.fromkeys((DENSE, *methods)))}
    benchmark_rank = {name: i for i, name in enumerate(dict.fromkeys(benchmarks))}
    benchmark_rank |= {AVERAGE: len(rows) + len(benchmarks), NO_BENCHMARK: len(rows) + len(benchmarks) + 1}

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        benchmark, method, skill = row["benchmark"], row["method"], row["skill"]
        return (
            *(row["model"], row["frames"], benchmark_rank.get(benchmark, len(benchmarks)), benchmark),
            *(method_rank.get(method, len(method_rank)), method, -row["retention_ratio"]),
            *(skill != ALL, skill, _rank(row["metric"])),
        )

    ordered = sorted(rows, key=key)
    for first, second in pairwise(ordered):
        if key(first) == key(second):
            same = ", ".join(f"{c}={first[c]}" for c in ("model", "benchmark", "method", "retention_ratio", "metric"))
            raise ValueError(f"two values for one row ({same}): pass each measurement once")
    return ordered


def _rank(metric: str) -> tuple[int, str]:
    """Sort key of a metric within a cell."""
    return (METRICS.index("p_mcnemar"), metric) if metric.startswith(OVER) else (METRICS.index(metric), "")


def _frame(rows: list[dict[str, Any]], table: str, weights: Mapping[str, str]) -> pd.DataFrame:
    if unknown := {row["model"] for row in rows} - set(weights):
        raise ValueError(f"`weights` has no entry for {', '.join(sorted(unknown))}")
    labelled = [{**row, "table": table, "weights": weights[row["model"]]} for row in rows]
    return to_frame(labelled)
