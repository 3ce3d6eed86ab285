"""The contract of every pruning method, whatever its algorithm: checks for the tests here and for third-party methods.

Each check takes a function that builds the method at a retention ratio and tries it on small synthetic videos. It
raises ContractError, which says what was required, what happened and what to do. `mmg-bench check-method` runs them
all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from mmg_bench.faults import told
from mmg_bench.methods.base import Method
from mmg_bench.mock_gpu import CPU, MockGpu
from mmg_bench.tokens import OPTIONAL_FIELDS, Heads, Keys, LayerTokens, PrunedTokens, Selection, VideoTokens

Build = Callable[[float], Method]
"""Builds a method at a retention ratio."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SMALL = ((1, (4, 5)), (6, (1, 1)), (1, (1, 1)), (2, (1, 2)), (5, (7, 1)))
"""Frames and grid of edge-case videos."""
DEPTH = 28
"""Layers of the language model for which methods that prune inside it are checked."""


class ContractError(ValueError):
    """A method breaks the contract."""


def video(
    frames: int = 8, grid: tuple[int, int] = (4, 5), width: int = 16, seed: int = 0, dtype: torch.dtype = torch.float32
) -> VideoTokens:
    """A synthetic video of three drifting scenes, with every optional field filled at random."""
    g = torch.Generator().manual_seed(seed)
    tokens = grid[0] * grid[1]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    def weights(*shape: int) -> Tensor:
        return (normal(*shape) * 2).softmax(-1)

    scene = torch.arange(frames) * 3 // frames
    x = normal(3, 1, width)[scene] + normal(3, tokens, width)[scene] + 0.4 * normal(frames, tokens, width)
    optional = {
        "attention": weights(frames, tokens),
        "keys": normal(frames, tokens, 6),
        "probe_attention": weights(frames, tokens),
        "frame_features": normal(3, 12)[scene] + 0.3 * normal(frames, 12),
        "query": normal(7, width),
        "joint_features": normal(frames, tokens, 10),
        "joint_query": normal(2, 10),
        "mean_query_attention": weights(frames, tokens),
        "times": 2.5 * torch.arange(frames),
    }
    return VideoTokens(x.to(dtype), grid, **{k: v.to(dtype) for k, v in optional.items()})


def tensors(tokens: VideoTokens) -> dict[str, Tensor]:
    """The tensors of a video, by the names of their fields."""
    return {f.name: v for f in fields(tokens) if isinstance(v := getattr(tokens, f.name), Tensor)}


@dataclass(frozen=True)
class Faults:
    """Checks of the values of an outcome: computed on its device and read once, because a read waits for a GPU."""

    right: Tensor
    """`[n]` bool: whether each check passes."""
    told: tuple[str, ...]
    """The message for each check that fails."""

    def raise_any(self) -> None:
        """Raise ContractError for the first check that fails."""
        for right, message in zip(self.right.tolist(), self.told, strict=True):
            if not right:
                raise ContractError(message)


def check_kind(method: Method, tokens: VideoTokens, pruned: Any) -> None:
    """Raise TypeError or ContractError if the result of `select` has a wrong type, shape or dtype.

    Also if an exact method does not keep the promised number of tokens: different budgets are not comparable.
    """
    if not isinstance(pruned, PrunedTokens):
        raise TypeError(f"{method.name}.select returned {type(pruned).__name__}: it must return PrunedTokens")
    who, positions, features = method.name, pruned.positions, pruned.features
    width = tokens.features.shape[2]
    _check_tensors(f"{who}.select", positions=positions, features=features)
    if positions.dtype != torch.int64 or positions.dim() != 1:
        raise ContractError(
            f"{who}: positions {_where(method, tokens)} are {_described(positions)}: they must be [K] int64"
        )
    if not 1 <= (count := len(positions)) <= tokens.total:
        raise ContractError(
            f"{who} kept {count} tokens {_where(method, tokens)}: it must keep at least 1 and at most {tokens.total}"
        )
    if method.exact and count != (budget := method.budget(tokens)):
        raise ContractError(
            f"{who} kept {count} of {tokens.total} tokens at retention_ratio={method.retention_ratio:g}: "
            f"keep round(R * T * N) = {budget}, or set exact = False in the class"
        )
    if features.shape != (count, width) or features.dtype != tokens.features.dtype:
        raise ContractError(
            f"{who}: features {_where(method, tokens)} are {_described(features)}: they must be [{count}, {width}] "
            "in the dtype of the video's features"
        )
    _check_device(f"{who}.select", tokens.features.device, positions=positions, features=features)


