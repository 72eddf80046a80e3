"""Cheap sanity checks of a model: a few passes over a few images, seeing nothing but pixels and logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clipguard.attacks import losses
from clipguard.attacks.recipes import Recipe
from clipguard.attacks.threat import l2_norm, largest
from clipguard.core.errors import AttackError, NoGradientError
from clipguard.sanity.checks import Finding, counted, judge, not_checked
from clipguard.sanity.subject import Subject, ascend

REPEATS = 2  # passes that must agree with the first
LOGIT_CHANGE_RTOL = (
    1e-3  # of the range of an image's logits: less is rounding, which differs between kernels of batch shapes
)
LEAST_LOGIT_RANGE = 1e-2  # of the size of the logits: what counts as their range at least; 0 where all prompts are one
TIED_CLASSES_RTOL = 1e-5  # of the range of the logits: columns nearer than this are one class
CONSTANT_GRADIENT_RTOL = 1e-5  # relative change of a gradient across the ball, below which it is constant
MOST_PASSES = 13  # forward, an image: of all checks
ASCENT_STEPS = 4  # of the ascent whose loss must rise
SOFTMAX_SATURATION_MARGIN = 16.6  # lead in logits beyond which float32 rounds a softmax to 1: -log(2^-24)


def train_mode(model: nn.Module) -> Finding:
    """Modules that behave as in training. The model is not run: batch norm would change by it."""
    training = {type(m).__name__ for m in model.modules() if m.training}
    if not training:
        return Finding("train-mode", "ok", "all modules are in eval mode")
    count = sum(m.training for m in model.modules())
    kinds = ", ".join(sorted(training)[:5])
    return Finding("train-mode", "failure", f"{count} modules are in train mode: {kinds}", {"modules": count})


def probe(subject: Subject, recipe: Recipe) -> Iterator[Finding]:
    """The cheap checks, in the order of `CHECKS`; some are "not checked" where an earlier one fails.

    They take `MOST_PASSES` forward and 7 backward passes an image. The caller's random state is left alone.

    Args:
        subject: the model and the images.
        recipe: the attack whose blindness is asked about.

    Raises:
        AttackError: for outputs that are no (batch, classes) logits, and for labels that are no class.
    """
    model = subject.evaluator.model
    finding = train_mode(model)
    yield finding
    if finding.verdict != "ok":
        yield from (not_checked(check, "the model is in train mode") for check in PROBE_CHECKS[1:])
        return
    devices = [subject.x.device] if subject.x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(subject.seed)  # what a randomised model draws, a rerun draws again
        yield from _probe_in_eval_mode(subject, recipe)


GRADIENT_CHECKS = ("gradients", "saturation", "loss-increase", "eps-zero")
PROBE_CHECKS = ("train-mode", "finite", "probabilities", "randomised", "duplicate-classes", *GRADIENT_CHECKS)


def _probe_in_eval_mode(subject: Subject, recipe: Recipe) -> Iterator[Finding]:
    logits = subject.evaluator.verify(subject.x)
    if not ((subject.labels >= 0) & (subject.labels < logits.shape[1])).all():
        raise AttackError(f"Labels must lie in 0 ... {logits.shape[1] - 1}, the classes the model knows.")
    targets = logits.scatter(1, subject.labels[:, None], -torch.inf).argmax(dim=1)
    try:
        gradients: Gradients | None = Gradients.measure(subject, targets)
    except NoGradientError:
        gradients = None
    finding = finite(logits, gradients)
    yield finding
    if finding.verdict != "ok":
        yield from (not_checked(check, "logits or gradients are not finite") for check in PROBE_CHECKS[2:])
        return
    yield probabilities(logits)
    yield randomised(subject, logits)
    yield duplicate_classes(logits, subject.class_names)
    if gradients is None:
        evidence = "no gradient reaches the pixels: the graph is cut (detach, no_grad, NumPy or PIL inside)"
        yield Finding("gradients", "failure", evidence, {"bad": subject.n, "n": subject.n})
        yield from (not_checked(check, "no gradient reaches the pixels") for check in GRADIENT_CHECKS[1:])
        return
    yield direction(gradients)
    yield saturation(logits, subject.labels, gradients, recipe)
    yield loss_increase(subject)
    yield eps_zero(subject, gradients, logits)


@dataclass(frozen=True)
class Gradients:
    """What gradients say of the images, and what is true.

    Attributes:
        here: (N, C, H, W) of z_t - z_y at the images.
        there: (N, C, H, W) of the same at a random point of their balls.
        cross_entropy: (N, C, H, W) of cross-entropy at the images.
        gain: (N,) what z_t - z_y gains on the way to that point.
        predicted: (N,) what the gradient at the image says it gains.
    """

    here: Tensor
    there: Tensor
    cross_entropy: Tensor
    gain: Tensor
    predicted: Tensor

    @classmethod
    def measure(cls, subject: Subject, targets: Tensor) -> Gradients:
        """Three gradients of every image. Raises NoGradientError if the model has none."""
        noisy = subject.noise(0)
        before, here = subject.gradient(subject.x, losses.target_difference, targets)
        after, there = subject.gradient(noisy, losses.target_difference, targets)
        _, cross_entropy = subject.gradient(subject.x, losses.cross_entropy, targets)
        predicted = (here * (noisy - subject.x)).flatten(1).sum(dim=1)
        return cls(here, there, cross_entropy, after - before, predicted)


def finite(logits: Tensor, gradients: Gradients | None) -> Finding:
    """NaN or infinity in the logits or a gradient of any image, or off it in its ball: NaN is never chance."""
    values = [logits]
    if gradients is not None:
        values += [gradients.here, gradients.there, gradients.cross_entropy, gradients.gain[:, None]]
    bad = torch.stack([~torch.isfinite(v.flatten(1)).all(dim=1) for v in values]).any(dim=0)
    count, n = int(bad.sum()), len(bad)
    evidence = f"{count} of {n} images have NaN or infinite logits or gradients"
    return Finding("finite", "failure" if count else "ok", evidence, {"bad": count, "n": n})


def probabilities(logits: Tensor) -> Finding:
    """AttackState in [0,1] that sum to 1, as far as two decimals would."""
    between = ((logits >= 0) & (logits <= 1)).all(dim=1)
    bad = int((between & ((logits.sum(dim=1) - 1).abs() < 0.05)).sum())
    low, high = float(logits.min()), float(logits.max())
    evidence = f"outputs lie in {low:.3g} ... {high:.3g}; those of {bad} of {len(logits)} images sum to 1"
    numbers = {"bad": bad, "n": len(logits), "low": round(low, 3), "high": round(high, 3)}
    return Finding("probabilities", "failure" if bad == len(logits) else "ok", evidence, numbers)


def spread(logits: Tensor) -> Tensor:
    """(N,) largest minus smallest logit of each image, never so small that rounding is a share of it."""
    least = LEAST_LOGIT_RANGE * logits.abs().amax(dim=1)
    return torch.maximum(logits.amax(dim=1) - logits.amin(dim=1), least).clamp_min(1e-12)


def randomised(subject: Subject, logits: Tensor) -> Finding:
    """The same batch again, then each image on its own; the latter tells of statistics taken from the batch."""

    def changed(passes: list[Tensor]) -> tuple[Tensor, float]:
        shares = torch.stack([(again - logits).abs().amax(dim=1) / spread(logits) for again in passes])
        shares = shares.nan_to_num(nan=torch.inf)
        return (shares > LOGIT_CHANGE_RTOL).any(dim=0), float(shares.max())

    verify = subject.evaluator.verify
    again, largest_again = changed([verify(subject.x) for _ in range(REPEATS)])
    alone, largest_alone = changed([torch.cat([verify(x[None]) for x in subject.x])])
    bad, n = int((again | alone).sum()), subject.n
    numbers = {"bad": bad, "n": n, "again": int(again.sum()), "alone": int(alone.sum())}
    if not bad:
        return Finding("randomised", "ok", f"0 of {n} images change in {REPEATS} repetitions and alone", numbers)
    how, moved = ("from pass to pass", largest_again) if again.any() else ("with the rest of the batch", largest_alone)
    evidence = f"logits of {bad} of {n} images change {how}, by up to {moved:.1g} of their range"
    return Finding("randomised", "failure", evidence, numbers)


def duplicate_classes(logits: Tensor, names: Sequence[str] | None = None) -> Finding:
    """Classes whose logits are equal on every image, as those of equal text embeddings are."""
    classes = logits.shape[1]
    order = logits.sum(dim=0).argsort(stable=True)  # equal columns come to lie side by side
    ordered = logits[:, order] / spread(logits)[:, None]
    tied = ((ordered[:, 1:] - ordered[:, :-1]).abs() < TIED_CLASSES_RTOL).all(dim=0).nonzero().squeeze(1).tolist()
    if len(tied) == classes - 1:
        return not_checked("duplicate-classes", "all classes have equal outputs on these images")
    pairs = [tuple(sorted((int(order[i]), int(order[i + 1])))) for i in tied]
    said = ", ".join(" = ".join(names[i] if names else str(i) for i in pair) for pair in pairs[:3])
    evidence = f"{len(pairs)} of {classes} classes have the logits of another{f': {said}' if pairs else ''}"
    numbers = {"bad": len(pairs), "classes": classes, "n": len(logits)}
    return Finding("duplicate-classes", "warning" if pairs else "ok", evidence, numbers)


def direction(gradients: Gradients) -> Finding:
    """Images whose gradient is zero, or the same across the ball though the logits are not linear there."""
    size = l2_norm(gradients.here)
    zero = (largest(gradients.here) == 0) & (largest(gradients.there) == 0)
    constant = ~zero & (l2_norm(gradients.there - gradients.here) <= CONSTANT_GRADIENT_RTOL * size)
    off = (gradients.gain - gradients.predicted).abs() > 0.1 * gradients.gain.abs() + 1e-4 * gradients.predicted.abs()
    made_up = constant & off
    moved = int((zero & (gradients.gain != 0)).sum())
    bad, n = int((zero | made_up).sum()), len(zero)
    counts = {"zero": int(zero.sum()), "constant": int(made_up.sum()), "moved": moved}
    more = f"noise moves the logits of {moved} of them" if moved else ""
    finding = counted(
        "gradients", bad, n, "images have a zero gradient, or a constant one that is wrong", more, **counts
    )
    if bad == n:  # not a matter of chance, however few the images
        return Finding(finding.id, "failure", finding.evidence, finding.numbers)
    return finding


def saturation(logits: Tensor, labels: Tensor, gradients: Gradients, recipe: Recipe) -> Finding:
    """Images right when clean where cross-entropy as the attacks compute it has no gradient though the margin has one.

    A warning if the recipe also has a loss that does not saturate. How many lead by more than a usual float32
    softmax can tell, is evidence and no verdict: clipguard's own cross-entropy keeps their gradient.
    """
    margins = losses.margin(logits, labels)
    right, beyond = int((margins > 0).sum()), int((margins > SOFTMAX_SATURATION_MARGIN).sum())
    if not right:
        return not_checked("saturation", "no image is right when clean")
    dead = (margins > 0) & (largest(gradients.cross_entropy) == 0) & (largest(gradients.here) > 0)
    more = f"{beyond} lead by more than {SOFTMAX_SATURATION_MARGIN}, where a plain float32 softmax has none"
    finding = counted("saturation", int(dead.sum()), right, "images give cross-entropy no gradient", more)
    scale_free = [s.name for s in recipe.stages if s.loss is not losses.cross_entropy and s.name != "square"]
    if finding.verdict == "failure" and scale_free:
        evidence = f"{finding.evidence}; the attack has {scale_free[0]}, which does not saturate"
        return Finding(finding.id, "warning", evidence, finding.numbers)
    return finding


def loss_increase(subject: Subject) -> Finding:
    """Images whose margin loss is nowhere on the way above where it began."""
    _, values = ascend(subject, subject.eps, ASCENT_STEPS)
    stuck = ~(values[1:].amax(dim=0) > values[0])
    rising = 100 * float((values[1:] > values[:-1]).float().mean())
    return counted(
        "loss-increase",
        int(stuck.sum()),
        subject.n,
        f"images end {ASCENT_STEPS} steps no nearer to an error",
        f"the loss rose in {rising:.0f} % of the steps",
    )


def eps_zero(subject: Subject, gradients: Gradients, logits: Tensor) -> Finding:
    """A step of the attack at eps 0 must give back the image, bit for bit, and its prediction."""
    stepped = subject.x + subject.threat.steepest(gradients.here)
    x = subject.threat.project(stepped, subject.x, subject.eps_tensor(0.0))
    moved = (x != subject.x).flatten(1).any(dim=1)
    other = subject.evaluator.verify(x).argmax(dim=1) != logits.argmax(dim=1)
    bad = int((moved | other).sum())
    finding = counted("eps-zero", bad, subject.n, "images or predictions differ after a step at eps 0")
    return Finding(finding.id, "failure" if moved.any() else judge(bad, subject.n), finding.evidence, finding.numbers)
