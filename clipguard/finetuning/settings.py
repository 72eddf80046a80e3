"""Where settings come from: defaults < preset < file < command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np

from clipguard.core.checking import check_type
from clipguard.core.config_files import read_config_file
from clipguard.core.eps import parse_eps
from clipguard.core.errors import FinetuneError, did_you_mean
from clipguard.finetuning.config import FinetuneConfig, option
from clipguard.finetuning.methods.registry import parse_method

NO_PRESET = "none"
TYPES = get_type_hints(FinetuneConfig)
# For the embedded model: small, and fine-tuned in minutes on a CPU. Chosen on its validation split.
EMBEDDED: Mapping[str, Any] = {
    "steps": 300,
    "batch_size": 64,
    "lr": 5e-4,
    "eps": 8.0,
    "attack_steps": 3,
    "augment": "standard",  # 600 images are soon known by heart
}


def resolve(given: Mapping[str, Any], file: Path | None = None) -> FinetuneConfig:
    """The settings of a run: those given win over the file's, the file's over the preset's, those over the defaults.

    Without a preset the embedded model gets its own, "embedded".
    Raises ClipguardError for an unknown setting or preset, or a value that no run could use.
    """
    given = {name: _plain(value) for name, value in given.items()}
    from_file = {name: _number(name, value) for name, value in (read_config_file(file) if file else {}).items()}
    known = [field.name for field in fields(FinetuneConfig)]
    for name in [*from_file, *given]:
        if name not in known:
            where = f"{file}: " if name in from_file else ""
            hint = did_you_mean(name, known)
            raise FinetuneError(f"{where}{name!r} is no setting.{hint} `clipguard finetune --help` lists them.")
    chosen = replace(FinetuneConfig(), **_overlay(from_file, given))
    for setting in ("method", "model", "preset"):  # which say what the others are by default
        check_type(option(setting), getattr(chosen, setting), TYPES[setting], FinetuneError)
    name = chosen.preset or ("embedded" if chosen.model == "tiny" else NO_PRESET)
    layers = [_preset(name, chosen.method), from_file, given, {"preset": name}]
    config = FinetuneConfig()
    for layer in layers:
        config = replace(config, **_overlay({}, layer))
    for name in ("eps", "step_size"):
        config = replace(config, **{name: _budget(config, name)})
    config.check()
    return config


def _plain(value: Any) -> Any:
    """A value from Python as a file would have it: NumPy's numbers are numbers, and a path is its text."""
    return str(value) if isinstance(value, Path) else value.item() if isinstance(value, np.generic) else value


def _number(name: str, value: Any) -> Any:
    """A number that YAML 1.1 takes for a text, such as 2e-5; anything else as it is."""
    if isinstance(value, str) and float in (TYPES.get(name), *get_args(TYPES.get(name))):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _budget(config: FinetuneConfig, name: str) -> Any:
    """`eps` or `step_size` as a number: a text such as "4/255" is read, a number of the wrong unit refused.

    What is no number at all is left to `check`. Raises AttackError.
    """
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return value
    text = str(value)
    if name == "step_size" and "/" not in text and _arrives(text, config):
        return float(text)
    radii = parse_eps([text], config.norm, option(name))
    if len(radii) != 1:
        raise FinetuneError(f"{option(name)} takes one budget to train with, not {len(radii)}.")
    return radii[0].typed


def _arrives(step_size: str, config: FinetuneConfig) -> bool:
    """Whether the steps of the attack come to half of eps: then small ones are what they seem to be."""
    try:
        return 2 * float(step_size) * config.attack_steps >= config.eps
    except (TypeError, ValueError):
        return False  # said better elsewhere


def _preset(name: str, method: str) -> Mapping[str, Any]:
    presets = parse_method(method).presets
    own = {NO_PRESET: {}, "embedded": EMBEDDED}
    if name not in presets and name not in own:
        known = [*presets, *own]
        raise FinetuneError(f"{method} has no preset {name!r}.{did_you_mean(name, known)} It has {', '.join(known)}.")
    return presets[name] if name in presets else own[name]


def _overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others on top. The length of a run in steps replaces one in epochs, and the reverse."""
    result = {**below, **above}
    for name, other in (("steps", "epochs"), ("epochs", "steps")):
        if above.get(name) is not None and above.get(other) is None:
            result[other] = None
    return result
