"""What is missing is said, with the remedy, and what is there is not."""

from __future__ import annotations

import json
import re
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import families
from lmms_data import DATA_SETS
from mmg_bench.benchmarks import video
from mmg_bench.benchmarks.lmms import BenchmarkSpec
from mmg_bench.config import load
from mmg_bench.methods.base import Method
from mmg_bench.methods.registry import get_method
from mmg_bench.runner import requirements
from mmg_bench.runner.requirements import Check, check_all
from mmg_bench.specs import benchmark_spec, cell, model_spec

SEVEN_B = load("model", "llava_onevision_7b")


def checks(
    model: dict[str, Any], *benchmarks: tuple[BenchmarkSpec, dict[str, Any]], gpu: bool = False, **methods: Method
) -> list[Check]:
    return check_all(model, model_spec(model), benchmarks, gpu, methods)


def missing(model: dict[str, Any], *benchmarks: tuple[BenchmarkSpec, dict[str, Any]], **others: Any) -> list[str]:
    return [str(check) for check in checks(model, *benchmarks, **others) if check.missing is not None]


def of(name: str, **changes: Any) -> tuple[BenchmarkSpec, dict[str, Any]]:
    config = {**load("benchmark", name), **changes}
    return benchmark_spec(config), config


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An HF_HOME with nothing in it."""
    home = tmp_path / "hf"
    home.mkdir()
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    return home


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    DATA_SETS["videomme"]().write(root / "annotations", root / "home")
    return root


def test_the_embedded_run_lacks_nothing() -> None:
    assert [str(c) for c in checks(load("model", "embedded"), of("embedded"))] == [
        "packages",
        "decoding of H.264 video",
        "weights of embedded (embedded)",
        "data of embedded",
    ]


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["numpy>=99", "no-such-package>=1", 'also-not-there>=1; extra == "dev"', "torch>=2"]
    monkeypatch.setattr(requirements, "requires", lambda _: wanted)
    (line,) = missing(load("model", "embedded"), of("embedded"))
    assert line.startswith("packages: numpy>=99 is required, ")
    assert "; no-such-package>=1 is not installed\n      -> make setup" in line


def test_a_decoder_that_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError("libavcodec.so: cannot open shared object file")

    monkeypatch.setattr(video, "read_frames", broken)
    (line,) = missing(load("model", "embedded"), of("embedded"))
    assert line.startswith("decoding of H.264 video: OSError: libavcodec.so")
    assert "-> pip install --force-reinstall decord av" in line


def test_the_gpu(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    embedded = {**load("model", "embedded"), "gpu_gb": 20}
    assert missing(embedded, of("embedded"), gpu=False) == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (line,) = missing(embedded, of("embedded"), gpu=True)
    assert line.startswith("GPU with 20 GB for embedded: torch sees no CUDA device\n      -> run on a machine with")
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: asked.append(device) or (8 * 10**9, 24 * 10**9))
    (line,) = missing({**embedded, "device": "cuda:1"}, of("embedded"), gpu=True)
    assert "8 of its 24 GB are free\n      -> stop other processes on it" in line
    assert asked == [torch.device("cuda:1")]
    (line,) = missing({**embedded, "device": "cuda:2"}, of("embedded"), gpu=True)
    assert line.startswith("device cuda:2: model.device='cuda:2': torch sees 2 GPUs here")
    assert missing({**embedded, "gpu_gb": 8}, of("embedded"), gpu=True) == []


def test_weights_of_the_hub(home: Path) -> None:
    *_, weights, _, disk = checks(SEVEN_B, of("embedded"))
    assert str(weights) == (
        f"weights of llava_onevision_7b ({SEVEN_B['path']}): the hub cache lacks config.json, model.safetensors\n"
        f"      -> hf download {SEVEN_B['path']} --revision {SEVEN_B['revision']} (about 16 GB), "
        "or set model.path to a folder; model.revision=null uses the newest commit in the cache"
    )
    assert str(disk) == f"16 GB of disk below {home}"
    repo = home / "hub" / f"models--{SEVEN_B['path'].replace('/', '--')}"
    snapshot = repo / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    shards = [f"model-{i}.safetensors" for i in range(6)]
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict(enumerate(shards))}))
    (snapshot / "config.json").write_text('{"model_type": "llava_onevision"}')
    (snapshot / shards[0]).touch()
    newest = {**SEVEN_B, "revision": None}
    (line, *_) = missing(newest, of("embedded"))
    assert "the hub cache lacks model-1.safetensors, model-2.safetensors, model-3.safetensors and 2 more\n" in line
    for name in shards:
        (snapshot / name).touch()
    assert missing(newest, of("embedded")) == []
    (line, *_) = missing(SEVEN_B, of("embedded"))
    assert "the hub cache lacks config.json, model.safetensors\n" in line  # of that commit
    snapshot.rename(snapshot.with_name(SEVEN_B["revision"]))
    assert missing(SEVEN_B, of("embedded")) == []


def test_weights_in_a_folder(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    model = {**SEVEN_B, "path": str(folder)}
    assert missing(model, of("embedded")) == []
    (folder / "tokenizer.json").unlink()
    (line, *_) = missing(model, of("embedded"))
    assert "copy is not a complete checkpoint: tokenizer.json missing" in line
    (line, *_) = missing({**SEVEN_B, "path": "/nowhere"}, of("embedded"))
    assert "/nowhere: no such checkpoint folder" in line


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            '{"model_type": "llama"}',
            r"the family of .* \(model_type 'llama'\): .*; supported: llava_onevision, llava_video",
        ),
        (
            '{"model_type": "llava"}',
            r"the family of .* \(model_type 'llava'\): it has no config.video_token_id; suppor",
        ),
        ('{"vision_config": {}}', r"the family of .* \(model_type None\): "),
        ('{"model_type": ', r"the configuration of .*config.json cannot be read \(Expecting value"),
        ("[]", r"the configuration of .*config.json is not a model configuration"),
        ('{"model_type": "qwen2_5_vl", "text_config": 7}', r"the configuration of .* is damaged"),
    ],
)
def test_a_family_that_is_not_served_is_named(tiny_folder: Path, tmp_path: Path, config: str, says: str) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    (folder / "config.json").write_text(config)
    (line,) = missing({**SEVEN_B, "path": str(folder)}, of("embedded"))
    assert re.match(says, line)


def test_an_id_that_cannot_be_one_is_named(home: Path) -> None:
    (line, *_) = missing({**SEVEN_B, "path": "a/b/c"}, of("embedded"))
    assert line.startswith("weights of llava_onevision_7b (a/b/c): Repo id must be in the form")
    assert line.endswith("-> set model.path to a hub id or a folder")


def test_siglip_does_not_serve_every_family(home: Path) -> None:
    model = {**load("model", "qwen2_5_vl_7b"), "siglip": "nobody/siglip"}
    found = [str(c) for c in checks(model, fastvid=get_method("fastvid")) if "reads" in c.what]
    assert [line.partition(" (")[0] for line in found] == [
        "what fastvid reads: models of type 'qwen2_5_vl' do not supply frame_features, probe_attention"
    ]


def test_layers_that_a_method_cannot_prune_between_are_named(home: Path, tmp_path: Path) -> None:
    families.qwen3_5()[0].config.save_pretrained(tmp_path)
    model = {**load("model", "qwen3_5_9b"), "path": str(tmp_path)}
    methods = {name: get_method(name) for name in ("mmg_vid", "fastv")}
    found = [str(c) for c in checks(model, **methods) if "prunes" in c.what]
    assert [line.partition(" full_attention: ")[::2] for line in found] == [
        (
            "where fastv prunes: inside the language model, which requires all layers to be",
            "this model has full_attention, linear_attention\n      -> choose another method or model",
        )
    ]
    deep = get_method("fastv", layer=40)
    for weights in ("pretrained", "random"):
        model = {**SEVEN_B, "weights": weights}
        lines = [str(c) for c in checks(model, fastv=deep) if "prunes" in c.what]
        assert [line.partition("]")[0] for line in lines] == [
            "where fastv prunes: FastV.layer=40: it must be an integer in [1, 27"
        ]


def test_random_weights_need_no_download(home: Path) -> None:
    assert missing({**SEVEN_B, "weights": "random"}, of("embedded")) == []


def test_the_siglip_checkpoint_is_asked_for_only_by_methods_that_need_it(home: Path, tmp_path: Path) -> None:
    model = {**load("model", "embedded"), "siglip": "nobody/no-such-siglip"}
    whole = of("embedded")

    def lacks(model: dict[str, Any], *names: str) -> list[str]:
        return missing(model, whole, **{name: get_method(name) for name in names})

    assert lacks(model) == []
    assert lacks(model, "visionzip", "sparsevlm") == []
    (line,) = lacks(model, "visionzip", "fastvid")
    assert line.startswith(
        "SigLIP's pooling head and text tower (nobody/no-such-siglip): the hub cache lacks config.json"
    )
    assert "-> hf download nobody/no-such-siglip (size unknown), or set model.siglip to a folder" in line
    (line,) = lacks({**model, "siglip_revision": "1234abc"}, "fastvid")
    assert (
        "hf download nobody/no-such-siglip --revision 1234abc (size unknown), or set model.siglip to a folder" in line
    )
    assert line.endswith("; model.siglip_revision=null uses the newest commit in the cache")
    (line,) = lacks({**model, "siglip": str(tmp_path)}, "fastvid")
    assert "the folder holds no weights" in line
    (tmp_path / "model.safetensors").touch()
    (line,) = lacks({**model, "siglip": str(tmp_path)}, "fastvid")
    assert "config.json cannot be read" in line
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    (line,) = lacks({**model, "siglip": str(tmp_path)}, "fastvid")
    assert "it is a checkpoint of type 'clip', not siglip\n      -> correct model.siglip" in line
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    assert lacks({**model, "siglip": str(tmp_path)}, "fastvid") == []
    (line,) = lacks({**model, "siglip": "/nowhere"}, "fastvid")
    assert "/nowhere: no such checkpoint folder" in line
    (line,) = lacks({**model, "siglip": None}, "fastvid")
    assert line.startswith("what fastvid reads: models of type 'llava_onevision' do not supply frame_")


def test_an_architecture_that_is_not_known_is_named(home: Path) -> None:
    model = {**load("model", "internvl3_8b"), "weights": "random"}
    assert missing(model, of("embedded")) == []
    (line,) = missing({**model, "name": "internvl4"}, of("embedded"))
    assert line.startswith("the architecture of internvl4: the architecture of 'internvl4' is not known without")


def test_a_package_that_a_family_needs_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = {**load("model", "smolvlm2_2_2b"), "weights": "random"}
    monkeypatch.setattr("mmg_bench.runner.requirements.find_spec", lambda name: None)
    assert missing(model, of("embedded")) == [
        "package num2words for smolvlm2_2_2b: it is not installed\n      -> pip install num2words"
    ]
    assert missing(load("model", "embedded"), of("embedded")) == []


def test_what_cannot_run_here_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded = load("model", "embedded")
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: False)
    monkeypatch.setattr("transformers.utils.is_kernels_available", lambda: False)
    (line,) = missing({**embedded, "attn_implementation": "flash_attention_2"}, of("embedded"))
    assert line.startswith("attention flash_attention_2: this machine lacks what flash_attention_2 needs")
    (line,) = missing({**embedded, "device": "cuda:99"}, of("embedded"))
    assert line.startswith("device cuda:99: model.device='cuda:99': torch sees ")


@pytest.mark.parametrize(
    ("name", "changes", "lacks"),
    [
        ("qwen2_5_vl_7b", {"weights": "random"}, ["fastvid"]),
        ("llava_onevision_7b", {"weights": "random"}, []),  # its configuration names a SigLIP checkpoint
        ("llava_onevision_7b", {"weights": "random", "siglip": None}, ["fastvid"]),
        ("qwen2_5_vl_7b", {}, ["fastvid"]),  # its type is known before it is downloaded
        ("smolvlm2_2_2b", {}, ["fastvid"]),
        ("qwen3_vl_8b", {"path": "nobody/other"}, []),  # its configuration is not at hand
    ],
)
def test_methods_that_read_what_the_family_does_not_supply_are_named(
    home: Path, name: str, changes: dict[str, Any], lacks: list[str]
) -> None:
    model = {**load("model", name), **changes}
    cells = [cell({"name": method}, 0.5) for method in ("mmg_vid", "visionzip", "fastvid")]
    found = [c.what for c in checks(model, **{c.label: c.method for c in cells}) if "reads" in c.what]
    assert found == [f"what {label} reads" for label in lacks]


def test_data_that_was_never_fetched(home: Path) -> None:
    embedded = load("model", "embedded")
    (line, *_) = missing(embedded, of("videomme"))
    assert line.startswith(f"data of videomme: its annotations and its videos below {home}/videomme are missing\n")
    assert (
        "hf auth login, then mmg-bench run benchmark=videomme limit=1, which fetches and unpacks lmms-eval/Video-MME"
        in line
    )
    assert "(about 101 GB)" in line
    (home / "datasets" / "lmms-eval___video-mme").mkdir(parents=True)
    (line, *_) = missing(embedded, of("videomme"))
    assert line.startswith(f"data of videomme: its videos below {home}/videomme are missing\n")


@pytest.mark.parametrize("name", ["NExTQA", "Video-MME", "PerceptionTest_Val", "MLVU_dev", "LongVideoBench"])
def test_annotations_that_were_loaded_before_are_recognised(name: str, home: Path) -> None:
    from datasets.naming import camelcase_to_snakecase

    assert not requirements._has_annotations(f"owner/{name}")
    (home / "datasets" / f"owner___{camelcase_to_snakecase(name)}").mkdir(parents=True)
    assert requirements._has_annotations(f"owner/{name}")
    assert not requirements._has_annotations(f"owner/{name}2")


def test_a_data_set_without_an_owner(home: Path) -> None:
    assert not requirements._has_annotations("squad")
    (home / "datasets" / "owner___squad").mkdir(parents=True)
    assert not requirements._has_annotations("squad")
    (home / "datasets" / "squad").mkdir()
    assert requirements._has_annotations("squad")
    assert not requirements._has_annotations("glue")
    (home / "hub" / "datasets--glue" / "snapshots").mkdir(parents=True)
    assert requirements._has_annotations("glue")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"videos": None}, "its annotations are missing\n      -> while online: "),
        ({"dataset": "squad"}, "its annotations and its videos below .* are missing\n.* unpacks squad "),
        ({"dataset": "a/b/c"}, "Repo id must be .*'a/b/c'.*\n      -> correct benchmark.videos or benchmark.dataset"),
        ({"dataset": 5}, "Repo id must be a string"),
        ({"videos": 5}, "benchmark.videos=5: it must be a text\n      -> correct benchmark.videos or"),
    ],
)
def test_where_a_data_set_lies_may_be_said_in_part_or_wrongly(home: Path, changes: dict[str, Any], says: str) -> None:
    (line, *_) = missing(load("model", "embedded"), of("videomme", **changes))
    assert re.match(f"data of videomme: {says}", line)


def test_data_is_counted_by_the_tasks_own_code(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = shutil.copytree(made / "home", tmp_path / "home")
    monkeypatch.setenv("HF_HOME", str(home))
    embedded, here = load("model", "embedded"), {"data": str(made / "annotations")}
    assert str(checks(embedded, of("videomme", questions=6, **here))[-1]) == "data of videomme: 6 questions"
    (line, *_) = missing(embedded, of("videomme", **here))
    assert "has 6 questions, not 2700: the data is incomplete" in line
    videos_anywhere = of("videomme", questions=6, videos=None, **here)
    assert str(checks(embedded, videos_anywhere)[-1]) == "data of videomme: 6 questions"
    (home / "videomme" / "data" / "clip1.mp4").unlink()
    (line, *_) = missing(embedded, videos_anywhere)
    assert line.endswith("videos missing: clip1\n      -> put them where the task's doc_to_visual points")
    (line, *_) = missing(embedded, of("videomme", questions=6, **here))
    assert line.startswith("data of videomme: 6 questions: videos missing: clip1\n      -> copy them into ")


def test_disk(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(100 * 10**9))
    assert str(checks(SEVEN_B, of("videomme"), of("mvbench"))[-1]).startswith(
        f"218 GB and data of unknown size of disk below {home}: only 100 GB are free\n      -> free some, or point"
    )
    assert str(checks(SEVEN_B, of("embedded"))[-1]) == f"16 GB of disk below {home}"


def test_a_spec_need_not_be_of_a_shipped_configuration(home: Path) -> None:
    spec, config = of("videomme")
    (line, *_) = missing(load("model", "embedded"), (replace(spec, name="mine"), config))
    assert line.startswith("data of mine: ")
