"""How families of papers evaluate robust CLIP models, by name; docs/protocols.md tables them and what they printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from clipguard.benchmark.plan import BenchPlan
from clipguard.core.checking import check_type
from clipguard.core.eps import DEFAULT_EPS, parse_eps
from clipguard.core.errors import AttackError, ClipguardError, did_you_mean
from clipguard.data import expand_groups

TYPES = get_type_hints(BenchPlan)


@dataclass(frozen=True)
class Protocol:
    """Settings of a `BenchPlan` that a family fixes; the defaults are clipguard's own.

    PGD's `step_size` is a fraction of eps: 1 is a step of 1/255 at eps 1/255.
    """

    summary: str
    datasets: str = "embedded"  # group that is evaluated if none is named
    attacks: tuple[str, ...] = ("autoattack",)
    norm: str = "linf"
    eps: tuple[float, ...] = (1, 4, 8)
    n_samples: int | None = 1000
    templates: str = "ensemble"
    class_names: str = "source"
    duplicate_names: bool = False
    resolution: str = "model"
    resize: str = "model"
    decode: str = "upright"
    precision: str = "float32"
    logit_scale: float | None = None

    def settings(self) -> dict[str, Any]:
        """The fields of `BenchPlan` that it sets, eps as typed."""
        fields = asdict(self)
        return {name: value for name, value in fields.items() if name not in ("summary", "datasets")}


PROTOCOLS: dict[str, Protocol] = {
    "clipguard": Protocol("ours: ensembles, AutoAttack on the resized image, float32, a fixed subset of 1,000 images"),
    # Schlarmann et al. 2024 (FARE), and Sim-CLIP, LEAF, CLIPure after it.
    "fare": Protocol(
        "FARE: 13 sets, 1,000 images each, ensembles, APGD-CE (5 runs) and targeted APGD, eps 2 and 4",
        datasets="fare13",
        # Its "custom" AutoAttack keeps the constructor's five runs of APGD-CE.
        attacks=("apgd-ce(restarts=5)+apgd-t",),
        eps=(2, 4),
        resolution="mixed",
        decode="plain",
        logit_scale=100,
    ),
    # Mao et al. 2023.
    "tecoa": Protocol(
        "TeCoA: whole sets, one prompt, PGD-10, 20 and 100 with steps of eps, eps 1, CIFAR and STL at their own size",
        datasets="tecoa16",
        attacks=("pgd-10(step_size=1)", "pgd-20(step_size=1)", "pgd-100(step_size=1)"),
        eps=(1,),
        n_samples=None,
        templates="single",
        class_names="tecoa",
        resolution="mixed",
        resize="crop256",
        decode="plain",
    ),
    # Yu et al. 2024 (TGA-ZSR, Comp-TGA).
    "tga": Protocol(
        "TGA-ZSR: as TeCoA, PGD-100, all sets attacked at 224 pixels",
        datasets="pmg16",
        attacks=("pgd-100(step_size=1)",),
        eps=(1,),
        n_samples=None,
        templates="single",
        class_names="tecoa",
        resize="crop256-squash",
        decode="plain",
    ),
    # Xing et al. 2025 (TTC).
    "ttc": Protocol(
        "TTC: as TeCoA, PGD-10, one prompt for all sets, all attacked at 224 pixels",
        datasets="ttc17",
        attacks=("pgd-10(step_size=1)",),
        eps=(1,),
        n_samples=None,
        templates="This is a photo of a {}.",
        resize="crop256",
        decode="plain",
    ),
    # Wang et al. 2024 (PMG-AFT). Its code has two mistakes that are not set here: docs/protocols.md.
    "pmg": Protocol(
        "PMG-AFT: as TeCoA, PGD-10; without its ImageNet normalisation and its missing temperature",
        datasets="pmg16",
        attacks=("pgd-10(step_size=1)",),
        eps=(1,),
        n_samples=None,
        templates="single",
        class_names="tecoa",
        resolution="mixed",
        resize="crop256",
        decode="plain",
    ),
}


# Nobody's protocol has these, so that they are changes, too: field of `BenchPlan` -> its default.
PLAIN: dict[str, Any] = {"quantize": False, "eps_mode": "ascending", "split": None, "classes": None}


def find_protocol(name: str) -> Protocol:
    """The protocol of a name. Raises ClipguardError for an unknown one."""
    check_type("--protocol", name, str)
    if name not in PROTOCOLS:
        raise ClipguardError(
            f"--protocol {name!r} is unknown.{did_you_mean(name, PROTOCOLS)} Use {', '.join(PROTOCOLS)}."
        )
    return PROTOCOLS[name]


def make_plan(
    models: str | Sequence[str],
    datasets: str | Sequence[str] | None = (),
    *,
    protocol: str | None = None,
    **options: Any,
) -> BenchPlan:
    """A plan from a protocol, where one is named, and from `options`, which win over it.

    datasets: names and groups; default the protocol's group, else the embedded sets. options: fields of `BenchPlan`,
    but `eps` as on the command line (`["1,4"]`) or as numbers; default radii depend on the norm. One name or number may
    stand for a list of one. What differs from the protocol is kept in the plan's `overrides`.
    Raises ClipguardError for an unknown protocol or option, bad radii, and what is no name.
    """
    options = _options(options)
    family = find_protocol(protocol) if protocol is not None else None
    fixed = family.settings() if family else {}
    plain = PLAIN if family else {}
    settings = fixed | options
    norm = settings.setdefault("norm", "linf")
    eps = _eps_texts(options.get("eps"))
    if not eps and fixed and norm == fixed["norm"]:
        eps = [f"{value:g}" for value in fixed["eps"]]
    settings["eps"] = tuple(parse_eps(eps or list(DEFAULT_EPS.get(norm, ())), norm))
    typed = settings | {"eps": tuple(radius.typed for radius in settings["eps"])}
    names = expand_groups(as_names("dataset", datasets) or [family.datasets if family else "embedded"])
    overrides = {key: typed[key] for key, value in fixed.items() if typed[key] != value}
    overrides |= {key: str(options[key]) for key, value in plain.items() if options.get(key, value) != value}
    return BenchPlan(as_names("model", models), tuple(names), protocol=protocol, overrides=overrides, **settings)


def as_names(what: str, given: Any) -> tuple[str, ...]:
    """Names as a tuple: one alone is a list of one, and a path is its text. Raises ClipguardError for anything else."""
    if given is None:
        return ()
    names: list[str] = []
    for item in [given] if isinstance(given, (str, Path)) or not isinstance(given, Iterable) else given:
        if not isinstance(item, (str, Path)):
            advice = "; clipguard.attack takes modules and tensors" if what in ("model", "dataset") else ""
            raise ClipguardError(f"--{what} takes names, not {_describe(item)}{advice}.")
        names.append(str(item))
    return tuple(names)


def _describe(value: Any) -> str:
    """A value on one line, or its type where it has no short text."""
    return repr(value) if value is None or isinstance(value, (bool, int, float)) else f"a {type(value).__name__}"


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the types that a plan has: NumPy's numbers are numbers, and paths may be texts."""
    known = [name for name in TYPES if name not in ("models", "datasets", "protocol", "overrides")]
    for name in given:
        if name not in known:
            raise ClipguardError(f"{name!r} is no option.{did_you_mean(name, known)} There are {', '.join(known)}.")
    options = {name: value.item() if isinstance(value, np.generic) else value for name, value in given.items()}
    for name, word in (("n_samples", "all"), ("batch_size", "auto")):  # as on the command line
        if name in options and options[name] == word:
            options[name] = None
    if isinstance(options.get("data_root"), str):
        options["data_root"] = Path(options["data_root"])
    if "attacks" in options:
        options["attacks"] = as_names("attack", options["attacks"])
    check_type("--norm", options.get("norm", "linf"), TYPES["norm"])
    return options


def _eps_texts(given: Any) -> list[str]:
    """Radii as texts for `parse_eps`, from a text, a number, or several of them."""
    array = isinstance(given, np.ndarray)
    items = [] if given is None else given.tolist() if array else given if isinstance(given, (list, tuple)) else [given]
    texts = []
    for item in items if isinstance(items, (list, tuple)) else [items]:
        number = item.item() if isinstance(item, np.generic) else item
        if isinstance(number, bool) or not isinstance(number, (str, int, float)):
            raise AttackError(f"--eps takes numbers, or texts such as '1,4,8' or '4/255', not {_describe(number)}.")
        texts.append(str(number))
    return texts
