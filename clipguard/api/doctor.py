"""`clipguard.doctor`: the sanity checks on any torch module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipguard.api.objects.attacks import as_recipe
from clipguard.api.objects.defenses import DRAWS, VOTES, DefenseLike, defend_examples
from clipguard.api.objects.examples import Labels, Samples, Text, open_examples
from clipguard.api.objects.kinds import Data, Model
from clipguard.attacks.base import Attack
from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.passes.evaluator import Evaluator
from clipguard.attacks.inputs import Array, check_input, check_model, explained
from clipguard.attacks.recipes import Recipe
from clipguard.core.checking import check_type
from clipguard.core.eps import Norm, one_eps
from clipguard.core.errors import AttackError
from clipguard.defenses.attacking.threats import DefendedModel
from clipguard.sanity.checks import Finding
from clipguard.sanity.defenses import DefenseProbe
from clipguard.sanity.doctor import examine
from clipguard.sanity.findings import Findings
from clipguard.sanity.subject import Subject

SAMPLES = 32  # of a data set, as for the command


def doctor(
    model: Model,
    images: Tensor | Array | Data,
    labels: Labels = None,
    *,
    eps: float | str,
    attack: str | Attack | Recipe = "autoattack-fast",
    norm: Norm = "linf",
    transfer_from: Model | None = None,
    class_names: Sequence[str] | None = None,
    templates: str | Sequence[str] = "ensemble",
    batch_size: int = 64,
    seed: int = 0,
    n_samples: Samples = None,
    defense: DefenseLike | None = None,
    votes: int = VOTES,
    draws: int = DRAWS,
) -> Findings:
    """Examine whether the robustness of a model is real (docs/doctor.md). A few dozen images are enough.

    Args:
        model: as for `clipguard.attack`; one in train mode is not run at all.
        images, labels: as for `clipguard.attack`, (N, C, H, W) in [0,1] with (N,) class numbers, or a data set.
        eps, norm: as for `clipguard.attack`; eps above 0.
        attack: whose numbers are in doubt.
        transfer_from: another model with the same classes, whose adversarial images are tried on this one.
        class_names: for words in findings; the classes of a loaded model. A data set has its own.
        templates: the prompts of a loaded model.
        batch_size, seed: as for `clipguard.attack`.
        n_samples: images of a data set, a seeded stratified subset, or "all"; default 32.
        defense, votes, draws: as for `clipguard.attack`: the defence is examined, too, and all other checks look at the
            defended model.

    Raises:
        AttackError: for an unknown attack or norm, images outside [0,1], bad labels, or outputs that are no logits.
        ClipguardError: for a name that cannot be opened, and a defence that cannot stand around the model.
    """
    if class_names is not None:
        check_type("`class_names`", class_names, list | tuple, AttackError)
    given = open_examples(model, images, labels, Text(class_names, templates), n_samples, default=SAMPLES, seed=seed)
    pixels, numbers = check_input(given.model, given.images, given.labels, norm)
    eps_pixels = one_eps(eps, norm, whole_range=True).pixels
    if eps_pixels == 0:
        raise AttackError("`eps` must be above 0: the doctor examines an attack.")
    check_type("`batch_size`", batch_size, int, AttackError)
    options = EngineOptions(batch_size, seed)
    other = None if transfer_from is None else given.other(transfer_from)
    if other is not None:
        check_model(other, pixels)
    if not ((pixels >= 0) & (pixels <= 1)).all():
        raise AttackError("Images must lie in [0,1]; normalisation belongs inside the model.")
    defended = defend_examples(given, defense, seed=seed, votes=votes, draws=draws)
    with torch.inference_mode(False), explained(given.model, pixels):
        evaluator = Evaluator(defended.search() if defended else given.model, batch_size)
        x, y = pixels.detach().float().clone(), numbers.to(pixels.device)
        indices = range(len(x)) if given.indices is None else given.indices
        subject = Subject(evaluator, x, y, indices, norm, eps_pixels, seed, given.text.class_names)
        of_defense = _defense_findings(defended, subject, options) if defended else []
        return Findings([*examine(subject, as_recipe(attack), other), *of_defense])


def _defense_findings(defended: DefendedModel, subject: Subject, options: EngineOptions) -> list[Finding]:
    x, labels, indices = subject.x, subject.labels, subject.indices
    return DefenseProbe(defended, x, labels, indices, subject.threat, subject.eps, options).findings()
