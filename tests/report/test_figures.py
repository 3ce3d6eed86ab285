import dataclasses
import itertools
import subprocess
import sys

import pandas as pd
import pytest
from matplotlib.text import Text

from mmg_bench.report.figures import (
    accuracy_vs_fidelity,
    accuracy_vs_retention,
    accuracy_vs_speedup,
    accuracy_vs_tokens,
    kept_by_method,
    points_over,
    save,
)
from mmg_bench.report.rows import Measurement, headline, result_rows
from mmg_bench.report.statistics import Bootstrap


@pytest.fixture
def rows(toy):
    cells = [("dense", 1.0, 1.0), ("ours", 0.5, 1.8), ("ours", 0.25, 3.0), ("random", 0.25, 3.2)]
    speed = [Measurement("toy", "-", 8, m, r, "prefill_speedup", x, 0.9 * x, 1.1 * x, 20, "k") for m, r, x in cells]
    return result_rows(toy, table="t", weights={"toy": "w"}, measurements=speed, bootstrap=Bootstrap(300))


def lines(figure):
    return {line.get_label(): line for line in figure.axes[0].get_lines() if not line.get_label().startswith("_")}


def test_lines_hold_the_rows_values(rows):
    figure = accuracy_vs_retention(rows, chance=25)
    drawn = lines(figure)
    assert list(drawn) == ["dense (83.3 %)", "ours", "random", "chance (25.0 %)"]
    assert drawn["ours"].get_xdata().tolist() == [25, 50]
    assert drawn["ours"].get_ydata().tolist() == pytest.approx([100 * 7 / 12, 100 * 8 / 12])
    assert drawn["chance (25.0 %)"].get_ydata() == [25, 25]


def test_bands_are_the_intervals(rows):
    figure = accuracy_vs_retention(rows, bands=["ours"])
    (band,) = figure.axes[0].collections
    heights = band.get_paths()[0].vertices[:, 1]
    main = headline(rows)
    ours = main[(main.method == "ours") & (main.metric == "accuracy")]
    assert {heights.min(), heights.max()} == {ours.ci_low.min(), ours.ci_high.max()}


def test_looks_do_not_depend_on_the_choice_of_methods(rows):
    every, one = lines(accuracy_vs_retention(rows)), lines(accuracy_vs_retention(rows, methods=["ours"]))
    assert "random" not in one
    assert one["ours"].get_color() == every["ours"].get_color()


def test_scatter_pairs_speed_and_accuracy(rows):
    drawn = lines(accuracy_vs_speedup(rows))
    assert drawn["ours"].get_xdata().tolist() == [1.8, 3.0]
    assert drawn["ours"].get_ydata().tolist() == pytest.approx([100 * 8 / 12, 100 * 7 / 12])


def test_fidelity_has_a_named_point_per_method(make):
    """Of methods with errors of 0.1, 0.2 and 0.4, those of less keep more, but for one; the control does not count."""
    answers = {"first": ("1111", 0.1), "second": ("0011", 0.2), "third": ("1101", 0.4), "random": ("0001", 0.8)}
    records = make("dense", 1.0, "1111")
    for ratio in (0.25, 0.5):
        for method, (right, error) in answers.items():
            made = make(method, ratio, right if ratio < 0.5 else "1111")
            records += [dataclasses.replace(r, coverage=0.9, quantisation_error=error * ratio) for r in made]
    rows = result_rows(
        [*records, *make("fastv", 0.25, "1111")], table="t", weights={"toy": "w"}, bootstrap=Bootstrap(300)
    )
    figure = accuracy_vs_fidelity(rows)
    named = {text.get_text(): text.xy for text in figure.axes[0].texts if text.get_text()}
    assert named == {
        "first": pytest.approx((2.5, 100)),
        "second": pytest.approx((5, 50)),
        "third": pytest.approx((10, 75)),
        "random": pytest.approx((20, 25)),
    }
    assert (
        figure.axes[0]
        .get_xlabel()
        .endswith("% of the tokens' variance (rank correlation of methods, without controls: -0.50)")
    )
    assert "R = 25 %" in figure.axes[0].get_ylabel()
    assert "R = 50 %" in accuracy_vs_fidelity(rows, ratio=0.5).axes[0].get_ylabel()
    with pytest.raises(ValueError, match=r"ratios=\[0.1\]: the rows have 0.25, 0.5"):
        accuracy_vs_fidelity(rows, ratio=0.1)


