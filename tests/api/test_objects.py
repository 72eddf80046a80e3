"""Objects in place of names: what comes of them is what the names give, and what cannot be used is told in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

import clipguard
from clipguard import PGD, ClipguardError
from clipguard.models.loading import hash_tensors

CLASSES = ["dark", "bright"]
HOW: dict[str, Any] = {"eps": "4", "attacks": "pgd-2", "probes": False}


class Brightness(torch.nn.Module):
    """Tells bright images from dark ones, above and below a grey level."""

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.tensor(threshold))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(dim=(1, 2, 3))
        return torch.stack([self.threshold - mean, mean - self.threshold], dim=1)


def grey_images(levels: list[int]) -> tuple[np.ndarray, list[int], list[str]]:
    """(N, 8, 8, 3) uint8 of one grey level each, whether they are bright, and what that is called."""
    images = np.array(levels, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3)
    return images, [int(level > 127) for level in levels], CLASSES


@pytest.fixture(scope="module")
def model() -> clipguard.LoadedModel:
    """The embedded model."""
    return clipguard.load_model("tiny")


@pytest.fixture(scope="module")
def food() -> clipguard.ZeroShotDataset:
    """The test split of an embedded data set."""
    return clipguard.load_dataset("emoji-food")


def blinded(model: clipguard.LoadedModel) -> clipguard.LoadedModel:
    """A copy that sees nothing: its image tower has no weights but 0."""
    made = model.copy()
    with torch.no_grad():
        for weight in made.model.visual.parameters():  # type: ignore[union-attr]
            weight.zero_()
    return made


def test_two_modules_are_compared_on_arrays_under_an_attack_object() -> None:
    """Which images fall is known: those within eps of the threshold."""
    data = grey_images([90, 110, 124, 131, 150, 180])
    found = clipguard.compare(Brightness(), Brightness(0.44), datasets=data, eps="4", attacks=PGD(iterations=3))
    assert (found.base, found.candidate) == ("Brightness", "Brightness-2")
    assert [(c.attack, round(6 * c.base), round(6 * c.candidate)) for c in found.cells] == [
        ("none", 6, 5),
        ("pgd-3", 4, 4),
    ]


def test_batches_of_objects_are_those_of_all_images() -> None:
    data = grey_images(list(range(60, 200, 4)))
    how: dict[str, Any] = {"datasets": data, "attacks": PGD(iterations=2), "eps": "4", "n_samples": "all"}
    found = clipguard.compare(Brightness(), Brightness(0.2), sequential=True, first=8, **how)
    assert found.sequential is not None
    assert found.verdict == "regression"


def test_two_loaded_models_of_one_name_are_told_apart(
    model: clipguard.LoadedModel, food: clipguard.ZeroShotDataset
) -> None:
    for base in (model, "tiny"):
        found = clipguard.compare(base, blinded(model), datasets=food, n_samples=9, **HOW)
        assert {found.base, found.candidate} == {"tiny", "tiny-2"}
        assert found.cells[0].base > found.cells[0].candidate
    same = clipguard.compare(model, model, datasets=food, n_samples=9, **HOW)
    assert (same.base, same.candidate) == ("tiny", "tiny")
    both = clipguard.bench(["tiny", blinded(model)], ["emoji-food", food], n_samples=9, **HOW)
    assert set(both.samples["model"]) == {"tiny", "tiny-2"}
    assert set(both.samples["dataset"]) == {"emoji-food", "emoji-food-2"}


def test_a_result_of_objects_is_compared_with_a_model_on_the_same_objects() -> None:
    data = grey_images([90, 110, 124, 131, 150, 180])
    recipe = clipguard.Recipe("mine", (PGD(iterations=2),))
    result = clipguard.bench(Brightness(), data, "4", recipe)
    found = clipguard.compare(result, Brightness(), datasets=data, attacks=recipe)
    assert [cell.change for cell in found.cells] == [0, 0]
    with pytest.raises(ClipguardError, match=r"measured on in-memory in memory: give the same .* as `datasets`"):
        clipguard.compare(result, Brightness())
    with pytest.raises(ClipguardError, match=r"measured on mine in memory: give the same .* as `attacks`"):
        clipguard.compare(result, Brightness(), datasets=data)
    with pytest.raises(ClipguardError, match="in-memory has other"):
        clipguard.compare(result, Brightness(), datasets=grey_images([90, 110, 124, 132, 150, 180]), attacks=recipe)
    with pytest.raises(ClipguardError, match="`datasets` is for models to bench"):
        clipguard.compare(result, Brightness(), datasets="emoji-food")


def test_names_in_attack_are_what_bench_measures(model: clipguard.LoadedModel, food: clipguard.ZeroShotDataset) -> None:
    rows = clipguard.bench("tiny", "emoji-food", n_samples=6, **HOW).samples
    rows = rows[rows["attack"] == "pgd-2"]
    for given in (("tiny", "emoji-food"), (model, food)):
        outcome = clipguard.attack(*given, eps="4", attack="pgd-2", n_samples=6)
        frame = outcome.to_frame()
        assert list(frame["index"]) == list(rows["index"])
        assert list(frame["adv_pred"]) == list(rows["adv_pred"])
        assert list(frame["margin"]) == pytest.approx(list(rows["margin"]), abs=1e-4)


def test_data_sets_of_every_kind_in_attack(model: clipguard.LoadedModel, food: clipguard.ZeroShotDataset) -> None:
    images, labels, names = grey_images([10, 250])
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = {"image": [food.image(0), food.image(20)], "label": [0, 1]}
    table = datasets.Dataset.from_dict(rows, features=features)
    results = [
        clipguard.attack(model, (images, labels, names), eps="4", attack="pgd-2"),
        clipguard.attack("tiny", (images, labels), eps="4", attack="pgd-2", class_names=names),
        clipguard.attack(model, model.preprocess()(_grey(10))[None], [0], eps="4", attack="pgd-2", class_names=names),
    ]
    assert [len(result.outcomes) for result in results] == [2, 2, 1]
    assert torch.equal(results[0].x_adv, results[1].x_adv)
    assert torch.equal(results[0].x_adv[:1], results[2].x_adv)
    assert len(clipguard.attack(model, table, eps="4", attack="pgd-2").outcomes) == 2
    assert len(clipguard.attack(Brightness(), table, eps="4", attack="pgd-2", n_samples="all").outcomes) == 2


def _grey(level: int) -> Any:
    from PIL import Image

    return Image.new("RGB", (8, 8), (level,) * 3)


@pytest.mark.usefixtures("short_square")
def test_names_and_data_sets_in_doctor(food: clipguard.ZeroShotDataset) -> None:
    how: dict[str, Any] = {"eps": "4", "attack": "pgd-2", "n_samples": 4}
    named = clipguard.doctor("tiny", "emoji-food", transfer_from="tiny", **how)
    assert clipguard.doctor(clipguard.load_model("tiny"), food, transfer_from="tiny", **how) == named
    assert clipguard.doctor(Brightness(), grey_images([20, 90, 150, 220]), eps="4", attack="pgd-2").verdict != "failure"


IMAGES, LABELS, _ = grey_images([10, 250])
REFUSED: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "no labels": (("tiny", torch.rand(2, 3, 8, 8)), {}, "Images need `labels`"),
    "labels twice": (("tiny", (IMAGES, LABELS, CLASSES), LABELS), {}, "leave `labels` out"),
    "no names": (("tiny", (IMAGES, LABELS)), {}, "need class names"),
    "no names of tensors": (("tiny", torch.rand(2, 3, 8, 8), LABELS), {}, "needs `class_names`"),
    "names twice": (("tiny", "emoji-food"), {"class_names": CLASSES}, "a data set has its own"),
    "a number of tensors": ((Brightness(), torch.rand(2, 3, 8, 8), LABELS), {"n_samples": 1}, "is for data sets"),
    "no number": (("tiny", "emoji-food"), {"n_samples": "few"}, "`n_samples` must be a whole number"),
    "no image": (("tiny", "emoji-food"), {"n_samples": 0}, "at least 1 image"),
    "no model": ((3, "emoji-food"), {}, "a torch.nn.Module, a name, or of `load_model`, not 3"),
    "no data set": (("tiny", "emoji-fud"), {}, "not a known dataset"),
    "other classes": ((Brightness(), "emoji-food"), {"n_samples": 9}, "(?i)label"),
}


@pytest.mark.parametrize("function", [clipguard.attack, clipguard.doctor])
@pytest.mark.parametrize(("given", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_go_together(function: Any, given: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ClipguardError, match=message) as caught:
        function(*given, eps="4", attack="pgd-2", **options)
    assert "\n" not in str(caught.value)


def test_a_module_is_not_given_images_of_several_sizes(food: clipguard.ZeroShotDataset) -> None:
    rows = {"image": [_grey(10), food.image(0)], "label": [0, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    with pytest.raises(ClipguardError, match=r"images of 2 sizes .*, and a module takes them as they are"):
        clipguard.attack(Brightness(), datasets.Dataset.from_dict(rows, features=features), eps="4", attack="pgd-2")


def test_prompts_of_a_data_set_in_memory_stay(food: clipguard.ZeroShotDataset) -> None:
    with pytest.raises(ClipguardError, match="settled by `load_dataset`"):
        clipguard.attack("tiny", food, eps="4", templates="single")


def test_a_model_in_memory_is_described_and_written_as_it_is(model: clipguard.LoadedModel, tmp_path: Path) -> None:
    changed = blinded(model)
    folder = clipguard.convert(changed, tmp_path / "blind")
    assert clipguard.load_model(f"local-dir:{folder}").tower_sha256 == changed.tower_sha256 != model.tower_sha256
    assert hash_tensors(changed.model.state_dict()) in (folder / "README.md").read_text("utf-8")
    half = clipguard.load_model(f"local-dir:{clipguard.merge(changed, model, 0.5, tmp_path / 'half')}")
    assert "| 0.5 | tiny, in memory | `" in (tmp_path / "half" / "README.md").read_text("utf-8")
    for name, weight in half.model.visual.state_dict().items():  # type: ignore[union-attr]
        if weight.is_floating_point() and "running" not in name:
            assert torch.allclose(weight, model.model.visual.state_dict()[name] / 2)  # type: ignore[union-attr]
    found, named = clipguard.inspect(model), clipguard.load_model("tiny").info
    assert (found.source, found.sha256, found.container) == ("tiny", named.sha256, "in memory")
    assert (found.parameters, found.architectures) == (named.parameters, [named.architecture])


def test_a_copy_has_weights_of_its_own(model: clipguard.LoadedModel) -> None:
    before, made = model.tower_sha256, blinded(model)
    assert made.info == model.info
    assert model.copy("other").info.name == "other"
    assert clipguard.load_model("tiny").tower_sha256 == before != made.tower_sha256


@pytest.mark.parametrize("wrong", [torch.nn.Linear(2, 2), 3, None])
def test_what_is_no_checkpoint_is_not_written(wrong: Any, tmp_path: Path) -> None:
    calls = (
        lambda: clipguard.convert(wrong, tmp_path / "out"),
        lambda: clipguard.merge("tiny", wrong, 0.5, tmp_path / "out"),
        lambda: clipguard.inspect(wrong),
    )
    for call in calls:
        with pytest.raises(ClipguardError, match=r"is no CLIP model|name must be a text or a path"):
            call()
    assert not (tmp_path / "out").exists()


def test_what_names_a_file_goes_with_a_name(model: clipguard.LoadedModel, tmp_path: Path) -> None:
    for option in ({"base": "tiny"}, {"normalization": "clip"}):
        with pytest.raises(ClipguardError, match="are for names"):
            clipguard.convert(model, tmp_path / "out", **option)


@pytest.mark.parametrize("wrong", [{"first": 0}, {"first": "1"}, {"force": "x"}, {"sequential": 1}, {"probes": "x"}])
def test_switches_of_compare_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ClipguardError, match=f"`{next(iter(wrong))}` must be"):
        clipguard.compare("tiny", "tiny", **wrong)


def test_switches_of_bench_are_checked() -> None:
    with pytest.raises(ClipguardError, match="`probes` must be true or false"):
        clipguard.bench(probes="x")  # type: ignore[arg-type]


def test_a_store_is_not_for_modules(tmp_path: Path) -> None:
    with pytest.raises(ClipguardError, match="`store` is for checkpoints"):
        clipguard.compare(Brightness(), Brightness(), datasets=grey_images([1, 250]), store=tmp_path)
