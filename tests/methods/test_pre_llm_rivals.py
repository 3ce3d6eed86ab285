"""The rivals that prune before the language model, beyond their golden vectors: any input, budgets, stated rules."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmg_bench.methods._merge import neighbour_cosines
from mmg_bench.methods._ops import descending, dpc_scores, frames_per_chunk
from mmg_bench.methods.base import Method
from mmg_bench.methods.dycoke import DyCoke, references
from mmg_bench.methods.fastvid import FastVID, dynamic_segments, token_counts, token_counts_of_runs
from mmg_bench.methods.flashvid import FlashVID
from mmg_bench.methods.holitom import HoliTom, best_windows, merge_by_density, merge_outer
from mmg_bench.methods.prumerge import PruMerge, merge_around, outlier_ratio, with_grid
from mmg_bench.methods.prunevid import (
    PruneVid,
    cluster,
    counts_by_budget,
    merge_windows,
    rank_in_groups,
    refine,
    static_in_windows,
)
from mmg_bench.methods.tome import ToMe, merge_once, merge_to, unmerged
from mmg_bench.methods.visionzip import VisionZip, zip_frames
from mmg_bench.tokens import LayerTokens, VideoTokens

METHODS = [
    VisionZip(),
    FastVID(),
    FastVID(variant="video"),
    FastVID(frame_source="mean", salience="received"),
    FastVID(variant="qwen", frame_source="mean", salience="mean_query"),
    PruneVid(),
    DyCoke(),
    HoliTom(),
    HoliTom(D=0.4),
    ToMe(),
    ToMe(scope="video"),
    PruMerge(),
    PruMerge(plus=True),
]
SHAPES = [(1, 1, 1), (1, 49, 8), (2, 4, 3), (3, 16, 8), (5, 49, 16), (8, 36, 16), (9, 16, 4)]
RATIOS = [0.001, 0.1, 0.25, 0.5, 0.9, 1.0]


def _video(frames: int, size: int, width: int, kind: str = "random", dtype: torch.dtype = torch.float32) -> VideoTokens:
    generator = torch.Generator().manual_seed(frames * 1000 + size)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    features = {
        "random": normal(frames, size, width),
        "still": normal(1, size, width).expand(frames, -1, -1) + 0.01 * normal(frames, size, width),
        "constant": torch.ones(frames, size, width),
        "zero": torch.zeros(frames, size, width),
    }[kind]
    side = int(size**0.5)
    return VideoTokens(
        features.to(dtype),
        (side, side),
        attention=normal(frames, size).softmax(1).to(dtype),
        keys=(normal(frames, size, 4) * (kind != "zero")).to(dtype),
        mean_query_attention=normal(frames, size).softmax(1).to(dtype),
        probe_attention=normal(frames, size).softmax(1).to(dtype),
        frame_features=features.mean(1).to(dtype),
    )


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["random", "still", "constant", "zero"])
def test_any_video_and_budget(method: Method, shape: tuple[int, int, int], kind: str):
    for dtype in (torch.float32, torch.bfloat16):
        tokens = _video(*shape, kind, dtype)
        before = tokens.features.clone()
        for ratio in RATIOS:
            sized = replace(method, retention_ratio=ratio)
            pruned = sized.prune(tokens)
            budget = sized.budget(tokens)
            assert len(pruned) >= 1
            assert len(pruned) == budget if sized.exact else len(pruned) <= tokens.total
            assert pruned.features.shape == (len(pruned), tokens.features.shape[2])
            assert pruned.features.dtype == dtype
            assert pruned.features.isfinite().all()
            assert pruned.positions.dtype == torch.int64
            assert (pruned.positions.diff() > 0).all()
            assert 0 <= int(pruned.positions[0]) <= int(pruned.positions[-1]) < tokens.total
            again = sized.prune(tokens)
            assert torch.equal(again.positions, pruned.positions)
            assert torch.equal(again.features, pruned.features)
        assert torch.equal(tokens.features, before)


@pytest.mark.parametrize("method", [VisionZip(), FastVID(), DyCoke(), ToMe(), ToMe(scope="video")], ids=repr)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_full_budget_changes_nothing(method: Method, shape: tuple[int, int, int]):
    tokens = _video(*shape)
    pruned = replace(method, retention_ratio=1.0).prune(tokens)
    assert len(pruned) == tokens.total
    if not isinstance(method, FastVID):  # its anchors absorb others even when all are kept
        torch.testing.assert_close(pruned.features, tokens.flat)


@pytest.mark.parametrize("method", [PruneVid(), HoliTom()], ids=repr)
def test_budget_is_met_up_to_what_time_merging_leaves(method: Method):
    for ratio in RATIOS:
        sized = replace(method, retention_ratio=ratio)
        moving, still = _video(8, 36, 16), _video(8, 36, 16, "still")
        assert len(sized.prune(moving)) == sized.budget(moving)
        assert len(sized.prune(still)) == min(sized.budget(still), 36)  # all eight frames merge into one


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 8, 16, 17])
def test_dycoke_floor_is_its_whole_frames(frames: int):
    tokens = _video(frames, 16, 8)
    whole = sum(refer == t for t, refer in enumerate(references(frames)))
    for ratio in RATIOS:
        method = DyCoke(ratio)
        assert len(method.prune(tokens)) == max(method.budget(tokens), 16 * whole)


def test_dycoke_keeps_what_changed():
    tokens = _video(2, 16, 8)
    tokens.features[1] = tokens.features[0]
    tokens.features[1, [3, 7]] *= -1
    assert DyCoke(18 / 32).prune(tokens).positions.tolist() == [*range(16), 19, 23]
    assert references(9) == [0, 0, 0, 2, 4, 4, 4, 6, 8]
    assert references(8) == [0, 0, 0, 2, 4, 4, 6, 6]


@pytest.mark.parametrize("variant", ["onevision", "video"])
@pytest.mark.parametrize("lengths", [[1], [3, 1, 4], [9], [5, 5, 7]])
def test_fastvid_counts_meet_every_budget(variant: str, lengths: list[int]):
    size, frames = 12, sum(lengths)
    for budget in range(frames * size + 1):
        budgets = [budget // frames + (t < budget % frames) for t in range(frames)]
        salient, anchors = token_counts(lengths, budgets, size, 0.4, 4, variant)
        assert sum(salient) + sum(anchors) == budget
        assert all(s >= 0 and a >= 0 and s + a <= size for s, a in zip(salient, anchors, strict=True))


def test_fastvid_anchor_frames_count_back_from_the_last():
    salient, anchors = token_counts([6], [10] * 6, 100, 0.4, 4, "onevision")
    assert salient == [6] * 6
    assert anchors == [0, 12, 0, 0, 0, 12]
    assert token_counts([5], [7] * 5, 100, 0.4, 4, "onevision")[1] == [5, 0, 0, 0, 5]
    assert token_counts([5], [7] * 5, 100, 0.4, 4, "video")[1] == [7, 0, 0, 0, 7]


def test_fastvid_for_qwen_lets_the_last_of_alike_frames_keep_tokens():
    similarity = [0.96, 0.8, 0.94, 0.95, 0.5, 0.99]  # frames 0 1 | 2 | 3 4 || 5 6

    def counts(lengths: list[int], budget: int, size: int, p: int) -> tuple[list[int], list[int]]:
        return token_counts_of_runs(lengths, [budget] * 7, size, 0.4, p, similarity, 0.95)

    # in [5, 2] of 10 each: 20 of 50 are anchors, of the first run and the last; those of the second two are too many
    assert counts([5, 2], 10, 100, 2) == ([0, 10, 10, 0, 10, 0, 12], [0, 10, 0, 0, 10, 0, 8])
    assert counts([5, 2], 10, 16, 2) == ([0, 8, 10, 0, 8, 0, 8], [0, 8, 0, 0, 8, 0, 8])
    assert counts([5, 2], 10, 100, 4) == ([0, 10, 10, 0, 10, 0, 12], [0, 0, 0, 0, 20, 0, 8])
    assert counts([1] * 7, 10, 16, 2) == ([6] * 7, [4] * 7)
    assert counts([5, 2], 0, 16, 2) == ([0] * 7, [0, 0, 0, 0, 1, 0, 1])  # one anchor a segment


def test_fastvid_for_qwen_leaves_each_segment_an_anchor():
    for frames, size, segments in ((16, 36, 9), (32, 4, 3), (16, 1, 1)):
        method = FastVID(1e-6, variant="qwen", frame_source="mean", salience="mean_query", c=segments, tau=-1)
        pruned = method.prune(_video(frames, size, 8))
        assert len(pruned) == segments
        assert sum(pruned.notes["anchors_per_frame"]) == segments
        assert not method.exact
    alike = _video(16, 36, 8)
    alike = replace(alike, features=alike.features[:1].expand(16, -1, -1).contiguous())
    counts = [len(replace(method, retention_ratio=0.5, ignore=ignore).prune(alike)) for ignore in (1, 2)]
    # one frame keeps what it has room for; where none repeats, four have 18 anchors of the 115, which find no room
    assert counts == [36, 4 * 18 + 173]


def test_fastvid_cuts():
    frames = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [0.0, 1.0], [0.1, 1.0]])
    similarity = neighbour_cosines(frames).tolist()
    assert dynamic_segments(similarity, 1, 0.9) == [2, 3]
    assert dynamic_segments(similarity, 3, 0.9) == [2, 2, 1]
    assert dynamic_segments(similarity, 8, 0.9) == [1] * 5  # fewer frames than segments: officially an error
    assert dynamic_segments([], 8, 0.9) == [1]
    assert dynamic_segments([float(np.float32(0.9))] * 2, 1, 0.9) == [3]  # not below tau in float32


def test_fastvid_stand_ins_for_the_pooling_head():
    """`mean` and `received` are the defaults on mean tokens and received attention, and need no more than that."""
    tokens = _video(9, 16, 8)
    tokens = replace(tokens, frame_features=tokens.features.mean(1).roll(2, 0))
    assert FastVID.needs == FastVID().needs == {"frame_features", "probe_attention"}
    for options, needs in (
        ({"frame_source": "mean"}, {"probe_attention"}),
        ({"salience": "received"}, {"frame_features", "attention"}),
        ({"frame_source": "mean", "salience": "received"}, {"attention"}),
        ({"salience": "mean_query"}, {"frame_features", "mean_query_attention"}),
    ):
        method = FastVID(c=3, tau=-1, **options)
        assert method.needs == needs
        changes = {"frame_features": tokens.features.mean(1)} if "frame_source" in options else {}
        if "salience" in options:
            (read,) = needs - {"frame_features"}
            changes["probe_attention"] = getattr(tokens, read)
        fields = ("frame_features", "probe_attention", "attention", "mean_query_attention")
        bare = replace(tokens, **{f: None for f in fields if f not in needs})
        kept, expected = method.prune(bare), FastVID(c=3, tau=-1).prune(replace(tokens, **changes))
        assert torch.equal(kept.positions, expected.positions)
        assert kept.notes == expected.notes
        assert not torch.equal(kept.positions, FastVID(c=3, tau=-1).prune(tokens).positions)


class _Launches(TorchDispatchMode):
    """Counts the operations that a GPU would have to launch: all but views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", ["onevision", "video", "qwen"])
