"""The training loop, for every method."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from clipguard.core.progress import Progress
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.methods.base import Batch
from clipguard.finetuning.training.checkpoint import Checkpoints
from clipguard.finetuning.training.data import ImageBatch, Pixels, Visits, load_batches, random_key
from clipguard.finetuning.training.metrics import Meter, MetricsLog, Row
from clipguard.finetuning.training.objective import Losses, Student, batch_accuracy
from clipguard.finetuning.training.optimizers import lr_factor, make_optimizers, set_learning_rate
from clipguard.finetuning.training.validation import Validation

log = logging.getLogger("clipguard")
READ_EVERY = 10  # steps between looks at the numbers
TRAINING = "training"
WARMUP_SHARE = 0.05


@dataclass
class Position:
    """Where a run stands: steps done, seconds they took, and the best validation so far."""

    step: int = 0
    seconds: float = 0.0
    best_step: int | None = None
    best_value: float = -math.inf


class Trainer:
    """Trains a student to the last step, from the newest checkpoint if there is one.

    What is random in a step is drawn from (seed, step) or (seed, epoch, image) and the learning rate follows from the
    step, so there is no random state or schedule to save.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        accelerator: Accelerator,
        losses: Losses,
        pixels: Pixels,
        visits: Visits,
        validation: Validation | None,
        out: Path,
    ) -> None:
        self.config, self.accelerator, self.losses = config, accelerator, losses
        self.pixels, self.visits, self.validation, self.out = pixels, visits, validation, out
        self.steps = visits.steps
        self.student = losses.student
        self.average = None
        if config.ema:
            self.average = AveragedModel(self.student, multi_avg_fn=get_ema_multi_avg_fn(config.ema))  # type: ignore[no-untyped-call]
        optimizers = make_optimizers(config, self.student, losses.method.text_learning_rate())
        losses.forward, *prepared = accelerator.prepare(self.student, *optimizers.values())
        self.optimizers = dict(zip(optimizers, prepared, strict=True))
        self.position = Position()
        self.checkpoints = Checkpoints(out)
        self.meter = Meter()
        self.warmup = round(WARMUP_SHARE * self.steps) if config.warmup_steps is None else config.warmup_steps
        self.eval_every = config.eval_every or max(1, self.steps // 5)
        self.save_every = config.save_every or self.eval_every
        self._read_at = time.perf_counter()

    def train(self, progress: Progress, workers: int) -> None:
        """Run the loop. Raises FinetuneError at NaN, and KeyboardInterrupt once a checkpoint is written, at Ctrl-C."""
        metrics = MetricsLog(self.out, self._restore(), writes=self.accelerator.is_main_process)
        batches = load_batches(self.pixels, replace(self.visits, start=self.position.step), workers)
        progress.start(TRAINING, self.steps - self.position.step)
        self.student.train()
        self._read_at = time.perf_counter()
        with interruptible() as interrupted, closing(metrics):
            while self.position.step < self.steps:
                self._step(batches)
                step, last = self.position.step, self.position.step == self.steps
                evaluating = self.validation is not None and (step % self.eval_every == 0 or last)
                saving = evaluating or step % self.save_every == 0 or last or bool(interrupted())
                # Nothing is saved that was not looked at: what is on the disk is free of NaN.
                note = self._read(metrics) if saving or step % READ_EVERY == 0 else ""
                progress.advance(note)
                if evaluating:
                    self._validate(metrics, progress)
                if saving:
                    self._save(metrics.size())
                if number := interrupted():
                    if callable(signal.getsignal(number)):
                        signal.raise_signal(number)
                    raise KeyboardInterrupt

    def _step(self, batches: Iterator[ImageBatch]) -> None:
        """One step of the optimisers, over `accumulate` passes."""
        step = self.position.step
        torch.manual_seed(random_key(self.config.seed, step, self.accelerator.process_index))  # dropout and its like
        factor = lr_factor(step, self.steps, self.warmup, self.config.schedule)
        for optimizer in self.optimizers.values():
            set_learning_rate(optimizer, factor)
        passes, norms = [], {}
        for _ in range(self.config.accumulate):
            images = next(batches).to(self.accelerator.device)
            with self.accelerator.accumulate(self.losses.forward):
                terms, batch, seen = self.losses(images, step / self.steps)
                loss = torch.stack(list(terms.values())).sum()
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    norms = self._clip()
                for optimizer in self.optimizers.values():
                    optimizer.step()
                    optimizer.zero_grad()
            passes.append({**seen, **terms, "loss": loss, **self._accuracy(batch, images)})
        if self.average is not None:
            self.average.update_parameters(self.student)
        self.position.step += 1
        self.meter.add(self.position.step, passes, norms)

    def _clip(self) -> dict[str, Tensor]:
        """Limit each gradient's norm; returns what they were. Without a limit, the norms are there to be checked."""
        parameters = {"image": self.student.image_parameters(), "text": self.student.text_parameters()}
        limit = self.config.grad_clip or math.inf
        return {
            f"{name}_gradient": self.accelerator.clip_grad_norm_(parameters[name], limit) for name in self.optimizers
        }

    def _accuracy(self, batch: Batch, images: ImageBatch) -> dict[str, Tensor]:
        """Batch accuracy; clean images cost a pass where the method needs none, so they are looked at now and then."""
        clean = batch.clean
        if clean is None and batch.labels is not None and (self.position.step + 1) % READ_EVERY == 0:
            with torch.no_grad():
                clean = self.losses.forward(images.pixels)
        found = {
            "adversarial_accuracy": batch_accuracy(batch, batch.adversarial),
            "clean_accuracy": batch_accuracy(batch, clean),
        }
        return {name: value for name, value in found.items() if value is not None}

    def _read(self, metrics: MetricsLog) -> str:
        """Check and write the numbers since the last time; returns a line about the newest."""
        rows = self.meter.flush()
        metrics.write(rows)
        self.accelerator.log(rows[-1], step=self.position.step)
        now = time.perf_counter()
        speed = len(rows) * self.visits.per_step / (now - self._read_at)
        self.position.seconds += now - self._read_at
        self._read_at = now
        return f"{describe(rows[-1])} · {speed:.0f} images/s"

    def _validate(self, metrics: MetricsLog, progress: Progress) -> None:
        """Score the student, or its moving average, and keep its weights if they are the best, or as good and newer."""
        assert self.validation is not None
        student = self.trained_student()
        value, found = self.validation(student, progress)
        step = self.position.step
        metrics.write([{"step": step, "validation": found}])
        self.accelerator.log({"validation": value}, step=step)
        log.info("Step %d of %d: %s on validation images", step, self.steps, describe_validation(found))
        if value >= self.position.best_value:
            self.position.best_step, self.position.best_value = step, value
            if self.accelerator.is_main_process:
                self.checkpoints.save_best(step, student.state_dict())
        if step < self.steps:
            progress.start(TRAINING, self.steps)
        self._read_at = time.perf_counter()

    def trained_student(self) -> Student:
        """What is evaluated and exported: the moving average if there is one."""
        student = self.student if self.average is None else self.average.module
        assert isinstance(student, Student)
        return student

    def load_best(self) -> Student:
        """The student with the weights that did best in validation; the last ones if there was none."""
        student = self.trained_student()
        if self.position.best_step is not None:
            student.load_state_dict(self.checkpoints.best(self.position.best_step))
        return student

    def _save(self, metrics_size: int) -> None:
        if self.accelerator.is_main_process:
            state = {
                "position": asdict(self.position),
                "student": self.student.state_dict(),
                "average": None if self.average is None else self.average.state_dict(),
                "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
                "metrics": metrics_size,
            }
            self.checkpoints.save(self.position.step, state, self.position.best_step)
        self.accelerator.wait_for_everyone()

    def _restore(self) -> int:
        """Go on from the newest checkpoint, if there is one; returns the size that `metrics.jsonl` had."""
        state = self.checkpoints.latest()
        if state is None:
            return 0
        self.position = Position(**state["position"])
        self.student.load_state_dict(state["student"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        log.info("Going on from step %d of %d", self.position.step, self.steps)
        return int(state["metrics"])


def describe(row: Row) -> str:
    """A step's loss, its terms and accuracies, on one line."""
    shown = [name for name in row if name not in HIDDEN]
    terms = ", ".join(f"{name} {row[name]:.3g}" for name in shown)
    accuracies = [(word, row.get(f"{word}_accuracy")) for word in ("clean", "adversarial")]
    percent = "".join(f" · {word} {100 * value:.0f} %" for word, value in accuracies if value is not None)
    return f"loss {row['loss']:.3g}{f' ({terms})' if len(shown) > 1 else ''}{percent}"


HIDDEN = ("step", "loss", "attack", "clean_accuracy", "adversarial_accuracy", "image_gradient", "text_gradient")


def describe_validation(found: dict[str, Any]) -> str:
    """What validation found, on one line."""
    if "loss" in found:
        return f"loss {found['loss']:.4g}"
    return ", ".join(
        f"{word} {100 * found[name]['accuracy']:.1f} %" for word, name in (("clean", "clean"), ("PGD-10", "robust"))
    )


@contextmanager
def interruptible() -> Iterator[Callable[[], int]]:
    """Let Ctrl-C wait for the end of a step, to be asked about there (its number, or 0); a second one does not wait.

    SIGTERM is treated alike where it has a handler, as on the command line.
    """
    pressed: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield lambda: 0
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if not callable(before[signal.SIGTERM]):
        del before[signal.SIGTERM]

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop_soon(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        pressed.append(number)
        restore()
        log.info("Stopping after this step; Ctrl-C again stops at once")

    for number in before:
        signal.signal(number, stop_soon)
    try:
        yield lambda: pressed[0] if pressed else 0
    finally:
        restore()
