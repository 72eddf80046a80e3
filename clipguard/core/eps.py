"""eps, the perturbation budget: read from text, written as text, in the tables' units and in pixels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from clipguard.core.errors import AttackError
from clipguard.core.notices import notice

DEFAULT_EPS = {"linf": ("1", "4", "8"), "l2": ("0.25", "0.5", "1")}
PIXEL = 255
SMALLEST_LINF = 0.1  # of 1/255: no published budget is smaller
EIGHTHS = tuple(k / 8 for k in range(1, 8))  # fractions of a grey level that are meant as such
LARGEST_L2 = 16.0  # the linf ball of 8/255 reaches 12 at 224 x 224 pixels


@dataclass(frozen=True)
class Eps:
    """A perturbation budget: `typed` is the number in the tables (units of 1/255 for linf), `pixels` in [0,1]."""

    typed: float
    pixels: float


def parse_eps(values: Sequence[str], norm: str, option: str = "--eps") -> list[Eps]:
    """`["1,4", "8/255"]` -> radii in ascending order, each once.

    For linf a number is in units of 1/255 and "K/255" means the same; for l2 a number is the plain Euclidean norm of
    pixels in [0,1], and "128/255" is a fraction. Numbers that look like the other unit are refused unless they are
    written as a fraction: "0.0157/255" for linf, "128/1" for l2.
    Raises AttackError for what is not a finite number of at least 0, above 255 for linf, or of the wrong unit.
    """
    check_norm(norm)
    return eps_of_numbers([_number(text.strip(), norm, option) for value in values for text in value.split(",")], norm)


def eps_of_numbers(typed: Iterable[float], norm: str) -> list[Eps]:
    """Radii of numbers that are known to be of the right unit, as a stored plan has them: ascending, each once."""
    return [Eps(t, t / PIXEL if norm == "linf" else t) for t in sorted(set(typed))]


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


def notice_small_eps(radii: Iterable[Eps], norm: str) -> None:
    """Say how budgets below one grey level are taken, but for a half and the like: 0.3 may be pixels of [0,1].

    Those that `parse_eps` refuses as numbers were insisted on.
    """
    for radius in radii:
        if norm == "linf" and SMALLEST_LINF <= radius.typed < 1 and radius.typed not in EIGHTHS:
            here, there = f"{radius.typed:g}/255", f"{PIXEL * radius.typed:.3g}"
            notice("guessed", f"--eps {radius.typed:g} is {here}, in units of 1/255; for pixels of [0,1] write {there}")
