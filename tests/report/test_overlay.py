"""Pictures of what is kept."""

from __future__ import annotations

import numpy as np
import pytest

from mmg_bench.report.overlay import contact_sheet, kept_overlay


def test_kept_cells_are_bright_and_the_others_dark() -> None:
    frames = np.full((2, 8, 8, 3), 200, dtype=np.uint8)
    out = kept_overlay(frames, np.array([0, 7]), (2, 2), dim=0.5)
    assert (out[0, :4, :4] == 200).all()
    assert (out[1, 4:, 4:] == 200).all()
    assert (out == 200).sum() == 2 * 16 * 3
    assert (out[0, 4:] == 100).all()
    assert (frames == 200).all()


def test_positions_outside_are_refused() -> None:
    with pytest.raises(ValueError, match="positions reach 8"):
        kept_overlay(np.zeros((2, 8, 8, 3), dtype=np.uint8), np.array([8]), (2, 2))


def test_a_contact_sheet_is_a_grid() -> None:
    rows = [np.zeros((3, 4, 5, 3), dtype=np.uint8), np.ones((3, 4, 5, 3), dtype=np.uint8)]
    sheet = contact_sheet(rows, gap=1)
    assert sheet.shape == (9, 17, 3)
    assert (sheet[4] == 255).all()
    assert (sheet[5:, :5] == 1).all()
