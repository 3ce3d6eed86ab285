import numpy as np

from golden_cases import Inputs, Run
from mmg_bench.methods._merge import unit
from mmg_bench.methods.llava_scissor import LlavaScissor, absorb, two_stage_components


def check(run: Run, inputs: Inputs) -> None:
    tokens = inputs.tokens()
    x = unit(tokens.features)
    found = two_stage_components(tokens.features, x @ x.mT, run.hyper["tau"])
    per_frame = np.bincount(found.spatial.keys.cpu() // tokens.tokens_per_frame, minlength=tokens.frames)
    first = np.cumsum(per_frame) - per_frame  # component number at which each frame starts
    run.check("spatial_components_per_frame", per_frame)
    run.check("spatial_component", found.spatial.label.view(tokens.frames, -1).cpu().numpy() - first[:, None])
    run.check("temporal_component", found.temporal.label)
    run.check("final_assign", absorb(tokens.features, found.tokens)[1])
    run.check("tokens", LlavaScissor(tau=run.hyper["tau"]).prune(tokens).features)


CHECKERS = {"llava_scissor": check}
