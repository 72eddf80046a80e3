"""Runs of the methods that train on captions: what they train, what they leave, how they go on, what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from training_runs import StopsAfter, make_config, make_trainer

from clipguard.core.environment.quiet_libraries import quiet_libraries
from clipguard.core.errors import CaptionError, FinetuneError
from clipguard.core.notices import noticing
from clipguard.core.progress import Silent
from clipguard.finetuning.checks import check
from clipguard.finetuning.data.batches import load_batches
from clipguard.finetuning.data.training_data import open_data
from clipguard.finetuning.methods.captions.edits import words_of
from clipguard.finetuning.run import run_finetune
from clipguard.models import load_model
from clipguard.models.export import WEIGHTS_NAME

METHODS = ["advflyp", "delta-clip-style(text_lr=0.001)", "leaf(rho=6)"]


@pytest.fixture
def texts(tmp_path: Path) -> str:
    """A file of captions."""
    path = tmp_path / "captions.txt"
    path.write_text("".join(f"a photo of {n} cats in a house\n\n" for n in range(12)))
    return str(path)


def fine_tune(model: str, dataset: str, out: Path, method: str, **settings: Any) -> dict[str, Any]:
    run_finetune(make_config(model, dataset, method, **settings), out, "")
    return dict(json.loads((out / "run.json").read_text()))


def moved(model: str, out: Path) -> dict[str, bool]:
    """Which parts of a model a run changed."""
    before = load_file(Path(model.removeprefix("local-dir:")) / WEIGHTS_NAME)
    after = load_file(out / WEIGHTS_NAME)
    assert before.keys() == after.keys()
    parts = {"image": [n for n in before if n.startswith("visual.")]}
    parts["text"] = [n for n in before if n not in parts["image"]]
    return {part: any(not torch.equal(before[n], after[n]) for n in names) for part, names in parts.items()}


@pytest.mark.parametrize("method", METHODS)
def test_what_is_trained_and_what_comes_out(method: str, vit: str, images: str, tmp_path: Path) -> None:
    """An image folder with captions beside the images, and labels, for zero-shot accuracy."""
    out = tmp_path / "out"
    run = fine_tune(vit, images, out, method, eval_samples=6)
    image, text = not method.startswith("leaf"), method != "advflyp"
    assert moved(vit, out) == {"image": image, "text": text}
    assert (out / "original_text.safetensors").is_file() == text
    assert not (out / "clipguard_text.safetensors").exists()
    assert run["resolved"]["chosen_by"] == "loss on validation images"
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = [row["validation"] for row in rows if "validation" in row]
    assert found[-1]["clean"]["n"] == found[-1]["n"] == 2
    assert run["evaluation"]["scores"]["fine-tuned"]["clean"]["n"] == 2
    assert run["dataset"]["caption"].startswith("kind 0 with the number")
    assert run["trained_prompts"] == []
    card = (out / "README.md").read_text()
    assert "captions such as `kind 0 with" in card
    assert ("1 edited characters" in card) == (not image)
    assert ("PGD-2, linf" in card) == image
    # A plain open_clip checkpoint, whose text is the tuned one.
    with quiet_libraries():
        plain = open_clip.create_model(f"local-dir:{out}").eval()
    tokens = open_clip.tokenize(["a photo of a cat."], context_length=16)
    with torch.no_grad():
        theirs = plain.encode_text(tokens, normalize=True)
    ours, before = (load_model(m).text_features(["cat"], ["a photo of a {}."]).T for m in (f"local-dir:{out}", vit))
    assert torch.allclose(theirs, ours, atol=1e-6)
    assert torch.allclose(ours, before, atol=1e-6) != text
    original = (
        load_model(f"local-dir:{out}", text="original").text_features(["cat"], ["a photo of a {}."])
        if text
        else before.T
    )
    assert torch.allclose(original.T, before, atol=1e-6)


@pytest.mark.parametrize("method", ["delta-clip-style(text_lr=0.001)", "leaf(k=2,rho=6)"])
def test_interrupted_it_ends_with_the_same_bits(method: str, vit: str, images: str, tmp_path: Path) -> None:
    config = make_config(vit, images, method=method, steps=6, batch_size=6)
    whole, half = tmp_path / "whole", tmp_path / "half"
    make_trainer(config, whole).train(Silent(), 0)
    with pytest.raises(KeyboardInterrupt):
        make_trainer(config, half).train(StopsAfter(3), 0)
    resumed = make_trainer(config, half)
    resumed.train(Silent(), 0)
    ended = make_trainer(config, whole)
    ended.train(Silent(), 0)  # it is at its end, and loads that
    for one, other in zip(ended.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert (whole / "metrics.jsonl").read_bytes() == (half / "metrics.jsonl").read_bytes()


def test_captions_without_labels_and_a_labelled_set_for_the_end(vit: str, texts: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = fine_tune(vit, texts, out, "leaf(rho=4)", eval_dataset="emoji-food", eval_samples=5)
    assert moved(vit, out) == {"image": False, "text": True}
    assert run["evaluation"]["images"] == "5 images of emoji-food, split test"
    assert run["dataset"]["text_only"]
    assert "11 captions to train on" in (out / "README.md").read_text()
    assert run["config"]["eval_dataset"] == "emoji-food"


def test_pairs_without_labels_train_a_text_tower(vit: str, images: str, tmp_path: Path) -> None:
    """A flat folder has no classes."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in Path(images).rglob("*.*"):
        (flat / f"{file.parent.name[-1]}{file.name}").write_bytes(file.read_bytes())
    out = tmp_path / "out"
    run = fine_tune(vit, str(flat), out, "delta-clip-style(text_lr=0.001)")
    assert moved(vit, out) == {"image": True, "text": True}
    assert run["evaluation"]["scores"] == {}
    assert run["resolved"]["text_mode"] == "encoder"


