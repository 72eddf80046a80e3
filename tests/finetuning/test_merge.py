"""Weights between two models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from training_runs import write_vit

from clipguard.cli import run
from clipguard.finetuning.merge import interpolate
from clipguard.models import load_model


def state(name: str) -> dict[str, torch.Tensor]:
    return dict(load_model(name).model.state_dict())


def test_a_known_mean() -> None:
    base = {"w": torch.tensor([0.0, 10.0]), "count": torch.tensor(3)}
    tuned = {"w": torch.tensor([10.0, 10.0]), "count": torch.tensor(8)}
    merged = interpolate(base, tuned, 0.7)
    assert merged["w"].tolist() == pytest.approx([7.0, 10.0])
    assert merged["count"] == 8
    assert interpolate(base, tuned, 0)["w"] is base["w"]
    assert interpolate(base, tuned, 1)["w"] is tuned["w"]


def test_the_ends_are_the_models_and_the_middle_is_between(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, tuned = write_vit(tmp_path / "a"), write_vit(tmp_path / "b", seed=1)
    for alpha in (0, 0.25, 1):
        assert run(["merge", base, tuned, "--alpha", str(alpha), "--out", str(tmp_path / f"{alpha}")]) == 0
        assert capsys.readouterr().out == f"local-dir:{tmp_path / f'{alpha}'}\n"
    first, second = state(base), state(tuned)
    ends = (state(f"local-dir:{tmp_path / '0'}"), state(f"local-dir:{tmp_path / '1'}"))
    for name in first:
        assert torch.equal(ends[0][name], first[name])
        assert torch.equal(ends[1][name], second[name])
    quarter = state(f"local-dir:{tmp_path / '0.25'}")
    assert torch.allclose(quarter["visual.proj"], 0.75 * first["visual.proj"] + 0.25 * second["visual.proj"])
    assert tuned in (tmp_path / "0.25" / "README.md").read_text()


def test_it_refuses_what_does_not_match(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, wide = write_vit(tmp_path / "a"), write_vit(tmp_path / "wide", width=48)
    quick = write_vit(tmp_path / "quick")
    config = json.loads((tmp_path / "quick" / "open_clip_config.json").read_text())
    config["model_cfg"]["quick_gelu"] = True  # the same shapes, and another function
    (tmp_path / "quick" / "open_clip_config.json").write_text(json.dumps(config))
    moved = write_vit(tmp_path / "moved")
    config = json.loads((tmp_path / "moved" / "open_clip_config.json").read_text())
    config["preprocess_cfg"] = {"mean": [0.1, 0.2, 0.3]}
    (tmp_path / "moved" / "open_clip_config.json").write_text(json.dumps(config))
    cases = [
        (base, wide, "0.5", "differ in architecture"),
        (base, quick, "0.5", "differ in architecture"),
        (base, moved, "0.5", "differ in preprocessing"),
        (base, base, "1.5", "--alpha must be in 0"),
        (base, base, "nan", "--alpha must be in 0"),
        (base, "local-dir:nowhere", "0.5", "nowhere"),
    ]
    for one, other, alpha, hint in cases:
        assert run(["merge", one, other, "--alpha", alpha, "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert hint in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert run(["merge", base, base, "--alpha", "1", "--out", str(tmp_path / "a")]) == 2
    assert "exists already" in capsys.readouterr().err
