"""HoliTom: windows that maximise merging over time, density and attention in space, merging inside the LLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from mmg_bench.methods._inside import layers_at
from mmg_bench.methods._merge import group_means, group_scores, in_raster_order, neighbour_cosines, supplied
from mmg_bench.methods._ops import (
    descending,
    first_of_rows,
    largest_remainder,
    on_device,
    positions_of,
    squared_distances,
    top_mask,
)
from mmg_bench.methods.base import Method, Positions, check_flag, check_range
from mmg_bench.tokens import LayerTokens, PrunedTokens, Selection, VideoTokens, keep

MERGING_LAYER, OFFICIAL_DEPTH = 18, 28
Window = tuple[int, int]
"""First and last frame."""


def still_links(features: Tensor, tau: float) -> Tensor:
    """Mask of positions whose cosine with the next frame exceeds `tau`: `features [T, N, D]` to `[T - 1, N]` bool."""
    return neighbour_cosines(features) > tau


def best_windows(still: Tensor) -> tuple[list[Window], int]:
    """Cut T frames into windows that save the most tokens by merging static positions, by dynamic programming.

    A window saves (its length - 1) tokens for every position whose links inside it are all `still` (`[T - 1, N]`).
    Equal totals: the last frame stays alone, then the shortest window. Returns the windows and the tokens saved.
    """
    still = still.cpu()  # a few small steps, not worth a GPU
    links = len(still)
    number = torch.arange(links).unsqueeze(1)
    broken = number.masked_fill(still, -1).cummax(0).values if links else number  # [T - 1, N]: the last broken link
    run = number - broken  # still links in a row that end here
    histogram = torch.bincount((number * (links + 1) + run).flatten(), minlength=links * (links + 1))
    at_least = histogram.view(links, links + 1).flip(1).cumsum(1).flip(1)  # [T - 1 ends, runs of at least so many]
    saved = (at_least * torch.arange(links + 1))[:, 1:].tolist()  # [T - 1 ends, T - 1 lengths]
    best = [0]  # best[i]: saved in the first i frames
    begin: list[int] = []
    for last in range(links + 1):
        total, first = best[last], last
        for length in range(1, last + 1):
            candidate = best[last - length] + saved[last - 1][length - 1]
            if candidate > total:
                total, first = candidate, last - length
        best.append(total)
        begin.append(first)
    windows: list[Window] = []
    last = links
    while last >= 0:
        windows.append((begin[last], last))
        last = begin[last] - 1
    return windows[::-1], best[-1]


def static_positions(still: Tensor, windows: Sequence[Window]) -> Tensor:
    """Mask of positions whose links inside the window are all still; none in a window of one frame: `[windows, N]`."""
    return torch.stack([still[a:b].all(0) if b > a else still.new_zeros(still.shape[1]) for a, b in windows])


def merge_by_density(
    x: Tensor, counts: Sequence[int], beta: float, k: int, sizes: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Reduce each group of `x [G, n, D]` to `counts[g]` tokens: `[G, m, D]`, and their centres `[G, m]`, ascending.

    Centres are chosen by DPC-KNN. The other points join the nearest centre c, which becomes
    beta c + (1 - beta) mean(joined). The first `sizes[g]` rows of a group are its points (None: all); the first
    `counts[g]` of the m = max(counts) >= 1 results are valid.
    """
    groups, size, width = x.shape
    sizes = [size] * groups if sizes is None else sizes
    near = [max(1, min(k, count)) for count in counts]
    count, points, neighbours = on_device([counts, sizes, near], x.device).unsqueeze(2)  # [G, 1] each
    slots = torch.arange(size, device=x.device)
    valid = slots < points  # [G, n]
    squared = squared_distances(x) / width  # [G, n, n]
    best = descending(group_scores(squared, valid, neighbours.squeeze(1), max(near)))[:, : max(counts)]  # [G, m]
    used = slots[: best.shape[1]] < count
    centres = best.masked_fill(~used, size).sort(1).values.clamp_max(size - 1)
    to_centre = squared.gather(2, centres.unsqueeze(1).expand(-1, size, -1))  # [G, n, m]
    nearest = to_centre.masked_fill(~used.unsqueeze(1), torch.inf).argmin(2).masked_fill(~valid, -1)
    nearest = nearest.scatter(1, best, nearest.gather(1, best).masked_fill(used, -1))  # centres join none
    means, joined = group_means(x, nearest, centres.shape[1])
    centre = x.gather(1, centres.unsqueeze(2).expand(-1, -1, width)).float()
    return torch.where(joined.unsqueeze(2) > 0, beta * centre + (1 - beta) * means, centre), centres


