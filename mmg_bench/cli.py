"""The command `mmg-bench`."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import sys
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from mmg_bench import __version__

HELP = """\
mmg-bench: training-free visual-token pruning for video LLMs, measured

  mmg-bench run [options]      answer a benchmark with one model and one or several methods
  mmg-bench table [options]    make a whole table, such as Table 1 of the MMG-Vid paper
  mmg-bench compare A B        compare two methods of a finished run question by question, with a paired interval
  mmg-bench browse [options]   write an HTML page that shows every question and what each method answered
  mmg-bench show [options]     draw the tokens that methods keep of a video, and print what the model then answers
  mmg-bench measure [options]  measure speed, memory and FLOPs of one model against dense, also with random weights
  mmg-bench doctor [options]   check what this machine is missing for a run or a table, and say how to get it
  mmg-bench methods [NAME]     list the pruning methods and their parameters, or describe one of them
  mmg-bench bench-methods      time the methods themselves, without a model
  mmg-bench new-method NAME    write the file, config, test and docs page of a new method into this checkout
  mmg-bench check-method NAME  check that a method, yours or another package's, does what every method must

Options are Hydra overrides; `mmg-bench run --help` explains each and lists the choices of each group.

  mmg-bench run model=embedded method=mmg_vid retention_ratio=0.25 benchmark=embedded
  mmg-bench run -m method=mmg_vid,random retention_ratio=0.1,0.15,0.25   # one pass over the videos
  mmg-bench run -m method=mmg_vid,cdpruner method.cdpruner.relevance=llm # an option of one of them
  mmg-bench run method=mmg_vid method.tau=0.9 positions=contiguous latency=true
  mmg-bench table table=table1 profile=embedded
  mmg-bench compare mmg_vid random retention_ratio=0.1 output_dir=outputs/embedded/embedded
  mmg-bench browse output_dir=outputs/table1
  mmg-bench compare mmg_vid dense a.frames=64 a.retention_ratio=0.125 b.frames=8
  mmg-bench show -m method=mmg_vid,random retention_ratio=0.1 video=my.mp4 question='What happens?'
  mmg-bench measure -m model=llava_onevision_7b weights=random frames=32,64 retention_ratio=0.1,0.25
  mmg-bench doctor table=table1 profile=paper
  mmg-bench doctor model=llava_onevision_7b benchmark=videomme
  mmg-bench methods fastvid

Run an interrupted command again to resume where it stopped. The exit status is 1 if an answer or a measurement failed
or doctor found something missing, and 2 if the command could not be carried out.
"""


DOCTOR_HELP = """\
mmg-bench doctor [option=value]: what this machine lacks, and how to get it. Nothing is downloaded, nothing is run.

  mmg-bench doctor                                          table 1, in each of its profiles
  mmg-bench doctor table=efficiency profile=gpu             any option of `mmg-bench table`
  mmg-bench doctor model=llava_onevision_7b method=fastvid  any option of `mmg-bench run`

