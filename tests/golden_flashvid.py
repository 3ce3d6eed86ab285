import numpy as np

from golden_cases import Inputs, Run
from mmg_bench.methods import flashvid

TOLERANCE = 1e-4


def check(run: Run, inputs: Inputs) -> None:
    if "pruning_layer" in run.hyper:
        _check_inner(run, inputs)
    else:
        _check_outer(run, inputs)


def _check_outer(run: Run, inputs: Inputs) -> None:
    method = flashvid.FlashVID(**run.hyper)
    tokens = inputs.tokens(attention=inputs["siglip_attn"])
    lengths = flashvid.segment_lengths(tokens.features, method.segment_threshold, method.min_segment_num)
    official = run.output("segment_lengths")
    if run.flagged("segment_lengths"):
        assert sum(lengths) == official.sum()
        return
    assert lengths == official[official > 0].tolist()  # officially some of a short video's have no frames

    budgets = flashvid.frame_budgets(tokens.tokens_per_frame, method.retention_ratio, method.expansion, method.alpha)
    run.check("num_adts_per_frame", np.int64(budgets.adts))
    run.check("num_tstm_per_frame", np.int64(budgets.tstm))
    out = flashvid.compress(
        tokens.features,
        inputs["siglip_attn"],
        lengths,
        budgets,
        method.temporal_threshold,
        method.token_selection_method,
    )
    run.check("adts_idx", out.adts.flatten())
    run.check("tokens_after_temporal_merge_per_frame", out.left)
    pruned = method.prune(tokens)
    assert pruned.positions.tolist() == out.anchors.tolist()
    _check_merged(run, pruned.features.cpu().numpy(), pruned.positions.cpu().numpy(), tokens.tokens_per_frame)


def _check_merged(run: Run, features: np.ndarray, anchors: np.ndarray, per_frame: int) -> None:
    official = run.output("anchor_idx")
    assert np.bincount(anchors // per_frame).tolist() == np.bincount(official // per_frame).tolist()
    if not run.meta.get("indices_stable_exact_cdist", True):
        return  # two clusters a frame: officially, rounding decides between mutual neighbours that tie
    run.check("anchor_idx", anchors)
    if run.flagged("anchor_idx"):
        return  # the tokens are in the order of their anchors
    # The order among equal anchors is unspecified: compare with each such group sorted by the first channel.
    expected = run.output("tokens")
    features, expected = (rows[np.lexsort((rows[:, 0], official))] for rows in (features, expected))
    if not run.flagged("tokens"):
        assert np.abs(features - expected).max() <= TOLERANCE * np.abs(expected).max()


def _check_inner(run: Run, inputs: Inputs) -> None:
    first, visual = len(inputs["sys_embeds"]), inputs.tokens().total
    attention = inputs["llm_last_row"].mean(0)  # [L]
    kept = flashvid.second_stage(attention[first : first + visual], run.hyper["llm_retention_ratio"]).cpu()
    run.check("keep_idx", kept)
    positions = np.arange(len(attention))  # original position ids stay
    run.check("position_ids", np.r_[positions[:first], positions[first + kept], positions[first + visual :]])


CHECKERS = {"flashvid": check}
