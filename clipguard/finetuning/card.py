"""The model card of a fine-tuned checkpoint."""

from __future__ import annotations

from shlex import quote
from typing import Any

import yaml

from clipguard.sanity.entries import alarms

FRONT = {
    "library_name": "open_clip",
    "pipeline_tag": "zero-shot-image-classification",
    "tags": ["open_clip", "clip", "adversarial-robustness", "clipguard"],
}
CARD = """\
---
{front}---

# {name}

{model}, made robust by clipguard {version}.

| | |
| --- | --- |
{facts}

## Accuracy

{accuracy}

## Use

```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{name}")
```

or `clipguard bench --model {model_name}{templates}`. {text}

## Limits

A robust accuracy is an upper bound, and PGD-10 is a weak attack: measure with `clipguard bench`. The licence of the
base model's weights is unknown to clipguard and holds for these weights, too: look it up before you publish them.
"""


def write_card(run: dict[str, Any], name: str) -> str:
    """README.md for the folder and the hub, from the content of `run.json`; `name` is the folder's."""
    facts = "\n".join(f"| {key} | {value} |" for key, value in _facts(run).items())
    return CARD.format(
        front=yaml.safe_dump(FRONT, sort_keys=False),
        name=name,
        model_name=quote(f"local-dir:{name}"),
        model=run["config"]["model"],
        version=run["versions"]["clipguard"],
        facts=facts,
        accuracy=_accuracy(run),
        text=run["text"],
        templates=f" --templates {quote(run['config']['templates'])}" if run["dataset"]["templates"] else "",
    )


def _facts(run: dict[str, Any]) -> dict[str, str]:
    config, base, data, resolved = run["config"], run["base"], run["dataset"], run["resolved"]
    prompts = ", ".join(f"`{template}`" for template in data["templates"]) or "none"
    images = f"{data['n_train']} images to train on, {data['n_validation']} to choose the checkpoint"
    return {
        "Base model": f"{base['name']}, weights `{base['sha256'][:16]}…`",
        "Method": f"`{config['method']}`",
        "Data": f"{config['dataset']}, split {data['split']}: {images}; prompts {prompts}",
        "Training attack": f"PGD-{config['attack_steps']}, {budget(config)}, steps of {resolved['step_size']:.3g}",
        "Training": f"{resolved['steps']} steps of {resolved['images_per_step']} images, {config['optimizer']}, "
        f"learning rate {config['lr']:g}, seed {config['seed']}",
        "Checkpoint": f"step {resolved['exported_step']}, chosen by: {resolved['chosen_by']}",
    }


def _accuracy(run: dict[str, Any]) -> str:
    found = run["evaluation"]
    if not found["scores"]:
        return f"Not measured: {found['images'].removeprefix('none: ')}."
    lines = [
        f"In percent, on {found['images']}, with 95 % Wilson intervals.\n",
        f"| | n | clean | PGD-10, {budget(run['config'])} |",
        "| --- | ---: | --- | --- |",
    ]
    for who, score in found["scores"].items():
        lines.append(f"| {who} | {score['clean']['n']} | {percent(score['clean'])} | {percent(score['robust'])} |")
    return "\n".join([*lines, *(text for line in alarms(found["findings"]) for text in ("", line))])


def percent(accuracy: dict[str, float]) -> str:
    """`61.0 (54.7–67.0)`: in percent, with its interval."""
    return "{:.1f} ({:.1f}–{:.1f})".format(*(100 * accuracy[key] for key in ("accuracy", "ci_low", "ci_high")))


def budget(config: dict[str, Any]) -> str:
    """`linf eps 8/255`."""
    return f"{config['norm']} eps {config['eps']:g}{_unit(config)}"


def _unit(config: dict[str, Any]) -> str:
    return "/255" if config["norm"] == "linf" else ""
