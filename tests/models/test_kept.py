"""Position ids of what is left, where they close their gaps, and features that are added inside the model."""

from __future__ import annotations

from dataclasses import replace

import pytest
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
    # the next token continues each axis, also where it comes without the text's count
    later = torch.tensor([[[7]], [[12]], [[12]], [[12]]])
    assert kept.later(later).flatten().tolist() == [6, 6, 6, 6]
    assert kept.later(later[1:]).flatten().tolist() == [6, 6, 6]


def test_original_ids_stay() -> None:
    kept = Kept.of(torch.tensor([[True, False, True]]), [2], contiguous=False)
    kept, ids = kept.numbered(torch.tensor([[0, 1, 2]]), torch.ones(1, 2))
    assert ids.tolist() == [[0, 2]]
    assert kept.later(torch.tensor([[3]])).tolist() == [[3]]


def uneven() -> tuple[Kept, torch.Tensor, torch.Tensor]:
    """Of two prompts of six columns, the second with one of padding: what is left, a mask, and position ids."""
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
    ids = (mask.cumsum(-1) - 1).clamp(min=0)
    return Kept.rows([torch.tensor([0, 2, 4, 5]), torch.tensor([1, 4, 5])], 6, contiguous=True), mask, ids


def test_ids_of_a_padded_row_count_from_its_own_first_column() -> None:
    kept, mask, ids = uneven()
    narrow = kept.mask(mask)
    assert narrow.tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]
    left, closed = kept.numbered(ids, narrow)
    assert closed.tolist() == [[0, 1, 2, 3], [0, 0, 1, 2]]
    assert left.later(torch.tensor([[6], [5]])).tolist() == [[4], [3]]
    multimodal = torch.stack([ids, ids * 2, ids * 3])
    for padding in (5, 50):  # no number that is left, amid those that are, or behind
        multimodal[:, 1, 0] = padding
        _, closed = kept.numbered(multimodal, narrow)
        assert closed[:, 0].tolist() == [[0, 1, 2, 3], [0, 2, 5, 6], [0, 4, 7, 8]]
        assert closed[:, 1].tolist() == [[0, 0, 1, 2], [0, 0, 3, 4], [0, 0, 5, 6]]


def test_a_row_that_lost_more_is_padded_whatever_stands_in_its_first_column() -> None:
    left = torch.tensor([[True, True, False, True], [False, True, False, True]])
    of = Kept.of(left, [3, 2], contiguous=False)
    for kept in (of, Kept.rows([row.nonzero().flatten() for row in left], 4, contiguous=False)):
        assert kept.index[kept.real].tolist() == [0, 1, 3, 1, 3]
        assert kept.mask(torch.ones(2, 5, dtype=torch.long)).tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]


def test_a_column_may_hold_the_token_of_another() -> None:
    left, source = torch.tensor([[True, False, True, True]]), torch.tensor([[0, 1, 3, 2]])
    assert Kept.of(left, [3], contiguous=False, source=source).index.tolist() == [[0, 3, 2]]


def test_a_padded_row_may_be_cropped() -> None:
    kept, mask, _ = uneven()
    cropped = kept.cropped(3)
    assert cropped.whole == 5
    assert cropped.mask(mask).tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]  # the last is behind the prompt now


def test_what_was_pruned_cannot_be_cropped() -> None:
    kept, _, _ = uneven()
    assert kept.cropped(2).whole == 4  # columns 4 and 5 are behind all that was removed
    with pytest.raises(ValueError, match="cropped into its videos"):
        kept.cropped(1)


def test_what_is_left_of_what_was_left_is_one_step_from_the_whole() -> None:
    kept, mask, ids = uneven()
    first, narrow = kept.numbered(ids, kept.mask(mask))
    left = torch.tensor([[True, False, False, True], [True, True, False, True]])
    second = Kept.of(left, [2, 3], contiguous=True)
    whole = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    second, _ = second.numbered(narrow, second.mask(kept.mask(mask)))
    both, later = second.after(first), torch.tensor([[6], [5]])
    assert both.removed == 3
    assert both.columns(ids)[both.real].tolist() == [0, 5, 0, 4]
    assert torch.equal(both.mask(whole), second.mask(first.mask(whole)))
    assert torch.equal(both.later(later), second.later(first.later(later)))
    # also where only one of the two made rows of unequal length
    even, shown = (
        Kept.rows([torch.tensor([0, 2, 4, 5]), torch.tensor([1, 2, 4, 5])], 6, contiguous=False),
        torch.ones_like(whole),
    )
    for one, other in ((even, second), (first, Kept.of(left[:1].repeat(2, 1), [2, 2], contiguous=False))):
        assert torch.equal(other.after(one).mask(shown), other.mask(one.mask(shown)))


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


def test_weights_of_what_is_left_go_with_it() -> None:
    kept = Kept.of(torch.tensor([[True, False, True, True]]), [3], contiguous=False)
    assert kept.weights_of(torch.ones(1, 4)) is None
    kept = replace(kept, weights=torch.tensor([[0.5, 0.75, 0.25]]))
    assert kept.weights_of(torch.ones(2, 5)).tolist() == [[0.5, 0.75, 0.25, 0, 0]] * 2
    assert kept.cropped(2).weights_of(torch.ones(2, 5)).tolist() == [[0.5, 0.75, 0, 0, 0]] * 2
