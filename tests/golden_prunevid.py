import torch

from golden_cases import Inputs, Run
from mmg_bench.methods.prunevid import (
    SMALL_GROUP,
    group_numbers,
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
    per_frame = [d // w for d, w in zip(dynamic, windows, strict=True) for _ in range(w)]
    attention = inputs["text_to_visual_attn"]
    group = group_numbers(windows, static, per_frame, attention.device)
    run.check("keep_idx", rank_in_groups(attention, group, run.hyper["alpha"]))


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
    run.check("assign", merged.assign)
    run.check("tokens", merged.tokens)


CHECKERS = {"prunevid": check_prunevid}
