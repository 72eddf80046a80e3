"""The net under all: planted faults in real files warn wherever they are used, and honest sets do not."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from scipy import stats

import clipguard
from clipguard.cli import run
from clipguard.data import load_dataset
from clipguard.sanity.entries import alarms
from clipguard.sanity.predictions import (
    PREDICTION_CHECKS,
    above_chance,
    chance,
    class_order,
    predicted_classes,
    prediction_findings,
)

PROMPT = "a drawing of a {}."
EACH = 9  # images a class
ASSETS = Path(clipguard.__file__).parent / "assets" / "models" / "tiny"
FAULTS = {
    "another order": ["above-chance", "class-order"],
    "ids": ["above-chance"],
    "pixels": ["above-chance", "predicted-classes"],
}
ORDER, IDS, PIXELS = "classes in another order", "class names that are ids or numbers", "another normalisation"
WEIGHTS = "another base model or activation"
CAUSES = {
    "another order": [ORDER, IDS, PIXELS, WEIGHTS],
    "ids": [f"{IDS}, as 'class_0'", ORDER, PIXELS, WEIGHTS],
    "pixels": [IDS, ORDER, PIXELS, WEIGHTS],
}


@pytest.fixture(scope="module")
def food(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`food.parquet`: images of emoji-food with labels that are numbers; and files of names, right and wrong."""
    folder = tmp_path_factory.mktemp("food")
    data = load_dataset("emoji-food")
    chosen = [i for label in range(9) for i in np.flatnonzero(data.labels == label)[:EACH].tolist()]
    rows = []
    for index in chosen:
        content = io.BytesIO()
        data.image(index).convert("RGB").save(content, "PNG")
        rows.append({"image": {"bytes": content.getvalue()}, "label": int(data.labels[index])})
    pd.DataFrame(rows).to_parquet(folder / "food.parquet")
    names = data.class_names
    for name, content in (
        ("right", names),
        ("another order", [*names[1:], names[0]]),
        ("ids", [f"class_{i}" for i in range(9)]),
        ("some moved", [*names[1:5], names[0], *names[5:]]),
    ):
        (folder / f"{name}.txt").write_text("\n".join(content) + "\n")
    return folder


def options(food: Path, fault: str) -> list[str]:
    """For any command."""
    names = fault if (food / f"{fault}.txt").exists() else "right"
    pixels = ["-m", "tiny", "--normalization", "0,0,0/255,255,255"] if fault == "pixels" else []
    return ["-d", str(food / "food.parquet"), "--classes", str(food / f"{names}.txt"), *pixels]


