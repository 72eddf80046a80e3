"""Attack any torch module from Python."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipguard.api.attack_result import AttackResult
from clipguard.api.objects.attacks import as_recipe, spell_attack
from clipguard.api.objects.defenses import (
    DRAWS,
    VOTES,
    DefenseLike,
    defend_examples,
    of_threat,
    refuse_undefended,
    spell_defenses,
)
from clipguard.api.objects.examples import Labels, Samples, Text, open_examples
from clipguard.api.objects.kinds import Data, Model
from clipguard.attacks.base import Attack
from clipguard.attacks.engine.engine import Engine
from clipguard.attacks.engine.options import EngineOptions, EpsMode
from clipguard.attacks.engine.outcome import Example
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
        defense: a defence at test time around the model, as `--defense` takes it, an object such as `TTC(steps=4)`, or
            a list of either, which an image meets in order. `bench` gives all threats and the worst case of them.
        threat: how the defended model is attacked: "transfer" (images made on the undefended model, which shows the
            weakest attacker alone), "adaptive" (through the defence) or "black-box" (by queries).
        votes: runs of a random defence that decide by majority, an odd number.
        draws: runs of a random defence that each step of an adaptive attack averages over.

    Raises:
        AttackError: for an unknown attack or norm, an eps of another unit, images outside [0,1], bad labels, NaN, a
            model in train mode, or one that cannot take the images.
        DefenseError: for what is no defence or threat, and a defence that cannot stand around the model.
        ClipguardError: for a name that cannot be opened.
    """
    text = Text(class_names, templates)
    given = open_examples(model, images, labels, text, n_samples, default=SAMPLES, seed=seed)
    module = given.model
    pixels, numbers = check_input(module, given.images, given.labels, norm)
    indices = range(len(pixels)) if given.indices is None else given.indices
    eps_pixels = one_eps(eps, norm, whole_range=True).pixels
    options = EngineOptions(batch_size=batch_size, seed=seed, eps_mode=eps_mode, keep_images=True)
    recipe, ball = as_recipe(attack), ThreatModel(norm, quantize)
    name = spell_attack(attack) if isinstance(attack, Attack) else recipe.name
    engine: Engine | DefendedEngine
    if defense is None:
        refuse_undefended(threat, votes, draws)
        engine = Engine(module, recipe, ball, [eps_pixels], options)
    else:
        defended = defend_examples(given, defense, seed=seed, votes=votes, draws=draws)
        engine = DefendedEngine(defended, of_threat(recipe, threat, eps_mode), ball, [eps_pixels], options)
        name = f"{name}, {threat} on {spell_defenses(defense)}"
    examples = (Example(*one) for one in zip(indices, pixels, numbers.tolist(), strict=True))
    with torch.inference_mode(False), explained(module, pixels):  # gradients are needed, whatever the caller's mode
        outcomes = sorted(engine.run(examples), key=lambda o: o.index)
    return AttackResult.of_outcomes(outcomes, engine.costs, name, norm)
