"""What a run or table needs, and whether this machine has it: checked up front. Nothing here goes online."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmg_bench.benchmarks.lmms import Benchmark, BenchmarkSpec
from mmg_bench.methods.base import Method
from mmg_bench.models.adapter import UnsupportedModelError
from mmg_bench.models.checking import ModelError, attention_lacks, bare_adapter, check_folder
from mmg_bench.models.geometry import is_named, unknown
from mmg_bench.models.hub import not_cached
from mmg_bench.models.siglip import FIELDS
from mmg_bench.models.siglip import lacks as siglip_lacks
from mmg_bench.models.spec import ModelSpec, folder_of
from mmg_bench.options import check_path

SHOWN = 3  # missing files that messages name
EMBEDDED = ("mmg_embedded",)
"""The task whose questions and videos come with the package."""


@dataclass(frozen=True)
class Check:
    """One requirement."""

    what: str
    missing: str | None = None
    """What is wrong with it; None if it is met."""
    fix: str = ""
    """How to get it."""

    def __str__(self) -> str:
        return self.what if self.missing is None else f"{self.what}: {self.missing}\n      -> {self.fix}"


def check_all(
    model: Mapping[str, Any],
    spec: ModelSpec,
    benchmarks: Sequence[tuple[BenchmarkSpec, Mapping[str, Any]]],
    needs_gpu: bool,
    methods: Mapping[str, Method],
) -> list[Check]:
    """Everything a model needs to answer benchmarks (each given with the configuration it was made from).

    `methods`: label -> method, for those that will run.
    """
    downloads = list(_weights(model, spec, {field for method in methods.values() for field in method.needs}))
    downloads += [(_data(spec, config), config.get("disk_gb")) for spec, config in benchmarks]
    wanted = [gigabytes for check, gigabytes in downloads if check.missing is not None]
    return [
        _packages(),
        _decoding(),
        *_settings(spec),
        *(_gpu(model, spec) if needs_gpu else ()),
        *(check for check, _ in downloads),
        *_methods(spec, methods),
        *_disk(wanted),
    ]


def _packages() -> Check:
    from packaging.requirements import Requirement

    wrong = []
    for line in requires("mmg-bench") or ():
        wanted = Requirement(line)
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            try:
                found = version(wanted.name)
            except PackageNotFoundError:
                wrong.append(f"{wanted} is not installed")
            else:
                if not wanted.specifier.contains(found, prereleases=True):
                    wrong.append(f"{wanted} is required, {found} is installed")
    return Check("packages", "; ".join(wrong) or None, "make setup, which installs the pinned versions")


def _decoding() -> Check:
    from mmg_bench.benchmarks.embedded.render import write_video
    from mmg_bench.benchmarks.embedded.world import make_world
    from mmg_bench.benchmarks.video import read_frames

    try:
        with tempfile.TemporaryDirectory() as folder:
            write_video(make_world("train", 0, sampled=3), Path(folder) / "probe.mp4", size=32)
            read_frames(Path(folder) / "probe.mp4", 2)
    except Exception as error:  # a missing library raises one of many kinds
        return Check(
            "decoding of H.264 video", f"{type(error).__name__}: {error}", "pip install --force-reinstall decord av"
        )
    return Check("decoding of H.264 video")


def _settings(spec: ModelSpec) -> Iterator[Check]:
    """Settings of a model that this machine does not support."""
    if lacking := attention_lacks(spec.attn_implementation):
        fix = f"install it, or set {spec.option('attn_implementation')}=sdpa"
        yield Check(f"attention {spec.attn_implementation}", f"this machine lacks {lacking}", fix)
    try:
        _ = spec.torch_device
    except ValueError as error:
        yield Check(f"device {spec.device}", str(error), f"set {spec.option('device')}=auto")


def _methods(spec: ModelSpec, methods: Mapping[str, Method]) -> Iterator[Check]:
    """Problems with the model's family, with what it needs here, and with methods that do not fit it.

    Reports nothing of this for a model whose configuration is not on this machine.
    """
    other = f"use another model ({spec.option('path')})"
    try:
        bare = bare_adapter(spec)
    except UnsupportedModelError as error:
        yield Check(f"the family of {spec.name}", str(error), other)
        return
    except ModelError as error:
        yield Check(f"the configuration of {spec.name}", str(error), "copy it again, or use another model")
        return
    if bare is None:  # otherwise, the check of the weights says what is missing
        if spec.weights == "random" and folder_of(spec.path) is None:
            fix = f"set {spec.option('path')} to a checkpoint folder"
            yield Check(f"the architecture of {spec.name}", unknown(spec.name), fix)
        return
    if bare.package is not None and find_spec(bare.package) is None:
        yield Check(f"package {bare.package} for {spec.name}", "it is not installed", f"pip install {bare.package}")
    for label, method in methods.items():
        if (lacking := bare.lacking_for(method.needs, label, siglip=spec.siglip is not None)) is not None:
            yield Check(f"what {label} reads", *lacking)
        try:
            bare.stages(method)
        except ValueError as error:
            fault = bare.not_inside() or str(error)
            yield Check(f"where {label} prunes", fault, "choose another method or model")


def _gpu(model: Mapping[str, Any], spec: ModelSpec) -> Iterator[Check]:
    import torch

    need = model.get("gpu_gb") or 0
    what = f"GPU with {need:g} GB for {spec.name}"
    if not torch.cuda.is_available():
        yield Check(what, "torch sees no CUDA device", "run on a machine with an NVIDIA GPU and its driver")
        return
    try:
        devices: list[Any] = [spec.torch_device]
    except ValueError:  # reported by `_settings`
        return
    if spec.device_map is not None:  # spread over all of them
        devices = list(range(torch.cuda.device_count()))
    free, total = (sum(b) / 1e9 for b in zip(*map(torch.cuda.mem_get_info, devices), strict=True))
    lacks = f"{free:.0f} of its {total:.0f} GB are free" if free < need else None
    yield Check(
        what,
        lacks,
        f"stop other processes on it, or use another GPU ({spec.option('device')}=cuda:<number>) or a smaller model",
    )


def _weights(model: Mapping[str, Any], spec: ModelSpec, needs: Collection[str]) -> Iterator[tuple[Check, float | None]]:
    """The model's checkpoint, and SigLIP's if a method needs it; each with the size of its download."""
    size, folder = model.get("download_gb"), folder_of(spec.path)
    what = f"weights of {spec.name} ({spec.path})"
    if folder is not None and not is_named(spec):
        yield _in_folder(what, folder, spec.option("path")), 0
    elif spec.weights != "random":
        yield _in_cache(what, spec, "path", "revision", size), size
    if spec.siglip is not None and FIELDS & set(needs):
        what, folder = f"SigLIP's pooling head and text tower ({spec.siglip})", folder_of(spec.siglip)
        if folder is None:
            yield _in_cache(what, spec, "siglip", "siglip_revision", None), None
        else:
            yield Check(what, siglip_lacks(folder), f"correct {spec.option('siglip')}"), 0


def _in_folder(what: str, folder: Path, option: str) -> Check:
    try:
        check_folder(folder, option)
    except ModelError as error:
        return Check(what, str(error), f"copy the checkpoint folder again, or set {option}")
    return Check(what)


def _in_cache(what: str, spec: ModelSpec, option: str, pin: str, size: float | None) -> Check:
    """Whether the hub cache has a repository, named by the model's option `option`, at the commit named by `pin`."""
    repo, revision, at, other = getattr(spec, option), getattr(spec, pin), "", ""
    try:
        lacking = not_cached(repo, revision)
    except ValueError as error:  # not a repository id
        return Check(what, str(error).splitlines()[0], f"set {spec.option(option)} to a hub id or a folder")
    if revision is not None:
        at, other = f" --revision {revision}", f"; {spec.option(pin)}=null uses the newest commit in the cache"
    fix = f"hf download {repo}{at} ({_size(size)}), or set {spec.option(option)} to a folder{other}"
    return Check(what, _some("the hub cache lacks", lacking), fix)


