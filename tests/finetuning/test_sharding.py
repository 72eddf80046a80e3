"""A tower that is divided among processes learns what a whole one does, and its checkpoints are whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from process_runs import train_all
from test_processes import SOME, assert_same_curves, runs
from tiny_models import CONFIGS, write_model
from training_runs import make_config

from clipguard.cli import run
from clipguard.core.errors import FinetuneError
from clipguard.finetuning.data.sampler import ResumableBatchSampler
from clipguard.finetuning.planning import plan_finetune
from clipguard.finetuning.processes.launch import LAUNCH_VARIABLES
from clipguard.finetuning.processes.sharding import blocks
from clipguard.finetuning.processes.team import Team
from clipguard.models import load_model

MORE: dict[str, Any] = {"batch_size": 8, "save_every": 10, "ema": 0.9, "grad_clip": 1.0}


def divided(given: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {**settings, "fsdp": True} for name, settings in given.items()}


def numbers(state: Any) -> list[torch.Tensor]:
    """The tensors of a checkpoint: weights, their moving average, momentum."""
    leaves, _ = torch.utils._pytree.tree_flatten({name: state[name] for name in ("student", "average", "optimizers")})
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def assert_same_checkpoints(one: Path, many: Path) -> None:
    ours, theirs = (torch.load(folder / "checkpoints/step-00000020.pt", weights_only=True) for folder in (one, many))
    assert ours["student"].keys() == theirs["student"].keys()
    assert ours["average"].keys() == theirs["average"].keys()
    for mine, other in zip(numbers(ours), numbers(theirs), strict=True):
        torch.testing.assert_close(other, mine, rtol=1e-4, atol=1e-5)


def test_losses_weights_average_and_momentum_are_those_of_one_process(vit: str, images: str, tmp_path: Path) -> None:
    given = runs(["tima", "fare"], vit, images, **MORE)
    one, two = train_all(given, 1, tmp_path / "1"), train_all(divided(given), 2, tmp_path / "2")
    for method in given:
        assert_same_curves(one[method], two[method])
        assert_same_checkpoints(tmp_path / "1" / method, tmp_path / "2" / method)


@pytest.mark.parametrize("back", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_checkpoint_goes_on_divided_or_whole(back: bool, vit: str, images: str, tmp_path: Path) -> None:
    """Two processes begin with a divided tower and one goes on; or the other way round."""
    given = runs(["tima"], vit, images, **MORE)
    whole = train_all(given, 1, tmp_path / "whole")
    first, then = ((given, 1), (divided(given), 2)) if back else ((divided(given), 2), (given, 1))
    train_all(*first, tmp_path / "parts", stop=12)
    assert [path.name for path in tmp_path.glob("parts/tima/checkpoints/*")] == ["step-00000010.pt"]
    parts = train_all(*then, tmp_path / "parts")
    assert_same_curves(whole["tima"], parts["tima"])
    assert_same_checkpoints(tmp_path / "whole/tima", tmp_path / "parts/tima")


@pytest.mark.slow
def test_every_method_and_setting(vit: str, images: str, tmp_path: Path) -> None:
    given = runs([*SOME, "tima(text=encoder)", "sim-clip(clean=tuned)"], vit, images, batch_size=8)
    plain = given["tecoa"]
    given |= {
        "parts": {**given["tima"], "batch_size": 4, "effective_batch": 8},
        "passes": {**plain, "batch_size": 4, "accumulate": 2},
        "lora": {**plain, "lora": 2, "grad_clip": 0.5, "ema": 0.9},
        "memory": {**plain, "grad_checkpointing": True},
        "last": {**plain, "train": "last-2"},
        "all": {**plain, "train": "all"},
        "adam": {**plain, "optimizer": "adamw", "lr": 1e-4},
    }
    one, two = train_all(given, 1, tmp_path / "1"), train_all(divided(given), 2, tmp_path / "2")
    for name in given:
        assert_same_curves(one[name], two[name])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["resnet", "timm", "coca"])
def test_other_towers(family: str, images: str, tmp_path: Path) -> None:
    given = runs(["fare"], f"local-dir:{write_model(tmp_path / family, family)}", images, batch_size=4)
    one, two = train_all(given, 1, tmp_path / "1"), train_all(divided(given), 2, tmp_path / "2")
    assert_same_curves(one["fare"], two["fare"])


@pytest.mark.parametrize(
    ("family", "found"),
    [
        ("vit", ["ResidualAttentionBlock"] * CONFIGS["vit"]["vision_cfg"]["layers"]),
        ("timm", ["ConvNeXtStage"] * 4),
        ("resnet", []),  # one bottleneck a layer: nothing is repeated
    ],
)
def test_blocks_are_what_a_tower_repeats(family: str, found: list[str], tmp_path: Path) -> None:
    model = load_model(f"local-dir:{write_model(tmp_path / family, family)}").model
    assert isinstance(model.visual, torch.nn.Module)
    names = [type(block).__name__ for block in blocks(model.visual)]
    assert [name for name in names if name in found or not found] == found


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "add --workers N"),
        (["--compile", "--workers", "2"], "leave --compile out"),
        (["--batch-size", "auto", "--workers", "2"], "give a number"),
        (["--plan"], "leave --fsdp out"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    more: list[str],
    said: str,
    vit: str,
    images: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in LAUNCH_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert run(["finetune", "--fsdp", "--model", vit, "--dataset", images, *more]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "Error" in line]
    assert said in line


def test_parts_of_a_batch_must_be_equal(vit: str, images: str) -> None:
    config = make_config(vit, images, batch_size=7, fsdp=True)
    with pytest.raises(FinetuneError, match=r"`batch_size=7` is shared by 2 processes: with `fsdp`"):
        ResumableBatchSampler.of_run(config, np.arange(8), Team(0, 2))
    with pytest.raises(FinetuneError, match=r"leave `fsdp` out"):
        plan_finetune(config)
