import torch

from golden_cases import Inputs, Run
from mmg_bench.methods._merge import neighbour_cosines
from mmg_bench.methods._ops import frame_means
from mmg_bench.methods.fastvid import FastVID, dynamic_segments, reduce_segments, token_counts, token_counts_of_runs


def check_fastvid(run: Run, inputs: Inputs) -> None:
    features, hyper = inputs["feat"], run.hyper
    frames, size, _ = features.shape
    variant = "video" if "llavavideo" in run.id else "onevision"
    lengths = dynamic_segments(neighbour_cosines(inputs["frame_global"]).tolist(), hyper["c"], hyper["tau"])
    budgets = [int(size * hyper["retention_ratio"])] * frames
    keep_remainder = variant == "video"
    salient, anchors = token_counts(lengths, budgets, size, hyper["d"], hyper["p"], variant, keep_remainder)
    reduced = reduce_segments(
        features,
        frame_means(features),
        inputs["siglip_head_attn"],
        lengths,
        salient,
        anchors,
        beta=hyper["beta"],
        k=4,
        own_anchors=variant == "onevision",
    )
    run.check("segment_lengths", lengths)
    run.check("keep_idx", reduced.keep_idx)
    run.check("tokens", reduced.tokens)
    if variant == "onevision":
        run.check("is_anchor", reduced.is_anchor.flatten()[reduced.keep_idx])
        run.check("anchors_per_frame", anchors)
        run.check("density_score", reduced.density_score.exp()[~reduced.is_salient].view(frames, -1))
        lead, tail = len(inputs["sys_embeds"]), len(inputs["text_embeds"])
        text = torch.arange(lead + features[..., 0].numel(), lead + features[..., 0].numel() + tail)
        run.check("position_ids", torch.cat([torch.arange(lead), lead + reduced.keep_idx.cpu(), text]))
    else:
        side = hyper["grid"]
        row = reduced.keep_idx // side  # over all frames
        newlines = row.unique() * (side + 1) + side
        sequence = torch.cat([reduced.keep_idx + row, newlines]).sort().values
        run.check("sequence_idx_in_grid_with_newline", sequence)
        run.check("num_newlines_kept", len(newlines))


def check_fastvid_qwen(run: Run, inputs: Inputs) -> None:
    """The version for Qwen2.5-VL."""
    features, hyper = inputs["feat"], dict(run.hyper)
    frames, size, _ = features.shape
    means = frame_means(features)
    similarity = neighbour_cosines(means).tolist()
    lengths = dynamic_segments(similarity, hyper["c"], hyper["tau"])
    budgets = [int(size * hyper["retention_ratio"])] * frames
    salient, anchors = token_counts_of_runs(lengths, budgets, size, hyper["d"], hyper["p"], similarity, hyper["ignore"])
    attention = inputs["siglip_head_attn"]
    reduced = reduce_segments(
        features, means, attention, lengths, salient, anchors, beta=hyper["beta"], k=4, own_anchors=False
    )
    run.check("segment_lengths", lengths)
    run.check("salient_per_frame", salient)
    run.check("anchors_per_frame", anchors)
    run.check("keep_idx", reduced.keep_idx)
    run.check("tokens", reduced.tokens)
    lead, tail = len(inputs["sys_embeds"]), len(inputs["text_embeds"])
    text = torch.arange(tail) + lead + frames * size
    run.check("position_ids", torch.cat([torch.arange(lead), lead + reduced.keep_idx.cpu(), text]))

    hyper["retention_ratio"] = budgets[0] / size  # officially a frame's budget is rounded down
    method = FastVID(variant="qwen", frame_source="mean", salience="mean_query", **hyper)
    pruned = method.prune(inputs.tokens(mean_query_attention=attention))
    assert method.positions == "original"
    assert torch.equal(pruned.positions, reduced.keep_idx)
    assert torch.equal(pruned.features, reduced.tokens)


CHECKERS = {"fastvid": check_fastvid, "fastvid_qwen": check_fastvid_qwen}
