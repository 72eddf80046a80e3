"""A step: what it waits for, what it keeps in memory, how it is divided, and that it can be compiled."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from host_waits import host_waits
from torch import Tensor
from training_runs import make_config, make_trainer, write_vit

import clipguard
from clipguard.core.errors import FinetuneError
from clipguard.core.progress import Silent
from clipguard.finetuning.data.batches import ImageBatch, load_batches
from clipguard.finetuning.run import resume_finetune, run_finetune
from clipguard.finetuning.settings import resolve
from clipguard.finetuning.training import fitting
from clipguard.finetuning.training.checkpoint import Checkpoints
from clipguard.finetuning.training.metrics import read_metrics
from clipguard.finetuning.training.step import Step
from clipguard.finetuning.training.trainer import Trainer
from clipguard.models.export import WEIGHTS_NAME

METHODS = ["clean", "tecoa", "fare", "pmg-aft", "sim-clip", "trades", "tima(attack_loss=margin)", "tima(text=encoder)"]
METHODS += ["comp-tga", "saft", "laat", "agft"]
State = dict[str, Tensor]
EXACT = {"optimizer": "sgd", "lr": 0.01}  # Adam magnifies rounding


def state(trainer: Trainer) -> State:
    return {name: value.clone() for name, value in trainer.trained_model().state_dict().items()}


def largest_difference(one: State, other: State) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def trained(model: str, dataset: str, out: Path, **settings: Any) -> State:
    """The model's state after a run."""
    trainer = make_trainer(make_config(model, dataset, **settings), out)
    trainer.settle(None)
    trainer.train(Silent(), 0)
    return state(trainer)


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(out) if "loss" in row]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_waits_for_no_number(method: str, norm: str, vit: str, images: str, tmp_path: Path) -> None:
    given = {"method": method, "norm": norm, "eps": "1", "ema": 0.9, "grad_clip": 1.0, "batch_size": 2}
    trainer = make_trainer(make_config(vit, images, effective_batch=4, **given), tmp_path)
    batches = load_batches(trainer.images, trainer.sampler, 0)
    trainer.model.train()
    with host_waits() as found:
        for _ in range(2):
            trainer._step(batches)
        assert found == []
        trainer.metrics.flush()  # as is done every tenth step
        assert len(found) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_a_step_waits_for_no_number_on_cuda(method: str, vit: str, images: str, tmp_path: Path) -> None:
    given = {"method": method, "ema": 0.9, "grad_clip": 1.0, "device": "cuda"}
    trainer = make_trainer(make_config(vit, images, **given), tmp_path)
    batches = load_batches(trainer.images, trainer.sampler, 1)
    trainer.model.train()
    trainer._step(batches)  # allocates
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer._step(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def kept(trainer: Trainer) -> int:
    """Bytes that autograd keeps of one pass for its backward pass, weights aside and no tensor twice."""
    weights = {p.data_ptr() for p in trainer.model.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            seen[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    trainer.model.train()
    batch = next(load_batches(trainer.images, trainer.sampler, 0)).to(torch.device("cpu"))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        trainer.model(batch.pixels)
    return sum(seen.values())


def test_checkpointing_gives_the_same_numbers_in_less_memory(images: str, tmp_path: Path) -> None:
    model = write_vit(tmp_path / "deep", layers=6)
    given = {"method": "trades", "ema": 0.5, **EXACT}  # a graph is kept across the attack
    plain = trained(model, images, tmp_path / "plain", **given)
    saving = trained(model, images, tmp_path / "saving", grad_checkpointing=True, **given)
    assert losses(tmp_path / "plain") == pytest.approx(losses(tmp_path / "saving"), rel=1e-6)
    assert largest_difference(plain, saving) < 1e-6
    without, with_it = (
        kept(make_trainer(make_config(model, images, grad_checkpointing=on, **given), tmp_path / f"memory-{on}"))
        for on in (False, True)
    )
    assert with_it < without / 3


def test_checkpointing_goes_with_low_rank_changes_and_last_layers(vit: str, images: str, tmp_path: Path) -> None:
    for number, given in enumerate(({"lora": 2}, {"train": "last-2"})):
        plain, saving = (
            trained(vit, images, tmp_path / f"{number}-{on}", grad_checkpointing=on, **given, **EXACT)
            for on in (False, True)
        )
        assert largest_difference(plain, saving) < 1e-6


def test_a_tower_without_blocks_cannot_be_checkpointed(images: str, tmp_path: Path) -> None:
    model = write_vit(tmp_path / "rn", layers=[1, 1, 1, 1], width=8, image_size=32, patch_size=None)
    with pytest.raises(FinetuneError, match=r"^`grad_checkpointing`: open_clip cannot do it for ModifiedResNet"):
        make_trainer(make_config(model, images, grad_checkpointing=True), tmp_path / "out")


@pytest.mark.parametrize("method", ["tecoa", "fare", "trades", "pmg-aft", "tima", "tima(text=encoder)", "sim-clip"])
def test_a_step_in_parts_is_the_step(method: str, vit: str, images: str, tmp_path: Path) -> None:
    """Of unequal parts, too: 6 images as 4 and 2."""
    given = {"method": method, "steps": 2, "norm": "l2", "eps": "1", **EXACT}  # a sign magnifies rounding, too
    whole = trained(vit, images, tmp_path / "whole", batch_size=6, **given)
    parts = trained(vit, images, tmp_path / "parts", batch_size=4, effective_batch=6, **given)
    assert largest_difference(whole, parts) < 5e-6
    assert losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "parts"), rel=1e-4)


def test_auto_keeps_the_step_of_what_is_below_it() -> None:
    preset = {"method": "tecoa", "preset": "paper", "model": "ViT-B-32:openai"}
    asked = resolve(preset).batch_size
    config = resolve({**preset, "batch_size": "auto"})
    assert (config.batch_size, config.effective_batch) == (None, asked)
    config = resolve({**preset, "batch_size": "auto", "accumulate": 3}, {"batch_size": 50})
    assert (config.effective_batch, config.accumulate) == (150, 1)
    assert resolve({"batch_size": "auto"}).effective_batch == 64  # tiny
    assert resolve({"batch_size": "auto", "effective_batch": 100}).effective_batch == 100


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"effective_batch": 8, "accumulate": 2}, "either `effective_batch` or `accumulate`"),
        ({"effective_batch": 0}, "`effective_batch` must be a whole number of at least 1"),
        ({"batch_size": "auto", "method": "pmg-aft(variant=repository)"}, "loss is no mean over images"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    given: dict[str, Any], said: str, vit: str, images: str, tmp_path: Path
) -> None:
    with pytest.raises(FinetuneError, match=said):
        make_trainer(make_config(vit, images, **given), tmp_path)


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for passes of three images."""
    gradient = Step._part

    def limited(self: Step, part: ImageBatch, *args: Any) -> Any:
        if len(part.pixels) > 3:
            raise RuntimeError("CUDA out of memory.")
        return gradient(self, part, *args)

    monkeypatch.setattr(Step, "_part", limited)


@pytest.mark.usefixtures("small_memory")
def test_parts_are_halved_until_they_fit(
    vit: str, images: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = {"val_fraction": 0.0, "model": vit, "dataset": images, "preset": "none", "steps": 2, "attack_steps": 1}
    given |= {"evaluation": False}
    with caplog.at_level(logging.WARNING, "clipguard"):
        run = clipguard.finetune("tecoa", out=tmp_path / "a", batch_size="auto", effective_batch=8, **given).run
    warned = [r.message for r in caplog.records if r.name == "clipguard" and r.levelno == logging.WARNING]
    assert warned == [f"Out of memory with {n} images a pass; going on with {n // 2}." for n in (8, 4)]
    assert (run["resolved"]["images_per_step"], run["resolved"]["micro_batch"]) == (8, 2)
    clipguard.finetune("tecoa", out=tmp_path / "b", batch_size=2, effective_batch=8, **given)
    assert (tmp_path / "a" / WEIGHTS_NAME).read_bytes() == (tmp_path / "b" / WEIGHTS_NAME).read_bytes()
    with pytest.raises(FinetuneError, match=r"Out of memory with `batch_size=4`: `batch_size=auto` divides"):
        clipguard.finetune("tecoa", out=tmp_path / "c", batch_size=4, **given)


def test_a_resumed_run_goes_on_with_the_passes_that_it_found(
    vit: str, images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "fitting_batch_size", lambda *_: 3)
    given = {"method": "tecoa", "model": vit, "dataset": images, "preset": "none", "evaluation": False, "save_every": 2}
    given |= {"batch_size": "auto", "effective_batch": 8, "steps": 4, "attack_steps": 1, "val_fraction": 0.0}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_finetune(resolve(given), whole, "")
    break_off(given, broken, monkeypatch)
    monkeypatch.setattr(fitting, "fitting_batch_size", lambda *_: 5)
    resume_finetune(broken)
    assert (broken / WEIGHTS_NAME).read_bytes() == (whole / WEIGHTS_NAME).read_bytes()
    assert json.loads((broken / "run.json").read_text())["resolved"]["micro_batch"] == 3


def break_off(given: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ends with its first checkpoint."""
    save = Checkpoints.save

    def saved(self: Checkpoints, *args: Any) -> None:
        save(self, *args)
        raise FinetuneError("broken off")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", saved)
        with pytest.raises(FinetuneError, match="broken off"):
            run_finetune(resolve(given), out, "")


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_tower_trains_the_same_resumes_and_leaves_plain_weights(
    vit: str, images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given: dict[str, Any] = {"method": "tecoa", "model": vit, "dataset": images, "preset": "none", "evaluation": False}
    given |= {"batch_size": 4, "steps": 4, "attack_steps": 1, "save_every": 2, "val_fraction": 0.0, **EXACT}
    run_finetune(resolve(given), tmp_path / "plain", "")
    with caplog.at_level(logging.WARNING, "clipguard"):
        break_off({**given, "compile": True}, tmp_path / "compiled", monkeypatch)
        resume_finetune(tmp_path / "compiled")
    assert not [r for r in caplog.records if r.name == "clipguard" and r.levelno >= logging.WARNING]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    states = [clipguard.load_model(f"local-dir:{tmp_path / name}").model.state_dict() for name in ("plain", "compiled")]
    assert largest_difference(*states) < 1e-5
    assert losses(tmp_path / "plain") == pytest.approx(losses(tmp_path / "compiled"), rel=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_tower_computes_activations_twice_where_asked(
    vit: str, images: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given: dict[str, Any] = {"steps": 2, "attack_steps": 1, **EXACT}
    plain = trained(vit, images, tmp_path / "plain", **given)
    config = make_config(vit, images, compile=True, grad_checkpointing=True, **given)
    trainer = make_trainer(config, tmp_path / "both")
    with caplog.at_level(logging.WARNING, "clipguard"):
        trainer.settle(None)
        trainer.train(Silent(), 0)
    assert not [r for r in caplog.records if r.name == "clipguard" and r.levelno >= logging.WARNING]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    without = kept(make_trainer(make_config(vit, images, **given), tmp_path / "memory"))
    with trainer.model.image.through(trainer.step.tower):
        assert kept(trainer) < without / 4
    assert largest_difference(plain, state(trainer)) < 1e-5
    assert losses(tmp_path / "plain") == pytest.approx(losses(tmp_path / "both"), rel=1e-4)


@pytest.mark.usefixtures("fresh_compiler")
def test_without_a_working_compiler_training_goes_on(
    vit: str, images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compile_as_usual = torch.compile

    def without_backend(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        def refuse(*_: Any) -> Any:
            raise OSError("no compiler")

        return compile_as_usual(function, backend=refuse, **options)

    plain = trained(vit, images, tmp_path / "plain")
    monkeypatch.setattr(torch, "compile", without_backend)
    with caplog.at_level(logging.WARNING, "clipguard"):
        compiled = trained(vit, images, tmp_path / "compiled", compile=True)
    (message,) = [record.message for record in caplog.records if record.name == "clipguard"]
    assert "going on without `compile`" in message
    assert largest_difference(plain, compiled) == 0


@pytest.mark.gpu
def test_passes_on_cuda_are_as_large_as_fit(vit: str, images: str, tmp_path: Path) -> None:
    given = {"device": "cuda", "batch_size": "auto", "effective_batch": 5000}
    trainer = make_trainer(make_config(vit, images, **given), tmp_path)
    trainer.settle(None)
    assert 64 < (trainer.step.rows or 0) <= 1024
    assert all(p.grad is None for p in trainer.model.parameters())
