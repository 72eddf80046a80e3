"""Everything that defines a fine-tuning run, checked before anything heavy starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from clipguard.core.eps import PIXEL, Norm
from clipguard.core.errors import FinetuneError
from clipguard.core.settings import check_settings, setting

Optimizer = Literal["adamw", "sgd"]
Schedule = Literal["cosine", "constant"]
Augment = Literal["none", "standard"]
Precision = Literal["auto", "float32", "bfloat16"]
Tracker = Literal["none", "tensorboard", "wandb"]


@dataclass(frozen=True)
class FinetuneConfig:
    """All settings of a run, in plain JSON types; the defaults suit a full-sized CLIP. See `docs/finetuning.md`.

    Exactly one of `steps` and `epochs` is set. None elsewhere means a default that depends on other settings. `eps` and
    `step_size` are in units of 1/255 for linf, as in the tables.
    """

    method: str = setting("tima", "As `list methods` shows, or NAME(option=1).", complete="methods")
    model: str = setting(
        "tiny",
        "tiny, ARCH:TAG, FILE, ARCH:FILE, FILE@BASE, hf-hub:ORG/REPO, local-dir:FOLDER or a name of `list models`.",
        letter="-m",
        complete="models",
    )
    dataset: str = setting(
        "emoji-animals",
        "A name of `list datasets`, a .parquet or .tar file, a folder, or hf:ORG/NAME[@SPLIT]; methods without labels "
        "take any folder of images.",
        letter="-d",
        complete="datasets",
    )
    preset: str | None = setting(
        None, "Settings by name, as `list methods` shows, or none.", default_help="for tiny, embedded"
    )

    split: str | None = setting(None, "To train on.", default_help="train, else all of a set without splits")
    classes: str | None = setting(None, "Class names between commas, or a file of them.")
    image_column: str | None = setting(None, "If it cannot be told.")
    label_column: str | None = setting(None, "If it cannot be told.")
    caption_column: str | None = setting(
        None, "Of methods that train on captions, if it cannot be told; or the key of a .tar file's JSON."
    )
    data_root: str | None = setting(
        None, "Folder with copies of named data sets, DIR/<name>.", default_help="$CLIPGUARD_DATA"
    )
    templates: str = setting("ensemble", "single, ensemble, a prompt with {}, or a file with one prompt a line.")
    n_samples: int | None = setting(None, "Images to use, a stratified subset, or all.", letter="-n", low=2, none="all")
    val_fraction: float = setting(0.1, "Of them, set apart to choose the best checkpoint.", low=0, high=0.9)

    steps: int | None = setting(None, "Optimiser steps.", low=1)
    epochs: float | None = setting(2.0, "Instead of steps.", low=0, above=True, default_help="2 (tiny: 300 steps)")
    batch_size: int | None = setting(
        128,
        "Images of one pass, over all processes, or auto: as many as fit.",
        low=1,
        none="auto",
        default_help="128 (tiny: 64)",
    )
    accumulate: int = setting(1, "Passes a step.", low=1)
    effective_batch: int | None = setting(
        None,
        "Images of one step, over all processes, in passes of at most the batch size.",
        low=1,
        default_help="batch size x passes a step, both as they would be without auto",
    )
    grad_checkpointing: bool = setting(False, "Compute activations twice to save memory.")
    fsdp: bool = setting(
        False, "Divide the image tower's weights, gradients and moments among the processes (FSDP2), for large towers."
    )
    compile: bool = setting(False, "Train with torch.compile: minutes of start-up, then faster passes.")
    augment: Augment = setting("none", "none, or standard: crop and mirror.", default_help="none (tiny: standard)")
    noise: float = setting(
        0.0,
        "Standard deviation of Gaussian noise on what the tuned tower sees, in pixels of [0,1], so that `certify` with "
        "that sigma certifies more (docs/certify.md).",
        low=0,
        default_help="0, none",
    )
    decoders: int | None = setting(None, "Processes that make batches.", low=0, default_help="as many as pay")

    norm: Norm = setting("linf", "Of the attacks in training, validation and final test: linf, l2.")
    eps: float = setting(
        4.0,
        "Of the same attacks, in units of 1/255 for linf, plain for l2.",
        low=0,
        above=True,
        default_help="4 (tiny: 8)",
        is_eps=True,
    )
    attack_steps: int = setting(10, "Of the training attack, PGD on images.", low=1, default_help="10 (tiny: 3)")
    step_size: float | None = setting(
        None,
        "Of the training attack, in the units of --eps.",
        low=0,
        above=True,
        default_help="2.5 eps / steps, at most eps",
        is_eps=True,
    )
    random_start: bool = setting(True, "Of the training attack.")

    train: str = setting(
        "visual",
        "visual: the image tower; last-N: its last N layer groups; svd: its singular values; all: both towers.",
    )
    lora: int = setting(0, "Train low-rank changes of this rank only.", low=0, default_help="0, no")
    optimizer: Optimizer = setting("adamw", "adamw or sgd.")
    lr: float = setting(
        1e-5,
        "Peak learning rate of the image tower, or of what is trained in its place: text tower (leaf), prompts.",
        low=0,
        above=True,
        default_help="1e-5 (tiny: 5e-4; apt 2e-3, fap 3.5e-3)",
    )
    momentum: float = setting(0.9, "Of SGD.", low=0, high=1)
    weight_decay: float = setting(1e-4, "Pull of the weights towards 0.", low=0, default_help="1e-4")
    warmup_steps: int | None = setting(
        None, "Steps in which the learning rate rises.", low=0, default_help="5 % of the steps"
    )
    schedule: Schedule = setting("cosine", "cosine or constant, after the warm-up.")
    grad_clip: float = setting(0.0, "Largest norm of the gradient.", low=0, default_help="0, no limit")
    regularizer: str | None = setting(
        None,
        "Terms beside the method's loss: regmix, or regmix(alpha=1,beta=0.5,gamma=1).",
        none="none",
    )
    awp: float = setting(
        0.0,
        "Adversarial weight perturbation: its size, relative to each matrix. .01, as published for training "
        "from scratch, is much for fine-tuning: try 1e-4 to 5e-3.",
        low=0,
        high=1,
        default_help="0, none",
    )
    awp_warmup: int = setting(0, "Steps before weights are perturbed.", low=0)
    ema: float = setting(
        0.0,
        "Decay of a moving average of the weights, which is then the result.",
        low=0,
        high=0.999999,
        default_help="0, none",
    )
    wise_ft: float = setting(1.0, "Share of tuned weights in the result, the rest original.", low=0, high=1)
    precision: Precision = setting("auto", "float32, bfloat16 or auto: bfloat16 on CUDA.")
    device: str = setting("auto", "auto, cpu, cuda, cuda:1.")
    seed: int = setting(0, "Of everything random.", low=0, high=2**32 - 1)

    eval_every: int | None = setting(None, "Steps between validations.", low=1, default_help="a fifth of the run")
    eval_samples: int = setting(500, "Images a validation or the final test takes at most.", low=1)
    eval_dataset: str | None = setting(
        None,
        "Labelled data set for the final test.",
        complete="datasets",
        default_help="what is trained on, if it has labels",
    )
    evaluation: bool = setting(True, "Score the model before and after, when it is trained.")
    save_every: int | None = setting(None, "Steps between checkpoints.", low=1, default_help="with every validation")
    tracker: Tracker = setting("none", "none, tensorboard or wandb.")
    out: str | None = setting(None, "New folder for the files.", letter="-o", default_help="runs/TIME-METHOD-MODEL")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FinetuneConfig:
        """What `to_dict` gave; settings that an older clipguard did not have are at their defaults.

        Raises FinetuneError for the settings of a newer clipguard.
        """
        values = {"templates": "single", **values}  # the default once
        values = {"decoders" if name == "workers" else name: value for name, value in values.items()}  # its name once
        newer = sorted(values.keys() - {f.name for f in fields(cls)})
        if newer:
            raise FinetuneError(f"The run is of a newer clipguard: it has {', '.join(newer)}. Update clipguard.")
        return cls(**values)

    def check(self) -> None:
        """Raises FinetuneError for a value that no run could use."""
        check_settings(self, FinetuneError)
        if (self.steps is None) == (self.epochs is None):
            raise FinetuneError("Give either `steps` or `epochs`, not both.")
        if self.norm == "linf" and self.eps > PIXEL:
            raise FinetuneError(f"`eps` must be at most 255 (units of 1/255), not {self.eps:g}.")
        if self.effective_batch is not None and self.accumulate > 1:
            raise FinetuneError("Give either `effective_batch` or `accumulate`: passes follow from the first.")
        if self.effective_batch is None and self.batch_size is None:
            raise FinetuneError("`batch_size=auto` needs `effective_batch`, the images of a step.")
        self.unlocked_groups()
        if self.awp and (self.lora or self.fsdp):
            what = "the changes of `lora` are no matrices of the tower" if self.lora else "`fsdp` divides them"
            raise FinetuneError(f"`awp` perturbs matrices, each by its own size, but {what}: leave one out.")
        if self.train == "svd" and self.lora:
            raise FinetuneError("`train=svd` and `lora` are two ways to change the same matrices: choose one.")

    def unlocked_groups(self) -> int | None:
        """N of `last-N`; None where all layers of the image tower count. Raises FinetuneError for anything else."""
        if self.train in ("visual", "svd", "all"):
            return None
        prefix, _, number = self.train.rpartition("-")
        if prefix != "last" or not number.isdecimal() or int(number) < 1:
            raise FinetuneError(f"`train` {self.train!r} must be visual, svd, all or last-N with N of at least 1.")
        return int(number)

    @property
    def images_per_batch(self) -> int:
        """What is loaded at a time, over all processes: images of a pass, or of a step that is divided into passes."""
        images = self.effective_batch or self.batch_size
        assert images is not None  # `check`
        return images

    def check_share(self, processes: int) -> None:
        """Raise FinetuneError if a batch has fewer images than processes, or with `fsdp` cannot be shared evenly."""
        what = f"`{'effective_batch' if self.effective_batch else 'batch_size'}={self.images_per_batch}`"
        if self.images_per_batch < processes:
            raise FinetuneError(f"{what} is shared by {processes} processes: give each at least one image.")
        if self.fsdp and self.images_per_batch % processes:
            raise FinetuneError(f"{what} is shared by {processes} processes: with `fsdp` the parts must be equal.")

    @property
    def eps_pixels(self) -> float:
        """`eps` in pixels of [0,1]."""
        return self.eps / PIXEL if self.norm == "linf" else self.eps

    @property
    def attack_step(self) -> float:
        """`step_size` in pixels of [0,1], its default spelled out."""
        if self.step_size is None:
            return min(1.0, 2.5 / self.attack_steps) * self.eps_pixels
        return self.step_size / PIXEL if self.norm == "linf" else self.step_size

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON types; without those of `ADDED` that are as if there were none."""
        values = asdict(self)
        return {name: value for name, value in values.items() if name not in ADDED or value != ADDED[name]}


# Settings that records have only where they are set, since there were records before there were these.
ADDED = {
    field.name: field.default
    for field in fields(FinetuneConfig)
    if field.name in ("noise", "regularizer", "awp", "awp_warmup", "caption_column", "eval_dataset")
}
