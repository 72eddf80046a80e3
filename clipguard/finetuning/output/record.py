"""`run.json`, the record of a fine-tuning run: everything needed to repeat it, and what came of it."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

from clipguard.core.eps import PIXEL
from clipguard.core.errors import FinetuneError
from clipguard.core.notices import Notice
from clipguard.core.records.provenance import Machine, machine, versions
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.data.training_data import TrainingData
from clipguard.finetuning.final_evaluation import EvaluationRecord
from clipguard.finetuning.sources import NAMED, Sources
from clipguard.finetuning.training.trainer import Trainer
from clipguard.models.loading import LoadedModel

if TYPE_CHECKING:
    from typing_extensions import NotRequired

SCHEMA, RUN_NAME = 1, "run.json"


class Resolved(TypedDict):
    """What the settings came to; `step_size` is in the units of eps."""

    steps: int
    images_per_step: int
    warmup_steps: int
    step_size: float
    eval_every: int
    save_every: int
    text_mode: str
    precision: str
    processes: int
    chosen_by: str
    micro_batch: NotRequired[int]  # images of a pass at most, where a step is divided into passes
    exported_step: NotRequired[int]  # once the run is complete


class DatasetRecord(TypedDict):
    """What was trained on."""

    source: str
    split: str
    fingerprint: str
    class_names: list[str]
    templates: list[str]
    n_train: int
    n_validation: int
    train_indices: list[int]
    validation_indices: list[int]
    caption: NotRequired[str]  # the first one, of methods that train on captions
    text_only: NotRequired[bool]  # whether there were captions alone


class RunRecord(TypedDict):
    """The content of `run.json`."""

    schema: int
    complete: bool
    started: str
    command: str
    config: dict[str, Any]  # fields of `FinetuneConfig`
    resolved: Resolved
    versions: dict[str, str]
    machine: Machine
    base: dict[str, Any]  # fields of `ModelInfo`
    dataset: DatasetRecord
    notices: list[Notice]
    trained_prompts: NotRequired[list[str]]  # of which the loss read the text; missing in older runs
    in_memory: NotRequired[dict[str, str]]  # settings that an object of Python stood for: SHA-256 of weights or data
    # Once the run is complete:
    training_seconds: NotRequired[float]
    sha256: NotRequired[str]  # of the tuned weights, or of the prompts
    prompts: NotRequired[str]  # the name of the file that holds them, where they are what was trained
    text: NotRequired[str]  # what became of it, for the model card
    evaluation: NotRequired[EvaluationRecord]


def start_record(
    config: FinetuneConfig,
    command: str,
    loaded: LoadedModel,
    data: TrainingData,
    trainer: Trainer,
    device: str,
    notices: list[Notice],
    sources: Sources = NAMED,
) -> RunRecord:
    """The record as a run starts. `notices` may still grow."""
    record: RunRecord = {
        "schema": SCHEMA,
        "complete": False,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "config": config.to_dict(),
        "resolved": _resolve(config, trainer),
        "versions": versions() | {name: version(name) for name in ("accelerate", "safetensors")},
        "machine": machine(device),
        "base": loaded.info.to_dict(),
        "dataset": {
            "source": data.images.source,
            "split": data.images.split,
            "fingerprint": data.fingerprint(),
            "class_names": data.class_names,
            "templates": data.templates,
            "n_train": len(data.train),
            "n_validation": len(data.validation),
            "train_indices": data.train.tolist(),
            "validation_indices": data.validation.tolist(),
        },
        "notices": notices,
        "trained_prompts": data.templates
        if trainer.objective.method.reads_templates() or data.prompts_for_captions
        else [],
    }
    if data.captions is not None:
        record["dataset"]["caption"] = data.captions[int(data.train[0])][0]
    if data.text_only:
        record["dataset"]["text_only"] = True
    if in_memory := sources.record(record["dataset"]["fingerprint"]):
        record["in_memory"] = in_memory
    return record


def _resolve(config: FinetuneConfig, trainer: Trainer) -> Resolved:
    validation = trainer.validation
    resolved: Resolved = {
        "steps": trainer.steps,
        "images_per_step": trainer.sampler.images_per_step,
        "warmup_steps": trainer.warmup,
        "step_size": config.attack_step * (PIXEL if config.norm == "linf" else 1),
        "eval_every": trainer.eval_every,
        "save_every": trainer.save_every,
        "text_mode": _text_mode(trainer),
        "precision": "bfloat16" if trainer.accelerator.mixed_precision == "bf16" else "float32",
        "processes": trainer.accelerator.num_processes,
        "chosen_by": validation.criterion if validation else "the last step: there are no validation images",
    }
    if trainer.step.rows is not None:
        resolved["micro_batch"] = trainer.step.rows
    return resolved


def _text_mode(trainer: Trainer) -> str:
    method = trainer.objective.method
    if method.prompt_design() is not None:
        return "prompts"
    return "none" if trainer.model.text is None else method.text_mode()


def to_json(run: RunRecord) -> bytes:
    """Strict JSON: no NaN."""
    return (json.dumps(run, indent=2, allow_nan=False) + "\n").encode()


def read_run(out: Path) -> RunRecord:
    """The record in a run's folder.

    Raises:
        FinetuneError: if the folder has none, or one of a newer clipguard.
    """
    try:
        run = json.loads((out / RUN_NAME).read_text(encoding="utf-8"))
        readable = {"config", "complete", "command"} <= set(run)
    except (OSError, ValueError, TypeError):
        readable = False  # told below, like a run.json of another command
    if not readable:
        raise FinetuneError(
            f"{out} holds no fine-tuning run: `resume` takes the `out` folder of one that was interrupted."
        )
    if run.get("schema", SCHEMA) > SCHEMA:
        raise FinetuneError(f"The run in {out} is of a newer clipguard (schema {run['schema']}). Update clipguard.")
    return cast(RunRecord, run)


def read_unfinished(out: Path) -> RunRecord:
    """The record of an interrupted run.

    Raises:
        FinetuneError: if there is none, it is complete, or its model or data were in memory.
    """
    run = read_run(out)
    if run["complete"]:
        raise FinetuneError(f"The run in {out} is finished: there is nothing to resume. Start a new one with `out`.")
    if run.get("in_memory"):
        given = " and ".join(f"`{name}`" for name in run["in_memory"])
        raise FinetuneError(f"The run in {out} was given {given} in memory, which is gone: start it again from Python.")
    return run


def check_unchanged(before: RunRecord, now: RunRecord, out: Path) -> None:
    """Whether a run can go on as it began.

    Raises:
        FinetuneError: if its model or data have changed.
    """
    model = before["base"]["sha256"] == now["base"]["sha256"]
    data = (before["dataset"]["fingerprint"], before["dataset"]["train_indices"]) == (
        now["dataset"]["fingerprint"],
        now["dataset"]["train_indices"],
    )
    if not (model and data):
        raise FinetuneError(
            f"The {'data set' if model else 'model'} has changed since the run in {out} began; start a new run with"
            " `out`."
        )
