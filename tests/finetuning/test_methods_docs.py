"""docs/methods.md: its example is a method that runs, and its tables name what there is."""

from __future__ import annotations

import re
import sys
import types
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from clipguard.finetuning.methods import registry
from clipguard.finetuning.methods.base import Batch, Method
from clipguard.finetuning.methods.registry import METHODS, parse_method, register_method

DOCS = Path(__file__).parents[2] / "docs" / "methods.md"


def test_the_example_is_a_complete_method(monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    module = types.ModuleType("cosine_consistency")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look annotations up there
    exec(compile(source, str(DOCS), "exec"), module.__dict__)
    kind = module.CosineConsistency
    assert issubclass(kind, Method)
    monkeypatch.setattr(registry, "METHODS", dict(METHODS))
    register_method(kind)

    method = parse_method("cosine-consistency(beta=2)")
    towers = torch.tensor([[0.0, 3.0]], requires_grad=True), torch.tensor([[1.0, 1.0]], requires_grad=True)
    batch = Batch(torch.eye(2), torch.eye(2), 1.0, torch.tensor([1]), adversarial=towers[0], clean=towers[1])
    terms = method.terms(batch, 0.0)
    assert terms["ce"].item() == pytest.approx(torch.tensor([0.0, 1.0]).logsumexp(0).item() - 1)
    assert terms["consistency"].item() == pytest.approx(2 * (1 - 0.5**0.5))
    assert method.needs(0.0) == {"labels", "clean", "adversarial"}
    assert method.text_mode() == "frozen"
    assert method.attack_objective(towers[0], batch).shape == (1,)


@pytest.mark.parametrize("name", METHODS)
def test_methods_options_and_presets_are_documented(name: str) -> None:
    text = DOCS.read_text(encoding="utf-8")
    rows = "".join(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
    assert rows
    assert all(preset in rows for preset in METHODS[name].presets)
    assert all(paper in rows for paper in re.findall(r"arXiv [\d.]+", METHODS[name].citation))
    assert all(f"`{field.name}`" in text for field in fields(METHODS[name]))
