"""The evaluation at the end of a run: the model before and after, on images that it was not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import torch

from clipguard.attacks.engine.outcome import Example
from clipguard.core.errors import FinetuneError
from clipguard.core.progress import Progress
from clipguard.core.records.run import FindingsRecord
from clipguard.data import ZeroShotDataset, load_dataset
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.data.training_data import Indices, TrainingData
from clipguard.finetuning.training.accuracy import ATTACK, PASSES, Accuracies, Score, score
from clipguard.models.loading import LoadedModel
from clipguard.sanity.entries import entry, say
from clipguard.sanity.predictions import prediction_findings

if TYPE_CHECKING:
    from typing_extensions import NotRequired


class EvaluationRecord(TypedDict):
    """`evaluation` of `run.json`."""

    images: str  # which, in words; "none: ..." says why there are none
    indices: list[int]
    attack: str
    scores: dict[str, Accuracies]  # by model
    findings: NotRequired[list[FindingsRecord]]  # where there are scores


class EvaluationImages(NamedTuple):
    """Images to score on: of which data set, which of them, and how to call them."""

    dataset: ZeroShotDataset
    indices: Indices
    description: str


def choose_images(config: FinetuneConfig, data: TrainingData) -> EvaluationImages | None:
    """Held-out test images, else validation images; None if there are none with labels, or none are wanted."""
    if not config.evaluation:
        return None
    if config.eval_dataset is not None:
        return _named_images(config, config.eval_dataset, data)
    if data.held_out is not None:
        held_out = data.held_out
        indices = held_out.subset(config.eval_samples, config.seed)
        what = f"{len(indices)} held-out images of {config.dataset}, split {held_out.split}"
        return EvaluationImages(held_out, indices, what)
    if isinstance(data.images, ZeroShotDataset) and len(data.validation):
        indices = data.validation[: config.eval_samples]
        why = "was given without a test split" if data.in_memory else "has no test split"
        what = f"{len(indices)} validation images, which chose the checkpoint: {config.dataset} {why}"
        return EvaluationImages(data.images, indices, what)
    return None


def _named_images(config: FinetuneConfig, name: str, data: TrainingData) -> EvaluationImages:
    """Of another labelled data set. Raises FinetuneError if it is what was trained on."""
    root = Path(config.data_root).expanduser() if config.data_root else None
    other = load_dataset(name, templates=config.templates, data_root=root)
    if (other.source, other.split) == (data.images.source, data.images.split):
        raise FinetuneError(f"`eval_dataset={name}` is what is trained on: name another, or one with a test split.")
    indices = other.subset(config.eval_samples, config.seed)
    return EvaluationImages(other, indices, f"{len(indices)} images of {name}, split {other.split}")


def announce(images: EvaluationImages) -> str:
    """What the evaluation at the end will take, for the log as a run starts."""
    passes = 2 * len(images.indices) * PASSES
    return (
        f"The evaluation at the end: {images.description}; {ATTACK.upper()} on the model before and after, at most "
        f"{passes:,} passes. `eval_samples` N takes fewer images, --no-evaluation none"
    )


def no_evaluation(config: FinetuneConfig) -> EvaluationRecord:
    """The record of a run without one, with the reason."""
    why = "no labels, or none set apart" if config.evaluation else "switched off, by --no-evaluation"
    return {"images": f"none: {why}", "indices": [], "attack": ATTACK, "scores": {}}


def evaluate(
    config: FinetuneConfig, images: EvaluationImages, base: LoadedModel, tuned: LoadedModel, progress: Progress
) -> EvaluationRecord:
    """Clean and PGD-10 accuracy of the base and of the tuned model, and what their predictions give away."""
    scores = {
        name: _score(config, model, images, progress) for name, model in ((config.model, base), ("fine-tuned", tuned))
    }
    names = images.dataset.class_names
    findings = [
        entry(
            name, config.eval_dataset or config.dataset, prediction_findings(s.labels, s.predictions, len(names), names)
        )
        for name, s in scores.items()
    ]
    say(findings)
    return {
        "images": images.description,
        "indices": images.indices.tolist(),
        "attack": ATTACK,
        "scores": {name: s.accuracies for name, s in scores.items()},
        "findings": findings,
    }


def _score(config: FinetuneConfig, model: LoadedModel, images: EvaluationImages, progress: Progress) -> Score:
    """Accuracies of a model as it would be loaded anywhere."""
    dataset, indices, _ = images
    classifier: torch.nn.Module = model.classifier(dataset.class_names, dataset.templates)
    preprocess = model.preprocess()
    examples = (
        Example(i, preprocess(dataset.image(i)).to(model.device), int(dataset.labels[i])) for i in indices.tolist()
    )
    return score(classifier, examples, len(indices), config, progress, f"evaluation, {ATTACK} on {model.info.name}")
