from golden_cases import Inputs, Run
from mmg_bench.methods import vidcom2
from mmg_bench.tokens import VideoTokens


def check(run: Run, inputs: Inputs) -> None:
    tokens = inputs.tokens()
    method = vidcom2.VidCom2(retention_ratio=run.hyper["base_scale"])
    channels = vidcom2.steady_channels(tokens.features)
    video_score, frame_score = vidcom2.token_scores(tokens.features, channels)
    scales = vidcom2.frame_scales(video_score, method.retention_ratio, method.temperature)
    run.check("channels", channels.sort().values)
    run.check("video_score", video_score)
    run.check("frame_score", frame_score)
    run.check("frame_scale", scales)
    run.check("frame_keep_num", vidcom2.frame_budgets(scales, tokens.tokens_per_frame))
    kept = method.prune(tokens).positions
    run.check("keep_idx", kept)
    if "sequence_src_in_grid_with_newline" in run.names:
        # The layout of LLaVA-Video has a newline after each row; without them the official sequence is ours.
        width = run.hyper["grid"]
        sequence = run.output("sequence_src_in_grid_with_newline")
        row, column = sequence // (width + 1), sequence % (width + 1)
        is_token = column < width
        assert (row * width + column)[is_token].tolist() == kept.tolist()


def check_vllm(run: Run, inputs: Inputs) -> None:
    """vLLM's function, which corrects the total."""
    tokens = VideoTokens(inputs["feat"], tuple(run.hyper["grid"]))
    run.check("keep_idx", vidcom2.VidCom2(1 - run.hyper["q"], exact_total=True).prune(tokens).positions)


CHECKERS = {"vidcom2": check, "vidcom2_vllm": check_vllm}
