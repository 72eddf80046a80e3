"""Fine-tuning on a GPU: every method runs there, resumes exactly, and agrees with the CPU where it should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import SMALL, write_images, write_vit

import clipguard
from clipguard.core.errors import FinetuneError
from clipguard.finetuning.data.batches import ImageBatch
from clipguard.finetuning.run import resume_finetune, run_finetune
from clipguard.finetuning.settings import resolve
from clipguard.finetuning.training.checkpoint import Checkpoints
from clipguard.finetuning.training.metrics import read_metrics
from clipguard.models.export import WEIGHTS_NAME

pytestmark = pytest.mark.gpu
METHODS = ["clean", "tecoa", "fare", "pmg-aft", "sim-clip", "trades"]
METHODS += [f"tima(text={mode})" for mode in ("head", "encoder", "free", "frozen", "laat")]


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A ViT and images; cuda is what "auto" finds."""
    model, dataset = write_vit(tmp_path / "vit"), write_images(tmp_path / "d")
    return {**SMALL, "model": model, "dataset": dataset, "preset": "none", "eval_every": 2}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_in_bfloat16_and_loads_on_the_cpu(
    method: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    run = clipguard.finetune(method, out=tmp_path / "out", **settings).run
    assert run["resolved"]["precision"] == "bfloat16"
    assert run["machine"]["device"] == "cuda"
    loaded = clipguard.load_model(f"local-dir:{tmp_path / 'out'}", device="cpu")
    assert all(p.dtype == torch.float32 for p in loaded.model.parameters())


def test_8_bit_pixels_are_divided_as_on_the_cpu() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    there, here = (ImageBatch(levels, None, [0]).to(torch.device(device)).pixels for device in ("cuda", "cpu"))
    assert torch.equal(there.cpu(), here)


@pytest.mark.parametrize(
    "extra",
    [
        {"lora": 2},
        {"ema": 0.5},
        {"wise_ft": 0.6},
        {"accumulate": 2},
        {"norm": "l2"},
        {"grad_checkpointing": True},
        {"compile": True},
        {"batch_size": "auto", "effective_batch": 8},
    ],
)
def test_options_work_there(extra: dict[str, Any], settings: dict[str, Any], tmp_path: Path) -> None:
    assert clipguard.finetune("tima", out=tmp_path / "out", **settings, **extra).run["complete"]


@pytest.mark.parametrize("method", ["tecoa", "trades", "tima"])
def test_the_first_step_in_float32_agrees_with_the_cpu(method: str, settings: dict[str, Any], tmp_path: Path) -> None:
    rows = []
    for device in ("cuda", "cpu"):
        given = {**settings, "steps": 1, "precision": "float32", "random_start": False, "val_fraction": 0.0}
        clipguard.finetune(method, out=tmp_path / device, device=device, **given)
        rows.append(read_metrics(tmp_path / device)[0])
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=1e-2)
    assert rows[0]["image_gradient"] == pytest.approx(rows[1]["image_gradient"], rel=5e-2)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_that_broke_off_ends_bit_identical(
    precision: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {**settings, "steps": 8, "precision": precision, "ema": 0.9, "save_every": 2}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    clipguard.finetune("tima", out=whole, **given)
    save = Checkpoints.save

    def break_off(self: Checkpoints, step: int, *args: Any) -> None:
        save(self, step, *args)
        if step == 4:
            raise FinetuneError("broken off")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", break_off)
        with pytest.raises(FinetuneError, match="broken off"):
            run_finetune(resolve({"method": "tima", **given}), broken, "")
    resume_finetune(broken)
    assert (broken / WEIGHTS_NAME).read_bytes() == (whole / WEIGHTS_NAME).read_bytes()


def test_tiny_gains_robust_accuracy_there(tmp_path: Path) -> None:
    """As on the CPU in test_finetune_cli.py, and `bench` in float32 counts what the run counted."""
    out = tmp_path / "tuned"
    run = clipguard.finetune("tima", out=out, steps=40, batch_size=48, eval_every=40, eval_samples=120).run
    before, after = (run["evaluation"]["scores"][who] for who in ("tiny", "fine-tuned"))
    assert before["robust"]["accuracy"] < 0.1
    assert after["robust"]["accuracy"] > before["robust"]["accuracy"] + 0.1
    bench = clipguard.bench(
        [f"local-dir:{out}"], ["emoji-animals"], ["8"], ["pgd-10"], n_samples=120, templates="single", device="cpu"
    )
    clean, robust = (cell.correct for cell in bench.cells)
    assert abs(clean - after["clean"]["correct"]) <= 1
    assert abs(robust - after["robust"]["correct"]) <= 3
    assert json.loads((out / "run.json").read_text())["machine"]["gpu"]
