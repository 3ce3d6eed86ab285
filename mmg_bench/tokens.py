"""Shared data types: a video's tokens before and after pruning, and inside the language model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from math import isfinite
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

_SHAPES = {
    "attention": "TN",
    "keys": "TNK",
    "mean_query_attention": "TN",
    "probe_attention": "TN",
    "frame_features": "TC",
    "query": "LD",
    "joint_features": "TNE",
    "joint_query": "ME",
    "times": "T",
}
"""Optional field of `VideoTokens` -> its axes; each letter stands for one size."""


@dataclass(frozen=True)
class VideoTokens:
    """The visual tokens of one video, as they would enter the language model (after the projector and pooling).

    Frames are in temporal order, tokens within a frame in raster order. The optional fields are filled only when a
    method asks for them (`Method.needs`); all are floating point and on one device.
    """

    features: Tensor
    """`[T, N, D]`: N tokens of width D for each of T frames."""
    grid: tuple[int, int]
    """`(H, W)` with `H * W == N`."""
    attention: Tensor | None = None
    """`[T, N]`: attention that each token receives in the vision tower (mean over heads and queries, pooled).

    If the tower has a class token: the attention that the class token gives.
    """
    keys: Tensor | None = None
    """`[T, N, K]`: head-mean keys of the vision tower layer that `attention` comes from, pooled."""
    mean_query_attention: Tensor | None = None
    """`[T, N]`: attention, in the same layer, of each frame's mean query to the mean key of each token's patches."""
    probe_attention: Tensor | None = None
    """`[T, N]`: attention of the vision tower's pooling probe (the SigLIP head), pooled."""
    frame_features: Tensor | None = None
    """`[T, C]`: the vision tower's pooled feature of each frame."""
    query: Tensor | None = None
    """`[L, D]`: embeddings of the text after the video, without the tokens of other videos and images."""
    joint_features: Tensor | None = None
    """`[T, N, E]`: tokens in the joint image-text space (CLIP, SigLIP)."""
    joint_query: Tensor | None = None
    """`[M, E]`: the text in the same space."""
    times: Tensor | None = None
    """`[T]`: when each frame is shown, in seconds from the start of the video."""

    def __post_init__(self) -> None:
        if self.features.dim() != 3 or 0 in self.features.shape:
            raise ValueError(
                f"VideoTokens.features has shape {list(self.features.shape)}; it must be [T, N, D] with no size 0"
            )
        if not self.features.is_floating_point():
            raise ValueError(f"VideoTokens.features has dtype {self.features.dtype}; it must be floating point")
        height, width = self.grid
        if min(height, width) < 1 or height * width != self.features.shape[1]:
            raise ValueError(
                f"VideoTokens.grid {self.grid} does not match the {self.features.shape[1]} tokens per frame (H * W)"
            )
        sizes = dict(zip("TND", self.features.shape, strict=True))
        for name, letters in _SHAPES.items():
            if (value := getattr(self, name)) is not None:
                self._check(name, value, letters, sizes)

    def _check(self, name: str, value: Tensor, letters: str, sizes: dict[str, int]) -> None:
        """Raise a ValueError unless an optional field matches the features and the `sizes` of the fields before it."""
        shape = list(value.shape)
        wanted = ", ".join(f"{letter}={sizes[letter]}" if letter in sizes else letter for letter in letters)
        fits = len(shape) == len(letters) and 0 not in shape
        if not fits or any(sizes.setdefault(letter, n) != n for letter, n in zip(letters, shape, strict=True)):
            raise ValueError(f"VideoTokens.{name} has shape {shape}; it must be [{wanted}] with no size 0")
        if not value.is_floating_point():
            raise ValueError(f"VideoTokens.{name} has dtype {value.dtype}; it must be floating point")
        if value.device != self.features.device:
            raise ValueError(f"VideoTokens.{name} is on {value.device}, but the features are on {self.features.device}")

    @property
    def frames(self) -> int:
        """T, the number of frames."""
        return self.features.shape[0]

    @property
    def tokens_per_frame(self) -> int:
        """N, the number of tokens of one frame."""
        return self.features.shape[1]

    @property
    def total(self) -> int:
        """T * N, the number of tokens of the video."""
        return self.frames * self.tokens_per_frame

    @property
    def flat(self) -> Tensor:
        """The tokens in raster order, `[T * N, D]`."""
        return self.features.flatten(0, 1)

    def to(self, device: torch.device) -> VideoTokens:
        """A copy on `device`, or the object itself if it is already there."""
        if device == self.features.device:
            return self
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        there: dict[str, Any] = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **there)

    def require(self, needs: Collection[str], who: str) -> None:
        """Raise a ValueError unless every optional field named in `needs` is set."""
        missing = sorted(name for name in needs if getattr(self, name) is None)
        if missing:
            raise ValueError(
                f"{who} needs {', '.join(missing)}, missing from these VideoTokens: use a model that supplies them, "
                "or fill the fields"
            )

    def require_finite(self, needs: Collection[str], who: str) -> None:
        """Raise a ValueError if the features or a field named in `needs` hold NaN or infinite values."""
        used = [name for name in ("features", *sorted(needs)) if getattr(self, name).numel()]
        # The extremes propagate NaN and infinities: one pass, and no temporary of the tensor's size. All extremes
        # are read at once because every read from a GPU waits for the work queued before it.
        extremes = torch.stack([e for name in used for e in torch.aminmax(getattr(self, name).detach())]).tolist()
        for name, low, high in zip(used, extremes[::2], extremes[1::2], strict=True):
            if not (isfinite(low) and isfinite(high)):
                raise ValueError(f"VideoTokens.{name} holds NaN or infinite values: {who} cannot rank such tokens")


