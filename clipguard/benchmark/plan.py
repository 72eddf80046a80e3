"""What a bench run will do, checked before anything heavy starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from clipguard.data.class_names import STYLES, ClassNames
from clipguard.errors import AttackError, ClipguardError

DEFAULT_EPS = {"linf": ("1", "4", "8"), "l2": ("0.25", "0.5", "1")}
DEFAULT_ATTACK = "autoattack-fast"
ENGINES = ("clipguard", "reference")
ThreatResolution = Literal["model", "native", "mixed"]
Resize = Literal["model", "crop256", "crop256-squash"]
RESOLUTIONS: tuple[ThreatResolution, ...] = get_args(ThreatResolution)
RESIZES: tuple[Resize, ...] = get_args(Resize)
PRECISIONS = ("auto", "float32", "tf32", "bfloat16")
PIXEL = 255


@dataclass(frozen=True)
class Radius:
    """A perturbation budget: `typed` is the number in the tables (units of 1/255 for linf), `pixels` in [0,1]."""

    typed: float
    pixels: float


def parse_eps(values: list[str], norm: str) -> list[Radius]:
    """`["1,4", "8/255"]` -> radii in ascending order, each once.

    For linf a number is in units of 1/255 and "K/255" means the same; for l2 it is the plain Euclidean norm of
    pixels in [0,1]. Raises AttackError for what is not a finite number of at least 0, and above 255 for linf.
    """
    if norm not in DEFAULT_EPS:
        raise AttackError(f"Unknown norm {norm!r}; use linf or l2.")
    typed = {_number(text.strip(), norm) for value in values for text in value.split(",")}
    return [Radius(t, t / PIXEL if norm == "linf" else t) for t in sorted(typed)]


def _number(text: str, norm: str) -> float:
    unit = "units of 1/255, as in 1,4,8" if norm == "linf" else "Euclidean norm of pixels in [0,1], as in 0.5,1"
    top, slash, bottom = text.partition("/")
    try:
        value = float(top)
        if slash and (norm != "linf" or float(bottom) != PIXEL):
            raise ValueError
    except ValueError:
        raise AttackError(f"--eps {text!r} is not a number ({unit}).") from None
    if not math.isfinite(value) or value < 0 or (norm == "linf" and value > PIXEL):
        highest = " and at most 255" if norm == "linf" else ""
        raise AttackError(f"--eps {text!r} must be at least 0{highest} ({unit}).")
    return value


@dataclass(frozen=True)
class BenchPlan:
    """Everything that defines a run: models x data sets x attacks x radii. Names are as the user typed them."""

    models: tuple[str, ...]
    datasets: tuple[str, ...]
    eps: tuple[Radius, ...]
    attacks: tuple[str, ...] = (DEFAULT_ATTACK,)
    norm: Literal["linf", "l2"] = "linf"
    n_samples: int | None = 200
    seed: int = 0
    part: tuple[int, int] | None = None  # of these images in a seeded random order: the first of them, and the end
    batch_size: int | None = None  # None: what fits
    resolution: ThreatResolution = "model"  # mixed: native for the data sets that papers attack so
    resize: Resize = "model"
    logit_scale: float | None = None  # None: the model's own
    quantize: bool = False
    eps_mode: Literal["ascending", "independent", "nested"] = "ascending"
    engine: str = "clipguard"
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"
    compile: bool = False
    device: str = "auto"
    templates: str = "ensemble"
    text: Literal["tuned", "original"] = "tuned"  # for models whose text clipguard tuned
    split: str | None = None
    classes: str | Path | None = None  # names between commas, or a file
    class_names: ClassNames = "source"
    duplicate_names: bool = False
    image_column: str | None = None
    label_column: str | None = None
    data_root: Path | None = None
    protocol: str | None = None  # whose settings these are
    overrides: Mapping[str, Any] = field(default_factory=dict)  # all but these

    def to_dict(self) -> dict[str, Any]:
        """All but the models as plain JSON types, eps as typed: `plan` in the result files."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "models"}
        values |= {name: str(value) for name, value in values.items() if isinstance(value, Path)}
        lists = {"datasets": list(self.datasets), "attacks": list(self.attacks), "eps": [r.typed for r in self.eps]}
        lists |= {"part": list(self.part)} if self.part else {}
        return values | lists | {"overrides": dict(self.overrides)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], models: Sequence[str]) -> BenchPlan:
        """The plan that `to_dict` was called on, for other models."""
        paths = {name: Path(values[name]) for name in ("data_root",) if values[name] is not None}
        eps = tuple(parse_eps([str(value) for value in values["eps"]], values["norm"]))
        tuples = {"datasets": tuple(values["datasets"]), "attacks": tuple(values["attacks"]), "eps": eps}
        tuples |= {"part": tuple(values["part"])} if values.get("part") else {}
        return cls(tuple(models), **{**values, **tuples, **paths})

    def check(self) -> None:
        """Raises ClipguardError for values that no run could use."""
        for what, names in (("model", self.models), ("dataset", self.datasets), ("attack", self.attacks)):
            repeated = sorted({n for n in names if names.count(n) > 1})
            if repeated or not names:
                problem = f"names {repeated[0]!r} twice" if repeated else "is missing"
                raise ClipguardError(f"--{what} {problem}; name each once.")
        for option, value, allowed in (
            ("--engine", self.engine, ENGINES),
            ("--resolution", self.resolution, RESOLUTIONS),
            ("--resize", self.resize, RESIZES),
            ("--precision", self.precision, PRECISIONS),
            ("--class-names", self.class_names, STYLES),
        ):
            if value not in allowed:
                raise ClipguardError(f"{option} {value!r} is unknown; use {' or '.join(allowed)}.")
        if self.n_samples is not None and self.n_samples < 1:
            raise ClipguardError(f"--n-samples must be at least 1, not {self.n_samples}.")
        if self.part is not None and not 0 <= self.part[0] < self.part[1]:
            raise ClipguardError(f"part must be two numbers of at least 0, the first below the second: {self.part}.")
        if self.resize != "model" and self.resolution == "native":
            raise ClipguardError("--resize is for images that are attacked after it; leave out --resolution native.")
        if self.logit_scale is not None and not (math.isfinite(self.logit_scale) and self.logit_scale > 0):
            raise ClipguardError(f"--logit-scale must be a number above 0, not {self.logit_scale}.")
        if self.seed < 0:
            raise ClipguardError(f"--seed must be at least 0, not {self.seed}.")
        if self.batch_size is not None and self.batch_size < 1:
            raise ClipguardError(f"--batch-size must be at least 1, not {self.batch_size}.")
