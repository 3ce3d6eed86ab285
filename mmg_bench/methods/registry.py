"""Names of methods. Each file in this package is a method; third parties add theirs through an entry point."""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import mmg_bench.methods
from mmg_bench.faults import told
from mmg_bench.options import meant

if TYPE_CHECKING:
    from mmg_bench.methods.base import Method

ENTRY_POINT_GROUP = "mmg_bench.methods"
_NOT_METHODS = {"base", "registry"}


@cache
def built_in() -> tuple[str, ...]:
    """Names of this package's methods."""
    names = (module.name for module in pkgutil.iter_modules(mmg_bench.methods.__path__))
    return tuple(n for n in names if not n.startswith("_") and n not in _NOT_METHODS)


def _third_party() -> dict[str, EntryPoint]:
    """Entry points of third-party methods, by method name."""
    return _entries(tuple(sys.path))


@cache
def _entries(path: tuple[str, ...]) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}


def method_names() -> list[str]:
    """Every registered method, built-in ones first."""
    return [*sorted(built_in()), *sorted(set(_third_party()) - set(built_in()))]


def read_label(label: str) -> tuple[str, dict[str, str]]:
    """Parse a label as tables print it (`mmg_vid(tau=0.9)`, `random (control)`) into the method and its parameters."""
    name, _, inside = "".join(label.split()).removesuffix("(control)").partition("(")
    parts: list[str] = []
    for piece in re.split(r",(?=\w+=)", inside.removesuffix(")")):
        if parts and parts[-1].count("(") > parts[-1].count(")"):  # inside a value that is itself a label
            parts[-1] += f",{piece}"
        elif piece:
            parts.append(piece)
    return name, {parameter: value for parameter, _, value in (part.partition("=") for part in parts)}


def write_label(name: str, parameters: Mapping[str, Any]) -> str:
    """The label of a method with these parameters, as tables print it."""
    inside = ", ".join(f"{parameter}={spelt(value)}" for parameter, value in parameters.items())
    return f"{name}({inside})" if inside else name


def spelt(value: Any) -> Any:
    """A parameter's value in canonical spelling: whole numbers without a point, as in stored answers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def at_ratio(label: str, retention_ratio: float) -> str:
    """Name of a method at a retention ratio, for use in sentences."""
    return f"{label} at R = {100 * retention_ratio:.4g} %"


_AS_PRINTED = {"true": "True", "false": "False", "null": "None"}
"""Spellings in configurations and commands -> as labels print them."""


def without_defaults(label: str) -> tuple[str, dict[str, str]]:
    """Parse a label and drop parameters at their defaults, as tables do; keep all of an unregistered method."""
    name, parameters = read_label(label)
    if not parameters or name not in method_names():
        return name, parameters
    usual = {"positions": method_class(name).positions, **defaults(name)}
    parameters = {p: _AS_PRINTED.get(text.lower(), text) for p, text in parameters.items()}
    left = {p: text for p, text in parameters.items() if p not in usual or not _says(text, usual[p])}
    return name, {p: _in_order(text) if "(" in text else text for p, text in left.items()}


def _in_order(label: str) -> str:
    """Normalise a label without blanks: drop defaults and sort the parameters by name."""
    name, parameters = without_defaults(label)
    return write_label(name, dict(sorted(parameters.items())))


def _says(text: str, value: Any) -> bool:
    """Whether a text without blanks stands for the value of a parameter."""
    try:
        return float(text) == value
    except ValueError:
        return text == "".join(str(value).split())


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Turn any error while a method is imported into a one-line ValueError that names the method and the place."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"method {name!r} cannot be imported: {told(error)}") from error


def method_class(name: str) -> type[Method]:
    """The class registered as `name`. Raises ValueError if there is none (listing the names) or it is broken."""
    from mmg_bench.methods.base import Method  # imports torch, which takes seconds; names do not need it

    entry = _third_party().get(name)
    if name in built_in():
        if entry is not None:
            raise ValueError(
                f"entry point {entry.value!r} registers {name!r}, which is an mmg_bench method: give it another name"
            )
        with _told(name):
            module = importlib.import_module(f"mmg_bench.methods.{name}")
        methods = [
            c
            for c in vars(module).values()
            if isinstance(c, type) and issubclass(c, Method) and c.__module__ == module.__name__
        ]
        found = [c for c in methods if getattr(c, "name", None) == name]
        if len(found) != 1:
            names = ", ".join(repr(getattr(c, "name", None)) for c in methods) or "none"
            raise ValueError(
                f"mmg_bench/methods/{name}.py must define exactly one Method with name = {name!r}; it has {names}: "
                "correct the file or its name"
            )
        return found[0]
    if entry is None:
        known = method_names()
        raise ValueError(f"unknown method {name!r}; {meant(name, known)}the registered methods are: {', '.join(known)}")
    with _told(name):
        loaded = entry.load()
    if not (isinstance(loaded, type) and issubclass(loaded, Method)):
        raise ValueError(
            f"entry point {entry.value!r} of method {name!r} is not a subclass of mmg_bench.methods.Method"
        )
    if getattr(loaded, "name", None) != name:
        raise ValueError(
            f"entry point {entry.value!r} registers method {name!r}, but the class has name = "
            f"{getattr(loaded, 'name', None)!r}: give both the same name"
        )
    return loaded


def unreadable(names: Iterable[str]) -> dict[str, str]:
    """The methods that `method_class` cannot load, each with the reason; the others can still be used."""
    faults = {}
    for name in names:
        try:
            method_class(name)
        except ValueError as error:
            faults[name] = str(error)
    return faults


def plug_ins(names: Iterable[str]) -> dict[str, str]:
    """The methods that come from an entry point, each with its package and version."""
    entries = _third_party()
    given = {name: entries[name].dist for name in sorted(set(names) & set(entries))}
    return {name: "unknown" if dist is None else f"{dist.name} {dist.version}" for name, dist in given.items()}


def defaults(name: str) -> dict[str, Any]:
    """The defaults of a method's parameters; without `retention_ratio`, which every method has."""
    own = (f for f in fields(method_class(name)) if f.name != "retention_ratio")
    return {f.name: f.default for f in own if f.default is not MISSING}


def get_method(name: str, **parameters: Any) -> Method:
    """Build a method by name. Raises ValueError for an unknown name or parameter, or a value out of range."""
    cls = method_class(name)
    known = [f.name for f in fields(cls)]
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise ValueError(
            f"method {name!r} has no parameter {', '.join(unknown)}; {meant(unknown[0], known)}"
            f"it has: {', '.join(known)}. If you did not set it, the method's file in configs/method does"
        )
    return cls(**parameters)
