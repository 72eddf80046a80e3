"""docs/extending.md: its example is an attack that runs and is as strong as it can be where that is known."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch

import clipguard
from clipguard.attacks.registry import register_attack

DOCS = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.mark.usefixtures("restored_registry")
@pytest.mark.parametrize("eps", [0.05, 0.15])
def test_the_example_finds_the_best_attack_on_a_linear_model(monkeypatch: pytest.MonkeyPatch, eps: float) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    module = types.ModuleType("mi_fgsm")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look annotations up there
    exec(compile(source, str(DOCS), "exec"), module.__dict__)
    register_attack(module.MIFGSM)

    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2, bias=False)).eval()
    weight = torch.linspace(-1, 1, 12)
    model[1].weight.data = torch.stack([weight, -weight])
    images = torch.full((1, 3, 2, 2), 0.5)
    images += 0.1 * weight.sign().view(1, 3, 2, 2)  # robust up to 0.1 in linf: the margin is 2 (0.1 - eps) ||w||_1
    outcome = clipguard.attack(model, images, torch.tensor([0]), attack="mi-fgsm(iterations=20)", eps=eps)
    assert outcome.robust.tolist() == [eps < 0.1]
    if eps < 0.1:
        best = 2 * (0.1 - eps) * weight.abs().sum().item()
        assert outcome.outcomes[0].eps_outcomes[0].margin == pytest.approx(best, rel=1e-4)
