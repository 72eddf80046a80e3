"""Attack any torch module from Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from clipguard.api.objects import as_module, as_recipe
from clipguard.attacks.base import Attack
from clipguard.attacks.engine.costs import Cost
from clipguard.attacks.engine.engine import Engine
from clipguard.attacks.engine.options import EngineOptions, EpsMode
from clipguard.attacks.engine.outcome import Example, ImageOutcome
from clipguard.attacks.inputs import Array, check_input, explained
from clipguard.attacks.recipes import Recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.core.eps import Norm, one_eps, show_eps
from clipguard.core.html_table import html_table
from clipguard.core.markdown import markdown_table
from clipguard.models.loading import LoadedModel
from clipguard.statistics.intervals import percent_with_interval, wilson_interval

HEADINGS = ("attack", "eps", "n", "clean", "robust", "broken by")


@dataclass
class AttackResult:
    """Outcome of `attack` at one eps, rows in the order of the images.

    x_adv (N, C, H, W): the verified adversarial image, or the strongest one found; robust (N,) bool;
    prediction (N,) int64 on x_adv; broken_by: "clean", the attack, or None; outcomes and costs: everything else;
    attack, norm: what was run, under which norm.
    """

    x_adv: Tensor
    robust: Tensor
    prediction: Tensor
    broken_by: list[str | None]
    outcomes: list[ImageOutcome]
    costs: dict[str, Cost]
    attack: str
    norm: Norm

    @property
    def eps(self) -> float:
        """In pixels of [0,1]."""
        return self.outcomes[0].eps_outcomes[0].eps

    @property
    def robust_accuracy(self) -> float:
        """Share of the images that no attack broke."""
        return self.robust.float().mean().item()

    def to_frame(self) -> pd.DataFrame:
        """One row an image, with columns as in samples.parquet (docs/results.md); eps and distance in pixels."""
        rows = [
            {
                "index": outcome.index,
                "label": outcome.label,
                "eps": at_eps.eps,
                "clean_pred": outcome.clean_prediction,
                "adv_pred": at_eps.prediction,
                "robust": at_eps.robust,
                "broken_by": at_eps.broken_by,
                "distance": at_eps.distance,
                "margin": at_eps.margin,
            }
            for outcome in self.outcomes
            for at_eps in outcome.eps_outcomes
        ]
        return pd.DataFrame(rows).astype({"broken_by": "string"})

    def to_markdown(self) -> str:
        """Clean and robust accuracy in percent, with 95 % Wilson intervals, as a table of one row."""
        return "\n".join(markdown_table(HEADINGS, [self._row()], "llrrrl")) + "\n"

    def _row(self) -> list[str]:
        n, broken_by = len(self.outcomes), Counter(name for name in self.broken_by if name)
        return [
            self.attack,
            f"{self.norm} {show_eps(one_eps(self.eps, self.norm).typed, self.norm)}",
            str(n),
            _percent(n - broken_by["clean"], n),
            _percent(int(self.robust.sum()), n),
            ", ".join(f"{name} {count}" for name, count in broken_by.items()) or "–",
        ]

    def __repr__(self) -> str:
        attack, eps, n, clean, robust, broken_by = self._row()
        return f"AttackResult: {attack} at {eps}, n {n}: clean {clean} %, robust {robust} %; broken by: {broken_by}"

    def _repr_html_(self) -> str:
        return html_table(HEADINGS, [self._row()], "llrrrl", ["Accuracy in %, with 95 % Wilson intervals."])


def _percent(correct: int, n: int) -> str:
    return percent_with_interval(correct / n, *wilson_interval(correct, n))


def attack(
    model: nn.Module | LoadedModel,
    images: Tensor | Array,
    labels: Tensor | Array | Sequence[int],
    *,
    eps: float | str,
    attack: str | Attack | Recipe = "autoattack-fast",
    norm: Norm = "linf",
    quantize: bool = False,
    batch_size: int = 64,
    seed: int = 0,
    eps_mode: EpsMode = "ascending",
    class_names: Sequence[str] | None = None,
    templates: str | Sequence[str] = "ensemble",
) -> AttackResult:
    """Attack images of a model.

    Args:
        model: maps pixels (B, C, H, W) in [0,1] to logits (B, classes), in eval mode; or what `load_model` gives, which
            needs `class_names`.
        images: (N, C, H, W), floating-point numbers in [0,1]. An image's position is its identity: it seeds its random
            numbers.
        labels: (N,) class numbers.
        eps: a number is pixels of [0,1] (`4 / 255`), a text is as on the command line (`"4"`).
        attack: a name, as `--attack` takes it, an attack such as `APGD(iterations=50)`, or a recipe.
        norm: "linf" or "l2".
        quantize: adversarial images must be 8-bit images.
        batch_size: images in flight, at least 1.
        seed: of every random number.
        eps_mode: as `--eps-mode`.
        class_names: the classes of a loaded model.
        templates: its prompts: "single", "ensemble", or prompts with {}.

    Raises:
        AttackError: for an unknown attack or norm, an eps of another unit, images outside [0,1], bad labels, NaN, a
            model in train mode, or one that cannot take the images.
    """
    model = as_module(model, class_names, templates)
    images, labels = check_input(model, images, labels, norm)
    eps_pixels = one_eps(eps, norm).pixels
    options = EngineOptions(batch_size=batch_size, seed=seed, eps_mode=eps_mode, keep_images=True)
    recipe = as_recipe(attack)
    engine = Engine(model, recipe, ThreatModel(norm, quantize), [eps_pixels], options)
    examples = (Example(i, images[i], label) for i, label in enumerate(labels.tolist()))
    with torch.inference_mode(False), explained(model, images):  # gradients are needed, whatever the caller's mode
        outcomes = sorted(engine.run(examples), key=lambda o: o.index)
    levels = [o.eps_outcomes[0] for o in outcomes]
    return AttackResult(
        x_adv=torch.stack([level.image for level in levels if level.image is not None]),
        robust=torch.tensor([level.robust for level in levels]),
        prediction=torch.tensor([level.prediction for level in levels]),
        broken_by=[level.broken_by for level in levels],
        outcomes=outcomes,
        costs=engine.costs,
        attack=recipe.name,
        norm=norm,
    )
