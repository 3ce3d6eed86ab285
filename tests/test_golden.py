"""Every method with an official implementation reproduces its golden vectors (see golden_cases.py)."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

import golden_cases
from golden_cases import DEVICE, Checker, Run
from mmg_bench.mock_gpu import GPU, MockGpu

RUNS = golden_cases.all_runs()


def _checkers() -> dict[str, Checker]:
    found: dict[str, Checker] = {}
    for path in sorted(Path(__file__).parent.glob("golden_*.py")):
        for stem, checker in getattr(importlib.import_module(path.stem), "CHECKERS", {}).items():
            assert stem not in found, f"two checkers for {stem}.npz"
            found[stem] = checker
    return found


CHECKERS = _checkers()


@pytest.mark.parametrize("run", RUNS, ids=lambda r: f"{r.folder.parent.name}-{r.stem}-{r.id}")
def test_matches_official(run: Run):
    compare(run, DEVICE)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="a real one is asked for")
@pytest.mark.parametrize("run", RUNS, ids=lambda r: f"{r.folder.parent.name}-{r.stem}-{r.id}")
def test_matches_official_in_the_code_for_a_gpu(run: Run):
    with MockGpu():
        compare(run, GPU)


def compare(run: Run, device: torch.device) -> None:
    if run.stem not in CHECKERS:
        pytest.fail(f"no checker for {run.stem}.npz: add tests/golden_{run.stem}.py")
    if run.error:
        pytest.skip(f"the official code raised: {run.error}")
    CHECKERS[run.stem](run, run.inputs(device))


def test_vectors_are_there():
    assert RUNS, f"no golden vectors in {golden_cases.folders()}"


def _run(name: str, expected: np.ndarray, **meta: object) -> Run:
    class Made(Run):
        def output(self, name: str) -> np.ndarray:
            return expected

    return Made(Path(), "made", "run", {"outputs": {name: {}}, **meta})


def test_check_can_fail():
    run = _run("x", np.array([1.0, 2.0]))
    run.check("x", np.array([1.0, 2.00003]))
    with pytest.raises(AssertionError, match="off by"):
        run.check("x", np.array([1.0, 2.0001]))
    with pytest.raises(AssertionError, match="shape"):
        run.check("x", np.array([1.0]))
    run = _run("i", np.array([1, 2]))
    with pytest.raises(AssertionError, match="1 of 2 differ"):
        run.check("i", np.array([1, 3]))


def test_flags_relax_only_what_they_name():
    run = _run("i", np.array([1, 2]), noise_sensitive_outputs=["i"])
    run.check("i", np.array([1, 3]))
    with pytest.raises(AssertionError, match="differ"):
        run.check("i", np.array([1, 3]), strict=True)
    unstable = {"indices_stable_rel1e-6": False, "stability": {"differs": ["j"]}}
    assert not _run("i", np.array([1]), **unstable).flagged("i")
    assert _run("j", np.array([1]), **unstable).flagged("j")
    assert _run("f", np.array([1.0]), **unstable).flagged("f")
