import dataclasses

import pytest

from mmg_bench.report.pair_tables import pair_tables
from mmg_bench.report.pairs import Side
from mmg_bench.report.statistics import Bootstrap

FAST = Bootstrap(n_boot=300)
OURS, RANDOM = Side("ours", 0.25), Side("random", 0.25)


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


def test_intervals_over_few_videos_are_told_of(make, provenance):
    def header(videos, failed=0):
        ours = make("ours", 0.25, "11" * videos + "xx" * failed)
        records = [*ours, *make("random", 0.25, "10" * (videos + failed))]
        (table,) = pair_tables(records, provenance, OURS, RANDOM, bootstrap=FAST)
        return table.header

    few = "Intervals on bench are too narrow: they rest on 19 videos, fewer than 20"
    assert few in header(19)
    assert few in header(19, failed=10)
    assert not any("too narrow" in line for line in header(20))


def test_what_a_third_lost_has_a_line_of_its_own(make, provenance):
    records = [
        *make("dense", 1.0, "11110"),
        *make("cut", 0.25, "10000"),
        *make("cut", 0.1, "00000"),
        *make("ours", 0.25, "11101"),
        *make("random", 0.25, "10010"),
    ]
    cut = Side("cut", 0.25)
    (table,) = pair_tables(records, provenance, OURS, RANDOM, lost_by=cut, bootstrap=FAST)
    assert list(lines(table))[:2] == [("bench", "all"), ("bench", "lost by cut")]
    assert lines(table)["bench", "lost by cut"][:4] == ["3", "0", "66.7", "33.3"]  # q01, q02 and q03
    assert table.header[-1] == "Lost by: questions that dense answered better than cut at R = 25 %"
    (plain,) = pair_tables(records, provenance, OURS, RANDOM, bootstrap=FAST)
    rest = {key: line for key, line in lines(table).items() if key[1] != "lost by cut"}
    assert (lines(plain), plain.header) == (rest, table.header[:-1])


def test_what_failed_is_not_lost_and_nothing_lost_is_an_empty_line(make, provenance):
    dense, ours, random = make("dense", 1.0, "10"), make("ours", 0.25, "11"), make("random", 0.25, "10")
    records = [*dense, *ours, *random, *make("cut", 0.25, "x0")]
    (table,) = pair_tables(records, provenance, OURS, RANDOM, lost_by=Side("cut", 0.25), bootstrap=FAST)
    assert lines(table)["bench", "lost by cut"] == ["0", "0", *["–"] * 6]


def test_what_was_lost_must_be_known_of_every_question(make, provenance):
    records = [*make("dense", 1.0, "11"), *make("ours", 0.25, "11"), *make("random", 0.25, "10")]
    says = (
        r"^lost_by=cut: cut at R = 25 % on bench \(toy, 8 frames\) was not asked {} of the questions, such as '{}': "
        "run it in one command with ours and random$"
    )
    with pytest.raises(ValueError, match=says.format(2, "q00")):
        pair_tables(records, provenance, OURS, RANDOM, lost_by=Side("cut", 0.25))
    with pytest.raises(ValueError, match=says.format(1, "q01")):
        pair_tables([*records, *make("cut", 0.25, "0")], provenance, OURS, RANDOM, lost_by=Side("cut", 0.25))
    fewer = [*records, *make("cut", 0.25, "00"), *make("random", 0.25, "10", frames=4)]
    with pytest.raises(
        ValueError, match="A has 8 frames and B 4, and it lost different questions with each: compare at one"
    ):
        pair_tables(fewer, provenance, OURS, Side("random", 0.25, 4), lost_by=Side("cut", 0.25))


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
    assert more.footnotes[-1] == "On bench (toy, 32 frames), only random has answers"
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
    said = "ours answered bench in 2 versions of its code or settings: the newest, of 2026-01-03, counts"
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
    assert lines(table)["bench", "all"] == ["0", "2", *"––––––"]


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
    said = (
        r"ours on bench \(toy, 8 frames\) was asked 11 questions, but random 12: 1 were asked of only one, such as "
        "'q03'"
    )
    with pytest.raises(ValueError, match=said):
        pair_tables([r for r in toy if (r.method, r.question) != ("ours", "q03")], provenance, OURS, RANDOM)
    with pytest.raises(ValueError, match="lacks key1, which records refer to"):
        pair_tables(toy, {}, OURS, RANDOM)
    apart = [*make("ours", 0.25, "11"), *make("random", 0.25, "11", benchmark="other")]
    with pytest.raises(ValueError, match="ours at R = 25 % and random at R = 25 % have no benchmark in common"):
        pair_tables(apart, provenance, OURS, RANDOM)


