"""`clipguard report` on real runs: what the page says, what it refuses, and what it leaves out with a note."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from clipguard.adversarial.replay import ReplayRequest, replay_images
from clipguard.benchmark.rerun_command import rerun
from clipguard.benchmark.results.result import BenchResult
from clipguard.cli import run
from clipguard.reporting import classes, page
from clipguard.reporting.board import CLEAN, Board, make_boards, read_runs, short_names
from clipguard.reporting.gallery import choose, stored_pictures
from clipguard.reporting.plots import ROBUST, WRONG, share_table
from clipguard.sanity.checks import VERDICTS
from clipguard.statistics.intervals import wilson_interval

HOSTILE = "<b>fruit</b></script><script>alert(1)</script> & \"x\" 'y' {{ 7 }}"
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def board(runs: Path) -> Board:
    (found,) = make_boards(read_runs([runs / "both"])[0])
    return found


def edited(source: Path, target: Path, edit: Edit) -> Path:
    """A copy of a run with another `run` in its results.json."""
    shutil.copytree(source, target)
    file = target / "results.json"
    content = json.loads(file.read_text())
    edit(content["run"])
    file.write_text(json.dumps(content))
    return target


def page_of(tmp_path: Path, *arguments: str | Path) -> str:
    out = tmp_path / "page.html"
    assert run(["-q", "report", *map(str, arguments), "--out", str(out)]) == 0
    return out.read_text()


def test_the_page_holds_everything_and_needs_nothing(runs: Path, tmp_path: Path) -> None:
    text = page_of(tmp_path, runs / "both", runs / "images", "--gallery", "5")
    result = BenchResult.load(runs / "both")
    for cell in result.cells:
        assert f"{100 * cell.accuracy:.1f}<small>{100 * cell.ci_low:.1f}–{100 * cell.ci_high:.1f}</small>" in text
    for value in (result.run["models"]["tiny"]["sha256"], result.run["datasets"]["emoji-food"]["fingerprint"]):
        assert value in text
    assert "Croce" not in text  # nothing of AutoAttack ran
    assert "Madry" in text
    assert "could not be attacked again" not in text
    assert text.count("<li>\n<h3>") == 5
    assert len(text) < 10_000_000
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#|https://(?:arxiv\.org|huggingface\.co))""", text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) <= set(ids)


