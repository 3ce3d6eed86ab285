"""Position ids of what is left, where they close their gaps."""

from __future__ import annotations

import torch

from mmg_bench.models.kept import Kept


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