def check_values(method: Method, tokens: VideoTokens, pruned: PrunedTokens) -> Faults:
    """Checks of the values of the kept tokens: features must be finite, positions ascending and in range."""
    who, where, positions, features = method.name, _where(method, tokens), pruned.positions, pruned.features
    once = ", each at most once unless the class sets exact = False" if method.exact else ""
    return Faults(
        torch.stack([_finite(features), _in_place(positions, tokens.total, distinct=method.exact)]),
        (
            f"{who}: features {where} hold NaN or infinite values, but the video has none",
            f"{who}: positions {where} must be ascending, within 0..{tokens.total - 1} (`keep` sorts them){once}",
        ),
    )


def _check_tensors(who: str, **values: object) -> None:
    """Raise TypeError for the first value that is not a tensor."""
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{who} returned {name} of type {type(value).__name__}: return a torch.Tensor")


def _check_device(who: str, device: torch.device, **values: Tensor) -> None:
    """Raise ContractError for the first value that is on another device."""
    for name, value in values.items():
        if value.device != device:
            raise ContractError(f"{who} returned {name} on {value.device}: return {name} on {device}, like its input")


def _where(method: Method, tokens: VideoTokens) -> str:
    """The video and the ratio, for error messages."""
    return (
        f"of a video [T={tokens.frames}, N={tokens.tokens_per_frame}, D={tokens.features.shape[2]}] "
        f"in {_named(tokens.features.dtype)} at retention_ratio={method.retention_ratio:g}"
    )


def layers_of(method: Method, depth: int) -> tuple[tuple[int, ...], int | None]:
    """The method's `layers` and `key_layer`. Raises ContractError for layers that no model has: nothing would be done.

    Also if they raise any error but ValueError, with which a method refuses a model.
    """
    try:
        layers, key_layer = method.layers(depth), method.key_layer(depth)
    except ValueError:
        raise
    except Exception as error:  # the method's, whatever it is
        raise ContractError(
            f"{method.name}: layers() or key_layer() failed for a model of {depth} layers: {told(error)}; correct it, "
            "or, if the method cannot prune such a model, raise a ValueError that says why"
        ) from error
    numbered = isinstance(layers, tuple) and all(_is_layer(layer, depth) for layer in layers)
    if not numbered or list(layers) != sorted(set(layers)):
        raise ContractError(
            f"{method.name}: layers({depth}) is {layers!r}: it must be a tuple of ascending whole numbers in "
            f"1..{depth - 1}"
        )
    if key_layer is not None and not _is_layer(key_layer, depth):
        raise ContractError(
            f"{method.name}: key_layer({depth}) is {key_layer!r}: it must be a whole number in 1..{depth - 1}, or None"
        )
    return layers, key_layer


def _is_layer(layer: object, depth: int) -> bool:
    return type(layer) is int and 0 < layer < depth


def check_selection(method: Method, tokens: LayerTokens, chosen: Any) -> Faults:
    """Checks of the values that a stage inside the language model returns.

    Raises TypeError or ContractError at once if the type, a shape or a dtype is wrong.
    """
    if not isinstance(chosen, Selection):
        raise TypeError(f"{method.name}.select_inside returned {type(chosen).__name__}: it must return Selection")
    who, index, features = f"{method.name}: stage {tokens.stage} inside the model", chosen.index, chosen.features
    n, width = tokens.features.shape
    _check_tensors(f"{method.name}.select_inside", index=index, **({} if features is None else {"features": features}))
    if index.dtype != torch.int64 or index.dim() != 1 or not 1 <= len(index) <= n:
        raise ContractError(f"{who}: index is {_described(index)}: it must be [K] int64 with K in 1..{n}")
    if features is not None and features.shape != (len(index), width):
        raise ContractError(f"{who}: features are {_described(features)}: they must be [{len(index)}, {width}]")
    there = {"index": index, "features": features, "sizes": chosen.sizes}
    present = {name: value for name, value in there.items() if isinstance(value, Tensor)}
    _check_device(f"{method.name}.select_inside", tokens.features.device, **present)
    right = [_in_place(index.sort().values, n, distinct=True)]
    told = [f"{who}: index must be within 0..{n - 1}, each token at most once"]
    if features is not None:
        right.append(_finite(features))
        told.append(f"{who}: features hold NaN or infinite values")
    if (sizes := chosen.sizes) is not None:
        _check_tensors(f"{method.name}.select_inside", sizes=sizes)
        if not method.weighs:
            raise ContractError(f"{who}: sizes were returned without weighs: set weighs = True in the class")
        if sizes.shape != index.shape:
            raise ContractError(f"{who}: sizes are {_described(sizes)}: they must be [{len(index)}]")
        right.append(((sizes > 0) & sizes.isfinite()).all())
        told.append(f"{who}: sizes must be positive and finite")
    return Faults(torch.stack(right), tuple(told))


