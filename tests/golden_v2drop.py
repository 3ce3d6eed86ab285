import torch

from golden_cases import Inputs, Run
from mmg_bench.methods.v2drop import V2Drop
from mmg_bench.tokens import LayerTokens


def check(run: Run, inputs: Inputs) -> None:
    hyper, left = run.hyper, torch.arange(run.hyper["tokens"])
    first, second, last = hyper["keep_ratios"]
    assert last == 0
    method = V2Drop(first=first, second=second)
    for stage, _ in enumerate(hyper["stages"]):
        hidden, previous = (inputs[f"stage{stage + 1}_{name}"] for name in ("hidden", "previous"))
        text = torch.zeros(1, hidden.shape[1], device=hidden.device)
        tokens = LayerTokens(hidden, previous, left, text, hyper["tokens"], stage, hyper["layers"], _no_attention)
        left = left[method.prune_inside(tokens).index.cpu()]
        run.check(f"stage{stage + 1}_keep_idx", left)
        before, behind = torch.arange(hyper["start"]), hyper["start"] + hyper["tokens"] + torch.arange(hyper["text"])
        run.check(f"stage{stage + 1}_position_ids", torch.cat([before, hyper["start"] + left, behind]))


def _no_attention(*args: object, **kwargs: object) -> torch.Tensor:
    raise AssertionError("V2Drop looks at no attention")


CHECKERS = {"v2drop": check}
