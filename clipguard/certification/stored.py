"""Certificates in the store: a cell for each model, class text, preprocessing and test; a row an image.

A row has the columns of an attack's: the class without noise is `clean_pred`, the selected one `adv_pred`, the radius
`distance`, the hits `margin`, and a certificate for the right class is `robust`. Eps is 0: the radius is no question.
"""

from __future__ import annotations

from typing import Any

from clipguard.attacks.engine.outcome import EpsOutcome
from clipguard.attacks.recipes import Recipe
from clipguard.benchmark.stored.session import StoreSession
from clipguard.benchmark.task import Task
from clipguard.benchmark.workers.worker import Worker
from clipguard.certification.result import CertifiedSample, certified_sample
from clipguard.certification.smoother import Counted
from clipguard.certification.smoothing import SmoothingTest
from clipguard.store.store import Store, StoredCell, distinct

# Of certificates. Increase it with any change that can change an image's outcome.
CERTIFY_VERSION = 1
CLEAN = Recipe("none", ())
ABSTAINED, WRONG = "abstained", "wrong"  # in `broken_by`


def stored_cell(store: Store, worker: Worker, task: Task, test: SmoothingTest) -> StoredCell:
    """Where the store keeps the certificates of a worker's model under a test."""
    key: dict[str, Any] = worker.key(CLEAN, task.indices.tolist())
    return store.cell({**key, "certify": {"version": CERTIFY_VERSION, **test.to_dict()}})


def recall_certificates(
    cell: StoredCell | None, model: str, task: Task, test: SmoothingTest
) -> dict[int, CertifiedSample]:
    """What a cell knows of the images of a task (same pixels, index and label), by index; nothing without a cell."""
    rows = distinct(cell.segments() if cell else [])
    hashes, labels = task.hashes, task.labels()
    names = ("index", "image", "label", "clean_pred", "adv_pred", "margin")
    known = {}
    for index, image, label, base, selected, hits in zip(*(rows[name].tolist() for name in names), strict=True):
        if hashes.get(index) == image and labels[index] == label:
            known[index] = certified_sample(model, task.name, test, index, label, base, selected, int(hits))
    return known


def row_of(counted: Counted, model: str, dataset: str, test: SmoothingTest) -> CertifiedSample:
    """The row of an image that was counted now."""
    index, label = counted.example.index, counted.example.label
    return certified_sample(model, dataset, test, index, label, counted.base, counted.selected, counted.hits)


def keep(session: StoreSession, counted: Counted, test: SmoothingTest) -> None:
    """Give a certificate to the store."""
    certain, right = test.certifies(counted.hits), counted.selected == counted.example.label
    outcome = EpsOutcome(
        eps=0.0,
        robust=certain and right,
        prediction=counted.selected,
        broken_by=ABSTAINED if not certain else None if right else WRONG,
        distance=test.radius(counted.hits),
        margin=float(counted.hits),
    )
    session.add(counted.example, counted.base, outcome)
