"""Where settings come from, and which are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clipguard.cli.options import read_config
from clipguard.core.errors import ClipguardError, FinetuneError
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.methods.registry import METHODS
from clipguard.finetuning.settings import EMBEDDED, SETTINGS, resolve


def test_each_layer_wins_over_the_one_below(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("method: fare\nmodel: ViT-B-32-quickgelu:openai\npreset: paper\nlr: 2e-5\nbatch_size: 7\n")
    config = resolve({"batch_size": 9}, read_config(file, SETTINGS))
    assert config.batch_size == 9  # command line
    assert config.lr == 2e-5  # file
    assert config.weight_decay == 1e-4  # preset
    assert config.steps == 20_000
    assert config.epochs is None  # the preset's steps replace the default's epochs
    assert config.schedule == FinetuneConfig().schedule  # default
    assert resolve({"epochs": 1.0}, read_config(file, SETTINGS)).steps is None


def test_toml_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("eps: 2\nrandom_start: false\n")
    (tmp_path / "a.toml").write_text("eps = 2\nrandom_start = false\n")
    assert read_config(tmp_path / "a.yaml", SETTINGS) == read_config(tmp_path / "a.toml", SETTINGS)
    assert resolve({}, read_config(tmp_path / "a.yaml", SETTINGS)).eps == 2


def test_the_embedded_model_has_its_own_preset() -> None:
    assert resolve({}).steps == EMBEDDED["steps"]
    assert resolve({}).preset == "embedded"
    assert resolve({"preset": "none"}).epochs == FinetuneConfig().epochs
    assert resolve({"model": "ViT-B-32-quickgelu:openai"}).lr == FinetuneConfig().lr
    assert resolve({"method": "tecoa", "preset": "paper"}).optimizer == "sgd"


@pytest.mark.parametrize("method", METHODS)
def test_every_published_preset_can_be_run(method: str) -> None:
    for preset in METHODS[method].presets:
        assert resolve({"method": method, "preset": preset}).preset == preset


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "eps 0": ({"eps": 0.0}, "`eps` must be a number above 0"),
    "huge eps": ({"eps": "256"}, "at most 255"),
    "grey levels": ({"eps": 8}, "did you mean 8 / 255"),
    "a large step": ({"step_size": 0.5}, "more than twice the eps of 8/255"),
    "negative eps": ({"eps": -1.0}, "`eps`"),
    "nan": ({"lr": float("nan")}, "`lr` must be a number above 0"),
    "steps and epochs": ({"steps": 3, "epochs": 2.0}, "either `steps` or `epochs`"),
    "no steps": ({"steps": 0}, "`steps` must be a whole number of at least 1"),
    "half a step": ({"steps": 1.5}, "`steps` must be a whole number"),
    "text": ({"lr": "fast"}, "`lr` must be a number"),
    "number for a switch": ({"random_start": 1}, "true or false"),
    "switch for a number": ({"seed": True}, "`seed`"),
    "unknown preset": ({"preset": "papre", "method": "fare"}, "Did you mean 'paper'"),
    "unknown method": ({"method": "tecao"}, "Did you mean 'tecoa'"),
    "unknown method option": ({"method": "tima(marginn=1)"}, "margin"),
    "unknown setting": ({"leraning_rate": 1}, "is no setting"),
    "unknown optimizer": ({"optimizer": "adam"}, "adamw"),
    "unknown layers": ({"train": "first-2"}, "last-N"),
    "no layers": ({"train": "last-0"}, "last-N"),
    "alpha": ({"wise_ft": 1.5}, "`wise_ft` must be a number of at least 0 and at most 1"),
    "all for validation": ({"val_fraction": 1.0}, "`val_fraction`"),
    "ema": ({"ema": 1.0}, "`ema`"),
    "seed": ({"seed": -1}, "`seed`"),
}


@pytest.mark.parametrize(("given", "hint"), BAD.values(), ids=BAD)
def test_bad_settings(given: dict[str, Any], hint: str) -> None:
    with pytest.raises(ClipguardError, match=hint):
        resolve(given)


def test_bad_files(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    for content, hint in (("ep: 1\n", "Did you mean 'eps'"), ("- 1\n", "must hold settings"), ("eps: [1\n", "YAML")):
        file.write_text(content)
        with pytest.raises(ClipguardError, match=hint):
            resolve({}, read_config(file, SETTINGS))
    with pytest.raises(ClipguardError, match="Cannot read"):
        read_config(tmp_path / "none.yaml", SETTINGS)


def test_a_step_size_is_derived_and_never_larger_than_eps() -> None:
    assert FinetuneConfig(eps=4, attack_steps=10).attack_step == pytest.approx(1 / 255)
    assert FinetuneConfig(eps=4, attack_steps=1).attack_step == pytest.approx(4 / 255)
    assert FinetuneConfig(eps=0.5, norm="l2", attack_steps=5).attack_step == pytest.approx(0.25)
    assert FinetuneConfig(eps=0.5, norm="l2", step_size=0.2).attack_step == 0.2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"eps": "0.0157"}, r"did you mean 4 \(4/255\)"),
        ({"eps": 128, "norm": "l2"}, "did you mean 128 / 255"),
        ({"step_size": "0.0039"}, r"`step_size` 0.0039: did you mean 1 \(1/255\)"),
        ({"step_size": "x"}, "`step_size` 'x' is not a number"),
        ({"eps": "4,8"}, "`eps` must be one number"),
        ({"eps": [None]}, "`eps` takes numbers"),
        ({"method": 3}, "`method` must be a text"),
        ({"preset": 3}, "`preset` must be a text"),
        ({"model": ["tiny"]}, "`model` must be a text"),
    ],
)
def test_budgets_of_the_wrong_unit_and_values_of_the_wrong_type(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ClipguardError, match=message):
        resolve(given)


def test_budgets_may_be_written_as_fractions(tmp_path: Path) -> None:
    assert resolve({"eps": "4/255"}).eps == 4
    assert resolve({"eps": "0.0157/255"}).eps == 0.0157
    assert resolve({"eps": "128/255", "norm": "l2"}).eps_pixels == 128 / 255
    assert resolve({"eps": 4 / 255, "step_size": "0.05/255"}).step_size == 0.05
    (tmp_path / "a.yaml").write_text("eps: 4/255\nstep_size: 1/255\n", encoding="utf-8")
    config = resolve({}, read_config(tmp_path / "a.yaml", SETTINGS))
    assert (config.eps, config.step_size) == (4, 1)
    (tmp_path / "a.yaml").write_text("eps: 0.0157\n", encoding="utf-8")
    with pytest.raises(ClipguardError, match="did you mean 4"):
        resolve({}, read_config(tmp_path / "a.yaml", SETTINGS))


def test_small_steps_that_arrive_are_not_questioned() -> None:
    """A hundred steps of 0.025/255 are the usual ones at eps 1/255."""
    assert resolve({"eps": "1", "attack_steps": 100, "step_size": "0.025"}).step_size == 0.025


OFF = {"evaluation": False, "val_fraction": 0.0}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "leaf", "attack_steps": 10}, "leaf trains on no adversarial images: leave `attack_steps` out"),
        ({"method": "leaf(k=2)", "step_size": "1"}, "leave `step_size` out"),
        ({"method": "leaf", "random_start": False}, "leave `random_start` out"),
        ({"method": "leaf", "augment": "standard"}, "leaf trains the text tower alone: leave `augment` out"),
        ({"method": "leaf", "eps": "4", "evaluation": False}, "leaf attacks no images, .*: leave `eps` out"),
        ({"method": "leaf", "norm": "l2", "evaluation": False, "preset": "none"}, "leave `norm` out"),
        ({"method": "clean", "attack_steps": 3}, "clean trains on no adversarial images: leave `attack_steps` out"),
        ({"method": "clean", "eps": "4", **OFF}, "leave `eps` out"),
        (
            {"method": "fare", "templates": "single", "evaluation": False},
            "fare reads no class texts, .*`templates` out",
        ),
        ({"eval_dataset": "emoji-food", "evaluation": False}, "there is no final test: leave `eval_dataset` out"),
        ({"eval_samples": 10, **OFF}, "nothing is scored: leave `eval_samples` out"),
        ({"momentum": 0.5}, "`momentum` is of sgd, and the optimizer is adamw: leave `momentum` out"),
        ({"awp_warmup": 3}, "`awp_warmup` is the time before `awp` perturbs weights, and there is none"),
    ],
)
def test_what_is_given_and_would_do_nothing_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(FinetuneError, match=message):
        resolve(given)


def test_settings_that_do_something_are_taken() -> None:
    """Some by what they are for besides training; and those that nobody typed."""
    for given in (
        {"method": "leaf", "eps": "4", "norm": "linf"},  # of the final test
        {"method": "leaf", "templates": "single", "evaluation": False},  # the captions, where there are none
        {"method": "clean", "eps": "4", "evaluation": False},  # of validation
        {"method": "clean", "regularizer": "regmix", "attack_steps": 3},  # which needs adversarial images
        {"method": "fare", "templates": "single"},  # of the final test
        {"method": "fare", "templates": "single", "regularizer": "regmix", **OFF},
        {"method": "apt", "templates": "single", **OFF},
        {"method": "tecoa", "templates": "single", "eps": "4", "attack_steps": 2, **OFF},
        {"optimizer": "sgd", "momentum": 0.5},
        {"method": "apt", "model": "vit-b-32", "momentum": 0.5},  # its usual optimizer is sgd
        {"eval_samples": 10, "evaluation": False},  # of validation
    ):
        resolve(given)
    for method in METHODS:
        resolve({"method": method, "step_size": None, **OFF})
        whole = FinetuneConfig(method=method).to_dict() | {"eps": "4"}  # as in the run.json of an earlier run
        assert resolve({"method": "leaf", **OFF}, whole).attack_steps == whole["attack_steps"]