def test_each_side_has_its_own_frames(make, provenance):
    """Many frames pruned against few that are not: an equal budget."""
    records = [*make("ours", 0.25, "1110", frames=32), *make("dense", 1.0, "1000")]
    many = [dataclasses.replace(r, provenance="key2") for r in (*records[:4], *make("dense", 1.0, "1111", frames=32))]
    few = {**provenance["key1"], "model": {"name": "toy", "frames": 8}}
    sources = {"key1": few, "key2": {**few, "model": {"name": "toy", "frames": 32}}}
    records = [*many, *records[4:]]
    a, b = Side("ours", 0.25, 32), Side("dense", 1.0, 8)
    (table,) = pair_tables(records, sources, a, b, bootstrap=FAST)
    assert table.title == "A: ours at R = 25 %, 32 frames; B: dense at R = 100 %, 8 frames; toy"
    assert lines(table)["bench", "all"][:4] == ["4", "0", "75.0", "25.0"]
    (same,) = pair_tables(records, sources, Side("dense", 1.0, 32), b, bootstrap=FAST)
    assert same.title == "A: dense at R = 100 %, 32 frames; B: dense at R = 100 %, 8 frames; toy"
    assert lines(same)["bench", "all"][:4] == ["4", "0", "100.0", "25.0"]

    sources["key2"]["model"] |= {"max_pixels": 9}
    with pytest.raises(
        ValueError, match=r"ours and dense on bench .toy, 32 and 8 frames. differ in model.max_pixels as"
    ):
        pair_tables(records, sources, a, b, bootstrap=FAST)
    reworded = [dataclasses.replace(r, asked="anew") if r.question == "q01" else r for r in many]
    with pytest.raises(ValueError, match=r"32 and 8 frames. were asked 1 questions in different words, such as 'q01'"):
        pair_tables([*reworded, *records[8:]], sources, a, b, bootstrap=FAST)
    # with equal frames, provenance that tells others is of other answers
    mixed = [dataclasses.replace(r, provenance="key1") if r.method == "dense" else r for r in many]
    with pytest.raises(ValueError, match=r"on bench .toy, 32 frames. differ in model.frames, model.max_pixels as well"):
        pair_tables(mixed, sources, a, Side("dense", 1.0, 32), bootstrap=FAST)


def test_one_method_at_two_ratios(make, provenance):
    new = [dataclasses.replace(r, cell="new", provenance="key2") for r in make("ours", 0.1, "1000")]
    records = [*make("ours", 0.25, "1110"), *make("ours", 0.1, "1111"), *new]
    sources = {**provenance, "key2": {**provenance["key1"], "date": "2026-01-03"}}
    (table,) = pair_tables(records, sources, Side("ours", 0.1), OURS, bootstrap=FAST)
    assert table.title == "A: ours at R = 10 %; B: ours at R = 25 %; toy, 8 frames"
    assert lines(table)["bench", "all"][:4] == ["4", "0", "25.0", "75.0"]
    (note,) = table.footnotes
    assert note.startswith("ours at R = 10 % answered bench in 2 versions of its code or settings")


def test_frames_that_differ_are_to_be_named(make, provenance):
    records = [
        *make("ours", 0.25, "11", frames=64),
        *make("random", 0.25, "11"),
        *make("random", 0.25, "11", frames=16),
    ]
    said = "ours at R = 25 % answered with 64 frames and random at R = 25 % with 8 and 16.*a.frames=64 b.frames=8"
    with pytest.raises(ValueError, match=said):
        pair_tables(records, provenance, OURS, RANDOM, bootstrap=FAST)


