"""`mmg-bench measure` and tables of speed, on the tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import families
from mmg_bench import config as cfg
from mmg_bench import specs
from mmg_bench.benchmarks.embedded.render import write_video
from mmg_bench.benchmarks.embedded.world import make_world
from mmg_bench.commands import measure
from mmg_bench.measure import efficiency, latency, roofline
from mmg_bench.measure.flops import TextGeometry, flops_4nd2, flops_gqa
from mmg_bench.methods.mmg_vid import MMGVid
from mmg_bench.methods.random import Random
from mmg_bench.models.loading import VideoLLM
from mmg_bench.report.rows import provenance_keys, read_rows
from mmg_bench.runner import provenance
from mmg_bench.runner.claims import ClaimedError

QUICK = ["measure.repeats=2", "measure.warmup=0", "measure.new_tokens=2", "text_tokens=12", "video=random"]


@pytest.fixture(autouse=True)
def _small_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(roofline._SIDE, "cpu", 64)
    monkeypatch.setitem(roofline._COPY_BYTES, "cpu", 2**16)


def command(folder: Path, out: Path, *overrides: str) -> int:
    model = [f"model.path={folder}", "model.name=tiny", "frames=4", f"output_dir={out}"]
    return measure.measure(cfg.sweep("measure", [*QUICK, *model, *overrides]))


def run(folder: Path, out: Path, *overrides: str) -> pd.DataFrame:
    assert command(folder, out, *overrides) == 0
    return read_rows(out / "rows.csv")


def value(rows: pd.DataFrame, method: str, metric: str, **where: Any) -> float:
    found = rows[(rows.method == method) & (rows.metric == metric)]
    for column, wanted in where.items():
        found = found[found[column] == wanted]
    (one,) = found.value
    return float(one)


def test_everything_is_measured_beside_dense(tiny_folder: Path, tmp_path: Path) -> None:
    rows = run(tiny_folder, tmp_path, "method=uniform", "retention_ratio=0.25")
    assert set(rows.method) == {"dense", "uniform"}
    expected = set(latency.TIMES) - {"decode_ms", "e2e_ms", "e2e_speedup"}  # random pixels
    expected |= {"flops_gqa", "flops_4nd2", "flops_counted", "retention_layer_mean"}
    expected |= {"kv_cache_bytes", "peak_memory_bytes", "weights_bytes"}
    expected |= {"activation_memory_bytes", "encode_memory_bytes"}
    expected |= {f"{part}_{what}" for part in ("prefill", "decode") for what in ("roofline_ms", "over_roofline")}
    for method in ("dense", "uniform"):
        assert set(rows[rows.method == method].metric) == expected
    geometry = TextGeometry.from_config(VideoLLM(spec(tiny_folder)).model.config.get_text_config())
    assert value(rows, "uniform", "flops_gqa") == flops_gqa(geometry, 16)
    assert value(rows, "dense", "flops_4nd2") == flops_4nd2(geometry, 64)
    assert value(rows, "dense", "flops_counted") > flops_gqa(geometry, 64)
    assert set(rows[rows.method == "uniform"].realised_tokens) == {16}
    assert set(rows.benchmark) == {"-"}
    assert set(rows[rows.metric == "prefill_ms"].n) == {2}
    (entry,) = json.loads((tmp_path / "provenance.json").read_text()).values()
    assert entry["video"] == "random pixels 640x360"
    assert entry["ceilings"]["bytes_per_second"] > 0
    assert entry["attention"] == "sdpa"
    assert str(tiny_folder.parent) not in json.dumps({k: v for k, v in entry.items() if k not in ("model", "command")})


@pytest.mark.parametrize(("video", "total"), [("random", 2 * 6 * 10), ("generated", 2 * 8 * 8)])
def test_another_family_is_measured(tmp_path: Path, video: str, total: int) -> None:
    torch.manual_seed(0)
    folder = tmp_path / "qwen"
    for part in families.qwen2_5_vl():
        part.save_pretrained(folder)
    rows = run(folder, tmp_path / "out", "method=mmg_vid,fastv", "weights=random", "batch_size=2", f"video={video}")
    assert set(rows.method) == {"dense", "mmg_vid", "fastv"}
    assert set(rows[rows.method == "dense"].realised_tokens) == {total}
    assert set(rows[rows.method == "mmg_vid"].realised_tokens) == {round(total / 4)}
    assert value(rows, "fastv", "retention_layer_mean") < 1
    assert not rows.value.isna().any()
    assert set(rows.n_errors) == {0}


def spec(folder: Path) -> Any:
    return specs.model_spec({"name": "tiny", "path": str(folder), "dtype": "float32"})


def test_a_sweep_loads_each_model_once(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    original = VideoLLM.__init__

    def counted(self: VideoLLM, spec: Any) -> None:
        loads.append(spec.weights)
        original(self, spec)

    monkeypatch.setattr(VideoLLM, "__init__", counted)
    sweep = ["frames=2,4", "batch_size=1,2", "method=uniform,random", "retention_ratio=0.5", "weights=random"]
    rows = run(tiny_folder, tmp_path, *sweep)
    assert loads == ["random"]
    assert set(rows.weights) == {"random"}
    assert set(rows.frames) == {2, 4}
    assert set(rows.skill) == {"all", "batch=2"}
    for frames in (2, 4):
        single, double = (
            value(rows, "uniform", "flops_gqa", frames=frames, skill=skill) for skill in ("all", "batch=2")
        )
        assert double == 2 * single
    before = (tmp_path / "rows.csv").read_bytes()
    again = run(tiny_folder, tmp_path, *sweep)
    assert loads == ["random"]  # nothing was left to measure
    assert (tmp_path / "rows.csv").read_bytes() == before
    assert len(again) == len(rows)
    assert "batch 2" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize("folders", ["{}/${model.name}", "'{}/absolute','relative'"])
def test_several_models_go_where_all_their_folders_are(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: str
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = [*QUICK, f"model.path={tiny_folder}", "model.name=one,two", "frames=2", "weights=random"]
    assert measure.measure(cfg.sweep("measure", [*sweep, f"output_dir={folders}".replace("{}", str(tmp_path))])) == 0
    assert set(read_rows(tmp_path / "rows.csv").model) == {"one", "two"}


def test_times_of_a_method_whose_code_changed_are_not_its(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    original = measure.measure_efficiency
    monkeypatch.setattr(measure, "measure_efficiency", lambda *a: measured.append(1) or original(*a))
    options = ("frames=2", "method=uniform", "weights=random")
    for code, times in (("old", 1), ("old", 1), ("new", 2)):
        monkeypatch.setattr(measure, "codes_of", lambda _, code=code: {"uniform": code})
        run(tiny_folder, tmp_path, *options)
        assert len(measured) == times


def test_what_another_command_measures_is_not_measured_twice(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second(llm: Any, cells: Any, *_: Any) -> Any:
        with pytest.raises(
            ClaimedError, match=rf"^{tmp_path}: process \d+ on .* has been working there on tiny: 4 frames, batch 1"
        ):
            command(tiny_folder, tmp_path, "frames=4,2")
        monkeypatch.setattr(measure, "measure_efficiency", original)
        assert command(tiny_folder, tmp_path, "frames=2") == 0
        raise KeyboardInterrupt

    original = measure.measure_efficiency
    monkeypatch.setattr(measure, "measure_efficiency", second)
    with pytest.raises(KeyboardInterrupt):
        command(tiny_folder, tmp_path)
    assert command(tiny_folder, tmp_path, "frames=2,4") == 0
    assert len((tmp_path / measure.DONE).read_text().splitlines()) == 2


def test_a_torn_line_is_measured_again(tiny_folder: Path, tmp_path: Path) -> None:
    rows = run(tiny_folder, tmp_path, "frames=2,4")
    path = tmp_path / measure.DONE
    whole = path.read_text()
    path.write_text(whole[:-20])
    again = run(tiny_folder, tmp_path, "frames=2,4")
    lines = path.read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == [json.loads(line)["key"] for line in whole.splitlines()]
    assert lines[0] == whole.splitlines()[0]
    assert list(again.metric) == list(rows.metric)


@pytest.mark.parametrize(
    "change", [{"entry": None}, {"measurements": [{}]}, {"measurements": 5}, {"measurements": [5]}]
)
def test_a_damaged_line_is_named(tiny_folder: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    run(tiny_folder, tmp_path)
    path = tmp_path / measure.DONE
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}) + "\n")
    with pytest.raises(ValueError, match=r"measurements\.jsonl:1: not a measurement: delete the line"):
        run(tiny_folder, tmp_path)


def test_another_video_of_that_name_is_measured_anew(tiny_folder: Path, tmp_path: Path) -> None:
    entries = []
    for number in range(2):
        video = tmp_path / str(number) / "clip.mp4"
        video.parent.mkdir()
        write_video(make_world("train", number, sampled=4), video, size=32)
        run(tiny_folder, tmp_path / "out", f"video={video}")
        (entry,) = json.loads((tmp_path / "out" / "provenance.json").read_text()).values()
        entries.append(entry["video"])
    assert all(entry.startswith("clip.mp4@") for entry in entries)
    assert entries[0] != entries[1]


def test_a_folder_of_another_model_is_measured_anew(tiny_folder: Path, tmp_path: Path) -> None:
    folder, found = tmp_path / "model", []
    shutil.copytree(tiny_folder, folder)
    for layers in (1, 1, 2):
        config = json.loads((folder / "config.json").read_text())
        config["text_config"] |= {"num_hidden_layers": layers, "layer_types": ["full_attention"] * layers}
        (folder / "config.json").write_text(json.dumps(config))
        found.append(value(run(folder, tmp_path / "out", "weights=random"), "dense", "weights_bytes"))
    assert found[0] == found[1] < found[2]
    lines = (tmp_path / "out" / measure.DONE).read_text().splitlines()
    assert len(lines) == 2


def test_the_records_of_a_folder_can_still_be_explained(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").touch()
    provenance.write(tmp_path, {"answers": {"date": "2026-01-01"}})
    rows = run(tiny_folder, tmp_path, "frames=2")
    assert set(provenance.read(tmp_path)) == {"answers", *provenance_keys(rows)}


def test_a_video_of_few_frames_is_told(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        Image.new("RGB", (32, 32), (90 * number, 0, 0)).save(tmp_path / f"{number}.png")
    run(tiny_folder, tmp_path / "out", "frames=2,4", f"video={tmp_path}")
    told = [line for line in capsys.readouterr().out.splitlines() if " frames: some of " in line]
    assert told == [f"video='{tmp_path}' has 3 frames: some of the 4 sampled frames are repeats"]


def test_out_of_memory_is_written_down(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = latency.prefill

    def fails(llm: Any, encoded: Any, inputs: Any) -> Any:
        if inputs["input_ids"].shape[0] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(llm, encoded, inputs)

    monkeypatch.setattr(latency, "prefill", fails)
    rows = run(tiny_folder, tmp_path, "batch_size=1,2")
    lost = rows[rows.skill == "batch=2"]
    assert set(lost.metric) == {"prefill_ms"}
    assert lost.value.isna().all()
    assert set(lost.n_errors) == {1}
    assert not rows[rows.skill == "all"].value.isna().any()
    table = (tmp_path / "table.md").read_text()
    assert "out of memory in prefill: CUDA out of memory." in table
    assert "| out of memory |" in table


def test_a_method_that_fails_loses_nothing_but_its_own(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = MMGVid.prune
    broken = True

    def fails(self: MMGVid, tokens: Any) -> Any:
        if broken and self.retention_ratio == 0.5:
            raise KeyError("a fault of its own")
        return original(self, tokens)

    monkeypatch.setattr(MMGVid, "prune", fails)
    sweep = ["frames=2,4", "method=mmg_vid,uniform", "retention_ratio=0.25,0.5"]
    assert command(tiny_folder, tmp_path, *sweep) == 2
    rows = read_rows(tmp_path / "rows.csv")
    lost = (rows.method == "mmg_vid") & (rows.retention_ratio == 0.5)
    assert set(rows[lost].metric) == {"prefill_ms"}
    assert rows[lost].value.isna().all()
    assert set(rows[lost].n_errors) == {1}
    assert not rows[~lost].value.isna().any()
    assert set(rows[~lost].n_errors) == {0}
    assert {(r.method, r.retention_ratio, r.frames) for r in rows[~lost].itertuples()} == {
        (method, ratio, frames)
        for method, ratio in (("dense", 1.0), ("mmg_vid", 0.25), ("uniform", 0.25), ("uniform", 0.5))
        for frames in (2, 4)
    }
    table = (tmp_path / "table.md").read_text()
    assert table.count("| failed |") == 2
    assert "- mmg_vid R=0.5: KeyError: 'a fault of its own' (test_measure.py:" in table
    told = capsys.readouterr().out
    assert told.count("mmg_vid at R = 50 % cannot be measured: KeyError: 'a fault of its own' (test_measure") == 2
    assert told.count("fix this, or leave the method out of `method`") == 2
    end = told.splitlines()[-2:]
    who = ", ".join(f"mmg_vid R=0.5 (tiny: {frames} frames, batch 1)" for frames in (2, 4))
    assert end[0].startswith(f"failed: {who}: KeyError: 'a fault of its own' (test_measure.py:")
    assert end[1] == "2 cells were not measured, or only partly; rerun the command to retry them."
    broken = False
    assert not run(tiny_folder, tmp_path, *sweep).value.isna().any()
    assert "failed:" not in capsys.readouterr().out


def test_times_outlive_a_fault_behind_them(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = efficiency.flops_counted
    calls: list[int] = []

    def fails(model: Any, inputs: Any) -> int:
        calls.append(1)
        if len(calls) == 2:  # of the second cell
            raise TypeError("torch cannot count this")
        return original(model, inputs)

    monkeypatch.setattr(efficiency, "flops_counted", fails)
    assert command(tiny_folder, tmp_path) == 1
    told = capsys.readouterr().out
    assert "Memory of mmg_vid at R = 25 % cannot be measured: TypeError: torch cannot count this (test_measure" in told
    assert "failed: mmg_vid R=0.25 (tiny: 4 frames, batch 1): TypeError: torch cannot count this (test_meas" in told
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert value(rows, "mmg_vid", "prefill_ms") > 0
    assert set(rows[rows.metric == "flops_counted"].method) == {"dense"}
    rows = run(tiny_folder, tmp_path)  # measured again, for something is missing
    assert set(rows[rows.metric == "flops_counted"].method) == {"dense", "mmg_vid"}


def test_weights_that_do_not_fit_are_written_down(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: VideoLLM, spec: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(VideoLLM, "__init__", fails)
    rows = run(tiny_folder, tmp_path)
    assert rows.value.isna().all()
    (entry,) = json.loads((tmp_path / "provenance.json").read_text()).values()
    assert set(entry["out_of_memory"].values()) == {"out of memory in loading the weights: CUDA out of memory."}


def test_a_table_of_speed_lists_what_is_pending_and_survives_a_broken_model(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = {"frames": [2], "batch_sizes": [1], "weights": "random", "path": str(tiny_folder), "name": "tiny"}
    methods = [{"name": "dense"}, {"name": "random"}, {"name": "visionzip"}]
    workloads = {"embedded": {**here, "name": "big"}}
    gpu = {"needs_gpu": True, "pending": None, "workloads": workloads, "methods": methods}
    broken = {**here, "name": "broken", "path": str(tiny_folder / "nowhere/")}
    workloads = {"llava_onevision_7b": broken, "embedded": here}
    cpu = {"needs_gpu": False, "pending": "gpu", "workloads": workloads, "methods": methods}
    config = {
        "table": {
            "name": "efficiency",
            "retention_ratios": [0.25, 0.5],
            **{"video": "random", "text_tokens": 12, "energy_seconds": 0},
            "profiles": {"gpu": gpu, "cpu": cpu},
        },
        "measure": {"repeats": 2, "warmup": 0, "new_tokens": 1},
        "model": {},
        "benchmark": {},
        "profile": "cpu",
        "output_dir": str(tmp_path / "out"),
        "results_dir": str(tmp_path / "results"),
        "limit": None,
        "latency": True,
    }
    with pytest.raises(ValueError, match="limit=3: a table of speed answers no questions"):
        measure.table(OmegaConf.create({**config, "limit": 3}))
    assert measure.table(OmegaConf.create(config)) == 1  # one model could not be measured
    assert "broken could not be measured" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()  # unfinished, so not in the place of a finished one
    rows = read_rows(tmp_path / "out" / "cpu" / "rows.csv")
    assert set(rows[rows.model == "tiny"].source) == {"measured"}
    pending = rows[rows.model == "big"]
    assert set(pending.source) == {"pending"}
    assert {(r.method, r.retention_ratio) for r in pending.itertuples()} == {
        ("dense", 1.0),
        *((m, r) for m in ("random", "visionzip") for r in (0.25, 0.5)),
    }
    text = (tmp_path / "out" / "cpu" / "table.md").read_text()
    assert "| visionzip | 50, 25 % | pending |" in text
    del workloads["llava_onevision_7b"]
    config["table"]["profiles"]["cpu"]["workloads"] = workloads
    with monkeypatch.context() as patch:
        patch.setattr(Random, "prune", lambda *_: 1 / 0)
        assert measure.table(OmegaConf.create({**config, "output_dir": str(tmp_path / "other")})) == 2
    assert "fix this, or leave the method out of `table.profiles.cpu.methods`" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()
    assert measure.table(OmegaConf.create(config)) == 0
    assert (tmp_path / "results" / "cpu" / "table.md").read_text() == text


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["text_tokens=8,12"], "differ in text_tokens"),
        (["batch_size=0"], "batch_size=0"),
        (["text_tokens=0"], "text_tokens=0"),
        (["text_tokens=abc"], "text_tokens='abc': it must be a whole number"),
        (["frames=abc"], "^frames='abc': it must be a whole number"),
        (["model.device=cuda:99"], "model.device='cuda:99': torch sees"),
        (["video=/nowhere.mp4"], "video='/nowhere.mp4': no such video"),
        (["weights=none"], "^weights='none'"),
        (["method=fastvid"], "fastvid: models of type 'llava_onevision' do not supply"),
    ],
)
def test_mistakes_are_answered_before_anything_is_measured(
    tiny_folder: Path, tmp_path: Path, overrides: list[str], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        run(tiny_folder, tmp_path, *overrides)
    assert not (tmp_path / measure.DONE).exists()
