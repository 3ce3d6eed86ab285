"""What is particular to ottvid; tests/methods/test_contract.py holds what every method must do."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mmg_bench.methods import ottvid
from mmg_bench.methods.ottvid import OTTVid
from mmg_bench.tokens import VideoTokens


def _video(seed: int = 0, frames: int = 6, grid: tuple[int, int] = (4, 6), drift: float = 0.3) -> VideoTokens:
    """A scene whose tokens drift from frame to frame, each by a share of its own, attended unequally."""
    g = torch.Generator().manual_seed(seed)
    tokens = grid[0] * grid[1]
    x, pace = torch.randn(tokens, 16, generator=g), drift * torch.rand(tokens, 1, generator=g)
    steps = pace * torch.randn(frames, tokens, 16, generator=g)
    attention = (2 * torch.randn(frames, tokens, generator=g)).softmax(-1)
    return VideoTokens(x + steps.cumsum(0), grid, attention=attention)


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))


def _cover(x: Tensor, weight: Tensor, picks: list[int]) -> float:
    return sum(float(w) * max([0.0, *(_cosine(t, x[j]) for j in picks)]) for t, w in zip(x, weight, strict=True))


def test_similarities():
    video = _video()
    cosine, still = ottvid.similarities(video.features)
    x = video.features
    assert cosine[2, 3, 5] == pytest.approx(_cosine(x[2, 3], x[2, 5]), abs=1e-6)
    assert still[3] == pytest.approx(sum(_cosine(a, b) for a, b in zip(x[3], x[4], strict=True)) / 24, abs=1e-6)
    assert len(ottvid.similarities(x[:1])[1]) == 0


def test_similarities_of_long_videos_a_few_frames_at_a_time(monkeypatch: pytest.MonkeyPatch):
    x = _video(frames=7).features
    whole = ottvid.similarities(x)
    monkeypatch.setattr(ottvid, "frames_per_chunk", lambda features: 3)
    for one, other in zip(whole, ottvid.similarities(x), strict=True):
        torch.testing.assert_close(one, other)


def test_each_pick_adds_most_to_the_cover(monkeypatch: pytest.MonkeyPatch):
    video = _video(frames=3)
    assert video.attention is not None
    cosine, _ = ottvid.similarities(video.features)
    expected = []
    for x, weight in zip(video.features, video.attention, strict=True):
        picks: list[int] = []
        for _ in range(7):
            picks.append(max(set(range(24)) - set(picks), key=lambda j: _cover(x, weight, [*picks, j])))
        expected.append(sorted(picks))
    assert ottvid.covering(cosine, video.attention, 7).tolist() == expected
    monkeypatch.setattr(ottvid, "_AT_ONCE", {"cpu": 1})  # frame by frame
    assert ottvid.covering(cosine, video.attention, 7).tolist() == expected


def test_attended_tokens_are_covered_and_equal_ones_go_by_place():
    x = torch.eye(4)[[0, 0, 1, 2]]
    cosine = (x @ x.T)[None]
    assert ottvid.covering(cosine, torch.tensor([[0.1, 0.1, 0.3, 0.5]]), 2).tolist() == [[2, 3]]
    assert ottvid.covering(cosine, torch.tensor([[0.2, 0.2, 0.3, 0.3]]), 2).tolist() == [[0, 2]]
    assert ottvid.covering(cosine, torch.zeros(1, 4), 3).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("kept", [1, 2, 5])
def test_mass_by_leaving_each_out(kept: int):
    video = _video(frames=1)
    assert video.attention is not None
    x, weight = video.features[0], video.attention[0]
    cosine, _ = ottvid.similarities(video.features)
    within = torch.randperm(24, generator=torch.Generator().manual_seed(1))[:kept].sort().values
    picks = within.tolist()
    lost = []
    for j in picks:
        total = 0.0
        for token, w in zip(x, weight, strict=True):
            others = [_cosine(token, x[i]) for i in picks if i != j] or [0.0]
            total += float(w) * max(0.0, _cosine(token, x[j]) - max(others))
        lost.append(total)
    weights = [math.exp(-value / max(lost) / 0.3) for value in lost]
    expected = torch.tensor([[value / sum(weights) for value in weights]])
    torch.testing.assert_close(
        ottvid.leave_one_out_mass(cosine, video.attention, within[None], 0.3), expected, rtol=1e-4, atol=0
    )


def test_costs_by_hand():
    direction = torch.eye(3)[torch.tensor([[0, 1], [0, 2]])]
    direction[1, 1] = -direction[0, 1]
    places = torch.tensor([[[0.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 1.0]]])
    cost = ottvid.pair_costs(direction, places, torch.tensor([0.75]))
    near = 0.25 / math.sqrt(2)
    torch.testing.assert_close(cost, torch.tensor([[[0, 0.75 + near], [1.0, 0.75 + near]]]))


@pytest.mark.parametrize("eps", [0.005, 0.01, 0.1])
def test_the_plan_by_logarithms(eps: float):
    g = torch.Generator().manual_seed(3)
    cost = torch.rand(2, 5, 5, generator=g)
    a, b = (torch.randn(2, 5, generator=g).softmax(-1) for _ in range(2))
    u, v, minus = torch.zeros(2, 5).double(), torch.zeros(2, 5).double(), -cost.double() / eps
    for _ in range(30):
        v = b.double().log() - (minus + u.unsqueeze(2)).logsumexp(1)
        u = a.double().log() - (minus + v.unsqueeze(1)).logsumexp(2)
    plan = ottvid.transport(cost, a, b, eps, 30)
    torch.testing.assert_close(plan, (u.unsqueeze(2) + minus + v.unsqueeze(1)).exp(), rtol=1e-9, atol=1e-30)
    torch.testing.assert_close(plan.sum(2).float(), a)


def test_plans_at_the_least_eps_are_finite():
    cost = torch.tensor([[[0.0, 1.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]])
    plan = ottvid.transport(cost, torch.tensor([[1.0, 0.0]] * 2), torch.tensor([[0.5, 0.5]] * 2), 0.005, 500)
    assert plan.isfinite().all()
    torch.testing.assert_close(plan.sum((1, 2)), torch.ones(2).double())


def test_budgets_by_hand():
    distance = torch.tensor([0.0, 0.3 * math.log(2)])
    assert ottvid.merge_budgets(distance, 9, 10, 0.3).tolist() == [6, 3]
    assert ottvid.merge_budgets(distance, 10, 10, 0.3).tolist() == [7, 3]  # 6.67 and 3.33
    assert ottvid.merge_budgets(distance, 9, 5, 0.3).tolist() == [5, 4]  # one more than it has room for
    assert ottvid.merge_budgets(distance, 99, 5, 0.3).tolist() == [5, 5]
    assert ottvid.merge_budgets(torch.zeros(4), 6, 3, 0.3).tolist() == [2, 2, 1, 1]
    assert ottvid.merge_budgets(torch.zeros(2), 3, 0, 0.3).tolist() == [0, 0]


def test_roots_by_hand():
    parent = torch.tensor([[1, 0], [1, 1], [0, 1]])
    joins = torch.tensor([[True, False], [False, True], [True, True]])
    #        frame 0     frame 1     frame 2     frame 3
    assert ottvid.grow_trees(parent, joins).tolist() == [0, 1, 1, 3, 4, 3, 4, 3]


def _merged_step_by_step(method: OTTVid, video: VideoTokens) -> dict[int, list[int]]:
    """The greedy search over pairs and the trees, one after the other: root to members, flat positions."""
    cosine, still = ottvid.similarities(video.features)
    within = method.spatial(video, cosine)
    frames, kept = within.shape
    between = method.between(video, cosine, still, within)
    budgets = ottvid.merge_budgets(
        between.distance, method.merges(frames * kept), kept - 1, method.ot_budget_temperature
    )
    trees = {(t, j): [(t, j)] for t in range(frames) for j in range(kept)}
    parent: dict[tuple[int, int], tuple[int, int] | None] = {}
    for t, budget in enumerate(budgets.tolist()):
        flow, used = between.plan[t].float(), set[int]()
        for i, j in sorted(((i, j) for i in range(kept) for j in range(kept)), key=lambda ij: -float(flow[ij])):
            if len(used) < budget and j not in used:
                used.add(j)
                theta = method.ot_cost_threshold
                parent[t + 1, j] = None if theta is not None and between.cost[t, i, j] > theta else (t, i)
    for token in sorted(parent, reverse=True):  # from the last frame on
        members = trees.pop(token)
        if (into := parent[token]) is not None:
            trees[into] += members

    def flat(t: int, j: int) -> int:
        return t * video.tokens_per_frame + int(within[t, j])

    return {flat(*root): [flat(*token) for token in members] for root, members in trees.items()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ot_cost_threshold": None},
        {"ot_cost_threshold": 0.1},
        {"ot_mass_tau": None},
        {"temporal_share": 0.8},
        {"spatial_retention": 1.0, "ot_sinkhorn_eps": 0.1},
        {"ot_budget_temperature": 0.01},
    ],
)
@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5])
def test_trees_become_their_means(options: dict[str, Any], ratio: float):
    video, method = _video(), OTTVid(ratio, **options)
    expected = _merged_step_by_step(method, video)
    pruned = method.prune(video)
    assert pruned.positions.tolist() == sorted(expected)
    means = torch.stack([video.flat[expected[p]].mean(0) for p in sorted(expected)])
    torch.testing.assert_close(pruned.features, means, rtol=1e-5, atol=1e-6)


def test_what_is_given_up_does_not_change_how_many_stay():
    video = _video(drift=1.0)
    counts, members = set[int](), []
    for theta in (None, 0.3, 0.1, 0.0):
        method = OTTVid(0.15, ot_cost_threshold=theta)
        counts.add(len(method.prune(video)))
        members.append(sum(map(len, _merged_step_by_step(method, video).values())))
    assert len(counts) == 1
    assert members == sorted(members, reverse=True)
    assert members[0] > members[-1]


def test_the_first_stage_alone():
    video = _video()
    method = OTTVid(0.25, enable_temporal=False)
    pruned = method.prune(video)
    assert len(pruned) == 6 * round(24 * 0.25**0.7)
    assert torch.equal(pruned.features, video.flat[pruned.positions])
    alone = OTTVid(0.25, temporal_share=0).prune(video)  # as many as asked for, and nothing left to merge
    assert len(alone) == 36
    assert torch.equal(alone.features, video.flat[alone.positions])


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("frames", [1, 2, 3, 16])
def test_realised_tokens(ratio: float, frames: int):
    video = _video(frames=frames, grid=(7, 7))
    kept = round(49 * ratio**0.7)
    target = round(frames * kept * ratio / ratio**0.7)
    pruned = OTTVid(ratio).prune(video)
    assert len(pruned) == max(target, frames * kept - (frames - 1) * (kept - 1))
    assert (pruned.positions // 49).bincount(minlength=frames)[0] == kept  # the first frame merges into none


def test_a_still_video_merges_in_place():
    video = _video(frames=1)
    assert video.attention is not None
    still = VideoTokens(video.features.repeat(4, 1, 1), (4, 6), attention=video.attention.repeat(4, 1))
    pruned = OTTVid(0.25).prune(still)
    torch.testing.assert_close(pruned.features, still.flat[pruned.positions])


def test_dropped_tokens_weigh_what_the_kept_ones_do_on_average(monkeypatch: pytest.MonkeyPatch):
    """A quirk of the official code, which hands on no attention of others."""
    video, seen = _video(), []
    assert video.attention is not None
    whole = ottvid.leave_one_out_mass

    def spy(cosine: Tensor, weight: Tensor, within: Tensor, tau: float) -> Tensor:
        seen.append((weight, within))
        return whole(cosine, weight, within, tau)

    monkeypatch.setattr(ottvid, "leave_one_out_mass", spy)
    OTTVid(0.25).prune(video)
    ((weight, within),) = seen
    kept = video.attention.gather(1, within)
    dropped = torch.ones_like(weight, dtype=torch.bool).scatter(1, within, False)
    expected = kept.mean(1, keepdim=True).expand_as(weight) / (24 * kept.mean(1, keepdim=True))
    torch.testing.assert_close(weight[dropped], expected[dropped])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temporal_share": 1.1}, r"OTTVid\.temporal_share=1\.1: it must be a number in \[0, 1\]"),
        ({"spatial_retention": 0}, r"OTTVid\.spatial_retention=0: it must be a number in \(0, 1\]"),
        ({"enable_temporal": "off"}, r"OTTVid\.enable_temporal='off': it must be true or false"),
        ({"ot_mass_tau": 0}, r"OTTVid\.ot_mass_tau=0: it must be a number in \[0\.001, 1000000\]"),
        ({"ot_budget_temperature": 0}, r"OTTVid\.ot_budget_temperature=0: it must be a number in \[0\.001, 1000000\]"),
        ({"ot_cost_threshold": -0.1}, r"OTTVid\.ot_cost_threshold=-0\.1: it must be a number in \[0, 1\]"),
        ({"ot_sinkhorn_eps": 0.001}, r"OTTVid\.ot_sinkhorn_eps=0\.001: it must be a number in \[0\.005, 1000000\]"),
        ({"ot_sinkhorn_iters": 0}, r"OTTVid\.ot_sinkhorn_iters=0: it must be an integer in \[1, 1000000\]"),
    ],
)
def test_bad_parameters_are_named(options: dict[str, Any], says: str):
    with pytest.raises(ValueError, match=says):
        OTTVid(**options)


@pytest.mark.parametrize("options", [{"ot_mass_tau": 0.001}, {"ot_budget_temperature": 0.001}])
def test_extreme_temperatures(options: dict[str, Any]):
    assert len(OTTVid(0.2, **options).prune(_video())) == len(OTTVid(0.2).prune(_video()))
