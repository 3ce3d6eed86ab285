"""Which of the methods of a table is meant by what a user wrote."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any

from mmg_bench.methods.registry import read_label, without_defaults
from mmg_bench.options import meant

_WRITTEN = re.compile(r"[^()=,]+(\((\w+=.+)?\))?(\(control\))?")
"""A label, without blanks."""
_Reading = Callable[[str], tuple[str, dict[str, str]]]


def label_among(given: str, known: Collection[str]) -> str | None:
    """Which of the `known` labels is given: as a table prints it, parameters in any order, blanks anywhere.

    Numbers may be spelt in other ways (`tau=0.90`), and parameters of a registered method may stand there at their
    defaults, which no table prints. Raises ValueError for what is no label.
    """
    if given in known:
        return given
    if not _WRITTEN.fullmatch("".join(given.split())):
        raise ValueError(
            f"{given!r} is no label: write a method's name, behind it in parentheses what is not at its default, and "
            "all in quotes, such as 'mmg_vid(tau=0.9, positions=contiguous)'"
        )
    readings = (read_label, without_defaults)  # the second imports torch
    return next((label for by in readings for label in known if _said(label, by) == _said(given, by)), None)


def _said(label: str, by: _Reading) -> tuple[str, dict[str, Any]]:
    """What a label says `by` a reading, its numbers as such."""
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
    """As `meant` of the `known` labels, by their methods alone where the given resembles none."""
    by_method = {label.partition("(")[0]: label for label in reversed([*known])}
    return meant(given, known) or meant(given.partition("(")[0], by_method, by_method)
