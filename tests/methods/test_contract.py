"""What every registered method must do, whatever its algorithm. A new method is tested here without being named."""

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import third_party
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import mmg_bench
from mmg_bench import config as cfg
from mmg_bench import specs
from mmg_bench.methods import Method
from mmg_bench.methods.registry import get_method, method_class, method_names
from mmg_bench.tokens import OPTIONAL_FIELDS, LayerTokens, PrunedTokens, Selection, VideoTokens

CONFIGS = Path(mmg_bench.__file__).parents[1] / "configs" / "method"
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
PACKAGE = TemporaryDirectory()
"""Where a third party's package is, whose method comes in by its entry point and has to do what all others do."""
third_party.write(Path(PACKAGE.name))
with third_party.installed(Path(PACKAGE.name)):
    NAMES = method_names()
# The only fixed ratio; every other method takes any.
RATIO = {"dense": 1.0}

every_method = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module", autouse=True)
def _third_party_is_installed() -> Iterator[None]:
    with third_party.installed(Path(PACKAGE.name)):
        yield


def test_third_parties_are_among_the_methods():
    assert third_party.NAME in NAMES
    assert method_class(third_party.NAME).__module__ == "someones_methods"


def build(name: str, ratio: float = 0.3) -> Method:
    return get_method(name, retention_ratio=RATIO.get(name, ratio))


def video(
    frames: int = 8, grid: tuple[int, int] = (4, 5), width: int = 16, seed: int = 0, dtype: torch.dtype = torch.float32
) -> VideoTokens:
    """Scenes that drift, with every optional field filled at random."""
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
        "cls_attention": weights(frames, tokens),
        "frame_features": normal(3, 12)[scene] + 0.3 * normal(frames, 12),
        "query": normal(7, width),
        "joint_features": normal(frames, tokens, 10),
        "joint_query": normal(2, 10),
    }
    assert set(optional) == set(OPTIONAL_FIELDS)
    return VideoTokens(x.to(dtype), grid, **{k: v.to(dtype) for k, v in optional.items()})


def tensors(tokens: VideoTokens) -> dict[str, Tensor]:
    return {f.name: v for f in fields(tokens) if isinstance(v := getattr(tokens, f.name), Tensor)}


def assert_valid(pruned: PrunedTokens, method: Method, tokens: VideoTokens) -> None:
    count = pruned.positions.shape[0]
    assert pruned.positions.dtype == torch.int64
    assert pruned.features.shape == (count, tokens.features.shape[2])
    assert pruned.features.dtype == tokens.features.dtype
    assert pruned.features.isfinite().all()
    assert 1 <= count <= tokens.total
    positions = pruned.positions.tolist()
    if method.exact:
        assert count == max(1, round(method.retention_ratio * tokens.total)) == method.budget(tokens)
        assert len(set(positions)) == count
    assert positions == sorted(positions)
    assert positions[0] >= 0
    assert positions[-1] < tokens.total


@every_method
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_size_and_ratio(name, data):
    tokens = video(
        data.draw(st.integers(1, 9), "frames"),
        (data.draw(st.integers(1, 5), "height"), data.draw(st.integers(1, 5), "width")),
        data.draw(st.integers(1, 8), "channels"),
        data.draw(st.integers(0, 1000), "seed"),
        data.draw(st.sampled_from(DTYPES), "dtype"),
    )
    method = build(name, data.draw(st.one_of(st.sampled_from([1e-6, 0.1, 0.25, 1.0]), st.floats(1e-3, 1)), "ratio"))
    assert_valid(method.prune(tokens), method, tokens)


@every_method
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(name, dtype):
    tokens = video(dtype=dtype)
    method = build(name)
    assert_valid(method.prune(tokens), method, tokens)


@every_method
@pytest.mark.parametrize("shape", [(1, (4, 5)), (6, (1, 1)), (1, (1, 1)), (2, (1, 2)), (5, (7, 1))], ids=str)
@pytest.mark.parametrize("ratio", [1e-6, 0.5, 1.0])
def test_small_videos(name, shape, ratio):
    tokens = video(*shape)
    method = build(name, ratio)
    assert_valid(method.prune(tokens), method, tokens)


