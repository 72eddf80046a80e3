"""What results say of themselves: at a prompt, in a notebook, as tables; and that what is saved is what is loaded."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from attack_models import small_conv, uniform

import clipguard
from clipguard.attacks.methods.apgd import APGD
from clipguard.cli import run
from clipguard.core.html_table import html_table
from clipguard.finetuning.output.record import RUN_NAME


@pytest.fixture(scope="module")
def result() -> clipguard.BenchResult:
    """The embedded model on a few images of two sets."""
    return clipguard.bench("tiny", ["emoji-food", "emoji-animals"], "4", "pgd-2", n_samples=6, probes=False)


@pytest.fixture(scope="module")
def comparison(result: clipguard.BenchResult, tmp_path_factory: pytest.TempPathFactory) -> clipguard.Comparison:
    """A result with itself."""
    folder = result.save(tmp_path_factory.mktemp("runs") / "r")
    return clipguard.compare(folder, folder)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> clipguard.FinetuneResult:
    """One step, scored on four images."""
    small = {"n_samples": 20, "batch_size": 4, "eval_samples": 4, "steps": 1, "attack_steps": 1}
    return clipguard.finetune("tecoa", out=tmp_path_factory.mktemp("tuned") / "t", dataset="emoji-food", **small)  # type: ignore[typeddict-item]


@pytest.fixture(scope="module")
def attacked() -> clipguard.AttackResult:
    """Six images of a small network, of which the first has a wrong label."""
    model, images = small_conv(), uniform(6, 3, 8, 8)
    labels = model(images).argmax(dim=1)
    labels[0] = (labels[0] + 1) % 10
    return clipguard.attack(model, images, labels, eps="8", attack=APGD(iterations=10))


def rows_of(html: str) -> int:
    """Rows of the table's body; fails for anything but a table and lines below it."""
    assert set(re.findall(r"<(\w+)", html)) <= {"table", "thead", "tbody", "tr", "th", "td", "p"}
    return html.count("<tr>") - html.count("<thead><tr>")


def test_a_bench_result_says_what_was_measured(result: clipguard.BenchResult) -> None:
    first, *rows, average = repr(result).splitlines()
    assert first.startswith("BenchResult: Accuracy in %, with 95 % Wilson intervals; robust accuracy is an upper bound")
    assert "pgd-2 (linf)" in first
    cell = result.cells[0]
    shown = f"clean {100 * cell.accuracy:.1f} ({100 * cell.ci_low:.1f}–{100 * cell.ci_high:.1f}), eps 4/255 "
    assert rows[0].startswith(f"tiny on emoji-food, n 6: {shown}")
    assert average.startswith("tiny on average, n 12: clean ")
    html = result._repr_html_()
    assert rows_of(html) == 3
    assert first.removeprefix("BenchResult: ") in html
    assert result.to_markdown().startswith("| model | data set | n | clean | eps 4/255 |\n")
    assert len(result.to_frame()) == len(result.cells) == 4


def test_a_bench_result_without_cells_says_so(result: clipguard.BenchResult) -> None:
    empty = clipguard.BenchResult(result.run)
    assert repr(empty) == "BenchResult: No cell was finished."
    assert "No cell was finished." in empty._repr_html_()
    assert empty.to_markdown() == "No cell was finished.\n"
    assert list(empty.to_frame()) == list(result.to_frame())
    assert len(empty.to_frame()) == 0


def test_a_bench_result_of_many_models_is_cut_at_a_prompt(result: clipguard.BenchResult) -> None:
    many = clipguard.BenchResult(result.run, [replace(c, model=f"m{i}") for i in range(5) for c in result.cells])
    assert len(repr(many).splitlines()) == 1 + 12 + 1
    assert repr(many).endswith("... and 3 lines more")
    assert rows_of(many._repr_html_()) == 15