def test_fastvid_launches_no_more_for_more_segments(variant: str):
    tokens = _video(24, 16, 8)
    launches = []
    for segments in (1, 4, 24):
        method = FastVID(c=segments, tau=-1, variant=variant)
        with torch.no_grad(), _Launches() as counted:
            pruned = method.prune(tokens)
        assert len(pruned.notes["segment_lengths"]) == segments
        launches.append(counted.count)
    assert len(set(launches)) == 1
    assert launches[0] <= 95


@pytest.mark.parametrize("variant", ["onevision", "video", "qwen"])
def test_fastvid_merges_alike_where_copies_do_not_fit(variant: str, monkeypatch: pytest.MonkeyPatch):
    tokens = _video(13, 16, 8)
    for ratio in RATIOS:
        for segments in (1, 3, 13):
            method = FastVID(ratio, c=segments, tau=-1, p=2, variant=variant)
            at_once = method.prune(tokens)
            with monkeypatch.context() as patch:
                patch.setitem(frames_per_chunk.__globals__, "_CHUNK_BYTES", {"cpu": 1})
                by_segment = method.prune(tokens)
            assert torch.equal(at_once.positions, by_segment.positions)
            torch.testing.assert_close(at_once.features, by_segment.features)


def test_fastvid_takes_large_values_for_finite():
    tokens = _video(9, 16, 8)
    assert len(FastVID().prune(replace(tokens, frame_features=torch.full((9, 8), 3e38)))) == 36  # their sum overflows


