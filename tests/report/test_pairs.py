import dataclasses

import pytest

from mmg_bench.report.pairs import pair_tables
from mmg_bench.report.statistics import Bootstrap

FAST = Bootstrap(n_boot=300)
OURS, RANDOM = ("ours", 0.25), ("random", 0.25)


def lines(table):
    """(block, first cell) -> the other cells."""
    return {(b.title, line[0].text): [c.text for c in line[1:]] for b in table.blocks for line in b.lines}


def test_values_by_hand(toy, provenance):
    (table,) = pair_tables(toy, provenance, OURS, RANDOM, bootstrap=FAST)
    assert table.title == "A: ours at R = 25 %; B: random at R = 25 %; toy, 8 frames"
    found = lines(table)
    assert list(found) == [("bench", "all"), ("bench", "colour"), ("bench", "order")]
    n, failed, a, b, difference, p, only_a, only_b = found["bench", "all"]
    assert (n, failed, a, b) == ("11", "1", "63.6", "36.4")  # of the question that failed in B, A's answer counts not
    assert difference.startswith("+27.3 [")
    assert (p, only_a, only_b) == ("0.375", "4", "1")  # 2 * (1 + 5) / 32
    assert found["bench", "order"][:4] == ["5", "1", "80.0", "40.0"]
    assert "reproduce with `mmg-bench table toy`" in table.header[0]
    (swapped,) = pair_tables(toy, provenance, RANDOM, OURS, bootstrap=FAST)
    assert lines(swapped)["bench", "all"][4].startswith("-27.3 [")
    assert lines(swapped)["bench", "all"][6:] == ["1", "4"]


def test_several_benchmarks_and_frames(make, provenance):
    records = [
        *make("ours", 0.25, "1111"),
        *make("random", 0.25, "1100"),
        *make("ours", 0.25, "11", benchmark="more"),
        *make("random", 0.25, "11", benchmark="more"),
        *make("ours", 0.25, "11", benchmark="rest"),
        *make("ours", 0.25, "10", frames=16),
        *make("random", 0.25, "11", frames=16),
        *make("random", 0.25, "11", frames=32),
    ]
    few, more = pair_tables(records, provenance, OURS, RANDOM, bootstrap=FAST)
    found = lines(few)
    assert found["", "average"][:5] == [
        "6",
        "0",
        "100.0",
        "75.0",
        "+25.0",
    ]  # of 50 and 0 points; one video has no interval
    assert found["more", "all"][4] == "+0.0"
    assert few.footnotes == ("On rest (toy, 8 frames), only ours has answers",)
    assert more.title.endswith("toy, 16 frames")
    assert lines(more)["bench", "all"][4] == "-50.0"


def test_a_mean_over_skills_is_that_of_the_table(make, provenance):
    records = [*make("ours", 0.25, "1110", skills=("a", "a", "a", "b")), *make("random", 0.25, "0000", skills="aaab")]
    for average, value in (("questions", "75.0"), ("skills", "50.0")):
        provenance["key1"]["benchmark"] = {"name": "bench", "average": average}
        (table,) = pair_tables(records, provenance, OURS, RANDOM, bootstrap=FAST)
        assert lines(table)["bench", "all"][2] == value
        assert any("the mean over the skills" in line for line in table.header) == (average == "skills")


def test_the_newest_answers_of_a_method_count(make, provenance):
    """As while a method is written: the same command, the method's code changed."""
    new = [dataclasses.replace(r, cell="new", provenance="key2") for r in make("ours", 0.25, "1111")]
    records = [*new, *make("ours", 0.25, "0000"), *make("random", 0.25, "1100")]
    sources = {**provenance, "key2": {**provenance["key1"], "date": "2026-01-03"}}
    (table,) = pair_tables(records, sources, OURS, RANDOM, bootstrap=FAST)
    assert lines(table)["bench", "all"][2] == "100.0"
    said = "ours answered bench in 2 versions of its code or settings: the newest counts, of 2026-01-03"
    assert table.footnotes == (said,)


def test_the_newest_wording_of_a_question_counts(make, provenance):
    """As with videos of one's own: a line of questions.csv changed, and the same command again."""

    def asked_anew(*records):
        return [dataclasses.replace(r, asked="anew", provenance="key2") for r in records if r.question == "q00"]

    ours, random = make("ours", 0.25, "0011"), make("random", 0.25, "0000")
    sources = {**provenance, "key2": {**provenance["key1"], "date": "2026-01-03"}}
    records = [*asked_anew(*make("ours", 0.25, "1")), *ours, *random, *asked_anew(*make("random", 0.25, "0"))]
    (table,) = pair_tables(records, sources, OURS, RANDOM, bootstrap=FAST)
    assert lines(table)["bench", "all"][:3] == ["4", "0", "75.0"]
    with pytest.raises(ValueError, match="asked 1 questions in different words, such as 'q00': run both in one"):
        pair_tables(records[:-1], sources, OURS, RANDOM, bootstrap=FAST)


def test_nothing_answered_by_both_is_no_number(make, provenance):
    (table,) = pair_tables([*make("ours", 0.25, "xx"), *make("random", 0.25, "11")], provenance, OURS, RANDOM)
    assert lines(table)["bench", "all"] == ["0", "2", "–", "–", "–", "–", "0", "0"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dtype": "bfloat16"}, "ours and random on bench .toy, 8 frames. differ in dtype as well"),
        ({"model": {"name": "toy", "dtype": "float32", "max_pixels": 9}}, "differ in model.max_pixels as well"),
        ({"model": {"name": "toy", "dtype": "float32", "path": "/x", "device": "cpu"}}, None),
        ({"settings": "0123"}, "differ in settings as well"),
        ({"weights": "other@1"}, "differ in weights as well: run both in one command"),
        ({"weights": "own@1 siglip@2"}, None),
        ({"limit": 6, "device": "a GPU"}, None),
    ],
)
def test_other_settings_are_an_error(make, provenance, changes, says):
    other = [dataclasses.replace(r, provenance="key2") for r in make("random", 0.25, "1100")]
    provenance["key1"]["weights"] = "own@1"
    sources = {**provenance, "key2": {**provenance["key1"], **changes}}
    if says is None:
        assert pair_tables([*make("ours", 0.25, "1111"), *other], sources, OURS, RANDOM, bootstrap=FAST)
        return
    with pytest.raises(ValueError, match=says):
        pair_tables([*make("ours", 0.25, "1111"), *other], sources, OURS, RANDOM, bootstrap=FAST)


def test_what_does_not_fit_is_an_error(toy, make, provenance):
    with pytest.raises(ValueError, match=r"ours at retention ratio 0.25 on bench.*1 questions.*in random.*'q03'"):
        pair_tables([r for r in toy if (r.method, r.question) != ("ours", "q03")], provenance, OURS, RANDOM)
    with pytest.raises(ValueError, match="lacks key1, which records name"):
        pair_tables(toy, {}, OURS, RANDOM)
    apart = [*make("ours", 0.25, "11"), *make("random", 0.25, "11", benchmark="other")]
    with pytest.raises(ValueError, match="ours at R = 25 % and random at R = 25 % have no benchmark in common"):
        pair_tables(apart, provenance, OURS, RANDOM)
