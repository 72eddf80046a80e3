"""Settings: each is declared once, as a field of a dataclass, with its type, default, range and help.

    @dataclass(frozen=True)
    class Example:
        seed: int = setting(0, "Of the subset and of every attack.", low=0)

From the declaration come the option of the command line (`cli/options.py`), the key of configuration files, the check
of values from anywhere (`check_settings`), and the reference in the docs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from clipguard.core.checking import NAMES
from clipguard.core.errors import ClipguardError, did_you_mean
from clipguard.core.spec import split_attacks


@dataclass(frozen=True)
class Setting:
    """One setting: what a value must be, what it is by default, and how it is named on the command line.

    Attributes:
        name: in Python and in files, such as `n_samples`.
        types: what a value may be: classes of `NAMES`, and NoneType.
        choices: the texts that are allowed; none: any.
        default: the value if none is given.
        help: one or two sentences for people, without the default.
        flag: on the command line, such as `--n-samples`.
        letter: its short form, such as `-n`, or "".
        default_help: what the default is, where the value alone does not say it.
        none: the word that stands for None in texts and files ("all", "auto").
        off: a flag that sets it to None, such as `--no-store`.
        low, high: least and largest number.
        above, below: whether the least number itself is too low, and the largest too high.
        many: whether it is a list, and how one text is taken apart: "repeat" (not at all), "comma", "calls" (at commas
            outside parentheses).
        item: what a list holds: texts, or numbers, which must then be in the range.
        free: whether a list may be empty and hold a text twice.
        is_eps: whether it is in the units of eps, so that only `read_eps` can read it, which needs the norm.
        complete: the registry whose names a shell completes ("attacks", "datasets", "defenses", "methods", "models",
            "protocols").
        metavar: what stands for the value in the help.
    """

    name: str
    types: tuple[Any, ...]
    choices: tuple[str, ...]
    default: Any
    help: str
    flag: str
    letter: str = ""
    default_help: str | None = None
    none: str = ""
    off: str = ""
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    many: Literal["", "repeat", "comma", "calls"] = ""
    item: Any = str
    free: bool = False
    is_eps: bool = False
    complete: str = ""
    metavar: str | None = None

    @property
    def may_be_none(self) -> bool:
        """Whether None is a value."""
        return type(None) in self.types

    def but(self, **changes: Any) -> Setting:
        """The same setting where a command has another default or help."""
        return dataclasses.replace(self, **changes)

    def read(self, value: Any) -> Any:
        """A value from a command line, a file or Python, in the type that it is stored in; checked by `check`.

        Texts become numbers, paths and lists; NumPy's numbers become Python's; the word for None becomes None.
        """
        if self.is_eps:
            return value
        if isinstance(value, str) and value == self.none and self.none:
            return None
        if self.many:
            if isinstance(value, str):
                return tuple(self._item(part) for part in self._split(value))
            items = list(value) if isinstance(value, Iterable) and not isinstance(value, Path) else [value]
            return tuple(self._item(item) for item in items)
        if hasattr(value, "item") and not isinstance(value, (str, bytes)) and getattr(value, "ndim", 0) == 0:
            value = value.item()
        if isinstance(value, Path) and Path not in self.types:
            return str(value)
        if isinstance(value, str) and str not in self.types and not self.choices:
            return self._parse(value)
        return value

    def _item(self, item: Any) -> Any:
        """A member of a list in its type; what is no number of a list of numbers stays, and `check` refuses it."""
        if isinstance(item, Path):
            return str(item)
        if self.item is not float or isinstance(item, bool) or not isinstance(item, (str, Real)):
            return item
        with contextlib.suppress(ValueError):
            return float(item)
        return item

    def _split(self, text: str) -> list[str]:
        """A list that is written as one text; the members of a list that is one already are not taken apart."""
        if self.many == "repeat":
            return [text]
        return split_attacks([text]) if self.many == "calls" else [part.strip() for part in text.split(",")]

    def _parse(self, text: str) -> Any:
        """A number or path from its text; what cannot be read stays a text, which `check` refuses."""
        if Path in self.types:
            return Path(text)
        if bool in self.types and text.lower() in ("true", "false", "yes", "no"):
            return text.lower() in ("true", "yes")
        for kind in (int, float):
            if kind in self.types:
                try:
                    return kind(text)
                except ValueError:
                    continue
        return text

    def spell(self, value: Any) -> list[str] | None:
        """The words of a command line that give this value; None if none can. For eps, see `spell_eps`."""
        if bool in self.types:
            return [self.flag if value else f"--no-{self.flag.removeprefix('--')}"]
        if value is None:
            return [self.flag, self.none] if self.none else None
        if self.many in ("comma", "calls"):
            text = ",".join(str(item) for item in value)
            return [self.flag, text] if self.read(text) == tuple(value) else None
        if self.many:
            return [word for item in value for word in (self.flag, item)]
        return [self.flag, str(value)]

    def check(self, value: Any, error: type[ClipguardError] = ClipguardError) -> None:
        """Raise `error` for a value that is of another type, no choice, or out of range."""
        if value is None and self.may_be_none:
            return
        if self.many:
            self._check_list(value, error)
            return
        if self.choices:
            self._check_choice(value, error)
            return
        if not self._is_of_type(value) or not self._is_in_range(value):
            shown = f"{value:g}" if isinstance(value, float) else repr(value)
            raise error(f"`{self.name}` must be {self.describe()}, not {shown}.")

    def _check_choice(self, value: Any, error: type[ClipguardError]) -> None:
        if not isinstance(value, str) or value not in self.choices:
            hint = did_you_mean(value, self.choices) if isinstance(value, str) else ""
            raise error(f"`{self.name}` {value!r} is unknown.{hint} Use {self._choices()}.")

    def _check_list(self, value: Any, error: type[ClipguardError]) -> None:
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if self.item is float:
                self._check_number(item, error)
            elif not isinstance(item, self.item):
                shown = repr(item) if item is None or isinstance(item, (bool, Real)) else f"a {type(item).__name__}"
                raise error(f"`{self.name}` takes names, not {shown}.")
            if self.choices:
                self._check_choice(item, error)
        if self.free:
            return
        repeated = [item for item in value if value.count(item) > 1]
        if repeated or not value:
            problem = f"names {repeated[0]!r} twice" if repeated else "is missing"
            raise error(f"`{self.name}` {problem}; name each once.")

    def _check_number(self, item: Any, error: type[ClipguardError]) -> None:
        if isinstance(item, bool) or not isinstance(item, Real) or not self._is_in_range(item):
            shown = f"{item:g}" if isinstance(item, float) else repr(item)
            raise error(f"`{self.name}` must be {self.describe()}, not {shown}.")

    def _is_of_type(self, value: Any) -> bool:
        """Whole numbers are numbers, NumPy's too; true and false are not."""
        if isinstance(value, bool):
            return bool in self.types
        kinds = [*self.types, *([Real] if float in self.types else []), *([Integral] if int in self.types else [])]
        return isinstance(value, tuple(kind for kind in kinds if isinstance(kind, type)))

    def _is_in_range(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, Real):
            return True
        number = float(value)
        too_low = number < self.low or (self.above and number == self.low)
        too_high = number > self.high or (self.below and number == self.high)
        return math.isfinite(number) and not too_low and not too_high

    def describe(self) -> str:
        """What a value must be, in words: "a whole number of at least 1, or all"."""
        names = " or ".join(NAMES[kind] for kind in self.types if kind in NAMES)
        if self.item is float:
            names = "numbers"
        limits = []
        if self.low > -math.inf:
            limits.append(f"{'above' if self.above else 'of at least'} {_plain(self.low)}")
        if self.high < math.inf:
            limits.append(f"{'below' if self.below else 'at most'} {_plain(self.high)}")
        words = " ".join(filter(None, [names, " and ".join(limits)]))
        return f"{words}, or {self.none}" if self.none else words

    def _choices(self) -> str:
        return " or ".join(filter(None, [", ".join(self.choices[:-1]), self.choices[-1]]))

    @property
    def default_text(self) -> str:
        """What the default is, in words; empty where there is none, and for a switch that is off."""
        if self.default_help is not None:
            return self.default_help
        if isinstance(self.default, bool):
            return "yes" if self.default else ""
        if isinstance(self.default, (list, tuple)):
            return ",".join(f"{item:g}" if self.item is float else str(item) for item in self.default)
        return self.none if self.default is None else str(self.default)

    @property
    def full_help(self) -> str:
        """The help with what the default is."""
        return f"{self.help} Default: {self.default_text}." if self.default_text else self.help


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"


