"""RegMix beside any method: closed forms, reductions, where gradients flow, and what is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from training_runs import StopsAfter, make_config, make_trainer

from clipguard.cli import run
from clipguard.core.errors import FinetuneError
from clipguard.core.progress import Silent
from clipguard.finetuning.checks import check, method_of
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.data.batches import ImageBatch, load_batches
from clipguard.finetuning.methods.base import Batch, Method
from clipguard.finetuning.methods.captions.leaf import LEAF
from clipguard.finetuning.methods.classes.trades import TRADES
from clipguard.finetuning.methods.registry import METHODS, register_method
from clipguard.finetuning.methods.regularizers.base import Regularized
from clipguard.finetuning.methods.regularizers.registry import parse_regularizer
from clipguard.finetuning.methods.regularizers.regmix import RegMix
from clipguard.finetuning.run import resume_finetune, run_finetune
from clipguard.finetuning.training.metrics import read_metrics
from clipguard.finetuning.training.trainer import Trainer
from clipguard.models.export import WEIGHTS_NAME

P_FINAL, P_START, P_CLEAN = (0.8, 0.2), (0.5, 0.5), (0.1, 0.9)


def embedding(p: tuple[float, float]) -> Tensor:
    """(1, 2) of an image of which a model with unit text vectors e1, e2 and scale 10 says p."""
    difference = np.log(p[0] / p[1]) / 10  # cos a - sin a
    angle = np.arccos(difference / np.sqrt(2)) - np.pi / 4
    return torch.tensor([[np.cos(angle), np.sin(angle)]], dtype=torch.float64).requires_grad_()


def kl(p: tuple[float, float], q: tuple[float, float]) -> float:
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))


def by_hand(**more: Any) -> Batch:
    text = torch.eye(2, dtype=torch.float64)
    seen = {"adversarial": embedding(P_FINAL), "start": embedding(P_START), "clean": embedding(P_CLEAN)}
    return Batch(text, text, 10.0, torch.tensor([0]), **{**seen, **more})


def test_the_terms_are_the_divergences() -> None:
    terms = {name: value.item() for name, value in RegMix(2, 3, 5).terms(by_hand()).items()}
    assert terms == {
        "regmix_alpha": pytest.approx(2 * kl(P_FINAL, P_START)),
        "regmix_beta": pytest.approx(3 * kl(P_START, P_FINAL)),
        "regmix_gamma": pytest.approx(5 * kl(P_CLEAN, P_FINAL)),
    }
    jeffreys = torch.stack(list(RegMix(1, 1, 0).terms(by_hand()).values())).sum()
    assert jeffreys.item() == pytest.approx((0.8 - 0.5) * np.log(0.8 / 0.5) + (0.2 - 0.5) * np.log(0.2 / 0.5))
    swapped = by_hand(adversarial=embedding(P_START), start=embedding(P_FINAL))
    assert sum(v.item() for v in RegMix(1, 1, 0).terms(swapped).values()) == pytest.approx(jeffreys.item())  # symmetric
    same = by_hand(start=embedding(P_FINAL), clean=embedding(P_FINAL))
    assert [v.item() for v in RegMix().terms(same).values()] == pytest.approx([0, 0, 0], abs=1e-12)


@pytest.mark.parametrize("fixed", [True, False])
def test_gradients_reach_the_targets_only_where_asked_for(fixed: bool) -> None:
    batch = by_hand()
    torch.stack(list(RegMix(1, 0.5, 1, fixed).terms(batch).values())).sum().backward()
    assert batch.adversarial is not None
    assert batch.start is not None
    assert batch.clean is not None
    assert batch.adversarial.grad is not None
    assert (batch.start.grad is None) == (batch.clean.grad is None) == fixed


def test_only_what_has_a_weight_is_needed() -> None:
    assert RegMix(0, 0, 0).needs() == set()
    assert RegMix(0, 0, 0).terms(by_hand()) == {}
    assert RegMix(1, 0, 0).needs() == {"adversarial", "fixed_start"}
    assert RegMix(0, 1, 0, fixed=False).needs() == {"adversarial", "start"}
    assert RegMix(0, 0, 1).needs() == {"adversarial", "clean"}
    trades = TRADES()
    method = Regularized(trades, RegMix())
    assert method.needs(0.5) == method.all_needs() == {"labels", "adversarial", "clean", "fixed_start"}
    assert method.divisible()
    assert method.text_mode() == "frozen"
    assert parse_regularizer("regmix(alpha=2, fixed=false)") == RegMix(2, fixed=False)


def first_batch(trainer: Trainer) -> ImageBatch:
    return next(load_batches(trainer.images, trainer.sampler, 0)).to(torch.device("cpu"))


def test_the_start_is_where_the_attack_begins(vit: str, images: str, tmp_path: Path) -> None:
    trainer = make_trainer(make_config(vit, images, regularizer="regmix"), tmp_path)
    batch = first_batch(trainer)
    seen: list[Tensor] = []
    trainer.objective.attack(
        lambda x: (seen.append(x.detach().clone()), x.flatten(1).sum(1))[1], batch.pixels, batch.keys
    )
    start = trainer.objective.attack.start(batch.pixels, batch.keys)
    assert torch.equal(start, seen[0])
    assert 1 / 255 < float((start - batch.pixels).abs().max()) <= 8 / 255 + 1e-6
    terms = trainer.objective(trainer.model, batch, 0.0, trainer.model)
    given = terms.batch.start
    assert given is not None
    assert not given.requires_grad
    torch.testing.assert_close(given, trainer.model(start).detach())
    final, first = (F.log_softmax(terms.batch.logits(e), dim=1) for e in (terms.batch.adversarial, given))  # type: ignore[arg-type]
    expected = (final.exp() * (final - first)).sum(1).mean()
    torch.testing.assert_close(terms.losses["regmix_alpha"], expected)
    flowing = make_trainer(make_config(vit, images, regularizer="regmix(fixed=false)"), tmp_path / "2")
    other = flowing.objective(flowing.model, batch, 0.0, flowing.model).batch.start
    assert other is not None
    assert other.requires_grad


@pytest.mark.parametrize("method", ["tecoa", "tima", "fare", "clean"])
def test_without_weights_it_is_the_method(method: str, vit: str, images: str, tmp_path: Path) -> None:
    states = []
    for name, more in (("plain", None), ("none", "regmix(alpha=0,beta=0,gamma=0)"), ("some", "regmix")):
        trainer = make_trainer(make_config(vit, images, method, regularizer=more), tmp_path / name)
        trainer.train(Silent(), 0)
        states.append({n: value.clone() for n, value in trainer.model.state_dict().items()})
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not all(torch.equal(value, states[2][name]) for name, value in states[0].items())
    assert [set(row) for row in read_metrics(tmp_path / "plain")] == [
        set(row) for row in read_metrics(tmp_path / "none")
    ]
    assert {"regmix_alpha", "regmix_beta", "regmix_gamma", "attack"} <= set(read_metrics(tmp_path / "some")[0])


def test_beside_clean_training_its_clean_term_is_that_of_trades(vit: str, images: str, tmp_path: Path) -> None:
    """CE + gamma KL(clean || adversarial) with gradients through both; the attacks differ, so one is given."""
    one, other = (
        make_trainer(make_config(vit, images, method, regularizer=more), tmp_path / method)
        for method, more in (("trades", None), ("clean", "regmix(alpha=0,beta=0,gamma=6,fixed=false)"))
    )
    batch = first_batch(one)
    batch = batch._replace(adversarial=one.objective.attack.start(batch.pixels, batch.keys))
    losses = [torch.stack(list(t.objective(t.model, batch, 0.0, t.model).losses.values())).sum() for t in (one, other)]
    torch.testing.assert_close(*losses)
    gradients = [
        torch.autograd.grad(loss, t.model.image_parameters()) for loss, t in zip(losses, (one, other), strict=True)
    ]
    torch.testing.assert_close(*gradients)


def test_a_stopped_run_with_all_of_it_ends_with_the_bits_of_a_whole_one(vit: str, images: str, tmp_path: Path) -> None:
    given = {"evaluation": False, "val_fraction": 0.0, "save_every": 1, "awp": 0.01, "train": "svd", "lr": 0.01}
    config = make_config(vit, images, "fare", regularizer="regmix", noise=0.1, **given)
    run_finetune(config, tmp_path / "whole", "")
    with pytest.raises(KeyboardInterrupt):
        run_finetune(config, tmp_path / "stopped", "", StopsAfter(24 + 3))  # 24 images are read
    resume_finetune(tmp_path / "stopped")
    whole, stopped = ((tmp_path / n / WEIGHTS_NAME).read_bytes() for n in ("whole", "stopped"))
    assert whole == stopped
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "`fare` on singular values of the image tower with `regmix` at weights perturbed by 0.01" in card
    assert json.loads((tmp_path / "whole" / "run.json").read_text())["config"]["regularizer"] == "regmix"
    assert "regularizer" not in make_config(vit, images).to_dict()


def test_with_it_a_method_stays_what_it_is() -> None:
    """Among them what a method of prompts, or of captions, says of itself."""
    for name, kind in METHODS.items():
        given, alone = Regularized(kind(), RegMix()), kind()
        for says in ("text_mode", "prompt_design", "text_learning_rate", "divisible", "takes_prompts", "edits"):
            assert getattr(given, says)() == getattr(alone, says)(), (name, says)
        for says in ("images_meet", "sees_images"):
            assert getattr(given, says)() == getattr(alone, says)(), (name, says)
        assert given.reads_templates() == (alone.prompt_design() is None)  # it compares predictions of classes
        assert Regularized(kind(), RegMix(0, 0, 0)).reads_templates() == alone.reads_templates()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--regularizer", "regmx"], "Unknown regularizer 'regmx'. Did you mean 'regmix'? Known are regmix."),
        (["--regularizer", "regmix(delta=1)"], "Regularizer 'regmix' has no option 'delta'."),
        (["--regularizer", "regmix(alpha=-1)"], "regmix: alpha must be a number of at least 0, not -1."),
        (["--regularizer", "regmix", "--no-random-start"], "leave --random-start on, or give alpha=0,beta=0."),
    ],
)
def test_what_cannot_be_is_refused(options: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["-q", "finetune", *options]) == 2
    assert said in " ".join(capfd.readouterr().err.split())


def test_without_classes_it_is_refused(vit: str, images: str, tmp_path: Path) -> None:
    flat = Path(images) / "kind 0"
    assert check(make_config(vit, str(flat), "fare", regularizer="regmix"))[0].divisible()
    with pytest.raises(FinetuneError, match=r"^`regularizer=regmix` compares predictions, but .* has no classes here"):
        make_trainer(make_config(vit, str(flat), "fare", regularizer="regmix"), tmp_path)


def test_texts_get_no_gradient_of_fixed_terms_and_the_method_keeps_its_name() -> None:
    text = torch.nn.functional.normalize(torch.randn(3, 4), dim=1).requires_grad_()
    images = [torch.randn(2, 4, requires_grad=True) for _ in range(3)]
    batch = Batch(text, text.detach(), 10.0, torch.tensor([0, 1]), images[0], images[1], start=images[2])
    loss = torch.stack(list(parse_regularizer("regmix").terms(batch).values())).sum()
    assert torch.autograd.grad(loss, [images[0], text], allow_unused=True)[1] is None
    method = method_of(FinetuneConfig(method="trades", regularizer="regmix"))
    assert (method.name, method.needs_random_start) == ("trades", True)


@pytest.mark.parametrize("method", ["trades", "fap"])
def test_an_attack_that_would_not_move_is_refused(method: str) -> None:
    with pytest.raises(FinetuneError, match="no gradient at the clean image: leave `random_start` on"):
        method_of(FinetuneConfig(method=method, random_start=False))


def test_captions_that_would_not_be_read_are_refused() -> None:
    with pytest.raises(FinetuneError, match="tecoa trains on no captions: leave `caption_column` out"):
        check(FinetuneConfig(method="tecoa", caption_column="text"))


def test_beside_a_regulariser_every_answer_is_the_methods() -> None:
    """A new hook of methods that is not passed on would fall back to its default."""
    hooks = {name for name, value in vars(Method).items() if callable(value) and not name.startswith("_")}
    assert hooks <= set(vars(Regularized))


def test_a_method_that_edits_captions_without_an_objective_is_refused() -> None:
    @dataclass(frozen=True)
    class Silent(LEAF):
        name: ClassVar[str] = "silent"
        edit_objective = Method.edit_objective

    with pytest.raises(FinetuneError, match="Silent edits captions, and needs a method 'edit_objective'"):
        register_method(Silent)
