"""What is wrong with an lmms-eval task, in one line: the fault, where it was raised, and the remedy."""

from __future__ import annotations

import errno
import json
import traceback
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmg_bench import faults

_SETTINGS = ("doc_to_text", "doc_to_target", "doc_to_choice", "doc_to_visual", "process_results")
"""Task settings that may be functions; lmms-eval calls them in methods of the same names."""
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)
"""Kinds of faults of a folder, rather than of the task that uses it."""


class BenchmarkError(ValueError):
    """A benchmark that cannot be run as configured; the message names what is wrong and the remedy."""


def told(error: BaseException, folder: Path) -> str:
    """Describe a fault: the task setting, the kind of fault, and where it was raised in the code below `folder`."""
    called = (frame.name for frame in traceback.extract_tb(error.__traceback__))
    setting = next((f"{name} raised " for name in called if name in _SETTINGS), "")
    return setting + faults.told(error, folder=folder)


def unreadable(folder: Path, error: BaseException) -> str:
    """The yaml file below a folder, and the line in it, that lmms-eval failed to read with `error`."""
    from lmms_eval.utils import load_yaml_config

    for file in sorted(folder.rglob("*.yaml")):
        try:
            settings = load_yaml_config(str(file), mode="simple")
        except Exception as fault:
            mark = getattr(fault, "problem_mark", None)
            if mark is not None:
                return f"{mark.name}:{mark.line + 1}: {getattr(fault, 'problem', fault)}"
            if not isinstance(fault, AssertionError | AttributeError):  # from an empty or plain-text file
                return f"{file}: {told(fault, folder)}"
            settings = None
        if not isinstance(settings, dict):
            return f"{file}: it has no settings"
    return told(error, folder)


def why_not_loaded(name: str, error: BaseException, settings: Mapping[str, Any], folder: Path, own: Path | None) -> str:
    """Why a task cannot be loaded, and the remedy. `own` is the yaml file of a task that lmms-eval does not ship.

    The user can correct anything in such a task; for lmms-eval's own tasks, only the data and the packages they need.
    """
    error = _cause(error)
    fault, place = told(error, folder), faults.place_of(error, folder)
    if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
        return (
            f"the data of task {name!r} cannot be written or read ({fault}): allow access to the folder, free some "
            "space, or set another with HF_HOME or, for data made by this package, MMG_BENCH_CACHE"
        )
    split = settings.get("test_split") or settings.get("validation_split")
    no_split = f"the data of task {name!r} has no split {split!r}"
    lacks_split = isinstance(error, KeyError) and error.args[:1] == (split,) and not place
    download = (
        "download it, or point HF_HOME at a folder that holds it (docs/reproducing.md); `mmg-bench doctor` shows what "
        "is missing"
    )
    if own is None and lacks_split:
        return f"{no_split}: download it again, or correct benchmark.data"
    if own is None and isinstance(error, ImportError):
        return f"task {name!r} cannot be loaded ({fault}): install what it needs"
    if own is None:
        return f"the data of task {name!r} cannot be loaded ({fault}); {download}"
    if place:
        return f"task {name!r}: {fault}: correct it there"
    if lacks_split:
        return f"{no_split}: correct {own}"
    if any(frame.name == "download" for frame in traceback.extract_tb(error.__traceback__)):
        fault = next(filter(None, map(bad_json, _json_files(own))), told(error.__cause__ or error, folder))
        remedy = f"correct dataset_path or dataset_kwargs in {own}, or the files that they name"
        or_else = "" if is_local(settings) else f"; or {download}"
        return f"the data of task {name!r} cannot be loaded ({fault}): {remedy}{or_else}"
    return f"task {name!r}: {fault}: correct {own}, or the files that it names"


def is_local(settings: Mapping[str, Any]) -> bool:
    """Whether a task's questions are files on this machine, not on the hub."""
    path = str(settings.get("dataset_path"))
    if path.isidentifier() and find_spec(f"datasets.packaged_modules.{path}") is not None:  # a reader, such as json
        return True
    return Path(path).exists()


def _cause(error: BaseException) -> BaseException:
    """The error that made lmms-eval fail, unwrapped from its retries."""
    from tenacity import RetryError

    return (error.last_attempt.exception() or error) if isinstance(error, RetryError) else error


def _json_files(task: Path) -> list[Path]:
    """Files on this machine that a task's yaml file names to be read as JSON."""
    from lmms_eval.utils import load_yaml_config

    settings = load_yaml_config(str(task), mode="full")
    named = settings.get("dataset_kwargs") if settings.get("dataset_path") == "json" else None
    return [Path(file) for file in _texts(named) if Path(file).is_file()]


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        return [value]
    within = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in within for text in _texts(part)]


def _is_object(line: str) -> bool:
    """Whether a line is a complete JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except json.JSONDecodeError:
        return False


def bad_json(file: Path) -> str | None:
    """The first fault, as `file:line: fault`, of a file that should hold one JSON text, or one per line.

    The file counts as JSON lines if its first or last line is a JSON object.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:  # compressed, or another kind of file
        return None
    if not text.strip():
        return f"{file}: it is empty"
    ends = text.strip().split("\n")
    one_a_line = not text.lstrip().startswith("[") and any(map(_is_object, (ends[0], ends[-1])))
    try:
        json.loads(text)
        return None
    except json.JSONDecodeError as fault:
        if not one_a_line:
            return f"{file}:{fault.lineno}: {fault.msg}"
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            json.loads(line.strip() or "null")
        except json.JSONDecodeError as fault:
            return f"{file}:{number}: {fault.msg}"
    return None
