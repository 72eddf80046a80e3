"""The sanity checks that attack: what do other attacks, noise or another model find that this one did not?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from clipguard.attacks import losses
from clipguard.attacks.engine.engine import Engine
from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.outcome import EpsOutcome, Example
from clipguard.attacks.engine.passes.evaluator import Evaluator, frozen, require_finite
from clipguard.attacks.recipes import Recipe, parse_recipe
from clipguard.core.errors import NoGradientError, NonFiniteError
from clipguard.sanity.checks import UNBOUNDED_EPS, Finding, counted, not_checked
from clipguard.sanity.subject import Subject, ascend

LARGE_EPS_ATTACK = "apgd-ce(iterations=30)+apgd-dlr(iterations=30)"  # short: in such a ball everything breaks at once
NOISES_PER_IMAGE = 64
SQUARE_QUERIES = 500
TRANSFER_STEPS = 50  # of gradient ascent on the other model


def run_attack(subject: Subject, recipe: Recipe, eps: float) -> list[EpsOutcome]:
    """What the recipe finds for each image, in their order.

    Args:
        subject: the model and the images.
        recipe: the attack.
        eps: in pixel units.

    Raises:
        NonFiniteError: for NaN and infinity.
        NoGradientError: if the model passes no gradient to its input, and the recipe needs one.
    """
    options = EngineOptions(subject.evaluator.batch_size, subject.seed, keep_images=True)
    engine = Engine(subject.evaluator.model, recipe, subject.threat, [eps], options)
    rows = zip(subject.indices, subject.x, subject.labels.tolist(), strict=True)
    outcomes = {outcome.index: outcome.eps_outcomes[0] for outcome in engine.run(Example(*row) for row in rows)}
    return [outcomes[index] for index in subject.indices]


def doubled(recipe: Recipe) -> Recipe | None:
    """The recipe with twice the iterations and queries; None if no stage has any."""
    stages = []
    for stage in recipe.stages:
        steps = {name: 2 * value for name, value in stage.options().items() if name in ("iterations", "queries")}
        stages.append(replace(stage, **steps))  # type: ignore[type-var]
    return replace(recipe, stages=tuple(stages)) if tuple(stages) != recipe.stages else None


@dataclass
class Examination:
    """The checks that attack.

    Attributes:
        subject: the model and the images that it is right on when clean.
        recipe: the attack in question.
        outcomes: what it found for each image; None if no gradient reaches the pixels.
        transfer_from: another model, whose adversarial images are tried.
    """

    subject: Subject
    recipe: Recipe
    outcomes: list[EpsOutcome] | None
    transfer_from: nn.Module | None

    @classmethod
    def begin(cls, subject: Subject, recipe: Recipe, transfer_from: nn.Module | None) -> Examination:
        """Attack all images, if gradients allow.

        Raises:
            NonFiniteError: for NaN and infinity.
        """
        try:
            outcomes: list[EpsOutcome] | None = run_attack(subject, recipe, subject.eps)
        except NoGradientError:
            outcomes = None
        return cls(subject, recipe, outcomes, transfer_from)

    def finding(self, check: str) -> Finding:
        """One of the checks that take many passes; NaN on the way is a failure of it."""
        checks: dict[str, Callable[[], Finding]] = {
            "eps-order": self.eps_order,
            "large-eps": self.large_eps,
            "noise": self.noise,
            "black-box": self.black_box,
            "transfer": self.transfer,
            "iterations": self.iterations,
            "silent-success": self.silent_success,
        }
        try:
            return checks[check]()
        except NoGradientError:
            return not_checked(check, "no gradient reaches the pixels")
        except NonFiniteError as error:
            return Finding(check, "failure", str(error))

    @property
    def robust(self) -> Tensor:
        """(N,) bool, which images the attack left standing: all, if it could not run."""
        outcomes = [True] * self.subject.n if self.outcomes is None else [o.robust for o in self.outcomes]
        return torch.tensor(outcomes, device=self.subject.x.device)

    @property
    def standing(self) -> str:
        """The same in words."""
        return f"{self.recipe.name} left {int(self.robust.sum())} standing"

    def eps_order(self) -> Finding:
        """What broke at eps is attacked at twice that, from the start."""
        broken = self.subject.only(~self.robust)
        if not broken.n:
            return not_checked("eps-order", "the attack broke no image at the smaller eps")
        larger = run_attack(broken, self.recipe, 2 * self.subject.eps)
        return counted("eps-order", sum(o.robust for o in larger), broken.n, "images broken at eps hold at 2 eps")

    def large_eps(self) -> Finding:
        """A ball that holds the all-grey image, the same for every image."""
        grey = torch.full_like(self.subject.x, 0.5)
        eps = UNBOUNDED_EPS if self.subject.norm == "linf" else UNBOUNDED_EPS * self.subject.x[0].numel() ** 0.5
        outcomes = run_attack(self.subject, parse_recipe(LARGE_EPS_ATTACK), eps)
        hold = torch.tensor([o.robust for o in outcomes], device=grey.device)
        by_grey = int((hold & (self.subject.evaluator.verify(grey).argmax(dim=1) != self.subject.labels)).sum())
        more = f"plain grey, which this allows, would break {by_grey} of them" if by_grey else ""
        what = f"images hold at {self.subject.norm} eps {eps:.3g} of pixels in [0,1]"
        return counted("large-eps", int(hold.sum()), self.subject.n, what, more, grey=by_grey)

    def noise(self) -> Finding:
        """Random images come nearer to an error than the attack did, or over the edge where it did not."""
        subject = self.subject
        margins = [subject.evaluator.verify(subject.noise(1 + i)) for i in range(NOISES_PER_IMAGE)]
        lowest = torch.stack([losses.margin(logits, subject.labels) for logits in margins]).amin(dim=0)
        require_finite(lowest[:, None], lambda i: subject.indices[i], "under noise")
        clean = losses.margin(subject.evaluator.verify(subject.x), subject.labels)
        by_attack = clean if self.outcomes is None else torch.tensor([o.margin for o in self.outcomes]).to(clean)
        wins = self.robust & (lowest < by_attack)
        broken = int((lowest < 0).sum())
        what = (
            f"images have a smaller margin under the worst of {NOISES_PER_IMAGE} noises than under {self.recipe.name}"
        )
        more = f"noise broke {broken}, {self.recipe.name} {int((~self.robust).sum())}"
        return counted("noise", int(wins.sum()), subject.n, what, more, noise_broke=broken)

    def black_box(self) -> Finding:
        """Square on what is left standing."""
        if all(stage.name == "square" for stage in self.recipe.stages):
            return not_checked("black-box", f"{self.recipe.name} itself sees no gradient")
        left = self.subject.only(self.robust)
        square = run_attack(left, parse_recipe(f"square(queries={SQUARE_QUERIES})"), self.subject.eps) if left.n else []
        bad = sum(not o.robust for o in square)
        return counted(
            "black-box", bad, self.subject.n, f"images fall to {SQUARE_QUERIES} queries of Square", self.standing
        )

    def transfer(self) -> Finding:
        """Images made for the other model, on what is left standing."""
        if self.transfer_from is None:
            return not_checked("transfer", "no other model was named (--transfer-from)")
        subject, robust = self.subject, self.robust
        other = replace(subject, evaluator=Evaluator(self.transfer_from, subject.evaluator.batch_size))
        with frozen(self.transfer_from):
            clean = other.evaluator.verify(subject.x)
            x_adv, _ = ascend(other, subject.eps, TRANSFER_STEPS, losses.cross_entropy)
            require_finite(x_adv, lambda i: subject.indices[i], "in images made for the other model")
            fooled = int((other.evaluator.verify(x_adv).argmax(dim=1) != subject.labels).sum())
        logits = subject.evaluator.verify(x_adv)
        require_finite(logits, lambda i: subject.indices[i], "on transferred images")
        bad = int((robust & (logits.argmax(dim=1) != subject.labels)).sum())
        right = int((clean.argmax(dim=1) == subject.labels).sum())
        more = f"{self.standing}; of {subject.n} the other model had {right} right, and {subject.n - fooled} at the end"
        return counted("transfer", bad, subject.n, "images fall to transferred ones alone", more, other_right=right)

    def iterations(self) -> Finding:
        """The attack again with twice the iterations, on what is left standing."""
        longer = doubled(self.recipe)
        if longer is None:
            return not_checked("iterations", f"{self.recipe.name} takes a fixed number of steps")
        left = self.subject.only(self.robust)
        if self.outcomes is None:
            raise NoGradientError
        outcomes = run_attack(left, longer, self.subject.eps) if left.n else []
        bad = sum(not o.robust for o in outcomes)
        return counted("iterations", bad, self.subject.n, "images fall to twice the iterations only", self.standing)

    def silent_success(self) -> Finding:
        """Each adversarial image once more, on its own: finite, in the ball, and wrong."""
        subject, failed, claimed = self.subject, 0, 0
        for x0, label, outcome in zip(subject.x, subject.labels, self.outcomes or [], strict=False):
            if outcome.robust or outcome.image is None:
                continue
            claimed += 1
            x = outcome.image[None].to(x0.device)
            logits = subject.evaluator.verify(x)
            inside = subject.threat.contains(x, x0[None], torch.tensor([subject.eps], device=x0.device))
            failed += not (inside.all() and torch.isfinite(logits).all() and logits.argmax() != label)
        if not claimed:
            return not_checked("silent-success", "the attack claims no success")
        return counted("silent-success", failed, claimed, "claimed successes do not verify")
