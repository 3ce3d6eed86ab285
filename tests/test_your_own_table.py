"""docs/your-own-table.md works as it stands, and docs/results.md names all that the files hold."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from command_line import given
from mmg_bench import config as cfg
from mmg_bench import specs
from mmg_bench.commands.profiles import named
from mmg_bench.commands.publish import results_folder
from mmg_bench.report.rows import COLUMNS, METRICS, read_rows
from mmg_bench.runner.records import Record, read_records

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "your-own-table.md").read_text()
RESULTS = (DOCS / "results.md").read_text()
FILES = dict(re.findall(r"`(mine/[\w/]+\.\w+)`[^`]*\n\n```\w+\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = re.findall(r"```sh\n(.*)\n```", PAGE)


@pytest.fixture
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)


@pytest.mark.usefixtures("_here")
def test_it_runs_as_it_stands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = COMMANDS
    assert given(f"{command} limit=2 latency=false", monkeypatch) == 0
    rows = read_rows("outputs/ablation/small/rows.csv")
    accuracy = rows[(rows.metric == "accuracy") & (rows.skill == "all")]
    assert list(zip(accuracy.method, accuracy.retention_ratio, strict=True)) == [
        ("dense", 1.0),
        *((method, ratio) for method in ("random", "mmg_vid", "mmg_vid(tau=0.9)") for ratio in (0.25, 0.1)),
        ("mmg_vid(positions=contiguous)", 0.1),
    ]
    assert len(read_records(Path("outputs/ablation/small/embedded"))) == 2 * len(accuracy)
    gains = rows[rows.metric == "points_over mmg_vid"]
    assert set(gains.method) == {"random", "mmg_vid(tau=0.9)", "mmg_vid(positions=contiguous)"}
    compare, doctor = (re.findall(rf"`(mmg-bench {name} .*?)`", PAGE, re.DOTALL)[0] for name in ("compare", "doctor"))
    capsys.readouterr()
    assert given(compare, monkeypatch) == 0
    assert "A: mmg_vid at R = 25 %; B: mmg_vid(tau=0.9) at R = 25 %" in capsys.readouterr().out
    assert given(doctor.replace("\n", " "), monkeypatch) == 0
    assert "Table ablation, profile small: embedded on embedded\n" in capsys.readouterr().out


@pytest.mark.usefixtures("_here")
def test_one_may_build_on_a_table_of_the_package() -> None:
    config = cfg.plain(cfg.composed("table", ["table=low", "profile=embedded", "hydra.searchpath=[mine]"]))
    of_package = named(cfg.shipped("table") | {"profile": "embedded"})["embedded"]
    own = named(config)["embedded"]
    ((*_, cells),), ((*_, usual),) = own["runs"], of_package["runs"]
    assert {cell.label for cell in cells} == {cell.label for cell in usual}
    ratios = {cell.label: [] for cell in cells}
    for cell in cells:
        ratios[cell.label].append(cell.method.retention_ratio)
    assert ratios.pop("dense") == [1.0]
    assert set(map(tuple, ratios.values())) == {(0.05, 0.03)}
    assert str(results_folder(config, "embedded")) == "outputs/low/embedded"


@pytest.mark.usefixtures("_here")
def test_models_and_benchmarks_of_ones_own_are_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for group, change in (("model", "frames: 8"), ("benchmark", "average: skills")):
        text = (cfg.CONFIGS / group / "embedded.yaml").read_text()
        option = change.partition(":")[0]
        changed = re.sub(rf"^{option}: \w+", change, text, flags=re.MULTILINE).replace("name: embedded", "name: own")
        Path(f"mine/{group}").mkdir()
        Path(f"mine/{group}/own.yaml").write_text(changed)
    command = f"{COMMANDS[0]} table.profiles.small.model=own table.profiles.small.benchmarks=own"
    assert given(f"{command} limit=1 latency=false model.own.dtype=bfloat16", monkeypatch) == 0
    rows = read_rows("outputs/ablation/small/rows.csv")
    assert set(rows.model) == {"own"}
    assert set(rows.frames) == {8}
    assert set(rows.benchmark) == {"own"}
    assert "bfloat16" in Path("outputs/ablation/small/table.md").read_text()
    given("mmg-bench run --help 'hydra.searchpath=[mine]' model=own", monkeypatch)
    assert "model=own: options, set with model.option=value:" in capsys.readouterr().out
    assert given("mmg-bench run --cfg", monkeypatch) == 0
    assert "own" not in cfg.names("model")  # nothing is left of it for the next command


@pytest.mark.usefixtures("_here")
def test_a_method_has_options_by_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine/method").mkdir()
    Path("mine/method/careful.yaml").write_text("name: mmg_vid\ntau: 0.9\n")
    for config in (
        cfg.composed("table", ["table=ablation", "hydra.searchpath=[mine]"]),
        cfg.composed("run", ["method=careful", "hydra.searchpath=[mine]"]),
    ):
        table = "table" in config
        cells = specs.table_cells([{"name": "careful", "k": 0.3}], [0.5]) if table else [specs.cell(config.method, 0.5)]
        assert cells[-1].label == ("mmg_vid(tau=0.9, k=0.3)" if table else "mmg_vid(tau=0.9)")


@pytest.mark.usefixtures("_here")
def test_mistakes_in_the_files_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def says(file: str, text: str) -> str:
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_text(text)
        assert given(COMMANDS[0], monkeypatch) == 2
        Path(file).unlink()
        error = capsys.readouterr().err
        assert error.startswith("mmg-bench: ")
        assert error.count("\n") == 1
        return error

    table = FILES["mine/table/ablation.yaml"]
    assert 'ablation.yaml", line 11' in says("mine/table/ablation.yaml", table.replace("tau: 0.9}", "tau: 0.9"))
    assert "worker: no such entry; the entries are name" in says("mine/table/ablation.yaml", f"{table}worker: 1\n")
    no_row = table.replace("against: mmg_vid", "against: mmg_vid(k=1)")
    wrong = (
        "table.against='mmg_vid(k=1)': no such row; did you mean mmg_vid? there are random, mmg_vid, mmg_vid(tau=0.9),"
    )
    assert wrong in says("mine/table/ablation.yaml", no_row)
    assert "table.against=7: " in says("mine/table/ablation.yaml", table.replace("against: mmg_vid", "against: 7"))
    empty = "name: ablation\nretention_ratios: [0.5]\nprofiles: {}\n"
    assert "table.profiles: give at least one by name" in says("mine/table/ablation.yaml", empty)
    speed = "name: ablation\nretention_ratios: [0.5]\nprofiles: {a: {workloads: WORK, methods: random}}\n"
    for work, wrong in (("[embedded]", "give each model by name"), ("{embedded: }", "workloads.embedded.frames is")):
        assert wrong in says("mine/table/ablation.yaml", speed.replace("WORK", work))
    of_speed = speed.replace("WORK", "{embedded: {frames: 4, batch_sizes: 1}}")
    wrong = "table.against='random': a table of speed compares only with dense; leave it out"
    assert wrong in says("mine/table/ablation.yaml", f"{of_speed}against: random\n")
    assert "embedded.yaml: mmg_bench already has a model with this name; rename" in says(
        "mine/model/embedded.yaml", "name: embedded"
    )


METHODS = "table.profiles.small.methods: "
ENTRIES = [
    ("{name: mmg_vid, tau: 7}", f"{METHODS}mmg_vid: MMGVid.tau=7: it must be a number in [-1, 1]"),
    (
        "{name: mmg_vid, tua: 0.9}",
        f"{METHODS}mmg_vid: method 'mmg_vid' has no parameter tua; did you mean tau? it has: retention_ratio,",
    ),
    ("{name: mmg_vid, 7: 0.9}", f"{METHODS}mmg_vid: method 'mmg_vid' has no parameter 7; it has: retention_ratio,"),
    ("{name: mmg_vid, positions: here}", f"{METHODS}mmg_vid: positions='here': choose original, contiguous"),
    ("{name: mmg_vid, retention_ratios: 25}", f"{METHODS}mmg_vid: retention_ratios=25: it must be a number in (0, 1]"),
    (
        "{name: mmg_vid, retention_ratios: [true]}",
        f"{METHODS}mmg_vid: retention_ratios=True: it must be a number in (0, 1]",
    ),
    ("mmgvid", f"{METHODS}mmgvid: no method is called 'mmgvid'; did you mean mmg_vid? choose one of: "),
    (
        '"mmg_vid(tau=0.9, positions=contiguous)"',
        f"{METHODS}'mmg_vid(tau=0.9, positions=contiguous)' is a label as printed in a table; write "
        "{name: mmg_vid, tau: 0.9, positions: contiguous}\n",
    ),
    (
        '{name: "prumerge(plus=None)"}',
        f"{METHODS}'prumerge(plus=None)' is a label as printed in a table; write {{name: prumerge, plus: null}}\n",
    ),
    (
        "chain(before=holitom(inner=False, D=0.4), inside=fastv)",
        f"{METHODS}'chain(before=holitom(inner=False, D=0.4), inside=fastv)' is a label as printed in a table; write "
        "{name: chain, before: 'holitom(inner=False,D=0.4)', inside: fastv}\n",
    ),
    ("random (control)", f"{METHODS}'random (control)' is a label as printed in a table; write random\n"),
]


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("command", ["table", "doctor"])
@pytest.mark.parametrize(("entry", "says"), ENTRIES)
def test_a_mistake_in_an_entry_names_the_entry(
    command: str, entry: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path("mine/table/ablation.yaml")
    file.write_text(FILES[str(file)].replace("{name: mmg_vid, tau: 0.9}", entry))
    assert given(f"mmg-bench {command} table=ablation hydra.searchpath=[mine]", monkeypatch) == 2
    assert capsys.readouterr().err.startswith(f"mmg-bench: {says}")


@pytest.mark.usefixtures("_here")
def test_a_ratio_of_the_whole_table_is_no_entrys_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert given(f"{COMMANDS[0]} table.retention_ratios=[0.5,25]", monkeypatch) == 2
    assert capsys.readouterr().err.startswith("mmg-bench: table.retention_ratios=25: it must be a number in (0, 1]")


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize("text", ["", "# nothing yet\n", "some text\n", "- a list\n", "name:\n"])
@pytest.mark.parametrize(
    ("group", "wanted"),
    [
        ("table", "name, retention_ratios, profiles"),
        ("model", "name, path"),
        ("benchmark", "name, tasks, video"),
        ("method", "name"),
    ],
)
def test_a_file_without_what_it_must_have_is_named(
    group: str, wanted: str, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(f"mine/{group}").mkdir(exist_ok=True)
    Path(f"mine/{group}/own.yaml").write_text(text)
    says = f"mine/{group}/own.yaml: missing {wanted}; the file of a {group} must have {wanted}\n"
    commands = [f"{'table' if group == 'table' else 'run'} {group}=own"]
    if group != "table":
        entry = {"method": "methods=own", "model": "model=own", "benchmark": "benchmarks=own"}[group]
        commands.append(f"table table=ablation table.profiles.small.{entry}")
    for command in commands:
        assert given(f"mmg-bench {command} hydra.searchpath=[mine]", monkeypatch) == 2
        error = capsys.readouterr().err
        assert error.startswith("mmg-bench: ")
        assert error.endswith(says)
        assert error.count("\n") == 1


UNREADABLE = "it cannot be read as YAML in UTF-8, with lines `option: value`: "
LACKS = "missing name, path; the file of a model must have name, path"
OF_MODEL = [
    (b"path: \xff\n", "run model=own", UNREADABLE),
    (b"path: \xff\n", "run --help model=own", UNREADABLE),
    (b"path: [\n", "measure --help model=own", UNREADABLE),
    (b"path: \xff\n", "table table=ablation table.profiles.small.model=own", UNREADABLE),
    (b"path: [\n", "run model=own", UNREADABLE),
    (b"path: ${\n", "run model=own", UNREADABLE),
    (b"7\n", "run model=own.yaml", UNREADABLE),
    (b"# nothing\n", "run model=own.yaml", LACKS),
    (b"# nothing\n", r"run model=\'own\' model.frame=8", LACKS),
    (b"# @package _global_\nname: own\npath: own\n", "run model=own", LACKS),
    (b"defaults: [_self_]\n", "run model=own", LACKS),
    (
        b"defaults: [embedded]\nname: own\n",
        "table table=ablation table.profiles.small.model=own",
        "`defaults` works only with model=own; for a table, write the inherited options out here",
    ),
]


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(("content", "command", "says"), OF_MODEL)
def test_a_file_that_cannot_be_taken_is_named_however_it_is_chosen(
    content: bytes, command: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine/model").mkdir()
    Path("mine/model/own.yaml").write_bytes(content)
    assert given(f"mmg-bench {command} hydra.searchpath=[mine]", monkeypatch) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"mmg-bench: mine/model/own.yaml: {says}")
    assert error.count("\n") == 1


def test_a_file_may_build_on_another(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/own.yaml").write_text("defaults: [embedded]\nname: own\n")
    config = cfg.composed("run", ["model=own", f"hydra.searchpath=[{tmp_path}]"])
    assert (config.model.name, config.model.path) == ("own", "embedded")


def test_the_page_on_results_names_everything() -> None:
    _, rows, records, _ = RESULTS.split("\n## ")
    columns, metrics = rows.split("| metric | value |")
    for part, names in ((columns, COLUMNS), (metrics, METRICS), (records, [f.name for f in fields(Record)])):
        first = re.findall(r"^\| (`.*?`) \|", part, re.MULTILINE)
        named = [name for cell in first for name in re.findall(r"`(\w+)`", cell)]
        assert sorted(set(named)) == sorted({*names, *(("metric", "value") if part is columns else ())})


def test_its_example_runs_as_it_stands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(DOCS.parent)
    (script,) = re.findall(r"```python\n(.*?)```", RESULTS, re.DOTALL)
    exec(script, {})
    shown = capsys.readouterr().out
    assert "mmg_vid" in shown
    assert r"mmg\_vid(positions=contiguous) &" in shown  # in LaTeX
