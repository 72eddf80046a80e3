"""Where settings come from: defaults < preset < file < command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from clipguard.config_files import read_config_file
from clipguard.errors import FinetuneError, did_you_mean
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.methods import parse_method

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
    from_file = {name: _number(name, value) for name, value in (read_config_file(file) if file else {}).items()}
    known = [field.name for field in fields(FinetuneConfig)]
    for name in [*from_file, *given]:
        if name not in known:
            where = f"{file}: " if name in from_file else ""
            hint = did_you_mean(name, known)
            raise FinetuneError(f"{where}{name!r} is no setting.{hint} `clipguard finetune --help` lists them.")
    chosen = replace(FinetuneConfig(), **_overlay(from_file, given))
    name = chosen.preset or ("embedded" if chosen.model == "tiny" else NO_PRESET)
    layers = [_preset(name, chosen.method), from_file, given, {"preset": name}]
    config = FinetuneConfig()
    for layer in layers:
        config = replace(config, **_overlay({}, layer))
    config.check()
    return config


def _number(name: str, value: Any) -> Any:
    """A number that YAML 1.1 takes for a text, such as 2e-5; anything else as it is."""
    if isinstance(value, str) and float in (TYPES.get(name), *get_args(TYPES.get(name))):
        try:
            return float(value)
        except ValueError:
            return value
    return value


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
