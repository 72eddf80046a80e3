"""What a sanity check says: a verdict, its evidence, and what to do. docs/doctor.md explains each one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from scipy.stats import binomtest

from clipguard.core.records.run import FindingRecord
from clipguard.statistics.intervals import wilson_interval

Verdict = Literal["failure", "warning", "not checked", "ok"]  # worst first
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
BY_WEIGHT: tuple[Verdict, ...] = (
    "failure",
    "warning",
    "ok",
    "not checked",
)  # of two answers to one check, which counts
UNBOUNDED_EPS = 0.5  # a pixel in [0,1]; a linf ball so large holds the same grey image for every x
ALPHA = 0.01  # chance that a check with so many bad images as it tolerates still raises its voice
TOLERATED_SHARE, GRAVE_SHARE = 0.01, 0.1  # of images: above it a check warns, above it a check fails


@dataclass(frozen=True)
class Check:
    """A question that `clipguard doctor` asks.

    Attributes:
        title: the question.
        advice: what to do if the answer is bad.
        source: who asked first.
    """

    title: str
    advice: str
    source: str


CARLINI = "Carlini et al. 2019, On Evaluating Adversarial Robustness"
ATHALYE = "Athalye et al. 2018, Obfuscated Gradients Give a False Sense of Security"
CROCE = "Croce & Hein 2020, AutoAttack"
PINTOR = "Pintor et al. 2022, Indicators of Attack Failure"
COHEN = "Cohen 1960, A Coefficient of Agreement for Nominal Scales"
KUHN = "Kuhn 1955, The Hungarian Method for the Assignment Problem"
LANDIS = "Landis & Koch 1977, The Measurement of Observer Agreement for Categorical Data"
TRAMER = "Tramèr et al. 2020, On Adaptive Attacks to Adversarial Example Defenses"
CROCE_DEFENSES = "Croce et al. 2022, Evaluating the Adversarial Robustness of Adaptive Test-time Defenses"

CHECKS: dict[str, Check] = {
    "above-chance": Check(
        "Is clean accuracy above chance?",
        "Look at the class names first (--classes FILE: words, in the order of the labels), then at --normalization, "
        "then at --base and the architecture (its -quickgelu form).",
        COHEN,
    ),
    "class-order": Check(
        "Are the classes in the order of the labels?",
        "Give the names in the order of the labels' numbers: --classes FILE, one name a line.",
        KUHN,
    ),
    "predicted-classes": Check(
        "Is every class predicted for some image?",
        "Look at the names of these classes: other words (--classes), no ids, and no two alike.",
        LANDIS,
    ),
    "train-mode": Check(
        "Is every part of the model in eval mode?",
        "Call model.eval(), and keep a wrapper's train() from undoing it.",
        CARLINI,
    ),
    "finite": Check(
        "Are logits and gradients finite?",
        "Check the weights and use float32; NaN is neither robust nor broken.",
        PINTOR,
    ),
    "probabilities": Check(
        "Are the outputs logits, not probabilities?",
        "Attack what goes into the softmax: after it, cross-entropy flattens every gradient.",
        CROCE,
    ),
    "randomised": Check(
        "Does the same image get the same logits, again and alone?",
        'Attack the expectation, as in --attack "autoattack-fast(eot=20)", and say so; or switch the randomness off.',
        ATHALYE,
    ),
    "duplicate-classes": Check(
        "Does every class have a text of its own?",
        "Give the classes different names (--classes) and each prompt once: tied classes cannot be told apart.",
        CARLINI,
    ),
    "gradients": Check(
        "Do gradients reach the pixels, and say where the logits go?",
        "Replace what has no gradient (rounding, JPEG, lookups) by a differentiable stand-in on the way back (BPDA).",
        ATHALYE,
    ),
    "saturation": Check(
        "Can cross-entropy see something to climb?",
        "Use attacks on scale-free losses (apgd-dlr, apgd-t, cw-50), or a smaller --logit-scale.",
        CROCE,
    ),
    "loss-increase": Check(
        "Does following the gradient raise the loss?",
        "The gradient does not belong to the function that is evaluated; attack that function itself.",
        PINTOR,
    ),
    "eps-zero": Check(
        "Does nothing change at eps 0?",
        "The pipeline changes images or labels without an attack; compare what clean and attacked images go through.",
        CARLINI,
    ),
    "eps-order": Check(
        "Does a larger eps break what a smaller one breaks?",
        "The attack loses its way at large eps: more iterations or restarts, and look at gradients.",
        CARLINI,
    ),
    "large-eps": Check(
        "Is accuracy about 0 where anything is allowed?",
        "No image classifier survives this; the attack is blind. Look at gradients, and for a defence that knows the "
        "images.",
        CARLINI,
    ),
    "noise": Check(
        "Are gradients stronger than random noise?",
        "The gradient attack is worse than guessing; its numbers say nothing. Look at gradients.",
        CARLINI,
    ),
    "black-box": Check(
        "Does Square, which sees no gradient, break nothing that gradients miss?",
        "Gradients are masked: add square to the attack (--attack autoattack), and look at gradients.",
        CROCE,
    ),
    "transfer": Check(
        "Do images made for another model break nothing that this model's gradients miss?",
        "Gradients are masked: count the transferred images too, and look at gradients.",
        CARLINI,
    ),
    "iterations": Check(
        "Do twice as many iterations break little more?",
        "The attack has not converged: report it with more iterations, or use apgd-ce, apgd-t or autoattack.",
        PINTOR,
    ),
    "silent-success": Check(
        "Is every claimed success one: wrong, inside the ball, again?",
        "Do not count what does not verify; look at randomised, and at how the images were stored.",
        PINTOR,
    ),
}

DEFENSE_CHECKS: dict[str, Check] = {  # of defended models, which `clipguard bench --defense` makes
    "weak-threat": Check(
        "Was the defence attacked by who knows it?",
        "Leave out --threat: images made on the undefended model say little of who attacks through the defence.",
        CROCE_DEFENSES,
    ),
    "defense-gap": Check(
        "Does what transferred attacks leave standing hold against adaptive ones and queries?",
        "Report the worst case. The gap is robustness that only those attackers see who do not know of the defence.",
        CROCE_DEFENSES,
    ),
    "defense-labels": Check(
        "Does the defence change labels of attacked images rather than of clean ones?",
        "It costs clean accuracy without helping: compare with the undefended model at the same passes.",
        CROCE_DEFENSES,
    ),
    "defense-gate": Check(
        "Does the gate see images that were attacked through the defence?",
        "The attack passes the gate, so what is behind it does not count. Report how many images pass.",
        TRAMER,
    ),
    "defense-gradient": Check(
        "Is each gradient that the defence offers to attacks its own, and not zero?",
        "Offer `identity` where steps are detached, and what is differentiable elsewhere; a zero gradient hides all.",
        ATHALYE,
    ),
}
ALL_CHECKS = CHECKS | DEFENSE_CHECKS


@dataclass(frozen=True)
class Finding:
    """The answer to one of `ALL_CHECKS`.

    Attributes:
        id: the check's name.
        verdict: how bad it is.
        evidence: what was counted, in words.
        numbers: the same for programs.
    """

    id: str
    verdict: Verdict
    evidence: str
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def advice(self) -> str:
        """What to do; nothing if all is well or nothing was asked."""
        return ALL_CHECKS[self.id].advice if self.verdict in ("warning", "failure") else ""

    def to_dict(self) -> FindingRecord:
        """Plain JSON types."""
        return {
            "id": self.id,
            "verdict": self.verdict,
            "evidence": self.evidence,
            "numbers": dict(self.numbers),
            "advice": self.advice,
        }

    def __str__(self) -> str:
        advice = f" -> {self.advice}" if self.advice else ""
        return f"{self.verdict} {self.id}: {self.evidence}{advice}"


def not_checked(check: str, reason: str) -> Finding:
    """A check that could not be made, and why."""
    return Finding(check, "not checked", reason)


def judge(bad: int, n: int) -> Verdict:
    """Bad images of n: warning if beyond chance more than 1 % would be, failure if more than 10 %.

    One-sided exact binomial tests at level 0.01, so that one odd image among many accuses nobody: of 32 images, 3 are
    a warning and 9 a failure; of 200, 7 and 31.
    """
    for verdict, share in (("failure", GRAVE_SHARE), ("warning", TOLERATED_SHARE)):
        if binomtest(bad, n, share, alternative="greater").pvalue < ALPHA:
            return verdict  # type: ignore[return-value]
    return "ok"


def counted(check: str, bad: int, n: int, what: str, more: str = "", **numbers: float) -> Finding:
    """A finding by `judge`.

    Args:
        check: its name.
        bad: how many images are.
        n: of how many.
        what: they are, for the words.
        more: words behind it.
        numbers: further ones for programs.
    """
    low, high = wilson_interval(bad, n)
    interval = f" (95 % interval {100 * low:.0f}–{100 * high:.0f} %)" if bad else ""
    evidence = f"{bad} of {n} {what}{interval}{f'; {more}' if more else ''}"
    return Finding(check, judge(bad, n), evidence, {"bad": bad, "n": n, **numbers})


def weightier(first: Finding, second: Finding) -> Finding:
    """Of two answers to one check the worse; one that could be given counts before one that could not."""
    return min(first, second, key=lambda finding: BY_WEIGHT.index(finding.verdict))


def worst(findings: list[Finding]) -> Verdict:
    """The worst verdict: failure, warning, not checked, ok."""
    return next((v for v in VERDICTS if any(f.verdict == v for f in findings)), "ok")
