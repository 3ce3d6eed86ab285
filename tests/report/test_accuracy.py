import dataclasses
from dataclasses import replace

import pandas as pd
import pytest

from mmg_bench.commands.publish import publish
from mmg_bench.measure.flops import TextGeometry
from mmg_bench.measure.latency import LatencySettings
from mmg_bench.report.accuracy import layout, leading
from mmg_bench.report.leading import is_control
from mmg_bench.report.published import COLUMNS
from mmg_bench.report.rows import Measurement, pending_rows, result_rows
from mmg_bench.report.table import _USUAL, print_tables, to_markdown
from mmg_bench.runner.provenance import read, write

GEOMETRY = TextGeometry(layers=4, hidden=64, intermediate=128, kv_width=32)
NOTHING = pd.DataFrame(columns=list(COLUMNS))

SNAPSHOT = """\
## t: toy, bench, 8 frames

- Model: toy, weights: trained; 8 frames; bench (12 questions on 6 videos)
- Measured (key1): a CPU, float32, sdpa, 2026-01-02, commit abc123; reproduce with `mmg-bench table toy`
- Intervals on bench are too narrow: they rest on 6 videos, fewer than 20
- Accuracy: percent of the answered questions. Kept: percent of dense's accuracy, with a 95 % interval paired with \
dense, from a bootstrap over videos. Bold: the best of each block among methods (no controls) whose layers see at most \
R on average, and those whose paired difference from it has 0 in its interval
- Lost / won: questions that dense answered better / worse than the method; p: McNemar's test
- FLOPs: multiply-adds of the language model's prefill over visual tokens (`flops_gqa`)
- Prefill speed-up: dense's prefill time over that of pruning + prefill, 20 rounds
- In parentheses: published numbers

| Method | colour | order | All | Kept % [95 % CI] | Lost / won | p (McNemar) | Tokens | FLOPs (of dense) | \
Prefill speed-up [95 % CI] | Errors |
|:--|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|
| dense | 83.3 | 83.3 | 83.3 (84.0ᵃ, 86.0ᵇ) | 100.0 | – | – | 64 | 11.53 M | 1× | 0 of 12 |
| **R = 50 %** |  |  |  |  |  |  |  |  |  |  |
| ours | 66.7 | 66.7 | 66.7 | **80.0 [40.0, 100.0]** | 2 / 0 | 0.500 | 32 | 5.24 M (45.5 %) | – | 0 of 12 |
| **R = 25 %** |  |  |  |  |  |  |  |  |  |  |
| ours | 50.0 | 66.7 | 58.3 (70.0ᵃ) | **70.0 [33.3, 125.0]** | 4 / 1 | 0.375 | 16 | 2.49 M (21.6 %) | \
2.50× [2.40, 2.60] | 0 of 12 |
| random (control) | 33.3 | 40.0 | 36.4 | 44.4 [0.0, 88.9] | 5 / 0 | 0.062 | 16 | 2.49 M (21.6 %) | – | 1 of 12 |

- ᵃ One paper
- ᵇ Another (their own run)
"""


def cited(*numbers):
    """(method, retention, benchmark, score, source, note) each."""
    rows = [("toy", 8, m, r, b, s, float("nan"), source, note) for m, r, b, s, source, note in numbers]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def rows_of(records, **options):
    return result_rows(records, table="t", weights={"toy": "trained"}, **options)


def line(markdown, method):
    """Cells of the first line that starts with `method`, by column name."""
    lines = [[c.strip() for c in text.strip("| ").split(" | ")] for text in markdown.splitlines() if text[:1] == "|"]
    return dict(zip(lines[0], next(x for x in lines if x[0] == method), strict=True))


def test_settings_that_are_told_where_they_are_unusual_have_the_usual_values_of_latency():
    assert {name: getattr(LatencySettings(), name) for name in _USUAL} == _USUAL


def test_markdown_of_one_benchmark(toy, provenance):
    speed = [
        Measurement("toy", "bench", 8, m, r, "prefill_speedup", *v, 20, "key1")
        for m, r, v in (("dense", 1.0, (1, 1, 1)), ("ours", 0.25, (2.5, 2.4, 2.6)))
    ]
    published = cited(
        ("dense", 1.0, "bench", 84.0, "One paper", ""),
        ("dense", 1.0, "bench", 86.0, "Another", "their own run"),
        ("ours", 0.25, "bench", 70.0, "One paper", ""),
        ("ours", 0.25, "elsewhere", 1.0, "Not to be shown", ""),
    )
    rows = rows_of(toy, measurements=speed, geometries={"toy": GEOMETRY})
    assert to_markdown(layout(rows, provenance, published)) == SNAPSHOT