def test_a_saved_bench_result_is_that_of_the_command_line(result: clipguard.BenchResult, tmp_path: Path) -> None:
    folder = result.save(str(tmp_path / "run"))
    assert sorted(p.name for p in folder.iterdir()) == ["results.csv", "results.json", "results.md", "samples.parquet"]
    assert (folder / "results.md").read_text("utf-8") == result.to_markdown()
    for path in (folder, str(folder), folder / "results.json"):
        loaded = clipguard.BenchResult.load(path)
        assert loaded.to_json() == result.to_json()
        pd.testing.assert_frame_equal(loaded.samples, result.samples)
    with pytest.raises(clipguard.OutputError, match=r"`folder` .* exists already; nothing is overwritten"):
        result.save(folder)


def test_a_comparison_says_its_verdict(comparison: clipguard.Comparison) -> None:
    first, *rows = repr(comparison).splitlines()
    assert first == "Comparison: Inconclusive: tiny against tiny, on the same images, max drop 1 point."
    assert len(rows) == len(comparison.cells) == len(comparison.to_frame()) == 6
    assert rows[0].startswith("emoji-food clean, n 6: ")
    assert rows[0].endswith(": inconclusive")
    assert rows_of(comparison._repr_html_()) == 6
    assert comparison.to_markdown().startswith("| data set | cell | n | base | candidate |")
    assert list(comparison.to_frame()["verdict"]) == ["inconclusive"] * 6


def test_a_saved_comparison_is_whole(comparison: clipguard.Comparison, tmp_path: Path) -> None:
    stopped = {"looks": [4], "n": {"emoji-food": 4}, "of": {"emoji-food": 6}, "saved": 1 / 3}
    for number, one in enumerate((comparison, replace(comparison, sequential=stopped, differences=("eps",)))):  # type: ignore[arg-type]
        path = one.save(tmp_path / f"{number}.json")
        assert path.read_text("utf-8") == one.to_json() + "\n"
        assert clipguard.Comparison.load(str(path)) == one
    with pytest.raises(clipguard.OutputError, match=r"`path` .* exists already; nothing is overwritten"):
        comparison.save(tmp_path / "0.json")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 2}', None])
def test_what_is_no_comparison_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "c.json").write_text(content, encoding="utf-8")
    with pytest.raises(clipguard.ResultError, match=r"c\.json"):
        clipguard.Comparison.load(tmp_path / "c.json")


def test_damage_in_a_comparison_is_told(comparison: clipguard.Comparison, tmp_path: Path) -> None:
    for damage in ({"cells": [{"n": 1}]}, {"rules": {"max_drop": -1, "alpha": 0.05, "metrics": []}}, {"rules": None}):
        (tmp_path / "c.json").write_text(json.dumps(comparison.to_dict() | damage), encoding="utf-8")
        with pytest.raises(clipguard.ResultError, match="is no comparison with schema 1"):
            clipguard.Comparison.load(tmp_path / "c.json")


def test_a_fine_tuned_model_says_its_scores(tuned: clipguard.FinetuneResult) -> None:
    first, images, before, after = repr(tuned).splitlines()
    assert first == f"FinetuneResult: tecoa on emoji-food, from tiny, in {tuned.out}"
    assert images.startswith("step 1 of 1; in percent, with 95 % Wilson intervals, images: 4 held-out images of")
    assert before.startswith("tiny, n 4: clean ")
    assert after.startswith("fine-tuned, n 4: clean ")
    assert rows_of(tuned._repr_html_()) == 2
    frame = tuned.to_frame()
    assert list(frame["model"]) == ["tiny", "tiny", "fine-tuned", "fine-tuned"]
    assert list(frame["attack"]) == ["none", "pgd-10"] * 2
    assert (frame["accuracy"] == frame["correct"] / frame["n"]).all()
    table = [line for line in tuned.to_markdown().splitlines() if line.startswith("|")]
    assert table == [line for line in (tuned.out / "README.md").read_text("utf-8").splitlines() if line in table]
    assert len(table) == 4


