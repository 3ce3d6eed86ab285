import torch

from golden_cases import Inputs, Run
from mmg_bench.methods.aim import AIM, importance, merge_round
from mmg_bench.methods.tome import unmerged
from mmg_bench.tokens import Keys, LayerTokens

SOFTMAX = 1e-4
"""Of the largest importance: rank goes through five softmaxes of sharpened scores."""


class Offers:
    """The `tokens.Attention` of a layer; AIM asks for its queries and keys alone."""

    def __init__(self, keys: Keys, queries: torch.Tensor) -> None:
        self.keys, self.queries = (lambda: keys), (lambda: queries)


def check(run: Run, inputs: Inputs) -> None:
    {"merge": check_merge, "prune": check_prune}[run.hyper["part"]](run, inputs)


def check_merge(run: Run, inputs: Inputs) -> None:
    state = unmerged(inputs["feat"])
    for r in run.hyper["r"]:
        state = merge_round(state, r)
    run.check("tokens", state.tokens)


def check_prune(run: Run, inputs: Inputs) -> None:
    hyper, keys = run.hyper, inputs["keys"]
    start, n = hyper["start"], hyper["tokens"]
    queries = inputs["queries"] / keys.shape[-1] ** 0.5
    run.check("importance", importance(queries, keys, hyper["tau_imp"], hyper["iters"]), tolerance=SOFTMAX)

    places = torch.arange(keys.shape[1], device=keys.device)
    _, visual, text = places.split([start, n, hyper["text"]])
    method, depth = AIM(tau_imp=hyper["tau_imp"], iters=hyper["iters"]), hyper["layers"]
    offers, hidden = Offers(Keys(keys, visual, text), queries), torch.zeros(n, 4, device=keys.device)
    before = LayerTokens(hidden, hidden, places[:n], hidden[:1], n, 0, depth, offers)
    chosen = method.prune_inside(before)
    run.check("keep_idx", chosen.index)
    if "counts" not in run.names:
        return
    assert method.layers(depth) == tuple(range(15, 23))
    counts = []
    for stage in range(8):
        later = LayerTokens(hidden, hidden, places[:n], hidden[:1], n, stage, depth, offers, chosen.state)
        counts.append(len(method.prune_inside(later).index))
    run.check("counts", torch.tensor([*counts[:-1], counts[-1] - 1]))  # officially none is left


CHECKERS = {"aim": check}