def test_frames_a_second_are_told_for_their_number(toy, provenance):
    provenance["key1"]["model"]["fps"] = 0.5
    table = to_markdown(layout(rows_of(toy), provenance, NOTHING))
    assert table.startswith("## t: toy, bench, 0.5 frames a second, 8 at most\n")
    assert "- Model: toy, weights: trained; 0.5 frames a second, 8 at most; bench (12 questions" in table
    assert "2026-01-02, fps=0.5, commit abc123" in table


def test_questions_lost_by_pooled_are_a_table_of_their_own(make, provenance):
    records = [
        *make("dense", 1.0, "111111111100"),
        *make("pooled", 0.5, "111111110000"),
        *make("ours", 0.5, "111111111000"),
        *make("pooled", 0.25, "110000110000"),
        *make("ours", 0.25, "11110xxx1000"),
        *make("random", 0.25, "000000000000"),
    ]
    rows = rows_of(records)
    main, lost = layout(rows, provenance, NOTHING)
    assert main.title == "t: toy, bench, 8 frames"
    assert lost.title == "t: toy, bench, 8 frames: questions lost by pooled"
    assert lost.columns == ("Method", "R = 50 % (2 questions)", "R = 25 % (6 questions)")
    _, at_quarter = rows[(rows.method == "ours") & (rows.metric == "accuracy_lost_by_pooled")].itertuples()
    (block,) = lost.blocks
    assert [[entry.text for entry in entries] for entries in block.lines] == [
        ["ours", "50.0", f"60.0 [{at_quarter.ci_low:.1f}, {at_quarter.ci_high:.1f}]"],  # 50: of one video
        ["random (control)", "–", "0.0 [0.0, 0.0]"],
    ]


def test_gains_over_another_method_are_a_column(toy, provenance):
    rows = rows_of([*toy, *[replace(r, method="second") for r in toy if r.method == "random"]], against=["random"])
    text = to_markdown(layout(rows, provenance, NOTHING))
    assert line(text, "second")["Over random [95 % CI]"] == "+0.0 [+0.0, +0.0]"
    (gain,) = [r for r in rows.itertuples() if (r.method, r.metric) == ("ours", "points_over random")]
    assert f"| {gain.value:+.1f} [{gain.ci_low:+.1f}, {gain.ci_high:+.1f}] |" in text
    assert (
        line(text, "random (control)")["Over random [95 % CI]"] == line(text, "dense")["Over random [95 % CI]"] == "–"
    )
    assert "- Over ...: accuracy less that method's at the same ratio, in points" in text
    assert "Over" not in to_markdown(layout(rows_of(toy), provenance, NOTHING))


def test_several_benchmarks_are_columns_with_their_average(make, provenance):
    records = [
        *make("dense", 1.0, "1111", benchmark="long"),
        *make("ours", 0.5, "1100", benchmark="long"),
        *make("dense", 1.0, "1010", benchmark="short"),
        *make("ours", 0.5, "1010", benchmark="short"),
        *make("partial", 0.5, "1010", benchmark="short"),
    ]
    speed = [Measurement("toy", "short", 8, "ours", 0.5, "prefill_speedup", 1.5, 1.4, 1.6, 20, "key1")]
    published = cited(("ours", 0.5, "average_retention_percent", 99.5, "abstract", "over 99.5 %"))
    rows = rows_of(records, benchmarks=["short", "long"], measurements=speed)
    text = to_markdown(layout(rows, provenance, published))
    ours = line(text, "ours")
    assert list(ours)[:5] == ["Method", "short", "long", "Avg.", "Kept % [95 % CI]"]
    assert (ours["short"], ours["long"], ours["Avg."]) == ("50.0", "50.0", "50.0")
    assert ours["Kept % [95 % CI]"].startswith("**66.7 [")
    assert ours["Kept % [95 % CI]"].endswith(" (99.5ᵃ)**")
    assert ours["Prefill speed-up [95 % CI]"] == "1.50× [1.40, 1.60]"
    assert "- ᵃ abstract (over 99.5 %)" in text
    partial = line(text, "partial")
    assert (partial["short"], partial["long"], partial["Avg."]) == ("50.0", "–", "–")
    assert "Errors" not in ours
    assert "FLOPs (of dense)" not in ours


