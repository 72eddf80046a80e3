"""Runs that learn prompts: they change nothing else, go on where they stopped, and `bench` scores what they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import StopsAfter, make_config, make_trainer, write_vit

from clipguard.benchmark.protocols import make_plan
from clipguard.benchmark.results.result import BenchResult
from clipguard.benchmark.runner import run_plan
from clipguard.cli import run
from clipguard.core.errors import ClipguardError, FinetuneError
from clipguard.core.progress import Silent
from clipguard.finetuning.checks import check
from clipguard.finetuning.output.record import RunRecord
from clipguard.finetuning.run import resume_finetune, run_finetune
from clipguard.finetuning.settings import resolve
from clipguard.finetuning.training.metrics import read_metrics
from clipguard.finetuning.tuned.prompt_text import CoupledPrompts, PromptText
from clipguard.models import load_model
from clipguard.models.loading import hash_tensors
from clipguard.models.prompts.files import read_prompts, with_prompts
from clipguard.store.store import Store

ENDLESS = {"val_fraction": 0.25, "eval_samples": 12}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A ViT of three blocks, whose text has two."""
    return write_vit(tmp_path_factory.mktemp("deep") / "vit", text_layers=2, layers=3)


def tune(model: str, dataset: str, out: Path, method: str, **settings: Any) -> RunRecord:
    config = make_config(model, dataset, method, **{"augment": "standard", **ENDLESS, **settings})
    return run_finetune(config, out, "").run


def bench(model: str, dataset: str, prompts: Path | str | None, **settings: Any) -> BenchResult:
    plan = make_plan(
        [model], [dataset], **{"attacks": "pgd-10", "eps": "8", "n_samples": "all", "prompts": prompts, **settings}
    )
    return run_plan(plan, probes=False)


@pytest.mark.parametrize("method", ["apt", "apt(class_specific=true,attack=perturbed)", "apt(attack=constant)", "fap"])
def test_only_the_prompt_is_trained(method: str, deep: str, images: str, tmp_path: Path) -> None:
    """Every weight of both towers keeps its bits, and all parts of the prompts move."""
    config = make_config(deep, images, method, noise=0.01)
    trainer = make_trainer(config, tmp_path)
    text = trainer.model.text
    assert isinstance(text, PromptText)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    whole = hash_tensors({n: p for n, p in text._model[0].state_dict().items() if "learned_prompts" not in n})
    trainer.train(Silent(), 0)
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert "text.context" in changed
    assert all(name.startswith("text.") for name in before)  # of a checkpoint, too: the weights are not in it
    saved = trainer.checkpoints.latest()
    assert saved is not None
    assert saved["student"].keys() == before.keys()
    assert trainer.optimizers.keys() == {"prompts"}
    assert {id(p) for p in trainer.model.prompt_parameters()} == {
        id(p) for p in trainer.model.parameters() if p.requires_grad
    }
    after = hash_tensors({n: p for n, p in text._model[0].state_dict().items() if "learned_prompts" not in n})
    assert after == whole == hash_tensors(load_model(deep).model.state_dict())
    if method == "fap":
        assert isinstance(text.coupled, CoupledPrompts)
        assert {f"text.coupled.{name}" for name, _ in text.coupled.named_parameters()} <= changed


def test_the_perturbed_prompt_ascends_and_is_put_back(vit: str, images: str, tmp_path: Path) -> None:
    text = make_trainer(make_config(vit, images, "apt(tokens=2)"), tmp_path).model.text
    assert isinstance(text, PromptText)
    start, target = text.context.detach().clone(), torch.ones(16)
    seen: list[torch.Tensor] = []

    def objective(rows: torch.Tensor) -> torch.Tensor:
        seen.append(rows.detach())
        return rows @ target

    leaf = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((text.encode(leaf) @ target).mean(), leaf)
    values_of = text.ascending(0.5)
    first, second = values_of(objective), values_of(objective)
    assert torch.equal(first, seen[0] @ target)
    torch.testing.assert_close(seen[1], text.encode(start + 0.5 * gradient).detach())
    assert second.mean() > first.mean()
    assert torch.equal(text.context, start)


@pytest.mark.parametrize("method", ["apt", "apt(init=a_photo_of_a,position=middle)", "fap"])
def test_bench_scores_the_file_as_the_run_did(method: str, deep: str, images: str, tmp_path: Path) -> None:
    vit = deep
    run_ = tune(vit, images, tmp_path / "tuned", method)
    files = {path.name for path in (tmp_path / "tuned").iterdir()}
    assert files == {"prompts.safetensors", "run.json", "metrics.jsonl", "curves.png", "README.md"}
    chosen = {"split": None, "n_samples": "all"}
    result = bench(vit, images, tmp_path / "tuned", **chosen)
    rows = result.samples[result.samples["index"].isin(run_["evaluation"]["indices"])]
    scores = run_["evaluation"]["scores"]["fine-tuned"]
    for attack, kind in (("none", "clean"), ("pgd-10", "robust")):
        assert int(rows[rows["attack"] == attack]["robust"].sum()) == scores[kind]["correct"]  # type: ignore[literal-required]
    assert set(result.samples["model"]) == {f"{vit} + prompts tuned"}
    model = result.run["models"][f"{vit} + prompts tuned"]
    assert (model["name"], model["text_sha256"]) == (vit, run_["sha256"])
    card = (tmp_path / "tuned" / "README.md").read_text()
    assert f"`clipguard bench --model {vit} --prompts tuned/prompts.safetensors`" in card
    assert run_["resolved"]["text_mode"] == "prompts"


