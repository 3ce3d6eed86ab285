import dataclasses
import math
import random

import pandas as pd
import pytest

from mmg_bench.measure.flops import TextGeometry, flops_4nd2, flops_gqa
from mmg_bench.report.rows import COLUMNS, Measurement, as_tuples, headline, pending_rows, read_rows, write_rows
from mmg_bench.report.rows import result_rows as all_rows
from mmg_bench.report.statistics import Bootstrap

GEOMETRY = TextGeometry(layers=2, hidden=8, intermediate=16, kv_width=4)


def result_rows(records, **changes):
    given = {"table": "t", "weights": {"toy": "trained"}, "bootstrap": Bootstrap(n_boot=300)}
    return all_rows(records, **{**given, **changes})


def value(rows, method, ratio, metric, benchmark="bench", skill="all"):
    """The one row about this, as a tuple."""
    (found,) = [
        r
        for r in as_tuples(rows)
        if (r.method, r.retention_ratio, r.metric, r.benchmark, r.skill) == (method, ratio, metric, benchmark, skill)
    ]
    return found


def measurement(**changes):
    given = ("toy", "bench", 8, "ours", 0.25, "prefill_speedup", 2.5, 2.4, 2.6, 20, "key2")
    return dataclasses.replace(Measurement(*given), **changes)


def test_columns_are_those_of_the_design(toy):
    assert ",".join(result_rows(toy).columns) == (
        "table,model,weights,benchmark,skill,frames,method,retention_ratio,realised_tokens,metric,value,ci_low,ci_high,"
        "n,n_errors,source,provenance"
    )


def test_values_by_hand(toy):
    rows = result_rows(toy)
    assert value(rows, "dense", 1.0, "accuracy").value == pytest.approx(100 * 10 / 12)
    assert value(rows, "dense", 1.0, "accuracy_kept_percent").value == 100
    ours = value(rows, "ours", 0.25, "accuracy_kept_percent")
    assert ours.value == pytest.approx(100 * 7 / 10)
    assert ours.ci_low < ours.value < ours.ci_high
    assert value(rows, "ours", 0.25, "flips_lost").value == 4
    assert value(rows, "ours", 0.25, "flips_won").value == 1
    assert value(rows, "ours", 0.25, "p_mcnemar").value == 2 * (1 + 5) / 32
    assert value(rows, "ours", 0.25, "accuracy", skill="colour").value == pytest.approx(100 * 3 / 6)
    assert value(rows, "ours", 0.25, "accuracy", skill="order").value == pytest.approx(100 * 4 / 6)
    assert value(rows, "ours", 0.25, "accuracy").realised_tokens == 16
    assert set(rows.weights) == {"trained"}
    assert set(rows.provenance) == {"key1"}


def test_methods_are_compared_with_another_than_dense(make):
    records = [
        *make("dense", 1.0, "111111"),
        *make("ours", 0.5, "110100"),
        *make("ours", 0.25, "110000"),
        *make("other", 0.5, "11101x"),
        *make("other", 0.1, "110000"),
    ]
    rows = result_rows(records, against=["ours"])
    over = [row for row in as_tuples(rows) if row.metric.startswith("points_over ")]
    assert [(row.method, row.retention_ratio, row.metric) for row in over] == [("other", 0.5, "points_over ours")]
    gain = over[0]
    assert gain.value == pytest.approx(100 * 4 / 5 - 100 * 3 / 5)  # without the question that failed
    assert gain.ci_low < gain.value < gain.ci_high
    assert (gain.n, gain.n_errors) == (5, 1)
    order = list(rows[(rows.method == "other") & (rows.retention_ratio == 0.5)].metric)
    assert order.index("points_over ours") == order.index("p_mcnemar") + 1
    two = result_rows(records, against=["other", "ours"])
    (back,) = [row for row in as_tuples(two) if row.metric == "points_over other"]
    assert (back.method, back.value) == ("ours", pytest.approx(-gain.value))