def test_a_skill_or_benchmark_called_like_a_column_takes_no_place_of_it(make, provenance):
    def answers(**options):
        return [*make("dense", 1.0, "1111", **options), *make("ours", 0.5, "1000", **options)]

    def columns(records):
        (table,) = layout(rows_of(records), provenance, NOTHING)
        return [*zip(table.columns, (entry.text for entry in table.blocks[1].lines[0]), strict=True)]

    usual = [("Method", "ours"), ("Tokens", "32"), ("All", "25.0"), ("Kept % [95 % CI]", "25.0 [0.0, 50.0]")]
    for name, _ in usual:
        found = columns(answers(skills=(name, "order")))
        assert {*usual, (name, "50.0"), ("order", "0.0")} < {*found}
    found = columns([*answers(benchmark="Avg."), *answers(benchmark="Method")])
    assert [name for name, _ in found[:4]] == ["Method", "Avg.", "Method", "Avg."]


def test_dense_that_contradicts_a_publication_is_flagged(make, provenance):
    rows = rows_of(make("dense", 1.0, "10" * 10))  # each video 50 %: the interval is [50, 50]
    text = to_markdown(layout(rows, provenance, cited(("dense", 1.0, "bench", 64.9, "A paper", ""))))
    assert line(text, "dense")["All"] == "50.0 ⚠ (64.9ᵃ)"
    assert "- ⚠ bench: dense scores 50.0 [50.0, 50.0] here, but 64.9 in A paper" in text
    agreeing = to_markdown(layout(rows, provenance, cited(("dense", 1.0, "bench", 50.0, "A paper", ""))))
    assert "⚠" not in agreeing


def test_controls_are_never_the_best(make, provenance):
    records = [
        *make("dense", 1.0, "1111"),
        *make("random", 0.5, "1111"),
        *make("a", 0.5, "1110"),
        *make("b", 0.5, "1000"),
    ]
    text = to_markdown(layout(rows_of(records), provenance, NOTHING))
    assert "**" not in line(text, "random (control)")["Kept % [95 % CI]"]
    assert line(text, "a")["Kept % [95 % CI]"].startswith("**75.0")
    assert "**" not in line(text, "b")["Kept % [95 % CI]"]


def test_who_keeps_more_than_the_ratio_is_never_the_best(make, provenance):
    records = [
        *make("dense", 1.0, "1111"),
        *(replace(record, realised_tokens=20) for record in make("floored", 0.25, "1111")),  # of 64
        *make("honest", 0.25, "1110"),
    ]
    text = to_markdown(layout(rows_of(records, geometries={"toy": GEOMETRY}), provenance, NOTHING))
    assert "**" not in line(text, "floored")["Kept % [95 % CI]"]
    assert line(text, "honest")["Kept % [95 % CI]"].startswith("**75.0")


def test_what_the_questions_do_not_tell_from_the_best_is_in_bold_too(make, provenance):
    outcomes = {
        "best": "1" * 39 + "0",
        "near": "1" * 36 + "0011",  # best has two more, and one less: in resamples, either is ahead
        "same": "0" + "1" * 39,
        "behind": "1001" * 10,
        "random": "1" * 40,
        "floored": "1" * 40,
    }
    records = [*make("dense", 1.0, "1" * 40)]
    for name, answers in outcomes.items():
        tokens = 20 if name == "floored" else 16  # of 64
        records += [replace(record, realised_tokens=tokens) for record in make(name, 0.25, answers)]
    records += make("best", 0.5, "1" * 20 + "0" * 20) + make("behind", 0.5, "1" * 40)  # each ratio has its own best
    rows = rows_of(records, geometries={"toy": GEOMETRY})
    lead = {("best", 0.25), ("near", 0.25), ("same", 0.25), ("behind", 0.5)}
    assert leading(rows) == lead
    (table,) = layout(rows, provenance, NOTHING)
    column = table.columns.index("Kept % [95 % CI]")
    bold = {(block.title, line[0].text) for block in table.blocks for line in block.lines if line[column].bold}
    assert bold == {(f"R = {100 * ratio:g} %", name) for name, ratio in lead}
    assert any("whose paired difference from it has 0 in its interval" in text for text in table.header)
    alone = rows[rows.metric != "points_from_best"]  # as of older rows
    assert leading(alone) == {("best", 0.25), ("same", 0.25), ("behind", 0.5)}
    assert not any("paired difference" in text for table in layout(alone, provenance, NOTHING) for text in table.header)


