"""Which of the methods of a table is meant by what a user wrote."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

from mmg_bench.methods.registry import read_label, without_defaults

_WRITTEN = re.compile(r"[^()=,]+(\((\w+=.+)?\))?(\(control\))?")
"""A label, without blanks."""


def label_among(given: str, known: Collection[str]) -> str | None:
    """Which of the `known` labels is given: as a table prints it, parameters in any order, blanks anywhere.

    Parameters of a registered method may also stand there at their defaults, which no table prints. Raises ValueError
    for what is no label.
    """
    if given in known:
        return given
    if not _WRITTEN.fullmatch("".join(given.split())):
        raise ValueError(
            f"{given!r} is no label: write a method's name, behind it in parentheses what is not at its default, and "
            "all in quotes, such as 'mmg_vid(tau=0.9, positions=contiguous)'"
        )
    readings = (reading(given) for reading in (read_label, without_defaults))  # the second imports torch
    return next((label for one in readings for label in known if read_label(label) == one), None)


def meant(given: str, known: Collection[str]) -> str:
    """The question whether that of the `known` labels was meant which resembles the given, or whose method does."""
    by_method = {label.partition("(")[0]: label for label in reversed([*known])}
    near = difflib.get_close_matches(given, known, n=1)
    near = near or [by_method[m] for m in difflib.get_close_matches(given.partition("(")[0], by_method, n=1)]
    return "".join(f"did you mean {label}? " for label in near)