def _finite(features: Tensor) -> Tensor:
    """Whether no value is NaN or infinite (a sum propagates these): `[]` bool."""
    return features.detach().sum(dtype=torch.promote_types(features.dtype, torch.float32)).isfinite()


def _in_place(positions: Tensor, total: int, *, distinct: bool) -> Tensor:
    """Whether positions ascend within `0..total - 1`, strictly if `distinct`: `[]` bool."""
    before, behind = positions.new_full((1,), -distinct), positions.new_full((1,), total - 1 + distinct)
    return (positions.diff(prepend=before, append=behind) >= distinct).all()


def check_pruned(method: Method, tokens: VideoTokens) -> None:
    """Prune a video and check the result."""
    pruned = method.prune(tokens)
    check_kind(method, tokens, pruned)
    check_values(method, tokens, pruned).raise_any()


def any_size_and_ratio(build: Build) -> None:
    """Any T, N, D >= 1, dtype and retention ratio."""
    g = torch.Generator().manual_seed(0)
    for seed in range(40):
        frames, height, tall, width = (int(torch.randint(1, n, (), generator=g)) for n in (10, 6, 6, 9))
        ratio = (1e-6, 0.1, 0.25, 1.0, float(torch.rand((), generator=g)) or 1.0)[seed % 5]
        check_pruned(build(ratio), video(frames, (height, tall), width, seed, DTYPES[seed % len(DTYPES)]))


def dtypes(build: Build) -> None:
    """The kept tokens have the dtype of the video, from half to double precision."""
    for dtype in DTYPES:
        check_pruned(build(0.3), video(dtype=dtype))


def small_videos(build: Build) -> None:
    """Single frames and tokens, at extreme ratios."""
    for (frames, grid), ratio in product(SMALL, (1e-6, 0.5, 1.0)):
        check_pruned(build(ratio), video(frames, grid))


def constant_features(build: Build) -> None:
    """Videos in which all tokens are equal."""
    tokens = video()
    for value in (0.0, 1.0, -3.7):
        flat = {k: torch.full_like(v, value) for k, v in tensors(tokens).items() if "attention" not in k}
        check_pruned(build(0.3), _with(tokens, **flat))


def deterministic(build: Build) -> None:
    """Same video, same tokens, whatever random numbers were drawn in between; torch's global state stays unchanged."""
    with torch.random.fork_rng(devices=()), torch.enable_grad():
        first = build(0.3).prune(video())
        graded = torch.is_grad_enabled()
        torch.manual_seed(123)
        drawn = torch.random.get_rng_state()
        _check_same(first, build(0.3).prune(video()), "on a second call, with another global seed")
        if not torch.equal(torch.random.get_rng_state(), drawn):
            raise ContractError("torch's global random state was changed: draw from your own torch.Generator")
    if not graded:
        raise ContractError(
            "torch's gradient mode was changed: use torch.no_grad() as a context manager, which restores it"
        )


def gradients(build: Build) -> None:
    """Features that require a gradient, as in a model that is called without `torch.no_grad`."""
    tokens = video()
    graded = replace(tokens, features=tokens.features.clone().requires_grad_())
    _check_same(build(0.3).prune(tokens), build(0.3).prune(graded), "with features that require a gradient")


