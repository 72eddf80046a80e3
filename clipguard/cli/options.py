"""Options of commands, made from the settings that dataclasses declare, and `--config FILE` for every command.

A command that is decorated with `takes(settings)` gets one keyword argument `given`: what its user gave, by the names
of Python and of files. What the command line says wins over the file.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from clipguard.benchmark.plan import BenchPlan
from clipguard.core.eps import spell_eps
from clipguard.core.errors import ClipguardError, did_you_mean, first_line
from clipguard.core.files.config_files import read_config_file
from clipguard.core.settings import Setting, read_settings, setting, settings_of

DEFAULT_STORE = "runs/store"
CONFIG_HELP = "TOML, YAML or JSON file of settings, named as in Python or as the options."
CONFIG_HELP_OF_RUNS = f"{CONFIG_HELP[:-1]}; or the results.json or run.json of an earlier run."
Command = Callable[..., None]


@dataclass(frozen=True)
class FilesOfModels:
    """How files are read that are not a whole model; they go into the models' names."""

    base: str | None = setting(
        None,
        "For weight files that hold an image tower alone: the model it was tuned from, as ARCH:TAG, ARCH:FILE, "
        "local-dir:FOLDER or tiny. For one of several files, write --model FILE@BASE.",
    )
    normalization: str | None = setting(
        None, "Instead of the model's own: clip, imagenet or M,M,M/S,S,S. Also --model MODEL#normalization=..."
    )


@dataclass(frozen=True)
class Stored:
    """What becomes of outcomes beside the result."""

    store: str | None = setting(
        DEFAULT_STORE,
        "Folder of stored results, or s3://BUCKET/PREFIX: what is there is not computed again (docs/store.md).",
        metavar="PATH",
        off="--no-store",
        none="none",
    )
    probes: bool = setting(True, "Sanity checks that take passes of their own, over 8 images of each data set.")


FILES_OF_MODELS, STORED = settings_of(FilesOfModels), settings_of(Stored)


def takes(settings: Mapping[str, Setting], *, config: bool = True) -> Callable[[Command], Command]:
    """Give a command an option for each setting, and `--config`.

    Args:
        settings: by name. Those that the command has as parameters of its own keep theirs.
        config: whether `--config` is added and its values put into `given`; else it is the command's own.
    """

    def decorate(command: Command) -> Command:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "given"]
        made = [parameter for setting in settings.values() for parameter in _parameters(setting)]
        file = _keyword("config", None, Annotated[Path | None, typer.Option("--config", help=CONFIG_HELP_OF_RUNS)])

        @functools.wraps(command)
        def run(**values: Any) -> None:
            switched_off = [name for name, setting in settings.items() if setting.off and values.pop(f"no_{name}")]
            chosen = {name: values.pop(name) for name in settings}
            given = {name: _as_typed(settings[name], value) for name, value in chosen.items() if value is not None}
            given |= dict.fromkeys(switched_off)
            path = values.pop("config") if config else None
            layers = read_config(path, settings) if path else {}
            read = read_settings(given, settings)
            require_one_norm(path, layers, read)
            command(given=layers | read, **values)

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        arguments = [p for p in parameters if _is_argument(p)]
        others = [p for p in parameters if not _is_argument(p)]
        signature = inspect.Signature([*arguments, *made, *([file] if config else []), *others])
        run.__signature__ = signature  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()} | {"return": None}
        return run

    return decorate


def _as_typed(setting: Setting, value: Any) -> Any:
    """Lists whose members commas separate are one text, however often the option was given."""
    return ",".join(value) if setting.many in ("comma", "calls") else value


def configurable(command: Command) -> Command:
    """Add `--config` to a command whose options are its own parameters: the file holds their defaults."""

    @functools.wraps(command)
    def run(config: Path | None = None, **values: Any) -> None:
        del config  # read by its callback, before the other options
        command(**values)

    own = inspect.signature(command, eval_str=True).parameters.values()
    option = typer.Option("--config", help=CONFIG_HELP, is_eager=True, callback=_use_as_defaults)
    signature = inspect.Signature(
        [
            *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own),
            _keyword("config", None, Annotated[Path | None, option]),
        ]
    )
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()} | {"return": None}
    return run


