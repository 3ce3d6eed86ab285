import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from torch import Tensor

from mmg_bench.methods import mmg_vid
from mmg_bench.methods._ops import triton_available
from mmg_bench.methods.dpc_knn import DPCKNN
from mmg_bench.methods.mmg_vid import MMGVid
from mmg_bench.tokens import VideoTokens


def video(features: Tensor) -> VideoTokens:
    return VideoTokens(features, (1, features.shape[1]))


def scenes(frames: int, tokens: int, width: int, cuts: tuple[int, ...], seed: int, drift: float = 0.15) -> Tensor:
    """An offset common to the video, a background for each scene, and tokens that drift from frame to frame."""
    g = torch.Generator().manual_seed(seed)
    offset = torch.randn(width, generator=g)
    result = []
    for t in range(frames):
        if t == 0 or t in cuts:
            x = offset + torch.randn(width, generator=g) + 0.7 * torch.randn(tokens, width, generator=g)
        x = x + drift * torch.rand(tokens, 1, generator=g) * torch.randn(tokens, width, generator=g)
        result.append(x)
    return torch.stack(result)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_agrees(features: Tensor, method: MMGVid) -> None:
    pruned = method.prune(video(features))
    parameters = {k if k != "budgets" else "budgets_rule": v for k, v in vars(method).items()}
    assert pruned.positions.tolist() == oracle.mmg_vid(features.numpy(), **parameters)
    assert len(pruned) == method.budget(video(features))
    assert torch.equal(pruned.features, features.flatten(0, 1)[pruned.positions])


OPTIONS = [
    {},
    {"tau": 0.6},
    {"tau": 1.0, "min_segment_frames": 1},
    {"min_segment_frames": 1},
    {"min_segment_frames": 4},
    {"budgets": "uniform"},
    {"k": 0.0},
    {"k": 1.0},
    {"r_extra": 0.4},
    {"r_extra": 0.4, "r_min": 0.1},
    {"gain_sign": "swapped"},
    {"order": "greedy"},
    {"order": "greedy", "gain_sign": "swapped"},
    {"stage3": "dpc"},
    {"knn": 3},
    {"channels": "low_variance"},
    {"stage3": "dpc", "channels": "low_variance"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("ratio", [0.25, 0.1])
def test_agrees_with_the_oracle_on_scenes(options, ratio):
    features = scenes(12, 20, 24, cuts=(3, 4, 9), seed=1)
    assert_agrees(features, MMGVid(retention_ratio=ratio, **options))


def test_scenes_exercise_the_stages():
    """The inputs of the oracle tests are no trivial ones: cuts, a merged one-frame scene, unequal budgets."""
    notes = MMGVid(0.25).prune(video(scenes(12, 20, 24, cuts=(3, 4, 9), seed=1))).notes
    assert [b for _, b in notes["segments"]][-2:] == [9, 12]
    assert len(notes["segments"]) == 3
    lengths = [stop - start for start, stop in notes["segments"]]
    assert len({b / n for b, n in zip(notes["segment_budgets"], lengths, strict=True)}) == 3
    assert sum(notes["segment_budgets"]) == sum(notes["frame_budgets"]) == 60


@settings(max_examples=40, deadline=None, derandomize=True)  # random shapes could, rarely, tie up to rounding
@given(st.data())
def test_agrees_with_the_oracle_on_random_shapes(data):
    frames, tokens = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 12))
    width = data.draw(st.integers(2, 16))
    seed = data.draw(st.integers(0, 10**6))
    cuts = tuple(data.draw(st.lists(st.integers(1, 9), max_size=3)))
    features = data.draw(
        st.sampled_from([noise(frames, tokens, width, seed=seed), scenes(frames, tokens, width, cuts, seed)])
    )
    options = data.draw(st.sampled_from(OPTIONS))
    assert_agrees(features, MMGVid(retention_ratio=data.draw(st.sampled_from([0.02, 0.1, 0.25, 0.6, 1.0])), **options))


DEGENERATE = {
    "one frame": noise(1, 10, 8),
    "one token a frame": noise(7, 1, 8),
    "one channel": noise(4, 6, 1),
    "one of everything": noise(1, 1, 1),
    "two tokens a frame": noise(6, 2, 5),
    "identical frames": noise(1, 12, 8, seed=3).repeat(6, 1, 1),
    "all zero": torch.zeros(5, 6, 4),
    "constant": torch.full((5, 6, 4), 3.7),
    "constant frames": noise(5, 1, 8).repeat(1, 7, 1),
    # One frame: where a guide holds as many tokens of each, which one is the denser is up to rounding.
    "tokens of two values": noise(1, 2, 8)[:, [0, 1, 1, 0, 1, 0, 0]],
    "each token twice": scenes(6, 6, 9, (3,), 2).repeat(1, 2, 1),
    "large offset": scenes(6, 10, 16, (3,), 2) + 50,
    "tiny": scenes(6, 10, 16, (3,), 2) * 1e-4,
    "half of the channels constant": torch.cat([scenes(5, 8, 6, (3,), 4), torch.ones(5, 8, 6)], 2),
}