def test_the_average_over_benchmarks_is_compared_as_well(make):
    records = [
        *make("dense", 1.0, "1111", benchmark="long"),
        *make("ours", 0.5, "1100", benchmark="long"),
        *make("other", 0.5, "1110", benchmark="long"),
        *make("dense", 1.0, "10", benchmark="short"),
        *make("ours", 0.5, "11", benchmark="short"),
        *make("other", 0.5, "10", benchmark="short"),
    ]
    rows = result_rows(records, against=["ours"])
    gains = {b: value(rows, "other", 0.5, "points_over ours", b).value for b in ("long", "short", "average")}
    assert gains == {"long": 25, "short": -50, "average": -12.5}


def test_methods_are_compared_with_the_best_of_their_ratio(make):
    records = [
        *make("dense", 1.0, "1" * 12),
        *make("a", 0.25, "1" * 8 + "0" * 4),
        *make("b", 0.25, "1" * 6 + "0" * 6),
        *make("c", 0.25, "x" * 4 + "1" * 4 + "0" * 4),
        *make("random", 0.25, "1" * 12),
        *make("b", 0.5, "1" * 6 + "0" * 6),
    ]
    rows = result_rows(records)
    found = {(r.method, r.retention_ratio): r for r in as_tuples(rows[rows.metric == "points_from_best"])}
    assert {key: row.value for key, row in found.items()} == {
        ("b", 0.25): pytest.approx(-100 * 2 / 12),
        ("c", 0.25): 0,  # of the questions that both answered
        ("random", 0.25): pytest.approx(100 * 4 / 12),
    }
    assert found["b", 0.25].ci_low < found["b", 0.25].value < found["b", 0.25].ci_high <= 0
    assert (found["c", 0.25].n, found["c", 0.25].n_errors) == (8, 4)


def test_the_best_of_several_benchmarks_is_that_of_their_average(make):
    records = []
    for benchmark, a, b in (("short", "1111", "1110"), ("long", "1000", "1110")):
        for name, ratio, answers in (("dense", 1.0, "1111"), ("a", 0.5, a), ("b", 0.5, b)):
            records += make(name, ratio, answers, benchmark=benchmark)
    rows = result_rows(records)
    found = {(r.benchmark, r.method): r.value for r in as_tuples(rows[rows.metric == "points_from_best"])}
    assert found == {("short", "b"): -25, ("long", "a"): -50, ("average", "a"): -12.5}


def test_questions_lost_by_pooled_are_those_that_dense_answers_better(make):
    records = [
        *make("dense", 1.0, "11111100x1"),
        *make("pooled", 0.5, "1100010111"),  # loses 2, 3 and 4; not 8, which dense failed
        *make("ours", 0.5, "0011000000"),
        *make("other", 0.5, "110x111111"),
        *make("pooled", 0.25, "0x00010011"),  # 0, 2, 3 and 4; not 1, which it failed
        *make("ours", 0.25, "1111000011"),
        *make("other", 0.1, "1111111111"),
    ]
    found = [row for row in as_tuples(result_rows(records)) if row.metric == "accuracy_lost_by_pooled"]
    values = {(row.method, row.retention_ratio): (row.value, row.n, row.n_errors) for row in found}
    assert values == {
        ("ours", 0.5): (pytest.approx(200 / 3), 3, 0),
        ("other", 0.5): (50, 2, 1),
        ("ours", 0.25): (75, 4, 0),
    }
    assert all(row.ci_low <= row.value <= row.ci_high for row in found)