The exit status is 0 if nothing is missing (for a table: in at least one profile), and 1 otherwise.
"""
_HELP_FLAGS = {"-h", "--help"}
_SWEEP_FLAGS = {"-m", "--multirun"}
_ONLY_OF_RUN = re.compile(r"\+*(model|benchmark|method(\.\w+)?|retention_ratio|positions|shard)(\.\w+)?=")
"""Overrides of run.yaml that table.yaml does not have: a table takes changes as `model.<name>.<option>`."""
_ONLY_OF_TABLE = re.compile(r"\+*(table|profile)(\.\w+)*=")
_OPTION = re.compile(r"-|[+~]*[\w./@]+=|~")
"""Start of an argument that is an option, not the label of a method."""
_NOT_CHECKED = {
    "name": "the method is the first argument",
    "retention_ratio": "every check sets its own retention ratios",
    "positions": "it concerns the model's position ids, and no model runs here",
}
"""Options of a run that check-method does not take."""
_GOES_ON = ("run", "table", "measure")
"""Commands that keep their progress."""


def main() -> None:
    """Entry point."""
    _open_streams()
    sys.argv[0] = "mmg-bench"  # even under `python -m`: provenance records the command
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "10")  # seconds: a log keeps every update of a bar
    command, *rest = sys.argv[1:] or ["--help"]
    commands: dict[str, Callable[[list[str]], int]] = {
        "run": _run,
        "table": _table,
        "compare": _compare,
        "browse": _browse,
        "show": _show,
        "measure": _measure,
        "doctor": _doctor,
        "methods": _methods,
        "bench-methods": _bench_methods,
        "new-method": _new_method,
        "check-method": _check_method,
    }
    if command in {*_HELP_FLAGS, "help"}:
        print(HELP)
        sys.exit(0)
    if command == "--version":
        print(f"mmg-bench {__version__}")
        sys.exit(0)
    if command not in commands:
        print(f"mmg-bench: no command {command!r}; choose one of {', '.join(commands)}, or --help", file=sys.stderr)
        sys.exit(2)
    try:
        failed = commands[command](rest)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nstopped" + "; run the same command again to resume" * (command in _GOES_ON), file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader has closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if (mistake := _mistake(error)) is None:
            raise
        print(f"mmg-bench: {mistake}", file=sys.stderr)
        sys.exit(2)
    sys.exit(1 if failed else 0)


def _mistake(error: Exception) -> str | None:
    """One-line message for an error that the user can fix; None for a bug, which ends in its traceback."""
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if isinstance(error, OverrideParseException):
        key, _, value = error.override.partition("=")
        fault = str(error).splitlines()[0]
        quoted = shlex.quote(f'{key}="{value}"')
        return f"{error.override}: {fault}; if the value is text, quote it: {quoted}"
    if isinstance(error, HydraException | OmegaConfBaseException | YAMLError):
        return " ".join(str(error).split())
    return str(error) if isinstance(error, ValueError | RuntimeError | OSError) else None


def _open_streams() -> None:
    """Make sure that anything can be printed, so that no run ends because of it.

    A process started without its standard streams, as by `>&- 2>&-`, gets the null device for them. Otherwise the next
    files that it opens would take their numbers, and receive what libraries write to stderr.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="namereplace")  # a terminal with a limited charset, as in the locale en_US


def _run(overrides: list[str]) -> int:
    return _configured("run", overrides, lambda configs: _command("evaluation").run(configs), sweeps=True)


def _measure(overrides: list[str]) -> int:
    return _configured("measure", overrides, lambda configs: _command("measure").measure(configs), sweeps=True)


def _table(overrides: list[str]) -> int:
    return _configured("table", overrides, lambda configs: _command("tables").table(configs[0]))


def _compare(arguments: list[str]) -> int:
    options = [argument for argument in arguments if _OPTION.match(argument)]
    methods = [argument for argument in arguments if argument not in options]
    return _configured("compare", options, lambda configs: _command("compare").compare(methods, configs[0]))


def _browse(overrides: list[str]) -> int:
    os.environ["HF_HUB_OFFLINE"] = "1"  # it uses prompts and videos on this machine only
    return _configured("browse", overrides, lambda configs: _command("browse").browse(configs[0]))


def _show(overrides: list[str]) -> int:
    return _configured("show", overrides, lambda configs: _command("show").show(configs), sweeps=True)


def _bench_methods(overrides: list[str]) -> int:
    return _configured("bench_methods", overrides, lambda configs: _command("bench_methods").run(configs[0]))


def _doctor(overrides: list[str]) -> int:
    if _HELP_FLAGS & set(overrides):
        print(DOCTOR_HELP)
        return 0
    os.environ["HF_HUB_OFFLINE"] = "1"  # it looks at this machine only
    of_table = any(map(_ONLY_OF_TABLE.match, overrides))
    name = "run" if not of_table and any(map(_ONLY_OF_RUN.match, overrides)) else "table"
    return _configured(name, overrides, lambda configs: _command("doctor").doctor(configs[0]))


def _methods(names: list[str]) -> int:
    from inspect import cleandoc

    from mmg_bench.methods.registry import defaults, method_class, method_names, unreadable

    names = [name for name in names if not name.startswith("-")]  # --help lists all
    broken = {} if names else unreadable(method_names())
    for name in names or method_names():
        if name in broken:
            print(f"{name:14} {broken[name]}")
            continue
        cls = method_class(name)
        lines = cleandoc(cls.__doc__ or "").splitlines()
        options = ", ".join(f"{option}={value}" for option, value in defaults(name).items())
        shown = [*(lines if names else lines[:1]), *([f"  {options}"] if options else [])]
        print(f"{cls.name:14} " + f"\n{'':15}".join(shown))
    return len(broken)