@pytest.mark.parametrize("ratio", [1e-9, 0.05, 1 / 6, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("case", DEGENERATE)
def test_agrees_with_the_oracle_on_degenerate_inputs(case, ratio):
    for options in ({}, {"stage3": "dpc"}, {"channels": "low_variance"}, {"order": "greedy", "min_segment_frames": 1}):
        assert_agrees(DEGENERATE[case], MMGVid(retention_ratio=ratio, **options))


def test_many_frames_in_batches(monkeypatch):
    """The result does not depend on how many frames fit into one chunk."""
    features = scenes(13, 9, 16, cuts=(4, 5, 9), seed=5)
    whole = MMGVid(0.3, tau=0.7, channels="low_variance").prune(video(features))
    monkeypatch.setitem(mmg_vid.frames_per_chunk.__globals__, "_CHUNK_BYTES", {"cpu": 2 * 4 * 9 * 16})
    assert mmg_vid.frames_per_chunk(features) == 2
    parts = MMGVid(0.3, tau=0.7, channels="low_variance").prune(video(features))
    assert parts.positions.tolist() == whole.positions.tolist()


@pytest.mark.parametrize("method", [MMGVid(0.3), MMGVid(0.3, channels="low_variance"), DPCKNN(0.3)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_distances_are_float32_in_every_dtype(method, dtype):
    features = scenes(8, 15, 16, cuts=(4,), seed=6).bfloat16()
    features = features.to(dtype) if dtype is not torch.float16 else features.half()
    expected = method.prune(video(features.float())).positions
    assert torch.equal(method.prune(video(features)).positions, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(method.prune(video(features.float())).positions, expected)


def test_features_may_require_a_gradient():
    features = scenes(4, 6, 8, (2,), 0).requires_grad_()
    pruned = MMGVid(0.5).prune(video(features))
    pruned.features.sum().backward()
    assert features.grad is not None
    assert features.grad.sum() == len(pruned) * 8


# ---- The stages on their own ------------------------------------------------------------------------------------


def test_cuts_are_strictly_below_tau():
    assert mmg_vid.find_segments([0.95, 0.9499, 1.0], 0.95) == [(0, 2), (2, 4)]
    assert mmg_vid.find_segments([], 0.95) == [(0, 1)]


@pytest.mark.parametrize(
    ("similarity", "minimum", "expected"),
    [
        ([0.5, 0.9, 0.5], 1, [(0, 1), (1, 2), (2, 3), (3, 4)]),
        ([0.5, 0.9, 0.5], 2, [(0, 4)]),  # frame 0 can only go right; 2 goes left, to what has grown; so does 3
        ([0.5, 0.2, 0.9, 0.4], 2, [(0, 2), (2, 5)]),
        ([0.5, 0.3, 0.5, 0.5], 2, [(0, 2), (2, 5)]),  # frame 4 goes to (2, 4)
        ([0.5, 0.5, 0.5], 2, [(0, 4)]),  # ties: left
        ([0.9, 0.9, 0.3, 0.9, 0.9], 5, [(0, 6)]),
        ([0.1], 3, [(0, 2)]),
        ([], 3, [(0, 1)]),
    ],
)
def test_short_segments_join_the_more_similar_neighbour(similarity, minimum, expected):
    segments = mmg_vid.find_segments(similarity, 0.95)
    assert mmg_vid.merge_short_segments(segments, similarity, minimum) == expected


def test_gains_by_hand():
    products = mmg_vid.inner_products(torch.tensor([[1.0, 0], [0, 1], [1, 1]])).numpy()
    c = 0.5**0.5
    # s_0: rem = (.5, 1), cos = 1/sqrt(5). s_1: rem = (1, 1), sel = (1, 0). s_2: sel = (.5, .5), cos = 1.
    assert mmg_vid.marginal_gains(products, 0.25) == pytest.approx([0.25 / 5**0.5, 0.25 * c + 0.75, 0.0])
    swapped = [0.75 * (1 - 1 / 5**0.5), 0.75 * (1 - c), 0.25]
    assert mmg_vid.marginal_gains(products, 0.25, "swapped") == pytest.approx(swapped)
    # Greedy takes s_2 first (it is the mean of the others), then 0 before 1 as they tie.
    greedy = mmg_vid.marginal_gains(products, 0.5, order="greedy")
    assert greedy == pytest.approx([(1 - c) / 2, 0.5 * (1 - 1 / 5**0.5), 0.5])


def test_greedy_takes_the_earlier_of_two_segments_first():
    for seed in range(20):
        products = mmg_vid.inner_products(noise(2, 7, seed=seed)).numpy()
        first, _ = mmg_vid.marginal_gains(products, 0.3, order="greedy")
        assert first == pytest.approx(mmg_vid.marginal_gains(products, 0.3)[0])


def test_one_segment_has_the_retention_ratio():
    assert mmg_vid.segment_ratios([0.7], 0.3, 0.1) == [0.3]


@given(st.data())
def test_budgets_are_exact_and_reach_every_frame(data):
    lengths = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=8))
    tokens = data.draw(st.integers(1, 30))
    total = data.draw(st.integers(1, sum(lengths) * tokens))
    ratios = data.draw(st.lists(st.floats(-3, 3), min_size=len(lengths), max_size=len(lengths)))
    stops = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    segments = [(stop - n, stop) for n, stop in zip(lengths, stops, strict=True)]
    r_min = data.draw(st.floats(0, 1))
    budgets = mmg_vid.segment_budgets(ratios, segments, tokens, total, r_min)
    counts = mmg_vid.frame_budgets(budgets, segments)
    assert sum(counts) == sum(budgets) == total
    assert len(counts) == sum(lengths)
    assert all(0 <= c <= tokens for c in counts)
    if total >= sum(lengths):
        assert min(counts) >= 1
    floor = min(r_min, total / (tokens * sum(lengths)))
    assert all(b > floor * n * tokens - 1 for b, n in zip(budgets, lengths, strict=True))
    for budget, (start, stop) in zip(budgets, segments, strict=True):
        share = counts[start:stop]
        assert sum(share) == budget
        assert share == sorted(share, reverse=True)
        assert max(share) - min(share) <= 1


@pytest.mark.parametrize("order", ["temporal", "greedy"])
@pytest.mark.parametrize("gain_sign", ["natural", "swapped"])
def test_means_that_cancel_have_no_direction(gain_sign, order):
    """Their sum is rounding noise, whose cosine would be anything."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        means = rng.standard_normal((5, 8))
        means[3] = -means[:3].sum(0)
        gains = mmg_vid.marginal_gains(means @ means.T, gain_sign=gain_sign, order=order)
        assert np.abs(gains).max() <= 1.5
        if order == "temporal":  # the last one follows on what cancelled: only its own term of diversity, or none
            assert gains[4] == pytest.approx(0.5 if gain_sign == "natural" else 0.0)


def test_higher_gain_gets_more_tokens():
    segments = [(0, 4), (4, 8), (8, 12)]
    ratios = mmg_vid.segment_ratios([0.1, 0.3, 0.2], 0.25, 0.1)
    low, high, middle = mmg_vid.segment_budgets(ratios, segments, 49, 147)
    assert low < middle < high


def test_frames_without_budget_are_passed_over():
    features = noise(5, 8, 6)
    chosen = mmg_vid.temporal_dpc(features, [(0, 3), (3, 5)], [0, 3, 2, 0, 0])
    assert chosen.kept.sum(1).tolist() == [0, 3, 2, 0, 0]
    alone = mmg_vid.temporal_dpc(features[1:3], [(0, 2)], [3, 2])
    assert torch.equal(chosen.kept[1:3], alone.kept)


def test_guide_of_one_token_seen_again():
    """The scatter of one token is 0 but for rounding; a frame that all but repeats it must still be ranked."""
    for seed in range(200):
        first = noise(1, 5, 9, seed=seed)
        features = torch.cat([first, first + 1e-4 * noise(2, 5, 9, seed=seed + 1)])
        chosen = mmg_vid.temporal_dpc(features, [(0, 3)], [1, 1, 1])
        assert (chosen.density >= 0).all()
        assert int(chosen.kept[0].int().argmax()) == 0
        assert not chosen.kept[1, 0]


def test_guide_avoids_what_is_kept():
    """Tokens already kept in the first frame are not kept again in a frame that repeats it."""
    frame = noise(1, 10, 32, seed=8)
    kept = mmg_vid.temporal_dpc(torch.cat([frame, frame]), [(0, 2)], [4, 4]).kept
    assert not (kept[0] & kept[1]).any()
    plain = mmg_vid.temporal_dpc(torch.cat([frame, frame]), [(0, 1), (1, 2)], [4, 4]).kept
    assert torch.equal(plain[0], plain[1])


def test_one_token_of_plain_dpc_is_the_first():
    """k = 1: what the docstring says happens at such budgets."""
    pruned = MMGVid(1 / 9, stage3="dpc").prune(video(noise(4, 9, 8)))
    assert pruned.positions.tolist() == [0, 9, 18, 27]


def test_low_variance_channels_break_ties_by_index():
    features = torch.ones(4, 5, 7)
    features[..., [0, 3]] = noise(4, 5, 2)
    channels = mmg_vid.low_variance_channels(features, [(0, 2), (2, 4)])
    assert channels.nonzero().tolist() == [[s, c] for s in (0, 1) for c in (1, 2, 4)]


def test_dpc_knn_is_stage_3_without_guide_or_segments():
    features = scenes(6, 14, 16, (), 9)  # one segment, so that budgets are even
    assert torch.equal(
        DPCKNN(0.3).prune(video(features)).positions, MMGVid(0.3, tau=-1, stage3="dpc").prune(video(features)).positions
    )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("retention_ratio", 0, r"retention_ratio=0: .*\(0, 1\]"),
        ("retention_ratio", 1.2, r"retention_ratio=1.2"),
        ("tau", 1.5, r"tau=1.5: .*\[-1, 1\]"),
        ("min_segment_frames", 0, r"min_segment_frames=0: .*integer"),
        ("min_segment_frames", 1.5, r"min_segment_frames=1.5: .*integer"),
        ("budgets", "even", r"budgets='even': .*marginal_gain, uniform"),
        ("k", -0.1, r"k=-0.1: .*\[0, 1\]"),
        ("k", float("nan"), r"k=nan"),
        ("r_extra", -1, r"r_extra=-1"),
        ("gain_sign", "both", r"gain_sign='both': .*natural, swapped"),
        ("order", "random", r"order='random': .*temporal, greedy"),
        ("r_min", 2, r"r_min=2: .*\[0, 1\]"),
        ("stage3", "", r"stage3='': .*tg_dpc, dpc"),
        ("knn", 0, r"knn=0"),
        ("channels", "half", r"channels='half': .*all, low_variance"),
    ],
)
def test_bad_parameters_are_named(field, value, message):
    with pytest.raises(ValueError, match=f"MMGVid.{message}"):
        replace(MMGVid(), **{field: value})


def check_fused(device: str, **environment: str) -> str:
    script = Path(__file__).with_name("check_fused.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), device],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(not triton_available(), reason="no Triton on this platform")
def test_the_kernel_agrees_with_the_steps_in_an_interpreter():
    if Version(version("triton")) < Version("3.7"):
        pytest.skip("this Triton's interpreter cannot work with numpy 2.4")
    assert "28 cases agree" in check_fused("cpu", TRITON_INTERPRET="1")


@pytest.mark.gpu
def test_the_kernel_agrees_with_the_steps_on_a_gpu():
    assert "cases agree" in check_fused("cuda")


@pytest.mark.skipif(not triton_available(), reason="no Triton on this platform")
@pytest.mark.parametrize("parts", [1, 32])
def test_the_kernel_compiles_for_a_gpu_that_is_not_here(parts):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mmg_bench.methods import _temporal_dpc_triton as fused

    constants = fused.tiles(196, 3584, parts)
    types = {"x": "*bf16", "schedule": "*i64", "positions": "*i64"} | dict.fromkeys(constants, "constexpr")
    types |= dict.fromkeys(("frames", "segments", "steps", "stride", "tokens", "width"), "i32")
    signature = dict.fromkeys(fused._chains_kernel.arg_names, "*fp32") | types
    source = ASTSource(fused._chains_kernel, signature, constexprs=constants)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=fused.launch_options(parts))
    assert ".entry" in made.asm["ptx"]
    assert "atom" in made.asm["ptx"]


@pytest.mark.skipif(not triton_available(), reason="no Triton on this platform")
@pytest.mark.parametrize("tokens", [1, 196, 729])
def test_the_distances_compile_for_a_gpu_that_is_not_here(tokens):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mmg_bench.methods import _distances_triton as one_pass

    rows, padded = one_pass.tile(tokens)
    assert padded >= tokens
    types = {"tokens": "i32", "width": "i32", "resolution": "fp32", "ROWS": "constexpr", "TOKENS": "constexpr"}
    signature = dict.fromkeys(one_pass._distances_kernel.arg_names, "*fp32") | types
    source = ASTSource(one_pass._distances_kernel, signature, constexprs={"ROWS": rows, "TOKENS": padded})
    assert ".entry" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
