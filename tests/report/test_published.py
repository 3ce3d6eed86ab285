from pathlib import Path

import pandas as pd
import pytest

from mmg_bench import config, specs
from mmg_bench.report import published as module
from mmg_bench.report.published import published, published_path


def test_the_committed_file_is_read():
    root = Path(__file__).parents[2]
    assert published_path() == root / "results" / "paper" / "published.csv"
    table = published()
    assert len(table) == 336
    assert table[["model", "frames", "method", "retention", "benchmark", "score", "source"]].notna().all(axis=None)
    assert (table.source != "").all()


def test_headline_of_mmg_vid():
    table = published()
    ours = table[(table.method == "mmg_vid") & (table.retention == 0.25)].set_index("benchmark").score
    assert ours["prefill_speedup"] == 3.9
    assert ours["average_retention_percent"] == 99.5
    assert dict(ours[["mvbench", "longvideobench", "videomme"]]) == {
        "mvbench": 56.7,
        "longvideobench": 56.6,
        "videomme": 58.6,
    }


def test_numbers_are_of_methods_that_the_tables_of_the_paper_have():
    """A number under another label would be shown beside nothing."""
    spec = config.load("table", "table1")
    ratios = {*spec["retention_ratios"], *config.shipped("table", "table=retention")["table"]["retention_ratios"]}
    cells = specs.table_cells(spec["profiles"]["paper"]["methods"], sorted(ratios))
    shown = {(cell.label, cell.method.retention_ratio) for cell in cells}
    table = published()
    ours = table[table.model == spec["profiles"]["paper"]["model"]]
    assert set(zip(ours.method, ours.retention, strict=True)) <= shown


def test_callers_cannot_change_it_for_others():
    mine = published()
    mine["score"] = 0.0
    assert (published().score > 0).all()


def test_a_wheel_reads_its_own_copy(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "mmg_bench" / "report"
    package.mkdir(parents=True)
    copy = package / "published.csv"
    copy.write_bytes(published_path().read_bytes())
    monkeypatch.setattr(module, "_HERE", package / "published.py")
    assert published_path() == copy
    pd.testing.assert_frame_equal(published(), published(copy))


def test_other_columns_are_refused(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("model,score\na,1\n")
    with pytest.raises(ValueError, match="columns"):
        published(path)