def _data(spec: BenchmarkSpec, config: Mapping[str, Any]) -> Check:
    """Annotations and videos: first whether there are any, then, with the task's own code, whether all are there."""
    what = f"data of {spec.name}"
    if spec.tasks == EMBEDDED:  # generated if missing
        return Check(what)
    correct = "correct benchmark.tasks, benchmark.include_path, or the task's files"
    complete = "put them where the task's doc_to_visual points"
    dataset, below = config.get("dataset"), config.get("videos")
    if dataset is not None:  # otherwise a user's own benchmark, which cannot be fetched
        try:
            videos = None if below is None else _hf_home() / check_path("benchmark.videos", below)
            absent = [] if spec.data is not None or _has_annotations(dataset) else ["its annotations"]
        except ValueError as error:  # not a folder, or not a data set id
            return Check(what, str(error).splitlines()[0], "correct benchmark.videos or benchmark.dataset, or set null")
        fetch = (
            f"while online: hf auth login, then mmg-bench run benchmark={spec.name} limit=1, which fetches and unpacks "
            f"{dataset} ({_size(config.get('download_gb'))})"
        )
        if videos is not None:
            if not videos.is_dir() or not any(videos.iterdir()):
                absent.append(f"its videos below {videos}")
            correct = f"move {videos} away, then, {fetch}"
            complete = f"copy them into {videos}; or move it away, then, {fetch}"
        if absent:
            return Check(what, f"{' and '.join(absent)} are missing", fetch)
    try:
        benchmark = Benchmark(spec)
        count, lost = len(benchmark.questions), benchmark.missing_videos()
    except Exception as error:  # a task's own code may raise anything
        return Check(what, str(error), correct)
    return Check(f"{what}: {count} questions", _some("videos missing:", lost), complete)


