"""Attack any torch module from Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
from clipguard.core.eps import Norm, one_eps
from clipguard.models.loading import LoadedModel


@dataclass
class AttackResult:
    """Outcome of `attack` at one eps, rows in the order of the images.

    x_adv (N, C, H, W): the verified adversarial image, or the strongest one found; robust (N,) bool;
    prediction (N,) int64 on x_adv; broken_by: "clean", the attack, or None; outcomes and costs: everything else.
    """

    x_adv: Tensor
    robust: Tensor
    prediction: Tensor
    broken_by: list[str | None]
    outcomes: list[ImageOutcome]
    costs: dict[str, Cost]

    @property
    def robust_accuracy(self) -> float:
        """Share of the images that no attack broke."""
        return self.robust.float().mean().item()


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
    engine = Engine(model, as_recipe(attack), ThreatModel(norm, quantize), [eps_pixels], options)
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
    )
