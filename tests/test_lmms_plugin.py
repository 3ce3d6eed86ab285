"""lmms-eval calls us: its own evaluator, with the model that our entry point registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from mmg_bench.benchmarks.embedded import dataset
from mmg_bench.benchmarks.lmms import Benchmark
from mmg_bench.cells import make_cell
from mmg_bench.config import load
from mmg_bench.methods.registry import method_class, method_names
from mmg_bench.models import checking, loading
from mmg_bench.models.loading import VideoLLM
from mmg_bench.models.spec import ModelSpec
from mmg_bench.runner.evaluate import evaluate
from mmg_bench.runner.records import read_records
from mmg_bench.specs import benchmark_spec, model_spec

ROOT = Path(__file__).parent.parent
GROUP = "lmms_eval.models"
TASK = "mmg_embedded"
ARGS = "pretrained=embedded,method=mmg_vid,retention_ratio=0.1,tau=0.9,positions=contiguous,device=cpu"


def entry_points() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["entry-points"][GROUP]


@pytest.fixture(scope="module")
def lmms_eval() -> Iterator[Any]:
    """lmms-eval's evaluator, as it is where this package is installed: with our entry points taken up."""
    from lmms_eval import evaluator, models

    registry = models.MODEL_REGISTRY_V2
    before = dict(registry._manifests), dict(registry._alias_to_model_id)
    for name, value in entry_points().items():
        payload = EntryPoint(name, value, GROUP).load()
        for manifest in registry._coerce_payload_to_manifests(payload):
            registry.register_manifest(manifest, overwrite=True)
    yield evaluator
    registry._manifests, registry._alias_to_model_id = before


@pytest.fixture(scope="module")
def ask(lmms_eval: Any) -> Callable[..., dict[str, Any]]:
    """The stock evaluator on the embedded task."""
    from lmms_eval.tasks import TaskManager

    path = benchmark_spec(load("benchmark", "embedded")).include_path

    def call(model_args: str, **more: Any) -> dict[str, Any]:
        manager = TaskManager(include_path=path, include_defaults=False, model_name="mmg_bench")
        return lmms_eval.simple_evaluate(
            model="mmg_bench", model_args=model_args, tasks=[TASK], task_manager=manager, bootstrap_iters=0, **more
        )

    return call


def answers(results: dict[str, Any]) -> dict[str, tuple[str, float]]:
    samples = results["samples"][TASK]
    return {s["doc"]["question_id"]: (s["filtered_resps"][0], s["exact_word"]) for s in samples}