def test_variants_of_controls_are_controls():
    assert is_control("random")
    assert is_control("fewer_frames(positions=contiguous)")
    assert not is_control("mmg_vid")
    assert not is_control("random_walk")


def test_undefined_and_failed_values_show_as_none(make, provenance):
    records = [*make("dense", 1.0, "0000"), *make("a", 0.5, "1xxx"), *make("b", 0.5, "xxxx")]
    text = to_markdown(layout(rows_of(records), provenance, NOTHING))
    assert "nan" not in text
    assert "Kept" not in text.split("| Method")[1].splitlines()[0]  # undefined everywhere: no column
    assert line(text, "a")["All"] == "100.0"
    assert (line(text, "b")["All"], line(text, "b")["Errors"]) == ("–", "4 of 4")


def test_pending_cells_say_so(provenance):
    rows = pending_rows(
        table="t", model="toy", weights="absent", frames=8, benchmarks=["x", "y"], cells=[("dense", 1.0), ("ours", 0.5)]
    )
    text = to_markdown(layout(rows, provenance, cited(("ours", 0.5, "x", 57.9, "A paper", ""))))
    assert line(text, "ours") == {"Method": "ours", "x": "pending (57.9ᵃ)", "y": "pending"}


def test_what_was_measured_is_not_pending(toy, provenance):
    rows = rows_of(toy)
    cells = [("dense", 1.0), ("ours", 0.5), ("later", 0.5)]
    pending = pending_rows(table="t", model="toy", weights="trained", frames=8, benchmarks=["bench"], cells=cells)
    text = to_markdown(layout(pd.concat([rows, pending], ignore_index=True), provenance, NOTHING))
    assert [line(text, method)["All"] for method in ("dense", "ours", "later")] == ["83.3", "66.7", "pending"]


def test_each_model_has_its_own_table(make, provenance):
    records = [*make("dense", 1.0, "10"), *make("dense", 1.0, "10", frames=16)]
    tables = layout(rows_of(records), provenance, NOTHING)
    assert [t.title for t in tables] == ["t: toy, bench, 8 frames", "t: toy, bench, 16 frames"]


def test_a_folder_of_records_keeps_where_all_of_them_come_from(toy, provenance, tmp_path):
    wanted = {"key1": {**provenance["key1"], "asked": ["a"], "cells": ["of a speed"]}}  # as records have it
    there = {**wanted, "key2": {"command": "earlier"}}
    (tmp_path / "records-0.jsonl").touch()
    write(tmp_path, there)
    for sources in (there, wanted):  # as known, and as before another command came
        publish(rows_of(toy), sources, tmp_path, layout, shown=False)
        assert read(tmp_path) == there
    (tmp_path / "records-0.jsonl").unlink()
    write(tmp_path, {"key2": there["key2"]})  # of an earlier table in this place
    publish(rows_of(toy), there, tmp_path, layout, shown=False)
    assert read(tmp_path) == {"key1": {**provenance["key1"], "cells": ["of a speed"]}}


def test_how_the_last_command_averages_is_told_though_it_answered_nothing(toy, provenance, tmp_path):
    sources = dict(provenance)
    for key, date, average in (("key1", "2026-01-02", "questions"), ("key2", "2026-01-03", "skills")):
        facts = {"benchmark": {"name": "bench", "average": average}, "date": date}
        sources[key] = {**provenance["key1"], **facts}
        publish(rows_of(toy), sources, tmp_path, layout, shown=False)
        assert ("the mean over the skills" in (tmp_path / "table.md").read_text()) == (average == "skills")
    assert read(tmp_path) == sources  # from which the table can be laid out anew
    sources["key1"]["last_date"] = "2026-01-04"
    publish(rows_of(toy), sources, tmp_path, layout, shown=False)
    assert "the mean over the skills" not in (tmp_path / "table.md").read_text()


