"""The tokens that methods need to keep most of dense, on curves whose crossings are known."""

import math

import pandas as pd
import pytest

from mmg_bench.report.accuracy import layout
from mmg_bench.report.figures import needed_by_method
from mmg_bench.report.needed import tokens_needed
from mmg_bench.report.rows import ResultRow, to_frame
from mmg_bench.report.table import to_markdown

RATIOS = (0.5, 0.25, 0.1, 0.05)


def curve(method, kept, *, ratios=RATIOS, shares=None, margin=2.0):
    """Rows of a method that keeps `kept` percent of dense at `ratios`, each give or take `margin`."""
    same = "toy", "w", "bench", "all", 8, method
    rows = []
    for ratio, share, value in zip(ratios, shares or ratios, kept, strict=True):
        low, high = value - margin, value + margin
        for metric, interval in {
            "accuracy": (0.8 * value, 0.8 * low, 0.8 * high),
            "accuracy_kept_percent": (value, low, high),
            "retention_layer_mean": (share, math.nan, math.nan),
        }.items():
            rows.append(ResultRow("t", *same, ratio, 64 * ratio, metric, *interval, 12, 0, "measured", "key1"))
    return rows


def frame(*curves):
    return to_frame([*curve("dense", [100.0], ratios=[1.0], margin=0.0), *(row for rows in curves for row in rows)])


def test_where_a_line_between_two_ratios_falls_below():
    (needed,) = tokens_needed(frame(curve("ours", [99, 97, 91, 80])), [95])["ours"]
    assert (needed.method, needed.kept_percent, needed.bound) == ("ours", 95, "")
    assert needed.share == pytest.approx(0.1 + 0.15 * 4 / 6)  # between 91 at 10 % and 97 at 25 %
    assert needed.low == pytest.approx(0.1 + 0.15 * 2 / 6)  # between 93 and 99
    assert needed.high == pytest.approx(0.25)  # of the lower ends, 95 at 25 % does not fall below yet


def test_the_first_fall_counts_also_where_more_is_kept_again():
    (needed,) = tokens_needed(frame(curve("ours", [97, 93, 99, 99])), [95])["ours"]
    assert needed.share == pytest.approx(0.25 + 0.25 * 2 / 4)


def test_to_keep_just_as_much_is_no_fall():
    (needed,) = tokens_needed(frame(curve("ours", [97, 95, 99, 91])), [95])["ours"]
    assert needed.share == pytest.approx(0.05 + 0.05 * 4 / 8)


def test_shares_are_those_that_layers_see():
    inside = curve("inside", [99, 97, 91, 80], shares=[0.7, 0.6, 0.5, 0.4])
    assert tokens_needed(frame(inside), [95])["inside"][0].share == pytest.approx(0.5 + 0.1 * 4 / 6)


def test_what_was_not_measured_is_a_bound():
    rows = frame(curve("good", [99, 99, 98, 97.5]), curve("bad", [94, 90, 80, 70]))
    ((good,), (bad,)) = tokens_needed(rows, [95]).values()
    assert (good.bound, good.share, good.low, good.high) == ("≤", 0.05, 0.05, 0.05)
    assert (bad.bound, bad.share, bad.high) == (">", 0.5, 0.5)
    assert bad.low == pytest.approx(0.25 + 0.25 * 3 / 4)  # upper ends: 96 at 50 %, 92 at 25 %


def test_who_needs_fewest_comes_first_and_who_needs_more_than_measured_last():
    shares = [0.4, 0.3, 0.2, 0.15]
    rows = frame(
        curve("never", [94, 90, 80, 70], shares=shares), curve("many", [96, 90, 80, 70]), curve("few", [99, 99, 96, 80])
    )
    assert list(tokens_needed(rows, [95])) == ["few", "many", "never"]