def setting(default: Any, help: str, **facts: Any) -> Any:
    """A field of a dataclass that is a setting.

    Args:
        default: the value if none is given.
        help: for people, without the default.
        facts: what `Setting` has beside that, where it does not follow from name and type: flag, letter, low ...
    """
    return field(default=default, metadata={"setting": {"help": help, **facts}})


def settings_of(declaration: Any) -> dict[str, Setting]:
    """The settings that a dataclass declares, by name and in order; fields without `setting` are none."""
    hints = get_type_hints(declaration)
    return {
        field.name: _setting(field.name, hints[field.name], field.default, field.metadata["setting"])
        for field in dataclasses.fields(declaration)
        if "setting" in field.metadata
    }


def _setting(name: str, hint: Any, default: Any, facts: Mapping[str, Any]) -> Setting:
    kinds = (hint,) if get_origin(hint) in (Literal, tuple) or isinstance(hint, type) else get_args(hint)
    implied: dict[str, Any] = {"flag": f"--{name.replace('_', '-')}"}
    items = [get_args(kind)[0] for kind in kinds if get_origin(kind) is tuple]
    choices = tuple(text for kind in (*kinds, *items) if get_origin(kind) is Literal for text in get_args(kind))
    types = tuple(str if get_origin(kind) is Literal else get_origin(kind) or kind for kind in kinds)
    if items:
        implied |= {"many": "repeat", "item": str if choices else items[0]}
    return Setting(name, types, choices, default, **{**implied, **facts})


def check_settings(values: Any, error: type[ClipguardError] = ClipguardError) -> None:
    """Raise `error` for the first value of a settings dataclass that no run could use."""
    for name, declared in settings_of(type(values)).items():
        declared.check(getattr(values, name), error)


def read_settings(
    values: Mapping[str, Any],
    settings: Mapping[str, Setting],
    where: str = "",
    error: type[ClipguardError] = ClipguardError,
) -> dict[str, Any]:
    """Values by name, each read as its setting says.

    Args:
        values: from Python, a file or a command line.
        settings: those that are known.
        where: the file that the values are from, for the error.
        error: what is raised.

    Raises:
        ClipguardError: for a name that is no setting, with the nearest ones.
    """
    for name in values:
        if name not in settings:
            known: Sequence[str] = list(settings)
            hint = did_you_mean(str(name), known)
            raise error(
                f"{where}{': ' if where else ''}{str(name)!r} is no setting.{hint} There are {', '.join(known)}."
            )
    return {name: settings[name].read(value) for name, value in values.items()}