def input_left_alone(build: Build) -> None:
    """No tensor of the video is changed."""
    tokens = video()
    before = {k: v.clone() for k, v in tensors(tokens).items()}
    build(0.3).prune(tokens)
    if changed := [k for k, v in tensors(tokens).items() if not torch.equal(v, before[k])]:
        raise ContractError(f"VideoTokens.{changed[0]} was changed: work on a copy")


def order_of_channels(build: Build) -> None:
    """Distances, norms and cosines do not depend on the order of channels. No two tokens of this video tie."""
    if build(1.0).ordered_channels:
        return
    tokens = video(width=24)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    query = None if tokens.query is None else tokens.query[..., order]
    shuffled = replace(tokens, features=tokens.features[..., order], query=query)
    for ratio in (0.15, 0.3):
        one, other = build(ratio).prune(tokens), build(ratio).prune(shuffled)
        within = one.features[:, order]
        if not torch.equal(one.positions, other.positions) or not torch.allclose(within, other.features, 1e-4, 1e-4):
            raise ContractError(
                "the kept tokens change when the channels are permuted: make them independent of the order, or, if "
                "each channel has its own weight, set ordered_channels = True in the class"
            )


def bad_values(build: Build) -> None:
    """NaN and infinite values are refused, and the field is named (except by `dense`, which reads no value)."""
    tokens, method = video(), build(0.3)
    if method.name == "dense":
        return
    for bad, name in product((torch.nan, torch.inf, -torch.inf), ("features", *sorted(method.needs))):
        broken = tensors(tokens)[name].clone()
        broken.view(-1)[-1] = bad
        says = f"VideoTokens.{name} holds NaN or infinite values: {method.name}"
        _check_refused(method, _with(tokens, **{name: broken}), says, f"{bad} in VideoTokens.{name}")


def needs(build: Build) -> None:
    """`needs` names every field that is read: others do not change the result, and a missing one is an error.

    The options in `stand_ins` drop at least one of the fields that the defaults need.
    """
    tokens, method = video(), build(0.3)
    bare = _with(tokens, **{name: None for name in OPTIONAL_FIELDS if name not in method.needs})
    whole = method.prune(tokens)
    try:
        pruned = method.prune(bare)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise ContractError(
            f"fails without the fields that `needs` does not name (is one missing from `needs`?): {what}"
        ) from error
    _check_same(whole, pruned, "without the fields that `needs` does not name")
    for name in method.needs:
        _check_refused(method, _with(tokens, **{name: None}), f"{method.name} needs {name}", f"VideoTokens.{name}=None")
    for options in type(method).stand_ins:
        _check_stand_in(type(method), dict(options))


def inside_the_model(build: Build) -> None:
    """Each stage keeps distinct tokens of its input, at least one, and the same ones every time."""
    for (frames, grid), dtype in product(((8, (4, 5)), *SMALL[:3]), DTYPES):
        twice = [stages(build(0.3), video(frames, grid, dtype=dtype)) for _ in range(2)]
        for (before, chosen), (again, same) in zip(*twice, strict=True):
            layer = f"stage {before.stage} in {_named(dtype)}"
            if not (torch.equal(before.features, again.features) and torch.equal(chosen.index, same.index)):
                raise ContractError(f"{layer} chose different tokens on a second call")
            merged = dtype == torch.float32 and chosen.features is not None
            if merged and (same.features is None or not torch.equal(chosen.features, same.features)):
                raise ContractError(f"{layer} returned different merged features on a second call")


def hidden_keys(build: Build) -> None:
    """Decoding steps see distinct keys of the visual tokens, and the same ones every time."""
    for n in (40, 1):
        for one, other in zip(keys_seen(build(0.3), n), keys_seen(build(0.3), n), strict=True):
            if one is None and other is None:
                continue
            if one is None or other is None or not torch.equal(one, other):
                raise ContractError("select_keys chose different keys on a second call")
            if one.dtype != torch.int64 or len(one) != len(one.unique()):
                raise ContractError(f"select_keys: index {_described(one)} must be int64, with each key at most once")
            if not set(one.tolist()) <= set(range(n)):
                raise ContractError(f"select_keys: index {one.tolist()} is not within the {n} keys")


