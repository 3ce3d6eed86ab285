"""Faults in one line: what happened, and where."""

from __future__ import annotations

import traceback
from pathlib import Path

_LIBRARIES = {"torch", "transformers", "lmms_eval", "numpy"}
"""Folders of code in which a fault comes to light, but seldom lies."""


def told(error: BaseException, plain: tuple[type[BaseException], ...] = ()) -> str:
    """Kind and message of a fault; and where it was raised, but for the kinds `plain`, whose messages say enough."""
    text = f"{type(error).__name__}: {error}"
    place = "" if isinstance(error, plain) else place_of(error)
    return f"{text} ({place})" if place else text


def place_of(error: BaseException) -> str:
    """File, line and function in which a fault was raised, libraries apart; empty where that is all there is."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _LIBRARIES & set(Path(frame.filename).parts)]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}, in {own[-1].name}" if own else ""
