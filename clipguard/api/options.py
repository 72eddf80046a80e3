"""What `clipguard.bench`, `compare` and `finetune` take by name: the settings of `BenchPlan` and `FinetuneConfig`.

They are here for type checkers and editors; a test keeps them the same as the declarations of the settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypedDict

from clipguard.api.objects.kinds import AttackLike, Data
from clipguard.models.loading import LoadedModel

Eps = str | float | Sequence[str | float]  # "4", "4/255", "1,4,8", or pixels of [0,1] such as 4 / 255


class BenchOptions(TypedDict, total=False):
    """Settings of a bench run beside models, data sets, eps and attacks: the docs' page Settings says what they do."""

    defense: str | None
    threats: str | Sequence[str]
    votes: int
    draws: int
    transfer_from: str | Sequence[str]
    norm: Literal["linf", "l2"]
    n_samples: int | Literal["all"] | None
    seed: int
    batch_size: int | Literal["auto"] | None
    resolution: Literal["model", "native", "mixed"]
    resize: Literal["model", "crop256", "crop256-squash"]
    decode: Literal["upright", "plain"]
    logit_scale: float | None
    quantize: bool
    eps_mode: Literal["ascending", "independent", "nested"]
    engine: Literal["clipguard", "reference"]
    precision: Literal["auto", "float32", "tf32", "bfloat16"]
    compile: bool
    device: str
    workers: int | Literal["auto"] | None
    ray: str | None
    decoders: int | None
    templates: str
    text: Literal["tuned", "original"]
    prompts: str | Path | None
    split: str | None
    classes: str | Path | None
    class_names: Literal["source", "tecoa"]
    duplicate_names: bool
    image_column: str | None
    label_column: str | None
    data_root: str | Path | None
    protocol: str | None


class CompareOptions(BenchOptions, total=False):
    """The same for two models that are compared."""

    datasets: Data | Sequence[Data]
    eps: Eps
    attacks: AttackLike | Sequence[AttackLike]


class CertifyOptions(TypedDict, total=False):
    """Settings of a certification beside models, data sets, sigma and samples."""

    selection_samples: int
    confidence: float
    radius: float | Sequence[float]
    n_samples: int | Literal["all"] | None
    seed: int
    batch_size: int | Literal["auto"] | None
    resize: Literal["model", "crop256", "crop256-squash"]
    decode: Literal["upright", "plain"]
    logit_scale: float | None
    device: str
    decoders: int | None
    templates: str
    text: Literal["tuned", "original"]
    split: str | None
    classes: str | Path | None
    class_names: Literal["source", "tecoa"]
    duplicate_names: bool
    image_column: str | None
    label_column: str | None
    data_root: str | Path | None


class FinetuneOptions(TypedDict, total=False):
    """Settings of a fine-tuning run beside method and out; the page Settings of the docs says what each does."""

    model: str | Path | LoadedModel
    dataset: Data
    preset: str | None
    split: str | None
    classes: str | Path | None
    image_column: str | None
    label_column: str | None
    caption_column: str | None
    data_root: str | Path | None
    templates: str
    n_samples: int | Literal["all"] | None
    val_fraction: float
    steps: int | None
    epochs: float | None
    batch_size: int | Literal["auto"] | None
    accumulate: int
    effective_batch: int | None
    grad_checkpointing: bool
    fsdp: bool
    compile: bool
    augment: Literal["none", "standard"]
    noise: float
    decoders: int | None
    norm: Literal["linf", "l2"]
    eps: str | float
    attack_steps: int
    step_size: str | float | None
    random_start: bool
    train: str
    lora: int
    optimizer: Literal["adamw", "sgd"]
    lr: float
    momentum: float
    weight_decay: float
    warmup_steps: int | None
    schedule: Literal["cosine", "constant"]
    grad_clip: float
    regularizer: str | None
    awp: float
    awp_warmup: int
    ema: float
    wise_ft: float
    precision: Literal["auto", "float32", "bfloat16"]
    device: str
    seed: int
    eval_every: int | None
    eval_samples: int
    eval_dataset: str | None
    evaluation: bool
    save_every: int | None
    tracker: Literal["none", "tensorboard", "wandb"]