def test_visionzip_sums_what_it_merges():
    features = torch.tensor([[[1.0], [2.0], [4.0], [8.0], [16.0]]])
    keys = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.5, 0.5], [0.1, 1.0]]])
    zipped = zip_frames(features, torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0]]), keys, 1, 2)
    assert zipped.by_attention.tolist() == [[3]]
    assert zipped.anchors.tolist() == [[0, 2]]
    assert zipped.assign.tolist() == [[0, 0, 1, -1, 1]]
    assert zipped.tokens.flatten().tolist() == [8, 1 + 2, 4 + 16]


def test_visionzip_official_split():
    pruned = VisionZip(0.25).prune(_video(8, 196, 4))  # 49 tokens a frame: 41 dominant, 8 contextual
    tokens = _video(8, 196, 4)
    same = (pruned.features == tokens.flat[pruned.positions]).all(1)
    assert same.view(8, 49).sum(1).tolist() == [41] * 8


def test_refine_makes_labels_contiguous():
    assert refine([0, 0, 1, 0, 0, 0]) == [0] * 6  # a label without a run of two, a shorter run
    assert refine([0, 0, 1, 1]) == [0, 0, 1, 1]
    assert refine([0, 0, 2, 1, 1]) == [0, 0, 0, 1, 1]  # equal neighbours: the left
    assert refine([0, 0, 2, 1, 1, 1]) == [0, 0, 1, 1, 1, 1]
    assert refine([3, 1, 2]) == [0, 0, 0]
    assert refine([5]) == [0]


