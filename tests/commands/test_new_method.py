"""`mmg-bench new-method`: what it writes works as it stands, and it writes over nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmg_bench.commands.new_method import FILES, new_method

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what a method touches."""
    folder = tmp_path / "checkout"
    for part in ("mmg_bench", "configs", "tests", "docs"):
        shutil.copytree(
            ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "golden", "*.npz", "img")
        )
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def in_checkout(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_a_new_method_passes_its_tests_as_written(checkout: Path) -> None:
    done = in_checkout(checkout, "mmg_bench", "new-method", "far_out")
    assert done.returncode == 0, done.stderr
    assert all((checkout / path.format(name="far_out")).is_file() for path in FILES)
    tests = [
        "tests/methods/test_far_out.py",
        "tests/methods/test_contract.py",
        "-k",
        "far_out",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    done = in_checkout(checkout, "pytest", *tests)
    assert done.returncode == 0, done.stdout
    assert "far_out" in in_checkout(checkout, "mmg_bench", "methods").stdout
    ruff = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--quiet", "."],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ruff.returncode == 0, ruff.stdout


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("FarOut", "it must be in lower-case snake_case"),
        ("far-out", "it must be in lower-case snake_case"),
        ("class", "it is a Python keyword"),
        ("all", "give this word a meaning of its own; choose another name"),
        ("off", "give this word a meaning of its own"),
        ("none", "its class would be called None, a Python keyword; choose another name"),
        ("video_tokens", "its class would be called VideoTokens, a name that its files import; choose"),
        ("class_var", "its class would be called ClassVar, a name"),
        ("mmg_vid", "is taken; the registered methods are: .*mmg_vid"),
        ("far_out", "far_out.md: already there"),
    ],
)
def test_nothing_is_written_over(name: str, says: str, tmp_path: Path) -> None:
    for path in FILES:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "docs/methods/far_out.md").write_text("mine")
    with pytest.raises(ValueError, match=says):
        new_method(name, tmp_path)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["far_out.md"]
    assert (tmp_path / "docs/methods/far_out.md").read_text() == "mine"


def test_elsewhere_it_says_where_to_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a checkout of mmg_bench"):
        new_method("far_out", tmp_path)
