"""Position ids of what is left, where they close their gaps, and features that are added inside the model."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mmg_bench.models.kept import Kept
from mmg_bench.models.qwen3_vl import Qwen3VL


def test_multimodal_ids_close_the_numbers_that_no_axis_uses() -> None:
    text, time = [0, 1, 2, 3, 4, 5, 6], [0, 1, 5, 9, 9, 10, 11]
    height, width = [0, 1, 1, 1, 2, 10, 11], [0, 1, 2, 1, 2, 10, 11]
    ids = torch.tensor([[text], [time], [height], [width]])  # [4, 1, 7]
    left = torch.tensor([[True, True, False, True, True, True, True]])
    kept = Kept.of(left, left.sum(1).tolist(), contiguous=True)
    kept, closed = kept.numbered(ids, kept.mask(torch.ones(1, 7, dtype=torch.long)))
    assert closed[:, 0].tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 3, 3, 4, 5], [0, 1, 1, 2, 4, 5], [0, 1, 1, 2, 4, 5]]
    # the next token continues each axis
    assert kept.later(torch.tensor([[[7]], [[12]], [[12]], [[12]]])).flatten().tolist() == [6, 6, 6, 6]


def test_original_ids_stay() -> None:
    kept = Kept.of(torch.tensor([[True, False, True]]), [2], contiguous=False)
    kept, ids = kept.numbered(torch.tensor([[0, 1, 2]]), torch.ones(1, 2))
    assert ids.tolist() == [[0, 2]]
    assert kept.later(torch.tensor([[3]])).tolist() == [[3]]


def test_deepstack_features_follow_what_is_left() -> None:
    """Also where values are not known, as those of a GPU are not unless it is waited for."""
    seen = torch.tensor([[False, True, True, False], [True, True, False, False]])
    kept = Kept.rows([torch.tensor([0, 2, 3]), torch.tensor([1, 2])], 4, contiguous=False)
    call = {"visual_pos_masks": seen, "deepstack_visual_embeds": [torch.tensor([[1.0], [2.0], [3.0], [torch.inf]])]}
    left, (added,) = Qwen3VL(None).additions(call, kept)
    assert left == {"visual_pos_masks": None, "deepstack_visual_embeds": None}
    assert added[..., 0].tolist() == [[0, 2, 0], [0, torch.inf, 0]]
    with FakeTensorMode(allow_non_fake_inputs=True) as unknown:
        fake = {"visual_pos_masks": unknown.from_tensor(seen), "deepstack_visual_embeds": [torch.ones(4, 1)]}
        assert Qwen3VL(None).additions(fake, None)[1][0].shape == (2, 4, 1)
