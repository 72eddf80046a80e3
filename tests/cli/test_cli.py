"""The command line, in process and once as a real subprocess."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from forked import Started
from PIL import Image

from clipguard import __version__
from clipguard.benchmark.plan import BenchPlan
from clipguard.cli import app, run
from clipguard.core.errors import ClipguardError
from clipguard.core.settings import settings_of
from clipguard.core.spec import split_attacks

FILES = ["results.csv", "results.json", "results.md", "samples.parquet"]
FAST = ["bench", "-d", "emoji-food", "--attack", "pgd-3", "--eps", "8", "-n", "6"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def parquet(path: Path, labels: list[object], images: list[bytes] | None = None) -> Path:
    """A `datasets`-like parquet file of plain images."""
    import io

    def png(shade: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (48, 48), (shade, 0, 255 - shade)).save(buffer, "PNG")
        return buffer.getvalue()

    images = images or [png(10 * i) for i in range(len(labels))]
    rows = [{"image": {"bytes": b, "path": None}, "label": label} for b, label in zip(images, labels, strict=True)]
    pd.DataFrame(rows, columns=["image", "label"]).to_parquet(path)
    return path


def test_a_run_prints_a_table_and_writes_its_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*FAST, "--out", "r"]) == 0
    out, err = capfd.readouterr()
    assert "emoji-food" in out
    assert "eps 8/255" in out
    assert "convnext_zepto_rms" in err  # what was detected about the model is said, on stderr
    assert {p.name for p in (tmp_path / "r").iterdir()} == {
        "results.json",
        "results.csv",
        "results.md",
        "samples.parquet",
    }


@pytest.mark.parametrize("output", ["json", "csv", "md"])
def test_stdout_is_exactly_the_file(output: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*FAST, "--out", "r", "--format", output]) == 0
    assert capfd.readouterr().out == (tmp_path / "r" / f"results.{output}").read_text()


def test_the_default_folder_is_new_and_named(tmp_path: Path) -> None:
    assert run([*FAST, "--name", "my run"]) == 0
    (folder,) = (tmp_path / "runs").glob("*-my-run")
    assert (folder / "results.json").is_file()


def test_help_version_and_lists(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capfd.readouterr().out == f"clipguard {__version__}\n"
    for arguments in ([], ["--help"], ["bench", "--help"], ["list", "datasets"], ["list", "attacks"]):
        assert run(arguments) == 0
        assert capfd.readouterr().out
    assert run(["list", "models"]) == 0
    assert "ViT-B-32-quickgelu:openai" in capfd.readouterr().out


def test_help_loads_neither_torch_nor_numpy() -> None:
    """One process shows the help of one command after the other, and ends with the first that loads one of them."""
    commands = ["bench", "compare", "finetune", "merge", "convert", "inspect"]
    code = "import sys\nfrom clipguard.cli import run\n"
    code += "for command in sys.argv[1:]:\n    run([command, '--help'])\n"
    code += "    if {'torch', 'numpy'} & set(sys.modules): sys.exit(command)"
    done = subprocess.run([sys.executable, "-c", code, *commands], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("Usage") == len(commands)


def test_every_option_has_help() -> None:
    import typer

    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        for parameter in command.params:
            assert getattr(parameter, "help", "x"), f"{name} {parameter.name}"


BAD = {
    "unknown model": (["-m", "tinny"], "Did you mean 'tiny'"),
    "unknown architecture": (["-m", "ViT-B-33:openai"], "ViT-B-32"),
    "unknown tag": (["-m", "ViT-B-32:openia"], "openai"),
    "quickgelu": (["-m", "ViT-B-32:openai"], "ViT-B-32-quickgelu"),
    "missing weights": (["-m", "ViT-B-32:none/there.pt"], "there.pt"),
    "model twice": (["-m", "tiny", "-m", "tiny"], "twice"),
    "unknown data set": (["-d", "emoji-fod"], "emoji-food"),
    "unknown attack": (["--attack", "pdg-10"], "pgd-10"),
    "attack without steps": (["--attack", "pgd"], "pgd-10"),
    "unknown attack option": (["--attack", "apgd-ce(step=3)"], "iterations"),
    "negative eps": (["--eps", "-1"], "--eps"),
    "eps no number": (["--eps", "four"], "--eps"),
    "huge eps": (["--eps", "256"], "255"),
    "unknown norm": (["--norm", "l7"], "linf"),
    "no samples": (["-n", "0"], "--n-samples"),
    "no batch size": (["--batch-size", "0"], "--batch-size"),
    "unknown precision": (["--precision", "float8"], "bfloat16"),
    "missing recipe": (["--attack", "none/there.toml"], "there.toml"),
    "unknown device": (["--device", "quantum"], "--device"),
    "unknown option": (["--frobnicate"], "--frobnicate"),
    "unknown format": (["--format", "xml"], "--format"),
    "missing template file": (["--templates", "none.txt"], "none.txt"),
    "unknown split": (["--split", "dev"], "test"),
    "missing class file": (["--classes", "none.txt"], "none.txt"),
}


@pytest.mark.parametrize(("arguments", "hint"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_exit_2_and_touches_nothing(
    arguments: list[str], hint: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base = ["bench", *([] if "-d" in arguments else ["-d", "emoji-food"]), "-n", "4"]
    assert run([*base, *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert hint in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("labels", "broken", "hint"),
    [
        ([0, 1, 2, 0], None, "row 2 has label 2"),
        ([0, 1, 0, 1], 2, "row 2"),
        ([], None, "empty"),
    ],
)
def test_bad_data_is_found_before_anything_is_written(
    labels: list[int], broken: int | None, hint: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = parquet(tmp_path / "data.parquet", labels)
    if broken is not None:
        frame = pd.read_parquet(data)
        images = [row["bytes"] for row in frame.image]
        images[broken] = images[broken][:20]
        parquet(data, labels, images)
    names = tmp_path / "names.txt"
    names.write_text("red\nblue\n")
    before = sorted(p.name for p in tmp_path.iterdir())
    assert run(["bench", "-d", str(data), "--classes", str(names), "--attack", "pgd-2"]) == 2
    err = capfd.readouterr().err
    assert hint in err.lower()
    assert err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_an_existing_or_unwritable_output_is_refused_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years")
    assert run([*FAST, "--out", "full"]) == 2
    assert "overwritten" in capfd.readouterr().err
    assert (tmp_path / "full" / "thesis.tex").read_text() == "years"
    (tmp_path / "file").write_text("x")
    assert run([*FAST, "--out", "file/below"]) == 2
    assert "cannot be written" in capfd.readouterr().err


def test_a_user_data_set_with_a_class_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = parquet(tmp_path / "data.parquet", [0, 1, 0, 1, 1, 0])
    (tmp_path / "names.json").write_text('["apple", "bird"]')
    arguments = [
        "bench",
        "-d",
        str(data),
        "--classes",
        "names.json",
        "-a",
        "none,pgd-2",
        "--eps",
        "4/255",
        "-f",
        "json",
    ]
    assert run([*arguments, "--out", "r"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["run"]["datasets"][str(data)]["class_names"] == ["apple", "bird"]
    assert [(c["attack"], c["eps"]) for c in result["cells"]] == [("none", 0.0), ("pgd-2", 4.0)]


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path) -> None:
    arguments = ["-d", "emoji-food", "-d", "emoji-objects", "-n", "8", "--eps", "1", "--out", "r"]
    slow = ["--attack", "pgd-2,apgd-t(iterations=4000)"]
    process = Started(["bench", *arguments, *slow], tmp_path, tmp_path / "streams")
    assert any("pgd-2 on emoji-food: 8 images done" in line for line in process.lines())  # waits until that is done
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    written = json.loads((tmp_path / "r" / "results.json").read_text())
    assert written["run"]["complete"] is False
    assert [c["attack"] for c in written["cells"]] == ["none", "pgd-2"]


def test_attack_lists_split_outside_parentheses() -> None:
    assert split_attacks(["pgd-10,apgd-ce(iterations=50,restarts=2)", "none"]) == [
        "pgd-10",
        "apgd-ce(iterations=50,restarts=2)",
        "none",
    ]


def test_sample_counts() -> None:
    n_samples = settings_of(BenchPlan)["n_samples"]
    assert n_samples.read("all") is None
    assert n_samples.read("12") == 12
    with pytest.raises(ClipguardError, match="all"):
        n_samples.check(n_samples.read("1.5"))
