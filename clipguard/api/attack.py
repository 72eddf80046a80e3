"""Attack any torch module from Python."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clipguard.api.attack_result import AttackResult
from clipguard.api.objects import as_module, as_recipe, spell_attack
from clipguard.attacks.base import Attack
from clipguard.attacks.engine.engine import Engine
from clipguard.attacks.engine.options import EngineOptions, EpsMode
from clipguard.attacks.engine.outcome import Example
from clipguard.attacks.inputs import Array, check_input, explained
from clipguard.attacks.recipes import Recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.core.eps import Norm, one_eps
from clipguard.models.loading import LoadedModel


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
    eps_pixels = one_eps(eps, norm, whole_range=True).pixels
    options = EngineOptions(batch_size=batch_size, seed=seed, eps_mode=eps_mode, keep_images=True)
    recipe = as_recipe(attack)
    engine = Engine(model, recipe, ThreatModel(norm, quantize), [eps_pixels], options)
    examples = (Example(i, images[i], label) for i, label in enumerate(labels.tolist()))
    with torch.inference_mode(False), explained(model, images):  # gradients are needed, whatever the caller's mode
        outcomes = sorted(engine.run(examples), key=lambda o: o.index)
    name = spell_attack(attack) if isinstance(attack, Attack) else recipe.name
    return AttackResult.of_outcomes(outcomes, engine.costs, name, norm)
