import torch
import torch.nn.functional as F
from torch import Tensor

from golden_cases import Inputs, Run
from mmg_bench.methods.dart import DART
from mmg_bench.tokens import Keys, LayerTokens


class Offers:
    """The `tokens.Attention` of a layer; DART asks for keys and the final norm alone."""

    def __init__(self, keys: Keys, norm: Tensor) -> None:
        self.keys, self.norm = (lambda: keys), norm

    def final_norm(self, hidden: Tensor) -> Tensor:
        return F.rms_norm(hidden, hidden.shape[-1:], self.norm, eps=1e-6)


def check(run: Run, inputs: Inputs) -> None:
    hyper = run.hyper
    start, n = hyper["start"], hyper["tokens"]
    if "hidden" in inputs:
        hidden = inputs["hidden"]
    else:
        hidden = torch.cat([inputs["sys_embeds"], inputs["feat"].flatten(0, 1), inputs["text_embeds"]])
    places = torch.arange(len(hidden), device=hidden.device)
    _, visual, text = places.split([start, n, hyper["text"]])
    ratio = hyper["max_num_trunction"] / n if "max_num_trunction" in hyper else 1 - hyper["reduction_ratio"]
    method = DART(ratio, pivot_image_token=hyper["pivot_image_token"], pivot_text_token=hyper["pivot_text_token"])
    offers = Offers(Keys(inputs["keys"], visual, text), inputs["norm"])
    before = LayerTokens(hidden[visual], hidden[visual], places[:n], hidden[text], n, 0, 28, offers)
    kept = method.prune_inside(before).index
    run.check("keep_idx", kept)
    assert method.positions == "original"
    run.check("position_ids", torch.cat([places[:start], visual[kept], text]))


CHECKERS = {"dart": check}