@pytest.mark.parametrize(
    ("few", "many", "fix"),
    [  # entry of the one with 4 of 6 questions, and of the other
        (
            {"limit": 4, "command": "mmg-bench run -m method=ours,'a b' limit=4"},
            {"limit": None, "command": "mmg-bench run method=random"},
            "run `mmg-bench run -m 'method=ours,a b'` to ask ours the rest",
        ),
        (
            {"limit": 4, "command": "mmg-bench run limit=4 method=ours"},
            {"limit": 6, "command": "mmg-bench run method=random limit=6"},
            "run `mmg-bench run method=ours limit=6` to ask ours the rest",
        ),
        (
            {"limit": None, "command": "mmg-bench run method=ours shard.count=2 shard.index=1"},
            {"limit": None, "command": "mmg-bench run method=random"},
            "run `mmg-bench run method=ours` to ask ours the rest",
        ),
        ({"limit": 4, "command": ""}, {"limit": None}, "run both in one command, into a new output_dir"),
    ],
)
def test_what_to_run_where_one_was_asked_fewer_questions(make, provenance, few, many, fix):
    """A table of a part is no table of both: a smaller limit, a shard, a command that was stopped."""
    some = [dataclasses.replace(r, provenance="key2") for r in make("ours", 0.25, "1111")]
    sources = {"key1": {**provenance["key1"], **many}, "key2": {**provenance["key1"], **few}}
    records = [*some, *make("random", 0.25, "110011")]
    for sides in ((OURS, RANDOM), (RANDOM, OURS)):
        with pytest.raises(ValueError, match="ours on bench") as raised:
            pair_tables(records, sources, *sides, bootstrap=FAST)
        assert str(raised.value) == (
            "ours on bench (toy, 8 frames) was asked 4 questions, but random 6: 2 were asked of only one, such as "
            f"'q04'; {fix}"
        )


def test_where_each_was_asked_what_the_other_was_not_no_command_goes_on(make, provenance):
    records = [*make("ours", 0.25, "111")[1:], *make("random", 0.25, "11")]
    with pytest.raises(
        ValueError, match=r"asked 2 questions, but random 2: 2 were asked.*'q00'; run both in one command"
    ):
        pair_tables(records, provenance, OURS, RANDOM, bootstrap=FAST)


@pytest.mark.parametrize(
    ("facts", "others", "note"),
    [
        ({}, "", None),
        ({"benchmark": {"questions": 4}}, "", None),
        ({"limit": 9}, "", None),
        ({"limit": 4}, "1111", None),
        (
            {"benchmark": {"questions": 9}, "limit": 4},
            "",
            "Of the 9 questions of bench, both were asked only the first 4",
        ),
        ({"questions": 9, "limit": 4}, "", "Of the 9 questions of bench, both were asked only the first 4 (limit=4)"),
        ({"questions": 4, "limit": 4}, "", None),
        ({"limit": 4}, "11110", "Of the 5 questions of bench, both were asked only the first 4 (limit=4)"),
        (
            {"benchmark": {"questions": 9}, "command": "mmg-bench run shard.index=0 shard.count=2"},
            "",
            "Of the 9 questions of bench, both were asked only 4: a shard is missing, or a command was stopped; for "
            "the rest, run `mmg-bench run`",
        ),
        (
            {"benchmark": {"questions": 9}, "limit": 6},
            "",
            "Of the 6 questions of bench with limit=6, both were asked only 4: a shard is missing, or a command was "
            "stopped; for the rest, run `mmg-bench table toy limit=6`",
        ),
        ({"limit": None}, "11110", "Of the 5 questions of bench, both were asked only 4: a shard is missing, or a"),
    ],
)
def test_a_part_of_the_questions_is_said_to_be_one(make, provenance, facts, others, note):
    """What tells: the benchmark's configuration, how many it had, the limit, and what others were asked."""
    provenance["key1"] |= facts
    records = [*make("ours", 0.25, "1111"), *make("random", 0.25, "110x"), *make("other", 0.5, others, frames=16)]
    (table,) = pair_tables(records, provenance, OURS, RANDOM, bootstrap=FAST)
    assert len(table.footnotes) == (note is not None)
    assert all(found.startswith(note) for found in table.footnotes)


