"""How families of papers evaluate robust CLIP models, by name; docs/protocols.md tables them and what they printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from clipguard.benchmark.plan import BenchPlan
from clipguard.core.eps import DEFAULT_EPS, read_eps
from clipguard.core.errors import ClipguardError, did_you_mean
from clipguard.core.plugins import Registry
from clipguard.core.settings import read_settings, settings_of
from clipguard.data import expand_groups


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


OWN: dict[str, Protocol] = {
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


def _add_plugin(name: str, protocol: Any) -> None:
    """A protocol of another package, under the name of its entry point."""
    if not isinstance(protocol, Protocol):
        raise ClipguardError(f"it must be a clipguard.benchmark.protocols.Protocol, not {protocol!r}")
    if name in PROTOCOLS:
        raise ClipguardError(f"there is a protocol {name!r} already")
    PROTOCOLS[name] = protocol


PROTOCOLS: Registry[Protocol] = Registry(OWN, "clipguard.protocols", _add_plugin)


# Nobody's protocol has these, so that they are changes, too: field of `BenchPlan` -> its default.
PLAIN: dict[str, Any] = {"quantize": False, "eps_mode": "ascending", "split": None, "classes": None}
SETTINGS = settings_of(BenchPlan)


def find_protocol(name: str) -> Protocol:
    """The protocol of a name. Raises ClipguardError for an unknown one."""
    SETTINGS["protocol"].check(name)
    if name not in PROTOCOLS:
        raise ClipguardError(
            f"`protocol` {name!r} is unknown.{did_you_mean(name, PROTOCOLS)} Use {', '.join(PROTOCOLS)}."
        )
    return PROTOCOLS[name]


def make_plan(
    models: str | Sequence[str],
    datasets: str | Sequence[str] | None = (),
    *,
    part: tuple[int, int] | None = None,
    **settings: Any,
) -> BenchPlan:
    """A plan from a protocol, where one is named, and from `settings`, which win over it.

    Args:
        models: their names.
        datasets: names and groups; default the protocol's group, else the embedded sets.
        part: of the plan.
        settings: fields of `BenchPlan` that are given, `protocol` among them, in any form that `Setting.read` and
            `read_eps` take. The default eps depends on the norm.

    Returns:
        The plan. What differs from the protocol is kept in its `overrides`.

    Raises:
        ClipguardError: for an unknown protocol or setting, bad eps, and what is no name.
    """
    given = read_settings({"models": models, "datasets": () if datasets is None else datasets, **settings}, SETTINGS)
    SETTINGS["norm"].check(given.get("norm", "linf"))
    family = find_protocol(given["protocol"]) if given.get("protocol") is not None else None
    fixed = family.settings() if family else {}
    plain = PLAIN if family else {}
    values = fixed | given
    norm = values.setdefault("norm", "linf")
    asked = given.get("eps")
    if asked is None or (isinstance(asked, (list, tuple)) and not asked):
        of_protocol = fixed and norm == fixed["norm"]
        values["eps"] = [f"{value:g}" for value in fixed["eps"]] if of_protocol else list(DEFAULT_EPS[norm])
    values["eps"] = tuple(read_eps(values["eps"], norm))
    group = family.datasets if family else "embedded"
    for name in ("models", "datasets"):
        values[name] = values.get(name) or ((group,) if name == "datasets" else SETTINGS[name].default)
        SETTINGS[name].check(values[name])
    values["datasets"] = tuple(expand_groups(values["datasets"]))
    typed = values | {"eps": tuple(eps.typed for eps in values["eps"])}
    overrides = {key: typed[key] for key, value in fixed.items() if typed[key] != value}
    overrides |= {key: str(given[key]) for key, value in plain.items() if given.get(key, value) != value}
    return BenchPlan(**values, part=part, overrides=overrides)