def test_names_are_text_wherever_they_come_from(runs: Path, tmp_path: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        content["datasets"]["emoji-travel"]["class_names"][0] = HOSTILE
        content["findings"] = [
            {"model": "tiny", "dataset": HOSTILE, "findings": [{"id": "x", "verdict": "warning", "evidence": HOSTILE}]}
        ]

    source = edited(runs / "other", tmp_path / "run", rename)
    text = page_of(tmp_path, source, "--gallery", "0", "--title", HOSTILE)
    assert "<b>" not in text
    assert text.count("<script>") == text.count("</script>") == 1
    assert "alert(1)" in text
    out = tmp_path / "page.md"
    assert run(["-q", "report", str(source), "--format", "md", "--out", str(out), "--title", HOSTILE]) == 0
    assert "<b>" not in out.read_text()
    assert "<script>" not in out.read_text()


def test_averages_are_over_the_data_sets_that_all_models_have(runs: Path, board: Board) -> None:
    assert board.shared == ["emoji-food", "emoji-animals"]
    found = board.point("tiny", "average", "pgd-10", 4.0)
    cells = [board.cell("tiny", name, "pgd-10", 4.0) for name in board.shared]
    assert found is not None
    assert found[0] == pytest.approx(sum(c.accuracy for c in cells if c) / 2)
    (mixed,) = make_boards(read_runs([runs / "both", runs / "other"])[0])
    assert mixed.models == board.models  # tiny's cells of both runs are one model's
    assert mixed.shared == board.shared
    assert mixed.datasets[-1] == "emoji-travel"


def test_one_name_for_two_results_is_told_apart(runs: Path, tmp_path: Path) -> None:
    copy = edited(runs / "both", tmp_path / "copy", lambda r: r.update(quantize=True))
    read, _ = read_runs([runs / "both", copy])
    (both,) = make_boards(read)
    assert {"tiny (run 1)", "tiny (run 2)"} <= set(both.models)
    assert page.make_report(read).notes == ["Run 2 is not like run 1: quantize is False in run 1 and True in run 2."]


def test_classes_are_ordered_by_their_robust_accuracy(board: Board) -> None:
    s = board.samples
    rows = s[(s["model"] == "tiny") & (s["dataset"] == "emoji-food")]
    table = classes.class_table(rows)
    means = table.drop(columns=0.0).mean(axis=1).tolist()
    assert means == sorted(means)
    for label in table.index:
        own = rows[(rows["label"] == label) & (rows["eps"] == 1)]
        assert table.loc[label, 1.0] == own.groupby("index")["robust"].all().mean()
        assert table.loc[label, 0.0] == rows[(rows["label"] == label) & (rows["eps"] == 0)]["robust"].mean()


def test_many_classes_are_cut_to_both_ends() -> None:
    rows = [
        {"model": "m", "dataset": "d", "index": k * 100 + i, "label": k, "norm": "linf", "eps": eps}
        | {"attack": "a" if eps else CLEAN, "clean_pred": k, "adv_pred": k if not eps or i >= k else 0}
        | {"robust": not eps or i >= k, "broken_by": None if not eps or i >= k else "a", "distance": 0.0, "margin": 1.0}
        for k in range(40)
        for i in range(50)
        for eps in (0.0, 1.0)
    ]
    names = [f"class {k}" for k in range(40)]
    run_facts = {"datasets": {"d": {"class_names": names}}, "models": {"m": {"sha256": ""}}}
    result = BenchResult(run_facts)
    result.add(rows)
    (board,) = make_boards([page.Run(1, "x", result)])
    (plot,) = classes.heat_maps(board)
    assert "12 least and 12 most robust of 40 classes" in plot.title
    shown = [row[0] for row in plot.rows]
    assert shown == [f"class {k}" for k in (*range(39, 27, -1), *range(11, -1, -1))]
    top = classes.confusions(board, 1.0)[0]
    assert (top.true, top.taken_for, top.count, top.of) == ("class 39", "class 0", 39, 50)


def test_shares_are_those_of_the_rows(board: Board) -> None:
    table = share_table(board, "pgd-10")
    assert table.sum(axis=1).tolist() == pytest.approx([1.0] * 6)
    s = board.samples
    rows = s[(s["model"] == "tiny") & (s["attack"] == "pgd-10") & (s["eps"] == 4)]
    assert table.loc[("tiny", 4.0), ROBUST] == rows["robust"].mean()
    assert table.loc[("tiny", 4.0), WRONG] == (rows["clean_pred"] != rows["label"]).mean()


def test_the_gallery_is_of_broken_images_of_many_classes(board: Board) -> None:
    chosen = choose(board, 8)
    assert len({(c.model, c.request.dataset, c.request.index) for c in chosen}) == 8
    assert len({(c.model, c.request.dataset) for c in chosen}) == 4
    s = board.samples
    for c in chosen:
        image = s[(s["model"] == c.model) & (s["dataset"] == c.request.dataset) & (s["index"] == c.request.index)]
        broken = image[(image["attack"] != CLEAN) & ~image["robust"]]
        assert c.request.eps == broken["eps"].min()


def test_an_image_attacked_again_comes_out_as_it_was(runs: Path, board: Board) -> None:
    result = BenchResult.load(runs / "both")
    wanted = choose(board, 1)[0].request
    (replay,) = replay_images(result.run, [wanted])
    image = replay.image
    assert replay.request == wanted
    assert image is not None
    s = result.samples
    then = s[(s["index"] == wanted.index) & (s["eps"] == wanted.eps) & (s["attack"] == wanted.attack)]
    then = then[(then["model"] == "tiny") & (then["dataset"] == wanted.dataset)].iloc[0]
    assert image.row["margin"] == pytest.approx(then["margin"], abs=1e-3)
    assert float((image.x_adv - image.clean).abs().max()) <= wanted.eps / 255 + 1e-6


CHANGED: dict[str, tuple[Edit, str]] = {
    "weights": (lambda r: r["models"]["tiny"].update(sha256="0"), "weights of tiny are not those of the run"),
    "data": (lambda r: r["datasets"]["emoji-food"].update(fingerprint="0"), "emoji-food are not those of the run"),
    "old": (lambda r: r.pop("plan"), "did not keep its plan"),
    "nested": (lambda r: r.update(eps_mode="nested"), "depends on the others"),
    "reference": (lambda r: r.update(engine="reference"), "depends on the others"),
}


@pytest.mark.parametrize("what", list(CHANGED))
def test_what_cannot_be_attacked_again_has_a_reason(what: str, runs: Path, tmp_path: Path) -> None:
    edit, note = CHANGED[what]
    result = BenchResult.load(edited(runs / "both", tmp_path / "run", edit))
    (replay,) = replay_images(result.run, [ReplayRequest("tiny", "emoji-food", "pgd-10", 4.0, 0, 0)])
    assert replay.image is None
    assert note in replay.problem


def test_a_missing_picture_is_a_note_and_no_failure(runs: Path, tmp_path: Path) -> None:
    source = edited(runs / "other", tmp_path / "run", lambda r: r["models"]["tiny"].update(sha256="0"))
    text = page_of(tmp_path, source, "--gallery", "2")
    assert "2 of 2 images could not be attacked again: The weights of tiny are not those of the run" in text
    assert "<img" not in text


def test_a_model_that_is_gone_gives_a_reason(runs: Path) -> None:
    result = BenchResult.load(runs / "both")
    (replay,) = replay_images(result.run, [ReplayRequest("local-dir:nowhere", "emoji-food", "pgd-10", 4.0, 0, 0)])
    assert replay.image is None
    assert "nowhere" in replay.problem


BAD = {
    "no run": (["nowhere"], "cannot be read"),
    "twice": (["both", "both/results.json"], "named twice"),
    "attack only": (["images"], "no result of `clipguard bench`"),
    "gallery": (["both", "--gallery", "99"], "--gallery must be"),
    "there already": (["both", "--out", "both/results.csv"], "nothing is overwritten"),
    "figures there already": (["both", "--figures", "both"], "--figures both exists already"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_one_line_and_exit_code_2(
    name: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "runs")
    arguments, message = BAD[name]
    before = sorted(Path().rglob("*"))
    assert run(["report", *arguments]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert err.count("\n") == 1
    assert out == ""
    assert sorted(Path().rglob("*")) == before


def test_markdown_links_to_figures_that_are_there(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "a report.md"
    assert run(["-q", "report", str(runs / "other"), "--format", "md", "--out", str(out)]) == 0
    text = out.read_text()
    links = re.findall(r"\]\(([^)]+\.svg)\)", text)
    assert links
    for link in links:
        assert (tmp_path / link.replace("%20", " ")).is_file()
    tables = [block.splitlines() for block in re.split(r"\n\n+", text) if block.startswith("|")]
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1, table
    command = rerun(BenchResult.load(runs / "other").run).command
    assert [line for line in text.splitlines() if line.startswith("clipguard bench")] == [command]


def test_figures_are_fit_for_a_paper(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "figures"
    out = ["--figures", str(folder), "--out", str(tmp_path / "x.html")]
    assert run(["-q", "report", str(runs / "other"), *out, "--gallery", "0"]) == 0
    names = {path.stem for path in folder.iterdir()}
    assert {"accuracy-linf-emoji-travel-pgd-10", "broken-by-linf-fgsm", "trade-off-linf-pgd-10-8"} <= names
    for name in names:
        svg = (folder / f"{name}.svg").read_text()
        assert "<text" not in svg  # words are shapes
        assert "var(--" not in svg
        image = Image.open(folder / f"{name}.png")
        assert [round(x) for x in image.info["dpi"]] == [300, 300]
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_long_names_are_cut_and_stay_apart() -> None:
    names = [f"local-dir:{'x' * 40}{i}/model-of-mine" for i in range(3)]
    short = short_names([*names, "tiny"])
    assert len(set(short.values())) == 4
    assert short["tiny"] == "tiny"
    assert all(len(text) <= 29 for text in short.values())


def test_findings_are_shown_worst_first(runs: Path, tmp_path: Path) -> None:
    old = edited(runs / "other", tmp_path / "old", lambda r: r.pop("findings"))
    assert "Not recorded for run 1" in page_of(tmp_path, old, "--gallery", "0")
    found = [{"id": v, "verdict": v, "evidence": f"evidence {v}", "advice": ""} for v in reversed(VERDICTS)]
    entry = {"model": "tiny", "dataset": "emoji-travel", "findings": found}
    source = edited(runs / "other", tmp_path / "run", lambda r: r.update(findings=[entry]))
    text = page_of(tmp_path / "more", source, "--gallery", "0")
    assert text.index("evidence failure") < text.index("evidence warning") < text.index("evidence ok")
    assert "Not recorded" not in text


def test_the_picture_of_a_stored_image_is_the_image(runs: Path) -> None:
    _, (images,) = read_runs([runs / "both", runs / "images"])
    pictures = stored_pictures(images, 2)
    assert pictures
    for picture in pictures:
        png = base64.b64decode(picture.adversarial.partition(",")[2])
        kept = runs / "images" / "png" / f"{picture.index}-adversarial.png"
        assert list(Image.open(io.BytesIO(png)).getdata()) == list(Image.open(kept).getdata())


def test_intervals_of_one_data_set_are_wilsons(board: Board) -> None:
    found = board.point("tiny", "emoji-food", "pgd-10", 1.0)
    s = board.samples
    keys = (s["model"] == "tiny") & (s["dataset"] == "emoji-food") & (s["attack"] == "pgd-10") & (s["eps"] == 1)
    correct = int(pd.Series(s[keys]["robust"]).sum())
    assert found is not None
    assert found[1:] == pytest.approx(wilson_interval(correct, 12))


def test_runs_without_an_attack_and_in_l2_have_a_page(tmp_path: Path) -> None:
    clean, l2 = tmp_path / "clean", tmp_path / "l2"
    small = ["-q", "bench", "-d", "emoji-food", "-n", "4", "--no-store"]
    assert run([*small, "--attack", "none", "--out", str(clean)]) == 0
    assert run([*small, "--attack", "pgd-2", "--norm", "l2", "--eps", "0.5", "--out", str(l2)]) == 0
    text = page_of(tmp_path / "one", clean, "--gallery", "2")
    assert "<svg" not in text
    assert '<th scope="col" class="num">clean</th>' in text
    text = page_of(tmp_path / "two", clean, l2, "--gallery", "2")
    assert "pgd-2 l2 0.5" in text
    assert "<h3>linf</h3>" in text
