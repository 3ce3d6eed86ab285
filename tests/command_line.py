"""The command, given within the test's own process."""

from __future__ import annotations

import shlex

import pytest

from mmg_bench import cli


def given(command: str, monkeypatch: pytest.MonkeyPatch) -> object:
    """The exit status of a command line."""
    monkeypatch.setattr("sys.argv", shlex.split(command))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code
