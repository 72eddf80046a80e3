"""Attack any torch module from Python."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipguard.api.attack_result import AttackResult
from clipguard.api.objects.attacks import as_recipe, spell_attack
from clipguard.api.objects.defenses import DRAWS, VOTES, DefenseLike, defend_examples, of_threat, spell_defenses
from clipguard.api.objects.examples import Examples, Labels, Samples, Text, open_examples
from clipguard.api.objects.kinds import Data, Model
from clipguard.attacks.base import Attack
from clipguard.attacks.engine.engine import Engine
from clipguard.attacks.engine.options import EngineOptions, EpsMode
from clipguard.attacks.engine.outcome import Example, ImageOutcome
from clipguard.attacks.inputs import Array, check_input, explained
from clipguard.attacks.recipes import Recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.core.eps import Norm, one_eps
from clipguard.defenses import Threat
from clipguard.defenses.attacking.engine import DefendedEngine

SAMPLES = 200  # of a data set, as for bench


def attack(
    model: Model,
    images: Tensor | Array | Data,
    labels: Labels = None,
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
    n_samples: Samples = None,
    defense: DefenseLike | None = None,
    threat: Threat = "adaptive",
    votes: int = VOTES,
    draws: int = DRAWS,
) -> AttackResult:
    """Attack images of a model, or of one behind a defence (docs/defenses.md).

    Args:
        model: maps pixels (B, C, H, W) in [0,1] to logits (B, classes), in eval mode; or what `load_model` gives, or
            its name, which is loaded onto the images' device, for a data set onto the CPU.
        images: (N, C, H, W), floating-point numbers in [0,1]; or a data set as `bench` takes it: a name, what
            `load_dataset` gives, a `datasets.Dataset`, (images, labels) or (images, labels, class_names). Those of a
            data set are resized for a loaded model. An image's position is its identity: it seeds its random numbers.
        labels: (N,) class numbers; a data set has its own.
        eps: a number is pixels of [0,1] (`4 / 255`), a text is as on the command line (`"4"`).
        attack: a name, as `--attack` takes it, an attack such as `APGD(iterations=50)`, or a recipe.
        norm: "linf" or "l2".
        quantize: adversarial images must be 8-bit images.
        batch_size: images in flight, at least 1.
        seed: of every random number.
        eps_mode: as `--eps-mode`.
        class_names: the classes of a loaded model, which a data set has.
        templates: its prompts: "single", "ensemble", or prompts with {}.
        n_samples: images of a data set, a seeded stratified subset, or "all"; default 200.
        defense: at test time around the model: as `--defense` takes it, a defence such as `TTC(steps=4)`, or a list of
            either, which an image meets in order.
        threat, votes, draws: of a defended model, as on the command line; `bench` has all threats and their worst case.

    Raises:
        AttackError: for an unknown attack or norm, an eps of another unit, images outside [0,1], bad labels, NaN, a
            model in train mode, or one that cannot take the images.
        ClipguardError: for a name that cannot be opened, and a defence that cannot stand around the model.
    """
    given = open_examples(model, images, labels, Text(class_names, templates), n_samples, default=SAMPLES, seed=seed)
    pixels, numbers = check_input(given.model, given.images, given.labels, norm)
    eps_pixels = one_eps(eps, norm, whole_range=True).pixels
    options = EngineOptions(batch_size=batch_size, seed=seed, eps_mode=eps_mode, keep_images=True)
    recipe, ball = as_recipe(attack), ThreatModel(norm, quantize)
    name = spell_attack(attack) if isinstance(attack, Attack) else recipe.name
    defended = defend_examples(given, defense, seed=seed, votes=votes, draws=draws, threat=threat)
    engine: Engine | DefendedEngine = Engine(given.model, recipe, ball, [eps_pixels], options)
    if defended is not None and defense is not None:
        engine = DefendedEngine(defended, of_threat(recipe, threat, eps_mode), ball, [eps_pixels], options)
        name = f"{name}, {threat} on {spell_defenses(defense)}"
    return AttackResult.of_outcomes(_outcomes(engine, given, pixels, numbers), engine.costs, name, norm)


def _outcomes(engine: Engine | DefendedEngine, given: Examples, x: Tensor, labels: Tensor) -> list[ImageOutcome]:
    """Of images x (N, C, H, W), in their order."""
    indices = range(len(x)) if given.indices is None else given.indices
    examples = (Example(*one) for one in zip(indices, x, labels.tolist(), strict=True))
    with torch.inference_mode(False), explained(given.model, x):  # gradients are needed, whatever the caller's mode
        return sorted(engine.run(examples), key=lambda outcome: outcome.index)