def test_questions_lost_by_pooled_on_several_benchmarks_count_alike(make):
    records = [
        *make("dense", 1.0, "1111", benchmark="long"),
        *make("pooled", 0.5, "1000", benchmark="long"),
        *make("ours", 0.5, "0011", benchmark="long"),
        *make("dense", 1.0, "11", benchmark="short"),
        *make("pooled", 0.5, "10", benchmark="short"),
        *make("ours", 0.5, "11", benchmark="short"),
    ]
    rows = result_rows(records)
    found = {b: value(rows, "ours", 0.5, "accuracy_lost_by_pooled", b).value for b in ("long", "short", "average")}
    assert found == {"long": pytest.approx(200 / 3), "short": 100, "average": pytest.approx(250 / 3)}
    easy = [*records[:-4], *make("pooled", 0.5, "11", benchmark="short"), *records[-2:]]
    rows = result_rows(easy)
    assert set(rows[rows.metric == "accuracy_lost_by_pooled"].benchmark) == {"long"}  # no mean over one of two


def test_failures_are_left_out_and_counted(toy):
    rows = result_rows(toy)
    control = value(rows, "random", 0.25, "accuracy")
    assert control.value == pytest.approx(100 * 4 / 11)
    assert (control.n, control.n_errors) == (11, 1)
    kept = value(rows, "random", 0.25, "accuracy_kept_percent")
    assert kept.value == pytest.approx(100 * 4 / 9)  # dense without the question that failed here
    assert (kept.n, kept.n_errors) == (11, 1)
    assert value(rows, "random", 0.25, "accuracy").realised_tokens == 16


def test_a_cell_without_an_answer_has_no_values(make, tmp_path):
    write_rows(result_rows([*make("dense", 1.0, "1101"), *make("ours", 0.25, "xxxx")]), tmp_path / "rows.csv")
    ours = [row for row in as_tuples(read_rows(tmp_path / "rows.csv")) if row.method == "ours"]
    (videos,) = [ours.pop(i) for i, row in enumerate(ours) if row.metric == "videos"]
    assert (videos.value, videos.n, videos.n_errors) == (0, 0, 4)
    assert {"accuracy", "accuracy_kept_percent", "flips_lost", "flips_won", "p_mcnemar"} == {row.metric for row in ours}
    assert all(math.isnan(row.value) and (row.n, row.n_errors) in ((0, 4), (0, 2)) for row in ours)


def test_order_is_dense_first_then_methods_as_given_then_falling_ratios(toy):
    rows = result_rows(toy, methods=["random", "ours"])
    assert list(dict.fromkeys(zip(rows.method, rows.retention_ratio, strict=True))) == [
        ("dense", 1.0),
        ("random", 0.25),
        ("ours", 0.5),
        ("ours", 0.25),
    ]
    by_name = result_rows(toy)
    assert list(dict.fromkeys(by_name.method)) == ["dense", "ours", "random"]


def test_the_order_of_records_does_not_matter(toy):
    shuffled = random.Random(0).sample(toy, len(toy))
    pd.testing.assert_frame_equal(result_rows(toy), result_rows(shuffled))


def test_videos_are_those_that_answers_are_about(make):
    records = [*make("dense", 1.0, "1111xx", benchmark="long"), *make("dense", 1.0, "1x", benchmark="short")]
    records += [*make("ours", 0.5, "1xxx11", benchmark="long")]
    rows = result_rows(records)
    found = {(r.benchmark, r.method): r.value for r in rows[rows.metric == "videos"].itertuples()}
    assert found == {("long", "dense"): 2, ("short", "dense"): 1, ("average", "dense"): 3, ("long", "ours"): 2}


