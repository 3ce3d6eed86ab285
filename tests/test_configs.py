"""Every configuration composes, and mistakes are answered with the valid names."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from mmg_bench import cells, specs
from mmg_bench import config as cfg
from mmg_bench.cells import code_of, make_cell
from mmg_bench.commands import measure
from mmg_bench.commands.profiles import named
from mmg_bench.commands.publish import results_folder
from mmg_bench.files import digest_of
from mmg_bench.methods import registry
from mmg_bench.methods.registry import get_method, method_names


def names(group: str) -> list[str]:
    return sorted(p.stem for p in (cfg.CONFIGS / group).glob("*.yaml"))


@pytest.mark.parametrize("name", names("method"))
def test_methods(name: str) -> None:
    config = cfg.plain(cfg.composed("run", [f"method={name}"]))
    cell = specs.cell(config["method"], config["retention_ratio"], config["positions"])
    assert cell.method.name == name
    assert cell.label == name or cell.method.parts  # a method made of others always names them
    assert cell == make_cell(name, config["retention_ratio"])  # every default in the file is the class's own


def test_every_method_has_a_configuration() -> None:
    assert names("method") == sorted(method_names())


@pytest.mark.parametrize("name", names("model"))
def test_models(name: str) -> None:
    config = cfg.plain(cfg.composed("run", [f"model={name}"]))
    assert specs.model_spec(config["model"]).name == name


@pytest.mark.parametrize("name", names("benchmark"))
def test_benchmarks(name: str) -> None:
    config = cfg.plain(cfg.composed("run", [f"benchmark={name}"]))
    spec = specs.benchmark_spec(config["benchmark"])
    assert spec.name == name
    assert spec.questions is not None
    with pytest.raises(ValueError, match=r"benchmark.average='tasks': choose questions or skills"):
        specs.benchmark_spec({**config["benchmark"], "average": "tasks"})


@pytest.mark.parametrize("name", names("table"))
def test_tables(name: str) -> None:
    config = cfg.plain(cfg.composed("table", [f"table={name}"]))
    spec, profiles = config["table"], named(config)
    assert profiles.keys() == spec["profiles"].keys()
    for profile in profiles.values():
        if "workloads" in profile:
            cells = next(unit.cells for unit in measure.units(profile))
            assert profile["pending"] is None or profile["pending"] in spec["profiles"]
        else:
            specs.model_spec(cfg.load("model", profile["model"]))
            for benchmark in profile["benchmarks"]:
                specs.benchmark_spec(cfg.load("benchmark", benchmark))
            ((_, _, _, cells),) = profile["runs"]
        assert cells[0].method.name == "dense"
        assert len({(c.label, c.method.retention_ratio) for c in cells}) == len(cells)


def test_a_cell_that_is_listed_twice_is_one() -> None:
    methods: list[dict[str, Any]] = [{"name": "mmg_vid"}, {"name": "mmg_vid", "tau": 0.95}, {"name": "dense"}]
    cells = specs.table_cells(methods, [0.25, 0.1, 0.25])
    assert [(c.label, c.method.retention_ratio) for c in cells] == [("dense", 1), ("mmg_vid", 0.25), ("mmg_vid", 0.1)]


def test_options_that_rows_do_not_tell() -> None:
    def config(frames: int, steps: int) -> dict[str, Any]:
        return {"model": {"name": "m", "frames": frames}, "measure": {"new_tokens": steps}, "workers": steps}

    told = ("model.name", "model.frames")
    cfg.check_told_apart([config(8, 1), config(16, 1), config(8, 1)], told, "{}")
    given, into = "measure.new_tokens=1,2 workers=1,2", "${measure.new_tokens}/${workers}"
    says = re.escape(f"{given}: rows in one folder could not be told apart; put {into}")
    with pytest.raises(ValueError, match=f"^{says}"):
        cfg.check_told_apart([config(8, 1), config(16, 1), config(8, 2), config(16, 2)], told, "put {}")


def test_a_part_of_a_table_does_not_take_its_place() -> None:
    def goes(*overrides: str) -> str:
        return str(results_folder(cfg.plain(cfg.composed("table", overrides)), "embedded"))

    assert goes("table=retention") == "results/retention/embedded"
    assert goes("table=retention", "table.few_ratios=[0.5]") == "outputs/retention/embedded"
    assert goes() == goes("profile=embedded", "workers=1") == "results/table1/embedded"
    assert goes("workers=2", "output_dir=elsewhere") == "results/table1/embedded"
    for other in (
        "model.embedded.path=/copy",
        "benchmark.embedded.data=/copy",
        "limit=6",
        "measure.repeats=3",
        "latency=false",
        "table.retention_ratios=[0.5]",
        "model.embedded.frames=8",
    ):
        assert goes(other) == "outputs/table1/embedded"
    assert goes("limit=6", "results_dir=here") == "here/embedded"


def test_a_whole_table_needs_a_folder_of_results_that_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").write_text("a file")
    whole = cfg.plain(cfg.composed("table", []))
    with pytest.raises(ValueError, match=r"results_dir='results/table1': .*/results is a file; name another folder"):
        results_folder(whole, "embedded")
    assert results_folder({**whole, "limit": 6}, "embedded") == Path("outputs/table1/embedded")


def test_unknown_names_are_answered_with_the_valid_ones() -> None:
    with pytest.raises(
        ValueError, match=r"no benchmark is called 'video-mme'; did you mean videomme\? choose one of: .*videomme"
    ):
        cfg.load("benchmark", "video-mme")
    with pytest.raises(
        ValueError, match=r"unknown method 'fast'; did you mean fastv\? the registered methods are: .*mmg_vid"
    ):
        specs.cell({"name": "fast"}, 0.5)
    with pytest.raises(
        ValueError,
        match=r"method 'mmg_vid' has no parameter tua; did you mean tau\? "
        r"it has: .*tau.* the method's file in configs/method does",
    ):
        specs.cell({"name": "mmg_vid", "tua": 1}, 0.5)
    with pytest.raises(ValueError, match=r"model has no option frame; it has: .*frames"):
        specs.model_spec({**cfg.load("model", "embedded"), "frame": 3})


@pytest.mark.parametrize("ratio", [0, -0.1, 1.01, "a", True])
def test_a_ratio_out_of_range(ratio: object) -> None:
    with pytest.raises(ValueError, match=r"MMGVid.retention_ratio=.* it must be a number in \(0, 1\]"):
        specs.cell({"name": "mmg_vid"}, ratio)  # type: ignore[arg-type]


def test_labels_tell_what_differs() -> None:
    assert (
        specs.cell({"name": "mmg_vid", "tau": 0.9}, 0.25, "contiguous").label
        == "mmg_vid(tau=0.9, positions=contiguous)"
    )
    same = specs.cell({"name": "mmg_vid"}, 0.25), specs.cell({"name": "mmg_vid", "tau": 0.95}, 0.25, "original")
    assert same[0].key(model="m") == same[1].key(model="m") != same[0].key(model="n")


def test_other_code_of_a_method_has_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed, same = specs.cell({"name": "mmg_vid"}, 0.25), specs.cell({"name": "random"}, 0.25)
    before = changed.key(), same.key()
    source = inspect.getsourcefile
    copy = tmp_path / "mmg_vid.py"
    copy.write_text(Path(source(type(changed.method)) or "").read_text() + "# one line more\n")
    monkeypatch.setattr(inspect, "getsourcefile", lambda cls: str(copy) if cls is type(changed.method) else source(cls))
    code_of.cache_clear()
    assert (changed.key() != before[0], same.key() != before[1]) == (True, False)
    code_of.cache_clear()


def test_a_method_is_answered_anew_when_what_it_imports_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not when another method does, or comes."""
    methods = {name: type(get_method(name)) for name in method_names()}
    code_of.cache_clear()
    before = {name: code_of(cls) for name, cls in methods.items()}
    users = {
        "tokens.py": set(methods),
        "base.py": set(methods),
        "_temporal_dpc_triton.py": {"mmg_vid", "dpc_knn"},  # imported in a function; dpc_knn shares code with mmg_vid
        "mmg_vid.py": {"mmg_vid", "dpc_knn"},
        "_inside.py": {
            "aim",
            "dart",
            "fastv",
            "pact",
            "pdrop",
            "sparsevlm",
            "dycoke",
            "flashvid",
            "framefusion",
            "holitom",
            "prunevid",
            "random",
            "tango",
            "v2drop",
            "chain",
        },
        "fastv.py": {"fastv"},
        "tome.py": {"tome", "aim"},
        "registry.py": {"chain"},  # which finds its parts by it
    }
    for changed, expected in users.items():

        def digest(files: list[Path], changed: str = changed) -> str:
            return f"{digest_of(files)}{'changed' if changed in {file.name for file in files} else ''}"

        monkeypatch.setattr(cells, "digest_of", digest)
        code_of.cache_clear()
        assert {name for name, cls in methods.items() if code_of(cls) != before[name]} == expected, changed
    code_of.cache_clear()