def _new_method(arguments: list[str]) -> int:
    usage = "mmg-bench new-method NAME: writes file, config, test and docs page of a method, in the root of a checkout"
    if _HELP_FLAGS & set(arguments):
        print(usage)
        return 0
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(f"usage: {usage}", file=sys.stderr)
        sys.exit(2)
    paths = _command("new_method").new_method(arguments[0], Path.cwd())
    print("Written:", *paths, sep="\n  ")
    print(f"Then: mmg-bench check-method {arguments[0]}    (docs/adding-a-method.md)")
    return 0


def _check_method(arguments: list[str]) -> int:
    usage = "mmg-bench check-method NAME [option=value]: checks a method, with the given options, on made-up videos"
    if _HELP_FLAGS & set(arguments):
        print(usage)
        return 0
    name, *options = arguments or [""]
    if not name or "=" in name or any(option.startswith("-") for option in options):
        print(f"usage: {usage}", file=sys.stderr)
        sys.exit(2)
    from mmg_bench import config as cfg

    configs = cfg.sweep("run", [f"method={name}", *map(_of_method, options)])
    if len(configs) > 1:
        raise ValueError(f"{' '.join(arguments)}: several values; check them one by one")
    return _command("check_method").check_method(cfg.plain(configs[0])["method"])


def _of_method(option: str) -> str:
    """An option of check-method in the form that `run` takes. Raises ValueError for options that checks do not take."""
    if option.startswith("hydra."):
        return option
    name, equals, _ = option.removeprefix("method.").partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"{option}: write option=value, such as tau=0.9; `mmg-bench methods NAME` lists the options")
    if name in _NOT_CHECKED:
        raise ValueError(f"{option}: {_NOT_CHECKED[name]}; leave it out")
    return f"method.{option.removeprefix('method.')}"


def _command(module: str) -> Any:
    """A module of `mmg_bench.commands`. It is heavy, so imported only when needed, with its libraries quiet."""
    os.environ.setdefault("LOGURU_LEVEL", "WARNING")  # lmms-eval's
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    command = importlib.import_module(f"mmg_bench.commands.{module}")
    if "transformers" in sys.modules:
        from transformers.utils import logging

        logging.disable_progress_bar()
    return command


def _configured(name: str, arguments: list[str], task: Callable[[list[Any]], int], sweeps: bool = False) -> int:
    """Compose the configuration that the arguments ask for, or all those of a sweep, and run the task on them."""
    from mmg_bench import config as cfg

    flags = {argument for argument in arguments if argument.startswith("-")}
    overrides = [argument for argument in arguments if argument not in flags]
    if _HELP_FLAGS & flags:
        print(cfg.help_of(name, overrides))
        print()
        if sweeps:
            print("-m     accept several values of an option, such as retention_ratio=0.1,0.25")
            print("       set an option of one of several methods with method.<name>.<option>=value")
        print("--cfg  print the composed options, and do nothing else")
        return 0
    if "--cfg" in flags and "job" in overrides:  # Hydra's own syntax: `--cfg job`
        overrides.remove("job")
    known = {"--cfg", *(_SWEEP_FLAGS if sweeps else ())}
    if unknown := sorted(flags - known):
        if unknown[0] in _SWEEP_FLAGS:
            raise ValueError(f"{unknown[0]}: {cfg.SEVERAL}")
        there = f"{unknown[0]}: no such flag here; the flags are {', '.join(sorted(known))} and --help"
        option = unknown[0].lstrip("-").partition("=")[0]
        raise ValueError(
            f"{there}; write options without dashes: {option}=..." if option in cfg.load_file(f"{name}.yaml") else there
        )
    if alone := next((o for o in overrides if "=" not in o and not o.startswith("~")), None):
        raise ValueError(f"{alone}: write option=value; --help lists the options")
    configs = cfg.sweep(name, overrides) if flags & _SWEEP_FLAGS else [cfg.composed(name, overrides)]
    if "--cfg" not in flags:
        return task(configs)
    print("---\n".join(cfg.as_yaml(config) for config in configs), end="")
    return 0
