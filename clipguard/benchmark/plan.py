"""What a bench run will do, checked before anything heavy starts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

from clipguard.core.checking import check_type
from clipguard.core.errors import AttackError, ClipguardError, ResultError, first_line
from clipguard.core.notices import notice
from clipguard.data.classes.names import ClassNames
from clipguard.data.decoding import Decode

DEFAULT_EPS = {"linf": ("1", "4", "8"), "l2": ("0.25", "0.5", "1")}
DEFAULT_ATTACK = "autoattack-fast"
ENGINES = ("clipguard", "reference")
ThreatResolution = Literal["model", "native", "mixed"]
Resize = Literal["model", "crop256", "crop256-squash"]
PIXEL = 255
SMALLEST_LINF = 0.1  # of 1/255: no published budget is smaller
EIGHTHS = tuple(k / 8 for k in range(1, 8))  # fractions of a grey level that are meant as such
LARGEST_L2 = 16.0  # the linf ball of 8/255 reaches 12 at 224 x 224 pixels


@dataclass(frozen=True)
class Radius:
    """A perturbation budget: `typed` is the number in the tables (units of 1/255 for linf), `pixels` in [0,1]."""

    typed: float
    pixels: float


def parse_eps(values: Sequence[str], norm: str, option: str = "--eps") -> list[Radius]:
    """`["1,4", "8/255"]` -> radii in ascending order, each once.

    For linf a number is in units of 1/255 and "K/255" means the same; for l2 a number is the plain Euclidean norm of
    pixels in [0,1], and "128/255" is a fraction. Numbers that look like the other unit are refused unless they are
    written as a fraction: "0.0157/255" for linf, "128/1" for l2.
    Raises AttackError for what is not a finite number of at least 0, above 255 for linf, or of the wrong unit.
    """
    check_norm(norm)
    return radii_of([_number(text.strip(), norm, option) for value in values for text in value.split(",")], norm)


def radii_of(typed: Iterable[float], norm: str) -> list[Radius]:
    """Radii of numbers that are known to be of the right unit, as a stored plan has them: ascending, each once."""
    return [Radius(t, t / PIXEL if norm == "linf" else t) for t in sorted(set(typed))]


def spell_eps(typed: float, norm: str) -> str:
    """The shortest text that `parse_eps` reads as this number."""
    short = f"{typed:g}"
    text = short if float(short) == typed else repr(typed)
    if _intended(text, typed, norm) is None:
        return text
    return f"{text}/{PIXEL if norm == 'linf' else 1}"


def check_norm(norm: str) -> None:
    """Raises AttackError for a norm that is none."""
    if norm not in DEFAULT_EPS:
        raise AttackError(f"Unknown norm {norm!r}; use linf or l2.")


def _number(text: str, norm: str, option: str) -> float:
    unit = "units of 1/255, as in 1,4,8" if norm == "linf" else "the Euclidean norm of pixels in [0,1], as in 0.5,1"
    top, slash, bottom = text.partition("/")
    try:
        value, divisor = float(top), float(bottom) if slash else 1.0
        if slash and divisor not in ((PIXEL,) if norm == "linf" else (PIXEL, 1)):
            raise ValueError
    except ValueError:
        raise AttackError(f"{option} {text!r} is not a number ({unit}).") from None
    value = value / divisor if norm == "l2" else value
    if not math.isfinite(value) or value < 0 or (norm == "linf" and value > PIXEL):
        highest = " and at most 255" if norm == "linf" else ""
        raise AttackError(f"{option} {text!r} must be at least 0{highest} ({unit}).")
    intended = None if slash else _intended(text, value, norm)
    if intended is not None:
        text = text if len(text) <= 8 else f"{value:.4g}"  # 4 / 255 has 18 digits
        insist = f"{text}/{PIXEL if norm == 'linf' else 1}"
        raise AttackError(f"{option} {text}: did you mean {intended}? It is in {unit}; write {insist} if you mean it.")
    return value


def _intended(text: str, value: float, norm: str) -> str | None:
    """What a number of the wrong unit was meant to be; None for one that makes sense.

    For linf, what AutoAttack and torchattacks call 4/255 or 0.0157: anything below a tenth of a grey level, and below
    a whole one, K/255 as a decimal number (0.1255, but not 0.5 or 0.2). For l2 the reverse: 128, for 128/255.
    """
    if norm == "l2":
        return f"{text}/255 ({value / PIXEL:.3g})" if value >= LARGEST_L2 else None
    units = PIXEL * value
    decimals = len(text.partition(".")[2])
    as_decimal = decimals >= 3 and value < 1 and round(round(units) / PIXEL, decimals) == value
    if value == 0 or (value >= SMALLEST_LINF and (not as_decimal or value in EIGHTHS)):
        return None
    nearest = f"{units:.2g}" if SMALLEST_LINF <= units < 0.75 else f"{max(units, 1):.0f}"
    return f"{nearest} ({nearest}/255)"


def notice_small_eps(radii: Iterable[Radius], norm: str) -> None:
    """Say how budgets below one grey level are taken, but for a half and the like: 0.3 may be pixels of [0,1].

    Those that `parse_eps` refuses as numbers were insisted on.
    """
    for radius in radii:
        if norm == "linf" and SMALLEST_LINF <= radius.typed < 1 and radius.typed not in EIGHTHS:
            here, there = f"{radius.typed:g}/255", f"{PIXEL * radius.typed:.3g}"
            notice("guessed", f"--eps {radius.typed:g} is {here}, in units of 1/255; for pixels of [0,1] write {there}")


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
            read["eps"] = tuple(radii_of(values["eps"], norm))  # whatever it is, it was run so
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
