import torch

from golden_cases import Inputs, Run
from llm_layer import rotary_embedding
from mmg_bench.methods.sparsevlm import priority_heads, prune_stage, rotary_bias, stage_budgets, text_raters
from mmg_bench.models.attention import rotate

TOLERANCE = 1e-4


def check_sparsevlm(run: Run, inputs: Inputs) -> None:
    hyper, tokens = run.hyper, inputs.tokens()
    second = hyper["v2"]
    raters = text_raters(tokens.flat, inputs["text_embeds"])
    run.check("rater_idx", raters)
    mean = {110: 192, 118: 192, 36: 128, 60: 128, 26: 96, 28: 96, 17: 64, 20: 64}[hyper["official_list_of_576"][-1]]
    budgets = stage_budgets(2 if second else 1, mean / 576, tokens.total)
    assert budgets == hyper["budgets"]

    first, text = len(inputs["sys_embeds"]), len(inputs["text_embeds"])
    features = tokens.flat
    device = features.device
    positions = torch.arange(first + len(features) + text, device=device)
    for stage, budget in enumerate(hyper["budgets"], start=1):
        # the rows hang on what earlier stages merged: each stage is checked from the official input
        attention = torch.from_numpy(run.output(f"stage{stage}_input_text_to_visual_attn")).to(device)
        if run.flagged(f"stage{stage}_input_text_to_visual_attn"):
            return
        if hyper["attn_rows"] == "all":
            attention = attention[:, raters]
        if second:
            width = hyper["head_dim"]
            ones = rotate(torch.ones(len(positions), width, device=device), rotary_embedding(positions, width))
            # ill-conditioned where phases cancel: the product must be the official one, before rows are taken from it
            bias = rotary_bias(ones, ones)[first + len(features) :, first : first + len(features)]
            attention = attention / bias[raters]
            heads = priority_heads(attention)
            run.check(f"stage{stage}_heads", heads)
            attention = attention[heads]
        score = attention.mean((0, 1))
        # on a GPU the product itself is rounded otherwise, and that shows where phases cancel
        run.check(f"stage{stage}_score", score, tolerance=(5 if second and score.is_cuda else 1) * TOLERANCE)
        selection = prune_stage(features, score, budget, merge=not second)
        count = min(budget, len(score) - 1)
        run.check(f"stage{stage}_keep_idx", selection.index[:count])
        if second:
            features = features[selection.index]
            behind = positions[len(positions) - text :]
            positions = torch.cat([positions[:first], positions[first + selection.index], behind])
        else:
            assert selection.features is not None
            run.check(f"stage{stage}_merged_tokens", selection.features[count:], tolerance=TOLERANCE)
            run.check(f"stage{stage}_cluster_num", len(selection.index) - count)
            features = selection.features
            positions = torch.arange(first + len(features) + text, device=device)
    run.check("final_tokens", features, tolerance=TOLERANCE)
    run.check("final_position_ids", positions)


CHECKERS = {"sparsevlm": check_sparsevlm}