@pytest.mark.parametrize("method", ["advflyp", "delta-clip-style"])
def test_perturbed_weights_and_a_regulariser_go_with_captions(
    method: str, vit: str, images: str, tmp_path: Path
) -> None:
    """The second gradient is on the images that the first one attacked, with the captions that it had."""
    given = {"regularizer": "regmix", "awp": 0.01}
    run = fine_tune(vit, images, tmp_path / "out", method, train="svd" if method == "advflyp" else "visual", **given)
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert {"contrastive", "regmix_alpha", "regmix_beta", "regmix_gamma", "attack"} <= rows[0].keys()
    assert run["trained_prompts"] == run["dataset"]["templates"] != []  # of the regulariser
    assert moved(vit, tmp_path / "out")["image"]
    trainer = make_trainer(make_config(vit, images, method, **given), tmp_path / "trainer")
    batch = next(load_batches(trainer.images, trainer.sampler, 0))
    _, attacked = trainer.step.gradient(batch, 0.0, look=False)
    assert attacked.captions == batch.captions
    assert attacked.adversarial is not None
    parts = attacked.split(3)
    assert [len(part.captions or []) for part in parts] == [3, 1]
    assert torch.equal(
        torch.cat([part.adversarial for part in parts if part.adversarial is not None]), attacked.adversarial
    )


def test_leaf_takes_prompts_of_classes_and_sees_no_image(vit: str, tmp_path: Path) -> None:
    for name in ("red", "blue"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "data" / name / f"{i}.png")
    config = make_config(vit, str(tmp_path / "data"), method="leaf(rho=4,k=2)", templates="ensemble")
    with noticing() as notices:
        trainer = make_trainer(config, tmp_path / "out")
    said = "has no captions, so that of an image is a prompt of its class: 'itap of a blue.'"
    assert any(said in notice["text"] for notice in notices)
    batch = next(load_batches(trainer.images, trainer.sampler, 0))
    assert batch.pixels.shape == (4, 3, 1, 1)
    assert batch.captions is not None
    assert all({"red", "blue"} & words_of(caption) for caption in batch.captions)
    trainer.step(iter([batch]), 0.0, look=True)  # clean accuracy would need images
    with pytest.raises(CaptionError, match="its images have no captions"):
        make_trainer(make_config(vit, str(tmp_path / "data"), method="advflyp"), tmp_path / "other")
    run = fine_tune(vit, str(tmp_path / "data"), tmp_path / "run", "leaf(rho=2)", templates="single", evaluation=False)
    assert run["trained_prompts"] == ["a photo of a {}."]  # the loss read them, as it does not where there are captions