def test_prunevid_static_positions():
    window = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.1], [0.0, 1.0]], [[1.0, 0.2], [-1.0, 0.0]]])
    assert static_in_windows(window, [3], 0.8).tolist() == [[True, False]]
    assert static_in_windows(window, [1, 2], -1.0).tolist() == [[False, False], [True, True]]


def test_prunevid_counts():
    assert counts_by_budget([10, 40, 100], 80) == [10, 20, 50]  # small groups stay whole
    assert counts_by_budget([14, 14, 20], 24) == [7, 7, 10]  # they would leave nothing: all alike
    assert counts_by_budget([3, 4], 100) == [3, 4]
    assert counts_by_budget([10, 40], 51) == [10, 40]


def test_prunevid_clusters():
    x = torch.tensor([[[0.0], [0.1], [0.2], [5.0], [5.1], [5.2]]]).expand(2, -1, -1)
    clusters = cluster(x, [2, 1], 3)
    first = clusters.assign[0].tolist()
    assert first[:3] == first[:1] * 3
    assert first[3:] == first[3:4] * 3
    assert first[0] != first[3]
    assert clusters.assign[1].tolist() == [0] * 6
    assert cluster(torch.ones(1, 5, 2), [3], 2).assign.tolist() == [[0, 1, 2, 0, 0]]  # centres that equal each other


@pytest.mark.parametrize("size", [14, 15])
def test_prunevid_orders_large_groups_by_score_even_if_nothing_is_merged(size: int):
    frame = torch.rand(1, size, 8, generator=torch.Generator().manual_seed(0))
    merged = merge_windows(frame, [1], torch.zeros(1, size, dtype=torch.bool), [0], [size], 7)
    expected = torch.arange(size) if size == 14 else descending(dpc_scores(frame[0], 7))
    assert merged.anchors.tolist() == expected.tolist()
    assert merged.assign[1, expected].tolist() == list(range(size))


def test_tome_with_nothing_to_merge():
    state = unmerged(torch.rand(2, 1, 3))
    assert merge_once(state, 0) is state


def test_prunevid_is_never_left_with_nothing():
    attention, group = torch.rand(2, 3, 30, generator=torch.Generator().manual_seed(0)), torch.arange(30) // 10
    assert rank_in_groups(attention, group, 0.1).tolist() == [
        10 * g + int(attention.amax((0, 1))[10 * g :][:10].argmax()) for g in range(3)
    ]
    assert len(rank_in_groups(attention, group, 0.05)) == 0  # as the official code has it
    before = LayerTokens(
        torch.rand(30, 4),
        torch.rand(30, 4),
        torch.arange(30),
        torch.rand(3, 4),
        30,
        0,
        28,
        lambda *_, **__: attention,
        group,
    )
    assert PruneVid(alpha=0.05).select_inside(before).index.tolist() == [int(attention.amax((0, 1)).argmax())]


