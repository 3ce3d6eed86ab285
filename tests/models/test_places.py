"""Where videos stand in prompts."""

import time
from types import SimpleNamespace

import pytest
import torch

from mmg_bench.models.places import places

VIDEO, TEXT = 7, 1
LAYOUT = (3, 1, 2)  # frames, rows, columns


def adapter(in_a_row: int) -> SimpleNamespace:
    def count(layout: tuple[int, int, int]) -> int:
        return layout[0] * layout[1] * layout[2]

    return SimpleNamespace(
        video_token_id=VIDEO,
        placeholder_ids=[VIDEO],
        placeholders=count,
        body=lambda layout: slice(count(layout)),
        in_a_row=lambda layout: in_a_row,
    )


def prompt(*runs: int) -> torch.Tensor:
    """One prompt `[1, S]`: runs of placeholders, each behind a word."""
    return torch.tensor([[token for run in runs for token in (TEXT, *run * [VIDEO])] + [TEXT]])


@pytest.mark.parametrize(("in_a_row", "runs"), [(6, [6]), (2, [2, 2, 2]), (2, [4, 2]), (1, [1, 3, 2]), (1, 6 * [1])])
def test_runs_may_stand_apart(in_a_row: int, runs: list[int]) -> None:
    ids = prompt(*runs)
    (place,) = places(ids, adapter(in_a_row), [LAYOUT])
    assert place.tokens.tolist() == (ids[0] == VIDEO).nonzero().flatten().tolist()
    assert place.end == ids.shape[1] - 1
    assert ids[0, place.text(ids.device)].tolist() == [TEXT]


@pytest.mark.parametrize(
    ("in_a_row", "runs", "where"),
    [
        (6, [2, 4], "columns 1 to 7, not in 6 adjacent"),
        (2, [2, 1, 3], "columns 4 to 6, not in 2 adjacent"),
        (2, [2, 3, 1], "columns 6 to 8, not in 2 adjacent"),
    ],
)
def test_a_run_that_is_broken_is_named(in_a_row: int, runs: list[int], where: str) -> None:
    with pytest.raises(ValueError, match=f"prompt 0 holds visual placeholders in {where}"):
        list(places(prompt(*runs), adapter(in_a_row), [LAYOUT]))


@pytest.mark.parametrize(
    ("rows", "frames", "says"),
    [
        (
            [3, 3],
            [2, 4],
            r"prompt 0 holds 3 visual placeholders, not 6 for its videos of .*\[\(2, 1, 1\), \(4, 1, 1\)\]",
        ),
        ([2, 3], [2, 2], r"prompt 1 holds 3 visual placeholders, not 2"),
        ([2, 2, 1], [2], r"prompt 2 holds 1 visual placeholders, not 0"),
        ([2, 1], [2, 2], r"prompt 1 holds 1 visual placeholders, not 2"),
        ([2], [2, 2], r"for only 1 of the 2 encoded videos"),
    ],
)
def test_the_prompt_that_does_not_fit_its_videos_is_named(rows: list[int], frames: list[int], says: str) -> None:
    ids = torch.cat([torch.cat([prompt(count), torch.full((1, 9), TEXT)], dim=1)[:, :9] for count in rows])
    with pytest.raises(ValueError, match=says):
        list(places(ids, adapter(1), [(count, 1, 1) for count in frames]))


def test_copies_of_prompts_share_their_videos() -> None:
    """Also beside a prompt without any."""
    ids = torch.cat([prompt(2), prompt(2), torch.full((1, 4), TEXT)])
    assert [(place.row, place.video) for place in places(ids, adapter(1), [(2, 1, 1)])] == [(0, 0), (1, 0)]


def test_each_of_three_videos_in_a_prompt_is_found() -> None:
    found = list(places(prompt(2, 3, 1, 3), adapter(1), [(2, 1, 1), (4, 1, 1), (3, 1, 1)]))
    assert [place.video for place in found] == [0, 1, 2]
    assert [place.tokens.tolist() for place in found] == [[1, 2], [4, 5, 6, 8], [10, 11, 12]]
    assert [place.end for place in found] == [3, 9, 13]


def test_what_stands_side_by_side_is_a_slice() -> None:
    """Which gives views, where columns one by one give copies."""
    cpu = torch.device("cpu")
    first, second = places(prompt(3, 1, 2), adapter(1), 2 * [(3, 1, 1)])
    assert first.body(cpu) == slice(1, 4)
    assert first.text(cpu).tolist() == [4, 6, 9]
    assert second.body(cpu).tolist() == [5, 7, 8]
    assert second.text(cpu) == slice(9, 10)
    (last,) = places(prompt(3)[:, :-1], adapter(1), [(3, 1, 1)])
    assert last.text(cpu) == slice(0, 0)


def test_a_video_ends_behind_placeholders_that_are_none_of_its_tokens() -> None:
    """Such as the newline behind those of LLaVA-OneVision."""
    newline = adapter(4)
    newline.placeholders, newline.body = lambda layout: 4, lambda layout: slice(3)
    (place,) = places(prompt(4), newline, [(3, 1, 1)])
    assert place.tokens.tolist() == [1, 2, 3]
    assert place.end == 5


def test_tokens_among_which_text_may_stand_anywhere_are_found_at_once() -> None:
    """Not one by one: that took longer than all else besides the model."""
    ids, many = prompt(32 * 196), adapter(1)

    def ms() -> float:
        start = time.perf_counter()
        list(places(ids, many, [(32, 14, 14)]))
        return 1000 * (time.perf_counter() - start)

    assert min(ms() for _ in range(20)) < 5
