"""eps, how far an image may be moved: read from text, written as text, in the tables' units and in pixels."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

from clipguard.core.errors import AttackError
from clipguard.core.notices import notice

Norm = Literal["linf", "l2"]
DEFAULT_EPS = {"linf": ("1", "4", "8"), "l2": ("0.25", "0.5", "1")}
PIXEL = 255
SMALLEST_LINF = 0.1  # of 1/255: no published eps is smaller
EIGHTHS = tuple(k / 8 for k in range(1, 8))  # fractions of a grey level that are meant as such
LARGEST_L2 = 16.0  # the linf ball of 8/255 reaches 12 at 224 x 224 pixels


@dataclass(frozen=True)
class Eps:
    """One eps: `typed` is the number in the tables (units of 1/255 for linf), `pixels` the one in [0,1] pixels."""

    typed: float
    pixels: float


def read_eps(value: Any, norm: str, name: str = "eps", *, whole_range: bool = False) -> list[Eps]:
    """Every form of eps: a text is as on the command line, a number is pixels of [0,1] as in every attack library.

    Args:
        value: `"1,4,8"`, `"4/255"`, `4 / 255`, or several of them.
        norm: "linf" or "l2". For l2 texts and numbers are the same: the Euclidean norm of pixels in [0,1].
        name: of the setting, for errors.
        whole_range: whether 1.0, every possible image, is a number for linf.

    Returns:
        In ascending order, each once.

    Raises:
        AttackError: for what is no finite number of at least 0, or of the other unit: for linf a number of 1 or more,
            which says what was probably meant, and a text such as "0.0157".
    """
    check_norm(norm)
    values = value.tolist() if hasattr(value, "tolist") else value  # arrays, tensors and NumPy's numbers
    typed: list[float] = []
    for item in values if isinstance(values, (list, tuple)) else [values]:
        number = item.tolist() if hasattr(item, "tolist") else item
        if isinstance(number, Eps):
            typed.append(number.typed)
        elif isinstance(number, str):
            typed += [_number(text.strip(), norm, name) for text in number.split(",")]
        elif not isinstance(number, bool) and isinstance(number, Real):
            typed.append(_of_pixels(number, norm, name, whole_range))
        else:
            shown = repr(number) if number is None or isinstance(number, bool) else f"a {type(number).__name__}"
            raise AttackError(f"`{name}` takes numbers such as 4 / 255, or texts such as '1,4,8', not {shown}.")
    return eps_of_numbers(typed, norm)


def eps_of_numbers(typed: Iterable[float], norm: str) -> list[Eps]:
    """Eps of numbers in the tables' unit, as a stored plan has them: ascending, each once."""
    return [Eps(t, t / PIXEL if norm == "linf" else t) for t in sorted(set(typed))]


def spell_eps(typed: float, norm: str) -> str:
    """The shortest text that `read_eps` reads as this number of the tables' unit."""
    short = f"{typed:g}"
    text = short if float(short) == typed else repr(typed)
    if _intended(text, typed, norm) is None:
        return text
    return f"{text}/{PIXEL if norm == 'linf' else 1}"


def show_eps(typed: float, norm: str) -> str:
    """An eps of the tables' unit for people: "4/255" for linf, "0.5" for l2."""
    return f"{typed:g}{'/255' if norm == 'linf' else ''}"


def check_norm(norm: str) -> None:
    """Raises AttackError for a norm that is none."""
    if norm not in DEFAULT_EPS:
        raise AttackError(f"`norm` {norm!r} is unknown. Use {' or '.join(DEFAULT_EPS)}.")


def one_eps(value: Any, norm: str, name: str = "eps", *, whole_range: bool = False) -> Eps:
    """The same for a setting that takes one. Raises AttackError for several, too."""
    values = read_eps(value, norm, name, whole_range=whole_range)
    if len(values) != 1:
        raise AttackError(f"`{name}` must be one number here, not {len(values)}.")
    return values[0]


def _of_pixels(value: Real, norm: str, name: str, whole_range: bool) -> float:
    """A number of pixels in the tables' unit: 4 / 255 is 4.0 for linf.

    For linf nothing above 1 makes sense, and 1.0 is every possible image; for l2 a whole number from 16 on looks like
    one of 1/255.
    """
    pixels, whole = float(value), isinstance(value, Integral)
    if not math.isfinite(pixels) or pixels < 0:
        raise AttackError(f"`{name}` must be a finite number of at least 0, not {value}.")
    if norm == "l2":
        if whole and pixels >= LARGEST_L2:
            cure = f"did you mean {value} / 255? It is the Euclidean norm of pixels in [0,1]"
            raise AttackError(f"`{name}` {value}: {cure}; write {value}.0 if you mean it.")
        return pixels
    if pixels > 1 or (pixels == 1 and (whole or not whole_range)):
        insist = "; write 1.0 if you mean every possible image" if pixels == 1 and whole_range else ""
        meant = f"did you mean {pixels:g} / 255, or '{pixels:g}'"
        raise AttackError(f"`{name}` {pixels:g}: {meant}? Numbers are pixels of [0,1]; texts are in 1/255{insist}.")
    typed = round(PIXEL * pixels, 9)  # 3 / 255 * 255 is not 3
    return float(typed) if typed / PIXEL == pixels else PIXEL * pixels


def _number(text: str, norm: str, name: str) -> float:
    """A text in the tables' unit."""
    unit = "units of 1/255, as in 1,4,8" if norm == "linf" else "the Euclidean norm of pixels in [0,1], as in 0.5,1"
    top, slash, bottom = text.partition("/")
    try:
        value, divisor = float(top), float(bottom) if slash else 1.0
        if slash and divisor not in ((PIXEL,) if norm == "linf" else (PIXEL, 1)):
            raise ValueError
    except ValueError:
        raise AttackError(f"`{name}` {text!r} is not a number ({unit}).") from None
    value = value / divisor if norm == "l2" else value
    if not math.isfinite(value) or value < 0 or (norm == "linf" and value > PIXEL):
        highest = " and at most 255" if norm == "linf" else ""
        raise AttackError(f"`{name}` {text!r} must be at least 0{highest} ({unit}).")
    intended = None if slash else _intended(text, value, norm)
    if intended is not None:
        text = text if len(text) <= 8 else f"{value:.4g}"  # 4 / 255 has 18 digits
        insist = f"{text}/{PIXEL if norm == 'linf' else 1}"
        raise AttackError(f"`{name}` {text}: did you mean {intended}? It is in {unit}; write {insist} if you mean it.")
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


def notice_small_eps(values: Iterable[Eps], norm: str) -> None:
    """Say how an eps below one grey level is taken, but for a half and the like: 0.3 may be pixels of [0,1].

    Those that `read_eps` refuses as texts were insisted on.
    """
    for eps in values:
        if norm == "linf" and SMALLEST_LINF <= eps.typed < 1 and eps.typed not in EIGHTHS:
            here, there = f"{eps.typed:g}/255", f"{PIXEL * eps.typed:.3g}"
            notice("guessed", f"--eps {eps.typed:g} is {here}, in units of 1/255; for pixels of [0,1] write {there}")
