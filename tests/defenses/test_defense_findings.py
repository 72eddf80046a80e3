"""What is found about a defence: planted ones that must be seen, and one that must not be accused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import torch
from planted_defenses import Brighter, Mirror, Noise, Nothing
from torch import Tensor

from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.threat import ThreatModel
from clipguard.benchmark.defended import WORST, worst_case
from clipguard.defenses.attacking.threats import DefendedModel
from clipguard.defenses.base import Backward, Classifier, Purifier, View
from clipguard.defenses.classifiers import defend
from clipguard.sanity.checks import Finding
from clipguard.sanity.defenses import PASS_CHECKS, DefenseProbe, threat_findings

ROW = {"model": "m", "dataset": "d", "label": 0, "norm": "linf", "clean_pred": 0, "adv_pred": 0, "distance": 0.0}


def rows(threat: str, robust: list[bool], eps: float = 4) -> list[dict[str, object]]:
    by = ["apgd-ce (identity)" if not one else None for one in robust]
    return [
        {**ROW, "index": i, "eps": eps, "attack": threat, "robust": r, "broken_by": b, "margin": 1.0 if r else -1.0}
        for i, (r, b) in enumerate(zip(robust, by, strict=True))
    ]


def probe(defense: Purifier, means: list[float], labels: list[int], eps: float = 0.05) -> dict[str, Finding]:
    model = Brighter().eval()
    defended = DefendedModel(model, defend(model, [defense]), seed=0)
    x = torch.stack([torch.full((3, 4, 4), mean) for mean in means])
    found = DefenseProbe(
        defended, x, torch.tensor(labels), list(range(len(x))), ThreatModel(), eps, EngineOptions()
    ).findings()
    assert tuple(finding.id for finding in found) == PASS_CHECKS
    return {finding.id: finding for finding in found}


@dataclass(frozen=True)
class Detached(Mirror):
    """Says that it is unrolled, and gives the identity's gradient."""

    def differentiable(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:  # noqa: ARG002
        return x


@dataclass(frozen=True)
class Flat(Mirror):
    """Has no gradient at all."""

    def differentiable(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:  # noqa: ARG002
        return 0 * x


@dataclass(frozen=True)
class Gate(Purifier):
    """Mirrors what is darker than 0.505, which attacked images can avoid to be."""

    name: ClassVar[str] = "gate"
    summary: ClassVar[str] = "planted"
    gated: ClassVar[bool] = True
    backwards: ClassVar[tuple[Backward, ...]] = ("identity",)

    def cost(self, classes: int) -> tuple[int, int]:  # noqa: ARG002
        return 1, 0

    def flagged(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:  # noqa: ARG002
        return x.flatten(1).mean(dim=1) < 0.455

    def purify(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:
        return torch.where(self.flagged(classifier, x, view)[:, None, None, None], 1 - x, x)


def test_a_gradient_that_is_the_identitys_or_zero_is_seen() -> None:
    assert probe(Mirror(), [0.53, 0.47], [0, 1])["defense-gradient"].verdict == "ok"
    found = probe(Detached(), [0.53, 0.47], [0, 1])["defense-gradient"]
    assert (found.verdict, "under another name" in found.evidence) == ("warning", True)
    found = probe(Flat(), [0.53, 0.47], [0, 1])["defense-gradient"]
    assert (found.verdict, "zero or vanishing on 2 of 2" in found.evidence) == ("failure", True)


def test_a_gradient_in_disguise_is_seen_in_defences_that_are_no_change_of_an_image() -> None:
    @dataclass(frozen=True)
    class Hidden(Nothing):
        backwards: ClassVar[tuple[Backward, ...]] = ("identity", "unrolled")
        size: float = 1.0

        def logits(self, classifier: Classifier, x: Tensor, view: View) -> Tensor:
            return classifier.logits(x.detach() + self.size * (x - x.detach()), view)

    for size, verdict, words in ((1.0, "warning", "under another name"), (1e-15, "failure", "vanishing on 2 of 2")):
        found = probe(Hidden(size=size), [0.53, 0.47], [0, 1])["defense-gradient"]  # type: ignore[arg-type]
        assert (found.verdict, words in found.evidence) == (verdict, True)


def test_a_gate_that_is_not_shown_images_of_its_own_is_not_judged() -> None:
    model = Brighter().eval()
    x = torch.full((2, 3, 4, 4), 0.53)
    for chain, verdict in (([Nothing(), Gate()], "not checked"), ([Gate(), Nothing()], "warning")):
        defended = DefendedModel(model, defend(model, chain), seed=0)
        probed = DefenseProbe(defended, x, torch.tensor([1, 1]), [0, 1], ThreatModel(), 0.04, EngineOptions())
        found = {finding.id: finding for finding in probed.findings()}
        assert found["defense-gate"].verdict == verdict


def test_labels_of_clean_images_that_change_are_counted() -> None:
    found = probe(Mirror(), [0.6] * 8, [1] * 8)["defense-labels"]
    assert (found.numbers["clean"], found.numbers["attacked"]) == (8, 8)
    found = probe(Noise(), [0.6] * 8, [1] * 8)["defense-labels"]
    assert (found.verdict, found.numbers["clean"]) == ("ok", 0)


def test_broken_images_that_pass_the_gate_are_counted() -> None:
    found = probe(Gate(), [0.52] * 8 + [0.44], [1] * 8 + [1], eps=0.04)["defense-gate"]
    assert found.numbers == {"flagged": 1, "n": 9, "passed": 8, "broken": 8}
    assert found.verdict == "failure"
    assert probe(Mirror(), [0.53], [0])["defense-gate"].verdict == "not checked"


def test_the_weak_column_alone_fails_and_a_gap_is_told() -> None:
    transfer, adaptive = [True] * 20, [False] * 10 + [True] * 10
    samples = pd.DataFrame(rows("transfer", transfer))
    assert [f.verdict for f in threat_findings(samples, ["transfer"], 4)] == ["failure", "not checked"]
    both = pd.DataFrame([*rows("transfer", transfer), *rows("adaptive", adaptive)])
    weak, gap = threat_findings(both, ["transfer", "adaptive"], 4)
    assert (weak.verdict, gap.verdict, gap.numbers["bad"]) == ("ok", "failure", 10)


def test_where_transferred_attacks_break_everything_there_is_no_gap_to_tell_of() -> None:
    both = pd.DataFrame([*rows("transfer", [False, False]), *rows("adaptive", [False, True])])
    assert [f.verdict for f in threat_findings(both, ["transfer", "adaptive"], 4)] == ["ok", "not checked"]


def test_the_worst_case_is_the_first_that_breaks_an_image_and_keeps_the_order() -> None:
    both = pd.DataFrame([*rows("transfer", [True, False, True]), *rows("adaptive", [False, False, True])])
    worst = worst_case(both)
    assert worst["attack"].unique().tolist() == [WORST]
    assert worst["index"].tolist() == [0, 1, 2]
    assert worst["robust"].tolist() == [False, False, True]
    assert list(worst.columns) == list(both.columns)
