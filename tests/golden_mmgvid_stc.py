"""Stage 3 of MMG-Vid as compiled code of another project has it (lern-to-write/STC), frame after frame of a scene."""

import torch

from golden_cases import Inputs, Run
from mmg_bench.methods.mmg_vid import low_variance_channels, temporal_dpc


def check(run: Run, inputs: Inputs) -> None:
    features, segments = inputs["feat"], [(start, stop) for start, stop in run.hyper["segments"]]
    frames, tokens, _ = features.shape
    channels = None
    if run.hyper["channels"] == "lowvar":
        lengths = torch.tensor(segments, device=features.device).diff().flatten()
        channels = low_variance_channels(features, segments).repeat_interleave(lengths, 0)
    kept = temporal_dpc(features, segments, [int(run.hyper["R"] * tokens)] * frames, channels=channels).kept
    run.check("keep_idx", kept.flatten().nonzero().squeeze(1))


CHECKERS = {"mmgvid_stc": check}
