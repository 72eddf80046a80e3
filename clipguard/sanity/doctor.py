"""Is the robustness of a model real? Every check of `CHECKS`, for any torch module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from clipguard.attacks.engine.passes.evaluator import Evaluator, frozen
from clipguard.attacks.recipes import Recipe
from clipguard.core.errors import AttackError, NonFiniteError
from clipguard.sanity.checks import CHECKS, Finding, not_checked
from clipguard.sanity.examination import Examination
from clipguard.sanity.predictions import prediction_findings
from clipguard.sanity.probes import probe
from clipguard.sanity.subject import Subject

NOT_FINITE = "logits or gradients are not finite"


def examine(subject: Subject, recipe: Recipe, transfer_from: nn.Module | None = None) -> Iterator[Finding]:
    """All findings, in the order of `CHECKS`: probes first, then clean predictions, then the checks that attack.

    Args:
        subject: the model and the images.
        recipe: the attack whose numbers are in doubt.
        transfer_from: another model with the same classes, whose adversarial images are tried.

    Raises:
        AttackError: for a recipe that attacks nothing, bad labels, outputs that are no logits, or other classes of
            the model to transfer from.
    """
    recipe.check_perturbs()
    findings = _by_check(probe(subject, recipe))
    obstacle = _obstacle(findings)
    examination = None
    if obstacle is None:
        if transfer_from is not None:
            _check_classes(subject, transfer_from)
        logits = subject.evaluator.verify(subject.x)
        findings |= _by_check(_clean_findings(subject, logits))
        right = subject.only(logits.argmax(dim=1) == subject.labels)
        obstacle = None if right.n else "no image is right when clean"
    if obstacle is None:
        try:
            examination = Examination.begin(right, recipe, transfer_from)
        except NonFiniteError as error:
            findings["finite"] = Finding("finite", "failure", str(error))
            obstacle = NOT_FINITE
    for check in CHECKS:
        if check in findings:
            yield findings[check]
        else:
            yield not_checked(check, obstacle or "") if examination is None else examination.finding(check)


def _by_check(findings: Iterable[Finding]) -> dict[str, Finding]:
    return {finding.id: finding for finding in findings}


def _obstacle(findings: dict[str, Finding]) -> str | None:
    """Why the model cannot be attacked, if it cannot."""
    if findings["train-mode"].verdict != "ok":
        return "the model is in train mode"
    return None if findings["finite"].verdict == "ok" else NOT_FINITE


def _clean_findings(subject: Subject, logits: Tensor) -> list[Finding]:
    """What the clean predictions tell."""
    labels, predictions = subject.labels.cpu(), logits.argmax(dim=1).cpu()
    return prediction_findings(labels, predictions, logits.shape[1], subject.class_names or ())


def _check_classes(subject: Subject, other: nn.Module) -> None:
    """Raises AttackError unless both models know the same number of classes; a frozen model is in eval mode."""
    with frozen(other):
        theirs = Evaluator(other, 1).verify(subject.x[:1]).shape[1]
    ours = subject.evaluator.verify(subject.x[:1]).shape[1]
    if ours != theirs:
        raise AttackError(f"The model to transfer from has {theirs} classes, not {ours}; both need the same.")
