"""Defences from Python: they are what `bench` measures, and what cannot stand there is told in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from planted_defenses import Brighter, Mirror, Noise

import clipguard
from clipguard import ClipguardError
from clipguard.defenses.methods.jpeg import JPEG

MEANS = [0.53, 0.47, 0.9]
IMAGES = torch.stack([torch.full((3, 8, 8), mean) for mean in MEANS])
HOW: dict[str, Any] = {"eps": 0.05, "attack": "apgd-ce(iterations=10)+square(queries=20)"}


def attack(**options: Any) -> clipguard.AttackResult:
    return clipguard.attack(Brighter().eval(), IMAGES, options.pop("labels", [0, 1, 0]), **{**HOW, **options})


def test_an_attack_of_who_knows_the_defence_breaks_what_others_cannot() -> None:
    assert attack(defense=Mirror(), threat="transfer").robust.tolist() == [True, True, True]
    adaptive = attack(defense=Mirror())
    assert adaptive.robust.tolist() == [False, False, True]
    assert adaptive.attack == "apgd-ce(iterations=10)+square(queries=20), adaptive on mirror"
    assert adaptive.broken_by[0] == "apgd-ce (unrolled)"
    assert attack(defense=[Mirror(), Mirror()], labels=[1, 0, 1]).robust.tolist() == [False, False, True]


def test_it_is_what_bench_measures() -> None:
    how: dict[str, Any] = {"defense": "random-resize", "votes": 3, "draws": 2, "n_samples": 6}
    rows = clipguard.bench("tiny", "emoji-food", "4", "pgd-2", probes=False, threats="transfer,adaptive", **how).samples
    for threat in ("transfer", "adaptive"):
        frame = clipguard.attack("tiny", "emoji-food", eps="4", attack="pgd-2", threat=threat, **how).to_frame()
        here = rows[rows["attack"] == threat]
        assert list(frame["adv_pred"]) == list(here["adv_pred"])
        assert list(frame["broken_by"].fillna("")) == list(here["broken_by"].fillna(""))


def test_options_of_objects_are_in_the_name() -> None:
    result = clipguard.attack("tiny", "emoji-food", eps="4", attack="pgd-2", n_samples=2, defense=[JPEG(50), JPEG()])
    assert result.attack == "pgd-2, adaptive on jpeg(quality=50)+jpeg"
    named = clipguard.attack(
        "tiny", "emoji-food", eps="4", attack="pgd-2", n_samples=2, defense=["jpeg(quality=50)", JPEG()]
    )
    assert torch.equal(named.x_adv, result.x_adv)
    assert named.attack == result.attack


@pytest.mark.usefixtures("short_square")
def test_the_doctor_examines_the_defence_too() -> None:
    model, labels = Brighter().eval(), [1, 0, 1]
    plain = clipguard.doctor(model, IMAGES, labels, eps=0.01, attack="pgd-2")
    defended = clipguard.doctor(model, IMAGES, labels, eps=0.01, attack="pgd-2", defense=Noise(), votes=3, draws=2)
    new = [finding.id for finding in defended if finding.id not in {finding.id for finding in plain}]
    assert new == ["defense-labels", "defense-gate", "defense-gradient"]


def test_a_model_without_gradients_is_told() -> None:
    with torch.inference_mode():
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2)).eval()
    with pytest.raises(ClipguardError, match=r"made inside torch.inference_mode"):
        clipguard.attack(model, IMAGES, [0, 1, 0], **HOW)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"defense": "tcc"}, "Did you mean 'ttc'"),
    "no defence": ({"defense": 3}, "`defense` must be a name such as 'ttc', a defence .*, not 3"),
    "none at all": ({"defense": []}, "`defense` must be a name"),
    "embeddings": ({"defense": "clipure-cos"}, "it needs a CLIP model's embeddings"),
    "text": ({"defense": "r-tpt"}, "`defense`"),
    "even votes": ({"defense": "jpeg", "votes": 4}, "`votes` must be odd"),
    "no votes": ({"defense": "jpeg", "votes": -1}, "`votes` must be at least 1"),
    "no draws": ({"defense": "jpeg", "draws": 0}, "`draws` must be at least 1"),
    "threat": ({"defense": "jpeg", "threat": "adaptiv"}, "Did you mean 'adaptive'"),
    "nested": ({"defense": "jpeg", "eps_mode": "nested"}, "eps_mode=nested"),
    "threat without": ({"threat": "transfer"}, "`threat` is for defended models"),
    "votes without": ({"votes": 3}, "`votes` is for defended models"),
    "draws without": ({"draws": 2}, "`draws` is for defended models"),
    "queries alone": ({"defense": "jpeg", "attack": "square"}, "uses no gradients"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_stand_there(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ClipguardError, match=message) as caught:
        attack(**options)
    assert "\n" not in str(caught.value)