@every_method
@pytest.mark.parametrize("value", [0.0, 1.0, -3.7])
def test_constant_features(name, value):
    tokens = video()
    flat = replace(tokens, **{k: torch.full_like(v, value) for k, v in tensors(tokens).items() if "attention" not in k})
    method = build(name)
    assert_valid(method.prune(flat), method, flat)


@every_method
def test_deterministic(name):
    tokens, method = video(), build(name)
    first = method.prune(tokens)
    torch.manual_seed(123)
    torch.rand(3)
    second = build(name).prune(video())
    assert torch.equal(first.positions, second.positions)
    assert torch.equal(first.features, second.features)


@every_method
def test_features_may_require_a_gradient(name):
    """As they do in a model that is called without `torch.no_grad`."""
    tokens = video()
    graded = replace(tokens, features=tokens.features.clone().requires_grad_())
    assert torch.equal(build(name).prune(graded).positions, build(name).prune(tokens).positions)


@every_method
def test_input_is_left_alone(name):
    tokens = video()
    before = {k: v.clone() for k, v in tensors(tokens).items()}
    pruned = build(name).prune(tokens)
    for field, value in tensors(tokens).items():
        assert torch.equal(value, before[field]), field
    assert not set(vars(pruned)) - {"features", "positions", "notes", "state"}


