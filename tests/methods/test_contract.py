"""What every registered method must do, whatever its algorithm. A new method is tested here without being named."""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import pytest
import third_party
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import command_line
import mmg_bench
from mmg_bench import config as cfg
from mmg_bench import methods, specs
from mmg_bench.cells import code_of, described_plug_ins, make_cell
from mmg_bench.commands import bench_methods
from mmg_bench.commands.check_method import building, check_method
from mmg_bench.contract import CHECKS, DTYPES, check_pruned, tensors, video
from mmg_bench.methods import Method
from mmg_bench.methods.random import Random
from mmg_bench.methods.registry import built_in, get_method, method_class, method_names
from mmg_bench.models.adapter import UnsupportedModelError, adapter_for
from mmg_bench.report.rows import read_rows
from mmg_bench.tokens import OPTIONAL_FIELDS, PrunedTokens, Selection, VideoTokens, keep

CONFIGS = Path(mmg_bench.__file__).parents[1] / "configs" / "method"
PACKAGE = TemporaryDirectory()
"""Where a third party's package is, whose method comes in by its entry point and has to do what all others do."""
third_party.write(Path(PACKAGE.name))
with third_party.installed(Path(PACKAGE.name)):
    NAMES = method_names()

every_method = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module", autouse=True)
def _third_party_is_installed() -> Iterator[None]:
    with third_party.installed(Path(PACKAGE.name)):
        yield


def test_third_parties_are_among_the_methods():
    assert third_party.NAME in NAMES
    assert method_class(third_party.NAME).__module__ == "someones_methods"


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
    ratio = data.draw(st.one_of(st.sampled_from([1e-6, 0.1, 0.25, 1.0]), st.floats(1e-3, 1)), "ratio")
    check_pruned(building(name)(ratio), tokens)


@every_method
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(name, check):
    check(building(name))


@dataclass(frozen=True)
class First(Method):
    """Keeps the first tokens of the video, as the contract wants it; those below break it in one way each."""

    name: ClassVar[str] = "first"

    def select(self, tokens: VideoTokens) -> PrunedTokens:
        return keep(tokens, torch.arange(self.budget(tokens), device=tokens.features.device))


def _first(**changes: Any) -> type[Method]:
    """A method like First, with other attributes."""
    return dataclass(frozen=True)(type("Broken", (First,), {"__doc__": "A method.", **changes}))


def _select(change: Callable[[VideoTokens, PrunedTokens], PrunedTokens]) -> type[Method]:
    """A method that leaves a change of what First does."""
    return _first(select=lambda self, tokens: change(tokens, First.select(self, tokens)))


def _drop_one(tokens: VideoTokens, pruned: PrunedTokens) -> PrunedTokens:
    return PrunedTokens(pruned.features[:-1], pruned.positions[:-1])


def _double(tokens: VideoTokens, pruned: PrunedTokens) -> PrunedTokens:
    return PrunedTokens(pruned.features[[*range(len(pruned) - 1), 0]], pruned.positions[[0, *range(len(pruned) - 1)]])


def _spoil(tokens: VideoTokens, pruned: PrunedTokens) -> PrunedTokens:
    tokens.features.neg_()
    return pruned


def _flat_is_nan(tokens: VideoTokens, pruned: PrunedTokens) -> PrunedTokens:
    """As by dividing by a spread."""
    return PrunedTokens(pruned.features / float((tokens.flat - tokens.flat[0]).abs().sum() > 0), pruned.positions)


def _by(key: Callable[[VideoTokens], Tensor], **changes: Any) -> type[Method]:
    """A method that keeps the tokens of the lowest `key`."""

    def select(self: Method, tokens: VideoTokens) -> PrunedTokens:
        return keep(tokens, key(tokens).argsort(stable=True)[: self.budget(tokens)])

    return _first(select=select, **changes)


def _stage(**changes: Any) -> type[Method]:
    """A method with one stage inside the model."""
    return _first(layers=lambda self, depth: (2,), **changes)


def _not_implemented() -> int:
    raise NotImplementedError


def _hiding(choose: Callable[[int], Tensor]) -> type[Method]:
    """A method that hides keys while decoding."""
    return _first(
        key_layer=lambda self, depth: 3, select_keys=lambda self, attention, memory: (choose(len(attention)), attention)
    )