OPTIONAL_FIELDS = tuple(f.name for f in fields(VideoTokens) if f.name not in ("features", "grid"))
"""The fields that a method can name in `Method.needs`."""
QUESTION_FIELDS = frozenset({"query", "joint_query"})
"""Fields that depend on the question: a method that needs one prunes once per question, not once per video."""


@dataclass(frozen=True)
class PrunedTokens:
    """The kept tokens, in the order in which they enter the language model."""

    features: Tensor
    """`[K, D]`."""
    positions: Tensor
    """`[K]` int64: flat raster indices into `T * N`, ascending; a merged token has the index of its anchor."""
    notes: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """What the method did, for reports (segments, budgets); the pipeline never reads it."""
    state: Any = field(default=None, compare=False)
    """Data for the method's own first stage inside the language model; only passed on (`LayerTokens.state`)."""

    def __len__(self) -> int:
        return self.positions.shape[0]

    def is_all_of(self, tokens: VideoTokens) -> bool:
        """Whether these are all tokens of the video, not even copied, as `keep_all` returns them."""
        return len(self) == tokens.total and self.features.data_ptr() == tokens.features.data_ptr()


class Heads(NamedTuple):
    """A layer's queries and keys for the sequence up to a video's last token, P tokens, float32."""

    queries: Tensor
    """`[heads, P, d]`, before the rotary embedding."""
    keys: Tensor
    """`[key-value heads, P, d]`, before the rotary embedding."""
    visual: Tensor
    """`[n]` int64: indices of the video's tokens among the P."""
    rotated: Tensor
    """`[key-value heads, n, d]`: keys of the video's tokens, after the rotary embedding."""


class Keys(NamedTuple):
    """A layer's keys for a whole prompt, after the rotary embedding: P tokens, float32."""

    keys: Tensor
    """`[key-value heads, P, d]`."""
    visual: Tensor
    """`[n]` int64: indices of the video's tokens among the P."""
    text: Tensor
    """`[L]` int64: indices of the text after the video."""


class Attention(Protocol):
    """Attention of the text after a video to the remaining visual tokens, recomputed for the requested rows."""

    def __call__(
        self, rows: Tensor | None = None, *, own: bool = False, rotary: bool = True, causal: bool = True
    ) -> Tensor:
        """Softmax weights `[heads, R, n]`, float32, of text tokens `rows` (`[R]` int64; None: the prompt's last).

        Computed in the layer before the one that prunes; with `own`, from the pruning layer's own queries and keys.
        `rotary=False` and `causal=False` serve methods that leave out the rotary embedding or the mask. The softmax
        runs over the whole sequence; only its visual part is returned. Raises ValueError for `rows` of a prompt without
        text after the video, and for `own` with `Method.before_mlp`.
        """

    def phases(self) -> tuple[Tensor, Tensor]:
        """A vector of ones, rotated to the positions of the text `[L, width]` and of the visual tokens `[n, width]`."""

    def heads(self) -> Heads:
        """Queries and keys of the layer that prunes. Raises ValueError with `Method.before_mlp`."""

    def keys(self) -> Keys:
        """Keys of the layer before the one that prunes."""

    def queries(self) -> Tensor:
        """Queries of the layer of `keys`: `[heads, P, d]` float32, scaled so that products with the keys are logits.

        Each of the P tokens attended to itself and to the tokens before it.
        """

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Apply the language model's final norm to hidden states `[..., D]`."""


@dataclass(frozen=True)
class LayerTokens:
    """The visual tokens of one video inside the language model, before a layer at which a method prunes.

    With `Method.before_mlp`: before the MLP of the preceding layer.
    """

    features: Tensor
    """`[n, D]`: hidden states of the remaining tokens."""
    previous: Tensor
    """`[n, D]`: hidden states of the same tokens when they entered the previous layer."""
    positions: Tensor
    """`[n]` int64: their flat raster indices into `T * N`."""
    text: Tensor
    """`[L, D]`: hidden states of the text after the video, without tokens of other videos and images; the last row is
    the prompt's last token."""
    total: int
    """T * N of the video."""
    stage: int
    """Index of this layer among the method's `layers`, from 0."""
    depth: int
    """Number of layers of the language model."""
    attention: Attention
    state: Any = None
    """The state returned by the previous stage, or by `select` before the first."""


@dataclass(frozen=True)
class Selection:
    """The tokens that a stage inside the language model keeps of `LayerTokens`."""

    index: Tensor
    """`[K]` int64 into the n tokens, in the order in which they go on; a merged token has the index of its anchor."""
    features: Tensor | None = None
    """`[K, D]`: their new hidden states; None if these do not change."""
    state: Any = None
    """Passed on to the next stage."""
    sizes: Tensor | None = None
    """`[K]`: the number of tokens each one stands for, for methods that set `weighs`. This layer and all later ones
    add the logarithms to the attention scores at every step (proportional attention). None: one each."""


def keep_all(tokens: VideoTokens) -> PrunedTokens:
    """All tokens, without a copy."""
    return PrunedTokens(tokens.flat, torch.arange(tokens.total, device=tokens.features.device))


def keep(tokens: VideoTokens, positions: Tensor, **notes: Any) -> PrunedTokens:
    """Hard pruning: the tokens at flat `positions` (`[K]`, in any order), unchanged and in raster order."""
    positions = positions.sort().values
    return PrunedTokens(tokens.flat[positions], positions, notes=notes)
