"""Where settings come from: defaults < preset < file < command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from clipguard.core.eps import one_eps, show_eps
from clipguard.core.errors import FinetuneError, did_you_mean
from clipguard.core.settings import read_settings, settings_of
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.methods.registry import parse_method
from clipguard.finetuning.unused import refuse_unused

NO_PRESET = "none"
SETTINGS = settings_of(FinetuneConfig)
# For the embedded model: small, and fine-tuned in minutes on a CPU. Chosen on its validation split.
EMBEDDED: Mapping[str, Any] = {
    "steps": 300,
    "batch_size": 64,
    "lr": 5e-4,
    "eps": 8.0,
    "attack_steps": 3,
    "augment": "standard",  # 600 images are soon known by heart
}


def resolve(given: Mapping[str, Any], from_file: Mapping[str, Any] | None = None) -> FinetuneConfig:
    """The settings of a run: those given win over the file's, the file's over the preset's, those over the defaults.

    Without a preset the embedded model gets its own, "embedded".

    Args:
        given: fields of `FinetuneConfig`. For `eps` and `step_size` a number is pixels of [0,1], a text is as on the
            command line (`read_eps`).
        from_file: the same, from a file.

    Raises:
        ClipguardError: for an unknown setting or preset, a value that no run could use, and a setting that was given
            and would do nothing.
    """
    layers = [read_settings(values, SETTINGS, error=FinetuneError) for values in (from_file or {}, given)]
    chosen = replace(FinetuneConfig(), **_overlay(*layers))
    for name in ("method", "model", "preset", "norm"):  # which say what the others are by default
        SETTINGS[name].check(getattr(chosen, name), FinetuneError)
    preset = chosen.preset or ("embedded" if chosen.model == "tiny" else NO_PRESET)
    config = FinetuneConfig()
    below = _preset(preset, chosen.method)
    for layer in [below, *layers, {"preset": preset}]:
        config = replace(config, **_overlay({}, layer))
    config = _sized(config, [layer.get("batch_size") for layer in (FinetuneConfig().to_dict(), below, *layers)])
    for name in ("eps", "step_size"):
        if any(layer.get(name) is not None for layer in layers):
            config = replace(config, **_overlay({}, {name: _typed(config, name)}))
    config.check()
    refuse_unused(config, [name for name, value in layers[1].items() if value is not None])
    return config


def _sized(config: FinetuneConfig, batch_sizes: list[int | None]) -> FinetuneConfig:
    """With `batch_size=auto` a step keeps the images that it would have without; `batch_sizes`: of all layers."""
    if config.batch_size is not None or config.effective_batch is not None:
        return config
    asked = [size for size in batch_sizes if size is not None][-1]
    return replace(config, effective_batch=asked * config.accumulate, accumulate=1)


def _typed(config: FinetuneConfig, name: str) -> float:
    """`eps` or `step_size` in the tables' unit. Raises AttackError for what is not one number of its unit."""
    value = getattr(config, name)
    if name == "step_size" and isinstance(value, str) and "/" not in value and _arrives(value, config):
        return float(value)
    typed = one_eps(value, config.norm, name).typed
    if name == "step_size" and not isinstance(value, str) and typed > 2 * config.eps:
        step, eps = show_eps(typed, config.norm), show_eps(config.eps, config.norm)
        raise FinetuneError(f"`step_size` {value:g} is {step}, more than twice the eps of {eps}: numbers are pixels.")
    return typed


def _arrives(step_size: str, config: FinetuneConfig) -> bool:
    """Whether the steps of the attack come to half of eps: then small ones are what they seem to be."""
    try:
        return 2 * float(step_size) * config.attack_steps >= config.eps
    except (TypeError, ValueError):
        return False  # said better elsewhere


def _preset(name: str, method: str) -> Mapping[str, Any]:
    kind = parse_method(method)
    presets, own = kind.presets, {NO_PRESET: kind.usual, "embedded": EMBEDDED}
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