def test_average_over_benchmarks_is_unweighted(make):
    records = [
        *make("dense", 1.0, "1111", benchmark="long"),
        *make("ours", 0.5, "1100", benchmark="long"),
        *make("dense", 1.0, "10", benchmark="short"),
        *make("ours", 0.5, "10", benchmark="short"),
        *make("partial", 0.5, "10", benchmark="short"),
    ]
    rows = result_rows(records, benchmarks=["short", "long"])
    assert list(rows.benchmark.unique()) == ["short", "long", "average"]
    assert value(rows, "dense", 1.0, "accuracy", "average").value == 75
    assert value(rows, "ours", 0.5, "accuracy", "average").value == 50
    kept = value(rows, "ours", 0.5, "accuracy_kept_percent", "average")
    assert kept.value == pytest.approx(100 * 50 / 75)
    assert kept.n == 6
    assert value(rows, "ours", 0.5, "flips_lost", "average").value == 2
    assert "partial" not in set(rows[rows.benchmark == "average"].method)
    assert set(headline(rows).benchmark) == {"average"}
    assert set(headline(result_rows(records[:8])).benchmark) == {"long"}


def test_videos_of_two_benchmarks_are_apart_though_their_ids_are_equal(make):
    alone = result_rows([*make("dense", 1.0, "10" * 20, benchmark="a")])
    both = result_rows([r for b in ("a", "b") for r in make("dense", 1.0, "10" * 10 + "11" * 10, benchmark=b)])
    one, average = value(both, "dense", 1.0, "accuracy", "a"), value(both, "dense", 1.0, "accuracy", "average")
    assert average.ci_high - average.ci_low < 0.85 * (one.ci_high - one.ci_low)
    assert value(alone, "dense", 1.0, "accuracy", "a").ci_low == 50  # every video has one right and one wrong


def test_flops_come_from_realised_tokens(toy):
    rows = result_rows(toy, geometries={"toy": GEOMETRY})
    assert value(rows, "ours", 0.25, "flops_gqa").value == flops_gqa(GEOMETRY, 16)
    assert value(rows, "dense", 1.0, "flops_4nd2").value == flops_4nd2(GEOMETRY, 64)
    failed = value(rows, "random", 0.25, "flops_gqa")
    assert failed.value == flops_gqa(GEOMETRY, 16)
    assert (failed.n, failed.n_errors) == (11, 1)
    assert not result_rows(toy).metric.str.startswith("flops").any()


def test_pruning_inside_the_model_counts_what_each_layer_sees(make):
    inside = [dataclasses.replace(r, realised_tokens=64, stages=[[1, 16]]) for r in make("fastv", 0.25, "11")]
    rows = result_rows([*make("dense", 1.0, "11"), *inside], geometries={"toy": GEOMETRY})
    assert value(rows, "fastv", 0.25, "flops_gqa").value == flops_gqa(GEOMETRY, [64, 16])
    assert value(rows, "fastv", 0.25, "flops_gqa").realised_tokens == 64
    assert value(rows, "fastv", 0.25, "retention_layer_mean").value == (64 + 16) / 2 / 64
    assert value(rows, "dense", 1.0, "retention_layer_mean").value == 1


def test_flops_are_told_only_where_the_formulas_hold(toy):
    rows = result_rows(toy, geometries={"toy": dataclasses.replace(GEOMETRY, dense=False)})
    assert set(rows.metric) >= {"accuracy", "retention_layer_mean"}
    assert not rows.metric.str.startswith("flops").any()


def test_measurements_become_rows_of_their_cell(toy):
    rows = result_rows(toy, measurements=[measurement(), measurement(benchmark="-", metric="prune_ms")])
    speed = value(rows, "ours", 0.25, "prefill_speedup")
    assert (speed.value, speed.ci_low, speed.ci_high, speed.n, speed.provenance) == (2.5, 2.4, 2.6, 20, "key2")
    assert speed.realised_tokens == 16
    assert rows.benchmark.iloc[-1] == "-"


def test_measurements_need_no_records():
    rows = result_rows([], measurements=[measurement()])
    assert len(rows) == 1
    assert pd.isna(rows.realised_tokens.iloc[0])


