"""MMG-Vid has no official code: these vectors come from an independent float64 oracle of its three stages."""

import numpy as np
import torch

from golden_cases import Inputs, Run
from mmg_bench.methods._ops import frame_means
from mmg_bench.methods.mmg_vid import (
    Products,
    find_segments,
    frame_similarity,
    inner_products,
    low_variance_channels,
    marginal_gains,
    merge_short_segments,
    segment_products,
    segment_ratios,
    temporal_dpc,
)


def check(run: Run, inputs: Inputs) -> None:
    if "_stage1" in run.id:
        _check_segments(run, inputs)
    elif "_stage2" in run.id:
        _check_ratios(run, inputs)
    else:
        assert "_stage3" in run.id
        _check_tokens(run, inputs)


def _check_segments(run: Run, inputs: Inputs) -> None:
    given = "frame_similarity" in inputs
    similarity = inputs["frame_similarity"].tolist() if given else frame_similarity(_products(inputs))
    raw = find_segments(similarity, run.hyper["tau"])
    # Given similarities lie on ties and thresholds on purpose, so the flags do not count there.
    if not given:
        run.check("frame_similarity", np.array(similarity))
    run.check("segments_raw", np.array(raw), strict=given)
    run.check("segments", np.array(merge_short_segments(raw, similarity, 2)), strict=given)


def _check_ratios(run: Run, inputs: Inputs) -> None:
    hyper = run.hyper
    products = segment_products(_products(inputs), hyper["segments"])
    for variant, gain_sign in (("A", "swapped"), ("B", "natural")):
        gains = marginal_gains(products, hyper["k"], gain_sign)
        run.check(f"MV_{variant}", np.array(gains))
        ratios = segment_ratios(gains, hyper["R"], hyper["R_extra"])
        run.check(f"ratio_{variant}", np.array(ratios))
        run.check(f"MVz_{variant}", (np.array(ratios) - hyper["R"]) / hyper["R_extra"])


def _check_tokens(run: Run, inputs: Inputs) -> None:
    features, segments = inputs["feat"], run.hyper["segments"]
    frames, tokens, _ = features.shape
    channels = None
    if run.hyper["channels"] == "lowvar":
        channels = low_variance_channels(features, segments)  # [S, D]
        run.check("channels_per_segment", np.stack([row.nonzero().squeeze(1).cpu() for row in channels]))
        channels = channels.repeat_interleave(torch.tensor(segments, device=features.device).diff().flatten(), 0)
    counts = [int(run.hyper["R"] * tokens)] * frames
    chosen = temporal_dpc(features, segments, counts, channels=channels)
    run.check("keep_idx", chosen.kept.flatten().nonzero().squeeze(1))
    run.check("rho", chosen.density)
    # delta, and gamma with it, jumps to another neighbour where two densities all but tie.
    if run.meta["float_rel_change_under_rel1e-6"] < 1e-4:
        run.check("delta", chosen.distance, tolerance=1e-4)
        run.check("gamma", chosen.density * chosen.distance, tolerance=1e-4)


def _products(inputs: Inputs) -> Products:
    return inner_products(frame_means(inputs["feat"])).cpu().numpy()


CHECKERS = {"mmgvid": check}
