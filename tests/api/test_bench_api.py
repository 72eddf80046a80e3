"""`clipguard.bench` and `clipguard.compare` from Python: what is meant is taken, the rest is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

import clipguard
from clipguard.attacks.methods.pgd import PGD
from clipguard.benchmark.rerun_command import rerun
from clipguard.cli import run
from clipguard.core.errors import ClipguardError

SMALL: dict[str, Any] = {"datasets": "emoji-food", "attacks": "pgd-2", "n_samples": 4}


@pytest.mark.parametrize(
    "eps", [[1 / 255, 4 / 255], "1,4", ["4/255", 1 / 255], np.array([4, 1]) / 255, ["1", np.float64(4 / 255)]]
)
def test_numbers_are_pixels_and_texts_as_on_the_command_line(eps: Any) -> None:
    result = clipguard.bench(eps=eps, probes=False, **SMALL)
    assert result.run["eps"] == [1.0, 4.0]
    texts = clipguard.bench(["tiny"], ["emoji-food"], ["1,4"], ["pgd-2"], n_samples=4, probes=False)
    assert result.samples.equals(texts.samples)


def test_one_name_is_a_list_of_one() -> None:
    result = clipguard.bench(models="tiny", datasets="emoji-food", attacks="none", n_samples=np.int64(4))
    assert [(c.model, c.dataset, c.n) for c in result.cells] == [("tiny", "emoji-food", 4)]
    assert json.loads(result.to_json())["run"]["plan"]["n_samples"] == 4
    everything = clipguard.bench(datasets="emoji-food", attacks="none", n_samples="all", batch_size="auto")
    assert everything.cells[0].n > 200


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "grey levels": ({"eps": [1 / 255, 4]}, "did you mean 4 / 255, or '4'"),
    "a number of grey levels": ({"eps": 8}, "did you mean 8 / 255, or '8'"),
    "one": ({"eps": 1, "protocol": "tecoa"}, "did you mean 1 / 255, or '1'"),
    "pixels in a text": ({"eps": "0.0157"}, r"did you mean 4 \(4/255\)"),
    "l2": ({"eps": 128, "norm": "l2"}, "did you mean 128 / 255"),
    "a truth": ({"eps": True}, "`eps` takes numbers"),
    "a list in a list": ({"eps": [[1, 4]]}, "`eps` takes numbers"),
    "a function": ({"models": [lambda x: x]}, "`models` takes names, .* not a function"),
    "tensors": ({"datasets": torch.zeros(2, 3)}, "`datasets` takes names, .* not a Tensor"),
    "a number for an attack": ({"attacks": [3]}, "`attacks` takes names, not 3"),
    "a typing error": ({"nsamples": 5}, "Did you mean 'n_samples'"),
    "eps mode": ({"eps_mode": "ascendng"}, "`eps_mode` 'ascendng' is unknown. Did you mean 'ascending'"),
    "text": ({"text": "tunde"}, "`text` 'tunde' is unknown"),
    "norm": ({"norm": "Linf"}, "`norm` 'Linf' is unknown. Did you mean 'linf'. Use linf or l2"),
    "no seed": ({"seed": None}, "`seed` must be a whole number of at least 0, not None"),
    "half an image": ({"n_samples": 4.5}, "`n_samples` must be a whole number"),
    "templates": ({"templates": ["a {}"]}, "`templates` must be a text"),
    "classes": ({"classes": ["a", "b"]}, "`classes` must be a text or a path"),
    "no protocol": ({"protocol": 3}, "`protocol` must be a text"),
    "a store": ({"store": True}, "`store` must be a text or a path"),
    "part": ({"part": 3}, "part must be two numbers"),
}


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_benched_is_told_before_anything_is_loaded(
    given: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPGUARD_DATA", "/nowhere")  # would be the error if data were looked for first
    with pytest.raises(ClipguardError, match=message) as caught:
        clipguard.bench(**({"datasets": "cifar10"} | given))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"candidate": lambda x: x}, "candidate, a result or a model's name, must be a text or a path"),
        ({"eps": 4}, "did you mean 4 / 255"),
        ({"epss": 4}, "Did you mean 'eps'"),
        ({"max_drop": "1"}, "`max_drop` must be a number"),
        ({"metrics": "cleen"}, "`metrics` 'cleen' is unknown"),
        ({"sequential": True, "first": "1"}, "`first` must be a whole number"),
    ],
)
def test_what_cannot_be_compared(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ClipguardError, match=message):
        clipguard.compare(**({"base": "tiny", "candidate": "tiny"} | given))


def test_one_metric_is_a_list_of_one() -> None:
    found = clipguard.compare("tiny", "tiny", metrics="clean", datasets="emoji-food", attacks="none", n_samples=4)
    assert {cell.attack for cell in found.cells} == {"none"}


@pytest.mark.parametrize("name", [None, 3, ["tiny"], lambda x: x])
def test_models_and_data_sets_are_named(name: Any) -> None:
    for load in (clipguard.load_model, clipguard.load_dataset):
        with pytest.raises(ClipguardError, match="name must be a text or a path"):
            load(name)


@pytest.mark.parametrize("wrong", [{"split": 3}, {"classes": ["a"]}, {"templates": ["a {}"]}, {"class_names": "mine"}])
def test_arguments_of_load_dataset_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ClipguardError, match=next(iter(wrong))):
        clipguard.load_dataset("emoji-food", **wrong)


def test_a_stored_run_with_a_tiny_budget_is_compared_and_rerun_as_it_was(tmp_path: Path) -> None:
    """0.05 was a legal number once, so a stored plan may have it; what is printed to run it again is legal now."""
    result = clipguard.bench(eps="0.05/255", **SMALL)
    assert result.run["plan"]["eps"] == [0.05]
    for cell in result.cells:
        assert cell.eps in (0, 0.05)
    (tmp_path / "results.json").write_text(result.to_json(), encoding="utf-8")
    result.samples.to_parquet(tmp_path / "samples.parquet")
    found = clipguard.compare(tmp_path, "tiny")
    assert {cell.eps for cell in found.cells} == {0, 0.05}
    assert found.verdict != "regression"
    words = rerun(result.run).command.split()
    assert words[words.index("--eps") + 1] == "0.05/255"
    out = tmp_path / "again"
    assert run([*words[1:], "--no-store", "--out", str(out)]) == 0
    assert json.loads((out / "results.json").read_text(encoding="utf-8"))["run"]["eps"] == [0.05]


def test_a_budget_below_a_grey_level_is_taken_as_such_and_said() -> None:
    def texts(eps: str) -> list[str]:
        return [entry["text"] for entry in clipguard.bench(eps=eps, **SMALL).run["notices"]]

    assert texts("0.3") == ["--eps 0.3 is 0.3/255, in units of 1/255; for pixels of [0,1] write 76.5"]
    assert texts("0.5,0.25,1/255") == []


def test_a_step_size_that_leads_nowhere_is_said() -> None:
    """2/255 in pixels, where a fraction of eps is expected: ten steps of 0.00784 come to 0.08 eps."""
    result = clipguard.bench(eps="4", **(SMALL | {"attacks": "pgd-10(step_size=0.00784)"}))
    (entry,) = result.run["notices"]
    assert "is a fraction of eps: 10 steps of it come to 0.0784 eps" in entry["text"]
    assert clipguard.bench(eps="4", **(SMALL | {"attacks": "pgd-10(step_size=0.25)"})).run["notices"] == []


class Brightness(torch.nn.Module):
    """Tells bright images from dark ones."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(dim=(1, 2, 3))
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)


