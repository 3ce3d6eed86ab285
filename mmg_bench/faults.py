"""Faults in one line: what happened, and where."""

from __future__ import annotations

import importlib
import traceback
from pathlib import Path

_LIBRARIES = {"torch", "transformers", "lmms_eval", "numpy"}
"""Packages in which a fault comes to light, but seldom lies."""


def told(error: BaseException, plain: tuple[type[BaseException], ...] = ()) -> str:
    """Kind and message of a fault; and where it was raised, but for the kinds `plain`, whose messages say enough."""
    message = error.msg if isinstance(error, SyntaxError) else str(error)  # that of the whole has the place
    message = " ".join(message.split())
    place = "" if isinstance(error, plain) else place_of(error)
    return f"{type(error).__name__}: {message}{place and f' ({place})'}"


def place_of(error: BaseException) -> str:
    """File, line and function in which a fault was raised, libraries apart; empty where that is all there is."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{Path(error.filename).name}:{error.lineno}"
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}, in {own[-1].name}" if own else ""


def _is_own(file: str) -> bool:
    """Whether code is neither a library's nor Python's own."""
    if file.startswith("<"):  # no file
        return False
    path, python = Path(file), Path(importlib.__file__).parents[1]
    if "site-packages" in path.parts:
        return path.parts[path.parts.index("site-packages") + 1] not in _LIBRARIES
    return not path.is_relative_to(python)