def right_by_open_clip(food: Path) -> int:
    """How many images open_clip alone gets right, with the right names."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{ASSETS}")
    names = (food / "right.txt").read_text().splitlines()
    table = pd.read_parquet(food / "food.parquet")
    from PIL import Image

    images = [preprocess(Image.open(io.BytesIO(image["bytes"])).convert("RGB")) for image in table["image"]]
    with torch.no_grad():
        text = model.eval().encode_text(
            open_clip.get_tokenizer(f"local-dir:{ASSETS}")([PROMPT.format(name) for name in names]), normalize=True
        )
        features = model.encode_image(torch.stack(images), normalize=True)
    return int(((features @ text.T).argmax(dim=1).numpy() == table["label"]).sum())


def warned(entry: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f["id"]: f for f in entry["findings"] if f["verdict"] in ("warning", "failure")}


@pytest.mark.parametrize("fault", FAULTS)
def test_bench_says_it_in_the_table_the_files_and_on_stderr(
    fault: str, food: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    bench = ["bench", *options(food, fault), "--attack", "none", "--templates", PROMPT, "--no-store"]
    assert run([*bench, "--out", str(out)]) == 0
    table, err = (" ".join(text.split()) for text in capfd.readouterr())
    content = json.loads((out / "results.json").read_text())
    (entry,) = content["run"]["findings"]
    found = warned(entry)
    assert sorted(found) == sorted(FAULTS[fault])
    evidence = found["above-chance"]["evidence"]
    listed = [evidence.index(cause) for cause in CAUSES[fault]]
    assert listed == sorted(listed), evidence
    for check, finding in found.items():
        for said in (table, err, (out / "results.md").read_text()):
            assert f"WARNING {check}, " in said
        assert " ".join(finding["evidence"].split())[:60] in table
    if fault == "another order":
        n = found["class-order"]["numbers"]
        assert n["reordered"] == right_by_open_clip(food)  # what the right order gives
        assert f"{n['reordered']} of {9 * EACH} images would be right, not {content['cells'][0]['correct']}" in err


@pytest.mark.parametrize("more", [{"engine": "reference"}, {}], ids=["reference", "clipguard"])
def test_attacked_runs_and_reruns_from_the_store_say_it(food: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    for _ in range(2):
        result = clipguard.bench(
            ["tiny"],
            [str(food / "food.parquet")],
            ["1"],
            ["apgd-ce(iterations=2)"],
            store=tmp_path,
            n_samples=None,
            classes=food / "another order.txt",
            **more,
        )
        assert {"above-chance", "class-order"} <= set(warned(result.run["findings"][0]))


@pytest.mark.parametrize(("command", "fault"), [("attack", "another order"), ("attack", "ids"), ("doctor", "ids")])
def test_attack_and_doctor_say_it(
    command: str, fault: str, food: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fast = ["--attack", "fgsm", "--eps", "1", "-n", "36", "--templates", PROMPT]
    out = ["--out", str(tmp_path / "out")] if command == "attack" else []
    code = run([command, *options(food, fault), *fast, *out])
    table, err = (" ".join(text.split()) for text in capfd.readouterr())
    assert code in (0, 1)
    assert "WARNING above-chance" in err
    assert "above-chance" in table
    if command == "attack":
        content = json.loads((tmp_path / "out" / "run.json").read_text())
        assert "above-chance" in warned(content["run"]["findings"][0])


def test_labels_that_the_model_made_are_not_checked(tmp_path: Path) -> None:
    load_dataset("emoji-food").image(0).convert("RGB").save(tmp_path / "a.png")
    attack = ["-q", "attack", str(tmp_path / "a.png"), "--classes", "fruit,drink", "--attack", "fgsm"]
    assert run([*attack, "--out", str(tmp_path / "out")]) == 0
    assert "findings" not in json.loads((tmp_path / "out" / "run.json").read_text())["run"]


def test_finetune_says_it_of_both_models(food: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tuned"
    short = ["--steps", "1", "--attack-steps", "1", "--batch-size", "2", "--lr", "1e-9", "--val-fraction", "0.7"]
    tecoa = ["finetune", "--method", "tecoa", *options(food, "another order"), *short, "--out", str(out)]
    assert run(tecoa) == 0
    table, err = (" ".join(text.split()) for text in capfd.readouterr())
    found = json.loads((out / "run.json").read_text())["evaluation"]["findings"]
    assert ["above-chance" in warned(entry) for entry in found] == [True, True]
    for who in ("tiny", "fine-tuned"):
        line = f"WARNING above-chance, {who} on "
        assert line in err
        assert line in table
        assert line in (out / "README.md").read_text()


def test_compare_says_it_of_results_and_of_models(
    food: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bench = ["-q", "bench", *options(food, "another order"), "--attack", "none", "--no-store"]
    assert run([*bench, "--out", str(tmp_path / "base")]) == 0
    old = json.loads((tmp_path / "base" / "results.json").read_text())
    del old["run"]["findings"]  # of an older clipguard
    (tmp_path / "base" / "results.json").write_text(json.dumps(old))
    capfd.readouterr()
    model = "tiny#normalization=clip"
    assert run(["compare", str(tmp_path / "base"), model, "--no-store", "--max-drop", "90"]) == 0
    table, err = (" ".join(text.split()) for text in capfd.readouterr())
    for who in ("tiny", model):
        assert f"WARNING above-chance, {who} on " in err
        assert f"WARNING above-chance, {who} on " in table


@pytest.mark.parametrize("n", [20, 50, 200])
def test_honest_sets_are_quiet(n: int) -> None:
    sets = ["emoji-animals", "emoji-food", "emoji-objects", "emoji-travel"]
    result = clipguard.bench(["tiny"], sets, ["1"], ["none"], n_samples=n)
    assert len(result.run["findings"]) == 4
    assert alarms(result.run["findings"]) == []


def test_some_names_that_changed_places_are_found_though_accuracy_is_above_chance(food: Path) -> None:
    settings = {"n_samples": None, "classes": food / "some moved.txt", "templates": PROMPT}
    result = clipguard.bench(["tiny"], [str(food / "food.parquet")], ["1"], ["none"], **settings)
    found = warned(result.run["findings"][0])
    assert set(found) == {"class-order"}
    assert result.cells[0].correct < found["class-order"]["numbers"]["reordered"] == right_by_open_clip(food)


# The numbers -----------------------------------------------------------------------------------------------------


def random_case(seed: int, classes: int = 5, n: int = 60) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(classes), 2)
    labels, predictions = (rng.choice(classes, n, p=p) for p in shares)
    return labels, predictions


@pytest.mark.parametrize("seed", range(4))
def test_chance_is_what_shuffled_predictions_score(seed: int) -> None:
    labels, predictions = random_case(seed)
    rng = np.random.default_rng(0)
    shuffled = np.mean([(labels == rng.permutation(predictions)).mean() for _ in range(4000)])
    assert max(float(shuffled), 1 / 5) == pytest.approx(chance(labels, predictions, 5), abs=0.005)


def verdict(right: int, n: int, classes: int, names: list[str] | None = None) -> str:
    """Of labels and predictions that are spread evenly, as far as they go."""
    labels = np.arange(n) % classes
    predictions = np.where(np.arange(n) < right, labels, (labels + classes // 2) % classes)
    nothing = class_order(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64))
    return above_chance(labels, predictions, classes, nothing, names or []).verdict


def test_p_values_and_limits_are_scipys() -> None:
    labels, predictions = np.arange(200) % 10, np.where(np.arange(200) < 21, np.arange(200) % 10, 3)
    numbers = prediction_findings(labels, predictions, 10)[0].numbers
    right, expected = int((labels == predictions).sum()), numbers["chance"]
    assert numbers["p_above"] == pytest.approx(stats.binom.sf(right - 1, 200, expected))
    assert numbers["p_below"] == pytest.approx(stats.binom.cdf(right, 200, expected))


@pytest.mark.parametrize(
    ("right", "n", "classes", "said"),
    [
        (38, 45, 9, "ok"),
        (4, 45, 9, "warning"),  # names that are ids
        (0, 20, 9, "warning"),
        (3, 20, 9, "not checked"),  # a good model may be so unlucky
        (20, 20, 2, "ok"),
        (10, 20, 2, "not checked"),
        (100, 200, 2, "warning"),
        (120, 200, 2, "ok"),
        (3, 20, 2, "warning"),  # below chance
        (1, 200, 1000, "warning"),
        (20, 200, 1000, "ok"),
        (0, 20, 1000, "not checked"),
        (30, 200, 211, "ok"),
    ],
)
def test_it_speaks_where_the_images_can_tell(right: int, n: int, classes: int, said: str) -> None:
    assert verdict(right, n, classes) == said


def test_codes_as_names_are_suspicious_above_chance_too() -> None:
    assert verdict(11, 50, 9) == "ok"
    assert verdict(11, 50, 9, [f"n0144076{i}" for i in range(9)]) == "warning"
    assert verdict(30, 50, 9, [f"n0144076{i}" for i in range(9)]) == "ok"


@pytest.mark.parametrize("classes", [2, 9])
def test_images_of_one_class_are_judged_by_the_number_of_classes(classes: int) -> None:
    labels = np.zeros(50, dtype=np.int64)
    assert prediction_findings(labels, labels, classes)[0].verdict == "ok"
    assert prediction_findings(labels, labels + 1, classes)[0].verdict == "warning"


def test_a_constant_answer_on_an_unbalanced_set_is_no_knowledge() -> None:
    labels = np.repeat([0, 1], [180, 20])
    found = {f.id: f for f in prediction_findings(labels, np.zeros(200, dtype=np.int64), 2, ["no", "yes"])}
    assert found["above-chance"].numbers["chance"] == pytest.approx(0.9)
    assert found["predicted-classes"].verdict == "warning"
    assert "every image is taken for 'no'" in found["predicted-classes"].evidence


def test_a_class_that_is_never_predicted() -> None:
    labels = np.arange(90) % 9
    predictions = np.where(labels == 4, 5, labels)
    finding = predicted_classes(labels, predictions, [f"name {i}" for i in range(9)])
    assert finding.verdict == "warning"
    assert "1 of the 9 classes with images are never predicted" in finding.evidence
    assert "'name 4' (10 images)" in finding.evidence
    few = np.arange(90) % 9 != 4
    assert predicted_classes(np.append(labels[few], 4), np.append(predictions[few], 5)).verdict == "ok"


def test_the_checks_come_in_their_order() -> None:
    assert tuple(f.id for f in prediction_findings([0], [0], 2)) == PREDICTION_CHECKS


def test_the_figures_of_the_docs_are_those_of_the_study() -> None:
    root = Path(__file__).parents[2]
    study = json.loads((root / "benchmarks" / "results" / "chance_check.json").read_text())
    rows: dict[tuple[str, Any], list[float]] = {}
    for entry in [*study["honest"], *study["faults"]]:
        key = entry["task"], entry.get("accuracy", entry.get("fault"))
        rows.setdefault(key, []).append(round(100 * entry["warned"]["any"], 1))
    cells = [line.split("|")[2:-1] for line in (root / "docs" / "doctor.md").read_text().splitlines()]
    numbers = [row for row in cells if len(row) == 5 and row[0].strip().replace(".", "").isdigit()]
    printed = [[float(cell) for cell in row] for row in numbers]
    assert len(printed) == 31
    assert all(row in rows.values() for row in printed)


def test_too_few_images_to_tell_is_said_and_is_no_warning() -> None:
    labels = np.arange(45) % 9
    predictions = np.where(np.arange(45) < 6, labels, (labels + 1 + np.arange(45) % 8) % 9)
    finding = prediction_findings(labels, predictions, 9)[0]
    assert finding.verdict == "not checked"
    (line,) = alarms([{"model": "m", "dataset": "d", "findings": [finding.to_dict()]}])
    right = int((labels == predictions).sum())
    assert line.startswith(f"NOT CHECKED above-chance, m on d: {right} of 45 images are right when clean")
    assert "too few images to tell" in line
    enough = prediction_findings(np.tile(labels, 5), np.tile(predictions, 5), 9)[0]
    assert "undecided" not in enough.numbers
