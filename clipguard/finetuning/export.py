"""The end of a run: the best weights become a checkpoint folder, which is scored, described and drawn."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from clipguard.attacks.engine.engine import Example
from clipguard.core.output import OutputFolder
from clipguard.core.progress import Progress
from clipguard.data import ZeroShotDataset
from clipguard.finetuning.card import write_card
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.curves import draw_curves
from clipguard.finetuning.merge import interpolate
from clipguard.finetuning.training.data import TrainingData
from clipguard.finetuning.training.evaluation import ATTACK, PASSES, Score, evaluate
from clipguard.finetuning.training.lora import merge_lora
from clipguard.finetuning.training.metrics import read_metrics
from clipguard.finetuning.training.trainer import Trainer
from clipguard.models.checkpoint.reader import hash_file
from clipguard.models.export import WEIGHTS_NAME, checkpoint_files
from clipguard.models.loading import LoadedModel, load_model
from clipguard.models.text.tuned import ORIGINAL_FILE, TEXT_FILE
from clipguard.sanity.entries import entry, say
from clipguard.sanity.predictions import prediction_findings

log = logging.getLogger("clipguard")


def finish(
    config: FinetuneConfig,
    folder: OutputFolder,
    run: dict[str, Any],
    loaded: LoadedModel,
    data: TrainingData,
    trainer: Trainer,
    progress: Progress,
) -> None:
    """Write all files of a finished run but `run.json`, whose content is completed."""
    base = load_model(config.model, device=loaded.device)
    files = export(config, base, loaded, trainer)
    folder.write_files(files)
    tuned = load_model(f"local-dir:{folder.path}", device=loaded.device)  # what is scored is what was written
    run["resolved"]["exported_step"] = trainer.position.best_step or trainer.steps
    run["training_seconds"] = round(trainer.position.seconds, 1)
    run["sha256"] = hash_file(folder.path / WEIGHTS_NAME)
    run["text"] = describe_text(files)
    run["evaluation"] = score_both(config, data, base, tuned, progress)
    run["complete"] = True
    title = f"{config.method} on {config.dataset}, from {config.model}"
    metrics = read_metrics(folder.path)
    folder.write_files(
        {
            "README.md": write_card(run, folder.path.name).encode(),
            "curves.png": draw_curves(metrics, title, trainer.position.best_step),
        }
    )


def export(config: FinetuneConfig, base: LoadedModel, loaded: LoadedModel, trainer: Trainer) -> dict[str, bytes]:
    """The files of the checkpoint: the best weights in `loaded`, mixed with the base's if that is wanted."""
    student = trainer.load_best()
    visual = student.image.visual
    merge_lora(visual)
    loaded.model.visual = visual
    files: dict[str, bytes] = {}
    if student.text is not None:
        files = student.text.export(loaded.model)
    elif loaded.text_map is not None:
        files = {TEXT_FILE: loaded.text_map.to_bytes()}
    state: Mapping[str, Tensor] = loaded.model.state_dict()
    if config.wise_ft < 1:
        state = interpolate(base.model.state_dict(), state, config.wise_ft)
        if TEXT_FILE in files:
            log.warning("The tuned text is not in the weights, so --wise-ft leaves it as it is")
    return {**checkpoint_files(loaded, state), **files}


def describe_text(files: Mapping[str, bytes]) -> str:
    """What became of the text, for the model card."""
    if TEXT_FILE in files:
        return f"Its text is tuned, by `{TEXT_FILE}`: clipguard applies it, open_clip loads the original text."
    if ORIGINAL_FILE in files:
        return "Its text is tuned, for any class name; `--text original` scores it with the base model's."
    return ""


def score_both(
    config: FinetuneConfig, data: TrainingData, base: LoadedModel, tuned: LoadedModel, progress: Progress
) -> dict[str, Any]:
    """Clean and PGD-10 accuracy of the base and of the tuned model, on test images, else on validation images."""
    chosen = choose_images(config, data) if config.evaluation else None
    if chosen is None:
        why = "no labels, or none set apart" if config.evaluation else "switched off, by --no-evaluation"
        return {"images": f"none: {why}", "indices": [], "attack": ATTACK, "scores": {}}
    dataset, indices, what = chosen
    scores = {
        name: score(config, model, dataset, indices, progress)
        for name, model in ((config.model, base), ("fine-tuned", tuned))
    }
    names = dataset.class_names
    findings = [
        entry(name, config.dataset, prediction_findings(s.labels, s.predictions, len(names), names))
        for name, s in scores.items()
    ]
    say(findings)
    plain = {name: s.to_dict() for name, s in scores.items()}
    return {
        "images": what,
        "indices": indices.tolist(),
        "attack": ATTACK,
        "scores": plain,
        "findings": findings,
    }


def announce(config: FinetuneConfig, data: TrainingData) -> str:
    """What the evaluation at the end will take, for the log as a run starts; "" if there will be none."""
    chosen = choose_images(config, data) if config.evaluation else None
    if chosen is None:
        return ""
    _, indices, what = chosen
    passes = 2 * len(indices) * PASSES
    return (
        f"The evaluation at the end: {what}; {ATTACK.upper()} on the model before and after, at most {passes:,} "
        "passes. --eval-samples N takes fewer images, --no-evaluation none"
    )


def choose_images(
    config: FinetuneConfig, data: TrainingData
) -> tuple[ZeroShotDataset, np.ndarray[Any, np.dtype[np.int64]], str] | None:
    """The data set, indices and description of the images to score on; None if there are none with labels."""
    if data.held_out is not None:
        held = data.held_out
        indices = held.subset(config.eval_samples, config.seed)
        return held, indices, f"{len(indices)} held-out images of {config.dataset}, split {held.split}"
    if isinstance(data.images, ZeroShotDataset) and len(data.validation):
        indices = data.validation[: config.eval_samples]
        what = f"{len(indices)} validation images, which chose the checkpoint: {config.dataset} has no test split"
        return data.images, indices, what
    return None


def score(
    config: FinetuneConfig,
    model: LoadedModel,
    dataset: ZeroShotDataset,
    indices: np.ndarray[Any, np.dtype[np.int64]],
    progress: Progress,
) -> Score:
    """Clean and PGD-10 accuracy of a model as it would be loaded anywhere."""
    classifier: nn.Module = model.classifier(dataset.class_names, dataset.templates)
    preprocess = model.preprocess()
    examples = (
        Example(i, preprocess(dataset.image(i)).to(model.device), int(dataset.labels[i])) for i in indices.tolist()
    )
    return evaluate(classifier, examples, len(indices), config, progress, f"evaluation, {ATTACK} on {model.info.name}")