def _use_as_defaults(context: typer.Context, path: Path | None) -> Path | None:
    if path is None:
        return None
    known: dict[str, str] = {}
    for parameter in context.command.params:
        name = parameter.name or ""
        known |= {name: name} | {flag.lstrip("-").replace("-", "_"): name for flag in parameter.opts}
    defaults: dict[str, Any] = {}
    for key, value in _read_table(path).items():
        spelled = str(key).replace("-", "_")
        if spelled not in known or known[spelled] in ("config", "help"):
            hint = did_you_mean(spelled, dict.fromkeys(known))
            raise ClipguardError(f"{path}: {key!r} is no setting of this command.{hint} --help lists them.")
        if value is not None:
            defaults[known[spelled]] = value
    context.default_map = defaults
    return path


def _is_argument(parameter: inspect.Parameter) -> bool:
    return any(type(note).__name__ == "ArgumentInfo" for note in getattr(parameter.annotation, "__metadata__", ()))


def _parameters(setting: Setting) -> Iterator[inspect.Parameter]:
    """Its option, which is None where it was not given, and the flag that sets it to None."""
    flags = [setting.flag, *([setting.letter] if setting.letter else [])]
    kind: Any = str | None
    if bool in setting.types:
        kind, negative = bool | None, f"--no-{setting.flag.removeprefix('--')}"
        flags = [f"{setting.flag}/{negative}"]
    elif setting.many:
        kind = list[str] | None
    option = typer.Option(
        *flags, help=setting.full_help, metavar=_metavar(setting), autocompletion=_completion(setting)
    )
    yield _keyword(setting.name, None, Annotated[kind, option])
    if setting.off:
        yield _keyword(f"no_{setting.name}", False, Annotated[bool, typer.Option(setting.off, help="Without it.")])


def _metavar(setting: Setting) -> str | None:
    """What stands for the value in the help; the command line reads texts, and the setting makes values of them."""
    if bool in setting.types:
        return None
    names = {float: "NUMBER", int: "INTEGER", Path: "PATH"}
    named = next((name for kind, name in names.items() if kind in setting.types), "TEXT")
    return setting.metavar or ("|".join(setting.choices) if setting.choices and not setting.many else named)