def grey_images(levels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 3, 8, 8) images of one grey level each, and whether they are bright."""
    images = torch.tensor(levels).float().view(-1, 1, 1, 1).expand(-1, 3, 8, 8) / 255
    return images, torch.tensor([int(level > 127) for level in levels])


def test_a_module_and_arrays_in_place_of_names() -> None:
    """Which images fall is known: those that are within eps of 127.5."""
    data = grey_images([90, 124, 126, 129, 131, 180])
    result = clipguard.bench(Brightness().eval(), data, eps=[1 / 255, 4 / 255], attacks=PGD(iterations=3))
    assert [(c.eps, c.attack, c.correct) for c in result.cells] == [(0, "none", 6), (1, "pgd-3", 6), (4, "pgd-3", 2)]
    assert result.run["in_memory"] == ["Brightness", "in-memory", "pgd-3"]
    assert rerun(result.run).command == ""
    pixels = (data[0] * 255).round().byte().permute(0, 2, 3, 1).numpy()  # the same as (N, H, W, 3) uint8
    again = clipguard.bench(Brightness().eval(), (pixels, data[1]), eps="1,4", attacks="pgd-3")
    assert again.samples.equals(result.samples)


def test_what_was_loaded_is_what_its_name_is() -> None:
    model, data = clipguard.load_model("tiny"), clipguard.load_dataset("emoji-food")
    named = clipguard.bench("tiny", "emoji-food", "4", "pgd-2", n_samples=4)
    loaded = clipguard.bench(model, data, 4 / 255, "pgd-2", n_samples=4)
    assert loaded.samples.equals(named.samples)
    assert clipguard.compare(named, loaded).verdict == "inconclusive"  # four images
    rows = {"image": [data.image(i) for i in range(0, 200, 20)], "label": [0, 1] * 5}
    table = datasets.Dataset.from_dict(rows)
    result = clipguard.bench(model, table, attacks="none", classes="apple,cake")
    assert result.cells[0].n == 10


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"models": Brightness().eval(), "store": "s"}, "`store` is for checkpoints"),
        ({"models": [Brightness().eval(), torch.nn.Identity()], "datasets": (torch.rand(2, 3, 4, 4), [0, 1])}, "8-bit"),
        ({"datasets": (torch.zeros(2, 3, 4, 4), [0], ["a", "b"])}, "2 images and 1 labels"),
        ({"datasets": (torch.zeros(2, 3, 4, 4), [0, 2], ["a", "b"])}, "labels must lie in 0 ... 1"),
        ({"datasets": (torch.zeros(2, 3, 4, 4), [0.0, 1.0], ["a", "b"])}, "labels are class numbers"),
        ({"datasets": (torch.zeros(2, 3, 4, 4), [0, 1])}, "these models need class names"),
        ({"datasets": (torch.zeros(2, 3, 4, 4), [0, 1], "a,b")}, "class names are a list"),
        ({"datasets": (torch.zeros(2, 3, 4, 4), [0, 1], {"a", "b"})}, "class names are a list of texts"),
        ({"datasets": (torch.zeros(2, 3, 4, 4), [0, 1], [0, 1])}, "class names are a list of texts"),
        ({"datasets": (torch.zeros(2, 3, 4, 4), [0, 1], ["a", "b"]), "classes": "c,d"}, "leave `classes` out"),
        ({"datasets": (torch.zeros(2, 3, 4, 4), [0, 1], ["a", "b"]), "split": "train"}, "arrays have none"),
        ({"datasets": (torch.full((2, 3, 4, 4), 0.3).bfloat16(), [0, 1], ["a", "b"])}, "8-bit levels"),
        ({"datasets": datasets.DatasetDict()}, "not a DatasetDict"),
        ({"datasets": datasets.Dataset.from_dict({"a": [1]}).to_iterable_dataset()}, "not an? IterableDataset"),
        ({"attacks": PGD(iterations=0)}, "iterations must be a whole number of at least 1"),
        ({"attacks": clipguard.Recipe("fgsm", (PGD(),))}, "give the recipe another name"),
        ({"models": Brightness().eval(), "logit_scale": 5.0}, "a module has none"),
        ({"models": Brightness().eval(), "datasets": "emoji-food"}, "gives 2 logits, and emoji-food has"),
        ({"models": torch.nn.Linear(3, 2).double().eval(), "datasets": "emoji-food"}, "The model fails on images"),
    ],
)
def test_objects_that_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ClipguardError, match=message):
        clipguard.bench(**given)


@pytest.mark.parametrize(
    "option", [{"templates": "a {}"}, {"decode": "plain"}, {"classes": "a,b"}, {"protocol": "tecoa"}]
)
def test_settings_that_a_data_set_in_memory_has_settled_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ClipguardError, match=r"give it there|name the data set"):
        clipguard.bench(datasets=clipguard.load_dataset("emoji-food"), **option)


def test_arrays_get_the_prompts_of_the_plan() -> None:
    images, labels = grey_images([10, 250])
    result = clipguard.bench("tiny", (images, labels, ["dark", "bright"]), protocol="tecoa", attacks="none")
    assert result.run["datasets"]["in-memory"]["templates"] == ["a photo of a {}."]