def _hf_home() -> Path:
    from huggingface_hub import constants

    return Path(os.environ.get("HF_HOME", constants.HF_HOME)).expanduser()  # as the tasks' own code reads it


def _has_annotations(dataset: str) -> bool:
    """Whether a hub data set was downloaded or loaded before. Raises ValueError if the id is invalid."""
    from huggingface_hub import constants
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(dataset)
    owner, _, name = dataset.rpartition("/")  # the oldest data sets have no owner
    downloaded = Path(constants.HF_HUB_CACHE) / f"datasets--{dataset.replace('/', '--')}" / "snapshots"
    loaded = Path(os.environ.get("HF_DATASETS_CACHE", _hf_home() / "datasets"))
    before = f"{owner}___" if owner else ""
    names = {_alike(folder.name.removeprefix(before)) for folder in loaded.glob(f"{before}*")}
    return downloaded.is_dir() or _alike(name) in names


def _alike(name: str) -> str:
    """A data set's name in a normal form: folders of loaded data sets spell it differently."""
    return name.replace("_", "").lower()


def _disk(wanted: Sequence[float | None]) -> Iterator[Check]:
    """Whether there is disk space for what must be downloaded."""
    need = sum(gigabytes for gigabytes in wanted if gigabytes is not None)
    if not wanted:
        return
    home = _hf_home()
    free = shutil.disk_usage(next(p for p in (home, *home.resolve().parents) if p.exists())).free / 1e9
    unknown = " and data of unknown size" if None in wanted else ""
    yield Check(
        f"{need:.0f} GB{unknown} of disk below {home}",
        f"only {free:.0f} GB are free" if free < need else None,
        "free some, or point HF_HOME at a larger disk",
    )


def _some(says: str, names: Sequence[str]) -> str | None:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{says} {', '.join(names[:SHOWN])}{more}" if names else None


def _size(gigabytes: float | None) -> str:
    return "size unknown" if gigabytes is None else f"about {gigabytes:g} GB"