def on_a_gpu(build: Build) -> None:
    """A GPU keeps the same tokens and gets no host tensor mixed in (without a GPU: `mock_gpu`)."""
    full, half, whole = torch.float32, torch.bfloat16, video()
    tried = ((whole, full, 0.3), (whole, full, 1.0), (video(1, (1, 1)), full, 0.3), (whole, half, 0.3))
    with nullcontext() if torch.cuda.is_available() else MockGpu():
        for tokens, dtype, ratio in tried:
            sent = {name: value.to("cuda", dtype) for name, value in tensors(tokens).items()}
            there = _left(build(ratio), _with(tokens, **sent))
            # a GPU rounds half precision differently
            if dtype == full and not _alike(_left(build(ratio), tokens), there):
                raise ContractError("the kept tokens differ between a GPU and a CPU")


Left = list[tuple[Tensor, Tensor | None]]


def _left(method: Method, tokens: VideoTokens) -> Left:
    """What a method keeps before the model, at each stage inside it and while decoding, with the features if any."""
    pruned = method.prune(tokens)
    check_kind(method, tokens, pruned)
    inside = [(chosen.index, chosen.features) for _, chosen in stages(method, tokens)]
    seen = keys_seen(method, 40, tokens.features.device)
    return [(pruned.positions, pruned.features), *inside, *((index, None) for index in seen if index is not None)]


def _alike(one: Left, other: Left) -> bool:
    """Whether both keep the same tokens, with features that differ only by rounding."""
    return len(one) == len(other) and all(
        torch.equal(i, j.cpu()) and (x is None or y is None or torch.allclose(x, y.cpu(), 1e-3, 1e-3))
        for (i, x), (j, y) in zip(one, other, strict=True)
    )


def documented(build: Build) -> None:
    """The class has a docstring, and `retention_ratio` as its first parameter, with a check of its range."""
    cls = type(build(1.0))
    if not cls.__doc__ or cls.__doc__.startswith(cls.__name__ + "("):  # generated by dataclass
        raise ContractError(f"{cls.__name__} has no docstring: add one; `mmg-bench methods` shows its first line")
    if not getattr(vars(cls).get("__dataclass_params__"), "frozen", False):
        raise ContractError(f"{cls.__name__} is not a frozen dataclass: decorate it with @dataclass(frozen=True)")
    if fields(cls)[0].name != "retention_ratio":
        raise ContractError(f"{cls.__name__}'s first parameter is {fields(cls)[0].name}: it must be retention_ratio")
    for ratio in (0, -0.1, 1.01, float("nan"), "half", True):
        try:
            cls(retention_ratio=ratio)  # type: ignore[arg-type]
        except ValueError as error:
            if f"{cls.__name__}.retention_ratio=" in str(error):
                continue
        raise ContractError(
            f"retention_ratio={ratio!r} does not raise a ValueError that names it: call super().__post_init__() in "
            "__post_init__"
        )


CHECKS: tuple[Callable[[Build], None], ...] = (
    documented,
    any_size_and_ratio,
    dtypes,
    small_videos,
    constant_features,
    deterministic,
    gradients,
    input_left_alone,
    order_of_channels,
    bad_values,
    needs,
    inside_the_model,
    hidden_keys,
    on_a_gpu,
)


