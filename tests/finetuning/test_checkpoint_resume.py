"""A run that was killed, at any moment, ends with the weights of one that was not."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from forked import Started
from training_runs import StopsAfter, write_images, write_vit

from clipguard.cli import run
from clipguard.core.errors import FinetuneError
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.run import resume_finetune, run_finetune
from clipguard.finetuning.settings import resolve
from clipguard.finetuning.training.checkpoint import Checkpoints
from clipguard.finetuning.training.metrics import read_metrics
from clipguard.models.export import WEIGHTS_NAME

SETTINGS = {"preset": "none", "steps": 40, "batch_size": 4, "attack_steps": 2, "eps": "8", "lr": 1e-3, "save_every": 3}
SETTINGS |= {"eval_every": 8, "val_fraction": 0.2, "ema": 0.9, "augment": "standard"}


def arguments(model: str, dataset: str, out: Path, **settings: object) -> list[str]:
    given = {**SETTINGS, "model": model, "dataset": dataset, "out": out, **settings}
    options = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    return ["-q", "finetune", *options]


def start(line: list[str], folder: Path) -> Started:
    """The same in a process of its own, with as many threads: their number changes the order of sums."""
    return Started(line, folder, folder / "streams", {"OMP_NUM_THREADS": str(torch.get_num_threads())})


def wait_for_steps(out: Path, steps: int) -> None:
    """Until a checkpoint of at least so many steps is there."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        done = [int(path.stem.split("-")[1]) for path in out.glob("checkpoints/step-*.pt")]
        if done and max(done) >= steps:
            return
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint of {steps} steps in {out}")


def test_killed_and_resumed_it_ends_bit_identical(vit: str, images: str, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(arguments(vit, images, whole, method="tima")) == 0
    process = start(arguments(vit, images, killed, method="tima"), tmp_path)
    wait_for_steps(killed, 9)
    time.sleep(random.uniform(0, 0.2))  # in the middle of whatever it does
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert not (killed / WEIGHTS_NAME).exists()
    assert run(["-q", "finetune", "--resume", str(killed)]) == 0
    for name in (WEIGHTS_NAME, "original_text.safetensors", "metrics.jsonl"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert not (killed / "checkpoints").exists()


def press_ctrl_c_after(out: Path, steps: int) -> None:
    wait_for_steps(out, steps)
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_keeps_a_checkpoint_and_says_how_to_go_on(
    vit: str, images: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, before = tmp_path / "out", signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore Ctrl-C
    presser = threading.Thread(target=press_ctrl_c_after, args=(out, 3))
    presser.start()
    try:
        assert run(arguments(vit, images, out, method="tecoa", steps=100_000)) == 130
    finally:
        presser.join()
        signal.signal(signal.SIGINT, before)
    message = capfd.readouterr().err
    assert f"clipguard finetune --resume {out}" in message
    assert "Traceback" not in message
    state = Checkpoints(out).latest()
    assert state is not None
    assert read_metrics(out)[-1]["step"] == state["position"]["step"]


def interrupted(model: str, dataset: str, out: Path, **settings: object) -> Path:
    """A run that stopped after some steps."""
    config = resolve({**SETTINGS, "method": "tecoa", "model": model, "dataset": dataset, **settings})
    with pytest.raises(KeyboardInterrupt):
        run_finetune(config, out, "", StopsAfter(24 + 5))  # it reads 24 images first
    return out


def test_stopped_between_checkpoints_it_goes_back_to_the_last(vit: str, images: str, tmp_path: Path) -> None:
    out = interrupted(vit, images, tmp_path / "stopped", accumulate=2, lora=2, steps=12)
    resumed = resume_finetune(out)
    whole = run_finetune(FinetuneConfig(**resumed.run["config"]), tmp_path / "whole", "")
    assert resumed.run["sha256"] == whole.run["sha256"]
    assert (out / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_a_run_that_is_finished_or_none_is_not_resumed(
    vit: str, images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(arguments(vit, images, out, method="tecoa", steps=2)) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert run(["-q", "finetune", "--resume", str(out)]) == 2
    assert "is finished" in capsys.readouterr().err
    assert run(["-q", "finetune", "--resume", images]) == 2
    assert "holds no fine-tuning run" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_the_newest_checkpoint_and_its_best_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    checkpoints.save_best(2, {"weight": torch.ones(1)})
    checkpoints.save(2, {"step": 2}, best_step=2)
    checkpoints.save_best(4, {"weight": torch.zeros(1)})  # killed here, the checkpoint at 2 still has its best
    assert checkpoints.best(2) == {"weight": torch.ones(1)}
    checkpoints.save(6, {"step": 6}, best_step=4)
    assert checkpoints.latest() == {"step": 6}
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["best-00000004.pt", "step-00000006.pt"]


def test_a_half_written_checkpoint_does_not_count(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, {"step": 2}, None)
    (checkpoints.folder / "step-00000003.part").write_bytes(b"half")
    assert checkpoints.latest() == {"step": 2}


@pytest.mark.parametrize("what", ["model", "data set"])
def test_a_changed_model_or_data_set_is_not_resumed(what: str, tmp_path: Path) -> None:
    model, dataset = write_vit(tmp_path / "vit"), write_images(tmp_path / "d")
    out = interrupted(model, dataset, tmp_path / "out")
    if what == "data set":
        (tmp_path / "d" / "kind 0" / "0.png").write_bytes((tmp_path / "d" / "kind 1" / "0.png").read_bytes())
    else:
        write_vit(tmp_path / "vit", seed=1)
    with pytest.raises(FinetuneError, match=f"{what} has changed"):
        resume_finetune(out)


def test_other_options_are_refused_beside_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["finetune", "--resume", str(tmp_path), "--lr", "1"]) == 2
    assert "leave out --lr" in capsys.readouterr().err
    assert run(["finetune", "--resume", str(tmp_path), "--config", "x.yaml"]) == 2
    assert "leave out --config" in capsys.readouterr().err
