"""The counts that docs/methods/mmg_vid.md gives to explain its table of parts hold for the embedded model."""

import re
from collections import Counter
from pathlib import Path

import pytest

from mmg_bench import config as cfg
from mmg_bench import specs
from mmg_bench.benchmarks.embedded.dataset import VIDEOS, video_file
from mmg_bench.benchmarks.video import read_clip
from mmg_bench.methods.mmg_vid import MMGVid
from mmg_bench.models.loading import VideoLLM

PAGE = Path(__file__).parents[2] / "docs" / "methods" / "mmg_vid.md"
SENTENCE = r"at R = 10 % the segments of low gain, (\d+) % of all frames, .* \((\d+) % at R = 15 %, none at 25 %\)"


@pytest.fixture(scope="module")
def videos():
    llm = VideoLLM(specs.model_spec(cfg.load("model", "embedded")))
    clips = (read_clip(video_file(f"test-{i:04d}.mp4"), llm.spec.frames) for i in range(VIDEOS))
    return [llm.encode(llm.preprocess(clip.pixels, clip.timing), frozenset()).tokens[0] for clip in clips]


def percent_of_frames_with_one_token(videos, retention_ratio):
    method = MMGVid(retention_ratio=retention_ratio)
    kept = [Counter((method.prune(v).positions // v.features.shape[1]).tolist()) for v in videos]
    return 100 * sum(n == 1 for frames in kept for n in frames.values()) / sum(v.features.shape[0] for v in videos)


def test_frames_that_are_left_one_token(videos):
    (told,) = re.findall(SENTENCE, " ".join(PAGE.read_text(encoding="utf-8").split()))
    counted = [round(percent_of_frames_with_one_token(videos, ratio)) for ratio in (0.1, 0.15, 0.25)]
    assert counted == [*map(int, told), 0]
