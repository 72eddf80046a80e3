"""What a bench run will do, checked before anything heavy starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

from clipguard.core.checking import check_type
from clipguard.core.eps import Eps, check_norm, eps_of_numbers
from clipguard.core.errors import ClipguardError, ResultError, first_line
from clipguard.data.classes.names import ClassNames
from clipguard.data.decoding import Decode

DEFAULT_ATTACK = "autoattack-fast"
ENGINES = ("clipguard", "reference")
ThreatResolution = Literal["model", "native", "mixed"]
Resize = Literal["model", "crop256", "crop256-squash"]


@dataclass(frozen=True)
class BenchPlan:
    """Everything that defines a run: models x data sets x attacks x radii. Names are as the user typed them."""

    models: tuple[str, ...]
    datasets: tuple[str, ...]
    eps: tuple[Eps, ...]
    attacks: tuple[str, ...] = (DEFAULT_ATTACK,)
    norm: Literal["linf", "l2"] = "linf"
    n_samples: int | None = 200
    seed: int = 0
    part: tuple[int, int] | None = None  # of these images in a seeded random order: the first of them, and the end
    batch_size: int | None = None  # None: what fits
    resolution: ThreatResolution = "model"  # mixed: native for the data sets that papers attack so
    resize: Resize = "model"
    decode: Decode = "upright"
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

    def __post_init__(self) -> None:
        if isinstance(self.classes, Path):  # one form, as in a plan that was stored
            object.__setattr__(self, "classes", str(self.classes))

    def to_dict(self) -> dict[str, Any]:
        """All but the models as plain JSON types, eps as typed: `plan` in the result files."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "models"}
        values |= {name: str(value) for name, value in values.items() if isinstance(value, Path)}
        lists = {"datasets": list(self.datasets), "attacks": list(self.attacks), "eps": [r.typed for r in self.eps]}
        lists |= {"part": list(self.part)} if self.part else {}
        return values | lists | {"overrides": dict(self.overrides)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], models: Sequence[str]) -> BenchPlan:
        """The plan that `to_dict` was called on, for other models; what an older clipguard did not have is as it was.

        Raises ResultError for the plan of a newer clipguard, and for a damaged one.
        """
        newer = sorted(values.keys() - {f.name for f in fields(cls)})
        if newer:
            raise ResultError(f"The run is of a newer clipguard: its plan has {', '.join(newer)}. Update clipguard.")
        try:
            read: dict[str, Any] = {n: tuple(values[n]) for n in ("datasets", "attacks", "part") if values.get(n)}
            read |= {"data_root": Path(values["data_root"])} if values.get("data_root") else {}
            norm = values.get("norm", "linf")
            check_norm(norm)
            read["eps"] = tuple(eps_of_numbers(values["eps"], norm))  # whatever it is, it was run so
            return cls(tuple(models), **{**values, **read})
        except (KeyError, TypeError, ValueError) as error:
            what = f"The plan of the run is damaged ({first_line(error)})"
            raise ResultError(f"{what}; bench the model again.") from error

    def check(self) -> None:
        """Raises ClipguardError for values that no run could use."""
        for what, names in (("model", self.models), ("dataset", self.datasets), ("attack", self.attacks)):
            repeated = sorted({n for n in names if names.count(n) > 1})
            if repeated or not names:
                problem = f"names {repeated[0]!r} twice" if repeated else "is missing"
                raise ClipguardError(f"--{what} {problem}; name each once.")
        for name, expected in get_type_hints(type(self)).items():
            if name not in ("models", "datasets", "attacks", "eps", "part", "overrides"):
                check_type(f"--{name.replace('_', '-')}", getattr(self, name), expected)
        if self.engine not in ENGINES:
            raise ClipguardError(f"--engine {self.engine!r} is unknown; use {' or '.join(ENGINES)}.")
        if self.n_samples is not None and self.n_samples < 1:
            raise ClipguardError(f"--n-samples must be at least 1, not {self.n_samples}.")
        if self.part is not None:
            whole = isinstance(self.part, tuple) and [type(end) for end in self.part] == [int, int]
            if not whole or not 0 <= self.part[0] < self.part[1]:
                raise ClipguardError(f"part must be two numbers from 0 on, the first below the second: {self.part!r}.")
        if self.resize != "model" and self.resolution == "native":
            raise ClipguardError("--resize is for images that are attacked after it; leave out --resolution native.")
        if self.logit_scale is not None and not (math.isfinite(self.logit_scale) and self.logit_scale > 0):
            raise ClipguardError(f"--logit-scale must be a number above 0, not {self.logit_scale}.")
        if self.seed < 0:
            raise ClipguardError(f"--seed must be at least 0, not {self.seed}.")
        if self.batch_size is not None and self.batch_size < 1:
            raise ClipguardError(f"--batch-size must be at least 1, not {self.batch_size}.")
