import torch
import torch.nn.functional as F
from torch import Tensor

from golden_cases import Inputs, Run
from mmg_bench.methods.framefusion import FrameFusion
from mmg_bench.tokens import LayerTokens

HEADS = 4


def layer(hidden: Tensor, mix: Tensor, drift: Tensor) -> Tensor:
    """What stands for the MLP of one layer and the attention of the next in these runs: each row of `[S, D]` alone."""
    turned = 0.25 * F.normalize(torch.tanh(hidden @ mix), dim=-1) + 1.5 * F.normalize(drift, dim=-1)
    return hidden + hidden.norm(dim=-1, keepdim=True) * turned


def last_row(hidden: Tensor, q_proj: Tensor, k_proj: Tensor) -> Tensor:
    """Attention of the last of `[S, D]`, `[heads, 1, S]`."""
    hidden = F.normalize(hidden, dim=-1) * hidden.shape[1] ** 0.5
    q, k = (x.unflatten(-1, (HEADS, -1)).transpose(0, 1) for x in (hidden[-1:] @ q_proj, hidden @ k_proj))
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)


def check(run: Run, inputs: Inputs) -> None:
    hyper, tokens = run.hyper, inputs.tokens()
    method = FrameFusion(hyper["cost"], hyper["similarity_lower_bound"], hyper["ratio_lower_bound"])
    pruned = method.prune(tokens)
    visual, positions, state, alive = pruned.features, pruned.positions, pruned.state, [pruned.positions]
    before, behind = inputs["sys_embeds"], inputs["text_embeds"]
    for stage, drift in enumerate(inputs["drift"]):
        if method.finished(state):
            break
        before, visual, behind = (layer(part, inputs["mix"], drift) for part in (before, visual, behind))
        row = last_row(torch.cat([before, visual, behind]), inputs["q_proj"], inputs["k_proj"])
        row = row[..., len(before) : len(before) + len(visual)]
        chosen = method.prune_inside(
            LayerTokens(
                visual, visual, positions, behind, tokens.total, stage, hyper["num_layers"], lambda r=row: r, state
            )
        )
        visual = visual[chosen.index] if chosen.features is None else chosen.features
        positions, state = positions[chosen.index], chosen.state
        alive.append(positions)
    run.check("removed", state.removed)
    run.check("kept_counts", [len(kept) for kept in alive])
    run.check("keep_idx", torch.cat(alive))
    run.check("tokens", visual)


CHECKERS = {"framefusion": check}
