"""Methods by name, their mistakes, and their presets."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import pytest

from clipguard.core.errors import FinetuneError
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.methods import registry
from clipguard.finetuning.methods.base import Method
from clipguard.finetuning.methods.classes.pmg_aft import PMGAFT
from clipguard.finetuning.methods.classes.tecoa import TeCoA
from clipguard.finetuning.methods.classes.tima import TIMA
from clipguard.finetuning.methods.embeddings.fare import FARE
from clipguard.finetuning.methods.registry import METHODS, parse_method, register_method
from clipguard.finetuning.settings import resolve


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("tima", TIMA()),
        (" TIMA( margin_mode=similarity, lam_mhe=2 ) ", TIMA(margin_mode="similarity", lam_mhe=2)),
        (
            "tima(text=encoder,text-lr=1e-5,schedule=iat_first)",
            TIMA(text="encoder", text_lr=1e-5, schedule="iat_first"),
        ),
        ("tecoa()", TeCoA()),
        ("fare(clean_weight=0.5)", FARE(clean_weight=0.5)),
        ("pmg-aft(variant=repository)", PMGAFT(variant="repository")),
    ],
)
def test_documented_forms(text: str, method: Method) -> None:
    assert parse_method(text) == method


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Method '': not of the form NAME or NAME"),
        ("tima(", "not of the form"),
        ("tima(margin)", r"cannot read 'margin'; write option=value, each once, as in tima\(lam_mhe=2"),
        ("tima(margin=[1])", r"cannot read 'margin=\[1\]'"),
        ("teco", "Unknown method 'teco'. Did you mean 'tecoa'"),
        ("zzz", "Unknown method 'zzz'. Known are tima, tecoa, fare"),
        ("tima(lam_mhi=1)", "'tima' has no option 'lam_mhi'. Did you mean 'lam_mhe'.* It has text, text_lr,"),
        ("tecoa(beta=1)", "'tecoa' has no option 'beta'. It has none"),
        ("tima(name=1)", "has no option 'name'"),
        ("tima(margin_mode=up)", "margin_mode must be distance or similarity or constant or none, not up"),
        ("tima(text=1)", "text must be frozen or head"),
        ("tima(lam_mhe=-1)", "lam_mhe must be a number of at least 0, not -1"),
        ("tima(lam_mhe=much)", "lam_mhe must be a number of at least 0, not much"),
        ("tima(lam_mhe=true)", "lam_mhe must be a number"),
        ("tima(lam_mhe=nan)", "lam_mhe must be a number"),
        ("tima(text_lr=inf)", "text_lr must be a number"),
        ("tima(alpha=0)", "alpha must be above 0"),
        ("fare(clean_weight=1.5)", "clean_weight is a share"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(FinetuneError, match=message):
        parse_method(text)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_describes_itself(name: str) -> None:
    method = parse_method(name)
    assert type(method) is METHODS[name]
    assert method.name == name
    assert method.summary
    assert "\n" not in method.summary
    assert bool(method.citation) == (name != "clean")


def test_a_method_of_ones_own_is_registered_under_a_name_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "METHODS", dict(METHODS))

    @register_method
    @dataclass(frozen=True)
    class Heavy(TeCoA):
        name: ClassVar[str] = "heavy"
        weight: float = 2.0

    assert parse_method("heavy(weight=3)") == Heavy(3)  # type: ignore[call-arg]
    with pytest.raises(FinetuneError, match="There is a method 'heavy' already; give Other another name"):
        register_method(type("Other", (TeCoA,), {"name": "heavy"}))
    for name in ("Heavy", "heavy(2)", ""):
        with pytest.raises(FinetuneError, match="is no name of a method"):
            register_method(type("Other", (TeCoA,), {"name": name}))


PRESETS = [(name, preset) for name, kind in METHODS.items() for preset in kind.presets]


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_presets_are_settings_of_the_trainer(name: str, preset: str) -> None:
    settings = METHODS[name].presets[preset]
    assert set(settings) <= {field.name for field in fields(FinetuneConfig)}
    config = resolve({"method": name, "preset": preset})  # checked there
    assert {key: getattr(config, key) for key in settings} == settings


def test_published_settings() -> None:
    """As in the published code: https://github.com/cvlab-columbia/ZSRobust4FoundationModel, chs20/RobustVLM."""
    tecoa, fare = TeCoA.presets["paper"], FARE.presets["paper"]
    assert (tecoa["optimizer"], tecoa["lr"], tecoa["epochs"], tecoa["eps"], tecoa["attack_steps"]) == (
        "sgd",
        1e-5,
        10,
        1,
        2,
    )
    assert (fare["optimizer"], fare["lr"], fare["steps"], fare["eps"], fare["attack_steps"]) == (
        "adamw",
        1e-5,
        20_000,
        4,
        10,
    )
    assert TeCoA.presets["robustvlm"] == fare
    assert PMGAFT.presets["paper"] == {**tecoa, "lr": 5e-5}
