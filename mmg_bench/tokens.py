"""The values that everything speaks in: a video's tokens before and after pruning, and inside the language model."""

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
}
"""Optional field of `VideoTokens` -> its axes; one letter is one size."""


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

    Of a tower with a class token, what that gives.
    """
    keys: Tensor | None = None
    """`[T, N, K]`: head-mean keys of the vision tower's layer that `attention` comes from, pooled."""
    mean_query_attention: Tensor | None = None
    """`[T, N]`: attention, in that layer, of the mean query of each frame to the mean key of each token's patches."""
    probe_attention: Tensor | None = None
    """`[T, N]`: attention of the vision tower's pooling probe (the SigLIP head), pooled."""
    frame_features: Tensor | None = None
    """`[T, C]`: the vision tower's pooled feature of each frame."""
    query: Tensor | None = None
    """`[L, D]`: embeddings of the text that follows the video, without tokens of other videos and images."""
    joint_features: Tensor | None = None
    """`[T, N, E]`: tokens in the space that images and texts share (CLIP, SigLIP)."""
    joint_query: Tensor | None = None
    """`[M, E]`: the text in that space."""

    def __post_init__(self) -> None:
        if self.features.dim() != 3 or 0 in self.features.shape:
            raise ValueError(
                f"VideoTokens.features has shape {list(self.features.shape)}; it must be [T, N, D] with none of them 0"
            )
        if not self.features.is_floating_point():
            raise ValueError(f"VideoTokens.features has dtype {self.features.dtype}; it must be floating point")
        height, width = self.grid
        if min(height, width) < 1 or height * width != self.features.shape[1]:
            raise ValueError(
                f"VideoTokens.grid {self.grid} does not make up the {self.features.shape[1]} tokens of a frame"
            )
        sizes = dict(zip("TND", self.features.shape, strict=True))
        for name, letters in _SHAPES.items():
            if (value := getattr(self, name)) is not None:
                self._check(name, value, letters, sizes)

    def _check(self, name: str, value: Tensor, letters: str, sizes: dict[str, int]) -> None:
        """Raise a ValueError unless an optional field goes with the features, and with the `sizes` seen before it."""
        shape = list(value.shape)
        wanted = ", ".join(f"{letter}={sizes[letter]}" if letter in sizes else letter for letter in letters)
        fits = len(shape) == len(letters) and 0 not in shape
        if not fits or any(sizes.setdefault(letter, n) != n for letter, n in zip(letters, shape, strict=True)):
            raise ValueError(f"VideoTokens.{name} has shape {shape}; it must be [{wanted}] with none of them 0")
        if not value.is_floating_point():
            raise ValueError(f"VideoTokens.{name} has dtype {value.dtype}; it must be floating point")
        if value.device != self.features.device:
            raise ValueError(f"VideoTokens.{name} is on {value.device}, the features are on {self.features.device}")

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
        """The same on a device."""
        if device == self.features.device:
            return self
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        there: dict[str, Any] = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **there)

    def require(self, needs: Collection[str], who: str) -> None:
        """Raise a ValueError unless every optional field named in `needs` is there."""
        missing = sorted(name for name in needs if getattr(self, name) is None)
        if missing:
            raise ValueError(
                f"{who} needs {', '.join(missing)}, which these VideoTokens lack: use a model that supplies them, "
                "or fill the fields"
            )

    def require_finite(self, needs: Collection[str], who: str) -> None:
        """Raise a ValueError if the features or a field named in `needs` hold NaN or infinite values."""
        used = [name for name in ("features", *sorted(needs)) if getattr(self, name).numel()]
        # The extremes carry NaN and infinities along: one pass, and no temporary of the tensor's size. All of them
        # are read at once, for on a GPU every read waits for the work before it.
        extremes = torch.stack([e for name in used for e in torch.aminmax(getattr(self, name).detach())]).tolist()
        for name, low, high in zip(used, extremes[::2], extremes[1::2], strict=True):
            if not (isfinite(low) and isfinite(high)):
                raise ValueError(f"VideoTokens.{name} holds NaN or infinite values: {who} cannot rank such tokens")


OPTIONAL_FIELDS = tuple(f.name for f in fields(VideoTokens) if f.name not in ("features", "grid"))
"""What a method can name in `Method.needs`."""
QUESTION_FIELDS = frozenset({"query", "joint_query"})
"""Those that differ from question to question: a method that needs one prunes once a question, not once a video."""


