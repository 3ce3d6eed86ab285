"""The published FLOPs, recomputed: by the functions that make our tables, and as docs/measuring.md shows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mmg_bench.measure.flops import TextGeometry, flops_4nd2, flops_gqa

QWEN2_7B = TextGeometry(layers=28, hidden=3584, intermediate=18944, kv_width=512)
VICUNA_7B = TextGeometry(layers=32, hidden=4096, intermediate=11008, kv_width=4096)
DOCS = Path(__file__).parents[2] / "docs" / "measuring.md"
INFOMERGE, PYRAMIDDROP = "arXiv 2606.02161", "arXiv 2410.17247"


@dataclass(frozen=True)
class Published:
    model: str
    what: str
    geometry: TextGeometry
    layers: list[tuple[int, int]]  # (tokens, layers that they go through)
    formula: Callable[..., int]
    teras: str  # as printed
    source: str

    @property
    def here(self) -> float:
        """In T multiply-adds."""
        return self.formula(self.geometry, [n for n, layers in self.layers for _ in range(layers)]) / 1e12

    @property
    def digits(self) -> int:
        return len(self.teras.partition(".")[2])


def onevision(what: str, layers: list[tuple[int, int]], teras: str) -> Published:
    return Published("LLaVA-OneVision-7B, 32", what, QWEN2_7B, layers, flops_gqa, teras, INFOMERGE)


PUBLISHED = [
    onevision("dense", [(6272, 28)], "48.82"),
    onevision("R = 25 %", [(1568, 28)], "10.73"),
    onevision("R = 20 %", [(1254, 28)], "8.50"),
    onevision("R = 15 %", [(941, 28)], "6.32"),
    onevision("R = 10 %", [(627, 28)], "4.17"),
    onevision("FastV, K = 2, R = 15 %", [(6272, 2), (941, 26)], "9.4"),
    Published("LLaVA-Video-7B, 64", "dense", QWEN2_7B, [(64 * 169, 28)], flops_gqa, "94.1", INFOMERGE),
    Published("LLaVA-1.5-7B, an image", "dense", VICUNA_7B, [(576, 32)], flops_4nd2, "3.82", PYRAMIDDROP),
    Published(
        "LLaVA-1.5-7B, an image",
        "PyramidDrop, 4 stages",
        VICUNA_7B,
        [(576, 8), (288, 8), (144, 8), (72, 8)],
        flops_4nd2,
        "1.78",
        PYRAMIDDROP,
    ),
]


def line(p: Published) -> str:
    tokens = ", ".join(str(n) for n, _ in p.layers)
    here = f"{p.here:.{p.digits}f} T"
    return f"| {p.model} | {p.what} | {tokens} | `{p.formula.__name__}` | {here} | {p.teras} T | {p.source} |"


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda p: f"{p.model}-{p.what}")
def test_published_figures(published: Published) -> None:
    assert round(published.here, published.digits) == float(published.teras)


def test_the_docs_show_them() -> None:
    shown = DOCS.read_text().partition("<!-- flops:begin")[2].partition("<!-- flops:end")[0]
    assert shown.splitlines()[3:] == [line(p) for p in PUBLISHED]


def test_fastvs_own_convention_has_no_gate() -> None:
    """Its Table 1: 154.6 B a layer for LLaVA-1.5-13B, 84.6 B on average with half of 576 tokens left after K = 2."""

    def fastv(n: int, d: int = 5120, m: int = 13824) -> float:
        return (flops_4nd2(TextGeometry(layers=1, hidden=d, intermediate=m, kv_width=d), n) - n * d * m) / 1e9

    prompt = 612  # 36 tokens of text and the image
    assert round(fastv(prompt), 1) == 154.6
    assert round((2 * fastv(prompt) + 38 * fastv(prompt - 288)) / 40, 1) == 84.6
