"""What is particular to v_cast; tests/methods/test_contract.py holds what every method must do."""

import math

import pytest
import torch

from mmg_bench.methods.v_cast import VCast, curvature, frame_budgets, token_scores
from mmg_bench.tokens import VideoTokens


def _path(*degrees: float) -> torch.Tensor:
    """Directions in the plane, one a frame: `[T, 2]`."""
    at = torch.tensor(degrees).deg2rad()
    return torch.stack([at.cos(), at.sin()], -1)


def test_a_path_that_turns_back_has_the_sharpest_turn_and_the_ends_have_one():
    # along a circle, the step to a frame and the step from it differ by half of both angles together
    turns = curvature(_path(0, 20, 40, 20, 0)).tolist()
    assert turns == pytest.approx([1, 1 - math.cos(math.radians(20)), 2, 1 - math.cos(math.radians(20)), 1], abs=1e-5)


@pytest.mark.parametrize("frames", [1, 2])
def test_of_one_or_two_frames_each_is_an_end(frames: int):
    assert curvature(_path(*[0, 50][:frames])).tolist() == [1] * frames


def test_a_step_that_leads_nowhere_is_a_turn_at_both_of_its_frames():
    assert curvature(_path(0, 20, 20, 40)).tolist() == pytest.approx([1, 1, 1, 1])


def test_what_rounding_leaves_goes_to_the_frame_of_the_largest_fraction_alone():
    weights = torch.tensor([0.24, 0.26, 0.25, 0.25])
    # of 10 to share, 2.4, 2.6, 2.5 and 2.5: two are left
    assert frame_budgets(weights, 1, 100, 14).tolist() == [3, 5, 3, 3]


def test_a_full_frame_passes_on_what_it_cannot_take():
    weights = torch.tensor([0.05, 0.6, 0.35])
    # of 10 to share, 0.5, 6 and 3.5: the second is cut to 3; of the 4 left, the first of equals has room for 3
    assert frame_budgets(weights, 0, 3, 9).tolist() == [3, 3, 3]
    assert frame_budgets(weights, 0, 4, 10).tolist() == [3, 4, 3]
    assert frame_budgets(weights, 0, 9, 10).tolist() == [1, 6, 3]


def test_tokens_unlike_the_mean_and_long_ones_score_high():
    direction = torch.tensor([[1.0, 0.0]])
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-3.0, 0.0], [2.0, 0.0], [0.0, 0.0]]])
    #                       cos 1         0           -1           1           0
    expected = [0 + 1 / 3, 1 + 1 / 3, 2 + 1, 0 + 2 / 3, 1 + 0]
    assert token_scores(tokens, direction)[0].tolist() == pytest.approx(expected, abs=1e-5)


def _video() -> VideoTokens:
    """Five frames of three tokens on the path of the first test, the second token of each the longest."""
    frames = _path(0, 20, 40, 20, 0)[:, None] * torch.tensor([1.0, 3.0, 2.0])[:, None]
    return VideoTokens(frames, (1, 3))


def test_the_frame_at_which_the_video_turns_back_gets_most():
    # beyond one each, 0.4, 0.1, 1.9, 0.1 and 0.4 of 3: the third is full, so that one goes on to the first of the ends
    pruned = VCast(8 / 15).prune(_video())
    assert pruned.notes["frame_budgets"].tolist() == [2, 1, 3, 1, 1]
    assert pruned.positions.tolist() == [1, 2, 4, 6, 7, 8, 10, 13]


@pytest.mark.parametrize(("min_k", "left"), [(0, 1), (1, 5), (2, 10), (9, 15)])
def test_every_frame_keeps_min_k_tokens_whatever_the_budget(min_k: int, left: int):
    pruned = VCast(0.05, min_k=min_k).prune(_video())
    assert len(pruned) == left
    assert pruned.notes["frame_budgets"].sum() == left


def test_a_low_temperature_gives_the_sharpest_turn_all_that_it_can_take():
    assert VCast(7 / 15, temperature=0.01).prune(_video()).notes["frame_budgets"].tolist() == [1, 1, 3, 1, 1]


@pytest.mark.parametrize(
    ("options", "says"),
    [({"temperature": 0}, r"VCast.temperature=0: .*\(0, "), ({"min_k": 1.5}, "VCast.min_k=1.5: it must be an integer")],
)
def test_bad_parameters(options: dict[str, float], says: str):
    with pytest.raises(ValueError, match=says):
        VCast(**options)