@every_method
@pytest.mark.parametrize("ratio", [0.15, 0.3])
def test_order_of_channels_does_not_matter(name, ratio):
    """Distances, norms and cosines do not know the order of channels. No two tokens of this video tie."""
    tokens = video(width=24)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    assert tokens.query is not None
    shuffled = replace(tokens, features=tokens.features[..., order], query=tokens.query[..., order])
    method = build(name, ratio)
    one, other = method.prune(tokens), method.prune(shuffled)
    assert torch.equal(one.positions, other.positions)
    torch.testing.assert_close(one.features[:, order], other.features, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "dense"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_refused(name, bad):
    tokens, method = video(), build(name)
    for field in ("features", *method.needs):
        broken = getattr(tokens, field).clone()
        broken.view(-1)[-1] = bad
        with pytest.raises(ValueError, match=f"VideoTokens.{field} holds NaN or infinite values: {name}"):
            method.prune(replace(tokens, **{field: broken}))


def test_dense_does_not_look_at_values():
    tokens = video()
    broken = tokens.features.clone()
    broken[0, 0, 0] = torch.nan
    torch.testing.assert_close(
        build("dense").prune(replace(tokens, features=broken)).features[0], broken[0, 0], equal_nan=True
    )


@every_method
def test_needs_are_what_is_read(name):
    """With the declared fields alone the result is the same; without one of them, a clear error."""
    tokens, method = video(), build(name)
    bare = replace(tokens, **{f: None for f in OPTIONAL_FIELDS if f not in method.needs})
    assert torch.equal(method.prune(bare).positions, method.prune(tokens).positions)
    for field in method.needs:
        with pytest.raises(ValueError, match=f"{name} needs {field}"):
            method.prune(replace(tokens, **{field: None}))


@dataclass(frozen=True)
class FakeAttention:
    """Random softmax rows over the tokens that are left."""

    tokens: int
    text: int
    dtype: torch.dtype

    def __call__(
        self, rows: Tensor | None = None, *, own: bool = False, rotary: bool = True, causal: bool = True
    ) -> Tensor:
        g = torch.Generator().manual_seed(self.tokens)
        count = 1 if rows is None else len(rows)
        return (2 * torch.randn(4, count, self.tokens, generator=g)).softmax(-1)

    def phases(self) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(1)
        return torch.rand(self.text, 8, generator=g) + 0.5, torch.rand(self.tokens, 8, generator=g) + 0.5


def through_the_layers(method: Method, tokens: VideoTokens, depth: int = 28) -> list[tuple[LayerTokens, Selection]]:
    """What the method does at each of its layers, from what it leaves before the first."""
    pruned = method.prune(tokens)
    features, positions, state, text = pruned.features, pruned.positions, pruned.state, tokens.query
    assert text is not None
    out = []
    for stage in range(len(method.layers(depth))):
        attention = FakeAttention(len(positions), len(text), features.dtype)
        before = LayerTokens(features, positions, text, tokens.total, stage, attention, state)
        chosen = method.prune_inside(before)
        out.append((before, chosen))
        features = features[chosen.index] if chosen.features is None else chosen.features
        positions, state = positions[chosen.index], chosen.state
    return out


@every_method
@pytest.mark.parametrize("shape", [(8, (4, 5)), (1, (4, 5)), (6, (1, 1)), (1, (1, 1))], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inside_the_model(name, shape, dtype):
    """Stages leave distinct tokens of those they are given, at least one, in their dtype, and change no input."""
    method, tokens = build(name), video(*shape, dtype=dtype)
    for (before, chosen), (again, same) in zip(
        through_the_layers(method, tokens), through_the_layers(method, video(*shape, dtype=dtype)), strict=True
    ):
        assert torch.equal(before.features, again.features)
        assert torch.equal(chosen.index, same.index)
        assert chosen.index.dtype == torch.int64
        assert 1 <= len(chosen.index) == len(chosen.index.unique()) <= len(before.positions)
        assert 0 <= int(chosen.index.min()) <= int(chosen.index.max()) < len(before.positions)
        if chosen.features is not None:
            assert chosen.features.shape == (len(chosen.index), before.features.shape[1])
            assert chosen.features.isfinite().all()
            if dtype == torch.float32:
                assert torch.equal(chosen.features, same.features)


@every_method
@pytest.mark.parametrize("ratio", [0, -0.1, 1.01, float("nan"), "half", True])
def test_retention_ratio_is_checked(name, ratio):
    with pytest.raises(ValueError, match=f"{method_class(name).__name__}.retention_ratio="):
        method_class(name)(retention_ratio=ratio)


@every_method
def test_unknown_parameters_are_named(name):
    with pytest.raises(ValueError, match=f"method '{name}' has no parameter banana; it has: retention_ratio"):
        get_method(name, banana=1)


@every_method
def test_class_is_documented(name):
    cls = method_class(name)
    assert cls.name == name
    assert cls.__doc__
    assert not cls.__doc__.startswith(cls.__name__ + "("), "the dataclass's own signature is no docstring"
    assert next(f.name for f in fields(cls)) == "retention_ratio"


@every_method
def test_config_holds_every_parameter_and_its_default(name):
    path = CONFIGS / f"{name}.yaml"
    if not path.is_file():
        built_in = method_class(name).__module__.startswith("mmg_bench.")
        assert not built_in, f"{path} is missing"
        pytest.skip("a third party's method needs none")
    text = path.read_text()
    config: dict[str, Any] = yaml.safe_load(text)
    assert next(iter(config)) == "name"
    assert config.pop("name") == name
    expected = {}
    for f in fields(method_class(name)):
        if f.name != "retention_ratio":
            expected[f.name] = f.default_factory() if f.default_factory is not MISSING else f.default
    assert config == expected
    assert {k: type(v) for k, v in config.items()} == {k: type(v) for k, v in expected.items()}
    lines = [line for line in text.splitlines() if line and line[0] not in "# " and not line.startswith("name:")]
    assert all("  # " in line for line in lines), "every option has a comment"
    assert get_method(name, **config) == method_class(name)()


def test_third_parties_compose_without_a_config():
    composed = [cfg.plain(c["method"]) for c in cfg.sweep("run", [f"method={third_party.NAME},random", "limit=1"])]
    assert composed == [{"name": third_party.NAME, "first": 0}, cfg.load("method", "random")]
    changed = [
        specs.cell(c["method"], 0.5) for c in cfg.sweep("run", [f"method={third_party.NAME}", "method.first=1,2"])
    ]
    assert [cell.label for cell in changed] == [f"{third_party.NAME}(first={first})" for first in (1, 2)]
    entry = {"name": third_party.NAME, "first": 3}
    assert specs.table_cells([entry], [0.5])[-1].label == f"{third_party.NAME}(first=3)"
    assert "first: 0" in cfg.help_of("run", [f"method={third_party.NAME}"])
    with pytest.raises(ValueError, match=r"method.second: no such option; method has: name, first"):
        cfg.composed("run", [f"method={third_party.NAME}", "method.second=1"])


def test_every_method_config_belongs_to_a_method():
    assert {p.stem for p in CONFIGS.glob("*.yaml")} <= set(NAMES)


def test_unknown_method_is_answered_with_the_names():
    with pytest.raises(ValueError, match=r"unknown method 'mmgvid'; the registered methods are: .*mmg_vid"):
        get_method("mmgvid")
