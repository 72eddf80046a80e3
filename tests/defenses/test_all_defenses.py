"""What holds for every defence that is registered."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from tiny_models import write_model
from torch import Tensor

from clipguard.attacks.recipes import Recipe
from clipguard.benchmark.defended import DefenseOfPlan
from clipguard.benchmark.plan import BenchPlan
from clipguard.core.errors import DefenseError
from clipguard.defenses.base import Backward, Classifier, Prompts, Purifier, View
from clipguard.defenses.classifiers import defend
from clipguard.defenses.methods import jpeg
from clipguard.defenses.registry import DEFENSES, parse_defenses, register_defense, source_sha256
from clipguard.models import load_model

NAMES, TEMPLATES = ["cat", "dog", "fire engine"], ["a photo of a {}.", "{}"]


@pytest.fixture(scope="module", params=["vit", "resnet", "timm", "tiny"])
def tower(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Prompts]:
    """A small CLIP model with a ViT, a ResNet or a ConvNeXt, and the embedded one."""
    folder: Path = tmp_path_factory.mktemp("models") / request.param
    spec = "tiny" if request.param == "tiny" else f"local-dir:{write_model(folder, request.param)}"
    loaded = load_model(spec)
    return loaded.classifier(NAMES, TEMPLATES), Prompts(loaded.model, loaded.tokenizer, NAMES, TEMPLATES)


def pixels(classifier: Classifier) -> torch.Tensor:
    assert classifier.image_size is not None
    generator = torch.Generator().manual_seed(0)
    return 0.1 + 0.8 * torch.rand(2, 3, *classifier.image_size, generator=generator)


@pytest.mark.parametrize("name", DEFENSES)
def test_it_runs_on_every_kind_of_tower(name: str, tower: tuple[torch.nn.Module, Prompts]) -> None:
    defense = parse_defenses(name)[0]
    defended = defend(tower[0], [defense], tower[1])
    x = pixels(defended)
    with torch.no_grad():
        wanted = defended.logits(x, View())
    assert wanted.shape == (2, len(NAMES))
    assert torch.isfinite(wanted).all()
    for backward in defense.backwards:
        leaf = x.clone().requires_grad_()
        logits = defended.logits(leaf, View(backward=backward))
        gradient = torch.autograd.grad(logits[:, 0].sum(), leaf)[0]
        torch.testing.assert_close(logits.detach(), wanted, rtol=1e-4, atol=1e-4)
        assert torch.isfinite(gradient).all(), backward
        assert gradient.flatten(1).norm(dim=1).min() > 0, backward


@pytest.mark.parametrize("name", DEFENSES)
def test_its_further_objectives_and_its_gate_run(name: str, tower: tuple[torch.nn.Module, Prompts]) -> None:
    defense = parse_defenses(name)[0]
    inner = defend(tower[0], [], tower[1])
    x = pixels(inner)
    for relaxation in defense.relaxations():
        leaf = x.clone().requires_grad_()
        logits = defense.relaxed(relaxation, inner, leaf, View())
        assert logits.shape == (2, len(NAMES))
        assert torch.isfinite(torch.autograd.grad(logits[:, 0].sum(), leaf)[0]).all()
    if defense.gated:
        flagged = defense.flagged(inner, x, View())
        assert (flagged.shape, flagged.dtype) == ((2,), torch.bool)


@pytest.mark.parametrize("name", DEFENSES)
def test_it_says_what_it_is(name: str) -> None:
    kind = DEFENSES[name]
    assert kind.name == name
    assert kind.summary
    assert len(kind.summary) < 80
    assert kind.backwards
    forward, backward = kind().cost(len(NAMES))
    assert forward >= 1
    assert backward >= 0
    documented = kind.__doc__ or ""
    assert all(f"{field.name}: " in documented for field in fields(kind))


def test_a_defence_that_lacks_what_it_says_it_has_is_refused() -> None:
    @dataclass(frozen=True)
    class Unwritten(Purifier):
        name: ClassVar[str] = "unwritten"
        summary: ClassVar[str] = "planted"

        def cost(self, classes: int) -> tuple[int, int]:  # noqa: ARG002
            return 1, 0

    with pytest.raises(DefenseError, match="Unwritten needs a method 'purify'"):
        register_defense(Unwritten)

    @dataclass(frozen=True)
    class Ungated(Unwritten):
        gated: ClassVar[bool] = True

        def purify(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:  # noqa: ARG002
            return x

    with pytest.raises(DefenseError, match="Ungated needs a method 'flagged'"):
        register_defense(Ungated)

    @dataclass(frozen=True)
    class Unrolled(Ungated):
        gated: ClassVar[bool] = False
        backwards: ClassVar[tuple[Backward, ...]] = ("identity", "unrolled")

    with pytest.raises(DefenseError, match="Unrolled needs a method 'differentiable'"):
        register_defense(Unrolled)

    @dataclass(frozen=True)
    class Relaxed(Ungated):
        gated: ClassVar[bool] = False

        def relaxations(self) -> tuple[str, ...]:
            return ("soft",)

    with pytest.raises(DefenseError, match="Relaxed needs a method 'relaxed'"):
        register_defense(Relaxed)
    assert "unwritten" not in DEFENSES


def test_an_edited_defence_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As stored results are concerned."""
    monkeypatch.syspath_prepend(tmp_path)
    text = inspect.getsource(jpeg).replace('"jpeg"', '"edited"')
    (tmp_path / "edited_defence.py").write_text(text)
    edited = importlib.import_module("edited_defence").JPEG
    before = source_sha256(edited)
    assert before == hashlib.sha256(text.encode()).hexdigest()
    monkeypatch.setitem(DEFENSES, "edited", edited)
    plan = BenchPlan(("tiny",), defense="edited")
    assert DefenseOfPlan(plan, load_model).key(Recipe("none"))["sources"] == [before]
    assert "sources" not in DefenseOfPlan(replace(plan, defense="jpeg"), load_model).key(Recipe("none"))
    (tmp_path / "edited_defence.py").write_text(f"{text}\n")
    assert source_sha256(edited) != before
    lost = type("Lost", (edited,), {"name": "lost", "__module__": "nowhere"})
    with pytest.raises(DefenseError, match="is written in no file"):
        source_sha256(lost)