def at(key, records):
    return [dataclasses.replace(r, provenance=key, cell=f"{r.cell}-{key}") for r in records]


def test_questions_that_were_taken_out_are_not_missed(make, provenance):
    """As of videos of one's own: two lines of questions.jsonl are deleted, and the method has changed since as well."""
    old = {**provenance["key1"], "data": "before", "benchmark": {"name": "bench", "questions": 6}}
    new = {**old, "data": "after", "date": "2026-01-03", "benchmark": {"name": "bench", "questions": 4}}
    before = [*make("ours", 0.25, "111111"), *make("random", 0.25, "110011"), *make("other", 0.25, "111111")]
    records = [*before, *at("key2", [*make("ours", 0.25, "1111"), *make("random", 0.25, "1100")])]
    (table,) = pair_tables(records, {"key1": old, "key2": new}, OURS, RANDOM, bootstrap=FAST)
    assert lines(table)["bench", "all"][0] == "4"
    assert [note for note in table.footnotes if "versions of its code" not in note] == []
    # of other limits, data always differ: those of the whole tell what there is
    (table,) = pair_tables(records, {"key1": old, "key2": {**new, "limit": 4}}, OURS, RANDOM, bootstrap=FAST)
    assert table.footnotes[-1] == "Of the 6 questions of bench, both were asked only the first 4 (limit=4)"


def test_how_many_there_were_before_some_were_taken_out_counts_no_more(make, provenance):
    """First some of six are tried; two of the others are deleted, and all are asked."""
    tried = {**provenance["key1"], "data": "tried", "limit": 2, "questions": 6}
    whole = {**tried, "data": "whole", "limit": None, "questions": 4, "date": "2026-01-03"}
    records = [*make("ours", 0.25, "1111"), *make("random", 0.25, "1100")]
    records = [dataclasses.replace(r, provenance="key1" if r.question < "q02" else "key2") for r in records]
    (table,) = pair_tables(records, {"key1": tried, "key2": whole}, OURS, RANDOM, bootstrap=FAST)
    assert table.footnotes == ()


def test_answers_to_questions_of_yesterday_are_told(make, provenance):
    old = {**provenance["key1"], "data": "before", "benchmark": {"name": "bench"}}
    records = [*make("ours", 0.25, "1111"), *make("random", 0.25, "1100")]
    for changes, said in (
        ({"data": "after", "date": "2026-01-03"}, True),
        ({"data": "after", "date": "2026-01-01"}, False),
        ({"data": "after"}, False),
        ({"data": "after", "date": "2026-01-03", "limit": 2}, False),
        ({"data": "after", "date": "2026-01-03", "benchmark": {"name": "other"}}, False),
        ({"date": "2026-01-03"}, False),
    ):
        (table,) = pair_tables(records, {"key1": old, "key2": {**old, **changes}}, OURS, RANDOM, bootstrap=FAST)
        assert any(note.startswith("The questions of bench have changed since") for note in table.footnotes) == said
    # and where the two themselves answered before and after
    more = [dataclasses.replace(r, provenance="key2") for m in ("ours", "random") for r in make(m, 0.25, "11111")[4:]]
    sources = {"key1": old, "key2": {**old, "data": "after", "date": "2026-01-03"}}
    (table,) = pair_tables([*records, *more], sources, OURS, RANDOM, bootstrap=FAST)
    assert table.footnotes[0].startswith("The questions of bench have changed since")


def test_a_question_that_is_asked_again_as_before(make, provenance):
    """Wording A, then B, then A again with another method: A's answers are found, and nothing has changed since."""
    old = {**provenance["key1"], "data": "A", "benchmark": {"name": "bench"}}
    new = {**old, "data": "B", "date": "2026-01-03"}
    ours = make("ours", 0.25, "1111")
    reworded = dataclasses.replace(ours[0], asked="B", score=0.0, provenance="key2")
    random = [dataclasses.replace(r, provenance="key3") for r in make("random", 0.25, "1100")]
    sources = {"key1": old, "key2": new, "key3": {**old, "date": "2026-01-04"}}
    (table,) = pair_tables([*ours, reworded, *random], sources, OURS, RANDOM, bootstrap=FAST)
    assert lines(table)["bench", "all"][2:4] == ["100.0", "50.0"]
    assert table.footnotes == ()
    # of both from before, the third command may have asked another
    both = [*ours, reworded, *make("random", 0.25, "1100")]
    (table,) = pair_tables(both, sources, OURS, RANDOM, bootstrap=FAST)
    assert table.footnotes == ()


