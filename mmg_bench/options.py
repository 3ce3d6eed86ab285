"""Checks of option values, shared by all places that take them. Those of texts and numbers do not import torch."""

from __future__ import annotations

import difflib
import math
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


def check_whole(option: str, value: object, least: int, otherwise: str = "") -> None:
    """Raise ValueError, naming the option and its value, unless the value is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{option}={value!r}: it must be a whole number, at least {least}{otherwise}")


def check_number(option: str, value: object) -> None:
    """Raise ValueError, naming the option and its value, unless the value is a finite number of at least 0."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise ValueError(f"{option}={value!r}: it must be a number, at least 0")


def check_ratio(option: str, value: object, otherwise: str = "") -> None:
    """Raise ValueError, naming the option and its value, unless the value is a number above 0 and at most 1."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 1:
        raise ValueError(f"{option}={value!r}: it must be a number in (0, 1]{otherwise}")


def check_text(option: str, value: object) -> None:
    """Raise ValueError, naming the option and its value, unless the value is a non-blank text."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{option}={value!r}: it must be a text")


def meant(given: str, known: Collection[str], called: Mapping[str, str] | None = None) -> str:
    """A "did you mean ...?" question with the `known` name closest to `given`; empty if none is close.

    called: name -> what to print in place of it.
    """
    near = difflib.get_close_matches(given, list(known), n=1)
    return "".join(f"did you mean {called[name] if called else name}? " for name in near)


def check_path(option: str, value: object) -> Path:
    """The path named by an option's value. Raises ValueError, naming both, unless it is a non-blank text."""
    check_text(option, value)
    return Path(str(value)).expanduser()


def check_folder(option: str, value: object) -> Path:
    """The folder named by an option's value, which need not exist yet. Raises ValueError if it cannot be written to.

    Called before a model is loaded and hours are spent on results that could not be kept.
    """
    folder = check_path(option, value)
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there):  # permissions are not enough: root has them all, even below /proc
            return folder
    except OSError:
        why = "cannot be written to" if there.is_dir() else "is a file"
    raise ValueError(f"{option}={value!r}: {there} {why}; name another folder")


def dtype_of(option: str, name: str) -> torch.dtype:
    """The floating-point type with this name. Raises ValueError for any name not in DTYPES."""
    import torch

    if name not in DTYPES:
        raise ValueError(f"{option}={name!r}: choose {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def device_of(option: str, name: str) -> torch.device:
    """The device with this name; `auto` takes a GPU if there is one. Raises ValueError if there is no such device."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"{option}={name!r}: choose auto, cpu, cuda or cuda:<number>")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise ValueError(f"{option}={name!r}: torch sees {count} GPUs here; choose another, auto or cpu")
    return device


def make_current(device: torch.device) -> None:
    """Make this the current GPU, on which Triton kernels and recorded graphs run."""
    import torch

    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
