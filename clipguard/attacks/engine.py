"""Runs a recipe over a stream of images, as many at once as fit, at every perturbation budget.

Continuous batching: the pool always holds up to `batch_size` images that still need work. An image leaves the moment
it is verified broken or its budget ends, and the next one takes its place; images at different attacks, targets and
radii share each pass. What happens to an image does not depend on which others are in the pool.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from clipguard.attacks import losses
from clipguard.attacks.apgd import APGD
from clipguard.attacks.evaluator import Cost, Evaluator, frozen, require_finite
from clipguard.attacks.outcomes import (
    EPS_MODES,
    Case,
    EngineOptions,
    EpsMode,
    Example,
    ImageOutcome,
    LevelOutcome,
    schedule,
)
from clipguard.attacks.recipes import Recipe, stage_name
from clipguard.attacks.rows import Attack, Draws, Rows
from clipguard.attacks.threat import ThreatModel

__all__ = [
    "EPS_MODES",
    "Engine",
    "EngineOptions",
    "EpsMode",
    "Example",
    "ImageOutcome",
    "LevelOutcome",
    "schedule",
]

CONFIRMATION = APGD(iterations=20)  # what a survivor of a larger eps still faces at a smaller one, in nested mode
Key = tuple[int, torch.Size]  # stage, shape of the images


class Engine:
    """One recipe, one threat, several radii (pixel units); `run` yields outcomes as images finish."""

    def __init__(
        self, model: nn.Module, recipe: Recipe, threat: ThreatModel, radii: Iterable[float], options: EngineOptions
    ) -> None:
        self.model, self.recipe, self.threat, self.options = model, recipe, threat, options
        self.radii = sorted(radii)
        self.stages: tuple[Attack, ...] = (*recipe.stages, CONFIRMATION)
        self.evaluator = Evaluator(model, options.batch_size or 1, options.precision, recipe.eot, options.compile)
        self._pool: dict[Key, list[Rows]] = {}
        self._waiting: deque[Rows] = deque()  # predicted, and at their first radius
        self._cases: dict[int, Case] = {}
        self._done: list[ImageOutcome] = []
        self._count = 0

    @property
    def costs(self) -> dict[str, Cost]:
        """Passes and seconds by attack; "clean" and "verification" are the engine's own."""
        return dict(self.evaluator.costs)

    def run(self, examples: Iterable[Example]) -> Iterator[ImageOutcome]:
        """Attack all examples. Raises AttackError for bad labels, images outside [0,1] or non-finite outputs."""
        stream = iter(examples)
        with frozen(self.model):
            if self.options.batch_size is None:
                stream = self.evaluator.fit_batches(stream)
            while self._admit(stream) or self._pool:
                for shape in dict.fromkeys(shape for _, shape in self._pool):
                    self._tick(shape)
                yield from self._done
                self._done.clear()

    # Filling the pool -------------------------------------------------------------------------------------------

    def _admit(self, stream: Iterator[Example]) -> bool:
        """Fill the pool from the stream; false when there was nothing to fill it with."""
        room = self.evaluator.batch_size - sum(rows.n for tables in self._pool.values() for rows in tables)
        admitted = False
        while room > 0:
            if not self._waiting:
                if not self._clean_pass(stream):
                    break
                if not self._waiting:  # every image of that batch is finished already: report before going on
                    return True
            table = self._waiting.popleft()
            if table.n > room:
                index = torch.arange(table.n, device=table["item"].device)
                self._waiting.appendleft(table.take(index[room:]))
                table = table.take(index[:room])
            self._begin_level(table)
            room, admitted = room - table.n, True
        return admitted

    def _clean_pass(self, stream: Iterator[Example]) -> bool:
        """Predict the next images; those that are right and have a radius to face wait for the pool."""
        batch = list(islice(stream, self.evaluator.batch_size))
        by_shape: dict[torch.Size, list[Example]] = {}
        for example in batch:
            by_shape.setdefault(example.image.shape, []).append(example)
        for group in by_shape.values():
            self._predict(group)
        return bool(batch)

    def _predict(self, examples: list[Example]) -> None:
        x, labels, logits = self.evaluator.predict(examples)
        ranking = logits.scatter(1, labels[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :-1]
        items, waiting = range(self._count, self._count + len(examples)), []
        self._count += len(examples)
        predictions, margins = logits.argmax(dim=1).tolist(), losses.margin(logits, labels).tolist()
        for i, number in enumerate(items):
            plan = schedule(self.options.eps_mode, len(self.radii))
            self._cases[number] = Case(examples[i], predictions[i], margins[i], plan)
            if predictions[i] != examples[i].label or not self.recipe.stages:
                self._finish(number)
            elif self._next_level(number, None):
                waiting.append(i)
        if waiting:
            rows = Rows(item=torch.tensor(items, device=x.device), x0=x, label=labels, ranking=ranking)
            self._waiting.append(rows.take(torch.tensor(waiting, device=x.device)))

    # Moving rows ------------------------------------------------------------------------------------------------

    def _next_level(self, number: int, broken: bool | None) -> bool:
        """Send an image to the next radius of its plan, and tell whether there was one; if not, it is finished."""
        case = self._cases[number]
        while case.advance(broken):
            if self.radii[case.level] > 0:
                return True
            case.found[case.level], broken = case.unharmed(0.0, self._clean_image(case)), False
        self._finish(number)
        return False

    def _end_level(self, rows: Rows, broken: bool) -> None:
        """Rows whose outcome at their radius is known: the next radius, for those that have one to face."""
        going_on = [i for i, number in enumerate(rows["item"].tolist()) if self._next_level(number, broken)]
        if going_on:
            self._begin_level(rows.take(torch.tensor(going_on, device=rows["item"].device)))

    def _begin_level(self, rows: Rows) -> None:
        """Let rows face the radius that their cases stand at, with the first attack or the confirmation."""
        device, cases = rows["x0"].device, [self._cases[number] for number in rows["item"].tolist()]
        rows = Rows({name: rows[name] for name in ("item", "x0", "label", "ranking")})
        rows["run"] = torch.zeros_like(rows["item"])
        rows["eps"] = torch.tensor([self.radii[case.level] for case in cases], device=device)
        rows["best_margin"] = torch.tensor([case.clean_margin for case in cases], device=device)
        if self.options.keep_images:
            rows["best_x"] = rows["x0"].clone()
        full = torch.tensor([case.full for case in cases], device=device)
        for stage_number, chosen in ((0, full), (len(self.recipe.stages), ~full)):
            if chosen.any():
                self._start(stage_number, rows.take(chosen.nonzero().squeeze(1)))

    def _start(self, stage_number: int, rows: Rows) -> None:
        """Let rows begin a run (their column `run`) of a stage."""
        stage, rows = self.stages[stage_number], rows.common()
        rows["step"] = torch.zeros_like(rows["run"])
        rows["target"] = stage.choose_target(rows)
        images = [self._cases[number].example.index for number in rows["item"].tolist()]
        draws = Draws(self.options.seed, stage.name, images, rows["run"].tolist(), rows["x0"].device)
        stage.start(rows, self.threat, draws)
        self._pool.setdefault((stage_number, rows["x0"].shape[1:]), []).append(rows)

    def _end_runs(self, stage_number: int, rows: Rows) -> None:
        """Rows whose run is over: the next run, the next stage, or they survived this radius."""
        rows["run"] = rows["run"] + 1
        again = rows["run"] < self.stages[stage_number].runs(rows["ranking"].shape[1] + 1)
        if again.any():
            self._start(stage_number, rows.take(again.nonzero().squeeze(1)))
        if again.all():
            return
        rows = rows.common().take((~again).nonzero().squeeze(1))
        rows["run"] = torch.zeros_like(rows["run"])
        if stage_number + 1 < len(self.recipe.stages):
            self._start(stage_number + 1, rows)
            return
        for i, (number, margin) in enumerate(zip(rows["item"].tolist(), rows["best_margin"].tolist(), strict=True)):
            case = self._cases[number]
            image = rows["best_x"][i].cpu().clone() if self.options.keep_images else None
            eps = self.radii[case.level]
            case.found[case.level] = LevelOutcome(eps, True, case.clean_prediction, None, 0.0, margin, image)
        self._end_level(rows, broken=False)

    # One pass ---------------------------------------------------------------------------------------------------

    def _tick(self, shape: torch.Size) -> None:
        """Evaluate the next point of every row of this shape once and let each attack move on."""
        keys = [key for key in self._pool if key[1] == shape]
        stages, groups = [self.stages[key[0]] for key in keys], [Rows.concatenate(self._pool.pop(key)) for key in keys]
        queries = [stage.query(rows) for stage, rows in zip(stages, groups, strict=True)]
        points = [self.threat.admissible(x, g["x0"], g["eps"]) for x, g in zip(queries, groups, strict=True)]
        results = self.evaluator.evaluate(stages, groups, points)
        for key, rows, query, point, result in zip(keys, groups, queries, points, results, strict=True):
            self._advance(key, rows, query, point, *result)

    def _advance(
        self, key: Key, rows: Rows, query: Tensor, point: Tensor, logits: Tensor, loss: Tensor, grad: Tensor
    ) -> None:
        """Take out what is broken, move the rest on, and re-file what has ended a run."""
        stage, name = self.stages[key[0]], stage_name(self.stages[key[0]])
        self._require_finite(logits, rows, f"under {name}")
        self._require_finite(grad, rows, f"in its gradient under {name}")
        broken = self._judge(name, rows, point, logits)
        if broken.any():
            gone, left = broken.nonzero().squeeze(1), (~broken).nonzero().squeeze(1)
            self._end_level(rows.common().take(gone), broken=True)
            rows = rows.take(left)
            query, logits, loss, grad = query[left], logits[left], loss[left], grad[left]
        if not rows.n:
            return
        stage.update(rows, self.threat, query, logits, loss, grad)
        rows["step"] = rows["step"] + 1
        over = stage.finished(rows)
        if over.any():
            self._end_runs(key[0], rows.take(over.nonzero().squeeze(1)))
            rows = rows.take((~over).nonzero().squeeze(1))
        if rows.n:
            self._pool.setdefault(key, []).append(rows)

    def _judge(self, attack: str, rows: Rows, point: Tensor, logits: Tensor) -> Tensor:
        """(B,) bool, which rows are broken for good: their exact image is in the ball and wrong in float32 as well.

        Notes the outcome of those, and the smallest margin inside the ball of all.
        """
        labels, margin = rows["label"], losses.margin(logits, rows["label"])
        wrong = logits.argmax(dim=1) != labels
        broken = torch.zeros_like(wrong)
        news = (wrong | (margin < rows["best_margin"])).nonzero().squeeze(1)
        if not len(news):
            return broken
        news = news[self.threat.contains(point[news], rows["x0"][news], rows["eps"][news])]
        claimed = news[wrong[news]]
        if len(claimed):
            with self.evaluator.charged({"verification": len(claimed)}, {}):
                verified = self.evaluator.verify(point[claimed])
            self._require_finite(verified, rows.take(claimed), f"under {attack}")
            predictions, margin[claimed] = verified.argmax(dim=1), losses.margin(verified, labels[claimed])
            broken[claimed] = predictions != labels[claimed]
            self._note_broken(attack, rows, point, claimed, predictions, margin)
        better = news[margin[news] < rows["best_margin"][news]]
        rows["best_margin"][better] = margin[better]
        if self.options.keep_images:
            rows["best_x"][better] = point[better]
        return broken

    def _note_broken(
        self, attack: str, rows: Rows, point: Tensor, claimed: Tensor, predictions: Tensor, margin: Tensor
    ) -> None:
        numbers, labels = rows["item"][claimed].tolist(), rows["label"][claimed].tolist()
        distances = self.threat.distance(point[claimed], rows["x0"][claimed]).tolist()
        found = zip(
            claimed.tolist(), numbers, labels, predictions.tolist(), distances, margin[claimed].tolist(), strict=True
        )
        for i, number, label, prediction, distance, least in found:
            if prediction == label:
                continue
            case = self._cases[number]
            image = point[i].cpu().clone() if self.options.keep_images else None
            eps = self.radii[case.level]
            case.found[case.level] = LevelOutcome(eps, False, prediction, attack, distance, least, image)

    # Outcomes ---------------------------------------------------------------------------------------------------

    def _clean_image(self, case: Case) -> Tensor | None:
        return case.example.image.cpu() if self.options.keep_images else None

    def _finish(self, number: int) -> None:
        case = self._cases.pop(number)
        self._done.append(case.outcome(self.radii, self._clean_image(case)))

    def _require_finite(self, values: Tensor, rows: Rows, where: str) -> None:
        require_finite(values, lambda i: self._cases[int(rows["item"][i])].example.index, where)
