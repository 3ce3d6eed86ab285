"""Methods that select by diversity or merge by components, beyond their golden vectors: any input and stated rules."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmg_bench.methods._greedy import cosine_distances, max_min_selection
from mmg_bench.methods._merge import unit
from mmg_bench.methods._search import largest_within
from mmg_bench.methods.base import Method
from mmg_bench.methods.cdpruner import CDPruner, dpp_selection, query_relevance
from mmg_bench.methods.divprune import DivPrune, diverse
from mmg_bench.methods.flashvid import FlashVID, cluster, segment_lengths, temporal_trees
from mmg_bench.methods.llava_scissor import LlavaScissor, components
from mmg_bench.methods.pdrop import PDrop
from mmg_bench.methods.registry import get_method
from mmg_bench.methods.sttm import STTM, Level, coarser, finest, leaves, merge, pyramid, representatives, trees
from mmg_bench.methods.vidcom2 import (
    VidCom2,
    frame_budgets,
    frame_scales,
    steady_channels,
    token_scores,
    with_total,
)
from mmg_bench.tokens import LayerTokens, VideoTokens

METHODS = [
    VidCom2(),
    VidCom2(exact_total=True),
    DivPrune(),
    FlashVID(),
    FlashVID(token_selection_method="attn_div", expansion=1.25, min_segment_num=2, temporal_threshold=0.3),
    FlashVID(alpha=0.0, segment_threshold=-1.0, min_segment_num=1),
    CDPruner(),
    CDPruner(scope="video", sign="positive"),
    CDPruner(relevance="llm"),
    LlavaScissor(),
    LlavaScissor(tau=0.9),
    STTM(),
    STTM(threshold=0.85, temporal_thresh=0.65, root_level=0),
]
SHAPES = [
    (1, (1, 1), 1),
    (1, (7, 7), 8),
    (2, (2, 2), 3),
    (3, (3, 5), 8),
    (5, (1, 6), 1),
    (9, (4, 3), 4),
    (12, (1, 1), 2),
]
RATIOS = [0.001, 0.1, 0.25, 0.9, 1.0]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def video(frames: int, grid: tuple[int, int], width: int, kind: str = "random") -> VideoTokens:
    size = grid[0] * grid[1]
    features = {
        "random": normal(frames, size, width),
        "still": 2 + normal(1, size, width) + 0.05 * normal(frames, size, width),
        "constant": torch.ones(frames, size, width),
        "zero": torch.zeros(frames, size, width),
    }[kind]
    joint = normal(frames, size, 5) if kind != "constant" else torch.ones(frames, size, 5)
    attention = normal(frames, size).softmax(1)
    text = {"query": normal(3, width), "joint_query": normal(2, 5)}
    return VideoTokens(features, grid, attention=attention, joint_features=joint, **text)


def cast(tokens: VideoTokens, dtype: torch.dtype) -> VideoTokens:
    fields = ("features", "attention", "query", "joint_features", "joint_query")
    return replace(tokens, **{name: getattr(tokens, name).to(dtype) for name in fields})


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["random", "still", "constant", "zero"])
def test_any_video_and_budget(method: Method, shape: tuple[int, tuple[int, int], int], kind: str):
    for dtype in (torch.float32, torch.bfloat16) if kind == "random" else (torch.float32,):
        tokens = cast(video(*shape, kind), dtype)
        before = tokens.features.clone()
        for ratio in RATIOS:
            sized = replace(method, retention_ratio=ratio)
            pruned = sized.prune(tokens)
            budget = sized.budget(tokens)
            if sized.exact:
                assert len(pruned) == budget
            elif sized in (LlavaScissor(ratio), STTM(ratio)):
                assert 1 <= len(pruned) <= budget
            assert 1 <= len(pruned) <= tokens.total
            assert pruned.features.shape == (len(pruned), tokens.features.shape[2])
            assert pruned.features.dtype == dtype
            assert pruned.features.isfinite().all()
            assert pruned.positions.dtype == torch.int64
            assert (pruned.positions.diff() >= (0 if isinstance(method, FlashVID) else 1)).all()
            assert 0 <= int(pruned.positions[0]) <= int(pruned.positions[-1]) < tokens.total
            again = sized.prune(tokens)
            assert torch.equal(again.positions, pruned.positions)
            assert torch.equal(again.features, pruned.features)
        assert torch.equal(tokens.features, before)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("vidcom2", {"temperature": 0}),
        ("vidcom2", {"exact_total": "vllm"}),
        ("vidcom2", {"temperature": 10**30}),
        ("sparsevlm", {"version": True}),
        ("divprune", {"retention_ratio": 0}),
        ("flashvid", {"alpha": 1.1}),
        ("flashvid", {"token_selection_method": "attn"}),
        ("flashvid", {"min_segment_num": 0}),
        ("flashvid", {"expansion": 0}),
        ("flashvid", {"expansion": float("inf")}),
        ("cdpruner", {"scope": "image"}),
        ("cdpruner", {"relevance": "dot"}),
        ("cdpruner", {"sign": 1}),
        ("llava_scissor", {"tau": 1.5}),
        ("llava_scissor", {"search_steps": 0}),
        ("sttm", {"threshold": 0.85}),
        ("sttm", {"temporal_thresh": 0.6}),
        ("sttm", {"threshold": 2, "temporal_thresh": 0.6}),
        ("sttm", {"root_level": -1}),
    ],
)
def test_wrong_parameters_are_named(name: str, parameters: dict[str, object]):
    with pytest.raises(ValueError, match=next(iter(parameters))):
        get_method(name, **parameters)


@pytest.mark.parametrize(("name", "missing"), [("flashvid", "attention"), ("cdpruner", "joint_features, joint_query")])
def test_a_missing_need_is_named(name: str, missing: str):
    with pytest.raises(ValueError, match=missing):
        get_method(name).prune(VideoTokens(normal(2, 4, 3), (2, 2)))


# vidcom2


def test_vidcom2_gives_more_to_the_frame_that_stands_out():
    features = 3 + normal(6, 36, 16)
    features[4] = normal(36, 16) - 3
    counts = VidCom2(0.25).prune(VideoTokens(features, (6, 6))).positions // 36
    kept = counts.bincount(minlength=6)
    assert kept[4] == kept.max() > kept[0]


def test_vidcom2_budgets_round_halves_to_even_and_keep_one():
    assert frame_budgets(torch.tensor([0.25, 0.75, 0.0, 1.0]), 2).tolist() == [1, 2, 1, 2]
    assert frame_budgets(torch.tensor([0.125, 0.375]), 20).tolist() == [2, 8]
    assert frame_scales(torch.tensor([[5.0], [1.0]]), 0.9, 0.01).tolist() == pytest.approx([0.45, 1.0])


@pytest.mark.parametrize("retention_ratio", [0.05, 0.13, 0.25, 0.4, 0.77, 1.0])
def test_vidcom2_corrects_its_total_token_by_token(retention_ratio: float):
    tokens = VideoTokens(normal(7, 9, 12) + normal(7, 1, 12), (3, 3))
    typical = sum(token_scores(tokens.features, steady_channels(tokens.features))).flatten()
    kept = set(VidCom2(retention_ratio).prune(tokens).positions.tolist())
    total = max(7, round(retention_ratio * 63))
    while len(kept) > total:
        kept.remove(max(kept, key=lambda i: float(typical[i])))
    while len(kept) < total:
        kept.add(min(set(range(63)) - kept, key=lambda i: float(typical[i])))
    corrected = VidCom2(retention_ratio, exact_total=True).prune(tokens)
    assert corrected.positions.tolist() == sorted(kept)
    assert corrected.notes["frame_budgets"].tolist() == (corrected.positions // 9).bincount(minlength=7).tolist()


def test_vidcom2_drops_the_last_and_adds_the_first_of_equal_tokens():
    kept = torch.tensor([[True, True, False], [True, False, False]])
    assert with_total(kept, torch.ones(2, 3), 2).nonzero().tolist() == [[0, 0], [0, 1]]
    assert with_total(kept, torch.ones(2, 3), 4).nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [1, 0]]
    assert with_total(kept, torch.ones(2, 3), 3).equal(kept)


# divprune


def test_max_min_matches_its_definition():
    x = unit(normal(12, 5))
    distance = cosine_distances(x[None])[0]
    off_diagonal = distance + 9 * torch.eye(12)
    expected = [int(off_diagonal.amin(0).argmax())]
    while len(expected) < 7:
        nearest = distance[expected].amin(0)
        nearest[expected] = -9
        expected.append(int(nearest.argmax()))
    assert diverse(x, 7).tolist() == expected


def test_divprune_never_picks_a_token_twice():
    x = normal(1, 5, 8).expand(4, -1, -1).flatten(0, 1)  # four identical frames
    order = diverse(x, 20)
    assert order.sort().values.tolist() == list(range(20))
    assert len(set((order[:5] % 5).tolist())) == 5


def test_unmasked_picks_may_repeat():
    distance = -torch.ones(1, 3, 3) * (1 - torch.eye(3))  # every other candidate is worse than the pick itself
    assert max_min_selection(distance, 2, chosen=None)[0].tolist() == [0, 0]
    assert max_min_selection(distance, 2)[0].tolist() == [0, 1]


# flashvid


def test_flashvid_segments_are_never_empty():
    scene = torch.eye(4)[[0, 0, 1, 1, 1]].unsqueeze(1)  # [5, 1, 4]: one cut
    assert segment_lengths(scene, 0.9, 1) == [2, 3]
    assert segment_lengths(scene, 0.9, 3) == [1, 1, 3]
    assert segment_lengths(scene, 0.9, 8) == [1] * 5
    assert segment_lengths(scene[:1], 0.9, 8) == [1]


def test_flashvid_chains_pass_on_sums_but_count_as_one():
    token = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    features = torch.stack([token, token, token])  # [3, 2, 2], both tokens still
    selected = torch.zeros(3, 2, dtype=torch.bool)
    values, left = temporal_trees(features, selected, [3], 0, 0.8)
    assert left.tolist() == [[True, True], [False, False], [False, False]]
    assert torch.equal(values[0], token * 1.5)  # (1 + 2) / 2, where the mean is 1
    _, left = temporal_trees(features, selected, [1, 2], 0, 0.8)
    assert left.tolist() == [[True, True], [True, True], [False, False]]
    _, left = temporal_trees(features, selected, [3], 2, 0.8)
    assert left.all()  # the full budget: nothing merges


def test_flashvid_clusters_only_valid_tokens():
    values = normal(2, 9, 4)
    values[:, 5] = 100.0  # an outlier that is not valid
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[:, 5] = valid[1, 6:] = False
    means, centres = cluster(values, valid, [3, 5])
    assert means.abs().max() < 10
    assert valid.flatten()[centres].all()
    assert (centres // 9).tolist() == [0] * 3 + [1] * 5
    assert centres.unique().numel() == 8
    alone, order = cluster(values[1:, :5], valid[1:, :5], [5])
    assert torch.equal(means[3:], alone)
    assert torch.equal(alone, values[1, order])


def test_flashvid_repeats_a_position_only_where_frames_stand_alone():
    tokens = video(4, (6, 6), 8, "still")
    alone = FlashVID(0.6).prune(tokens).positions
    assert (alone.diff() == 0).any()
    together = FlashVID(0.6, segment_threshold=-1.0, min_segment_num=1).prune(tokens).positions
    assert (together.diff() > 0).all()


# cdpruner


def test_dpp_selection_maximises_the_determinant_step_by_step():
    x, relevance = normal(1, 10, 6), torch.linspace(0.2, 1, 10)[None]
    order = dpp_selection(x, relevance, 5)[0].tolist()
    y = (unit(x) * relevance.unsqueeze(-1))[0].double()
    kernel = y @ y.mT
    for step in range(5):
        gains = [
            -1.0 if j in order[:step] else float(kernel[[*order[:step], j]][:, [*order[:step], j]].det())
            for j in range(10)
        ]
        assert order[step] == max(range(10), key=gains.__getitem__)


def test_cdpruner_falls_back_to_relevance_beyond_the_rank():
    x, relevance = normal(1, 8, 2), torch.tensor([[0.3, 0.9, 0.1, 0.8, 0.7, 0.2, 0.6, 0.5]])
    order = dpp_selection(x, relevance, 8)[0].tolist()
    rest = relevance[0, order[2:]]
    assert (rest.diff() < 0).all()
    assert sorted(order) == list(range(8))


def test_cdpruner_follows_the_question():
    tokens = video(3, (5, 5), 8)
    other = replace(tokens, joint_query=-tokens.joint_query)
    kept = CDPruner(0.2).prune(tokens).positions
    assert not torch.equal(kept, CDPruner(0.2).prune(other).positions)
    assert torch.equal(kept, CDPruner(0.2, sign="positive").prune(other).positions)
    assert (kept // 25).bincount().tolist() == [5, 5, 5]
    assert torch.equal(query_relevance(torch.ones(2, 3, 4), torch.ones(1, 4), -1), torch.ones(2, 3))


def test_cdpruner_in_the_language_models_space():
    """`llm` is `joint` with the tokens and the question's embeddings in place of the joint space."""
    tokens, method = video(3, (5, 5), 8), CDPruner(0.2, relevance="llm")
    assert method.needs == {"query"}
    assert CDPruner.needs == CDPruner().needs == {"joint_features", "joint_query"}
    alike = replace(tokens, joint_features=tokens.features, joint_query=tokens.query)
    kept = method.prune(replace(tokens, joint_features=None, joint_query=None)).positions
    assert torch.equal(kept, CDPruner(0.2).prune(alike).positions)
    assert not torch.equal(kept, CDPruner(0.2).prune(tokens).positions)


