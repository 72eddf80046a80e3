"""The model card of a fine-tuned checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from shlex import quote
from typing import Any

import yaml

from clipguard.core.eps import show_eps
from clipguard.finetuning.methods.registry import parse_method
from clipguard.finetuning.output.record import DatasetRecord, RunRecord
from clipguard.finetuning.training.accuracy import Accuracy
from clipguard.sanity.entries import alarms
from clipguard.statistics.intervals import percent_with_interval

FRONT_MATTER = {
    "library_name": "open_clip",
    "pipeline_tag": "zero-shot-image-classification",
    "tags": ["open_clip", "clip", "adversarial-robustness", "clipguard"],
}
MOST_PROMPTS = 8  # that the table shows
CARD = """\
---
{front_matter}---

# {name}

{made} by clipguard {version}.

| | |
| --- | --- |
{facts}

## Accuracy

{accuracy}

## Use

{use} {text}

## Limits
{prompts}
A robust accuracy is an upper bound, and PGD-10 is a weak attack: measure with `clipguard bench`. The licence of the
base model's weights is unknown to clipguard and holds for these weights, too: look it up before you publish them.
"""

USE = """\
```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{name}")
```

or `clipguard bench --model {model_name}{templates}`."""
USE_OF_PROMPTS = "`clipguard bench --model {base} --prompts {path}`."


def write_card(run: RunRecord, name: str) -> str:
    """README.md for the folder and the hub, from the record of a complete run; `name` is the folder's."""
    facts = "\n".join(f"| {key} | {value} |" for key, value in _facts(run).items())
    model = run["config"]["model"]
    return CARD.format(
        front_matter=yaml.safe_dump(FRONT_MATTER, sort_keys=False),
        name=name,
        made=f"Prompts for {model}, learned" if "prompts" in run else f"{model}, made robust",
        version=run["versions"]["clipguard"],
        facts=facts,
        accuracy=accuracy_markdown(run),
        text=run["text"],
        prompts=_prompts(run),
        use=_use(run, name),
    )


def _use(run: RunRecord, name: str) -> str:
    if "prompts" in run:
        return USE_OF_PROMPTS.format(base=quote(run["config"]["model"]), path=quote(f"{name}/{run['prompts']}"))
    templates = f" --templates {quote(run['config']['templates'])}" if _has_named_prompts(run) else ""
    return USE.format(name=name, model_name=quote(f"local-dir:{name}"), templates=templates)


def _has_named_prompts(run: RunRecord) -> bool:
    """Whether `templates` says the prompts: a data set in memory may have others."""
    return bool(run["dataset"]["templates"]) and "dataset" not in run.get("in_memory", {})


def _prompts(run: RunRecord) -> str:
    """A paragraph on the prompts that the model may have come to expect, if the loss read any."""
    if not run.get("trained_prompts"):
        return ""
    text = (
        "\nIt was trained with the prompts in the table, and may recognise far less with others: fine-tuned models\n"
        "have lost 40 points of clean accuracy so."
    )
    if run["config"]["templates"] != "ensemble":
        text += " They are not those that `clipguard bench` takes by itself: name them\nas above."
    return text + "\n"


def _facts(run: RunRecord) -> dict[str, str]:
    config, base, data, resolved = run["config"], run["base"], run["dataset"], run["resolved"]
    shown = [f"`{template}`" for template in data["templates"][:MOST_PROMPTS]]
    more = len(data["templates"]) - len(shown)
    prompts = ", ".join([*shown, f"{more} more in `run.json`"] if more else shown) or "none"
    what = "captions" if data.get("text_only") else "images"
    images = f"{data['n_train']} {what} to train on, {data['n_validation']} to choose the checkpoint"
    in_memory = run.get("in_memory", {}).get("model")  # it may have been changed there
    return {
        "Base model": f"{base['name']}{', in memory' if in_memory else ''}, weights "
        f"`{(in_memory or base['sha256'])[:16]}…`",
        "Method": " ".join([f"`{config['method']}`", *_beside(config)]),
        "Data": f"{config['dataset']}, split {data['split']}: {images}; prompts {prompts}{_captions(data)}",
        "Training attack": _attack(config, resolved),
        "Training": f"{resolved['steps']} steps of {resolved['images_per_step']} images, {config['optimizer']}, "
        f"learning rate {config['lr']:g}, seed {config['seed']}",
        "Checkpoint": f"step {resolved['exported_step']}, chosen by: {resolved['chosen_by']}",
    }


def _beside(config: Mapping[str, Any]) -> list[str]:
    """What goes beside the method, in words; nothing for most runs."""
    svd = ["on singular values of the image tower"] if config["train"] == "svd" else []
    terms = [f"with `{config['regularizer']}`"] if config.get("regularizer") else []
    weights = [f"at weights perturbed by {config['awp']:g} of their size (AWP)"] if config.get("awp") else []
    return [*svd, *terms, *weights]


def _captions(data: DatasetRecord) -> str:
    example = data.get("caption")
    return f"; captions such as `{example}`" if example else ""


def _attack(config: Mapping[str, Any], resolved: Mapping[str, Any]) -> str:
    edits = parse_method(config["method"]).edits()
    if edits is None:
        return f"PGD-{config['attack_steps']}, {eps_label(config)}, steps of {resolved['step_size']:.3g}"
    words = ", which leave fewer words" if edits.constrain else ""
    return f"up to {edits.k} edited characters of a caption{words}; {edits.rho} places and symbols tried for each"


def accuracy_markdown(run: RunRecord) -> str:
    """Accuracy before and after as a table, from the record of a complete run; or why there is none."""
    evaluation = run["evaluation"]
    if not evaluation["scores"]:
        return f"Not measured: {evaluation['images'].removeprefix('none: ')}."
    lines = [
        f"In percent, on {evaluation['images']}, with 95 % Wilson intervals.\n",
        f"| | n | clean | PGD-10, {eps_label(run['config'])} |",
        "| --- | ---: | --- | --- |",
    ]
    lines += [f"| {' | '.join(row)} |" for row in accuracy_rows(run)]
    return "\n".join([*lines, *(text for line in alarms(evaluation["findings"]) for text in ("", line))])


def accuracy_rows(run: RunRecord) -> list[list[str]]:
    """Model, n, clean and robust accuracy with intervals, a row for the model before and one for it after."""
    scores = run["evaluation"]["scores"] if "evaluation" in run else {}
    return [
        [name, str(score["clean"]["n"]), percent(score["clean"]), percent(score["robust"])]
        for name, score in scores.items()
    ]


def percent(accuracy: Accuracy) -> str:
    """`61.0 (54.7–67.0)`: in percent, with its interval."""
    return percent_with_interval(accuracy["accuracy"], accuracy["ci_low"], accuracy["ci_high"])


def eps_label(config: Mapping[str, Any]) -> str:
    """`linf eps 8/255`, from the settings of a run."""
    return f"{config['norm']} eps {show_eps(config['eps'], config['norm'])}"
