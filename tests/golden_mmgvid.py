"""MMG-Vid has no official code: these vectors come from an independent float64 oracle of its three stages."""

import numpy as np
import torch
from torch import Tensor

from golden_cases import Inputs, Run
from mmg_bench.methods._ops import frame_means
from mmg_bench.methods.mmg_vid import (
    Chosen,
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
    chosen, channels = _chosen(run, inputs)
    if channels is not None:
        run.check("channels_per_segment", np.stack([row.nonzero().squeeze(1).cpu() for row in channels]))
    run.check("keep_idx", chosen.kept.flatten().nonzero().squeeze(1))
    run.check("rho", chosen.density)
    # delta, and gamma with it, jumps to another neighbour where two densities all but tie.
    if run.meta["float_rel_change_under_rel1e-6"] < 1e-4:
        run.check("delta", chosen.distance, tolerance=1e-4)
        run.check("gamma", chosen.density * chosen.distance, tolerance=1e-4)


def _check_stc(run: Run, inputs: Inputs) -> None:
    """Stage 3 in the compiled code of another project (lern-to-write/STC), which returns the kept tokens alone."""
    run.check("keep_idx", _chosen(run, inputs)[0].kept.flatten().nonzero().squeeze(1))


def _chosen(run: Run, inputs: Inputs) -> tuple[Chosen, Tensor | None]:
    """What stage 3 keeps with the same number in every frame, and the channels `[S, D]` it goes by, if not all."""
    features, segments = inputs["feat"], [(start, stop) for start, stop in run.hyper["segments"]]
    frames, tokens, _ = features.shape
    counts = [int(run.hyper["R"] * tokens)] * frames
    if run.hyper["channels"] != "lowvar":
        return temporal_dpc(features, segments, counts), None
    channels = low_variance_channels(features, segments)
    of_frames = channels.repeat_interleave(torch.tensor(segments, device=features.device).diff().flatten(), 0)
    return temporal_dpc(features, segments, counts, channels=of_frames), channels


def _products(inputs: Inputs) -> Products:
    return inner_products(frame_means(inputs["feat"])).cpu().numpy()


CHECKERS = {"mmgvid": check, "mmgvid_stc": _check_stc}
