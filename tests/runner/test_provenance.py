"""Where numbers come from: one entry for one way of measuring, and the code that did it."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import mmg_bench
from mmg_bench.runner import provenance

ENTRY: dict[str, Any] = {"model": "m", "date": "today", "command": "mmg-bench run method=a"}


def test_entries_that_differ_in_the_date_alone_are_one(tmp_path: Path) -> None:
    first = provenance.register(tmp_path, ENTRY)
    assert provenance.register(tmp_path, {**ENTRY, "date": "tomorrow"}) == first
    other = provenance.register(tmp_path, {**ENTRY, "command": "mmg-bench run method=b"})
    assert provenance.read(tmp_path) == {
        first: {**ENTRY, "last_date": "tomorrow"},
        other: {**ENTRY, "command": "mmg-bench run method=b"},
    }
    provenance.register(tmp_path, {**ENTRY, "date": "the day after"})
    assert provenance.read(tmp_path)[first] == {**ENTRY, "last_date": "the day after"}


def test_shards_are_one_way_of_measuring(tmp_path: Path) -> None:
    commands = [f"mmg-bench run method=a shard.index={i} shard.count=2" for i in range(2)]
    keys = {provenance.register(tmp_path, {**ENTRY, "command": command}) for command in [*commands, ENTRY["command"]]}
    assert len(keys) == len(provenance.read(tmp_path)) == 1
    (entry,) = provenance.read(tmp_path).values()
    assert entry["command"] == ENTRY["command"]  # which does all of it, whatever came first or last
    for command in (commands[0], f"{ENTRY['command']} workers=2", commands[1]):
        provenance.register(tmp_path, {**ENTRY, "command": command})
    (entry,) = provenance.read(tmp_path).values()
    assert entry["command"] == f"{ENTRY['command']} workers=2"


def test_cells_are_those_that_the_last_command_asked_for(tmp_path: Path) -> None:
    key = provenance.register(tmp_path, ENTRY, ["b", "a", "b"])
    assert provenance.read(tmp_path)[key] == {**ENTRY, "asked": ["a", "b"]}
    assert provenance.register(tmp_path, {**ENTRY, "date": "tomorrow"}, iter(["c"])) == key
    assert provenance.read(tmp_path)[key] == {**ENTRY, "last_date": "tomorrow", "asked": ["c"]}


def test_entries_are_put_beside_others_unless_they_are_older(tmp_path: Path) -> None:
    provenance.write(tmp_path, {"a": {"date": "2"}, "b": {"date": "1", "last_date": "3", "said": "there"}})
    provenance.add(tmp_path, {"b": {"date": "1", "last_date": "2"}, "c": {"date": "1"}})
    expected = {"a": {"date": "2"}, "b": {"date": "1", "last_date": "3", "said": "there"}, "c": {"date": "1"}}
    assert provenance.read(tmp_path) == expected
    provenance.add(tmp_path, {"b": {"date": "3", "said": "again"}})
    assert provenance.read(tmp_path) == {**expected, "b": {"date": "3", "said": "again"}}


def _register(folder: Path, number: int) -> None:
    for i in range(20):
        provenance.register(folder, {"worker": number, "i": i})


def test_processes_register_side_by_side(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_register, args=(tmp_path, n)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(provenance.read(tmp_path)) == 80


def test_the_command_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/mmg-bench", "run", "-m", "table.retention_ratios=[0.25, 0.1]"])
    said = provenance.describe({}, torch.device("cpu"))["command"]
    assert said == "mmg-bench run -m 'table.retention_ratios=[0.25, 0.1]'"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of its own with the package and a configuration in it."""
    monkeypatch.delenv(provenance.COMMIT, raising=False)
    for name in ("mmg_bench/__init__.py", "configs/run.yaml", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a\n")
    monkeypatch.setattr(mmg_bench, "__file__", str(tmp_path / "mmg_bench" / "__init__.py"))
    _git(tmp_path, "init", "-q")
    return tmp_path


def _git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", folder, *who, *arguments], check=True)


def commit_of() -> str:
    return provenance.describe({}, torch.device("cpu"))["commit"]


def test_the_commit_tells_what_differs_from_it(checkout: Path) -> None:
    _git(checkout, "add", ".")
    _git(checkout, "commit", "-qm", "one")
    clean = commit_of()
    assert len(clean) == 12
    (checkout / "README.md").write_text("no code\n")
    assert commit_of() == clean
    seen = {clean}
    for name, text in (("mmg_bench/__init__.py", "b\n"), ("mmg_bench/new.py", "c\n"), ("mmg_bench/new.py", "d\n")):
        (checkout / name).write_text(text)
        assert commit_of().startswith(f"{clean}+")
        seen.add(commit_of())
    assert len(seen) == 4
    (checkout / "mmg_bench" / ".#new.py").symlink_to("nowhere")  # an editor's lock
    assert commit_of().startswith(f"{clean}+")


def test_a_package_below_another_checkout_has_no_commit(checkout: Path) -> None:
    _git(checkout, "add", "README.md")
    _git(checkout, "commit", "-qm", "one")
    assert commit_of() == "unknown"


@pytest.mark.parametrize("content", ["{", "[]", '{"key": 5}', "\x00"])
def test_a_damaged_file_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "provenance.json").write_text(content)
    with pytest.raises(ValueError, match=r"provenance\.json is damaged .*: restore it, or start again"):
        provenance.read(tmp_path)