def test_holitom_may_be_left_with_nothing():
    features, still = torch.ones(3, 12, 5), torch.ones(1, 12, dtype=torch.bool)
    tokens, positions = merge_outer(features, torch.ones(3, 12), [(0, 2)], still, [0], [0, 0, 0], beta=0.6, k=7)
    assert tokens.shape == (0, 5)
    assert positions.shape == (0,)


@pytest.mark.parametrize("seed", range(8))
def test_holitom_windows_are_optimal(seed: int):
    still = torch.rand(6, 5, generator=torch.Generator().manual_seed(seed)) < 0.6  # seven frames
    windows, saved = best_windows(still)

    def gain(windows: list[tuple[int, int]]) -> int:
        return sum(int(still[a:b].all(0).sum()) * (b - a) for a, b in windows)

    assert [a for a, _ in windows] == [0, *(b + 1 for _, b in windows[:-1])]
    assert windows[-1][1] == 6
    assert gain(windows) == saved
    cuts = [cut for n in range(7) for cut in combinations(range(1, 7), n)]
    assert saved == max(gain([(a, b - 1) for a, b in zip([0, *c], [*c, 7], strict=True)]) for c in cuts)


def test_holitom_ties_leave_frames_alone():
    assert best_windows(torch.zeros(3, 4, dtype=torch.bool)) == ([(0, 0), (1, 1), (2, 2), (3, 3)], 0)
    assert best_windows(torch.zeros(0, 4, dtype=torch.bool)) == ([(0, 0)], 0)


def test_holitom_density_merging_weighs_by_beta():
    x = torch.tensor([[0.0], [1.0], [1.1], [1.2]])
    merged, centres = merge_by_density(x[None], [1], 0.6, 7)
    centre = x[centres[0]]
    torch.testing.assert_close(merged[0], 0.6 * centre + 0.4 * (x.sum() - centre) / 3)


def test_holitom_dominant_share():
    """D > 0, which raises in the release: the share D is merged, the rest is kept as it is."""
    tokens = _video(4, 49, 16)  # nothing is static: each frame gets 12 or 13 of its dynamic tokens
    for share, kept in ((0.0, 49), (0.4, sum(round(n * 0.6) for n in (13, 12, 12, 12)))):
        pruned = HoliTom(0.25, D=share).prune(tokens)
        assert len(pruned) == 49
        assert int((pruned.features == tokens.flat[pruned.positions]).all(1).sum()) == kept


def test_tome_tokens_are_means_of_what_they_stand_for():
    features = _video(3, 49, 8).features
    for target in (1, 2, 5, 12, 30, 49):
        merged, rounds = merge_to(features, target)
        assert sum(rounds) == 49 - target
        assert merged.sizes.sum(1).tolist() == [49] * 3
        for frame in range(3):
            for row in range(target):
                members = merged.assign[frame] == row
                assert int(members.sum()) == int(merged.sizes[frame, row])
                assert members[merged.anchors[frame, row]]
                torch.testing.assert_close(merged.tokens[frame, row], features[frame, members].mean(0))


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.6])
def test_tome_over_the_video_is_that_of_one_long_frame(ratio: float):
    tokens, single = _video(3, 16, 8), _video(1, 16, 8)
    whole = VideoTokens(tokens.flat[None], (1, 48))
    ours, expected = ToMe(ratio, scope="video").prune(tokens), ToMe(ratio).prune(whole)
    assert ours.positions.equal(expected.positions)
    assert ours.features.equal(expected.features)
    assert not ours.positions.equal(ToMe(ratio).prune(tokens).positions)
    assert ToMe(ratio, scope="video").prune(single).features.equal(ToMe(ratio).prune(single).features)


def test_tome_over_the_video_merges_what_stands_still():
    frame = torch.randn(1, 9, 16, generator=torch.Generator().manual_seed(0))
    tokens = VideoTokens(frame.repeat(2, 1, 1), (3, 3))  # equal tokens are nine places apart: one even, one odd
    pruned = ToMe(0.5, scope="video").prune(tokens)
    assert pruned.positions.tolist() == list(range(1, 18, 2))
    torch.testing.assert_close(pruned.features, tokens.flat[pruned.positions])


