"""Cells: however a number is spelt, one cell, by one key and one label."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

import pytest

from mmg_bench import config as cfg
from mmg_bench import specs
from mmg_bench.cells import code_of, make_cell
from mmg_bench.methods.base import Method
from mmg_bench.methods.registry import built_in, get_method


def test_what_a_sweep_adds_up_is_the_ratio_that_one_writes() -> None:
    swept = cfg.sweep("run", ["method=random", "retention_ratio=range(0.1,0.5,0.1)"])
    cells = specs.cells(map(cfg.plain, swept))
    assert cells[1:] == [make_cell("random", ratio) for ratio in (0.1, 0.2, 0.3, 0.4)]


@pytest.mark.parametrize(
    ("name", "spellings", "label"),
    [
        ("mmg_vid", [{"tau": 1}, {"tau": 1.0}, {"tau": 0.7 + 0.2 + 0.1}], "mmg_vid(tau=1)"),
        ("mmg_vid", [{"tau": 0.3}, {"tau": 0.1 + 0.2}], "mmg_vid(tau=0.3)"),
        ("mmg_vid", [{}, {"r_min": 0}, {"r_min": 0.0}], "mmg_vid"),
        ("llava_scissor", [{"tau": 1}, {"tau": 1.0}], "llava_scissor(tau=1)"),  # may be null
        ("random", [{"seed": 10**15 + 1}], "random(seed=1000000000000001)"),
    ],
)
def test_one_number_in_several_spellings(name: str, spellings: list[dict[str, float]], label: str) -> None:
    cells = [make_cell(name, ratio, **given) for ratio in (1, 1.0, 0.7 + 0.2 + 0.1) for given in spellings]
    assert {(cell.label, cell.key()) for cell in cells} == {(label, cells[0].key())}
    assert {repr(cell.method) for cell in cells} == {repr(cells[0].method)}


@pytest.mark.parametrize("ratio", [1 / 3, 0.1 + 1e-9, 0.123456789012345])
def test_a_ratio_of_many_digits_keeps_them(ratio: float) -> None:
    cell = make_cell("random", ratio)
    assert cell.method.retention_ratio == ratio
    assert cell.key() == key_of(get_method("random", retention_ratio=ratio))


def key_of(method: Method) -> str:
    """The key of a cell when numbers were hashed as somebody had written them."""
    content = {
        "method": method.name,
        "code": "+".join(code_of(type(part)) for part in (method, *method.parts)),
        "parameters": asdict(method),
        "positions": method.positions,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


CHANGES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in built_in() if name != "dense"),
    *(("mmg_vid", {option: value}) for option, value in (("tau", 0.9), ("tau", -1), ("k", 0), ("knn", 15))),
]


@pytest.mark.parametrize(("name", "changes"), CHANGES)
def test_answers_to_usual_spellings_are_found(name: str, changes: dict[str, Any]) -> None:
    """Those of the package's own configurations, and of the table of ablations."""
    config = {**cfg.load("method", name), **changes}
    parameters = {option: value for option, value in config.items() if option != "name"}
    for ratio in (1.0, 0.5, 0.3, 0.25, 0.125, 0.05):
        assert specs.cell(config, ratio).key() == key_of(get_method(name, retention_ratio=ratio, **parameters))
