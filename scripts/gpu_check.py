"""Is all there that scripts/gpu_run.sh needs? Prints the device and the code, or all that is amiss, each with its fix.

python scripts/gpu_check.py cuda generated      # DEVICE and VIDEO of that script
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
UNUSED = ("lmms-eval", "filelock", "accelerate", "matplotlib", "av")
"""No step imports these: benchmarks, a bound for lmms-eval's sake, models on several GPUs, figures, writing a video."""
MORE = ("omegaconf", "antlr4-python3-runtime==4.9.*", "pytest", "hypothesis")
"""What Hydra needs (wheels are installed without what they need), and tests."""
MODULES = {"hydra-core": "hydra", "antlr4-python3-runtime": "antlr4", "pillow": "PIL"}
"""Modules that are not called like their package."""


def packages(video: str) -> Iterator[str]:
    """Packages that are missing, too old, or cannot be imported beside the others."""
    from packaging.requirements import Requirement

    decoded = video != "random" and not Path(video).is_dir()
    for package in map(Requirement, (*tomllib.loads(PROJECT.read_text())["project"]["dependencies"], *MORE)):
        name = package.name
        if name in UNUSED or (name == "decord" and not decoded):
            continue
        fix = f"put a wheel of {package} into WHEELS"
        try:
            found = version(name)
        except PackageNotFoundError:
            yield f"{name} is not installed: {fix}"
            continue
        if not package.specifier.contains(found, prereleases=True):
            yield f"{name} is {found}: {fix}"
            continue
        try:
            import_module(MODULES.get(name, name))
        except Exception as error:
            yield f"{name} {found} cannot be imported ({error}): put wheels that fit together into WHEELS"


def cuda() -> Iterator[str]:
    """What is amiss with the GPU."""
    import torch

    if not torch.cuda.is_available():
        yield "torch sees no CUDA device: run this where there is one, or set DEVICE=cpu PROFILE=cpu"


def code() -> dict[str, str]:
    """The commit, and the versions on which results depend most."""
    import torch

    from mmg_bench.runner.provenance import describe

    told = describe({}, torch.device("cpu"))
    return {"commit": told["commit"], **{name: told["packages"][name] for name in ("torch", "transformers")}}


def commit() -> Iterator[str]:
    """What is amiss with the commit."""
    if code()["commit"] == "unknown":
        yield "the commit is unknown, and results must name it: set MMG_BENCH_COMMIT"


def footage(video: str) -> Iterator[str]:
    """What is amiss with the video."""
    from mmg_bench.benchmarks.embedded.dataset import cache_folder
    from mmg_bench.benchmarks.video import VideoError, read_clip
    from mmg_bench.measure.workload import video_file

    try:
        read_clip(video_file(video), 1)
    except ModuleNotFoundError as error:
        if error.name == "av":
            yield (
                f"VIDEO={video} cannot be written without av: copy it from {cache_folder()} of a machine that has av "
                "(the file measure-*.mp4) to this one's, or set MMG_BENCH_CACHE or VIDEO=random"
            )
        elif error.name != "decord":  # that one is named among the packages
            raise
    except (VideoError, ValueError, OSError) as error:
        yield f"VIDEO={video} cannot be used ({error}): give another one"


def main(device: str, video: str) -> None:
    """Print the device and the code, a line each. Exits with all faults if there are some."""
    faults = list(packages(video))
    checks = [commit()]
    if device == "cuda":
        checks.append(cuda())
    if video != "random":
        checks.append(footage(video))
    for check in checks:
        try:
            faults += check
        except ImportError as error:  # for a package named above, most likely
            faults.append(f"the {check.__name__} could not be checked: {error}")
    if faults:
        sys.exit("\n".join(faults))
    import torch

    print(torch.cuda.get_device_name() if device == "cuda" else "the CPU")
    print(", ".join(f"{name} {value}" for name, value in code().items()))


if __name__ == "__main__":
    main(*sys.argv[1:])
