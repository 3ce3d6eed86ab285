import torch
from torch import Tensor

from golden_cases import Inputs, Run
from mmg_bench.methods.prunevid import (
    SMALL_GROUP,
    Merged,
    group_sizes,
    merge_windows,
    rank_in_groups,
    refine,
    static_in_windows,
    temporal_labels,
    window_lengths,
)


def check_prunevid(run: Run, inputs: Inputs) -> None:
    if "alpha" in run.hyper:
        _check_inner(run, inputs)
    else:
        _check_outer(run, inputs)


def _check_inner(run: Run, inputs: Inputs) -> None:
    static, dynamic, windows = (inputs[name].tolist() for name in ("static_sizes", "dynamic_sizes", "window_sizes"))
    sizes = [n for s, d, w in zip(static, dynamic, windows, strict=True) for n in (s, *[d // w] * w)]
    group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    attention = inputs["text_to_visual_attn"]
    run.check("keep_idx", rank_in_groups(attention, group.to(attention.device), run.hyper["alpha"]))


def _official_rows(merged: Merged, lengths: list[int], is_static: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens window by window, static ones first, then frame by frame; and the row that each of `[T, N]` went into."""
    windows = torch.arange(len(lengths))
    window = windows.repeat_interleave(torch.tensor(lengths))  # [T]
    order = torch.cat([windows, window]).argsort(stable=True)  # of the W + T groups
    counts = merged.group.bincount(minlength=len(order))
    first = torch.empty_like(counts).scatter(0, order, counts[order].cumsum(0) - counts[order])
    row = (first[:, None] + merged.assign).masked_fill((merged.assign < 0) | (counts[:, None] == 0), -1)  # [W + T, n]
    row = row.new_full((len(order), is_static.shape[1]), -1).scatter(1, merged.place, row)  # [W + T, N]
    assign = torch.where(is_static[window], row[window], row[len(lengths) :])
    return merged.tokens[order.argsort()[merged.group].argsort(stable=True)], assign


def _check_outer(run: Run, inputs: Inputs) -> None:
    features, hyper = inputs["feat"], run.hyper
    labels = temporal_labels(features, int(len(features) * hyper["temporal_segment_ratio"]), hyper["k"])
    refined = refine(labels)
    lengths = window_lengths(refined)
    is_static = static_in_windows(features, lengths, hyper["tau"])
    static, dynamic = (
        [int(n * hyper["cluster_ratio"]) if n > SMALL_GROUP else n for n in sizes]
        for sizes in group_sizes(lengths, is_static)
    )
    # The official k of the spatial clusters is fixed; `hyper.k` is that of the temporal ones.
    merged = merge_windows(features, lengths, is_static, static, dynamic, 7)
    run.check("temporal_labels_raw", labels)
    run.check("temporal_labels_refined", refined)
    run.check("window_sizes", lengths)
    run.check("static_mask", is_static)
    run.check("static_sizes", static)
    run.check("dynamic_sizes", [sum(part) for part in torch.tensor(dynamic).split(lengths)])
    tokens, assign = _official_rows(Merged(*(part.cpu() for part in merged)), lengths, is_static.cpu())
    run.check("assign", assign)
    run.check("tokens", tokens)


CHECKERS = {"prunevid": check_prunevid}