def test_round_trip(toy, tmp_path):
    rows = result_rows(
        toy, measurements=[measurement(benchmark="-")], geometries={"toy": GEOMETRY}, weights={"toy": "NA"}
    )
    first, second = tmp_path / "new" / "rows.csv", tmp_path / "again.csv"
    write_rows(rows, first)
    back = read_rows(first)
    pd.testing.assert_frame_equal(back, rows, check_exact=True)  # so that a table made of either says the same
    write_rows(back, second)
    assert first.read_bytes() == second.read_bytes()
    assert sorted(p.name for p in first.parent.iterdir()) == ["rows.csv"]


def test_a_failed_write_leaves_the_old_file(toy, tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    write_rows(result_rows(toy), path)
    before = path.read_bytes()

    def disk_full(frame, target, **options):
        target.write_text("table,model\nto", encoding="utf-8")
        raise OSError("No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", disk_full)
    with pytest.raises(OSError, match="No space"):
        write_rows(result_rows(toy), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: "", "empty"),
        (lambda text: text[: text.rindex(",") - 30], "fields instead of"),
        (lambda text: text.replace("retention_ratio", "ratio", 1), "columns"),
    ],
    ids=["empty", "torn", "other columns"],
)
def test_damaged_files_are_refused(toy, tmp_path, damage, message):
    path = tmp_path / "rows.csv"
    write_rows(result_rows(toy), path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=message):
        read_rows(path)


def test_no_rows_survive_a_round_trip(tmp_path):
    write_rows(result_rows([]), tmp_path / "rows.csv")
    assert read_rows(tmp_path / "rows.csv").empty
    assert read_rows(tmp_path).empty  # its folder


def test_pending_rows_join_measured_ones(toy):
    pending = pending_rows(
        table="t", model="big", weights="absent", frames=32, benchmarks=["bench"], cells=[("dense", 1.0), ("ours", 0.5)]
    )
    assert tuple(pending.columns) == COLUMNS
    assert set(pending.source) == {"pending"}
    assert pending.value.isna().all()
    both = pd.concat([result_rows(toy), pending])
    assert both.dtypes.equals(pending.dtypes)


def test_missing_dense_is_an_error(toy):
    with pytest.raises(ValueError, match="no records of dense"):
        result_rows([r for r in toy if r.method != "dense"])


def test_other_questions_than_dense_are_an_error(toy):
    with pytest.raises(ValueError, match=r"ours at retention ratio 0.25.*1 questions.*'q03'"):
        result_rows([r for r in toy if (r.retention_ratio, r.method, r.question) != (0.25, "ours", "q03")])


def test_bad_measurements_are_errors(toy):
    with pytest.raises(ValueError, match=r"'speedup'.*prefill_speedup"):
        measurement(metric="speedup")
    with pytest.raises(ValueError, match="two values for one row"):
        result_rows(toy, measurements=[measurement(), measurement(value=3.0)])
    with pytest.raises(ValueError, match="`weights` has no entry for other"):
        result_rows(toy, measurements=[measurement(model="other")])


def test_a_benchmark_that_is_the_mean_over_its_skills(make):
    records = [
        *make("dense", 1.0, "1111", benchmark="macro", skills=("colour", "order", "order", "order")),
        *make("ours", 0.5, "1100", benchmark="macro", skills=("colour", "order", "order", "order")),
        *make("dense", 1.0, "1110", benchmark="plain"),
        *make("ours", 0.5, "1000", benchmark="plain"),
    ]
    rows = result_rows(records, over_skills=["macro"])
    macro = value(rows, "ours", 0.5, "accuracy", benchmark="macro").value
    assert macro == pytest.approx(100 * (1 + 1 / 3) / 2)  # over the questions it would be 50
    assert value(rows, "ours", 0.5, "accuracy_kept_percent", benchmark="macro").value == pytest.approx(macro)
    assert value(rows, "ours", 0.5, "accuracy", benchmark="plain").value == 25
    assert value(rows, "ours", 0.5, "accuracy", benchmark="average").value == pytest.approx((macro + 25) / 2)
    assert value(result_rows(records), "ours", 0.5, "accuracy", benchmark="macro").value == 50
