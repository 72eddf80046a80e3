"""Everything that defines a fine-tuning run, checked before anything heavy starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_type_hints

from clipguard.attacks.threat import Norm
from clipguard.core.checking import check_type
from clipguard.core.errors import FinetuneError

PIXEL = 255
Optimizer = Literal["adamw", "sgd"]
Schedule = Literal["cosine", "constant"]
Augment = Literal["none", "standard"]
Precision = Literal["auto", "float32", "bfloat16"]
Tracker = Literal["none", "tensorboard", "wandb"]


@dataclass(frozen=True)
class FinetuneConfig:
    """All settings of a run, in plain JSON types; the defaults suit a full-sized CLIP. See `docs/finetuning.md`.

    Exactly one of `steps` and `epochs` is set. None elsewhere means a default that depends on other settings.
    """

    method: str = "tima"  # NAME or NAME(option=value,...)
    model: str = "tiny"  # as of `load_model`
    dataset: str = "emoji-animals"  # as of `load_dataset`; for methods without labels also any folder of images
    preset: str | None = None  # settings by name; "none" keeps the embedded model's own away

    split: str | None = None  # None: the training split
    classes: str | None = None  # names between commas, or a file
    image_column: str | None = None
    label_column: str | None = None
    data_root: str | None = None  # folder with copies of named data sets
    templates: str = "single"
    n_samples: int | None = None  # images used, stratified; None: all
    val_fraction: float = 0.1  # of the training images, held out to choose the best checkpoint

    steps: int | None = None
    epochs: float | None = 2.0
    batch_size: int = 128  # images of one pass on one device
    accumulate: int = 1  # passes per step
    augment: Augment = "none"  # standard: random crop and mirror
    workers: int | None = None  # processes that make batches; None: as many as pay

    norm: Norm = "linf"
    eps: float = 4.0  # units of 1/255 for linf
    attack_steps: int = 10
    step_size: float | None = None  # in the units of eps; None: 2.5 eps / attack_steps, at most eps
    random_start: bool = True

    train: str = "visual"  # visual, last-N or all
    lora: int = 0  # rank; 0: all of the weights
    optimizer: Optimizer = "adamw"
    lr: float = 1e-5
    momentum: float = 0.9  # of SGD
    weight_decay: float = 1e-4
    warmup_steps: int | None = None  # None: 5 % of the steps
    schedule: Schedule = "cosine"
    grad_clip: float = 0.0  # largest norm of the gradient; 0: no limit
    ema: float = 0.0  # decay of the weights' moving average, which is then what is evaluated and exported
    wise_ft: float = 1.0  # share of the tuned weights in the exported ones
    precision: Precision = "auto"
    device: str = "auto"
    seed: int = 0

    eval_every: int | None = None  # steps; None: a fifth of the run
    eval_samples: int = 500  # images that are evaluated at most, in validation and at the end
    evaluation: bool = True  # at the end, of the model before and after
    save_every: int | None = None  # steps; None: with every validation
    tracker: Tracker = "none"
    out: str | None = None  # folder; None: runs/TIME-METHOD-MODEL

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FinetuneConfig:
        """What `to_dict` gave; settings that an older clipguard did not have are at their defaults.

        Raises FinetuneError for the settings of a newer clipguard.
        """
        newer = sorted(values.keys() - {f.name for f in fields(cls)})
        if newer:
            raise FinetuneError(f"The run is of a newer clipguard: it has {', '.join(newer)}. Update clipguard.")
        return cls(**values)

    def check(self) -> None:
        """Raises FinetuneError for a value that no run could use."""
        for name, expected in get_type_hints(type(self)).items():
            check_type(option(name), getattr(self, name), expected, FinetuneError)
        for name, (low, high, strict) in RANGES.items():
            _check_range(name, getattr(self, name), low, high, strict)
        if (self.steps is None) == (self.epochs is None):
            raise FinetuneError("Give either --steps or --epochs, not both.")
        if self.norm == "linf" and self.eps > PIXEL:
            raise FinetuneError(f"--eps must be at most 255 (units of 1/255), not {self.eps:g}.")
        self.unlocked_groups()

    def unlocked_groups(self) -> int | None:
        """N of `last-N`; None where the whole image tower is trained. Raises FinetuneError for anything else."""
        if self.train in ("visual", "all"):
            return None
        prefix, _, number = self.train.rpartition("-")
        if prefix != "last" or not number.isdecimal() or int(number) < 1:
            raise FinetuneError(f"--train {self.train!r} must be visual, all or last-N with N of at least 1.")
        return int(number)

    @property
    def radius(self) -> float:
        """`eps` in pixels of [0,1]."""
        return self.eps / PIXEL if self.norm == "linf" else self.eps

    @property
    def attack_step(self) -> float:
        """`step_size` in pixels of [0,1], its default spelled out."""
        if self.step_size is None:
            return min(1.0, 2.5 / self.attack_steps) * self.radius
        return self.step_size / PIXEL if self.norm == "linf" else self.step_size

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON types."""
        return asdict(self)


# Lowest and highest value, and whether the lowest itself is too low.
RANGES: dict[str, tuple[float, float, bool]] = {
    "n_samples": (2, math.inf, False),
    "val_fraction": (0, 0.9, False),
    "steps": (1, math.inf, False),
    "epochs": (0, math.inf, True),
    "batch_size": (1, math.inf, False),
    "accumulate": (1, math.inf, False),
    "workers": (0, math.inf, False),
    "eps": (0, math.inf, True),
    "attack_steps": (1, math.inf, False),
    "step_size": (0, math.inf, True),
    "lora": (0, math.inf, False),
    "lr": (0, math.inf, True),
    "momentum": (0, 1, False),
    "weight_decay": (0, math.inf, False),
    "warmup_steps": (0, math.inf, False),
    "grad_clip": (0, math.inf, False),
    "ema": (0, 0.999999, False),
    "wise_ft": (0, 1, False),
    "seed": (0, 2**32 - 1, False),
    "eval_every": (1, math.inf, False),
    "eval_samples": (1, math.inf, False),
    "save_every": (1, math.inf, False),
}


def option(name: str) -> str:
    """A setting as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


def _check_range(name: str, value: float | None, low: float, high: float, strict: bool) -> None:
    if value is None or (math.isfinite(value) and low <= value <= high and not (strict and value == low)):
        return
    least = "above" if strict else "at least"
    most = f" and at most {high:g}" if high < math.inf else ""
    raise FinetuneError(f"{option(name)} must be {least} {low:g}{most}, not {value:g}.")