def test_a_fine_tuning_run_is_loaded_from_its_folder(tuned: clipguard.FinetuneResult, tmp_path: Path) -> None:
    loaded = clipguard.FinetuneResult.load(str(tuned.out))
    assert loaded == tuned
    begun = {**tuned.run, "complete": False}
    del begun["evaluation"]
    (tmp_path / RUN_NAME).write_text(json.dumps(begun), encoding="utf-8")
    unfinished = clipguard.FinetuneResult.load(tmp_path)
    assert repr(unfinished).splitlines()[1:] == ["The run is not complete."]
    assert rows_of(unfinished._repr_html_()) == len(unfinished.to_frame()) == 0
    assert unfinished.to_markdown().endswith("The run is not complete.\n")
    with pytest.raises(clipguard.FinetuneError, match=r"holds no run\.json"):
        clipguard.FinetuneResult.load(tmp_path / "nowhere")


def test_an_attack_says_what_held(attacked: clipguard.AttackResult) -> None:
    robust, broken = int(attacked.robust.sum()), attacked.broken_by.count("apgd-ce")
    assert robust + broken == 5
    said = repr(attacked)
    assert said.startswith("AttackResult: apgd-ce(iterations=10) at linf 8/255, n 6: clean 83.3 (")
    assert f", robust {100 * robust / 6:.1f} (" in said
    assert "broken by: clean 1" in said
    assert attacked.eps == 8 / 255
    assert rows_of(attacked._repr_html_()) == 1
    assert attacked.to_markdown().splitlines()[2].startswith("| apgd-ce(iterations=10) | linf 8/255 | 6 | 83.3 (")
    frame = attacked.to_frame()
    assert torch.equal(torch.tensor(frame["robust"]), attacked.robust)
    assert torch.equal(torch.tensor(frame["adv_pred"]), attacked.prediction)
    assert [None if pd.isna(name) else name for name in frame["broken_by"]] == attacked.broken_by


def test_a_saved_attack_is_whole(attacked: clipguard.AttackResult, tmp_path: Path) -> None:
    loaded = clipguard.AttackResult.load(attacked.save(str(tmp_path / "a")))
    for name in ("x_adv", "robust", "prediction"):
        assert torch.equal(getattr(loaded, name), getattr(attacked, name))
    pd.testing.assert_frame_equal(loaded.to_frame(), attacked.to_frame())
    assert repr(loaded) == repr(attacked)
    assert loaded.costs == attacked.costs
    assert (loaded.broken_by, loaded.norm, loaded.eps) == (attacked.broken_by, "linf", 8 / 255)
    with pytest.raises(clipguard.OutputError, match=r"`folder` .* exists already; nothing is overwritten"):
        attacked.save(tmp_path / "a")
    (tmp_path / "a" / "adversarial.safetensors").write_bytes(b"half")
    for folder in ("a", "nowhere"):
        with pytest.raises(clipguard.ResultError, match=r"holds no whole result of `clipguard\.attack`"):
            clipguard.AttackResult.load(tmp_path / folder)


def test_findings_are_a_list_that_shows_itself() -> None:
    findings = clipguard.Findings(
        [
            clipguard.Finding("finite", "ok", "all are"),
            clipguard.Finding("class-order", "failure", "<b>a|b</b>", {"bad": 2}),
        ]
    )
    assert findings.verdict == "failure"
    counts, fine, bad = repr(findings).splitlines()
    assert counts == "Findings: 1 ok, 1 failure. docs/doctor.md explains every check."
    assert fine == "ok finite: all are"
    assert bad.startswith("failure class-order: <b>a|b</b> -> Give the names")
    assert list(findings.to_frame()["verdict"]) == ["ok", "failure"]
    assert r"&lt;b&gt;a\|b&lt;/b&gt;" in findings.to_markdown()
    assert "&lt;b&gt;a|b&lt;/b&gt;" in findings._repr_html_()
    assert rows_of(findings._repr_html_()) == 2
    assert repr(clipguard.Findings()) == "Findings: no checks. docs/doctor.md explains every check."