def test_gradients_reach_the_text_tower_alone_under_leaf(vit: str, images: str, tmp_path: Path) -> None:
    trainer = make_trainer(make_config(vit, images, method="leaf(rho=4)"), tmp_path)
    assert trainer.model.image_parameters() == []
    assert trainer.optimizers.keys() == {"text"}
    assert trainer.optimizers["text"].param_groups[0]["weight_decay"] == trainer.config.weight_decay
    trainer.step.gradient(next(load_batches(trainer.images, trainer.sampler, 0)), 0.0, look=False)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trainer.model.text_parameters())
    assert all(p.grad is None for p in trainer.model.image.parameters())


def test_the_text_stays_in_advflyp_but_under_train_all(vit: str, images: str, tmp_path: Path) -> None:
    still = make_trainer(make_config(vit, images, method="advflyp"), tmp_path / "a")
    assert still.model.text_parameters() == []
    both = make_trainer(make_config(vit, images, method="advflyp", train="all"), tmp_path / "b")
    both.step.gradient(next(load_batches(both.images, both.sampler, 0)), 0.0, look=False)
    tower = both.model.text_parameters()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in tower)


def test_the_attack_raises_the_contrastive_loss(vit: str, images: str, tmp_path: Path) -> None:
    trainer = make_trainer(make_config(vit, images, method="delta-clip-style", batch_size=8), tmp_path)
    batch = next(load_batches(trainer.images, trainer.sampler, 0)).to(torch.device("cpu"))
    objective, model = trainer.objective, trainer.model

    def loss(pixels: Tensor) -> float:
        images_batch = batch._replace(pixels=pixels)
        assert objective.captions is not None
        given = objective(model, images_batch, 0.0, model).batch
        found, _ = objective.captions.embed(given, model, images_batch, model, frozenset({"captions"}))
        return objective.method.attack_objective(model.image(pixels), found).mean().item()

    terms = objective(model, batch, 0.0, model)
    x_adv, _ = objective.perturb(model, batch.pixels, batch.keys, terms.batch)
    assert (x_adv - batch.pixels).abs().max() <= 8 / 255 + 1e-6
    assert loss(x_adv) > loss(batch.pixels)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora": 2}, "leaf trains the text tower alone: leave `lora` out"),
        ({"train": "all"}, "leave `train` out"),
        ({"train": "svd"}, "leave `train` out"),
        ({"noise": 0.1}, "leave `noise` out"),
        ({"regularizer": "regmix"}, "leave `regularizer` out"),
        ({"awp": 0.01}, "`awp` takes a second gradient .* but leaf attacks captions: leave it out"),
    ],
)
def test_settings_of_the_image_tower_are_refused_where_it_is_left_alone(
    settings: dict[str, Any], message: str, vit: str, images: str
) -> None:
    with pytest.raises(FinetuneError, match=message):
        check(make_config(vit, images, method="leaf", **settings))


def test_what_is_trained_on_is_no_test_and_contrasts_are_not_divided(vit: str, images: str, tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match="is what is trained on"):
        fine_tune(vit, images, tmp_path / "out", "leaf(rho=2)", eval_dataset=images)
    with pytest.raises(FinetuneError, match="takes a batch as a whole"):
        check(make_config(vit, images, method="advflyp", batch_size=2, effective_batch=4))


def test_changed_captions_are_other_data(vit: str, texts: str) -> None:
    config = make_config(vit, texts, method="leaf(rho=2)")
    before = open_data(config, needs_labels=False, captions="or prompts").fingerprint()
    Path(texts).write_text(Path(texts).read_text().replace("3 cats", "3 dogs"))
    assert open_data(config, needs_labels=False, captions="or prompts").fingerprint() != before
