"""The training loop, for every method."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.profiler import record_function

from clipguard.core.progress import Progress
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.data.batches import ImageBatch, collate, load_batches
from clipguard.finetuning.data.images import TrainingImages
from clipguard.finetuning.data.random_keys import random_key
from clipguard.finetuning.data.sampler import ResumableBatchSampler
from clipguard.finetuning.processes.sharding import Mould, load_whole, load_whole_optimizer, saved, shard, whole
from clipguard.finetuning.training.checkpoint import Checkpoints, TrainingState
from clipguard.finetuning.training.fitting import compile_tower, fitting_rows
from clipguard.finetuning.training.interrupts import interruptible, raise_interrupt
from clipguard.finetuning.training.metrics import MetricsBuffer, MetricsLog, describe_step
from clipguard.finetuning.training.objective import Objective
from clipguard.finetuning.training.optimizers import MovingAverage, lr_factor, make_optimizers, set_learning_rate
from clipguard.finetuning.training.step import Step
from clipguard.finetuning.training.validation import Validation, describe_validation
from clipguard.finetuning.tuned.tuned_model import TunedModel

log = logging.getLogger("clipguard")
READ_EVERY = 10  # steps between looks at the numbers
TRAINING = "training"  # the name of this part of the run
WARMUP_SHARE = 0.05  # of the steps, where none is set


@dataclass
class Position:
    """Where a run stands: steps done, seconds they took, and the best validation so far."""

    step: int = 0
    seconds: float = 0.0
    best_step: int | None = None
    best_value: float = -math.inf


class Trainer:
    """Trains a model to the last step, from the newest checkpoint if there is one.

    What is random in a step is drawn from (seed, step) or (seed, epoch, image) and the learning rate follows from the
    step, so there is no random state or schedule to save.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        accelerator: Accelerator,
        model: TunedModel,
        objective: Objective,
        images: TrainingImages,
        sampler: ResumableBatchSampler,
        validation: Validation | None,
        out: Path,
    ) -> None:
        """`out`: folder of checkpoints and metrics."""
        self.config, self.accelerator, self.model, self.objective = config, accelerator, model, objective
        self.images, self.sampler, self.validation, self.out = images, sampler, validation, out
        self.team = sampler.team
        self.steps = sampler.steps
        self.average = None
        if config.ema:
            self.average = MovingAverage(model, config.ema)
        self.mould = self._divide() if config.fsdp and self.team.size > 1 else None
        optimizers = make_optimizers(config, model, objective.method.text_learning_rate())
        wrapped = accelerator.prepare_model(model, evaluation_mode=True)  # mixed precision; the rest is `Step`'s
        self.optimizers = {name: accelerator.prepare_optimizer(optimizer) for name, optimizer in optimizers.items()}
        self.step = Step(config, accelerator, model, wrapped, objective, self.optimizers, self.team)
        self.position = Position()
        self.checkpoints = Checkpoints(out)
        own = self.team.part(sampler.batch_size)
        self.metrics = MetricsBuffer(self.team, (own.stop - own.start) / sampler.batch_size)
        self.warmup = round(WARMUP_SHARE * self.steps) if config.warmup_steps is None else config.warmup_steps
        self.eval_every = config.eval_every or max(1, self.steps // 5)
        self.save_every = config.save_every or self.eval_every
        self._read_at = time.perf_counter()

    def _divide(self) -> Mould[TunedModel]:
        """Divide the image tower among the processes, and its moving average; returns what whole models come from."""
        mould = Mould(self.model)
        shard(self.model.image.visual, self.accelerator.device, self.team)
        if self.average is not None:
            shard(self._tuned(self.average.module).image.visual, self.accelerator.device, self.team)
        return mould

    def settle(self, rows: int | None) -> None:
        """Find what passes may take and compile the tower, where the settings ask for it; before `train`.

        Args:
            rows: images of a pass of the interrupted run that is gone on with, which fit; else None.
        """
        finding = self.config.batch_size is None
        most = self.step.rows or self.sampler.images_per_process
        if rows is not None and rows < most and self.objective.method.divisible():
            self.step.rows = rows  # it may have had more processes
        if not (finding or self.config.compile):
            return
        self.model.train()
        visits = next(iter(self.sampler))
        if finding:
            found = rows or fitting_rows(self.step, collate([self.images[visits[0]]]))
            self.step.rows = min(found, most)
            log.info("%d images a step, in passes of at most %d", self.sampler.batch_size, self.step.rows)
        if self.config.compile:
            compile_tower(self.step, collate([self.images[visit] for visit in visits[: self.step.rows]]))

    def train(self, progress: Progress, decoders: int) -> None:
        """Run the loop.

        Args:
            progress: told of each step.
            decoders: processes that make batches.

        Raises:
            FinetuneError: at NaN.
            KeyboardInterrupt: at Ctrl-C, once a checkpoint is written.
        """
        metrics_log = MetricsLog(self.out, self._restore(), writes=self.team.main)
        batches = load_batches(self.images, replace(self.sampler, start=self.position.step), decoders)
        progress.start(TRAINING, self.steps - self.position.step)
        self.model.train()
        self._read_at = time.perf_counter()
        with interruptible(helper=not self.team.main) as interrupted, closing(metrics_log):
            while self.position.step < self.steps:
                self._step(batches)
                step, last = self.position.step, self.position.step == self.steps
                ending = self.team.highest(interrupted())  # for all at the same step
                validating = self.validation is not None and (step % self.eval_every == 0 or last)
                saving = validating or step % self.save_every == 0 or last or bool(ending)
                # Nothing is saved that was not looked at: what is on the disk is free of NaN.
                note = self._read(metrics_log) if saving or step % READ_EVERY == 0 else ""
                progress.advance(note)
                if validating:
                    self._validate(metrics_log, progress)
                if saving:
                    self._save(metrics_log.size())
                    ending = self.team.highest(interrupted())
                if ending:
                    raise_interrupt(ending)

    def _step(self, batches: Iterator[ImageBatch]) -> None:
        """One step of the optimisers."""
        step = self.position.step
        torch.manual_seed(random_key(self.config.seed, step, self.team.rank))  # dropout and its like
        factor = lr_factor(step, self.steps, self.warmup, self.config.schedule)
        for optimizer in self.optimizers.values():
            set_learning_rate(optimizer, factor)
        look, perturb = (step + 1) % READ_EVERY == 0, step >= self.config.awp_warmup
        passes, norms = self.step(batches, step / self.steps, look=look, perturb=perturb)
        if self.average is not None:
            with record_function("clipguard: average"):
                self.average.follow(self.model, first=step == 0)
        self.position.step += 1
        with record_function("clipguard: metrics"):
            self.metrics.add(self.position.step, passes, norms)

    def _read(self, metrics_log: MetricsLog) -> str:
        """Check and write the numbers since the last time; returns a line about the newest."""
        rows = self.metrics.flush()
        metrics_log.write(rows)
        self.accelerator.log(rows[-1], step=self.position.step)
        now = time.perf_counter()
        speed = len(rows) * self.sampler.images_per_step / (now - self._read_at)
        self.position.seconds += now - self._read_at
        self._read_at = now
        return f"{describe_step(rows[-1])} · {speed:.0f} images/s"

    def _validate(self, metrics_log: MetricsLog, progress: Progress) -> None:
        """Score the model, or its moving average, and keep its weights if they are the best, or as good and newer."""
        assert self.validation is not None
        model = self.trained_model()
        if self.mould is not None:  # processes score without waiting for each other
            model = self.mould.filled(whole(model.state_dict()))
        images = self.sampler.images_per_process if self.objective.method.divisible() else self.sampler.batch_size
        value, result = self.validation(model, progress, self.step.rows or images)
        step = self.position.step
        metrics_log.write([{"step": step, "validation": result}])
        self.accelerator.log({"validation": value}, step=step)
        log.info("Step %d of %d: %s on validation images", step, self.steps, describe_validation(result))
        if value >= self.position.best_value:
            self.position.best_step, self.position.best_value = step, value
            with self.team.agree():
                if self.team.main:
                    self.checkpoints.save_best(step, model.state_dict())
        if step < self.steps:
            progress.start(TRAINING, self.steps)
        self._read_at = time.perf_counter()

    def trained_model(self) -> TunedModel:
        """What is evaluated and exported: the moving average if there is one."""
        return self.model if self.average is None else self._tuned(self.average.module)

    @staticmethod
    def _tuned(module: torch.nn.Module) -> TunedModel:
        assert isinstance(module, TunedModel)
        return module

    def load_best(self) -> TunedModel:
        """The model with the weights that did best in validation; the last ones if there was none. Needs no others."""
        if self.mould is not None:
            best = self.position.best_step
            state = self.checkpoints.last(self.average is not None) if best is None else self.checkpoints.best(best)
            return self.mould.filled(state).to(self.accelerator.device)
        model = self.trained_model()
        if self.position.best_step is not None:
            model.load_state_dict(self.checkpoints.best(self.position.best_step))
        return model

    def _save(self, metrics_size: int) -> None:
        state: TrainingState = {
            "position": asdict(self.position),
            "student": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "metrics": metrics_size,
        }
        if self.mould is not None:
            state = saved(state, keep=self.team.main)
        with self.team.agree():
            if not self.team.main:
                return
            self.checkpoints.save(self.position.step, state, self.position.best_step)

    def _restore(self) -> int:
        """Go on from the newest checkpoint, if there is one; returns the size that `metrics.jsonl` had."""
        state = self.checkpoints.latest()
        if state is None:
            return 0
        self.position = Position(**state["position"])
        load_whole(self.model, state["student"])
        if self.average is not None:
            assert state["average"] is not None  # the settings are those that it was saved with
            load_whole(self.average, state["average"])
        for name, optimizer in self.optimizers.items():
            load_whole_optimizer(optimizer, state["optimizers"][name])
        log.info("Going on from step %d of %d", self.position.step, self.steps)
        return state["metrics"]
