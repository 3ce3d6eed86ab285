"""Base class of the pruning methods: a validated set of hyper-parameters with one pure function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mmg_bench.tokens import OPTIONAL_FIELDS, LayerTokens, PrunedTokens, Selection, VideoTokens

Positions = Literal["original", "contiguous"]


@dataclass(frozen=True)
class Method(ABC):
    """Base class of the methods.

    A subclass is a frozen dataclass of its hyper-parameters, named as in its paper. It sets `name` (the name of its
    file), implements `select`, and checks its own fields in `__post_init__` after `super().__post_init__()`.

    Calling a method on a model returns a context manager within which the model prunes:

        with MMGVid(retention_ratio=0.25)(model) as run:
            model.generate(**inputs)
        print(run.report)

    A method that prunes inside the language model overrides `layers` and `select_inside`; if it prunes only there, it
    derives from `_inside.InsideMethod`. A method that hides keys while decoding overrides `key_layer` and
    `select_keys`.
    """

    retention_ratio: float = 0.25
    """Visual tokens that enter the language model, divided by T * N, unless the method says otherwise; in (0, 1]."""

    name: ClassVar[str]
    """Registry name, the same as the module name."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """Optional fields of `VideoTokens` that `select` reads."""
    stand_ins: ClassVar[Sequence[Mapping[str, Any]]] = ()
    """Options with which `select` reads other fields or none, for models that do not supply `needs`.

    The error for such a model suggests the first of these options that it can serve.
    """
    finds_faults: ClassVar[bool] = False
    """Whether `prune` skips the check for NaN and infinite values, because `select` checks them or ranks nothing."""
    exact: ClassVar[bool] = True
    """Whether exactly max(1, round(R * T * N)) tokens of every input are kept."""
    ordered_channels: ClassVar[bool] = False
    """Whether the order of channels matters, e.g. because each has its own random weight; for distances it does not."""
    positions: ClassVar[Positions] = "original"
    """Position ids of the kept tokens in the official code: their own, or renumbered without gaps."""
    inside_positions: ClassVar[Positions | None] = None
    """The same for pruning inside the language model; None: as `positions` (or as the run overrides it)."""
    prunes_caches: ClassVar[bool] = False
    """Whether a stage also prunes the keys and values of the layers below it."""
    before_mlp: ClassVar[bool] = False
    """Whether it prunes between attention and MLP of the layer before each of its `layers`, not between layers."""
    weighs: ClassVar[bool] = False
    """Whether `select_inside` returns `sizes`, which weight the attention: only SDPA and eager attention support it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.before_mlp and cls.prunes_caches:
            raise TypeError(f"{cls.__name__}: before_mlp and prunes_caches cannot be combined; choose one")
        if cls.weighs and cls.prunes_caches:  # layers below would weight tokens that they have not merged
            raise TypeError(f"{cls.__name__}: weighs and prunes_caches cannot be combined; choose one")
        unknown = cls.needs - set(OPTIONAL_FIELDS)
        if unknown:
            raise TypeError(
                f"{cls.__name__}.needs names unknown fields {sorted(unknown)}; choose from {list(OPTIONAL_FIELDS)}"
            )

    def __post_init__(self) -> None:
        if not hasattr(self, "name"):
            raise TypeError(
                f"{type(self).__name__} has no name: set the one that tables show, name: ClassVar[str] = ..."
            )
        check_range(self, "retention_ratio", 0, 1, low_open=True)

    def budget(self, tokens: VideoTokens) -> int:
        """B = round(R * T * N), at least 1: the number of tokens to keep."""
        return max(1, round(self.retention_ratio * tokens.total))

    def prune(self, tokens: VideoTokens) -> PrunedTokens:
        """Prune one video. Deterministic; `tokens` is not changed.

        Raises ValueError when `tokens` lacks a field that the method needs, or holds NaN or infinite values.
        """
        tokens.require(self.needs, self.name)
        if not self.finds_faults:
            tokens.require_finite(self.needs, self.name)
        # Under mixed precision the distances would silently be computed in half precision.
        with torch.autocast(tokens.features.device.type, enabled=False):
            return self.select(tokens)

    @property
    def changed(self) -> dict[str, Any]:
        """Parameters that are not at their defaults (except the ratio), and those whose metadata has `labelled`."""
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name != "retention_ratio" and f.default is not MISSING
            if f.metadata.get("labelled") or getattr(self, f.name) != f.default
        }

    @property
    def parts(self) -> tuple[Method, ...]:
        """Methods that this one is composed of, whose code counts as its own; usually none."""
        return ()

    @abstractmethod
    def select(self, tokens: VideoTokens) -> PrunedTokens:
        """The algorithm. Called by `prune` on checked input; must work for any T, N, D >= 1, dtype and device."""

    def layers(self, depth: int) -> tuple[int, ...]:
        """Layers before which it prunes again, in a language model of `depth` layers: ascending, in 1..depth - 1."""
        return ()

    def prunes_inside(self, depth: int) -> bool:
        """Whether it does anything inside a language model of `depth` layers."""
        return bool(self.layers(depth)) or self.key_layer(depth) is not None

    def prune_inside(self, tokens: LayerTokens) -> Selection:
        """Prune one video before one of the `layers`. Deterministic; `tokens` is not changed."""
        with torch.autocast(tokens.features.device.type, enabled=False):
            return self.select_inside(tokens)

    def select_inside(self, tokens: LayerTokens) -> Selection:
        """The algorithm of `prune_inside`, for methods that name `layers`."""
        raise TypeError(f"{type(self).__name__} defines layers() but not select_inside()")

    def finished(self, state: Any) -> bool:
        """Whether a video is pruned no further, given the `state` that its last stage, or `select`, returned."""
        return False

    def key_layer(self, depth: int) -> int | None:
        """The layer from which some visual keys are hidden at each decoding step; None: nothing is hidden."""
        return None

    def select_keys(self, attention: Tensor, memory: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """Choose the visual keys that one decoding step sees, given the attention of the layer before `key_layer`.

        `attention [n]`: from the current token to each visual token, averaged over heads; `memory`: as returned by the
        last step, None at the first. Returns the indices `[K]` to see (None: all), and the memory for the next step.
        """
        raise TypeError(f"{type(self).__name__} defines key_layer() but not select_keys()")

    def __call__(self, model: Any, positions: Positions | None = None) -> AbstractContextManager[Any]:
        """A context manager within which `model` (an unmodified transformers model) prunes with this method."""
        from mmg_bench.models.hooks import pruning

        return pruning(model, self, positions=positions)


def check_range(
    method: Any, field: str, low: float, high: float, *, low_open: bool = False, integer: bool = False
) -> None:
    """Raise a ValueError that names the field, its value and the range unless `low <= value <= high`."""
    value: Any = getattr(method, field)
    number = isinstance(value, int if integer else (int, float)) and not isinstance(value, bool)
    inside = number and (low < value if low_open else low <= value) and value <= high
    if not inside:
        kind = "an integer" if integer else "a number"
        raise ValueError(
            f"{type(method).__name__}.{field}={value!r}: it must be {kind} in {'(' if low_open else '['}{low}, {high}]"
        )


def check_flag(method: object, field: str) -> None:
    """Raise a ValueError that names the field and its value unless it is a bool: `off` would count as true."""
    value = getattr(method, field)
    if not isinstance(value, bool):
        raise ValueError(f"{type(method).__name__}.{field}={value!r}: it must be true or false")


def check_choice(method: object, field: str, choices: tuple[Any, ...]) -> None:
    """Raise a ValueError that names the field, its value and the choices unless the value is one of them."""
    value = getattr(method, field)
    if not any(value == choice and type(value) is type(choice) for choice in choices):
        raise ValueError(f"{type(method).__name__}.{field}={value!r}: choose one of {', '.join(map(str, choices))}")
