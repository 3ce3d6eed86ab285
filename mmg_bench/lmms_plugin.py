"""mmg_bench as a model of lmms-eval, found through its entry-point group `lmms_eval.models`.

    lmms-eval eval --model mmg_bench --model_args pretrained=...,method=mmg_vid,retention_ratio=0.25 --tasks videomme

lmms-eval imports this module whenever it starts, so our own heavy imports wait until the model is built.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

if TYPE_CHECKING:
    import torch

    from mmg_bench.cells import Cell
    from mmg_bench.models.spec import ModelSpec

MANIFEST = ModelManifest("mmg_bench", simple_class_path=f"{__name__}.MMGBench")
"""What the entry point gives to lmms-eval."""


class MMGBench(lmms):
    """A video LLM with pruning that answers lmms-eval's requests as `mmg-bench run` answers a benchmark's questions.

    pretrained: hub id, checkpoint folder, or the name of one of our model configurations, whose settings (frames,
        dtype, ...) then apply here too.
    method, retention_ratio, positions: the cell; without `method` nothing is pruned.
    device: as for `mmg-bench`; by default the GPU of this process, if there is one.
    options: the other settings of a model (frames, max_pixels, dtype, revision, ...) and the method's parameters.

    Requests are answered one at a time (`batch_size` 1), grouped by video. Any failure ends the evaluation with an
    error that names the question. Raises ValueError for settings that do not exist or do not fit.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        method: str = "dense",
        retention_ratio: float | None = None,
        positions: Any = None,
        device: str | None = None,
        batch_size: int | str = 1,
        **options: Any,
    ) -> None:
        super().__init__()
        if str(batch_size) != "1":
            raise ValueError(f"batch_size={batch_size}: mmg_bench answers one question at a time; leave it at 1")
        from mmg_bench.models.checking import check_method, check_model
        from mmg_bench.models.loading import VideoLLM

        self.cell = _cell(method, retention_ratio, positions, options)
        spec = _model_spec(str(pretrained), device, options)
        check_model(spec, {self.cell.label: self.cell.method})
        self.llm = VideoLLM(spec)
        self.llm.prepare(self.cell.method.needs)
        check_method(self.llm.adapter, self.cell.method, self.cell.label)

    @property
    def device(self) -> torch.device:
        """The model's device: lmms-eval asks for it when several processes share a benchmark."""
        return self.llm.device

    def generate_until(self, requests: list[Any]) -> list[str]:
        """The answers, in the order of the requests."""
        from tqdm import tqdm

        by_video: dict[Path, list[int]] = {}
        for number, request in enumerate(requests):  # before the first answer: a missing video fails at once
            by_video.setdefault(self._video(request), []).append(number)
        answers: dict[int, str] = {}
        with tqdm(total=len(requests), unit="answer", disable=self.rank != 0) as bar:
            for path, numbers in by_video.items():
                for number, text in zip(numbers, self._answers(path, [requests[n] for n in numbers]), strict=True):
                    answers[number] = text
                    bar.update()
        return [answers[number] for number in range(len(requests))]

    def _video(self, request: Any) -> Path:
        from mmg_bench.benchmarks.lmms import MISSING, BenchmarkError, single_video

        _, _, doc_to_visual, doc_id, task, split = request.args
        try:
            visuals = doc_to_visual(self.task_dict[task][split][doc_id])
        except MISSING as missing:
            raise BenchmarkError(f"{_name(request)}: {missing}") from None
        except Exception as error:
            raise RuntimeError(f"{_name(request)}: {type(error).__name__}: {error}") from error
        return single_video(visuals, _name(request))

    def _answers(self, path: Path, requests: list[Any]) -> Iterable[str]:
        """The answers to requests about one video, which is decoded and encoded once."""
        from mmg_bench.benchmarks.video import read_clip
        from mmg_bench.models.hooks import pruning

        llm, method = self.llm, self.cell.method
        request = requests[0]
        try:
            clip = read_clip(path, llm.spec.frames, llm.spec.fps)
            encoded = llm.encode(llm.preprocess(clip.pixels, clip.timing), method.needs)
            with pruning(llm.model, method, self.cell.positions, encoded=encoded.tokens):
                for request in requests:
                    prompt, generation, *_ = request.args
                    yield llm.generate(llm.tokenize(prompt, encoded.texts), encoded, generation)
        except Exception as error:
            raise RuntimeError(f"{_name(request)} ({path}): {type(error).__name__}: {error}") from error

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("mmg_bench only generates answers; choose tasks with output_type: generate_until")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError(
            "mmg_bench answers one question at a time; choose tasks with output_type: generate_until"
        )


def _name(request: Any) -> str:
    _, _, _, doc_id, task, _ = request.args
    return f"question {doc_id} of task {task!r}"


def _cell(method: str, retention_ratio: float | None, positions: Any, options: dict[str, Any]) -> Cell:
    """The cell that the arguments describe; `options` holds the method's parameters and settings of the model.

    Raises ValueError for an option that neither the method nor the model has.
    """
    from mmg_bench.cells import make_cell
    from mmg_bench.methods.registry import method_class
    from mmg_bench.models.spec import ModelSpec

    own = [f.name for f in fields(method_class(method)) if f.name != "retention_ratio"]
    of_model = [f.name for f in fields(ModelSpec) if f.compare and f.name not in ("name", "path", "device")]
    if unknown := sorted(set(options) - {*own, *of_model}):
        raise ValueError(
            f"--model_args has no option {', '.join(unknown)}; it accepts pretrained, method, retention_ratio, "
            f"positions, device, {', '.join(of_model)}, and for method {method!r}: {', '.join(own) or 'nothing more'}"
        )
    if method == "dense" and retention_ratio not in (None, 1):
        raise ValueError(f"retention_ratio={retention_ratio} has no effect with method=dense; choose another method")
    if method != "dense" and retention_ratio is None:
        raise ValueError(f"method={method} needs a retention_ratio, such as retention_ratio=0.25")
    parameters = {name: options[name] for name in own if name in options}
    return make_cell(method, 1.0 if retention_ratio is None else retention_ratio, positions, **parameters)


def _model_spec(pretrained: str, device: str | None, options: dict[str, Any]) -> ModelSpec:
    """The model for `pretrained`: one of our configurations, by name or path, or any other; `options` override it."""
    from mmg_bench import config as cfg
    from mmg_bench import specs
    from mmg_bench.models.spec import ModelSpec

    known = (cfg.load("model", path.stem) for path in sorted((cfg.CONFIGS / "model").glob("*.yaml")))
    found = next((c for c in known if pretrained in (c["name"], c["path"])), None)
    settings = {"name": Path(pretrained).name, "path": pretrained} if found is None else found
    settings |= {f.name: options[f.name] for f in fields(ModelSpec) if f.name in options}
    if device is not None:
        settings["device"] = str(device)
    elif settings.get("device", "auto") == "auto" and "LOCAL_RANK" in os.environ:
        import torch

        if torch.cuda.is_available():  # one GPU per lmms-eval process
            settings["device"] = f"cuda:{os.environ['LOCAL_RANK']}"
    return specs.model_spec(settings, {f.name: f.name for f in fields(ModelSpec)} | {"path": "pretrained"})
