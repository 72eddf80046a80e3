"""Is a claimed success one? Only an image that is inside the ball, and wrong in float32 as well, is broken."""

from __future__ import annotations

import torch
from torch import Tensor

from clipguard.attacks import losses
from clipguard.attacks.engine.caseload import Caseload
from clipguard.attacks.engine.outcome import EpsOutcome
from clipguard.attacks.engine.passes.evaluator import Evaluator, require_finite
from clipguard.attacks.engine.passes.joint_pass import Evaluation, Query
from clipguard.attacks.threat import ThreatModel


class Verifier:
    """Judges evaluations, and reports what is broken to the caseload.

    Args:
        evaluator: the model.
        threat: the ball.
        cases: whose units the rows are.
        keep_images: whether rows keep their strongest image, and outcomes the adversarial one.
    """

    def __init__(self, evaluator: Evaluator, threat: ThreatModel, cases: Caseload, keep_images: bool) -> None:
        self.evaluator, self.threat, self.cases, self.keep_images = evaluator, threat, cases, keep_images

    def judge(self, evaluation: Evaluation) -> Tensor:
        """(B,) bool, which rows are broken for good.

        Also notes the smallest margin inside the ball of every row, and where it was.

        Raises:
            NonFiniteError: where the model gives NaN or infinity, in its gradient included.
        """
        state, logits, x = evaluation.query.state, evaluation.logits, evaluation.query.admissible
        attack = evaluation.query.attack.full_name
        self._require_finite(logits, state["item"], f"under {attack}")
        self._require_finite(evaluation.gradient, state["item"], f"in its gradient under {attack}")
        labels, margin = state["label"], losses.margin(logits, state["label"])
        wrong = logits.argmax(dim=1) != labels
        broken = torch.zeros_like(wrong)
        news = (wrong | (margin < state["best_margin"])).nonzero().squeeze(1)
        if not len(news):
            return broken
        news = news[self.threat.contains(x[news], state["x0"][news], state["eps"][news])]
        claimed = news[wrong[news]]
        if len(claimed):
            predictions, margin[claimed] = self._look_again(evaluation.query, claimed)
            broken[claimed] = predictions != labels[claimed]
            self._report(evaluation.query, claimed, predictions, margin)
        better = news[margin[news] < state["best_margin"][news]]
        state["best_margin"][better] = margin[better]
        if self.keep_images:
            state["best_x"][better] = x[better]
        return broken

    def _look_again(self, query: Query, claimed: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions and margins (K,) of the claimed rows (K,), in float32."""
        x = query.admissible[claimed]
        with self.evaluator.costs.charged({"verification": len(claimed)}, {}):
            logits = self.evaluator.verify(x)
        self._require_finite(logits, query.state["item"][claimed], f"under {query.attack.full_name}")
        return logits.argmax(dim=1), losses.margin(logits, query.state["label"][claimed])

    def _report(self, query: Query, claimed: Tensor, predictions: Tensor, margin: Tensor) -> None:
        """Tell the caseload of those claimed rows that are wrong indeed and still matter."""
        state, x = query.state, query.admissible
        columns = [state[name][claimed].tolist() for name in ("item", "eps_index", "unit", "label")]
        distances = self.threat.distance(x[claimed], state["x0"][claimed]).tolist()
        columns += [predictions.tolist(), distances, margin[claimed].tolist()]
        for i, number, eps_index, unit, label, prediction, distance, lowest in zip(
            claimed.tolist(), *columns, strict=True
        ):
            if prediction == label or not self.cases.wants(number, eps_index, unit):
                continue
            image = x[i].cpu().clone() if self.keep_images else None
            eps = self.cases.eps_values[eps_index]
            outcome = EpsOutcome(eps, False, prediction, query.attack.full_name, distance, lowest, image)
            self.cases.succeed(number, eps_index, unit, outcome)

    def _require_finite(self, values: Tensor, items: Tensor, where: str) -> None:
        require_finite(values, lambda i: self.cases.index(int(items[i])), where)
