"""docs/models.md shows what the tests hold the families to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import equalities
import numpy as np
import pytest
import torch
from PIL import Image

import families
from command_line import given
from mmg_bench.benchmarks.embedded.world import COLOURS

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def test_the_table_is_what_is_tested() -> None:
    pytest.importorskip("num2words", reason="SmolVLM's own processor needs it")
    table = f"{equalities.BEGIN}\n{equalities.table(families.BUILDERS)}\n{equalities.END}"
    assert table in PAGE.read_text(), "run scripts/refresh_docs.py"


def test_the_example_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    answers, picture, second = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(answers, names)
    answer, report = capsys.readouterr().out.splitlines()
    assert answer in COLOURS
    assert "realised_tokens=196, layout=(16, 7, 7)" in report
    exec(picture, names)
    kept = names["video"].positions.tolist()
    assert len(set(kept)) == 196
    assert kept == sorted(kept)
    assert np.asarray(Image.open("kept.png")).mean() > 10
    exec(second, names)
    whole = {**names["inputs"], "input_ids": names["ids"], "attention_mask": torch.ones_like(names["ids"])}
    with names["MMGVid"](retention_ratio=0.25)(names["model"]):
        assert torch.equal(names["model"].generate(**whole, max_new_tokens=4), names["second"])
    # and the command below it, in the same folder
    ((command, shown),) = re.findall(r"```sh\n(mmg-bench show .*?)```\n\n```\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert given(command.replace("\\\n", " "), monkeypatch) == 0
    assert capsys.readouterr().out == shown


def test_every_family_of_its_own_is_in_the_table() -> None:
    from mmg_bench.models.adapter import FAMILIES

    elsewhere = {"llava_video", "glmga", "cosmos3_omni"}  # has tests of its own, or is a family under another name
    assert {*equalities.TITLES} == set(FAMILIES) - elsewhere