def merge_outer(
    features: Tensor,
    attention: Tensor,
    windows: Sequence[Window],
    is_static: Tensor,
    static_counts: Sequence[int],
    dynamic_counts: Sequence[int],
    *,
    beta: float,
    k: int,
    D: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Merge `features [T, N, D]` in `windows` with static positions `is_static [windows, N]`.

    `static_counts` and `dynamic_counts`: tokens to keep of each window's static positions and of each frame's dynamic
    ones. Static positions are averaged over time and merged by density. Of a frame's dynamic tokens the most attended
    round((1 - D) * count) are kept (`attention [T, N]`); the share D is merged by density from the others.
    Returns the tokens `[K, D]`, float32, and their flat positions `[K]`; static ones are placed in the window's first
    frame. Order: attended tokens, static ones, then those of the share D, each in raster order.
    """
    frames, size, _ = features.shape
    device = features.device
    lengths = [last - first + 1 for first, last in windows]
    window = [w for w, length in enumerate(lengths) for _ in range(length)]  # [T]
    dominant = [round(count * (1 - D)) for count in dynamic_counts]
    contextual = [count - d for count, d in zip(dynamic_counts, dominant, strict=True)]
    sizes, dynamic_sizes = group_sizes(windows, is_static)
    static = is_static.to(device, non_blocking=True)
    is_dynamic = ~static[on_device(window, device)]  # [T, N]
    chosen = top_mask(attention.masked_fill(~is_dynamic, -torch.inf), on_device(dominant, device))  # [T, N]

    attended = positions_of(chosen, sum(dominant))
    tokens, positions = [features.flatten(0, 1)[attended].float()], [attended]

    # Groups to merge by density: the windows' static means and, with D > 0, the remaining tokens of some frames.
    values = torch.stack([part.mean(0, dtype=torch.float32) for part in features.split(lengths)])
    member, counts, frame = static, list(static_counts), [first for first, _ in windows]
    if rest := [t for t in range(frames) if contextual[t]]:
        index = on_device(rest, device)
        member = torch.cat([member, (is_dynamic & ~chosen)[index]])
        values = torch.cat([values, features[index].float()])
        counts += [contextual[t] for t in rest]
        sizes += [dynamic_sizes[t] - dominant[t] for t in rest]
        frame += rest
    if any(counts):
        place = descending(member.byte())[:, : max(sizes)]  # [G, n], members first
        number = torch.arange(len(member), device=device).unsqueeze(1)
        merged, centres = merge_by_density(values[number, place], counts, beta, k, sizes)
        centres = on_device(frame, device).unsqueeze(1) * size + place.gather(1, centres)
        row = first_of_rows(counts, device)
        tokens.append(merged.flatten(0, 1)[row])
        positions.append(centres.flatten()[row])
    return torch.cat(tokens), torch.cat(positions)


def group_sizes(windows: Sequence[Window], is_static: Tensor) -> tuple[list[int], list[int]]:
    """Numbers of static tokens in each window, after merging over time, and of dynamic tokens in each frame."""
    static: list[int] = is_static.sum(1).tolist()
    size = is_static.shape[1]
    return static, [size - s for (first, last), s in zip(windows, static, strict=True) for _ in range(first, last + 1)]


class Inner(NamedTuple):
    """Result of the inner merging of n tokens."""

    kept: Tensor
    """`[K]`: ascending indices of the kept tokens."""
    tokens: Tensor
    """`[K, D]` float32: the kept tokens, with the dropped ones merged into them."""
    target: Tensor
    """`[n]`: the token that each one is merged into; a kept token has its own index."""


def merge_inside(features: Tensor, attention: Tensor, r: float) -> Inner:
    """Keep the round(n * (1 - r)) most attended of `[n, D]`, and merge each other token into the most similar of them.

    Dropped tokens are merged one after another, in raster order, by h = (h + x) / 2. Of d tokens that join one, the
    i-th (from 0) thus has weight 2^-(d - i), and the token itself 2^-d: one matrix product.
    """
    count = len(attention)
    ranked = descending(attention)[: max(1, round(count * (1 - r)))]  # [K]; equally similar ones: the first
    kept = ranked.sort().values
    stays = torch.zeros(count, dtype=torch.bool, device=kept.device).index_fill(0, kept, True)
    x = features.float()
    norm = torch.linalg.vector_norm(x, dim=1)
    similarity = (x @ x[ranked].T) / (norm.unsqueeze(1) * norm[ranked])  # [n, K], nan for zeros
    nearest = ranked[similarity.nan_to_num_(0).argmax(1)]
    slot = torch.searchsorted(kept, torch.where(stays, torch.arange(count, device=kept.device), nearest))
    joins = (slot.unsqueeze(0) == torch.arange(len(kept), device=kept.device).unsqueeze(1)) & ~stays  # [K, n]
    later = joins.sum(1, keepdim=True) - joins.cumsum(1) + joins.long()  # number that join from this one on
    weight = torch.where(joins, 0.5 ** later.double(), 0).float()  # [K, n]
    own = 0.5 ** joins.sum(1, keepdim=True).double()  # [K, 1]
    return Inner(kept, own.float() * x[kept] + weight @ x, kept[slot])


@dataclass(frozen=True)
class HoliTom(Method):
    """HoliTom (Shao et al., NeurIPS 2025).

    Idea: dynamic programming cuts the video so that the most tokens can be merged over time. Static positions become
    their mean over time and are merged by density peaks; dynamic tokens are kept by the attention they receive. In the
    middle of the language model, the less attended half is merged into the tokens it resembles.

    Source: arXiv 2505.21334; cokeshao/HoliTom e9b2972 (holitom/llava_arch.py, holitom/modeling_qwen2.py).
    `retention_ratio` is the share that the outer merging keeps; `inner=false` or `outer=false` switches one off.
    Parameters: see the fields; the paper uses tau 0.8, and 0.65 at retention 10 %.
    Quirk kept: with D = 0, all dynamic tokens are chosen by attention (the dominant share is 1 - D).
    Deviations: the groups share the budget by largest remainder, so that it is met exactly (official: round for static
    and ceil for dynamic groups); tokens enter the model in raster order (official: static ones first in each window);
    D > 0, which raises in the release, merges that share of a frame's dynamic tokens by density.
    """

    tau: float = 0.8
    """A position is still from one frame to the next if its cosine exceeds this."""
    beta: float = 0.6
    """Weight of a centre in its merged token."""
    k: int = 7
    """Nearest neighbours in the density (at most the number of centres)."""
    D: float = 0.0
    """Share of the dynamic tokens that is merged by density; the rest is kept by attention."""
    outer: bool = True
    """Whether to merge before the language model; if not, all tokens enter it."""
    inner: bool = True
    """Whether to merge inside the language model too."""
    r: float = 0.5
    """Share of the tokens that is merged there."""

    name: ClassVar[str] = "holitom"
    needs: ClassVar[frozenset[str]] = frozenset({"attention"})
    positions: ClassVar[Positions] = "contiguous"
    inside_positions: ClassVar[Positions] = "original"
    exact: ClassVar[bool] = False
    """Merging static tokens over time can leave fewer tokens than a large budget asks for."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "tau", -1, 1)
        check_range(self, "beta", 0, 1)
        check_range(self, "k", 1, 10_000, integer=True)
        check_range(self, "D", 0, 1)
        check_range(self, "r", 0, 1)
        check_flag(self, "inner")
        check_flag(self, "outer")
        if not (self.outer or self.inner):
            raise ValueError("holitom: outer=False and inner=False leave nothing to do: switch one on, or use dense")
        if not self.outer:
            object.__setattr__(self, "needs", frozenset())

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        if not self.outer:
            return keep(tokens, torch.arange(tokens.total, device=tokens.features.device))
        still = still_links(tokens.features, self.tau).cpu()
        windows, _ = best_windows(still)
        is_static = static_positions(still, windows)
        static, dynamic = group_sizes(windows, is_static)
        sizes = static + dynamic
        budget = min(self.budget(tokens), sum(sizes))
        counts = largest_remainder([n * budget / sum(sizes) for n in sizes], budget, sizes)
        merged, positions = merge_outer(
            tokens.features,
            supplied(tokens, "attention"),
            windows,
            is_static,
            counts[: len(static)],
            counts[len(static) :],
            beta=self.beta,
            k=self.k,
            D=self.D,
        )
        return in_raster_order(merged, positions, tokens.features, windows=windows)

    def layers(self, depth: int) -> tuple[int, ...]:
        """Officially before layer 18 of 28; scaled to another depth."""
        return layers_at([MERGING_LAYER], OFFICIAL_DEPTH, depth) if self.inner else ()

    def select_inside(self, tokens: LayerTokens) -> Selection:
        merged = merge_inside(tokens.features, tokens.attention()[:, 0].mean(0), self.r)
        return Selection(merged.kept, merged.tokens)