def _keyword(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _completion(setting: Setting) -> Callable[[str], list[str]] | None:
    """What a shell completes the value of an option with: its choices, or names of a registry."""
    if not setting.choices and not setting.complete:
        return None

    def complete(incomplete: str) -> list[str]:
        names = setting.choices or _registered_names(setting.complete)
        return [name for name in names if name.startswith(incomplete)]

    return complete


def _registered_names(registry: str) -> list[str]:
    from clipguard.api import listing

    if registry == "models":  # those of open_clip would need torch
        from clipguard.models.sources.published import published_models

        return ["tiny", *(published.name for published in published_models())]
    names: list[str] = getattr(listing, f"list_{registry}")()
    return names


def read_config(path: Path, settings: Mapping[str, Setting]) -> dict[str, Any]:
    """The settings that a file holds, by their names in Python.

    Args:
        path: a .toml, .yaml or .json file: settings by name, by flag (`dataset` for `datasets`), or what a run wrote
            itself: `results.json` (its models and plan) or `run.json` of `finetune` (its settings).
        settings: those that the command has.

    Raises:
        ClipguardError: for a file that cannot be read, and a name that is no setting.
    """
    content = _of_a_run(path, _read_table(path), settings)
    flags = {setting.flag.removeprefix("--").replace("-", "_"): name for name, setting in settings.items()}
    named: dict[str, Any] = {}
    for key, value in content.items():
        spelled = str(key).replace("-", "_")
        name = spelled if spelled in settings else flags.get(spelled)
        if name is None:
            hint = did_you_mean(spelled, dict.fromkeys([*settings, *flags]))
            raise ClipguardError(f"{path}: {key!r} is no setting.{hint} --help lists them.")
        if name in named:
            raise ClipguardError(f"{path}: {name!r} is there twice.")
        named[name] = _in_texts(value) if settings[name].is_eps else value
    return read_settings(named, settings, str(path))


def require_one_norm(path: Path | None, below: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises ClipguardError where the command line changes the norm of a file and would take the numbers of its eps."""
    norm = below.get("norm", "linf")
    for name in ("eps", "step_size"):
        if below.get(name) is not None and name not in given and given.get("norm", norm) != norm:
            raise ClipguardError(f"`{name}` of {path} is for {norm}; give `{name}` for `norm={given['norm']}`, too.")


def _read_table(path: Path) -> dict[str, Any]:
    """What a TOML, YAML or JSON file holds by name."""
    if path.suffix.lower() != ".json":
        return read_config_file(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ClipguardError(f"Cannot read {path}: {first_line(error)}.") from error
    if not isinstance(content, dict):
        raise ClipguardError(f"{path} must hold settings by name, not a {type(content).__name__}.")
    return content


def _of_a_run(path: Path, content: dict[str, Any], settings: Mapping[str, Setting]) -> dict[str, Any]:
    """The settings in `results.json` or `run.json`: those of the run that wrote it; the content of any other file."""
    run = content.get("run", content)
    if isinstance(run, dict) and (run.get("plan") or run.get("config")) and run.get("in_memory"):
        raise ClipguardError(f"{path} is of {', '.join(run['in_memory'])}, which were objects in memory.")
    if isinstance(run, dict) and isinstance(run.get("plan"), dict):
        values = {"models": list(run.get("models", ())), **run["plan"], "probes": run.get("probes", True)}
    elif isinstance(run, dict) and isinstance(run.get("config"), dict):
        values = dict(run["config"])
    else:
        return content
    norm = values.get("norm", "linf")
    for name in ("eps", "step_size"):  # which were insisted on, if they look like another unit
        if values.get(name) is not None:
            numbers = values[name] if isinstance(values[name], list) else [values[name]]
            texts = [spell_eps(number, norm) for number in numbers]
            values[name] = texts if isinstance(values[name], list) else texts[0]
    defaults = {"part": None, "overrides": values.get("overrides"), "models": values.get("models")}
    defaults |= {name: declared.default for name, declared in settings_of(BenchPlan).items() if name not in defaults}
    defaults["probes"] = values.get("probes")
    # A setting that a command does not have is left out where it says nothing.
    return {name: value for name, value in values.items() if name in settings or value != defaults.get(name)}


def _in_texts(value: Any) -> Any:
    """eps as on the command line: a number in a file is in the tables' units, not in pixels."""
    items = value if isinstance(value, list) else [value]
    texts = [f"{item}" if isinstance(item, (int, float)) and not isinstance(item, bool) else item for item in items]
    return texts if isinstance(value, list) else texts[0]


def pop_settings(
    given: dict[str, Any], settings: Mapping[str, Setting], below: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Take these settings out of what was given, and out of the layer `below` it; checked, with their defaults.

    Raises:
        ClipguardError: for a value that is none of the setting's.
    """
    values = {name: setting.default for name, setting in settings.items()}
    for layer in (below or {}, given):
        values |= {name: layer.pop(name) for name in settings if name in layer}
    for name, declared in settings.items():
        declared.check(values[name])
    return values


def add_to_models(given: dict[str, Any]) -> None:
    """Put `base` and `normalization` into the names of the models that are given."""
    from clipguard.models.sources.spec import add_to_files

    base, normalization = given.pop("base", None), given.pop("normalization", None)
    given["models"] = add_to_files(list(given.get("models", ("tiny",))), base, normalization)


def only_one(command: str, setting: Setting, given: dict[str, Any]) -> None:
    """Fill in the default of a list that a command takes one of.

    Raises:
        ClipguardError: where several are given.
    """
    names = given.get(setting.name) or setting.default
    if len(names) > 1:
        raise ClipguardError(
            f"`{setting.name}` names {len(names)} things; `clipguard {command}` takes one, `clipguard bench` several."
        )
    given[setting.name] = names