@pytest.mark.parametrize("cls", [HoliTom, PruneVid])
def test_the_part_before_the_model_can_be_switched_off(cls: type[HoliTom] | type[PruneVid]):
    tokens = replace(_video(8, 36, 16, "still"), attention=None)
    method = cls(0.1, outer=False)
    pruned = method.prune(tokens)
    assert pruned.positions.tolist() == list(range(8 * 36))
    assert pruned.features.equal(tokens.flat)
    assert method.layers(28) == cls(0.1).layers(28) != ()
    assert cls is HoliTom or pruned.state.tolist() == [0] * (8 * 36)
    with pytest.raises(ValueError, match="outer=False and inner=False leave nothing to do"):
        cls(outer=False, inner=False)


def test_prumerge_sums_without_normalising():
    features = torch.tensor([[[1.0], [10.0], [100.0], [1000.0]]])
    attention = torch.tensor([[0.5, 0.25, 0.125, 0.0625]])
    keys = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]])
    merged = merge_around(features, attention, keys, torch.tensor([[0, 1]]), neighbours=1)
    assert merged.flatten().tolist() == [1 + 2.5, 10 + 0.5, 12.5 + 62.5]


@pytest.mark.parametrize("plus", [False, True])
def test_prumerge_weights_are_shares_of_a_frame(plus: bool):
    """A tower's attention is averaged where patches are pooled: its sum over a frame must not matter."""
    tokens = _video(4, 16, 8)
    attention = torch.rand(4, 16)
    method = PruMerge(retention_ratio=0.4, plus=plus)
    one = method.prune(replace(tokens, attention=attention / attention.sum(1, keepdim=True)))
    other = method.prune(replace(tokens, attention=attention * 7))
    assert torch.equal(one.positions, other.positions)
    torch.testing.assert_close(one.features, other.features)


def test_prumerge_plus_grid():
    assert with_grid(torch.tensor([7, 0]), 17, 1 / 12).tolist() == [7, 0, 4, 8, 12]  # never the last token, 16
    assert with_grid(torch.tensor([1]), 4, 0.9).tolist() == [1, 0, 2]
    assert with_grid(torch.tensor([], dtype=torch.int64), 4, 0.0).tolist() == [0]


def test_prumerge_adaptive_follows_outliers():
    tokens = _video(2, 16, 8)
    attention = torch.full((2, 16), 0.01)
    attention[0, [3, 8]] = 0.2
    assert outlier_ratio(attention[0]) == 2 / 16
    assert outlier_ratio(attention[1]) == 0
    method = PruMerge(adaptive=True)
    assert not method.exact
    pruned = method.prune(replace(tokens, attention=attention))
    assert pruned.positions.tolist() == [3, 8, 15, 31]  # without outliers only the summed token is left
    plus = PruMerge(adaptive=True, plus=True).prune(replace(tokens, attention=attention))
    assert len(plus) > len(pruned)


@pytest.mark.parametrize(
    ("cls", "field", "value"),
    [
        (VisionZip, "dominant_ratio", 1.1),
        (FastVID, "c", 0),
        (FastVID, "tau", 2),
        (FastVID, "d", -0.1),
        (FastVID, "p", 1.5),
        (FastVID, "beta", 1.01),
        (FastVID, "k", 0),
        (FastVID, "variant", "glm"),
        (FastVID, "frame_source", "cls"),
        (FastVID, "salience", "cls"),
        (PruneVid, "tau", -2),
        (PruneVid, "temporal_segment_ratio", 0),
        (PruneVid, "k", 0),
        (HoliTom, "tau", 1.5),
        (HoliTom, "beta", -1),
        (HoliTom, "k", True),
        (HoliTom, "D", 1.5),
        (PruMerge, "plus", 1),
        (PruMerge, "adaptive", "yes"),
        (PruMerge, "neighbours", 0),
        (ToMe, "retention_ratio", 0),
        (DyCoke, "retention_ratio", 1.5),
        *((cls, "inner", "off") for cls in (DyCoke, FlashVID, HoliTom, PruneVid)),
    ],
)
def test_bad_parameters_are_named(cls: type[Method], field: str, value: object):
    with pytest.raises(ValueError, match=rf"{cls.__name__}\.{field}={value!r}"):
        cls(**{field: value})


@pytest.mark.parametrize("method", [VisionZip(), FastVID(), HoliTom(), PruMerge()], ids=repr)
def test_missing_field_is_named(method: Method):
    tokens = _video(2, 4, 3)
    for name in method.needs:
        with pytest.raises(ValueError, match=name):
            method.prune(replace(tokens, **{name: None}))