BROKEN = {
    "is one missing from `needs`": _by(lambda tokens: tokens.flat[:, 0] * 0 + tokens.query.mean()),
    r"kept 47 of 160 tokens at retention_ratio=0.3: keep round\(R \* T \* N\) = 48, or set": _select(_drop_one),
    "each at most once unless the class sets exact": _select(_double),
    "must return PrunedTokens": _first(select=lambda self, tokens: tokens.flat),
    r"positions .* are \[48\] int32": _select(lambda _, p: PrunedTokens(p.features, p.positions.int())),
    r"^first.select returned positions of type list: return a torch\.Tensor$": _select(
        lambda _, p: PrunedTokens(p.features, p.positions.tolist())
    ),
    "select returned features of type list": _select(lambda _, p: PrunedTokens(p.features.tolist(), p.positions)),
    "select_inside returned index of type range": _stage(select_inside=lambda self, t: Selection(range(1))),
    "select_inside returned features of type list": _stage(
        select_inside=lambda self, t: Selection(torch.arange(1), t.features[:1].tolist())
    ),
    r"first: layers\(\) or key_layer\(\) failed .* 28 layers: KeyError: 28 \(test_contract\.py:\d+, in <lambda>\)": (
        _first(layers=lambda self, depth: {}[depth])
    ),
    "failed for a model of 28 layers: NotImplementedError": _first(key_layer=lambda self, depth: _not_implemented()),
    r"positions .* must be ascending": _select(lambda _, p: PrunedTokens(p.features.flip(0), p.positions.flip(0))),
    r"features .* float32: they must be": _select(lambda _, p: PrunedTokens(p.features.float(), p.positions)),
    "kept 0 tokens of a video .*: it must keep at least 1": _first(
        exact=False, select=lambda self, tokens: keep(tokens, torch.arange(0))
    ),
    "hold NaN or infinite values, but the video has none": _select(_flat_is_nan),
    "on a second call, with another global seed": _by(lambda tokens: torch.rand(tokens.total)),
    "torch's global random state was changed": _select(lambda _, p: (torch.manual_seed(0), p)[1]),
    "torch's gradient mode was changed": _select(lambda _, p: (torch.set_grad_enabled(False), p)[1]),
    "Can't call numpy": _by(lambda tokens: torch.from_numpy(tokens.flat.float().numpy().sum(1).copy())),
    "VideoTokens.features was changed": _select(_spoil),
    "kept tokens change when the channels are permuted": _by(lambda tokens: tokens.flat[:, 0]),
    "nan in VideoTokens.features raises no error": _first(finds_faults=True),
    "without the fields that `needs` does not name": _by(
        lambda tokens: tokens.flat[:, 0] * 0 if tokens.attention is None else tokens.attention.flatten()
    ),
    r"defines layers\(\) but not select_inside\(\)": _stage(),
    r"layers\(28\) is \(5\.6\d*,\): it must be a tuple of ascending whole numbers in 1\.\.27$": _first(
        layers=lambda self, depth: (depth * 0.2,), select_inside=lambda self, t: Selection(torch.arange(1))
    ),
    r"layers\(28\) is \(2, 1\): it must": _first(
        layers=lambda self, depth: (2, 1), select_inside=lambda self, t: Selection(torch.arange(1))
    ),
    r"layers\(28\) is 3: it must": _first(layers=lambda self, depth: 3),
    r"key_layer\(28\) is 28: it must be a whole number in 1\.\.27, or None": _first(
        key_layer=lambda self, depth: depth, select_keys=lambda self, attention, memory: (None, attention)
    ),
    "stage 0 inside the model: index must be within .* each token at most once": _stage(
        select_inside=lambda self, t: Selection(torch.tensor([3, 0, 3]))
    ),
    "select_inside returned Tensor: it must return Selection": _stage(select_inside=lambda self, t: t.positions),
    "LayerTokens.features was changed at stage 0": _stage(
        select_inside=lambda self, t: Selection(torch.arange(t.features.neg_().dim()))
    ),
    "chose different tokens on a second call": _stage(
        select_inside=lambda self, t: Selection(torch.randperm(len(t.positions))[: len(t.positions) // 2 + 1])
    ),
    r"index is \[(\d+)\] int64: it must be \[K\] int64 with K in 1\.\.\d+": _stage(
        select_inside=lambda self, t: Selection(torch.arange(len(t.positions) + 1))
    ),
    r"index is \[0\] int64: it must be": _stage(select_inside=lambda self, t: Selection(torch.arange(0))),
    r"index must be within 0\.\.\d+": _stage(select_inside=lambda self, t: Selection(torch.arange(2) - 1)),
    "inside the model: features hold NaN": _stage(
        select_inside=lambda self, t: Selection(torch.arange(1), t.features[:1] * torch.nan)
    ),
    r"features are \[2, 16\] float32: they must be \[1, 16\]": _stage(
        select_inside=lambda self, t: Selection(torch.arange(1), t.features[[0, 0]])
    ),
    "select_keys chose different keys": _hiding(lambda n: torch.randperm(n)[: n // 2 + 1]),
    "select_keys: index .* must be int64, with each key at most once": _hiding(
        lambda n: torch.zeros(2, dtype=torch.int64)
    ),
    "select_keys: index .* is not within the 40 keys": _hiding(lambda n: torch.arange(n + 1)),
    "has no docstring: add one": _first(__doc__=None),
    "Plain is not a frozen dataclass": type("Plain", (First,), {"__doc__": "A method."}),
    "returned different merged features on a second call": _stage(
        select_inside=lambda self, t: Selection(torch.arange(1), torch.rand_like(t.features[:1]))
    ),
    "VideoTokens.attention=None raises .*: it must raise a ValueError": _first(
        needs=frozenset({"attention"}), prune=lambda self, tokens: self.select(tokens) if tokens.attention.any() else 0
    ),
    r"stand_ins: \{'source': 'mean'\} does not fit Broken's fields: .*'source'": _first(
        stand_ins=({"source": "mean"},)
    ),
    r"stand_ins: \{'retention_ratio': 0.5\} still needs attention: choose": _first(
        needs=frozenset({"attention"}), stand_ins=({"retention_ratio": 0.5},)
    ),
    "retention_ratio=0 does not raise a ValueError that names it": _first(__post_init__=lambda self: None),
    "first.select returned positions on cpu: return positions on cuda:0": _select(
        lambda _, p: PrunedTokens(p.features, p.positions.cpu())
    ),
    "select_inside returned index on cpu: return index on cuda:0": _stage(
        select_inside=lambda self, t: Selection(torch.arange(1))
    ),
    "all tensors to be on the same device, but add was given cuda:0 and cpu": _by(
        lambda tokens: tokens.flat.detach().sum(1) + torch.arange(tokens.total)
    ),
    "select_keys returned index on cpu: return index on cuda:0": _hiding(lambda n: torch.arange(n)),
    "the kept tokens differ between a GPU and a CPU": _by(
        lambda tokens: tokens.flat.detach().sum(1) * (-1 if tokens.features.is_cuda else 1)
    ),
}


def _projected(tokens: VideoTokens) -> Tensor:
    """One random number for each token, of weights that are drawn anew, and alike, for each video."""
    weights = torch.randn(tokens.features.shape[2], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return tokens.flat.detach().double() @ weights.to(tokens.features.device)


@pytest.mark.parametrize("method", [First, _by(_projected, ordered_channels=True)], ids=["first", "random_projection"])
def test_a_good_method_passes(method):
    for check in CHECKS:
        check(method)


@pytest.mark.parametrize("says", BROKEN)
def test_what_breaks_the_contract_is_told(says):
    messages = []
    with torch.enable_grad():  # whatever the method leaves behind
        for check in CHECKS:
            try:
                check(BROKEN[says])
            except Exception as error:
                messages.append(str(error))
    assert any(re.search(says, message) for message in messages), messages


def test_the_command_tells_every_check(capsys, monkeypatch):
    assert check_method({"name": "sparsevlm", "version": 2}) == 0
    assert capsys.readouterr().out.endswith(f"sparsevlm passes all {len(CHECKS)} checks\n")
    monkeypatch.setattr(Random, "select", lambda self, tokens: tokens.nothing)
    assert check_method({"name": "random"}) == len(CHECKS) - 3  # which do not call it
    out = capsys.readouterr().out
    assert "  ok      documented " in out
    assert "  FAILED  dtypes               AttributeError: " in out
    assert f"(test_contract.py:{inspect.currentframe().f_lineno - 5}, in <lambda>)" in out


def test_the_command_tells_which_line_mixes_devices(capsys, monkeypatch):
    mixing = _by(lambda tokens: tokens.flat.detach().sum(1) + torch.arange(tokens.total))
    line = inspect.currentframe().f_lineno - 1
    monkeypatch.setattr(Random, "select", mixing.select)
    assert check_method({"name": "random"}) >= 1
    says = f"but add was given cuda:0 and cpu (test_contract.py:{line}, in <lambda>)"
    (failed,) = [said for said in capsys.readouterr().out.splitlines() if said.startswith("  FAILED  on a gpu")]
    assert failed.endswith(says)


def _variants() -> list[dict[str, Any]]:
    """Methods with other options than their defaults: those of Table 1, and the ablations of MMG-Vid."""
    of_table = [m for p in cfg.shipped("table")["table"]["profiles"].values() for m in p["methods"]]
    not_theirs = ("positions", "retention_ratios")
    options = [{k: v for k, v in method.items() if k not in not_theirs} for method in of_table]
    ablations = [{"budgets": "uniform"}, {"order": "greedy"}, {"gain_sign": "swapped"}, {"stage3": "dpc"}]
    ablations += [{"channels": "low_variance"}, {"r_min": 0.05}, {"min_segment_frames": 1}]
    options += [{"name": "mmg_vid", **ablation} for ablation in ablations]
    return [o for number, o in enumerate(options) if len(o) > 1 and o not in options[:number]]


@pytest.mark.parametrize("options", _variants(), ids=str)
def test_contract_of_variants(options):
    for check in CHECKS:
        check(building(**options))


def test_dense_does_not_look_at_values():
    tokens = video()
    broken = tokens.features.clone()
    broken[0, 0, 0] = torch.nan
    pruned = get_method("dense", retention_ratio=1.0).prune(replace(tokens, features=broken))
    torch.testing.assert_close(pruned.features[0], broken[0, 0], equal_nan=True)


def test_made_up_videos_have_every_optional_field():
    assert set(tensors(video())) == {"features", *OPTIONAL_FIELDS}


@every_method
def test_unknown_parameters_are_named(name):
    with pytest.raises(ValueError, match=f"method '{name}' has no parameter banana; it has: retention_ratio"):
        get_method(name, banana=1)


@every_method
def test_name_is_the_registered_one(name):
    assert method_class(name).name == name


@pytest.mark.parametrize("name", built_in())
def test_the_package_knows_the_classes_of_its_own(name):
    cls = method_class(name)
    assert getattr(methods, cls.__name__) is cls


def test_a_class_that_no_method_has_is_no_name_of_the_package():
    with pytest.raises(ImportError, match=r"cannot import name 'MMGVideo' from 'mmg_bench\.methods'"):
        from mmg_bench.methods import MMGVideo  # noqa: F401


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
    with pytest.raises(ValueError, match=r"method.second: no such option; method every_nth has: first"):
        cfg.composed("run", [f"method={third_party.NAME}", "method.second=1"])


def test_a_parameter_may_be_a_tuple(tmp_path, monkeypatch):
    module = third_party.MODULE.replace("first: int = 0", "first: tuple[int, ...] = (0, 1)")
    third_party.write(tmp_path, module.replace("self.first)", "{tuple: sum}[type(self.first)](self.first))"))
    with third_party.installed(tmp_path):
        given = [], ["method.first=[0,1]"], ["method.first=[2]"]
        composed = [cfg.plain(cfg.composed("run", [f"method={third_party.NAME}", *options])) for options in given]
        cells = [specs.cell(config["method"], 0.5) for config in composed]
        names = [cell.label for cell in dict.fromkeys(cells)]
        assert names == [third_party.NAME, f"{third_party.NAME}(first=(2,))"]
        assert building(third_party.NAME, first=[2])(0.5) == cells[-1].method
        assert command_line.given(f"mmg-bench check-method {third_party.NAME} first=[2]", monkeypatch) == 0
        with pytest.raises(ValueError, match=r"^every_nth.first={'a': 1}: it must be one value, or a list of values$"):
            make_cell(third_party.NAME, 0.5, first={"a": 1})


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (
            "import nothing_of_this_name",
            r"ModuleNotFoundError: No module named 'nothing_of_this_name' \(someones_methods.py:1\)$",
        ),
        ("\n\nclass EveryNth(:", r"SyntaxError: invalid syntax \(someones_methods.py:3\)$"),
        ("", r"AttributeError: module 'someones_methods' has no attribute 'EveryNth' \(registry.py:"),
    ],
)
def test_a_method_that_cannot_be_imported_is_told_in_a_line(module, says, tmp_path, monkeypatch, capsys):
    third_party.write(tmp_path, module)
    with third_party.installed(tmp_path):
        with pytest.raises(ValueError, match=f"^method 'every_nth' cannot be imported: {says}"):
            method_class(third_party.NAME)
        assert command_line.given("mmg-bench methods", monkeypatch) == 1
    listed = capsys.readouterr().out
    assert re.search(rf"^every_nth      method 'every_nth' cannot be imported: {says}", listed, re.MULTILINE)
    assert re.search(r"^visionzip ", listed, re.MULTILINE)


def test_a_method_that_cannot_be_imported_costs_the_others_no_times(tmp_path, monkeypatch, capsys):
    third_party.write(tmp_path, "import nothing_of_this_name")
    monkeypatch.setattr(bench_methods, "method_names", lambda: [third_party.NAME, "dense", "uniform"])
    small = f"frames=2 tokens=4 width=8 repeats=3 warmup=0 device=cpu out={tmp_path / 'out'}"
    fault = "method 'every_nth' cannot be imported: ModuleNotFoundError: No module named 'nothing_of_this_name'"
    with third_party.installed(tmp_path):
        assert command_line.given(f"mmg-bench bench-methods {small}", monkeypatch) == 1
        said = capsys.readouterr().out
        assert command_line.given(f"mmg-bench bench-methods {small} methods=[every_nth,uniform]", monkeypatch) == 2
    assert said.startswith(f"{fault} (someones_methods.py:1); it is left out\n")
    assert set(read_rows(tmp_path / "out" / "rows.csv").method) == {"Gram product", "uniform"}
    assert fault in capsys.readouterr().err


def test_the_name_of_an_entry_point_is_the_methods(tmp_path):
    third_party.write(tmp_path, third_party.MODULE.replace('= "every_nth"', '= "nth"'))
    says = r"registers method 'every_nth', but the class has name = 'nth': give both the same name"
    with third_party.installed(tmp_path), pytest.raises(ValueError, match=says):
        method_class(third_party.NAME)


def test_a_method_of_a_name_that_is_taken_is_refused(tmp_path):
    third_party.write(tmp_path)
    points = tmp_path / "someones_methods-1.0.dist-info" / "entry_points.txt"
    points.write_text("[mmg_bench.methods]\nrandom = someones_methods:EveryNth\n")
    says = (
        "entry point 'someones_methods:EveryNth' registers 'random', which is an mmg_bench method: give it another name"
    )
    with third_party.installed(tmp_path), pytest.raises(ValueError, match=says):
        method_class("random")


def test_the_stand_in_of_a_method_is_named_where_it_is_supplied(tmp_path, tiny):
    asks = """    needs: ClassVar[frozenset[str]] = frozenset({"frame_features"})
    stand_ins: ClassVar[tuple[dict[str, int], ...]] = ({"first": 1},)

    def __post_init__(self) -> None:
        object.__setattr__(self, "needs", frozenset({READ if self.first else "frame_features"}))

    name: """
    for read, ways in (("keys", "use its stand-in, every_nth with first=1, or give"), ("joint_query", "give")):
        folder = tmp_path / read
        folder.mkdir()
        third_party.write(folder, third_party.MODULE.replace("    name: ", asks.replace("READ", repr(read))))
        with third_party.installed(folder):
            for who in (third_party.NAME, f"{third_party.NAME}(first=0)"):
                with pytest.raises(UnsupportedModelError, match=rf"attention, keys\): {ways} the model"):
                    adapter_for(tiny[0]).check({"frame_features"}, who)
    with pytest.raises(UnsupportedModelError, match=r"attention, keys\): give the model"):
        adapter_for(tiny[0]).check({"frame_features"}, "registered_nowhere")


def test_a_method_without_a_name_is_told_so_when_it_is_made():
    @dataclass(frozen=True)
    class Mine(Method):
        def select(self, tokens: VideoTokens) -> PrunedTokens:
            raise AssertionError("it is not to come this far")

    with pytest.raises(
        TypeError, match=r"^Mine has no name: set the one that tables show, name: ClassVar\[str\] = ...$"
    ):
        Mine(retention_ratio=0.5)


def test_provenance_names_the_package_of_a_method():
    mine = make_cell(third_party.NAME, 0.5)
    assert described_plug_ins([make_cell("random", 0.5), mine]) == {
        "plug_ins": {third_party.NAME: f"someones-methods 1.0, code {code_of(type(mine.method))[:12]}"}
    }
    assert described_plug_ins([make_cell("random", 0.5)]) == {}


def test_every_method_config_belongs_to_a_method():
    assert {p.stem for p in CONFIGS.glob("*.yaml")} <= set(NAMES)


def test_unknown_method_is_answered_with_the_names():
    with pytest.raises(
        ValueError, match=r"unknown method 'mmgvid'; did you mean mmg_vid\? the registered methods are: .*mmg_vid"
    ):
        get_method("mmgvid")