@dataclass(frozen=True)
class RandomAttention:
    """Random softmax rows over the remaining tokens."""

    tokens: int
    text: int
    device: torch.device = CPU

    def __call__(
        self, rows: Tensor | None = None, *, own: bool = False, rotary: bool = True, causal: bool = True
    ) -> Tensor:
        """`[4 heads, R, n]`."""
        g = torch.Generator().manual_seed(self.tokens)
        count = 1 if rows is None else len(rows)
        return (2 * torch.randn(4, count, self.tokens, generator=g)).softmax(-1).to(self.device)

    def phases(self) -> tuple[Tensor, Tensor]:
        """`[L, 8]` and `[n, 8]`."""
        g = torch.Generator().manual_seed(1)
        text, visual = (torch.rand(count, 8, generator=g) + 0.5 for count in (self.text, self.tokens))
        return text.to(self.device), visual.to(self.device)

    def heads(self) -> Heads:
        """4 query heads and 2 key-value heads of width 8; 3 text tokens, then the video's."""
        g = torch.Generator().manual_seed(2)
        size, visual = self.tokens + 3, torch.arange(self.tokens, device=self.device) + 3
        queries, keys = (torch.randn(heads, size, 8, generator=g).to(self.device) for heads in (4, 2))
        return Heads(queries, keys, visual, keys[:, visual].flip(-1))

    def keys(self) -> Keys:
        """2 key-value heads of width 8: 3 text tokens, the video's, then the text after it."""
        places = torch.arange(3, 3 + self.tokens + self.text, device=self.device)
        visual, text = places.split([self.tokens, self.text])
        return Keys(self._vectors(2, seed=3), visual, text)

    def queries(self) -> Tensor:
        """4 query heads to match `keys`."""
        return self._vectors(4, seed=4)

    def _vectors(self, heads: int, seed: int) -> Tensor:
        g = torch.Generator().manual_seed(seed)
        return torch.randn(heads, 3 + self.tokens + self.text, 8, generator=g).to(self.device)

    def final_norm(self, hidden: Tensor) -> Tensor:
        """RMS norm without weights."""
        return torch.nn.functional.rms_norm(hidden, hidden.shape[-1:])


def stages(method: Method, tokens: VideoTokens) -> Iterator[tuple[LayerTokens, Selection]]:
    """The input and the selection of each stage inside a model, starting from the tokens that `prune` keeps."""
    pruned = method.prune(tokens)
    features, positions, state, text = pruned.features, pruned.positions, pruned.state, tokens.query
    if text is None:
        raise ValueError("VideoTokens.query is None: fill it; stages inside the model use the text")
    layers, _ = layers_of(method, DEPTH)
    for stage in range(len(layers)):
        if method.finished(state):
            return
        attention = RandomAttention(len(positions), len(text), features.device)
        before = LayerTokens(features, features / 2, positions, text, tokens.total, stage, DEPTH, attention, state)
        given = features.clone()
        chosen = method.prune_inside(before)
        check_selection(method, before, chosen).raise_any()
        if not torch.equal(features, given):
            raise ContractError(f"LayerTokens.features was changed at stage {stage}: work on a copy")
        yield before, chosen
        features = features[chosen.index] if chosen.features is None else chosen.features
        positions, state = positions[chosen.index], chosen.state


def keys_seen(method: Method, n: int, device: torch.device = CPU) -> list[Tensor | None]:
    """The result of `select_keys` for n visual keys at three decoding steps; empty if the method hides no keys."""
    if layers_of(method, DEPTH)[1] is None:
        return []
    g = torch.Generator().manual_seed(n)
    seen: list[Tensor | None] = []
    memory: Tensor | None = None
    for _ in range(3):
        index, memory = method.select_keys((2 * torch.randn(n, generator=g)).softmax(-1).to(device), memory)
        if index is not None:
            _check_device(f"{method.name}.select_keys", device, index=index)
        seen.append(index)
    return seen


def _with(tokens: VideoTokens, **changes: Any) -> VideoTokens:
    return replace(tokens, **changes)


def _check_same(one: PrunedTokens, other: PrunedTokens, when: str) -> None:
    if not (torch.equal(one.positions, other.positions) and torch.equal(one.features, other.features)):
        raise ContractError(f"the kept tokens change {when}")


def _check_refused(method: Method, tokens: VideoTokens, says: str, what: str) -> None:
    try:
        method.prune(tokens)
    except Exception as error:
        if isinstance(error, ValueError) and says in str(error):
            return
        fault = f"{type(error).__name__}: {error}"
        raise ContractError(f"{what} raises {fault!r}: it must raise a ValueError that says {says!r}") from error
    raise ContractError(
        f"{what} raises no error: do not override `prune` or `finds_faults`, or raise a ValueError that says {says!r}"
    )


def _check_stand_in(cls: type[Method], options: dict[str, Any]) -> None:
    try:
        left = cls(**options).needs
    except (TypeError, ValueError) as error:
        raise ContractError(f"stand_ins: {options} does not fit {cls.__name__}'s fields: {error}") from error
    if cls.needs <= left:
        needed = ", ".join(sorted(cls.needs))
        raise ContractError(f"stand_ins: {options} still needs {needed}: choose options that need fewer fields")


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _described(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {_named(tensor.dtype)}"