def test_what_cannot_be_shown_takes_the_place_of_nothing(toy, provenance, tmp_path):
    publish(rows_of(toy), provenance, tmp_path, layout, shown=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="no rows"):
        publish(rows_of(toy)[:0], provenance, tmp_path, layout, shown=False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_missing_provenance_and_no_rows_are_errors(toy, provenance):
    rows = rows_of(toy)
    with pytest.raises(ValueError, match="'key1'"):
        layout(rows, {}, NOTHING)
    with pytest.raises(ValueError, match="no rows"):
        layout(rows.iloc[:0], provenance, NOTHING)


def test_pipes_do_not_break_the_table(make, provenance):
    records = [dataclasses.replace(r, method="a|b", cell="c") for r in make("ours", 0.5, "11")]
    text = to_markdown(layout(rows_of([*make("dense", 1.0, "11"), *records]), provenance, NOTHING))
    assert r"| a\|b |" in text


def test_terminal_shows_the_same_cells(toy, provenance, capsys):
    tables = layout(rows_of(toy), provenance, NOTHING)
    print_tables(tables)
    shown = capsys.readouterr().out
    for block in tables[0].blocks:
        for cells in block.lines:
            assert any(all(c.text in text for c in cells) for text in shown.splitlines())
    assert "[33.3, 125.0]" in shown  # not taken for markup
    assert "reproduce with `mmg-bench table toy`" in shown


def test_what_the_layers_see_is_shown_where_methods_prune_inside(make, provenance):
    inside = [dataclasses.replace(r, realised_tokens=64, stages=[[2, 16]]) for r in make("fastv", 0.25, "11")]
    rows = rows_of([*make("dense", 1.0, "11"), *inside], geometries={"toy": GEOMETRY})
    shown = line(to_markdown(layout(rows, provenance, NOTHING)), "fastv")
    assert shown["Tokens"] == "64"
    assert shown["Layer mean"] == "62.5 %"


def test_what_kept_tokens_stand_for_is_shown_where_some_are_left_out(make, provenance):
    shares = (0.5, 0.75, None, None)  # one failed; of the last one nothing is known, as in an older version's record
    some = [
        dataclasses.replace(r, coverage=c, quantisation_error=c and c / 10)
        for r, c in zip(make("ours", 0.25, "11x1"), shares, strict=True)
    ]
    rows = rows_of([*make("dense", 1.0, "1111"), *some, *make("fastv", 0.25, "1111")])
    table = to_markdown(layout(rows, provenance, NOTHING))
    assert [line(table, method)["Covered"] for method in ("dense", "ours", "fastv")] == ["–", "62.5 %", "–"]
    assert "\n- Covered: the share of the video's tokens that resemble one that enters layer 0 (cosine of 0.9" in table
    (row,) = rows[rows.metric == "quantisation_error"].itertuples()
    assert (row.method, row.value, row.n, row.n_errors) == ("ours", 0.0625, 2, 1)
    without = rows_of([*make("dense", 1.0, "11"), *make("ours", 0.25, "11")])
    assert "Covered" not in to_markdown(layout(without, provenance, NOTHING))


@pytest.mark.parametrize(("slowest", "said"), [(14.9, False), (15.1, True)])
def test_a_machine_that_was_busy_is_flagged(toy, provenance, slowest, said):
    times = [Measurement("toy", "bench", 8, "dense", 1.0, "prefill_ms", 12, 10, slowest, 20, "key1")]
    (table,) = layout(rows_of(toy, measurements=times), provenance, NOTHING)
    assert any("took from 10 to 15.1 ms" in note for note in table.footnotes) == said


@pytest.mark.parametrize(("rounds", "said"), [(9, True), (10, False)])
def test_speedups_of_few_rounds_are_flagged(toy, provenance, rounds, said):
    speed = [Measurement("toy", "bench", 8, "ours", 0.25, "prefill_speedup", 2.5, 2.4, 2.6, rounds, "key1")]
    (table,) = layout(rows_of(toy, measurements=speed), provenance, NOTHING)
    assert any(note.startswith(f"⚠ only {rounds} rounds: below 10") for note in table.footnotes) == said


def test_a_model_that_answers_nothing_right_is_flagged(make, provenance):
    note = "⚠ bench: dense answers no question right, so there is nothing to keep. Read its answers"
    for right, said in (("0000", True), ("0100", False)):
        rows = rows_of([*make("dense", 1.0, right), *make("ours", 0.5, "0000")])
        (table,) = layout(rows, provenance, NOTHING)
        assert any(footnote.startswith(note) for footnote in table.footnotes) == said


def test_a_mean_over_skills_is_said(toy, provenance):
    facts = provenance["key1"]
    for average, said in (("skills", True), ("questions", False)):
        facts["benchmark"] = {"name": "bench", "average": average}
        (table,) = layout(rows_of(toy), provenance, NOTHING)
        assert any(line.startswith("Accuracy on bench: the mean over the skills") for line in table.header) == said


def test_a_mean_that_a_skill_without_answers_denies_is_flagged(make, provenance):
    skills = ("colour", "order", "order")
    records = [
        *make("dense", 1.0, "x11x11", benchmark="macro", skills=skills),
        *make("ours", 0.5, "x10x10", benchmark="macro", skills=skills),
    ]
    others = [*make("dense", 1.0, "11", benchmark="plain"), *make("ours", 0.5, "10", benchmark="plain")]
    note = "- ⚠ macro: no mean over the skills, because every question of colour failed"
    text = to_markdown(layout(rows_of(records, over_skills=["macro"]), provenance, NOTHING))
    shown = line(text, "ours")
    assert (shown["order"], shown["All"], shown["Kept % [95 % CI]"]) == ("50.0", "⚠", "⚠")
    assert note in text.splitlines()
    text = to_markdown(layout(rows_of([*records, *others], over_skills=["macro"]), provenance, NOTHING))
    shown = line(text, "ours")
    assert (shown["macro"], shown["plain"], shown["Avg."], shown["Kept % [95 % CI]"]) == ("⚠", "50.0", "⚠", "⚠")
    assert note in text.splitlines()
    assert "⚠" not in to_markdown(layout(rows_of([*records, *others]), provenance, NOTHING))


@pytest.mark.parametrize(
    ("whole", "title", "counted"),
    [
        ({}, "", "bench (12 questions on 6 videos)"),
        ({"bench": 12}, "", "bench (12 questions on 6 videos)"),
        ({"bench": 40}, ", only the first 12 questions", "bench (first 12 of 40 questions on 6 videos)"),
    ],
)
def test_a_table_of_the_first_questions_says_so(toy, provenance, whole, title, counted):
    (table,) = layout(rows_of(toy), provenance, NOTHING, whole=whole)
    assert table.title == f"t: toy, bench, 8 frames{title}"
    assert table.header[0] == f"Model: toy, weights: trained; 8 frames; {counted}"


@pytest.mark.parametrize(("videos", "said"), [(1, True), (19, True), (20, False)])
def test_intervals_over_few_videos_are_told_of(make, provenance, videos, said):
    failed = "xx"  # of one video more, which tells of nothing
    records = [*make("dense", 1.0, "10" * videos + failed), *make("ours", 0.5, "10" * videos + failed)]
    (table,) = layout(rows_of(records), provenance, NOTHING)
    assert table.header[0].endswith(f"on {videos} video{'s' * (videos > 1)})")
    assert any(line.startswith("Intervals on bench are too narrow") for line in table.header) == said


def test_rows_that_do_not_say_how_many_videos_there_were_make_a_table(toy, provenance):
    rows = rows_of(toy)
    (table,) = layout(rows[rows.metric != "videos"], provenance, NOTHING)
    assert table.header[0].endswith("; bench (12 questions)")
    assert not any("too narrow" in line for line in table.header)


def test_of_several_benchmarks_each_has_its_first_questions(make, provenance):
    records = [r for b, right in (("long", "1111"), ("short", "11")) for r in make("dense", 1.0, right, benchmark=b)]
    (table,) = layout(rows_of(records), provenance, NOTHING, whole={"long": 9, "short": 2})
    assert table.title == "t: toy, long, short, 8 frames, only the first 4 questions of each"
    assert table.header[0].endswith("; long (first 4 of 9 questions on 2 videos), short (2 questions on 1 video)")
