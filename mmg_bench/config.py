"""Configurations, composed by Hydra from files and overrides, with clear messages for mistakes.

Imports nothing heavy, so that help and a misspelt option are answered at once. `specs` turns them into values.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mmg_bench.methods.registry import defaults, method_names
from mmg_bench.options import meant

_PACKAGE = Path(__file__).parent
CONFIGS = next(p for p in (_PACKAGE.parent / "configs", _PACKAGE / "configs") if p.is_dir())
"""The folder of configuration files: the checkout's, or the copy inside an installed package."""
_FOLDERS = [CONFIGS]
"""Folders to search for files of config groups: ours, then those of the last given `hydra.searchpath`."""
OPEN = ("model", "benchmark")
"""Sections of table.yaml that take changes to any file of the group with the same name."""
_TEXTS = ("question", "video", "picture", "page", "output_dir")
"""Options that take any text."""
_PLAIN = re.compile(r"[\w./:${}-]*", re.ASCII)
_OF_ONE = re.compile(r"method\.(\w+)\.(\w+=.*)", re.DOTALL)
"""An override for one of several methods."""
MUST_HAVE = {
    "table": ("name", "retention_ratios", "profiles"),
    "model": ("name", "path"),
    "benchmark": ("name", "tasks", "video"),
    "method": ("name",),
}
"""Entries that a file of each config group must have; all others have defaults."""
_UNREADABLE = (UnicodeError, YAMLError, OSError, OmegaConfBaseException, HydraException)
"""Errors raised by a file that is not a valid configuration."""
SEVERAL = "only run -m, measure -m and show -m accept several values, as in retention_ratio=0.1,0.25"
"""The end of a message about a second value where one is taken."""
ONLY_FOR_DOCTOR = ("download_gb", "disk_gb", "gpu_gb", "dataset", "videos")
"""Entries that say what a model or benchmark needs, and are not options of it."""


def load(group: str, name: str) -> dict[str, Any]:
    """Load one member of a config group. Raises ValueError, listing the valid names, for an unknown one."""
    if name not in names(group):
        raise _no_such(group, name, names(group))
    file = _files(group).get(name)
    if file is None:
        return {"name": name, **defaults(name)}
    content = _read(file)
    if "defaults" in content:
        raise ValueError(
            f"{file}: `defaults` works only with {group}={name}; for a table, write the inherited options out here"
        )
    _check_has(str(file), group, content)
    return content


def _check_has(where: str, group: str, content: Any, given: Collection[str] = ()) -> None:
    """Raise ValueError, naming the place, if a member of a config group lacks a required entry that is not `given`."""
    wanted = MUST_HAVE.get(group, ())
    there = content if isinstance(content, Mapping) else {}
    if lost := [entry for entry in wanted if there.get(entry) is None and f"{group}.{entry}" not in given]:
        raise ValueError(f"{where}: missing {', '.join(lost)}; the file of a {group} must have {', '.join(wanted)}")


def names(group: str) -> list[str]:
    """The members of a config group: its files, and methods without a file, which came through an entry point."""
    return sorted({*_files(group), *(method_names() if group == "method" else ())})


def _files(group: str) -> dict[str, Path]:
    """The files of a config group: member's name -> path."""
    return {path.stem: path for folder in reversed(_FOLDERS) for path in (folder / group).glob("*.yaml")}


def shipped(name: str, *overrides: str) -> dict[str, Any]:
    """`name`.yaml composed from the package's own files, with every reference resolved."""
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return plain(compose(name, list(overrides)))


def load_file(path: str) -> dict[str, Any]:
    """The content of a file in our folder of configurations, not composed."""
    return _read(CONFIGS / path)


def _read(file: Path) -> dict[str, Any]:
    """The content of a file, not composed. Raises ValueError, naming the file, if it cannot be read as YAML."""
    try:
        return OmegaConf.to_container(OmegaConf.load(file))  # type: ignore[return-value]
    except _UNREADABLE as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{file}: it cannot be read as YAML in UTF-8, with lines `option: value`: {why}") from error


