"""Checks of option values, for all places that take them. Those of texts and numbers do not wait for torch."""

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
    """Raise a ValueError that names the option and its value unless that is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{option}={value!r}: it must be a whole number, at least {least}{otherwise}")


def check_number(option: str, value: object) -> None:
    """Raise a ValueError that names the option and its value unless that is a finite number of at least 0."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise ValueError(f"{option}={value!r}: it must be a number, at least 0")


def check_text(option: str, value: object) -> None:
    """Raise a ValueError that names the option and its value unless that is a word or more."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{option}={value!r}: it must be a text")


def meant(given: str, known: Collection[str], called: Mapping[str, str] | None = None) -> str:
    """The question whether the one of the `known` names that is like `given` was meant; empty where none is like it.

    called: what to say for each name, if not the name.
    """
    near = difflib.get_close_matches(given, list(known), n=1)
    return "".join(f"did you mean {called[name] if called else name}? " for name in near)


def check_path(option: str, value: object) -> Path:
    """The path of that name. Raises a ValueError that names the option and its value where that is none."""
    check_text(option, value)
    return Path(str(value)).expanduser()


def check_folder(option: str, value: object) -> Path:
    """The folder of that name, which may be still to be made. Raises ValueError where nothing can be written there.

    Before a model is loaded and hours are spent on what could then not be kept.
    """
    folder = check_path(option, value)
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there):  # permissions alone do not tell: root has all, also below /proc
            return folder
    except OSError:
        why = "cannot be written to" if there.is_dir() else "is a file"
    raise ValueError(f"{option}={value!r}: {there} {why}; name another folder")


def dtype_of(option: str, name: str) -> torch.dtype:
    """The floating-point type of that name. Raises ValueError for any other."""
    import torch

    if name not in DTYPES:
        raise ValueError(f"{option}={name!r}: choose {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def device_of(option: str, name: str) -> torch.device:
    """The device of that name; `auto` takes a GPU when there is one. Raises ValueError where there is none such."""
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
    """Let what runs on the current GPU (Triton kernels, recorded graphs) run on this one."""
    import torch

    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
