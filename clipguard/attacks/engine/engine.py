"""Runs a recipe over a stream of images, as many at once as fit, at every eps.

Continuous batching: the pool always holds up to `batch_size` rows that still need work. An image leaves the moment it
is verified broken or its last unit ends, and the next one takes its place; images at different attacks, targets and eps
share each pass. When no image is left to fill it, the later runs, attacks and eps of those in it do (see units.py).
What happens to an image does not depend on any of that.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from clipguard.attacks import losses
from clipguard.attacks.base import Attack
from clipguard.attacks.engine.evaluator import Cost, Evaluator, frozen, require_finite
from clipguard.attacks.engine.outcome import (
    EPS_MODES,
    EngineOptions,
    EpsMode,
    EpsOutcome,
    Example,
    ImageOutcome,
    Note,
    schedule,
)
from clipguard.attacks.engine.schedule import EpsState, Unit, Work
from clipguard.attacks.methods.apgd import APGD
from clipguard.attacks.random import PerImageRandom
from clipguard.attacks.recipes import Recipe
from clipguard.attacks.state import AttackState
from clipguard.attacks.threat import ThreatModel

__all__ = [
    "EPS_MODES",
    "Engine",
    "EngineOptions",
    "EpsMode",
    "EpsOutcome",
    "Example",
    "ImageOutcome",
    "schedule",
]

CONFIRMATION = APGD(iterations=20)  # what a survivor of a larger eps still faces at a smaller one, in nested mode
Key = tuple[int, torch.Size]  # stage, shape of the images
Place = tuple[int, int, int]  # image, eps_index, unit


class Engine:
    """One recipe, one threat, several eps (pixel units); `run` yields outcomes as images finish.

    `note` is told of what is found at each eps as soon as it is.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        threat: ThreatModel,
        eps_values: Iterable[float],
        options: EngineOptions,
        note: Note | None = None,
    ) -> None:
        self.note: Note = note or (lambda _example, _prediction, _outcome: None)
        self.model, self.recipe, self.threat, self.options = model, recipe, threat, options
        self.eps_values = sorted(eps_values)
        self.stages: tuple[Attack, ...] = (*recipe.stages, CONFIRMATION)
        self.evaluator = Evaluator(
            model, options.batch_size or 1, options.precision, recipe.eot, options.compile, options.fill
        )
        self._pool: dict[Key, list[AttackState]] = {}
        self._waiting: deque[int] = deque()  # images that are predicted and have an eps to face
        self._work: dict[int, Work] = {}
        self._done: list[ImageOutcome] = []
        self._count = 0
        self._dropped = False  # whether the pool may hold rows whose result does not matter any more

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
        """Fill the pool with images from the stream, or with what lies ahead of those in it; false at the end."""
        self._sweep()
        room = self.evaluator.batch_size - sum(rows.n for tables in self._pool.values() for rows in tables)
        places: list[Place] = []
        read = False
        while len(places) < room:
            if not self._waiting and not self._clean_pass(stream):
                places += self._ahead(room - len(places))
                break
            read = True
            if not self._waiting:  # every image of that batch is finished already: report before going on
                break
            number = self._waiting.popleft()
            places.append(self._begin(number, self._work[number].eps_index))
        self._launch(places)
        return read

    def _ahead(self, room: int) -> list[Place]:
        """The next units of the images in the pool, in turns."""
        places: list[Place] = []
        images = deque(self._work)
        while images and len(places) < room:
            number = images.popleft()
            work = self._work[number]
            eps_index = next(work.open_eps(self._eps_ahead(work)), None)
            if eps_index is not None:
                places.append(self._begin(number, eps_index))
                images.append(number)
        return places

    def _eps_ahead(self, work: Work) -> Iterator[int]:
        """The eps that an image may have to face, as far as that can be told."""
        for eps_index in range(
            work.eps_index, work.eps_index + 1 if self.options.eps_mode == "nested" else len(self.eps_values)
        ):
            known = work.example.known.get(self.eps_values[eps_index])
            if known is None:
                yield eps_index
            elif self.options.eps_mode == "ascending" and not known.robust:
                return

    def _clean_pass(self, stream: Iterator[Example]) -> bool:
        """Predict the next images; those that are right and have an eps to face wait for the pool."""
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
        predictions, margins = logits.argmax(dim=1).tolist(), losses.margin(logits, labels).tolist()
        for i, example in enumerate(examples):
            number, self._count = self._count, self._count + 1
            plan = schedule(self.options.eps_mode, len(self.eps_values))
            # Copies: a view would keep the whole batch in memory for as long as its last image is attacked.
            x0, others = x[i].clone(), ranking[i].clone()
            self._work[number] = work = Work(example, predictions[i], margins[i], plan, x0=x0, ranking=others)
            self.note(example, predictions[i], work.unharmed(0.0, None))
            if predictions[i] != example.label or not self.recipe.stages:
                self._finish(number)
            elif self._next_eps(number, None):
                self._waiting.append(number)

    def _begin(self, number: int, eps_index: int) -> Place:
        """Note the start of an image's next unit at a eps_index, which is its first there if the eps_index is new."""
        work = self._work[number]
        if eps_index not in work.eps_states:
            full = work.full or eps_index != work.eps_index
            image = self._clean_image(work)
            work.eps_states[eps_index] = EpsState(
                self._units(len(work.ranking) + 1, full), work.clean_margin, image=image
            )
        return number, eps_index, work.eps_states[eps_index].begin()

    def _units(self, n_classes: int, full: bool) -> list[Unit]:
        """What an image faces at an eps, in order: the recipe, or the confirmation alone."""
        if not full:
            return [(len(self.recipe.stages), 0)]
        return [(s, run) for s, stage in enumerate(self.recipe.stages) for run in range(stage.runs(n_classes))]

    def _launch(self, places: list[Place]) -> None:
        """Put rows into the pool for units that have begun."""
        groups: dict[Key, list[Place]] = defaultdict(list)
        for number, eps_index, unit in places:
            work = self._work[number]
            groups[work.eps_states[eps_index].units[unit][0], work.x0.shape].append((number, eps_index, unit))
        for key, members in groups.items():
            self._pool.setdefault(key, []).append(self._rows(self.stages[key[0]], members))

    def _rows(self, stage: Attack, places: list[Place]) -> AttackState:
        works = [self._work[number] for number, _, _ in places]
        runs = [
            work.eps_states[eps_index].units[unit][1] for work, (_, eps_index, unit) in zip(works, places, strict=True)
        ]
        x0 = torch.stack([work.x0 for work in works])
        item, eps_index, unit, run = torch.tensor([(*place, r) for place, r in zip(places, runs, strict=True)]).T
        rows = AttackState(item=item, eps_index=eps_index, unit=unit, run=run, step=torch.zeros_like(run))
        rows["label"] = torch.tensor([work.example.label for work in works])
        rows["eps"] = torch.tensor([self.eps_values[eps_index] for _, eps_index, _ in places])
        rows["best_margin"] = torch.tensor([work.clean_margin for work in works])
        rows = AttackState({name: column.to(x0.device).contiguous() for name, column in rows.items()})
        rows |= {"x0": x0, "ranking": torch.stack([work.ranking for work in works])}
        if self.options.keep_images:
            rows["best_x"] = x0.clone()
        rows["target"] = stage.choose_target(rows)
        images = [work.example.index for work in works]
        stage.start(rows, self.threat, PerImageRandom(self.options.seed, stage.name, images, runs, x0.device))
        return rows

    # Following images -------------------------------------------------------------------------------------------

    def _next_eps(self, number: int, broken: bool | None) -> bool:
        """Send an image to the next eps of its plan, and tell whether there was one; if not, it is finished."""
        work = self._work[number]
        while work.advance(broken):
            eps = self.eps_values[work.eps_index]
            own = work.unharmed(0.0, self._clean_image(work)) if eps == 0 else work.example.known.get(eps)
            if own is None:
                return True
            work.found[work.eps_index], broken = own, not own.robust
        self._finish(number)
        return False

    def _settle(self, number: int) -> list[Place]:
        """Follow an image some of whose units have ended: the unit that it needs now, if none is under way."""
        work = self._work[number]
        while work.eps_index in work.eps_states and (broken := work.eps_states[work.eps_index].verdict) is not None:
            state, eps = work.eps_states[work.eps_index], self.eps_values[work.eps_index]
            survived = EpsOutcome(eps, True, work.clean_prediction, None, 0.0, state.margin, state.image)
            work.found[work.eps_index] = own = state.outcome or survived
            self.note(work.example, work.clean_prediction, own)
            if not self._next_eps(number, broken):
                return []
        waits = work.eps_index not in work.eps_states or not work.eps_states[work.eps_index].running
        return [self._begin(number, work.eps_index)] if waits else []

    def _sweep(self) -> None:
        """Take rows out of the pool whose result does not matter any more."""
        if not self._dropped:
            return
        for key in list(self._pool):
            tables = [rows.take(self._wanted(rows)) for rows in self._pool.pop(key)]
            if kept := [rows for rows in tables if rows.n]:
                self._pool[key] = kept
        self._dropped = False

    def _wanted(self, rows: AttackState) -> Tensor:
        """(W,) int64, positions of the rows whose result matters."""
        places = zip(rows["item"].tolist(), rows["eps_index"].tolist(), rows["unit"].tolist(), strict=True)
        keep = [
            number in self._work and self._work[number].wants(eps_index, unit) for number, eps_index, unit in places
        ]
        return torch.tensor(keep, device=rows["item"].device).nonzero().squeeze(1)

    # One pass ---------------------------------------------------------------------------------------------------

    def _tick(self, shape: torch.Size) -> None:
        """Evaluate the next point of every row of this shape once and let each attack move on."""
        keys = [key for key in self._pool if key[1] == shape]
        stages, groups = (
            [self.stages[key[0]] for key in keys],
            [AttackState.concatenate(self._pool.pop(key)) for key in keys],
        )
        queries = [stage.query(rows) for stage, rows in zip(stages, groups, strict=True)]
        points = [self.threat.admissible(x, g["x0"], g["eps"]) for x, g in zip(queries, groups, strict=True)]
        results = self.evaluator.evaluate(stages, groups, points)
        for key, rows, query, point, result in zip(keys, groups, queries, points, results, strict=True):
            self._advance(key, rows, query, point, *result)

    def _advance(
        self, key: Key, rows: AttackState, query: Tensor, point: Tensor, logits: Tensor, loss: Tensor, grad: Tensor
    ) -> None:
        """Take out what is broken, move the rest on, and follow the images some of whose units have ended."""
        stage, name = self.stages[key[0]], self.stages[key[0]].full_name
        if self._dropped:
            index = self._wanted(rows)
            rows = rows.take(index)
            query, point, logits, loss, grad = (t[index] for t in (query, point, logits, loss, grad))
        self._require_finite(logits, rows, f"under {name}")
        self._require_finite(grad, rows, f"in its gradient under {name}")
        broken = self._judge(name, rows, point, logits)
        changed = rows["item"][broken].tolist()
        if broken.any():
            left = (~broken).nonzero().squeeze(1)
            rows = rows.take(left)
            query, logits, loss, grad = query[left], logits[left], loss[left], grad[left]
        if rows.n:
            stage.update(rows, self.threat, query, logits, loss, grad)
            rows["step"] = rows["step"] + 1
            over = stage.finished(rows)
            if over.any():
                changed += self._end_units(rows.take(over.nonzero().squeeze(1)))
                rows = rows.take((~over).nonzero().squeeze(1))
        if rows.n:
            self._pool.setdefault(key, []).append(rows)
        self._launch([place for number in dict.fromkeys(changed) for place in self._settle(number)])

    def _end_units(self, rows: AttackState) -> list[int]:
        """Note units that ended without success; returns their images."""
        ended = []
        columns = (rows[name].tolist() for name in ("item", "eps_index", "unit", "best_margin"))
        for i, (number, eps_index, unit, margin) in enumerate(zip(*columns, strict=True)):
            if self._work[number].wants(eps_index, unit):
                image = rows["best_x"][i].cpu().clone() if self.options.keep_images else None
                self._work[number].eps_states[eps_index].end(unit, margin, image)
                ended.append(number)
        return ended

    def _judge(self, attack: str, rows: AttackState, point: Tensor, logits: Tensor) -> Tensor:
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
        self, attack: str, rows: AttackState, point: Tensor, claimed: Tensor, predictions: Tensor, margin: Tensor
    ) -> None:
        places = (rows[name][claimed].tolist() for name in ("item", "eps_index", "unit", "label"))
        distances = self.threat.distance(point[claimed], rows["x0"][claimed]).tolist()
        found = zip(claimed.tolist(), *places, predictions.tolist(), distances, margin[claimed].tolist(), strict=True)
        for i, number, eps_index, unit, label, prediction, distance, least in found:
            work = self._work[number]
            if prediction == label or not work.wants(eps_index, unit):
                continue
            image = point[i].cpu().clone() if self.options.keep_images else None
            outcome = EpsOutcome(self.eps_values[eps_index], False, prediction, attack, distance, least, image)
            work.eps_states[eps_index].succeed(unit, outcome)
            if self.options.eps_mode == "ascending":
                work.drop_after(eps_index)
            self._dropped = True

    # Outcomes ---------------------------------------------------------------------------------------------------

    def _clean_image(self, work: Work) -> Tensor | None:
        return work.example.image.cpu() if self.options.keep_images else None

    def _finish(self, number: int) -> None:
        work = self._work.pop(number)
        self._done.append(work.outcome(self.eps_values, self._clean_image(work)))
        self._dropped = True

    def _require_finite(self, values: Tensor, rows: AttackState, where: str) -> None:
        require_finite(values, lambda i: self._work[int(rows["item"][i])].example.index, where)