def test_names_in_a_table_are_text() -> None:
    html = html_table(["<i>"], [["<script>alert(1)</script>"]], "l", ["a & b"])
    assert html == (
        "<table><thead><tr><th>&lt;i&gt;</th></tr></thead><tbody><tr>"
        '<td style="text-align: left">&lt;script&gt;alert(1)&lt;/script&gt;</td></tr></tbody></table><p>a &amp; b</p>'
    )


def test_the_interface_is_listed_and_there() -> None:
    assert set(clipguard.__all__) <= set(dir(clipguard))
    errors = [getattr(clipguard, name) for name in clipguard.__all__ if name.endswith("Error")]
    assert all(issubclass(error, clipguard.ClipguardError) for error in errors)
    for name in clipguard.__all__:
        assert getattr(clipguard, name).__doc__ or name == "__version__"


@pytest.mark.usefixtures("short_square")
def test_saved_findings_are_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = clipguard.Finding("class-order", "failure", "two names", {"bad": 2})
    findings = clipguard.Findings([clipguard.Finding("finite", "ok", "all are"), bad])
    path = findings.save(tmp_path / "f.json")
    assert clipguard.Findings.load(str(path)) == findings
    assert path.read_text("utf-8") == findings.to_json() + "\n"
    with pytest.raises(clipguard.OutputError, match="exists already; nothing is overwritten"):
        findings.save(path)
    assert run(["-q", "doctor", "-m", "tiny", "-d", "emoji-food", "-n", "4", "-a", "pgd-2", "-f", "json"]) in (0, 1)
    (tmp_path / "doctor.json").write_text(capsys.readouterr().out, encoding="utf-8")
    assert len(clipguard.Findings.load(tmp_path / "doctor.json")) == 19
    for content in ("", "[]", "{}", '{"schema": 1, "findings": [{"id": "mine", "verdict": "ok"}]}'):
        (tmp_path / "c.json").write_text(content, encoding="utf-8")
        with pytest.raises(clipguard.ResultError, match=r"c\.json"):
            clipguard.Findings.load(tmp_path / "c.json")


@pytest.mark.parametrize("name", ["AttackResult", "BenchResult", "Comparison", "Findings", "FinetuneResult"])
@pytest.mark.parametrize("wrong", [5, None, ["a"]])
def test_what_is_no_path_is_not_loaded(name: str, wrong: Any) -> None:
    with pytest.raises(clipguard.ClipguardError, match=r"must be a text or a path, not"):
        getattr(clipguard, name).load(wrong)


def test_what_is_no_path_is_not_written(
    result: clipguard.BenchResult, comparison: clipguard.Comparison, attacked: clipguard.AttackResult
) -> None:
    for one in (result, comparison, attacked, clipguard.Findings()):
        for wrong in (None, 3):
            with pytest.raises(clipguard.OutputError, match="must be a text or a path"):
                one.save(wrong)  # type: ignore[attr-defined]


def test_a_report_takes_results_in_memory_and_on_disk(
    result: clipguard.BenchResult, attacked: clipguard.AttackResult, tmp_path: Path
) -> None:
    folder = result.save(tmp_path / "r")
    for number, runs in enumerate((result, [result], [folder, result])):
        page = clipguard.report(runs, tmp_path / f"{number}.html", gallery=0)
        assert "emoji-food" in page.read_text("utf-8")
    with pytest.raises(clipguard.ResultError, match=r"what `AttackResult\.save` wrote, .* report folders of"):
        clipguard.report(attacked.save(tmp_path / "a"), tmp_path / "a.html")
    with pytest.raises(clipguard.ResultError, match="in memory has no finished cell"):
        clipguard.report(clipguard.BenchResult(result.run), tmp_path / "e.html")
