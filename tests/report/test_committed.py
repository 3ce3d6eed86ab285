"""Every table in results/ is the one that its rows make: nothing in them was written by hand."""

import committed
import pytest


@pytest.mark.parametrize("file", committed.FILES, ids=lambda file: str(file.parent.relative_to(committed.RESULTS)))
def test_a_table_is_that_of_its_rows(file):
    assert file.read_text(encoding="utf-8") == committed.made(file), "run python scripts/refresh_docs.py"


def test_the_page_has_the_methods_own_times():
    page = (committed.RESULTS.parent / "docs" / "measuring.md").read_text(encoding="utf-8")
    table = f"{committed.TIMES_BEGIN}\n{committed.times()}\n{committed.TIMES_END}"
    assert table in page, "run python scripts/refresh_docs.py"
