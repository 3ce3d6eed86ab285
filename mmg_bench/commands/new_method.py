"""Carries out `mmg-bench new-method`: writes a working method, its config, test and docs page, to be filled in."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from mmg_bench.methods.registry import method_names

METHOD = '''\
"""{title}: one line on what it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mmg_bench.methods._ops import descending
from mmg_bench.methods.base import Method, Positions, check_range
from mmg_bench.tokens import PrunedTokens, VideoTokens, keep


@dataclass(frozen=True)
class {cls}(Method):
    """{title} (authors, venue): what it is.

    Idea: keep the tokens that lie farthest from the mean of their frame (this is the example: put yours here).

    Source: paper, equations; code and commit. Parameters: see the fields.
    Deviations: what differs from the official code, and why.
    """

    power: float = 1.0
    """Exponent of the distance. Fields are the paper's hyper-parameters, under its names, each with its range."""

    name: ClassVar[str] = "{name}"
    needs: ClassVar[frozenset[str]] = frozenset()  # such as {{"attention"}}: optional fields of VideoTokens
    positions: ClassVar[Positions] = "original"  # the official choice: original or contiguous

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "power", 0, 10, low_open=True)

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        x = tokens.features.float()  # [T, N, D]
        distance = (x - x.mean(1, keepdim=True)).norm(dim=-1) ** self.power  # [T, N]
        return keep(tokens, descending(distance.flatten())[: self.budget(tokens)])
'''

CONFIG = """\
name: {name}
power: 1.0  # exponent of the distance; in (0, 10]
"""

TEST = '''\
"""What is particular to {name}; tests/methods/test_contract.py holds what every method must do."""

import torch

from mmg_bench.methods.{name} import {cls}
from mmg_bench.tokens import VideoTokens


def test_keeps_what_stands_out_of_its_frame():
    features = torch.zeros(2, 4, 3)
    features[0, 2], features[1, 1] = 5.0, -4.0
    pruned = {cls}(retention_ratio=0.25).prune(VideoTokens(features, (2, 2)))
    assert pruned.positions.tolist() == [2, 5]
'''

DOCS = """\
# {name}

**Idea.** What it keeps, in two lines.

**Source.** Authors, *title*, venue, arXiv; code `owner/repository` commit (`function`).

## Equations
    d[t,n] = || x[t,n] - mean of frame t || ^ power
    keep the round(R·T·N) tokens of largest d            (ties: lower index)

## Parameters
| name | default | meaning |
|---|---|---|
| `retention_ratio` | 0.25 | R |
| `power` | 1 | exponent of the distance |

## Realised tokens
Exactly round(R·T·N). Position ids stay.

## Deviations
- What differs from the official code, and why.
"""

FILES = {
    "mmg_bench/methods/{name}.py": METHOD,
    "configs/method/{name}.yaml": CONFIG,
    "tests/methods/test_{name}.py": TEST,
    "docs/methods/{name}.md": DOCS,
}


_WORDS = frozenset({"all", "null", "true", "false", "yes", "no", "on", "off", "inf", "nan"})
"""Words that cannot be names: `mmg-bench bench-methods` gives the first a meaning, options or YAML the others."""
_IMPORTED = frozenset(re.findall(r"\w+", " ".join(re.findall(r"^from \S+ import (.*)", METHOD + TEST, re.MULTILINE))))
"""Names that a method's own files import, and that its class would shadow."""


def new_method(name: str, checkout: Path) -> list[Path]:
    """Write the files of a method called `name` into a checkout of this repository. Returns their paths.

    Raises ValueError for a name that is taken, has another meaning or is not lower-case snake case, for a folder that
    is not a checkout, and for files that already exist; then nothing is written.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise ValueError(f"method name {name!r}: it must be in lower-case snake_case, such as fast_vid")
    if keyword.iskeyword(name):
        raise ValueError(
            f"method name {name!r}: it is a Python keyword, so its file could not be imported; choose another name"
        )
    if name in _WORDS:
        raise ValueError(
            f"method name {name!r}: commands and YAML files give this word a meaning of its own; choose another name"
        )
    cls = "".join(part.capitalize() for part in name.split("_"))
    if keyword.iskeyword(cls) or cls in _IMPORTED:
        what = "a Python keyword" if keyword.iskeyword(cls) else "a name that its files import"
        raise ValueError(f"method name {name!r}: its class would be called {cls}, {what}; choose another name")
    if name in method_names():
        raise ValueError(f"method name {name!r} is taken; the registered methods are: {', '.join(method_names())}")
    if not all((checkout / Path(path).parent).is_dir() for path in FILES):
        raise ValueError(
            f"{checkout}: not a checkout of mmg_bench; run this in the root of one, next to pyproject.toml"
        )
    paths = {checkout / path.format(name=name): text for path, text in FILES.items()}
    if there := [str(path) for path in paths if path.exists()]:
        raise ValueError(f"{', '.join(there)}: already there; move it away or choose another method name")
    words = {"name": name, "cls": cls, "title": name}
    for path, text in paths.items():
        path.write_text(text.format(**words), encoding="utf-8")
    return list(paths)
