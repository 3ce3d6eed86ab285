import pytest

from golden_cases import Inputs, Run
from mmg_bench.methods.dycoke import references, temporal_merge


def check_dycoke(run: Run, inputs: Inputs) -> None:
    if "p" in run.hyper:
        pytest.skip("stage 2 prunes the cache while decoding; the method is stage 1")
    features = inputs["feat"]
    frames, size, _ = features.shape
    refers = references(frames)
    reduced = int((1 - run.hyper["k"]) * size)
    counts = [size if refer == t else reduced for t, refer in enumerate(refers)]
    if frames % 2:
        counts[-1] = 0  # officially lost
    kept = temporal_merge(features, counts, refers)
    run.check("sequence_idx", kept)
    run.check("keep_idx", kept.sort().values)


CHECKERS = {"dycoke": check_dycoke}
