import torch
import torch.nn.functional as F

from golden_cases import Inputs, Run
from llm_layer import layer_attention
from mmg_bench.methods._inside import most_attended
from mmg_bench.methods.pact import PACT, cluster, importance
from mmg_bench.models.attention import LayerAttention
from mmg_bench.models.inside import weighed
from mmg_bench.tokens import Heads, LayerTokens


class Offers:
    """The `tokens.Attention` of a layer; PACT asks for the heads alone."""

    def __init__(self, heads: Heads) -> None:
        self.heads = lambda: heads


def check(run: Run, inputs: Inputs) -> None:
    hyper, tokens, before, behind = run.hyper, inputs.tokens(), inputs["sys_embeds"], inputs["text_embeds"]
    start, n = len(before), tokens.total
    rows = torch.arange(start + n, device=inputs.device)
    visual = rows[start:]
    layer = _layer(torch.cat([before, tokens.flat]), rows, inputs, hyper["heads"])
    heads = Heads(layer.queries(rows, rotary=False), layer.keys(rotary=False), visual, layer.keys()[:, start:])

    important = most_attended(importance(heads, tokens.flat), int(n * hyper["share"]))
    run.check("important", important)
    keys = heads.rotated.transpose(0, 1).flatten(1)
    clusters = cluster(keys, important, alpha=hyper["alpha"], cutoff=hyper["cutoff"])
    run.check("assign", clusters.label.view(tokens.frames, -1))

    method = PACT(share=hyper["share"], cutoff=hyper["cutoff"], alpha=hyper["alpha"])
    everything = torch.arange(n, device=inputs.device)
    chosen = method.prune_inside(LayerTokens(tokens.flat, tokens.flat, everything, behind, n, 0, 28, Offers(heads)))
    run.check("keep_idx", chosen.index)
    run.check("sizes", chosen.sizes)
    run.check("tokens", chosen.features)
    ids = torch.cat([rows[:start], visual[chosen.index], start + n + torch.arange(len(behind), device=inputs.device)])
    assert method.positions == "original"
    run.check("position_ids", ids)

    hidden = torch.cat([before, chosen.features, behind])  # [S, D]
    left = _layer(hidden, ids, inputs, hyper["heads"])
    queries, keys = left.queries(torch.arange(len(hidden), device=inputs.device)), left.keys()
    values = (left.hidden @ inputs["v_proj"].T + inputs["v_bias"]).unflatten(1, (len(keys), -1)).transpose(0, 1)
    weights = F.pad(chosen.sizes.float().log(), (start, len(behind)))
    mask = weighed(None, weights[None], hidden[None])
    made = F.scaled_dot_product_attention(queries[None], keys[None], values[None], attn_mask=mask, enable_gqa=True)
    # sizes are half precision there
    run.check("attended", made[0].transpose(0, 1).flatten(1)[-len(behind) :], tolerance=2e-4)


def _layer(hidden: torch.Tensor, positions: torch.Tensor, inputs: Inputs, heads: int) -> LayerAttention:
    """The attention of the layer, of hidden states `[S, D]` that enter it."""
    hidden = F.rms_norm(hidden, hidden.shape[1:], inputs["norm"], eps=1e-6)
    layer = layer_attention(hidden, inputs["q_proj"], inputs["k_proj"], heads, positions, 10000.0)
    layer.module.q_proj = lambda x: F.linear(x, inputs["q_proj"], inputs["q_bias"])
    layer.module.k_proj = lambda x: F.linear(x, inputs["k_proj"], inputs["k_bias"])
    return layer


CHECKERS = {"pact": check}
