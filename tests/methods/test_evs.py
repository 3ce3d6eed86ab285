"""What is particular to evs; tests/methods/test_contract.py holds what every method must do."""

import pytest
import torch

from mmg_bench.methods.evs import EVS
from mmg_bench.tokens import VideoTokens


def _turning(*angles: list[float]) -> VideoTokens:
    """A video of two tokens a frame, each a direction in the plane: a list of angles a frame."""
    at = torch.tensor(angles)  # [T, 2]
    return VideoTokens(torch.stack([at.cos(), at.sin()], -1), (1, 2))


def test_keeps_the_first_frame_and_what_turned_most_since_the_frame_before():
    tokens = _turning([0.0, 0.0], [0.1, 0.9], [0.8, 0.9], [0.8, 1.2])
    kept = [EVS(count / 8).prune(tokens).positions.tolist() for count in range(2, 7)]
    assert kept == [[0, 1], [0, 1, 3], [0, 1, 3, 4], [0, 1, 3, 4, 7], [0, 1, 2, 3, 4, 7]]


def test_lengths_do_not_count():
    tokens = _turning([0.0, 0.0], [0.1, 0.2])
    tokens.features[1, 0] *= 9
    assert EVS(0.75).prune(tokens).positions.tolist() == [0, 1, 3]


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.25])
def test_up_to_one_frame_s_share_only_the_first_frame_is_left(ratio: float):
    tokens = _turning([0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0])
    assert EVS(ratio).prune(tokens).positions.tolist() == [0, 1]


def test_a_frozen_video_is_read_from_its_start():
    tokens = _turning(*[[0.0, 0.0]] * 4)
    assert EVS(0.5).prune(tokens).positions.tolist() == [0, 1, 2, 3]
