"""Every notebook runs from top to bottom on the committed results, and that of figures on results of one's own."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from mmg_bench.report.rows import read_rows

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "notebooks"


def executed(notebook: NotebookNode) -> list[NotebookNode]:
    """The outputs of all cells, in order."""
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def pictures(outputs: list[NotebookNode]) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_it_runs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "commit notebooks without their outputs"
    figures = sum("figures." in cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert pictures(executed(notebook)) == figures


def test_it_draws_a_run_of_ones_own(tmp_path: Path) -> None:
    """Rows in another place, of two numbers of frames, of one method that is not named, and without times."""
    given = read_rows(ROOT / "results" / "table1" / "embedded" / "rows.csv")
    given = given[given.method.isin(["dense", "tome(positions=original)"]) & ~given.metric.str.startswith("prefill_")]
    pd.concat([given.assign(frames=8), given]).to_csv(tmp_path / "rows.csv", index=False)
    notebook = nbformat.read(NOTEBOOKS / "figures.ipynb", as_version=4)
    setup = notebook.cells[1]
    assert "FRAMES = None" in setup.source
    setup.source = setup.source.replace('"results/table1/embedded/rows.csv"', repr(str(tmp_path / "rows.csv")))
    setup.source = setup.source.replace("FRAMES = None", "FRAMES = 8")
    figures = sum("figures." in cell.source for cell in notebook.cells if cell.cell_type == "code")
    outputs = executed(notebook)
    assert pictures(outputs) == figures - 1  # all but the one that needs times
    said = "".join(output.get("text", "") for output in outputs)
    assert f"{tmp_path / 'rows.csv'} has no times: measure with latency=true" in said