def test_names_do_not_cover_each_other(make):
    methods = [f"method_{i}" for i in range(12)]
    records = make("dense", 1.0, "11")
    for method in methods:
        records += [dataclasses.replace(r, coverage=0.9, quantisation_error=0.1) for r in make(method, 0.25, "10")]
    figure = accuracy_vs_fidelity(result_rows(records, table="t", weights={"toy": "w"}, bootstrap=Bootstrap(300)))
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()]
    assert len(boxes) == 12
    assert not any(a.shrunk(0.99, 0.99).overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_labels_do_not_cover_each_other(rows):
    copies = [rows[rows.method == "ours"].assign(method=f"ours {n}") for n in range(3)]
    figure = accuracy_vs_speedup(pd.concat([rows, *copies]))
    figure.draw_without_rendering()
    labels = figure.axes[0].texts
    assert sorted(label.get_text() for label in labels) == ["25", "25", "50"]  # ours, three copies upon it, and random
    boxes = [label.get_window_extent() for label in labels]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_a_panel_a_method_over_what_layers_see(rows):
    main = headline(rows)
    seen = main[main.metric == "accuracy"].assign(metric="retention_layer_mean")
    seen["value"] = seen.retention_ratio.where(seen.method != "ours", seen.retention_ratio + 0.1)
    rows = pd.concat([rows, seen])
    figure = accuracy_vs_tokens(rows)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["ours", "random"]  # a control, so last
    ours, random = ([line.get_xydata().tolist() for line in axes.get_lines()] for axes in figure.axes)
    assert ours[-1] == [pytest.approx([35, 100 * 7 / 12]), pytest.approx([60, 100 * 8 / 12])]
    assert [x for x, _ in random[-1]] == [25]
    assert ours[1:3] == random[1:3]  # behind, the lines of all
    assert sorted(ours[1:3]) == sorted([ours[-1], random[-1]])
    (band,) = figure.axes[0].collections
    accuracy = main[(main.metric == "accuracy") & (main.method == "ours")]
    heights = band.get_paths()[0].vertices[:, 1]
    assert {heights.min(), heights.max()} == {accuracy.ci_low.min(), accuracy.ci_high.max()}
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    (alone,) = accuracy_vs_tokens(rows, methods=["random"]).axes
    assert alone.get_lines()[-1].get_color() == figure.axes[1].get_lines()[-1].get_color()
    with pytest.raises(ValueError, match="the rows hold no method but dense: run one first"):
        accuracy_vs_tokens(rows[rows.method == "dense"])
    with pytest.raises(ValueError, match="no measured retention_layer_mean"):
        accuracy_vs_tokens(rows[rows.metric == "accuracy"])


def test_long_names_stay_in_the_picture_and_dollars_in_names(rows):
    main = headline(rows)
    seen = main[main.metric == "accuracy"].assign(metric="retention_layer_mean")
    seen["value"] = seen.retention_ratio
    own = "ours(an_option=of_a_$long$_name, another_one=of_a_name_that_is_longer_still)"
    model = "a-model-of-a-$long$-name_" + "finetuned_on_mine_" * 4
    rows = pd.concat([rows, seen]).replace({"method": {"ours": own}}).assign(model=model)
    for figure in (
        accuracy_vs_tokens(rows, methods=[own]),
        accuracy_vs_retention(rows),
        accuracy_vs_speedup(rows),
        kept_by_method(rows),
    ):
        figure.draw_without_rendering()
        box = figure.get_tightbbox()
        width, height = figure.get_size_inches()
        assert 0 <= box.x0 < box.x1 <= width
        assert 0 <= box.y0 < box.y1 <= height
        assert figure.axes[0].get_position().width > 0.2
        named = [text for text in figure.findobj(Text) if "$" in text.get_text()]
        assert len(named) >= 2  # the title and the method
        assert not any(text.get_parse_math() for text in named)


@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_title_and_label_of_panels_stay_in_the_picture_and_each_column_has_its_scale(rows, count):
    main = headline(rows)
    copies = [main[main.method == "ours"].assign(method=f"ours {n}") for n in range(count)]
    rows = pd.concat([*copies, *(copy.assign(metric="retention_layer_mean", value=0.3) for copy in copies)])
    figure = accuracy_vs_tokens(rows.drop_duplicates(["method", "retention_ratio", "metric"]))
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    assert 0 <= box.x0 < box.x1 <= figure.get_figwidth()
    lowest = figure.axes[-min(count, 5) :]
    assert all(any(label.get_visible() for label in axes.get_xticklabels()) for axes in lowest)


def test_rows_that_do_not_go_together_are_refused(rows, make):
    draw = (accuracy_vs_retention, accuracy_vs_tokens, accuracy_vs_speedup, kept_by_method)
    other = rows.assign(weights="finetuned")
    anew = rows.assign(value=rows.value / 2)
    elsewhere = rows.assign(benchmark="elsewhere")
    for figure in draw:
        with pytest.raises(
            ValueError, match=r"rows with several values of weights \(w, finetuned\): choose the rows with one of them"
        ):
            figure(pd.concat([rows, other]))
        with pytest.raises(ValueError, match=r"rows with several values of frames \(8, 16\)"):
            figure(pd.concat([rows, rows.assign(frames=16)]))
        with pytest.raises(ValueError, match=r"two values of \w+ for dense at 1: choose the rows of one run"):
            figure(pd.concat([rows, anew]))
        with pytest.raises(ValueError, match=r"several benchmarks \(bench, elsewhere\) without their average"):
            figure(pd.concat([rows, elsewhere]))
        with pytest.raises(ValueError, match="there are no rows to draw"):
            figure(rows[:0])
    twice = lines(accuracy_vs_retention(pd.concat([rows, rows])))
    assert twice["ours"].get_xdata().tolist() == [25, 50]
    for wrong in ("ours", []):
        with pytest.raises(ValueError, match=r"give a list of labels, such as \['ours', 'random'\]"):
            accuracy_vs_retention(rows, methods=wrong)
    with pytest.raises(ValueError, match=r"highlight='ours': give a list of labels"):
        kept_by_method(rows, highlight="ours")
    with pytest.raises(ValueError, match="and speedup: the rows have prefill_speedup; for others"):
        accuracy_vs_speedup(rows, metric="speedup")


def test_methods_stand_by_what_they_keep(rows):
    figure = kept_by_method(rows, ratios=[0.25], highlight=["ours"])
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    main = headline(rows)
    kept = main[(main.metric == "accuracy_kept_percent") & (main.retention_ratio == 0.25)].set_index("method")
    assert names == list(kept.value.sort_values().index)
    assert [label.get_fontweight() == "bold" for label in axes.get_yticklabels()] == [n == "ours" for n in names]
    points = axes.containers[0].lines[0]
    assert points.get_xdata().tolist() == kept.value[names].tolist()
    (bars,) = axes.containers[0].lines[2]
    ends = [tuple(segment[:, 0]) for segment in bars.get_segments()]
    assert ends == [pytest.approx(kept.loc[n, ["ci_low", "ci_high"]].tolist()) for n in names]
    both = kept_by_method(rows, ratios=[0.25, 0.5]).axes[0]
    assert [label.get_text() for label in both.get_yticklabels()] == ["ours"]  # the only one measured at both


def test_labels_are_read_as_compare_reads_them(make):
    full = "ours(tau=0.9, positions=contiguous)"
    records = [*make("dense", 1.0, "1" * 8), *make(full, 0.5, "10" * 4), *make("other", 0.5, "01" * 4)]
    rows = result_rows(records, table="t", weights={"toy": "w"}, against=[full], bootstrap=Bootstrap(30))
    given = "ours (positions=contiguous,tau=0.9)"
    assert [*lines(accuracy_vs_retention(rows, methods=[given], bands=[given]))][1:] == [full]
    assert points_over(rows, given).get_supxlabel().replace("\n", " ") == f"points of accuracy over {full}"
    names = kept_by_method(rows, highlight=[given]).axes[0].get_yticklabels()
    assert {name.get_text(): name.get_fontweight() for name in names}[full] == "bold"


def test_gains_over_a_method_have_a_panel_a_ratio(make):
    # two questions a video: better, worse and alike in every one, and one that is not measured everywhere
    records = [*make("dense", 1.0, "1" * 8), *(r for ratio in (0.5, 0.2) for r in make("ours", ratio, "10" * 4))]
    for method, outcomes in (("better", "11" * 4), ("worse", "00" * 4), ("alike", "01" * 4)):
        records += make(method, 0.5, outcomes)
    records += make("better", 0.2, "11" * 4)
    rows = result_rows(
        records,
        table="t",
        weights={"toy": "w"},
        methods=["worse", "better", "alike"],
        against=["ours"],
        bootstrap=Bootstrap(30),
    )
    figure = points_over(rows, "ours")
    first, second = figure.axes
    assert [axes.get_title("left") for axes in (first, second)] == ["R = 50 %", "R = 20 %"]
    assert [label.get_text() for label in first.get_yticklabels()] == ["worse", "better", "alike"]
    assert first.yaxis_inverted()

    def points(axes):
        drawn = [container.lines[0] for container in axes.containers]
        return {line.get_color(): [*zip(line.get_xdata(), line.get_ydata(), strict=True)] for line in drawn}

    gained, lost, neither = "#0072B2", "#D55E00", "#777777"
    assert points(first) == {gained: [(50, 1)], lost: [(-50, 0)], neither: [(0, 2)]}
    assert points(second)[gained] == [(50, 1)]
    assert points(second)[lost] == []
    with pytest.raises(ValueError, match=r"methods with ours, not with 'theirs': .* table\.against='theirs'"):
        points_over(rows, "theirs")
    with pytest.raises(ValueError, match="methods with dense alone, not with 'ours'"):
        points_over(rows[rows.metric == "accuracy"], "ours")


def test_the_ends_of_the_ratios_are_drawn_where_none_are_given(make):
    def drawn(*ratios):
        records = [*make("dense", 1.0, "1111"), *(r for ratio in ratios for r in make("ours", ratio, "0111"))]
        rows = result_rows(records, table="t", weights={"toy": "w"}, bootstrap=Bootstrap(30))
        legend = kept_by_method(rows).axes[0].get_legend_handles_labels()[1]
        return [label for label in legend if label != "dense"]

    assert drawn(0.5, 0.2, 0.3) == ["R = 20 %", "R = 50 %"]
    assert drawn(0.3) == ["R = 30 %"]
    with pytest.raises(ValueError, match="the rows hold no method at a retention ratio below 1: run one first"):
        drawn()


def test_more_ratios_than_colours_still_look_different(make):
    ratios = [i / 20 for i in range(1, 11)]
    records = [*make("dense", 1.0, "1111"), *(r for ratio in ratios for r in make("ours", ratio, "0111"))]
    rows = result_rows(records, table="t", weights={"toy": "w"}, bootstrap=Bootstrap(30))
    points = [bars.lines[0] for bars in kept_by_method(rows, ratios=ratios).axes[0].containers]
    assert len({(line.get_color(), line.get_marker()) for line in points}) == len(ratios)


def test_points_of_equal_values_do_not_hide_each_other(make):
    records = [*make("dense", 1.0, "1111"), *(r for ratio in (0.25, 0.5) for r in make("ours", ratio, "0111"))]
    rows = result_rows(records, table="t", weights={"toy": "w"}, bootstrap=Bootstrap(30))

    def places(ratios):
        return [bars.lines[0].get_xydata()[0] for bars in kept_by_method(rows, ratios=ratios).axes[0].containers]

    (x, y), (x_of_other, y_of_other) = places([0.25, 0.5])
    assert x == x_of_other
    assert 0.2 < abs(y - y_of_other) < 0.4
    assert places([0.5])[0][1] == 0


def test_points_are_hollow_where_layers_see_more(rows):
    def hollow(seen):
        more = headline(rows)
        more = more[(more.metric == "accuracy") & (more.method == "ours")].assign(
            metric="retention_layer_mean", value=seen
        )
        axes = kept_by_method(pd.concat([rows, more]), ratios=[0.25]).axes[0]
        points = [line for line in axes.get_lines() if line.get_markerfacecolor() == "white"]
        return [line.get_ydata().tolist() for line in points if len(line.get_ydata())]

    ours = [label.get_text() for label in kept_by_method(rows, ratios=[0.25]).axes[0].get_yticklabels()].index("ours")
    assert hollow(0.31) == [[ours]]
    assert hollow(0.25) == []


def test_saved_files_are_equal_every_time(rows, tmp_path):
    first = save(accuracy_vs_retention(rows), tmp_path / "a" / "figure")
    second = save(accuracy_vs_retention(rows), tmp_path / "b" / "figure.png")
    assert [p.name for p in first] == ["figure.png", "figure.svg"] == [p.name for p in second]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
        assert one.stat().st_size > 5000


def test_what_cannot_be_drawn_is_an_error(rows):
    with pytest.raises(ValueError, match="methods: no rows of nobody; there are: ours, random"):
        accuracy_vs_retention(rows, methods=["nobody"])
    with pytest.raises(ValueError, match="bands: no rows of random; there are: ours"):  # there is no such line
        accuracy_vs_retention(rows, methods=["ours"], bands=["random"])
    with pytest.raises(ValueError, match=r"highlight: no rows of our; did you mean ours\? there are: dense, ours"):
        kept_by_method(rows, highlight=["our"])
    with pytest.raises(ValueError, match=r"ratios=\[0\.5, 0\.1\]: the rows have 0\.25, 0\.5, 1; choose from these"):
        kept_by_method(rows, ratios=[0.5, 0.1])
    assert kept_by_method(rows, ratios=rows.retention_ratio[rows.retention_ratio < 1].unique()).axes
    with pytest.raises(ValueError, match=r"ratios=\[\]: the rows have"):
        kept_by_method(rows, ratios=[])
    for wrong in (0.5, "0.5"):
        with pytest.raises(
            ValueError, match=rf"^ratios={wrong!r}: give a list of numbers, such as \[0\.25, 0\.5, 1\]$"
        ):
            kept_by_method(rows, ratios=wrong)
    with pytest.raises(ValueError, match=r"^ratios='0\.5': it must be a number"):
        kept_by_method(rows, ratios=["0.5"])
    with pytest.raises(ValueError, match=r"^chance='25': it must be a number"):
        accuracy_vs_retention(rows, chance="25")
    with pytest.raises(ValueError, match=r"^reference=\['ours'\]: it must be a text"):
        points_over(rows, ["ours"])
    ours_at_one = rows[(rows.method != "ours") | (rows.retention_ratio == 0.5)]
    with pytest.raises(
        ValueError, match=r"no method was measured at each of the ratios 0\.25, 0\.5: choose others of 0\.25, "
    ):
        kept_by_method(ours_at_one)
    with pytest.raises(ValueError, match="measure latency"):
        accuracy_vs_speedup(rows, metric="e2e_speedup")
    with pytest.raises(ValueError, match="no measured accuracy"):
        accuracy_vs_retention(rows[rows.metric != "accuracy"])


def test_drawing_libraries_are_loaded_only_when_used():
    modules = "mmg_bench.report.figures, mmg_bench.report.table, mmg_bench.report.rows"
    code = f"import sys, {modules}; sys.exit(any(m in sys.modules for m in ('matplotlib', 'rich')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
