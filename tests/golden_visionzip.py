import torch
from torch import Tensor

from golden_cases import Inputs, Run
from mmg_bench.methods.visionzip import zip_frames


def _newline_grid(tokens: Tensor, positions: Tensor, newline: Tensor, side: int) -> Tensor:
    """The official layout for LLaVA-Video: each frame's tokens by position, a newline after each of its rows."""
    rows = []
    for frame_tokens, frame_positions in zip(tokens, positions, strict=True):
        order = frame_positions.argsort()
        row_of = frame_positions[order] // side
        for row in range(side):
            rows += [frame_tokens[order][row_of == row], newline.view(1, -1)]
    return torch.cat(rows)


def check_visionzip(run: Run, inputs: Inputs) -> None:
    features, hyper = inputs["feat"], run.hyper
    clip = "dominant" in hyper
    if clip:
        attention, keys = inputs["clip_cls_attn"][:, :, 1:].sum(1), inputs["clip_key_metric"][:, 1:]
        dominant, contextual = hyper["dominant"] - 1, hyper["contextual"]  # the official count has the class token
    else:
        attention, keys = inputs["siglip_attn"], inputs["siglip_key_metric"]
        dominant = int(hyper["spatial_tokens"] * hyper["dominant_ratio"])
        contextual = hyper["spatial_tokens"] - dominant
    zipped = zip_frames(features, attention, keys, dominant, contextual)

    frames, size = features.shape[:2]
    offset = torch.arange(frames, device=features.device).unsqueeze(1) * size
    run.check("dominant_idx", (zipped.by_attention.sort().values + offset).flatten())
    run.check("contextual_anchor", zipped.anchors)
    run.check("assign", zipped.assign)
    if clip:
        run.check("dominant_by_attention", zipped.by_attention)
        run.check("tokens", torch.cat([inputs["clip_cls_hidden"], zipped.tokens], 1))
    elif hyper["newline_position"] == "grid":
        # The official slip: positions in attention order beside tokens in raster order.
        positions = torch.cat([zipped.by_attention, zipped.anchors], 1)
        run.check("tokens", _newline_grid(zipped.tokens, positions, inputs["newline"], inputs.grid[1]))
    else:
        run.check("tokens", zipped.tokens)


CHECKERS = {"visionzip": check_visionzip}
