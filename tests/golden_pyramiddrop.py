import numpy as np
import torch
from torch import Tensor

from golden_cases import Inputs, Run
from llm_layer import layer_attention
from mmg_bench.methods.pdrop import keep_by_rank

TOLERANCE = 1e-4


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def check_pdrop(run: Run, inputs: Inputs) -> None:
    hyper, visual = run.hyper, inputs.tokens().flat
    left = torch.arange(len(visual), device=visual.device)  # flat indices of the tokens still there
    first = len(inputs["sys_embeds"])
    for stage, ratio in enumerate(hyper["image_token_ratio_list"]):
        hidden = torch.cat([inputs["sys_embeds"], visual[left], inputs["text_embeds"]])
        normalised = rms_norm(hidden, inputs["ln_weight"][stage], hyper["rms_eps"])
        attention = layer_attention(
            normalised,
            inputs["q_proj"][stage],
            inputs["k_proj"][stage],
            hyper["num_heads"],
            torch.arange(len(hidden), device=hidden.device),  # renumbered at every stage
            hyper["rope_base"],
        )
        row = attention.weights(torch.tensor([len(hidden) - 1], device=hidden.device)).mean(0)[
            0, first : first + len(left)
        ]
        run.check(f"stage{stage + 1}_attn", row, tolerance=TOLERANCE)
        left = left[keep_by_rank(row, len(visual), ratio)]
        run.check(f"stage{stage + 1}_keep_idx", left)
        run.check(f"stage{stage + 1}_position_ids", np.arange(len(hidden) - len(row) + len(left)))


CHECKERS = {"pyramiddrop": check_pdrop}
