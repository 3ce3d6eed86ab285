"""Pictures of what is kept."""

from __future__ import annotations

import numpy as np
import pytest

from mmg_bench.report.overlay import contact_sheet, kept_overlay


def test_kept_cells_are_bright_and_the_others_dark() -> None:
    frames = np.full((2, 8, 8, 3), 200, dtype=np.uint8)
    out = kept_overlay(frames, np.array([0, 7]), (2, 2))
    assert (out[0, :4, :4] == 200).all()
    assert (out[1, 4:, 4:] == 200).all()
    assert (out == 200).sum() == 2 * 16 * 3
    assert (out[0, 4:] == 50).all()
    assert (frames == 200).all()


def test_positions_outside_are_refused() -> None:
    with pytest.raises(ValueError, match="positions 8 to 8: outside 2 frames"):
        kept_overlay(np.zeros((2, 8, 8, 3), dtype=np.uint8), np.array([8]), (2, 2))


def test_a_contact_sheet_is_a_grid() -> None:
    rows = [np.zeros((3, 4, 5, 3), dtype=np.uint8), np.ones((3, 4, 5, 3), dtype=np.uint8)]
    sheet = contact_sheet(rows)
    assert sheet.shape == (10, 19, 3)
    assert (sheet[4:6] == 255).all()
    assert (sheet[6:, :5] == 1).all()


def test_rows_of_a_contact_sheet_bear_their_names() -> None:
    rows = [np.zeros((2, 60, 60, 3), np.uint8)] * 2
    plain, named = contact_sheet(rows), contact_sheet(rows, names=["all", "mmg_vid"])
    margin = named.shape[1] - plain.shape[1]
    assert (named[:, margin:] == plain).all()
    ink = [(named[start : start + 60, : margin - 2] < 128).sum() for start in (0, 62)]
    assert 0 < ink[0] < ink[1]  # the longer name takes more
    with pytest.raises(ValueError, match="1 names for 2 rows of pictures"):
        contact_sheet(rows, names=["all"])
