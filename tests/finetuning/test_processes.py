"""Several processes compute what one does: every method's losses, the images of a step, validation."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from process_runs import Row, train_all
from training_runs import SMALL

from clipguard.core.environment.launcher import LAUNCHER, has_launcher
from clipguard.core.errors import FinetuneError
from clipguard.finetuning.data.sampler import ResumableBatchSampler
from clipguard.finetuning.methods.registry import METHODS
from clipguard.finetuning.output.record import RunRecord
from clipguard.finetuning.processes.local import end_with_launcher
from clipguard.finetuning.processes.team import Team
from clipguard.finetuning.restart import images_of_a_pass, settings_of_run

# Those whose losses are reduced in ways of their own: sums over the batch, weights that rest, terms without images.
SOME = ["tecoa", "pmg-aft(variant=repository)", "tima(schedule=iat_first)", "comp-tga", "apt(attack=perturbed)"]
SOME += ["delta-clip-style(text_lr=0.001)", "leaf(rho=4)"]  # images meet in the attack; there are none
ALL = [*METHODS, *SOME[1:], "fare(clean_weight=0.5)", "sim-clip(clean=tuned)", "tima(attack_loss=margin)"]
ALL += [f"tima(text={mode})" for mode in ("encoder", "free", "frozen", "laat")]
ALL += ["tima(takd_kind=feature,takd_student=clean)"]


def runs(methods: list[str], model: str, dataset: str, **more: Any) -> dict[str, dict[str, Any]]:
    """20 steps a method, or others, with a smooth attack of one: more, and signs of gradients, magnify rounding."""
    smooth = {"norm": "l2", "eps": "3", "optimizer": "sgd", "lr": 0.003, "steps": 20, "attack_steps": 1}
    return {m: {**SMALL, **smooth, "model": model, "dataset": dataset, "method": m, **more} for m in methods}


def assert_same_curves(one: list[Row], many: list[Row], steps: int = 20) -> None:
    assert len(one) == len(many) == steps
    for ours, theirs in zip(one, many, strict=True):
        assert ours.keys() == theirs.keys()
        loss, other = ours["loss"], theirs["loss"]
        assert other == pytest.approx(loss, rel=1e-5, abs=1e-6)
        for name in ("image_gradient", "text_gradient", "attack"):
            if name in ours:
                assert theirs[name] == pytest.approx(ours[name], rel=2e-3, abs=1e-5)


def test_methods_have_the_losses_of_one_process(vit: str, images: str, tmp_path: Path) -> None:
    """With parts of 4 and 3 images, for two epochs."""
    given = runs(SOME, vit, images, batch_size=7, steps=7)
    both = {"regularizer": "regmix", "awp": 0.01}
    given |= {"values": {**given["tecoa"], **both, "train": "svd"}}
    given |= {"meeting": {**given["pmg-aft(variant=repository)"], **both}}
    one, two = (train_all(given, n, tmp_path / str(n)) for n in (1, 2))
    for method in given:
        assert_same_curves(one[method], two[method], steps=7)


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3, 4])
def test_all_of_it_with_more_processes(n: int, vit: str, images: str, tmp_path: Path) -> None:
    given = runs(ALL, vit, images, batch_size=8)
    given |= {"parts": {**given["tima"], "batch_size": 4, "effective_batch": 8}}
    given |= {"passes": {**given["pmg-aft(variant=repository)"], "batch_size": 4, "accumulate": 2}}
    given |= {"lora": {**given["tecoa"], "lora": 2, "grad_clip": 0.5, "ema": 0.9, "grad_checkpointing": True}}
    one, many = (train_all(given, processes, tmp_path / str(processes)) for processes in (1, n))
    for method in given:
        assert_same_curves(one[method], many[method])


def test_the_parts_of_all_are_the_whole() -> None:
    for n in range(12):
        for size in range(1, 6):
            parts = [list(range(n))[Team(rank, size).part(n)] for rank in range(size)]
            assert [i for part in parts for i in part] == list(range(n))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_batch_that_cannot_be_shared_is_refused(vit: str, images: str) -> None:
    from training_runs import make_config

    config = make_config(vit, images, batch_size=3)
    with pytest.raises(FinetuneError, match=r"`batch_size=3` is shared by 4 processes"):
        ResumableBatchSampler.of_run(config, torch.arange(8).numpy(), Team(0, 4))


@pytest.mark.parametrize(
    ("config", "resolved", "sizes", "rows"),
    [
        ({"batch_size": 8}, {"images_per_step": 8, "processes": 1}, (8, None), 8),
        ({"batch_size": 8}, {"images_per_step": 8, "processes": 4}, (8, None), 2),
        ({"batch_size": 8, "accumulate": 2}, {"images_per_step": 64, "processes": 4}, (32, None), 8),
        (
            {"batch_size": None, "effective_batch": 8},
            {"images_per_step": 16, "processes": 2, "micro_batch": 4},
            (None, 16),
            4,
        ),
    ],
)
def test_a_run_of_several_processes_keeps_its_step_with_any_number(
    config: dict[str, Any], resolved: dict[str, Any], sizes: tuple[int | None, int | None], rows: int
) -> None:
    """Also one that was begun when `batch_size` counted the images of a process, and decoders were workers."""
    run: RunRecord = {"config": {**config, "workers": 3}, "resolved": resolved}  # type: ignore[typeddict-item]
    settings = settings_of_run(run)
    assert (settings.batch_size, settings.effective_batch) == sizes
    assert settings.decoders == 3
    assert images_of_a_pass(run) == rows


def test_a_run_that_was_killed_before_it_knew_its_step_keeps_its_settings() -> None:
    run: RunRecord = {"config": {"batch_size": 6}}  # type: ignore[typeddict-item]
    assert settings_of_run(run).batch_size == 6


def launch_one(connection: Connection) -> None:
    """A launcher of one process, which tells that it watches."""
    os.environ[LAUNCHER] = str(os.getpid())
    if os.fork() == 0:
        end_with_launcher()
        connection.send((os.getpid(), has_launcher()))
    time.sleep(60)


def test_a_process_ends_with_its_launcher_however_that_ends() -> None:
    context = get_context("fork")
    ours, theirs = context.Pipe()
    launcher = context.Process(target=launch_one, args=(theirs,))
    launcher.start()
    theirs.close()
    _, told = ours.recv()
    assert told
    assert not has_launcher()
    assert launcher.pid is not None
    os.kill(launcher.pid, signal.SIGKILL)
    assert ours.poll(20)  # the other end of the pipe is closed
    with pytest.raises(EOFError):
        ours.recv()
    launcher.join()