def test_the_file_is_what_was_trained(deep: str, images: str, tmp_path: Path) -> None:
    """FAP's linear layers come to the same vectors in the file: embeddings and texts are equal to the bit."""
    trainer = make_trainer(make_config(deep, images, "fap"), tmp_path)
    trainer.train(Silent(), 0)
    text = trainer.model.text
    assert isinstance(text, PromptText)
    path = tmp_path / "prompts.safetensors"
    path.write_bytes(text.learned().to_bytes())
    made, x = with_prompts(load_model(deep), read_prompts(path)), torch.rand(2, 3, 16, 16)
    trainer.model.eval()
    with torch.no_grad():
        normalised = (x - trainer.model.image.mean) / trainer.model.image.std
        assert torch.equal(made.model.encode_image(normalised), trainer.model(x))  # type: ignore[operator]
        assert torch.equal(made.text_features(text.class_names, ["{}"]).T, trainer.model())


def test_stopped_and_resumed_it_ends_bit_identical(deep: str, images: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 6, "save_every": 2, "ema": 0.5, "evaluation": False, "val_fraction": 0}
    for method, folder in (("apt(attack=perturbed,tokens=3)", "apt"), ("fap", "fap")):
        config = make_config(deep, images, method, **settings)
        run_finetune(config, tmp_path / folder, "")
        with pytest.raises(KeyboardInterrupt):
            run_finetune(config, tmp_path / f"{folder}-stopped", "", StopsAfter(24 + 3))
        assert not (tmp_path / f"{folder}-stopped" / "prompts.safetensors").exists()
        resume_finetune(tmp_path / f"{folder}-stopped")
        written = [(tmp_path / f / "prompts.safetensors").read_bytes() for f in (folder, f"{folder}-stopped")]
        assert written[0] == written[1]
        rows = [[r for r in read_metrics(tmp_path / f) if "loss" in r] for f in (folder, f"{folder}-stopped")]
        assert rows[0] == rows[1]


def test_without_prompts_keys_and_records_are_as_before(vit: str, images: str, tmp_path: Path) -> None:
    """And with them they carry the file's hash, so that nothing is taken for what it is not."""
    tune(vit, images, tmp_path / "a", "apt(tokens=2)", evaluation=False)
    keys = {}
    for name, prompts in (("plain", None), ("a", str(tmp_path / "a"))):
        store = Store(tmp_path / f"store-{name}")
        plan = make_plan([vit], [images], attacks="none", eps="8", n_samples="all", prompts=prompts)
        result = run_plan(plan, store=store, probes=False)
        assert ("prompts" in result.run["plan"]) == (prompts is not None)
        assert ("prompts" in plan.to_dict()) == (prompts is not None)
        (cell,) = store.cells()
        keys[name] = cell.key
    run_ = json.loads((tmp_path / "a" / "run.json").read_text())
    assert "prompts" not in keys["plain"]
    assert keys["a"]["prompts"] == run_["sha256"]
    assert keys["a"]["weights"] == keys["plain"]["weights"]
    assert keys["a"]["text"] != keys["plain"]["text"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": "all"}, "apt trains prompts and no weights: leave `train` out"),
        ({"awp": 1e-3}, "apt trains prompts and no weights: leave `awp` out"),
        ({"lora": 4}, "leave `lora` out"),
        ({"wise_ft": 0.5}, "leave `wise_ft` out"),
    ],
)
def test_settings_of_weights_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(FinetuneError, match=message):
        check(resolve({"method": "apt", **settings}))


def test_fap_says_which_towers_it_takes(images: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    line = ["-q", "finetune", "--method", "fap", "--dataset", images, "--out", str(tmp_path / "out")]
    assert run(line) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "open_clip's own ViT; that of tiny is TimmModel: choose another model, or method apt" in err
    assert not (tmp_path / "out").exists()


def test_prompts_of_other_classes_are_refused_in_one_line(
    vit: str, images: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tune(vit, images, tmp_path / "a", "apt(tokens=2,class_specific=true)", evaluation=False)
    line = ["-q", "bench", "-m", vit, "-d", "emoji-food", "--prompts", str(tmp_path / "a"), "--no-store", "-n", "8"]
    assert run(line) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "has context vectors for its 3 training classes alone, without" in err
    with pytest.raises(ClipguardError, match=r"`prompts`: there is no file .*/b"):
        bench(vit, images, tmp_path / "b")


@pytest.mark.usefixtures("short_square")
def test_attack_and_doctor_see_the_prompts(
    vit: str, images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tune(vit, images, tmp_path / "a", "apt(tokens=2)", evaluation=False)
    common = ["-m", vit, "-d", images, "--attack", "pgd-10", "--eps", "8", "-n", "6", "--prompts", str(tmp_path / "a")]
    assert run(["-q", "attack", *common, "--out", str(tmp_path / "attacked")]) == 0
    record = json.loads((tmp_path / "attacked" / "run.json").read_text())["run"]
    capsys.readouterr()
    run(["-q", "doctor", *common, "--format", "json"])
    doctor = json.loads(capsys.readouterr().out)["run"]
    for models in (record["models"], doctor["models"]):
        assert [*models] == [f"{vit} + prompts a"]
        assert models[f"{vit} + prompts a"]["text"].startswith("2 learned context vectors in text (apt), from")
