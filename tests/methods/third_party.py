"""A package of another author with one method, laid out in a folder as `pip install` would leave it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "every_nth"
MODULE = '''
"""Evenly spaced tokens."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from mmg_bench.methods import Method
from mmg_bench.tokens import PrunedTokens, VideoTokens, keep


@dataclass(frozen=True)
class EveryNth(Method):
    """Keep evenly spaced tokens of the whole video."""

    first: int = 0
    """Where to begin."""

    name: ClassVar[str] = "every_nth"

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        budget = self.budget(tokens)
        spaced = torch.arange(budget, device=tokens.features.device) * tokens.total // budget
        return keep(tokens, (spaced + self.first) % tokens.total)
'''


def write(folder: Path, module: str = MODULE) -> None:
    """Lay the package out in `folder`: its module, and the metadata that names its entry point."""
    (folder / "someones_methods.py").write_text(module)
    metadata = folder / "someones_methods-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: someones-methods\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[mmg_bench.methods]\n{NAME} = someones_methods:EveryNth\n")


@contextmanager
def installed(folder: Path) -> Iterator[None]:
    """Inside, Python finds what is in `folder`, as it finds site-packages."""
    sys.path.insert(0, str(folder))
    sys.modules.pop("someones_methods", None)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("someones_methods", None)
        importlib.invalidate_caches()