# llava_scissor


def test_components_match_a_search():
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        adjacent = torch.rand(30, 30, generator=generator) < 0.04
        adjacent = adjacent | adjacent.T | torch.eye(30, dtype=torch.bool)
        found = components(adjacent.nonzero().T, 30)
        reach = adjacent.float().matrix_power(30) > 0
        assert torch.equal(found.label[:, None] == found.label, reach)
        degree = adjacent.sum(1)
        keys = {max(row.nonzero().flatten().tolist(), key=lambda n: (int(degree[n]), -n)) for row in reach}
        assert found.keys.tolist() == sorted(keys)
        assert found.label[found.keys].tolist() == list(range(len(keys)))


def test_scissor_with_a_threshold_ignores_the_ratio():
    tokens = video(4, (5, 5), 8, "still")
    low, high = (LlavaScissor(ratio, tau=0.9).prune(tokens) for ratio in (0.1, 0.9))
    assert torch.equal(low.features, high.features)
    assert len(LlavaScissor(0.1).prune(tokens)) <= 10 < len(LlavaScissor(0.9).prune(tokens)) <= 90


# search


def test_largest_within_takes_the_most_that_fits():
    tried = []

    def run(setting: float) -> range:
        tried.append(setting)
        return range(int(setting * 100) // 7 * 7)  # only multiples of 7

    assert len(largest_within(run, 40, 0.05, 1.0, 20)) == 35
    assert len(tried) == 21
    assert len(largest_within(run, 42, 0.05, 1.0, 20)) == 42
    assert len(tried) < 42  # it stops once the budget is met
    assert len(largest_within(lambda s: range(50 + int(10 * s)), 40, 0.0, 1.0, 5)) == 50  # nothing fits


# sttm


def test_pyramid_puts_the_odd_row_and_column_first():
    grid = torch.arange(15.0).view(1, 15, 1)  # 3 x 5
    above = coarser(finest(grid, (3, 5)))
    assert above.features[0, :, :, 0].tolist() == [[0, 1.5, 3.5], [7.5, 9, 11]]
    assert above.rows.tolist() == [[0, 1], [1, 3]]
    assert above.columns.tolist() == [[0, 1], [1, 3], [3, 5]]
    sides = [tuple(level.features.shape[1:3]) for level in pyramid(normal(1, 169, 2), (13, 13))]
    assert sides == [(2, 2), (4, 4), (7, 7), (13, 13)]
    assert len(pyramid(normal(2, 1, 2), (1, 1))) == 1


def test_a_missing_child_stands_for_the_first_node():
    features = torch.ones(1, 9, 2)
    features[0, 0] = torch.tensor([1.0, -1.0])  # orthogonal to all others
    above: Level = coarser(finest(features, (3, 3)))
    agreement = above.agreement[0]  # [2, 2]: only the node of four children has no missing one
    assert agreement[1, 1] == pytest.approx(1)
    assert agreement[0, 1] == pytest.approx(0, abs=1e-6)
    assert agreement[1, 0] == pytest.approx(0, abs=1e-6)
    found = trees([above, finest(features, (3, 3))])
    groups = merge(found, 0.9, 0)
    assert found.boxes[groups.leaf].tolist() == [
        [0, 0, 1, 1],
        [0, 1, 1, 2],
        [0, 2, 1, 3],
        [1, 0, 2, 1],
        [1, 1, 3, 3],
        [2, 0, 3, 1],
    ]
    assert groups.anchors.tolist() == [0, 1, 2, 3, 4, 6]
    owner = (leaves(found, 0.9)[0].unsqueeze(1) == groups.leaf).int().argmax(1)
    assert owner.view(3, 3).tolist() == [[0, 1, 2], [3, 4, 4], [5, 4, 4]]


def test_representatives_are_the_first_of_a_chain():
    assert representatives(torch.tensor([[0, 2, 4], [2, 4, 5]]), 6).tolist() == [0, 1, 0, 3, 0, 0]
    assert representatives(torch.zeros(2, 0, dtype=torch.int64), 3).tolist() == [0, 1, 2]


def test_sttm_with_a_tiny_budget_keeps_the_largest_nodes():
    tokens = video(4, (5, 5), 16)  # unlike frames: the coarsest trees have 4 nodes a frame
    pruned = STTM(0.03).prune(tokens)
    assert len(pruned) == 3
    assert len(STTM(0.16).prune(tokens)) <= 16


@pytest.mark.parametrize(("total", "counts"), [(90, [62, 44, 30]), (100, [70, 49, 34])])  # int(90 * 0.7) is 62
def test_pdrop_counts_as_the_official_ratios_would(total: int, counts: list[int]):
    tokens = torch.zeros(total, 2)
    stages = [
        LayerTokens(tokens, tokens, torch.arange(total), tokens, total, stage, 28, lambda **_: torch.rand(1, 1, total))
        for stage in range(3)
    ]
    assert [len(PDrop(share=0.7).select_inside(stage).index) for stage in stages] == counts