def test_of_few_ratios_nothing_is_told():
    rows = frame(curve("ours", [99, 97, 91], ratios=[0.5, 0.25, 0.1]))
    assert tokens_needed(rows) == {}
    with pytest.raises(ValueError, match="no method was measured at 4 or more retention ratios"):
        needed_by_method(rows)
    assert "tokens needed" not in to_markdown(layout(rows, {"key1": {}}))


@pytest.mark.parametrize(
    ("shares", "ticks"),
    [
        ((0.35, 0.25, 0.1, 0.065), ["7", "10", "15", "20", "30"]),
        ((0.5, 0.25, 0.1, 0.015), ["2", "5", "10", "20", "50"]),
    ],
)
def test_a_logarithmic_scale_has_ticks_enough_to_show_that_it_is_one(shares, ticks):
    rows = frame(curve("ours", [99, 97, 94, 80], shares=shares), curve("theirs", [96, 85, 84, 70], shares=shares))
    axes = needed_by_method(rows, kept_percent=[95, 80]).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ticks


def test_intervals_that_are_unknown_stay_unknown():
    (needed,) = tokens_needed(frame(curve("ours", [99, 97, 91, 80], margin=math.nan)), [95])["ours"]
    assert needed.share == pytest.approx(0.2)
    assert math.isnan(needed.low)
    assert math.isnan(needed.high)


def test_rows_that_tables_share_count_once():
    rows = frame(curve("ours", [99, 97, 91, 80]))
    assert tokens_needed(pd.concat([rows, rows])) == tokens_needed(rows)
    few = frame(curve("ours", [99, 97], ratios=[0.5, 0.25]))
    assert tokens_needed(pd.concat([few, few])) == {}


@pytest.mark.parametrize(
    ("percent", "said"),
    [
        ([], r"kept_percent=\[\]: give one or several percentages"),
        ([101], "kept_percent=101: it must be at most 100"),
        ([-1], "kept_percent=-1: it must be a number, at least 0"),
        (["95"], "kept_percent='95': it must be a number"),
    ],
)
def test_percentages_that_none_can_keep(percent, said):
    with pytest.raises(ValueError, match=said):
        tokens_needed(frame(curve("ours", [99, 97, 91, 80])), percent)


def test_the_table_says_it_below():
    rows = frame(curve("ours", [99, 97, 91, 80]), curve("random", [96, 80, 70, 60]), curve("good", [99, 99, 98, 97.5]))
    text = to_markdown(layout(rows, {"key1": {}}))
    table = text[text.index("## t: toy, bench, 8 frames: tokens needed") :]
    assert [line for line in table.splitlines() if line.startswith("|")] == [
        "| Method | 95 % kept | 90 % kept |",
        "|:--|--:|--:|",
        "| good | ≤ 5.0 % | ≤ 5.0 % |",
        "| ours | 20.0 % [15.0, 25.0] | 9.5 % [8.6, 12.5] |",
        "| random (control) | 48.4 % [45.3, 50.0] | 40.6 % [37.5, 43.8] |",
    ]


def test_the_figure_draws_it():
    rows = frame(curve("ours", [99, 97, 91, 80]), curve("random", [94, 80, 70, 60]))
    axes = needed_by_method(rows, highlight=["ours"]).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["random", "ours"]  # from below
    drawn = {bars.get_label(): bars.lines[0].get_xdata().tolist() for bars in axes.containers}
    assert drawn["95 % kept"] == pytest.approx([50, 20])
    assert drawn["90 % kept"] == pytest.approx([25 + 25 * 10 / 14, 5 + 5 * 10 / 11])
    hollow = [line for line in axes.get_lines() if line.get_markerfacecolor() == "white" and len(line.get_xdata())]
    assert [line.get_xdata().tolist() for line in hollow] == [[50.0]]
    assert axes.get_xscale() == "log"
    with pytest.raises(ValueError, match="highlight: no rows of our"):
        needed_by_method(rows, highlight=["our"])
