"""One-line descriptions of faults: what happened, and where."""

from __future__ import annotations

import importlib
import traceback
from pathlib import Path

_LIBRARIES = {"torch", "transformers", "lmms_eval", "numpy"}
"""Packages in which faults are raised, but rarely originate."""
_MOCK_GPU = Path(__file__).with_name("mock_gpu.py")
"""This file raises in torch's place, so it is never named as the place of a fault either."""


def told(error: BaseException, plain: tuple[type[BaseException], ...] = (), folder: Path | None = None) -> str:
    """Kind and message of a fault, and its place (`place_of`) unless it is of a kind in `plain`: those say enough."""
    place = "" if isinstance(error, plain) else place_of(error, folder)
    message = error.msg if place and isinstance(error, SyntaxError) else str(error)  # `str(error)` repeats the place
    lines = (frame.line for frame in reversed(traceback.extract_tb(error.__traceback__)) if frame.line)
    message = " ".join(message.split()) or next(lines, "")  # an assertion often has no other text
    return f"{type(error).__name__}: {message}{place and f' ({place})'}"


def place_of(error: BaseException, folder: Path | None = None) -> str:
    """File, line and function where the user's own code raised a fault, or called what did; empty if there is none.

    With `folder`, own code is what lies below it, and the file's full path is given. Without it, own code is everything
    but libraries and Python.
    """
    frames = [(frame.filename, frame.lineno, frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename is not None:
        frames.append((error.filename, error.lineno, "<module>"))
    own = [frame for frame in frames if (_is_own(frame[0]) if folder is None else _is_below(frame[0], folder))]
    if not own:
        return ""
    file, line, function = own[-1]
    return f"{file if folder else Path(file).name}:{line}{'' if function == '<module>' else f', in {function}'}"


def _is_own(file: str) -> bool:
    """Whether code belongs neither to a library nor to Python."""
    if file.startswith("<") or Path(file) == _MOCK_GPU:  # not a file, or the one that stands in for torch
        return False
    path, python = Path(file), Path(importlib.__file__).parents[1]
    if "site-packages" in path.parts:
        return path.parts[path.parts.index("site-packages") + 1] not in _LIBRARIES
    return not path.is_relative_to(python)


def _is_below(file: str, folder: Path) -> bool:
    """Whether a file lies below a folder; packages of an environment in that folder do not count."""
    path, root = Path(file), folder.resolve()
    if not path.is_absolute() or not path.resolve().is_relative_to(root):  # `<template>` is no file
        return False
    return "site-packages" not in path.resolve().relative_to(root).parts
