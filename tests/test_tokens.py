"""What does not go together is no video."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmg_bench.tokens import VideoTokens

FEATURES = torch.ones(2, 6, 4)
GOOD: dict[str, Any] = {
    "attention": torch.ones(2, 6),
    "keys": torch.ones(2, 6, 3),
    "mean_query_attention": torch.ones(2, 6),
    "probe_attention": torch.ones(2, 6),
    "frame_features": torch.ones(2, 8),
    "query": torch.ones(5, 4),
    "joint_features": torch.ones(2, 6, 7),
    "joint_query": torch.ones(1, 7),
    "times": torch.ones(2),
}


def test_everything_together() -> None:
    tokens = VideoTokens(FEATURES, (2, 3), **GOOD)
    assert (tokens.frames, tokens.tokens_per_frame, tokens.total) == (2, 6, 12)
    assert tokens.flat.shape == (12, 4)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"features": FEATURES[0]}, r"VideoTokens\.features has shape \[6, 4\]; it must be \[T, N, D\]"),
        ({"features": FEATURES[:0]}, r"VideoTokens\.features has shape \[0, 6, 4\]"),
        ({"features": FEATURES.long()}, r"VideoTokens\.features has dtype torch.int64"),
        ({"grid": (2, 2)}, r"VideoTokens\.grid \(2, 2\) does not match the 6 tokens"),
        ({"grid": (-2, -3)}, r"VideoTokens\.grid \(-2, -3\) does not match the 6"),
        ({"attention": torch.ones(2, 6, 1)}, r"attention has shape \[2, 6, 1\]; it must be \[T=2, N=6\]"),
        ({"keys": torch.ones(2, 5, 3)}, r"keys has shape \[2, 5, 3\]; it must be \[T=2, N=6, K"),
        ({"keys": torch.ones(2, 6, 0)}, r"keys has shape \[2, 6, 0\].*with no size 0"),
        (
            {"probe_attention": torch.ones(2, 6).int()},
            "probe_attention has dtype torch.int32; it must be floating point",
        ),
        ({"frame_features": torch.ones(2)}, r"frame_features has shape \[2\]; it must be \[T=2, C\]"),
        ({"query": torch.ones(5, 3)}, r"query has shape \[5, 3\]; it must be \[L, D=4\]"),
        ({"query": torch.ones(0, 4)}, r"query has shape \[0, 4\].*with no size 0"),
        ({"joint_query": torch.ones(1, 6)}, r"joint_query has shape \[1, 6\]; it must be \[M, E=7\]"),
        ({"times": torch.ones(3)}, r"times has shape \[3\]; it must be \[T=2\]"),
        ({"attention": torch.ones(2, 6, device="meta")}, "attention is on meta, but the features are on cpu"),
    ],
)
def test_what_does_not_fit_is_named(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        VideoTokens(**{"features": FEATURES, "grid": (2, 3), **GOOD, **fields})


def test_needs_are_named() -> None:
    tokens = VideoTokens(FEATURES, (2, 3), keys=GOOD["keys"])
    with pytest.raises(ValueError, match="a method needs attention, query, missing from these VideoTokens"):
        tokens.require({"query", "keys", "attention"}, "a method")
    keys = GOOD["keys"].clone()
    keys[1, 2, 0] = torch.inf
    tokens = VideoTokens(FEATURES, (2, 3), keys=keys)
    tokens.require_finite((), "a method")
    with pytest.raises(ValueError, match=r"VideoTokens\.keys holds NaN or infinite values: a method cannot rank"):
        tokens.require_finite({"keys"}, "a method")