def composed(name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose `name`.yaml with overrides, once. Raises ValueError, listing the valid options, for an unknown one."""
    with _hydra(overrides):
        parsed = _parsed(name, overrides)
        for given, override in zip(overrides, parsed, strict=True):
            if override.is_sweep_override():
                usual = OmegaConf.select(_whole(name, []), override.key_or_group)
                lists = isinstance(usual, ListConfig) or usual == "all"
                raise ValueError(f"{given}: {SEVERAL}{'; put a list in brackets' if lists else ''}")
        (config,) = _combined(name, parsed)
        return config


@contextmanager
def _hydra(overrides: Sequence[str]) -> Iterator[None]:
    """Set up Hydra to compose from the folders of configurations, and from methods without a file there."""
    with initialize_config_dir(str(CONFIGS), version_base=None):
        _FOLDERS[1:] = _searched(overrides)
        for name in set(names("method")) - set(_files("method")):
            # only those that `overrides` may mean: asking others for their options would import them
            if any(name in override or "glob(" in override for override in overrides):
                ConfigStore.instance().store(name, load("method", name), "method")
        yield


def _parsed(name: str, overrides: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())  # which can resolve glob(*)
    return parser.parse_overrides([_opened(name, override) for override in overrides])


def _searched(overrides: Sequence[str]) -> list[Path]:
    """The folders that `hydra.searchpath` names. Raises ValueError for one that does not exist."""
    given = [override for override in overrides if _option(override) == "hydra.searchpath"]
    if not given:
        return []
    value = OverridesParser.create().parse_override(given[-1]).value()
    if given[-1].startswith(("+", "~")) or not isinstance(value, list):
        raise ValueError(f"{given[-1]}: write it as a list of folders: 'hydra.searchpath=[mine]'")
    folders = []
    for entry in map(str, value):
        kind, _, place = entry.rpartition("://")
        try:
            folder = Path(str(files(place.replace("/", ".")))) if kind == "pkg" else Path(place)
        except ImportError:
            folder = None
        if folder is None or not folder.is_dir():
            raise ValueError(f"hydra.searchpath: there is no folder {entry}")
        for file in folder.glob("*/*.yaml"):
            if (CONFIGS / file.parent.name / file.name).is_file():
                raise ValueError(f"{file}: mmg_bench already has a {file.parent.name} with this name; rename the file")
        folders.append(folder)
    return folders


def _compose(name: str, overrides: Sequence[str], as_given: Mapping[str, str] | None = None) -> DictConfig:
    """Compose, with our own messages for unknown options and choices.

    Hydra's own settings are refused, except hydra.searchpath: only Hydra's composition is used.
    as_given: override -> the form in which it was given, which messages name.
    """
    given = [_opened(name, override) for override in overrides]
    typed = {_key(override): _key(other) for override, other in (as_given or {}).items()}
    for override in given:
        key = _option(override)
        if key.startswith(("hydra.", "hydra/")) and key != "hydra.searchpath":
            raise ValueError(f"{key}: the only Hydra option accepted is hydra.searchpath; --help lists mmg-bench's own")
        if key in _groups(name) and not override.startswith("~"):
            value = _parsed(name, [override])[0].value()
            if isinstance(value, list):  # Hydra would merge their files
                raise ValueError(f"{override}: choose one {key}, without brackets; {SEVERAL}")
            if not isinstance(value, str):
                raise ValueError(f"{override}: choose one of: {', '.join(names(key))}")
        if key == "method.name" and "method" in _groups(name):
            raise ValueError(f"{override}: choose a method with method={override.partition('=')[2]}")
        if override.startswith("~") and "." not in key:
            raise ValueError(f"{override}: an option cannot be removed; give it another value")
        if name == "table" and key in OPEN:
            ways = f"change one with {key}.<name>.<option>=<value>"
            raise ValueError(f"{override}: the table's file chooses its {key}s; {ways}")

    def chosen() -> DictConfig:
        try:
            return _whole(name, [o for o in given if _key(o) in (*_groups(name), "hydra.searchpath")])
        except _UNREADABLE:  # Hydra does not say which file
            files = [file for folder in _FOLDERS for file in folder.glob("*/*.yaml")]
            for file in sorted(files, key=lambda file: not any(file.stem in option for option in given)):
                _read(file)
            raise

    try:
        config = _whole(name, given)
    except MissingConfigException as error:
        group, _, choice = str(error.missing_cfg_file).partition("/")
        if group not in _groups(name):
            raise
        raise _no_such(group, choice, {*names(group), *(error.options or ())}) from None
    except _UNREADABLE:
        known = chosen()
        for unknown in map(_key, given):
            group, _, last = unknown.rpartition(".")
            options = OmegaConf.select(known, group) if group else known
            if options is None:
                raise _no_such_option(typed.get(unknown, unknown), "", name, known) from None
            if isinstance(options, DictConfig) and last not in options:
                raise _no_such_option(typed.get(unknown, unknown), group, name, options) from None
        raise
    options = {*load_file(f"{name}.yaml"), *_groups(name)}
    if added := [key for key in config if key not in options]:  # by `+`, and nothing would read it
        raise _no_such_option(str(added[0]), "", name, chosen())
    return config


def _whole(name: str, given: Sequence[str]) -> DictConfig:
    """Compose. Raises ValueError, naming the file, if a member of a group lacks a required entry."""
    config = compose(name, list(given), return_hydra_config=True)
    for group in _groups(name):
        choice = str(config.hydra.runtime.choices.get(group)).removesuffix(".yaml")
        where = _files(group).get(choice, f"{group} {choice}")
        _check_has(str(where), group, OmegaConf.select(config, group), [_option(option) for option in given])
    with open_dict(config):
        del config["hydra"]
    return config


def _no_such(group: str, name: str, known: Iterable[str]) -> ValueError:
    choices = sorted(known)
    own = "" if group == "method" else f"; for a file mine/{group}/<name>.yaml of your own, add hydra.searchpath=[mine]"
    return ValueError(f"no {group} is called {name!r}; {meant(name, choices)}choose one of: {', '.join(choices)}{own}")


def _no_such_option(option: str, group: str, name: str, known: DictConfig) -> ValueError:
    options = [str(entry) for entry in known if (group, entry) != ("method", "name")]  # set by choosing the method
    last = option.rpartition(".")[2]
    near = _of_a_section(option, known) or meant(last, options)
    if group and last in load_file(f"{name}.yaml"):
        near = f"{last} is an option of {name} itself; "
    where = f"{group} {known.name}" if group in _groups(name) and "name" in known else group or name
    hint = ""
    if name == "table" and option.split(".")[0] == "method":
        hint = "; set a table's methods and their options in its file (docs/your-own-table.md)"
    elif group == "method" and not near and option.count(".") == 1:
        hint = f"; with several methods, set an option of one with {option.replace('.', '.<name>.', 1)}=..."
    return ValueError(f"{option}: no such option; {near}{where} has: {', '.join(options) or 'none'}{hint}")


def _of_a_section(option: str, known: DictConfig) -> str:
    """A "did you mean ...?" question with the known sections that have an option of this name; empty if none has."""
    sections = [str(name) for name in known if isinstance(known[name], DictConfig) and option in known[name]]
    sections = [name for name in sections if (name, option) != ("method", "name")]  # set by choosing the method
    return f"did you mean {' or '.join(f'{section}.{option}' for section in sections)}? " if sections else ""


def _key(override: str) -> str:
    return override.partition("=")[0]


def _option(override: str) -> str:
    return _key(override).lstrip("+~")


def _opened(name: str, override: str) -> str:
    """An override in Hydra's form: `++` in front if it adds to an open section, and a leading `~/` expanded."""
    home = _quoted(override.replace("=~/", f"={Path.home()}/", 1))
    return f"++{home}" if name == "table" and home.startswith(tuple(f"{section}." for section in OPEN)) else home


def _quoted(override: str) -> str:
    """An override whose text value is quoted where Hydra requires it, as for commas or umlauts."""
    key, _, text = override.partition("=")
    plain = key != "question" and _PLAIN.fullmatch(text)  # a question may be a number
    if key not in _TEXTS or plain or (len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"):
        return override
    literal = text.replace("${", r"\${") if key == "question" else text
    escaped = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + found[2].replace("'", r"\'"), literal)
    return f"{key}='{escaped}'"


def _groups(name: str) -> dict[str, str]:
    """The config groups that `name`.yaml composes: group -> the file it takes by default."""
    defaults = load_file(f"{name}.yaml").get("defaults", ())
    return {group: file for entry in defaults if isinstance(entry, dict) for group, file in entry.items()}


def help_of(name: str, overrides: Sequence[str] = ()) -> str:
    """Help on the options of `name`.yaml, the choices of each group, and the options of the chosen members."""
    _FOLDERS[1:] = _searched(overrides)
    lines = [(CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")]
    given = {group: value for group, _, value in (override.partition("=") for override in overrides)}
    for group, usual in _groups(name).items():
        choices, chosen = names(group), given.get(group, usual)
        lines += textwrap.wrap(f"{group}: {', '.join(choices)}", 100, subsequent_indent=" " * 11)
        if chosen in choices:
            file = _files(group).get(chosen)
            content = load(group, chosen) if file is None else _read(file)  # raises if it cannot be read
            text = OmegaConf.to_yaml(content) if file is None else file.read_text(encoding="utf-8")
            lines += [f"  {group}={chosen}: options, set with {group}.option=value:", textwrap.indent(text, "    ")]
    return "\n".join(lines)


def sweep(name: str, overrides: Sequence[str]) -> list[DictConfig]:
    """Compose `name`.yaml once for every combination of the values that `overrides` list, as Hydra's multirun does.

    All are composed at once, not one job after another, so that shared work can be done once.
    """
    with _hydra(overrides):
        return _combined(name, _parsed(name, overrides))


def _combined(name: str, overrides: Sequence[Override]) -> list[DictConfig]:
    combinations = product(*map(_choices, overrides))
    return [_compose(name, [o for o, _ in own], dict(own)) for own in _for_their_methods(name, list(combinations))]


def _for_their_methods(name: str, combinations: Sequence[Sequence[str]]) -> Iterator[list[tuple[str, str]]]:
    """Combinations of overrides, with `method.<name>.<option>` applied only where that method is chosen.

    Each override is paired with the form in which it was given.

    Raises ValueError for an option of a method that no combination chooses.
    """
    usual = _groups(name).get("method")
    parsed = [_parsed(name, combination) for combination in combinations]
    chosen = [next((str(o.value()) for o in reversed(p) if o.key_or_group == "method"), usual) for p in parsed]
    for combination, method in zip(combinations, chosen, strict=True):
        own = []
        for override in combination:
            one = _OF_ONE.fullmatch(override) if usual else None
            if one and one[1] not in chosen:
                if one[1] not in names("method"):
                    raise _no_such("method", one[1], names("method"))
                there = ", ".join(map(str, dict.fromkeys(chosen)))
                raise ValueError(f"{override}: {one[1]} is not among the chosen methods: {there}; add it to method=")
            if one is None or one[1] == method:
                own.append((f"method.{one[2]}" if one else override, override))
        yield own


def _choices(override: Override) -> list[str]:
    """One override for each value that a sweep override lists."""
    if not override.is_sweep_override():
        return [override.input_line or ""]
    if not override.is_discrete_sweep():
        raise ValueError(f"{override.input_line}: an interval is not a list; list the values, or use range(...)")
    choices = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    if not choices:
        raise ValueError(f"{override.input_line}: this gives no values; --help lists what there is to choose")
    return choices


def check_told_apart(configs: Sequence[Mapping[str, Any]], told: Sequence[str], fix: str) -> None:
    """Raise ValueError if the rows of two different configurations could not be told apart.

    told: names, as in overrides, of the options that rows show. Configurations that agree in all of these must agree in
        every other option, too.
    fix: the remedy for the message; `{}` in it stands for a path made of the options that differ.
    """
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for options in map(_options, configs):
        alike.setdefault(tuple(options.get(option) for option in told), []).append(options)
    unlike: dict[str, list[str]] = {}
    for same in alike.values():
        unlike |= {option: values for option, values in _differing(same).items() if option not in unlike}
    if unlike:
        into = "/".join(f"${{{option}}}" for option in unlike)
        raise ValueError(f"{_given(unlike)}: rows in one folder could not be told apart; {fix.format(into)}")


def check_alike(configs: Sequence[Mapping[str, Any]], apart: Collection[str], says: str) -> None:
    """Raise ValueError, giving the values, if configurations differ in options other than those in `apart`.

    says: the reason and the remedy for the message; `{}` in it stands for the options' names.
    """
    kept = [{name: value for name, value in config.items() if name not in apart} for config in configs]
    unlike = _differing([_options(config) for config in kept])
    for group in [name for name, value in kept[0].items() if isinstance(value, dict) and f"{name}.name" in unlike]:
        if set(unlike[f"{group}.name"]) <= set(names(group)):  # another member, which changes the rest
            members = unlike[f"{group}.name"]
            others = {o: values for o, values in unlike.items() if not o.startswith(f"{group}.")}
            unlike = {group: members, **others}
    if unlike:
        raise ValueError(f"{_given(unlike)}: {says.format(', '.join(unlike))}")


def _differing(several: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The options that differ between several configurations, each with its values."""
    found = {
        option: list(dict.fromkeys(str(options.get(option)) for options in several))
        for option in dict.fromkeys(option for options in several for option in options)
    }
    return {option: values for option, values in found.items() if len(values) > 1}


def _given(values: Mapping[str, Sequence[str]]) -> str:
    """Options with their values, as written for a sweep."""
    return " ".join(f"{option}={','.join(texts)}" for option, texts in values.items())


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a configuration, named as in overrides."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def plain(config: Any) -> dict[str, Any]:
    """A configuration as plain dictionaries and lists, with every reference resolved."""
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


def as_yaml(config: DictConfig) -> str:
    """A configuration as YAML, with every reference resolved."""
    return OmegaConf.to_yaml(config, resolve=True)


def changed(config: Mapping[str, Any], group: str, name: str) -> dict[str, Any]:
    """The member `name` of a `group`, with the changes made by a configuration composed from table.yaml."""
    return {**load(group, name), **config[group].get(name, {})}


def check_changes(config: Mapping[str, Any], profiles: Collection[Mapping[str, Any]]) -> None:
    """Raise ValueError if a change is not to a model or benchmark of the table: it would have no effect."""
    of_table = {
        "model": [name for p in profiles for name in p.get("workloads", [p.get("model")])],
        "benchmark": [name for p in profiles for name in p.get("benchmarks", ())],
    }
    for group, known in of_table.items():
        changes = config[group] if isinstance(config[group], dict) else {config[group]: None}
        for name, options in changes.items():
            if name not in known or not isinstance(options, dict):
                ways = ", ".join(f"{group}.{other}.<option>" for other in dict.fromkeys(known))
                raise ValueError(
                    f"{group}.{name}: no such {group} option in table {config['table']['name']!r}; it has: "
                    f"{ways or 'none'}"
                )


def listed(option: str, values: Any) -> list[Any]:
    """The values, as a list, of an option that takes one or several. Raises ValueError if there are none."""
    found = values if isinstance(values, list | tuple) else [] if values is None else [values]
    if not found:
        raise ValueError(f"{option}={values!r}: give one value or a non-empty list")
    return list(found)


def known(kind: type, config: Mapping[str, Any], group: str) -> dict[str, Any]:
    """A section's options as arguments of the dataclass `kind`. Raises ValueError, listing the fields, for others."""
    values = {k: v for k, v in config.items() if k not in ONLY_FOR_DOCTOR}
    options = [f.name for f in fields(kind) if f.compare]  # fields that are not compared are not settings
    if unknown := sorted(set(values) - set(options)):
        raise ValueError(f"{group} has no option {', '.join(unknown)}; it has: {', '.join(options)}")
    return values