def test_answers_are_those_of_our_own_runner(ask: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    results = ask(ARGS, limit=9)
    llm = VideoLLM(model_spec({**load("model", "embedded"), "device": "cpu"}))
    benchmark = Benchmark(benchmark_spec(load("benchmark", "embedded")), limit=9)
    records = evaluate(llm, benchmark, [make_cell("mmg_vid", 0.1, "contiguous", tau=0.9)], tmp_path, "p")
    assert answers(results) == {r.question: (r.prediction, r.score) for r in records}
    score = results["results"][TASK]["exact_word,none"]
    assert score == pytest.approx(sum(r.score or 0 for r in records) / 9)
    assert score > 0  # it is a trained model


def test_pruning_reaches_the_model(ask: Callable[..., dict[str, Any]]) -> None:
    base = "pretrained=embedded,device=cpu"
    dense = answers(ask(base, limit=8))
    pruned = answers(ask(f"{base},method=random,retention_ratio=0.02,seed=3", limit=8))
    assert dense != pruned


def test_frames_follow_the_length_of_a_video(
    ask: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    preprocess = VideoLLM.preprocess

    def counted(llm: VideoLLM, frames: Any, timing: Any) -> Any:
        seen.append(len(frames))
        return preprocess(llm, frames, timing)

    monkeypatch.setattr(VideoLLM, "preprocess", counted)
    for options in ("fps=1", "fps=1,frames=6"):
        ask(f"pretrained=embedded,device=cpu,{options}", limit=1)
    assert seen == [8, 6]  # of not quite eight seconds; without `fps`, 16


def test_the_response_cache_tells_pruning_settings_apart(
    ask: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    generate = VideoLLM.generate
    monkeypatch.setattr(VideoLLM, "generate", lambda *args: asked.append(1) or generate(*args))
    cache = str(tmp_path / "cache")

    def fresh(model_args: str) -> int:
        before = len(asked)
        ask(model_args, limit=1, use_cache=cache)
        return len(asked) - before

    assert fresh(ARGS) == 1
    assert fresh(ARGS) == 0
    for changed in (
        ARGS.replace("ratio=0.1", "ratio=0.2"),
        ARGS.replace("tau=0.9", "tau=0.8"),
        ARGS.replace("contiguous", "original"),
        f"{ARGS},frames=8",
    ):
        assert fresh(changed) == 1, changed


def test_a_fault_ends_the_evaluation_with_the_questions_name(
    ask: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(name: str) -> Path:
        (tmp_path / name).write_bytes(b"damaged")
        return tmp_path / name

    monkeypatch.setattr(dataset, "video_file", damaged)
    with pytest.raises(RuntimeError, match=rf"question 0 of task '{TASK}' \(.*test-0000.mp4\): VideoError: .*decoded"):
        ask(ARGS, limit=2)
    monkeypatch.setattr(dataset, "video_file", {}.__getitem__)  # a fault in the task's own code
    with pytest.raises(RuntimeError, match=rf"^question 0 of task '{TASK}': KeyError: 'test-0000.mp4'"):
        ask(ARGS, limit=2)


def test_a_missing_video_ends_the_evaluation_before_the_first_answer(
    ask: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Path:
        if name == "test-0000.mp4":
            return dataset.cache_folder() / name
        sys.exit(f"video path:{name} does not exist, please check")

    monkeypatch.setattr(dataset, "video_file", missing)
    monkeypatch.setattr(VideoLLM, "generate", lambda *_: pytest.fail("answered"))
    with pytest.raises(ValueError, match=rf"question 6 of task '{TASK}': video path:test-0001.mp4 does not exist"):
        ask(ARGS, limit=8)


@pytest.mark.parametrize(
    ("model_args", "says"),
    [
        (
            "pretrained=embedded,method=mmg_vid,retention_ratio=0.25,tua=1",
            "has no option tua; it accepts pretrained, .*tau",
        ),
        ("pretrained=embedded,frame=8", "has no option frame; it accepts .*frames.* for method 'dense': nothing more"),
        ("pretrained=embedded,method=mmgvid", "unknown method 'mmgvid'; .*mmg_vid"),
        ("pretrained=embedded,method=mmg_vid", "method=mmg_vid needs a retention_ratio"),
        (
            "pretrained=embedded,retention_ratio=0.25",
            "retention_ratio=0.25 has no effect with method=dense; choose another method",
        ),
        ("pretrained=embedded,method=mmg_vid,retention_ratio=2", r"MMGVid.retention_ratio=2: .* in \(0, 1\]"),
        ("pretrained=embedded,positions=near", "positions='near': choose original, contiguous"),
        ("pretrained=embedded,dtype=int9", "^dtype='int9'"),
        ("pretrained=embedded,device=cuda:99", "^device='cuda:99': torch sees"),
        ("pretrained=embedded,called=x", "has no option called; it accepts pretrained, "),
        ("pretrained=/nowhere", "/nowhere: no such checkpoint folder; set pretrained to one"),
        ("pretrained=embedded,batch_size=8", "batch_size=8: .* leave it at 1"),
    ],
)
def test_mistakes_are_answered_with_what_is_valid(model_args: str, says: str, lmms_eval: Any) -> None:
    from lmms_eval.models import get_model

    with pytest.raises((ValueError, RuntimeError), match=says):
        get_model("mmg_bench").create_from_arg_string(model_args)


def test_a_hub_out_of_reach_is_named_at_once(lmms_eval: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from lmms_eval.models import get_model

    def silent(repo: str, revision: str | None) -> None:
        raise OSError("nothing answers")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(checking, "check_reachable", silent)
    monkeypatch.setattr(loading, "VideoLLM", None)  # is not come to
    with pytest.raises(checking.ModelError, match=r"nobody/no-such-model.*nothing answers"):
        get_model("mmg_bench").create_from_arg_string("pretrained=nobody/no-such-model")


def test_settings_come_from_our_configuration_of_the_model(lmms_eval: Any, tiny_folder: Path) -> None:
    from mmg_bench.lmms_plugin import MMGBench, _model_spec

    assert _model_spec("embedded", None, {}) == model_spec(load("model", "embedded"))
    named = load("model", "llava_onevision_7b")
    for pretrained in (named["name"], named["path"]):
        assert _model_spec(pretrained, None, {}) == model_spec(named)
    changed = _model_spec(named["path"], "cpu", {"frames": 8, "dtype": "float16", "attn_implementation": "eager"})
    assert (changed.frames, changed.dtype, changed.attn_implementation, changed.device) == (
        8,
        "float16",
        "eager",
        "cpu",
    )
    options = {"frames": 4, "fps": 0.5, "dtype": "float32", "device": "cpu"}
    other = MMGBench(str(tiny_folder), **options)
    assert other.llm.spec == ModelSpec(tiny_folder.name, str(tiny_folder), **options)
    assert other.device.type == "cpu"
    for call in (other.loglikelihood, other.generate_until_multi_round):
        with pytest.raises(NotImplementedError, match="choose tasks with output_type: generate_until"):
            call([])


def test_no_method_parameter_is_taken_for_a_setting_of_the_model() -> None:
    taken = {f.name for f in fields(ModelSpec)} | {"pretrained", "method", "positions", "batch_size", "max_batch_size"}
    for name in method_names():
        assert not taken & {f.name for f in fields(method_class(name))}, name


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_stock_command_gives_the_accuracy_of_our_own(tmp_path: Path) -> None:
    """Two real processes; lmms-eval finds us by the metadata of a package that declares our entry points."""
    info = tmp_path / "site" / "mmg_bench_here-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mmg-bench-here\nVersion: 0\n")
    lines = "\n".join(f"{name} = {value}" for name, value in entry_points().items())
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(info.parent), str(ROOT)]), "CUDA_VISIBLE_DEVICES": ""}
    path = benchmark_spec(load("benchmark", "embedded")).include_path
    stock = [sys.executable, "-m", "lmms_eval", "eval", "--model", "mmg_bench", "--tasks", TASK, "--limit", "12"]
    stock += ["--model_args", "pretrained=embedded,method=mmg_vid,retention_ratio=0.25", "--include_path", str(path)]
    stock += ["--log_samples", "--output_path", str(tmp_path / "theirs"), "--verbosity", "DEBUG"]
    ours = [sys.executable, "-m", "mmg_bench", "run", "method=mmg_vid", "retention_ratio=0.25", "limit=12"]
    for command in (stock, [*ours, f"output_dir={tmp_path / 'ours'}"]):
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    (samples,) = (tmp_path / "theirs").rglob(f"*samples_{TASK}.jsonl")
    logged = [json.loads(line) for line in samples.read_text().splitlines()]
    records = [r for r in read_records(tmp_path / "ours") if r.method == "mmg_vid"]
    assert len(logged) == len(records) == 12
    theirs = {s["doc_id"]: (s["filtered_resps"], s["exact_word"]) for s in logged}
    assert theirs == {number: (r.prediction, r.score) for number, r in enumerate(records)}
