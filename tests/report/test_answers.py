import dataclasses

import pytest

from mmg_bench.report.answers import answers_by_cell, newest, over_benchmarks


def test_answers_of_a_cell_are_in_the_order_of_the_questions(toy):
    ((run, by_benchmark),) = answers_by_cell(reversed(toy)).items()
    assert run == ("toy", 8)
    cells = by_benchmark["bench"]
    assert list(cells) == [("dense", 1.0), ("ours", 0.25), ("ours", 0.5), ("random", 0.25)]
    control = cells["random", 0.25]
    assert control.scores == pytest.approx([1, 1, 1, 1, 0, 0, 0, 0, 0, float("nan"), 0, 0], nan_ok=True)
    assert control.videos[:3] == ["bench/v0", "bench/v0", "bench/v1"]
    assert control.of_skill("order").scores == pytest.approx([1, 1, 0, 0, float("nan"), 0], nan_ok=True)
    assert set(control.subgroups([])) == {"all"}
    assert control.subgroups(["bench"]) == ["colour", "order"] * 6


def test_only_cells_that_ran_on_every_benchmark_are_put_together(make):
    records = [
        *make("dense", 1.0, "11", benchmark="a"),
        *make("dense", 1.0, "00", benchmark="b"),
        *make("partial", 0.5, "10", benchmark="b"),
    ]
    ((key, both),) = over_benchmarks(answers_by_cell(records)["toy", 8]).items()
    assert key == ("dense", 1.0)
    assert (both.benchmarks, both.scores) == (["a", "a", "b", "b"], [1, 1, 0, 0])


def test_repeated_and_mixed_cells_are_errors(toy):
    with pytest.raises(ValueError, match="more than one record"):
        answers_by_cell([*toy, toy[0]])
    other = [dataclasses.replace(r, cell="tau=0.9") for r in toy if r.method == "random"]
    with pytest.raises(ValueError, match="different parameters share this label"):
        answers_by_cell([*toy, *other])


def test_reserved_names_are_errors(make):
    for benchmark in ("average", "-"):
        with pytest.raises(ValueError, match=f"a benchmark cannot be called '{benchmark}'"):
            answers_by_cell(make("dense", 1.0, "11", benchmark=benchmark))
    with pytest.raises(ValueError, match="a skill cannot be called 'all'"):
        answers_by_cell(make("dense", 1.0, "11", skills=("all",)))


def test_of_a_question_reworded_and_back_the_first_answer_counts(make):
    """Wording A, then B, then A again: its answer stands, and what tells of it are the dates of the commands."""

    def asked(wording, key):
        return [dataclasses.replace(r, asked=wording, provenance=key) for r in make("ours", 0.25, "1")]

    sources = {"a": {"data": "A", "date": "2026-01-01"}, "b": {"data": "B", "date": "2026-01-02"}}
    records = [*asked("A", "a"), *asked("B", "b")]
    for sign in (1, -1):
        assert [r.asked for r in newest(records[::sign], sources)[0]] == ["B"]
        again = dict(list({**sources, "c": {"data": "A", "date": "2026-01-03"}}.items())[::sign])
        assert [r.asked for r in newest(records[::sign], again)[0]] == ["A"]
        same = {**sources, "a": {**sources["a"], "last_date": "2026-01-03"}}  # by the same command
        assert [r.asked for r in newest(records[::sign], dict(list(same.items())[::sign]))[0]] == ["A"]
        unknown = {key: {**entry, "data": None} for key, entry in again.items()}
        assert [r.asked for r in newest(records[::sign], unknown)[0]] == ["B"]


def test_of_code_that_was_put_back_the_old_answers_count(make):
    """One version, then another, then the first again: nothing is answered then, and its command is dated anew."""

    def answered(version):
        return [dataclasses.replace(r, cell=version, provenance=version) for r in make("ours", 0.25, "1")]

    records = [*answered("old"), *answered("new")]
    sources = {"old": {"date": "2026-01-01"}, "new": {"date": "2026-01-02"}}
    assert [r.cell for r in newest(records, sources)[0]] == ["new"]
    again = {"old": {"date": "2026-01-01", "last_date": "2026-01-03"}}
    other = {"more": {"date": "2026-01-03", "asked": ["old", "another"]}}  # of a command that asks for more
    for back in ({**sources, **again}, {**sources, **other}):
        (kept,), (note,) = (newest(records, back)[0], newest(records, back)[1].values())
        assert kept.cell == "old"
        assert note == "in 2 versions of its code or settings: the newest, of 2026-01-03, counts"
    one = [dataclasses.replace(r, provenance="one") for r in records]  # where the commit does not tell them apart
    shared = {"one": {"date": "2026-01-01", "last_date": "2026-01-03", "asked": ["old"]}}
    assert [r.cell for r in newest(one, shared)[0]] == ["old"]
    forth = {**sources, **other, "new": {"date": "2026-01-02", "last_date": "2026-01-04", "asked": ["new"]}}
    assert [r.cell for r in newest(records, forth)[0]] == ["new"]
