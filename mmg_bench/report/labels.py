"""Which of the methods of a table is meant by what a user wrote."""

from __future__ import annotations

import re
from collections.abc import Collection

from mmg_bench.methods.registry import read_label, without_defaults
from mmg_bench.options import meant

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
    readings = (read_label, without_defaults)  # the second imports torch
    return next((label for read in readings for label in known if read(label) == read(given)), None)


def label_meant(given: str, known: Collection[str]) -> str:
    """As `meant` of the `known` labels, by their methods alone where the given resembles none."""
    by_method = {label.partition("(")[0]: label for label in reversed([*known])}
    return meant(given, known) or meant(given.partition("(")[0], by_method, by_method)
