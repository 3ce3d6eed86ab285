"""Cells: one pruning method with all its parameters, one column of a run."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

from mmg_bench.files import digest_of
from mmg_bench.methods import base
from mmg_bench.methods.base import Method, Positions
from mmg_bench.methods.registry import at_ratio, get_method, plug_ins, spelt, write_label

_FLOATS = (float, float | None, "float", "float | None")
"""Types of float fields as dataclasses store them: strings where annotations are not evaluated."""


@dataclass(frozen=True)
class Cell:
    """A method with its parameters, as compared in a run."""

    method: Method
    positions: Positions
    """Position ids of the kept tokens: `original` or `contiguous`."""

    @property
    def label(self) -> str:
        """Name for tables: the method's name with every parameter that is not at its default (except the ratio)."""
        own = {} if self.positions == self.method.positions else {"positions": self.positions}
        return write_label(self.method.name, self._changed | own)

    @property
    def _changed(self) -> dict[str, Any]:
        """Parameters that are not at their defaults, in canonical spelling."""
        return {name: spelt(value) for name, value in self.method.changed.items()}

    def __str__(self) -> str:
        return at_ratio(self.label, self.method.retention_ratio)

    def key(self, **context: Any) -> str:
        """Digest of the method, its code, all its parameters and the context (model, benchmark, frames, ...)."""
        content = {
            "method": self.method.name,
            "code": "+".join(code_of(type(part)) for part in (self.method, *self.method.parts)),
            "parameters": asdict(self.method) | self._changed,
            "positions": self.positions,
            **context,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


@cache
def code_of(method: type[Method]) -> str:
    """Digest of the method's file and of the files that it imports from its package: other code, other answers.

    Of mmg_bench itself, only `mmg_bench.methods` and `mmg_bench.tokens` count: methods are built from these.
    """
    try:
        own = inspect.getsourcefile(method)
    except TypeError:  # defined in an interpreter
        own = None
    name = method.__module__
    if name == "__main__" and (spec := getattr(sys.modules[name], "__spec__", None)) is not None:
        name = spec.name  # run by `python -m`
    files: set[Path] = set()
    left = [(name, Path(own))] if own is not None else [(base.__name__, Path(base.__file__))]
    while left:
        name, file = left.pop()
        if file not in files:
            files.add(file)
            left += _imported(name, file)
    return digest_of(sorted(files))


@cache
def _imported(module: str, file: Path) -> tuple[tuple[str, Path], ...]:
    """Modules of the method's package or of shared method code that a module imports, even inside functions."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    found = []
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            try:
                source = resolve_name(relative, package) if node.level else relative
            except ImportError:  # beyond the package: the import itself would fail too
                continue
            names = [source, *(f"{source}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found += [(name, path) for name in names if _counts(name, module) and (path := _file_of(name))]
    return tuple(found)


def _counts(name: str, module: str) -> bool:
    """Whether a `name` that a method's `module` imports counts as the method's code."""
    if name.partition(".")[0] == "mmg_bench":
        return name == "mmg_bench.tokens" or name.startswith("mmg_bench.methods.")
    return name.startswith(f"{module.partition('.')[0]}.")


def _file_of(name: str) -> Path | None:
    """The file of a module, found without importing it; None if there is no such module."""
    top, *inner = name.split(".")
    for folder in getattr(sys.modules.get(top), "__path__", ()):
        path = Path(folder, *inner)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None


def needs_of(cells: Iterable[Cell]) -> frozenset[str]:
    """Optional fields of `VideoTokens` that at least one of the cells needs from the model."""
    return frozenset().union(*(cell.method.needs for cell in cells))


def codes_of(cells: Iterable[Cell]) -> dict[str, str]:
    """Map the name of each method of the cells, and of each of its `parts`, to its `code_of`."""
    return {part.name: code_of(type(part)) for cell in cells for part in (cell.method, *cell.method.parts)}


def described_plug_ins(cells: Iterable[Cell]) -> dict[str, dict[str, str]]:
    """Provenance of methods from other packages: the package and the code digest; empty without such methods.

    For this package's own methods the commit is enough. The digest is added because a version rarely changes while a
    method is being developed.
    """
    code = codes_of(cells)
    found = {name: f"{package}, code {code[name][:12]}" for name, package in plug_ins(code).items()}
    return {"plug_ins": found} if found else {}


def _hashable(parameter: str, value: Any) -> Any:
    """A parameter value as a frozen dataclass holds it: lists of a configuration become tuples, as in the defaults."""
    if isinstance(value, Mapping):
        raise ValueError(f"{parameter}={dict(value)!r}: it must be one value, or a list of values")
    return tuple(_hashable(parameter, item) for item in value) if isinstance(value, list | tuple) else value


def _one_spelling(number: Any) -> Any:
    """A number as one float for all its spellings: 1 becomes 1.0, and 0.1 + 2 * 0.1 from a sweep becomes 0.3."""
    if not isinstance(number, int | float) or isinstance(number, bool):
        return number
    short = float(f"{number:.12g}")
    return short if abs(short - number) <= 8 * math.ulp(short) else float(number)  # 1 / 3 has more digits by itself


def make_cell(name: str, retention_ratio: float, positions: Positions | None = None, **parameters: Any) -> Cell:
    """Build a cell from a method's name. dense always has ratio 1. Raises ValueError for anything out of range.

    All spellings of a number give the same cell.
    """
    ratio = 1.0 if name == "dense" else retention_ratio
    given = {parameter: _hashable(f"{name}.{parameter}", value) for parameter, value in parameters.items()}
    method = get_method(name, retention_ratio=ratio, **given)  # an error shows the values as they were given
    floats = {f.name for f in fields(method) if f.type in _FLOATS} & {"retention_ratio", *given}
    method = replace(method, **{parameter: _one_spelling(getattr(method, parameter)) for parameter in floats})
    if positions not in (None, "original", "contiguous"):
        raise ValueError(f"positions={positions!r}: choose original, contiguous or null (the method's own)")
    return Cell(method, positions or method.positions)