@dataclass(frozen=True)
class PrunedTokens:
    """The tokens that are left, in the order in which they enter the language model."""

    features: Tensor
    """`[K, D]`."""
    positions: Tensor
    """`[K]` int64: flat raster indices into `T * N`, ascending; of a merged token, its anchor's."""
    notes: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """What the method did, for reports (segments, budgets); never read by the pipeline."""
    state: Any = field(default=None, compare=False)
    """What the method's own stage inside the language model needs to know; only handed on (`LayerTokens.state`)."""

    def __len__(self) -> int:
        return self.positions.shape[0]


class Heads(NamedTuple):
    """What a layer's attention makes of a sequence up to a video's last token, P tokens, float32."""

    queries: Tensor
    """`[heads, P, d]`, before the rotary embedding."""
    keys: Tensor
    """`[key-value heads, P, d]`, before it too."""
    visual: Tensor
    """`[n]` int64: which of the P are the video's."""
    rotated: Tensor
    """`[key-value heads, n, d]`: their keys, behind it."""


class Keys(NamedTuple):
    """Keys that a layer's attention compared, behind the rotary embedding: of a whole prompt, P tokens, float32."""

    keys: Tensor
    """`[key-value heads, P, d]`."""
    visual: Tensor
    """`[n]` int64: which of the P are the video's."""
    text: Tensor
    """`[L]` int64: which are those of the text behind it."""


class Attention(Protocol):
    """Attention of the text behind a video to the visual tokens that are left, recomputed for the rows asked for."""

    def __call__(
        self, rows: Tensor | None = None, *, own: bool = False, rotary: bool = True, causal: bool = True
    ) -> Tensor:
        """Softmax weights `[heads, R, n]`, float32, of text tokens `rows` (`[R]` int64; None: the prompt's last).

        Of the layer before the one that prunes, or of its `own` queries and keys. `rotary` and `causal` can be left
        out for methods that do so. The softmax runs over the whole sequence, of which the visual part is returned.
        """

    def phases(self) -> tuple[Tensor, Tensor]:
        """A vector of ones rotated to the positions of the text `[L, width]` and of the visual tokens `[n, width]`."""

    def heads(self) -> Heads:
        """Queries and keys of the layer that prunes."""

    def keys(self) -> Keys:
        """Keys of the layer before the one that prunes."""

    def queries(self) -> Tensor:
        """What that layer compared with its `keys`: `[heads, P, d]` float32, scaled as the softmax takes the products.

        Each of the P tokens saw itself and those before it.
        """

    def final_norm(self, hidden: Tensor) -> Tensor:
        """Hidden states `[..., D]` behind the norm that the language model ends with."""


@dataclass(frozen=True)
class LayerTokens:
    """The visual tokens of one video inside the language model, before a layer at which a method prunes.

    Or, with `Method.before_mlp`, before the MLP of the layer before that.
    """

    features: Tensor
    """`[n, D]`: hidden states of the tokens that are left."""
    previous: Tensor
    """`[n, D]`: hidden states of the same tokens as they entered the layer before."""
    positions: Tensor
    """`[n]` int64: their flat raster indices into `T * N`."""
    text: Tensor
    """`[L, D]`: hidden states of the text behind the video, without tokens of others; the last is the prompt's last."""
    total: int
    """T * N of the video."""
    stage: int
    """Which of the method's layers this is, from 0."""
    depth: int
    """Layers of the language model."""
    attention: Attention
    state: Any = None
    """What the stage before handed on."""


@dataclass(frozen=True)
class Selection:
    """What a stage inside the language model leaves of `LayerTokens`."""

    index: Tensor
    """`[K]` int64 into the n tokens, in the order in which they go on; of a merged token, its anchor's."""
    features: Tensor | None = None
    """`[K, D]`: their new hidden states, where they change."""
    state: Any = None
    """Handed on to the next stage."""
    sizes: Tensor | None = None
    """`[K]`: how many tokens each stands for, for methods whose `weighs` is set: this layer and all behind it, at every
    step, add their logarithms to what attention scores them (proportional attention). None: one each."""


def keep_all(tokens: VideoTokens) -> PrunedTokens:
    """All tokens, not even copied."""
    return PrunedTokens(tokens.flat, torch.arange(tokens.total, device=tokens.features.device))


def keep(tokens: VideoTokens, positions: Tensor, **notes: Any) -> PrunedTokens:
    """Hard pruning: the tokens at flat `positions` (`[K]`, in any order), unchanged and in raster order."""
    positions = positions.sort().values
    return PrunedTokens(tokens.flat[positions], positions, notes=notes)
