"""docs/models.md shows what the tests hold the families to."""

from __future__ import annotations

from pathlib import Path

import equalities
import pytest

import families

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_table_is_what_is_tested() -> None:
    pytest.importorskip("num2words", reason="SmolVLM's own processor needs it")
    table = f"{equalities.BEGIN}\n{equalities.table(families.BUILDERS)}\n{equalities.END}"
    assert table in PAGE.read_text(), "run scripts/refresh_docs.py"


def test_every_family_of_its_own_is_in_the_table() -> None:
    from mmg_bench.models.adapter import FAMILIES

    assert {*equalities.TITLES, "llava_video"} == set(FAMILIES)
