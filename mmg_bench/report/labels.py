"""Matches what a user wrote to the label of a method in a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any

from mmg_bench.methods.registry import read_label, without_defaults
from mmg_bench.options import meant

_WRITTEN = re.compile(r"[^()=,]+(\((\w+=.+)?\))?(\(control\))?")
"""Pattern of a label without blanks."""
_Reading = Callable[[str], tuple[str, dict[str, str]]]


def label_among(given: str, known: Collection[str]) -> str | None:
    """The one of the `known` labels that is given: as a table prints it, with parameters in any order, blanks anywhere.

    Numbers may be written differently (`tau=0.90`), and parameters of a registered method may be given at their
    defaults, which tables leave out. None if no label matches. Raises ValueError for a text that is not a label.
    """
    if given in known:
        return given
    if not _WRITTEN.fullmatch("".join(given.split())):
        raise ValueError(
            f"{given!r} is not a label: write the method's name, then in parentheses the parameters that are "
            "not at their defaults, all in quotes, such as 'mmg_vid(tau=0.9, positions=contiguous)'"
        )
    readings = (read_label, without_defaults)  # the second imports torch
    return next((label for by in readings for label in known if _said(label, by) == _said(given, by)), None)


def _said(label: str, by: _Reading) -> tuple[str, dict[str, Any]]:
    """Name and parameters of a label in the reading `by`, with numbers as floats."""
    name, parameters = by(label)
    return name, {parameter: _value(text, by) for parameter, text in parameters.items()}


def _value(text: str, by: _Reading) -> Any:
    if "=" in text:  # a label itself
        return _said(text, by)
    try:
        return float(text)
    except ValueError:
        return text


def label_meant(given: str, known: Collection[str]) -> str:
    """Like `meant` for the `known` labels; if none is close to `given`, compares the methods' names alone."""
    by_method = {label.partition("(")[0]: label for label in reversed([*known])}
    return meant(given, known) or meant(given.partition("(")[0], by_method, by_method)
