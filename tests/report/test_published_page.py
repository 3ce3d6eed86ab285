import re

import published_page

from mmg_bench.report.published import published


def test_the_page_shows_what_the_file_holds() -> None:
    page = published_page.PAGE.read_text()
    for (begin, end), table in (
        (published_page.NUMBERS, published_page.numbers()),
        (published_page.SPREAD, published_page.spread()),
    ):
        assert f"{begin}\n{table}\n{end}" in page, "run scripts/refresh_docs.py"


def test_every_score_is_on_the_page_once() -> None:
    table = published()
    scores = table[table.benchmark.isin(list(published_page.BENCHMARKS))]
    lines = [line.split(" | ") for line in published_page.numbers().splitlines() if re.match(r"\| [a-z].* % ", line)]
    shown = [float(text.split()[0]) for line in lines for text in line[2:6] if text[0].isdigit()]
    assert sorted(shown) == sorted(scores.score)


def test_percentages_are_of_the_dense_model_in_the_same_paper() -> None:
    lines = published_page.numbers().splitlines()
    (line,) = [x for x in lines if x.startswith("| mmg_vid | 25 % | 56.7")]
    assert line.startswith("| mmg_vid | 25 % | 56.7 (98.4 %) | 56.6 | – | 58.6 |")  # that dense has MVBench alone: 57.6
    # in another table of the paper, dense has 58.3, 56.4 and 58.6
    assert any(
        x.startswith("| simplecluster | 10 % | 56.8 (97.4 %) | 56.5 (100.2 %) | – | 56.0 (95.6 %)") for x in lines
    )


def test_the_widest_disagreement_comes_first_and_small_ones_are_left_out() -> None:
    apart = [float(x.split(" | ")[-1].rstrip(" |")) for x in published_page.spread().splitlines()[2:]]
    assert apart == sorted(apart, reverse=True)
    assert apart[-1] >= published_page.AT_LEAST
    table = published()
    scores = table[table.benchmark.isin(list(published_page.BENCHMARKS))]
    cells = scores.groupby([*published_page.CELL, "benchmark"]).score
    assert apart[0] == round((cells.max() - cells.min()).max(), 1)
