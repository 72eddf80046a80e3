"""The examples run, as they are but for their sizes."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

import clipguard

EXAMPLES = Path(clipguard.__file__).parents[1] / "examples"


def run(name: str, sizes: dict[str, str], monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> None:
    """Run an example in a folder, with `sizes` for the lines that set them."""
    source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    for line, smaller in sizes.items():
        source, changed = re.subn(rf"^{line} = .*?$", f"{line} = {smaller}", source, flags=re.MULTILINE)
        assert changed == 1, f"{name}.py has no line that sets {line}"
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    (folder / "example.py").write_text(source, encoding="utf-8")
    runpy.run_path("example.py", run_name="__main__")


def test_bench_your_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("bench_your_module", {"IMAGES, ITERATIONS, STEPS": "9, 2, 10"}, monkeypatch, tmp_path)
    said = capsys.readouterr().out
    assert "\nSmallNet on in-memory, n 9: clean " in said
    assert "AttackResult: apgd-ce(iterations=2) at linf 4/255, n 9: clean " in said
    assert "\nFindings: " in said


CLEAN = '{"datasets": "emoji-food", "attacks": "none", "n_samples": 60}'


@pytest.mark.parametrize(("models", "code", "verdict"), [((), 1, "Regression"), (("tiny", "tiny"), 0, "No regression")])
def test_gate_a_checkpoint(
    models: tuple[str, ...],
    code: int,
    verdict: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        run("gate_a_checkpoint", {"HOW": CLEAN, "MAX_DROP": "8"}, monkeypatch, tmp_path, *models)
    assert ended.value.code == code
    assert f"\nComparison: {verdict}: tiny" in capsys.readouterr().out
    assert clipguard.Comparison.load(tmp_path / "gate" / "comparison.json").verdict == verdict.lower()
    assert (tmp_path / "gate" / "comment.md").read_text("utf-8").startswith("| data set |")


def test_finetune_and_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("finetune_and_look", {"STEPS, IMAGES, PICTURES": "1, 4, 0"}, monkeypatch, tmp_path)
    said = capsys.readouterr().out
    assert said.startswith("FinetuneResult: tecoa on emoji-food, from tiny, in tuned\nstep 1 of 1; ")
    assert "\nlocal-dir:tuned on emoji-animals, n 4: clean " in said
    assert "<title>" in (tmp_path / "report.html").read_text("utf-8")


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_the_page_shows_the_examples_as_they_are(example: Path) -> None:
    page = (EXAMPLES.parent / "docs" / "examples.md").read_text(encoding="utf-8")
    assert f"```python\n{example.read_text(encoding='utf-8')}```" in page
