"""Is a claimed success one? Only an image that is inside the ball, and wrong in float32 as well, is broken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clipguard.attacks import losses
from clipguard.attacks.engine.caseload import Caseload
from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.outcome import EpsOutcome
from clipguard.attacks.engine.passes.batching import join
from clipguard.attacks.engine.passes.evaluator import Evaluator, require_finite
from clipguard.attacks.engine.passes.joint_pass import Evaluation, Query
from clipguard.attacks.engine.rows import Index, on_device, read
from clipguard.attacks.threat import ThreatModel, per_row

NOBODY: Index = np.zeros(0, dtype=np.int64)


class Look:
    """What the search says of the rows of an evaluation, on the device.

    Attributes:
        evaluation: B rows.
        finite: (B,) bool; sums are asked, which may also overflow.
        inside: (B,) bool, whether the points are in the ball.
        claimed: (B,) bool, inside and misclassified.
        margin: (B,) z_y - max z_k.
    """

    def __init__(self, evaluation: Evaluation, threat: ThreatModel) -> None:
        state, logits, x = evaluation.query.state, evaluation.logits, evaluation.query.admissible
        self.evaluation = evaluation
        self.finite = torch.isfinite(logits.sum(dim=1)) & torch.isfinite(evaluation.gradient.flatten(1).sum(dim=1))
        self.inside = threat.contains(x, state["x0"], state["eps"])
        self.claimed = self.inside & (logits.argmax(dim=1) != state["label"])
        self.margin = losses.margin(logits, state["label"])

    def note_best(self) -> None:
        """Keep in the rows the smallest margin inside the ball and, if they have images, where it was."""
        state, x = self.evaluation.query.state, self.evaluation.query.admissible
        better = self.inside & (self.margin < state["best_margin"])
        state["best_margin"] = torch.where(better, self.margin, state["best_margin"])
        if "best_x" in state:
            state["best_x"] = torch.where(per_row(better, x), x, state["best_x"])


@dataclass
class Claims:
    """The rows of a query that the search takes for broken, and what a pass in float32 says of them.

    Attributes:
        query: all rows.
        index: (K,) positions of those.
        x: (K, C, H, W) where they are.
        logits: (K, classes) in float32.
        verdicts: (5, K) whether the logits are finite, label, prediction, margin, distance.
    """

    query: Query
    index: Index
    x: Tensor
    logits: Tensor
    verdicts: Tensor


class Verifier:
    """Judges evaluations, and reports what is broken to the caseload.

    Args:
        evaluator: the model.
        threat: the ball.
        cases: whose units the rows are.
        options: of the engine.
    """

    def __init__(self, evaluator: Evaluator, threat: ThreatModel, cases: Caseload, options: EngineOptions) -> None:
        self.evaluator, self.threat, self.cases, self.options = evaluator, threat, cases, options

    def judge(self, evaluations: Sequence[Evaluation]) -> list[Claims]:
        """The claims of each evaluation, verified in one pass; asks the device once.

        Also notes the smallest margin inside the ball of every row, and where it was.

        Args:
            evaluations: of images of one shape.

        Raises:
            NonFiniteError: where the search gives NaN or infinity, in its gradient included.
        """
        looks = [Look(evaluation, self.threat) for evaluation in evaluations]
        answers = read([torch.stack([look.finite, look.claimed]) for look in looks])
        for look, (finite, _) in zip(looks, answers, strict=True):
            if not finite.all():
                self._explain(look.evaluation)
        never = self.options.confidence == math.inf  # whatever is claimed
        claims = self._verified(looks, [np.flatnonzero(claimed) if not never else NOBODY for _, claimed in answers])
        for look in looks:
            look.note_best()
        return claims

    def check(self, claims: Sequence[Claims], verdicts: Sequence[npt.NDArray[np.float64]]) -> None:
        """Raise NonFiniteError where the claims have NaN or infinity in float32, as their verdicts, read, say."""
        for claim, (finite, *_) in zip(claims, verdicts, strict=True):
            if not finite.all():
                units = claim.query.rows.units[claim.index]
                self._require_finite(claim.logits, units, f"under {claim.query.attack.full_name}")

    def report(self, claims: Claims, verdicts: npt.NDArray[np.float64]) -> tuple[Index, list[int]]:
        """Tell the caseload of those claims that are true and still matter.

        Args:
            claims: of one query.
            verdicts: the same, read.

        Returns:
            The positions of all broken rows, and the numbers of the images that matter.
        """
        query, (_, labels, predictions, margins, distances) = claims.query, verdicts
        images = claims.x.cpu() if self.options.keep_images and len(claims.index) else None
        broken, numbers = np.flatnonzero((predictions != labels) & (margins <= -self.options.confidence)), []
        for k in broken.tolist():
            number, eps_index, unit = query.rows.units[claims.index[k]].tolist()
            if not self.cases.wants(number, eps_index, unit):
                continue
            image = None if images is None else images[k].clone()
            eps, by, found = self.cases.eps_values[eps_index], query.attack.full_name, int(predictions[k])
            outcome = EpsOutcome(eps, False, found, by, float(distances[k]), float(margins[k]), image)
            self.cases.succeed(number, eps_index, unit, outcome)
            numbers.append(number)
        return claims.index[broken], numbers

    def _verified(self, looks: Sequence[Look], claimed: Sequence[Index]) -> list[Claims]:
        """The claimed rows (K,) of each look with the verdicts of one pass, whose margins the looks take over."""
        queries = [look.evaluation.query for look in looks]
        places = [on_device(index, looks[0].margin.device) for index in claimed]
        x = [query.admissible[at] for query, at in zip(queries, places, strict=True)]
        logits = self._decisive(join(x), looks[0].evaluation.logits)
        claims = []
        parts = torch.split(logits, [len(index) for index in claimed])
        for look, query, index, at, points, decided in zip(looks, queries, claimed, places, x, parts, strict=True):
            label, distance = query.state["label"][at], self.threat.distance(points, query.state["x0"][at])
            margin, finite = losses.margin(decided, label), torch.isfinite(decided.sum(dim=1))
            look.margin[at] = margin
            columns = (finite, label, decided.argmax(dim=1), margin, distance)
            claims.append(Claims(query, index, points, decided, torch.stack([c.double() for c in columns])))
        return claims

    def _decisive(self, x: Tensor, like: Tensor) -> Tensor:
        """Logits (K, classes) of all claimed points, in float32."""
        if not len(x):
            return like.new_zeros(0, like.shape[1], dtype=torch.float32)
        with self.evaluator.costs.charged({"verification": len(x)}, {}):
            return self.evaluator.verify(x)

    def _explain(self, evaluation: Evaluation) -> None:
        units, attack = evaluation.query.rows.units, evaluation.query.attack.full_name
        self._require_finite(evaluation.logits, units, f"under {attack}")
        self._require_finite(evaluation.gradient, units, f"in its gradient under {attack}")

    def _require_finite(self, values: Tensor, units: Index, where: str) -> None:
        require_finite(values, lambda i: self.cases.index(int(units[i, 0])), where)
