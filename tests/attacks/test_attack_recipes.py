"""Attack names: every form that is documented, and every mistake with its message."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest

from clipguard.attacks.base import Attack
from clipguard.attacks.methods.apgd import APGD, APGDDLR, APGDTargeted
from clipguard.attacks.methods.fab import FABTargeted
from clipguard.attacks.methods.pgd import CW, FGSM, PGD
from clipguard.attacks.methods.square import Square
from clipguard.attacks.recipes import parse_recipe
from clipguard.attacks.registry import ATTACKS, SUITES, attack_class, register_attack, summaries
from clipguard.core.errors import AttackError


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("none", ()),
        ("fgsm", (FGSM(),)),
        ("pgd-10", (PGD(iterations=10),)),
        ("pgd(iterations=10)", (PGD(iterations=10),)),
        ("pgd-100(restarts=2, step_size=0.1, random_start=false)", (PGD(100, 2, 0.1, False),)),
        ("pgd-10(step-size=1)", (PGD(10, step_size=1),)),
        ("cw-20", (CW(iterations=20),)),
        ("apgd-ce", (APGD(),)),
        ("apgd-ce(iterations=50,restarts=2)", (APGD(iterations=50, restarts=2),)),
        ("apgd-dlr()", (APGDDLR(),)),
        ("apgd-t(targets=3)", (APGDTargeted(targets=3),)),
        ("fab-t", (FABTargeted(),)),
        ("square(queries=300)", (Square(queries=300),)),
        ("autoattack-fast", (APGD(), APGDTargeted())),
        ("autoattack", (APGD(), APGDTargeted(), FABTargeted(), Square())),
        ("  PGD-10 ( Restarts = 2 ) ", (PGD(iterations=10, restarts=2),)),
        ("apgd-ce(restarts=5)+apgd-t", (APGD(restarts=5), APGDTargeted())),
        ("pgd-2 + autoattack-fast", (PGD(2), APGD(), APGDTargeted())),
        ("pgd-2(step_size=1e+0)", (PGD(2, step_size=1),)),
    ],
)
def test_documented_forms(text: str, stages: tuple[Attack, ...]) -> None:
    recipe = parse_recipe(text)
    assert recipe.stages == stages
    assert recipe.eot == 1
    assert recipe.name == text.strip()


def test_eot_belongs_to_the_recipe() -> None:
    assert parse_recipe("autoattack(eot=4)").eot == 4
    recipe = parse_recipe("pgd-3(eot=20,restarts=2)")
    assert recipe.eot == 20
    assert recipe.stages == (PGD(3, 2),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not of the form"),
        ("pgd-2+", "not of the form"),
        ("pgd-2+none", "cannot be none"),
        ("pgd-2+apgd-ce(eot=2)", "or have eot"),
        ("pgd-2+apgd", "Unknown attack 'apgd'"),
        ("10-pgd", "not of the form"),
        ("pgd-10(restarts=2", "not of the form"),
        ("pgd", r"needs a step count: pgd-10"),
        ("cw(restarts=2)", r"needs a step count: cw-10"),
        ("pgd-10(iterations=20)", "step count twice"),
        ("pgd-0", "iterations must be a whole number of at least 1"),
        ("apgd", r"Unknown attack 'apgd'\. Did you mean '.*apgd-.*'\? `clipguard list attacks`"),
        ("autoatack", r"Did you mean 'autoattack'"),
        ("zzz", r"Unknown attack 'zzz'\. `clipguard list attacks`"),
        ("apgd-ce-50", "Unknown attack"),
        ("autoattack-10", "Unknown attack"),
        ("autoattack(restarts=2)", r"Suite 'autoattack' has no option 'restarts'"),
        ("apgd-ce(steps=3)", r"has no option 'steps'; it has iterations, restarts\."),
        ("apgd-ce(targets=3)", r"has no option 'targets'"),
        ("square(iterations=3)", r"has no option 'iterations'; it has queries, restarts\."),
        ("apgd-ce(restarts)", r"cannot read 'restarts'; write option=value"),
        ("apgd-ce(restarts=two)", "restarts must be a whole number of at least 1"),
        ("apgd-ce(restarts=)", "cannot read"),
        ("apgd-ce(restarts=__import__)", "cannot read"),
        ("apgd-ce(restarts=2,restarts=3)", "cannot read 'restarts=3'; write option=value, each once"),
        ("apgd-ce(restarts=0)", "restarts must be a whole number of at least 1"),
        ("apgd-ce(restarts=1.5)", "restarts must be a whole number"),
        ("apgd-ce(restarts=true)", "restarts must be a whole number"),
        ("apgd-ce(eot=0)", "eot must be a whole number"),
        ("pgd-10(step_size=0)", "step_size is a fraction of eps, above 0 and at most 2"),
        ("pgd-10(step_size=3)", "step_size"),
        ("pgd-10(step_size=true)", "step_size"),
        ("pgd-10(random_start=1)", "random_start must be true or false"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(AttackError, match=message):
        parse_recipe(text)


def test_parameters_are_complete_and_plain() -> None:
    parameters = parse_recipe("autoattack").parameters()
    assert json.loads(json.dumps(parameters)) == {
        "name": "autoattack",
        "eot": 1,
        "stages": [
            {"attack": "apgd-ce", "iterations": 100, "restarts": 1},
            {"attack": "apgd-t", "iterations": 100, "restarts": 1, "targets": 9},
            {"attack": "fab-t", "iterations": 100, "restarts": 1, "targets": 9},
            {"attack": "square", "queries": 5000, "restarts": 1},
        ],
    }
    assert parse_recipe("pgd-7").parameters()["stages"][0]["attack"] == "pgd-7"


def test_everything_is_described() -> None:
    names = {kind().full_name for kind in ATTACKS.values()} | set(SUITES)
    assert {name.replace("-10", "-K") for name in names} == set(summaries())
    assert all(parse_recipe(name) for name in names)


def test_runs_an_image() -> None:
    assert APGDTargeted(restarts=2).runs(1000) == 18
    assert APGDTargeted().runs(4) == 3
    assert FABTargeted().runs(2) == 1
    assert APGD(restarts=3).runs(10) == 3


def test_fgsm_has_no_options_but_all_its_parameters_are_stored() -> None:
    with pytest.raises(AttackError, match="iterations"):
        parse_recipe("fgsm(iterations=5)")
    (stage,) = parse_recipe("fgsm").parameters()["stages"]
    assert stage == {"attack": "fgsm", "iterations": 1, "restarts": 1, "step_size": 1.0, "random_start": False}


@pytest.mark.usefixtures("restored_registry")
def test_one_more_attack_can_be_registered_and_no_name_is_taken_twice() -> None:
    @register_attack
    @dataclass(frozen=True)
    class Twice(PGD):
        name: ClassVar[str] = "pgd-twice"
        steps_in_name: ClassVar[bool] = False
        restarts: int = 2

    (stage,) = parse_recipe("pgd-twice(iterations=5)").stages
    assert stage == Twice(iterations=5)
    assert attack_class(stage.full_name) is Twice
    assert summaries()["pgd-twice"] == PGD.summary
    assert register_attack(Twice) is Twice  # again
    for name in ("pgd", "pgd-twice", "autoattack"):
        with pytest.raises(AttackError, match=f"{name}.* already"):
            register_attack(type("Other", (PGD,), {"name": name}))
    for name in ("pgd-10", "PGD+", "my attack"):
        with pytest.raises(AttackError, match="no name of an attack"):
            register_attack(type("Other", (PGD,), {"name": name}))


def test_the_class_of_a_name_in_results() -> None:
    assert attack_class("pgd-10") is PGD
    assert attack_class("apgd-t") is APGDTargeted
    assert attack_class("fgsm-3") is attack_class("deepfool") is None
