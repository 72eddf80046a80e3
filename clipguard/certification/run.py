"""`clipguard certify`: check everything once, then certify every model on every data set, sigma by sigma."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from clipguard.attacks.engine.costs import Cost
from clipguard.attacks.engine.passes.batching import CPU_BATCH
from clipguard.attacks.engine.passes.evaluator import Evaluator
from clipguard.benchmark.objects import Objects
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.results.sample_rows import RowNames, cost_table
from clipguard.benchmark.run_record import start_record
from clipguard.benchmark.stored.session import StoreSession
from clipguard.benchmark.task import Task, open_task
from clipguard.benchmark.workers.worker import Worker
from clipguard.certification.result import CertifiedSample, CertifyResult
from clipguard.certification.settings import settings_record
from clipguard.certification.smoother import Counted, Smoother
from clipguard.certification.smoothing import Smoothing, SmoothingTest
from clipguard.certification.stored import CLEAN, keep, recall_certificates, row_of, stored_cell
from clipguard.core.environment.decoders import explain_lost_decoders
from clipguard.core.notices import Notice, noticing
from clipguard.core.progress import Progress, Silent
from clipguard.store.store import Store

log = logging.getLogger("clipguard")
# Of the record of a run, what is about attacks.
OF_ATTACKS = (
    "eps",
    "eps_mode",
    "protocol",
    "resolution",
    "quantize",
    "engine",
    "compile",
    "attacks",
)


@dataclass
class CertifyRun:
    """One certification.

    Attributes:
        plan: models and data, of `make_certification`.
        smoothing: what is asked.
        progress: is told of every image.
        store: what it holds is not computed again, and what is computed goes there.
        objects: models and data sets that names of the plan stand for.
        result: the cells that are finished, at any moment; None until everything has been checked.
    """

    plan: BenchPlan
    smoothing: Smoothing
    progress: Progress = field(default_factory=Silent)
    store: Store | None = None
    objects: Objects = field(default_factory=Objects)
    result: CertifyResult | None = field(default=None, init=False)

    def execute(self) -> CertifyResult:
        """Run it to its end.

        Raises:
            ClipguardError: for anything wrong with the settings, the models or the data, before the first pass.
        """
        with explain_lost_decoders(), noticing() as notices:
            self.smoothing.check()
            self.plan.check()
            for name in self.plan.models:
                self.objects.check_model_name(name)
            return self._run(Worker(self.plan, self.objects), notices)

    def _run(self, worker: Worker, notices: list[Notice]) -> CertifyResult:
        plan = self.plan
        tasks = [open_task(plan, name, self.progress, self.objects) for name in plan.datasets]
        infos = worker.check_models([(task.dataset.class_names, task.dataset.templates) for task in tasks])
        started = time.monotonic()
        record = start_record(plan, infos, tasks, [CLEAN], worker.place)
        run = {name: value for name, value in record.items() if name not in OF_ATTACKS}
        run |= {"plan": settings_record(plan, self.smoothing), "notices": notices}
        if self.objects.names():
            run["in_memory"] = self.objects.names()
        self.result = CertifyResult(run)
        for name in plan.models:
            for number, task in enumerate(tasks):
                worker.take(name, task)
                for line in worker.describe() if number == 0 else []:
                    log.info(line)
                for test in self.smoothing.tests():
                    rows = self._certify(self.result, worker, name, task, test)
                    self.result.add(rows, self.smoothing.radius, test.largest_radius)
                    run["wall_seconds"] = round(time.monotonic() - started, 3)
        run["complete"] = True
        return self.result

    def _certify(
        self, result: CertifyResult, worker: Worker, model: str, task: Task, test: SmoothingTest
    ) -> Sequence[CertifiedSample]:
        """The rows of all images, by index: what the store knows, and the rest counted now."""
        cell = stored_cell(self.store, worker, task, test) if self.store else None
        rows = recall_certificates(cell, model, task, test)
        what = f"sigma {test.sigma:g} on {task.name}"
        if cell:
            log.info("%s: %d of %d image results from %s", what, len(rows), len(task.indices), cell.store.path)
        reused, missing = len(rows), [index for index in task.indices.tolist() if index not in rows]
        names: RowNames = {"model": model, "dataset": task.name, "norm": "l2"}
        costs: dict[str, Cost] = {}
        if missing:
            self.progress.start(f"{model} · {task.name} · sigma {test.sigma:g}", len(missing))
            part = task.only(np.array(missing, dtype=np.int64))
            result.run["batch_invariant"].setdefault(model, worker.settle_fill(part, attacked=False))
            evaluator = _evaluator(worker)
            session = StoreSession(cell, names, test.name, task.hashes, [])
            try:
                for counted in self._count(worker, part, evaluator, test):
                    keep(session, counted, test)
                    rows[counted.example.index] = row_of(counted, model, task.name, test)
                    if session.is_due():
                        session.flush(evaluator.costs.settled())
            finally:  # also after Ctrl-C: what was found is kept
                costs = evaluator.costs.settled()
                session.flush(costs)
            session.merge()
        log.info("%s: %d images done", what, len(rows))
        counts = {"sigma": test.sigma, "stages": cost_table(costs), "reused": reused, "computed": len(missing)}
        result.run["costs"].append({**names, **counts})
        return [rows[index] for index in task.indices.tolist()]

    def _count(self, worker: Worker, task: Task, evaluator: Evaluator, test: SmoothingTest) -> Iterator[Counted]:
        """Outcomes of all images, with progress."""
        with closing(task.examples(worker.preprocess, worker.device)) as examples:
            for counted in Smoother(evaluator, test, self.plan.seed).run(examples):
                yield counted
                self.progress.advance(f"{evaluator.costs.passes:,} passes")


def _evaluator(worker: Worker) -> Evaluator:
    """Of a worker's model, in float32, with passes filled up as the worker has found out."""
    options = worker.options
    size = options.batch_size or CPU_BATCH
    return Evaluator(worker.classifier, size, fill=options.fill, small_rows=options.small_rows)
