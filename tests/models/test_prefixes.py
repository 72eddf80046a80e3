"""Names as wrappers leave them: taken off wherever they are, and what is beside the model is named, never swallowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import visual
from tiny_models import reference_model, state_of

from clipguard.core.errors import ModelError
from clipguard.core.notices import Notice, noticing
from clipguard.models import load_model

State = dict[str, torch.Tensor]
Folder = Callable[[str], Path]


def load(path: Path, content: dict[str, Any], spec: str) -> tuple[State, list[Notice]]:
    torch.save(content, path)
    with noticing() as notices:
        return load_model(spec.replace("FILE", str(path))).model.state_dict(), notices


def inside(state: State, part: str, wrapper: str) -> State:
    return {name.replace(part, f"{part}{wrapper}."): tensor for name, tensor in state.items()}


def under(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


BLOCK = "resblocks.0."
WRAPPED: dict[str, Callable[[State], State]] = {
    "net": lambda state: under(state, "net."),
    "ema": lambda state: under(state, "ema."),
    "stacked": lambda state: under(state, "model.module._orig_mod.net.clip_model."),
    "fsdp": lambda state: under(inside(state, BLOCK, "_fsdp_wrapped_module"), "_fsdp_wrapped_module."),
    "fsdp inside only": lambda state: inside(state, BLOCK, "_fsdp_wrapped_module"),
    "checkpointed": lambda state: inside(state, BLOCK, "_checkpoint_wrapped_module"),
    "both": lambda state: inside(state, BLOCK, "_fsdp_wrapped_module._checkpoint_wrapped_module"),
    "compiled block": lambda state: under(inside(state, BLOCK, "_orig_mod"), "module."),
    "parallel tower": lambda state: inside(state, "visual.", "module"),
}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("tower", [False, True])
def test_wrappers_are_taken_off(
    name: str, tower: bool, architecture: str, vit_state: State, model_folder: Folder, tmp_path: Path
) -> None:
    base = model_folder("vit")
    given = visual(reference_model(base)) if tower else vit_state
    spec = f"FILE@local-dir:{base}" if tower else f"{architecture}:FILE"
    loaded, notices = load(tmp_path / "w.pt", WRAPPED[name](given), spec)
    assert all(torch.equal(tensor, loaded[key]) for key, tensor in vit_state.items())
    assert notices == []


def test_an_averaged_model_of_torch(model_folder: Folder, architecture: str, tmp_path: Path) -> None:
    model = reference_model(model_folder("vit"))
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    plain = {name.removeprefix("module."): tensor for name, tensor in average.state_dict().items()}
    for content in (average.state_dict(), {"epoch": 1, "state_dict": average.state_dict()}, plain):
        loaded, notices = load(tmp_path / "w.pt", content, f"{architecture}:FILE")
        assert all(torch.equal(tensor, loaded[key]) for key, tensor in state_of(model).items())
        assert [notice["kind"] for notice in notices] == ["skipped"]
        assert notices[0]["text"].endswith("left out: n_averaged (1 tensor outside the model)")
    tower = torch.optim.swa_utils.AveragedModel(model.visual).state_dict()
    loaded, notices = load(tmp_path / "w.pt", tower, f"FILE@local-dir:{model_folder('vit')}")
    assert "n_averaged" in notices[0]["text"]


def test_what_lightning_keeps_beside_the_model_is_left_out_and_named(
    architecture: str, vit_state: State, tmp_path: Path
) -> None:
    stray = {"head.weight": torch.zeros(3, 16), "head.bias": torch.zeros(3), "criterion.weight": torch.zeros(3)}
    content = {"state_dict": {**under(vit_state, "model."), **stray}, "epoch": 3}
    loaded, notices = load(tmp_path / "last.ckpt", content, f"{architecture}:FILE")
    assert all(torch.equal(tensor, loaded[key]) for key, tensor in vit_state.items())
    assert "left out: head.weight, head.bias, criterion.weight (3 tensors outside the model)" in notices[0]["text"]


def test_an_unknown_prefix_is_said(architecture: str, vit_state: State, tmp_path: Path) -> None:
    loaded, notices = load(tmp_path / "w.pt", under(vit_state, "student.backbone."), f"{architecture}:FILE")
    assert all(torch.equal(tensor, loaded[key]) for key, tensor in vit_state.items())
    assert [notice["kind"] for notice in notices] == ["translated"]
    assert "begin with 'student.backbone.'" in notices[0]["text"]


def test_nothing_of_the_model_is_dropped(architecture: str, vit_state: State, tmp_path: Path) -> None:
    """A part without the others' prefix is used; one too many, or one that is missing, is an error."""
    split = under(vit_state, "model.")
    split["text_projection"] = split.pop("model.text_projection")
    loaded, notices = load(tmp_path / "w.pt", split, f"{architecture}:FILE")
    assert torch.equal(loaded["text_projection"], vit_state["text_projection"])
    assert notices == []
    wrong = (
        ({**under(vit_state, "model."), "visual.extra": torch.zeros(1)}, "1 unexpected: visual.extra"),
        ({**vit_state, "head.weight": torch.zeros(1)}, "1 unexpected: head.weight"),
        ({k: v for k, v in under(vit_state, "net.").items() if "ln_final.bias" not in k}, "1 missing: ln_final.bias"),
    )
    for content, part in wrong:
        with pytest.raises(ModelError) as caught:
            load(tmp_path / "w.pt", content, f"{architecture}:FILE")
        assert part in str(caught.value)


def test_of_two_models_in_one_dictionary_the_model_is_meant_or_one_is_named(
    architecture: str, vit_state: State, tmp_path: Path
) -> None:
    other = {name: tensor + 1 for name, tensor in vit_state.items()}
    path = tmp_path / "w.pt"
    both = {**under(vit_state, "model."), **under(other, "ema_model."), "head.weight": torch.zeros(1)}
    torch.save(both, path)
    with noticing() as notices:
        loaded = load_model(f"{architecture}:{path}")
    assert "holds several models: used model, left out ema_model" in notices[0]["text"]
    assert "left out: others (1 tensors)" in loaded.info.detected
    assert torch.equal(loaded.model.state_dict()["ln_final.bias"], vit_state["ln_final.bias"])
    assert f"left out: ema_model ({len(other)} tensors)" in loaded.info.detected
    named = load_model(f"{architecture}:{path}#entry=ema_model")
    assert torch.equal(named.model.state_dict()["ln_final.bias"], other["ln_final.bias"])
    torch.save({**under(vit_state, "student."), **under(other, "teacher.")}, path)
    with pytest.raises(ModelError, match=r"several state dicts \(student, teacher\): name one.*#entry=student"):
        load_model(f"{architecture}:{path}")
    named = load_model(f"{architecture}:{path}#entry=teacher")
    assert torch.equal(named.model.state_dict()["ln_final.bias"], other["ln_final.bias"])