def test_the_frames_of_each_model_are_its_own(make, provenance):
    """One side names its frames; the other has a number of its own with each model, and none with a third."""
    few = Side("random", 0.25, 8)
    records = [
        *make("ours", 0.25, "11", model="m", frames=16),
        *make("random", 0.25, "10", model="m"),
        *make("ours", 0.25, "10", model="n", frames=32),
        *make("random", 0.25, "11", model="n"),
        *make("random", 0.25, "11", model="o"),
    ]
    m, n = pair_tables(records, provenance, OURS, few, bootstrap=FAST)
    assert m.title == "A: ours at R = 25 %, 16 frames; B: random at R = 25 %, 8 frames; m"
    assert n.title == "A: ours at R = 25 %, 32 frames; B: random at R = 25 %, 8 frames; n"
    assert n.footnotes[-1] == "On bench (o, 8 frames), only random has answers"
    records += make("ours", 0.25, "10", model="n", frames=64)
    with pytest.raises(
        ValueError, match=r"^a.frames=null: ours at R = 25 % has answers of n with 32 and 64 frames; ch"
    ):
        pair_tables(records, provenance, OURS, few, bootstrap=FAST)
    with pytest.raises(ValueError, match=r"^A and B are both random at R = 25 % with 8 frames: give one of them"):
        pair_tables(records, provenance, RANDOM, few, bootstrap=FAST)
    # in whose place the two stand, the message tells
    with pytest.raises(
        ValueError, match=r"^b.frames=null: ours at R = 25 % has answers of n with 32 and 64 frames; ch"
    ):
        pair_tables(records, provenance, few, OURS, bootstrap=FAST)


def test_a_model_with_which_one_side_alone_answered(make, provenance):
    """Its numbers of frames are no question: nothing is compared, and a footnote says so."""
    records = [
        *make("ours", 0.25, "11", model="m", frames=16),
        *make("random", 0.25, "10", model="m"),
        *make("ours", 0.25, "11", model="n", frames=64),
        *make("ours", 0.25, "11", model="n", frames=32),
        *make("random", 0.25, "11", model="o"),
    ]
    alone = "On bench (n, 32 and 8 frames), only ours has answers"
    (table,) = pair_tables(records, provenance, OURS, Side("random", 0.25, 8), bootstrap=FAST)
    assert table.footnotes == (alone, "On bench (o, 8 frames), only random has answers")
    # where both name their frames, these stand also for what is not there
    (table,) = pair_tables(records, provenance, Side("ours", 0.25, 16), Side("random", 0.25, 8), bootstrap=FAST)
    assert table.footnotes == ("On bench (o, 16 and 8 frames), only random has answers",)


def test_why_there_is_no_table(make, provenance):
    """Of the first model with which both answered, with which frames; else that no benchmark is common."""
    records = [
        *make("ours", 0.25, "11", model="m"),
        *make("random", 0.25, "11", model="n"),
        *make("ours", 0.25, "11", model="o", frames=32),
        *make("ours", 0.25, "11", model="o", frames=16),
        *make("random", 0.25, "11", model="o", benchmark="other"),
    ]
    with pytest.raises(ValueError, match="answered with") as raised:
        pair_tables(records, provenance, OURS, RANDOM, bootstrap=FAST)
    assert str(raised.value) == (
        "ours at R = 25 % answered with 16 and 32 frames and random at R = 25 % with 8: run both in one command, or "
        "compare them with a.frames=16 b.frames=8"
    )
    for a, b in ((Side("ours", 0.25, 16), RANDOM), (RANDOM, Side("ours", 0.25, 16))):
        with pytest.raises(ValueError, match="no benchmark") as raised:
            pair_tables(records, provenance, a, b, bootstrap=FAST)
        assert str(raised.value) == f"{a} and {b} have no benchmark in common: run both in one command"