def test_a_file_that_holds_another_method_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmg_bench.methods.renamed", sys.modules[type(get_method("random")).__module__])
    monkeypatch.setattr(registry, "built_in", lambda: ("renamed",))
    with pytest.raises(
        ValueError, match=r"renamed\.py must define exactly one Method with name = 'renamed'; it has 'ra"
    ):
        specs.cell({"name": "renamed"}, 0.5)


def test_a_method_is_answered_anew_when_another_file_of_its_own_package_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "theirs" / "inner"
    inner.mkdir(parents=True)
    imports = "from . import near\nfrom .inner import deep\nimport theirs.far\n"
    method = "from mmg_bench.methods.random import Random\n\n\nclass Theirs(Random):\n    pass\n"
    files = {
        "method.py": imports + method,
        "near.py": "def late():\n    from .inner.deeper import thing\n",
        "far.py": "import json\n",
        "inner/__init__.py": "from . import sibling\n",
        "inner/sibling.py": "",
        "inner/deep.py": "from ..beyond import thing\n",
        "inner/deeper.py": "thing = 1\n",
        "beyond.py": "thing = 1\n",
        "alone.py": "from . import method\n",
        "__init__.py": "",
    }
    for name, text in files.items():
        (tmp_path / "theirs" / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    cls = importlib.import_module("theirs.method").Theirs
    seen: list[Path] = []
    monkeypatch.setattr(cells, "digest_of", lambda files: seen.extend(files))
    code_of.cache_clear()
    code_of(cls)
    code_of.cache_clear()
    monkeypatch.setattr(cls, "__module__", "__main__")  # as by `python -m theirs.method`
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", importlib.util.find_spec("theirs.method"))
    monkeypatch.setattr(inspect, "getsourcefile", lambda cls: str(tmp_path / "theirs" / "method.py"))
    by_module = list(seen)
    seen.clear()
    code_of(cls)
    code_of.cache_clear()
    assert seen == by_module
    own = {str(file.relative_to(tmp_path / "theirs")) for file in seen if tmp_path in file.parents}
    assert own == set(files) - {"alone.py", "__init__.py"}
    assert {"random.py", "base.py", "tokens.py"} <= {file.name for file in seen}
    assert "mmg_vid.py" not in {file.name for file in seen}


def test_a_sweep_is_every_combination() -> None:
    configs = cfg.sweep("run", ["method=mmg_vid,random", "retention_ratio=0.1,0.25", "limit=3"])
    found = [(c.method.name, c.retention_ratio, c.limit) for c in configs]
    assert found == [(m, r, 3) for m in ("mmg_vid", "random") for r in (0.1, 0.25)]
    (one,) = cfg.sweep("run", ["method.tau=0.9"])
    assert one.method.tau == 0.9
    assert [c.method.name for c in cfg.sweep("run", ["method=glob(fast*)"])] == ["fastv", "fastvid"]
    assert [c.limit for c in cfg.sweep("run", ["limit=range(1,7,2)"])] == [1, 3, 5]


@pytest.mark.parametrize("command", ["run", "measure", "show"])
def test_an_option_of_one_method_leaves_the_others_alone(command: str) -> None:
    configs = cfg.sweep(command, ["method=mmg_vid,cdpruner", "method.cdpruner.relevance=llm,joint"])
    assert [c.method.get("relevance") for c in configs] == [None, None, "llm", "joint"]
    assert [c.method.name for c in configs] == ["mmg_vid", "mmg_vid", "cdpruner", "cdpruner"]
    both = cfg.sweep(command, ["method.random.seed=2", "method=random,fastv"])
    assert [c.method.get("seed") for c in both] == [2, None]
    assert cfg.composed(command, ["method.mmg_vid.tau=0.9"]).method.tau == 0.9  # which is chosen if nothing is said
    thrice = ["method.tau=0.9", "method.tau=0.8", "method.mmg_vid.tau=0.9"]
    assert cfg.composed(command, thrice).method.tau == 0.9  # the last counts, by whichever name


@pytest.mark.parametrize(
    "text",
    ["What's this?", "Who? (A) he (B) she", "a, or b", "cost ${x}", "ends \\", "\\'", "5", "null", "ü = {1}", '"'],
)
def test_a_question_is_taken_as_it_stands(text: str) -> None:
    assert cfg.plain(cfg.composed("show", [f"question={text}"]))["question"] == text
    both = cfg.sweep("show", [f"question={text}", "method=mmg_vid,random"])
    assert [cfg.plain(config)["question"] for config in both] == [text, text]


def test_paths_are_taken_as_they_stand_but_for_references() -> None:
    config = cfg.plain(cfg.composed("run", ["output_dir=a, b/ü/${model.name}", "model=embedded"]))
    assert config["output_dir"] == "a, b/ü/embedded"
    assert cfg.plain(cfg.composed("show", ["video='it is'"]))["video"] == "it is"
