"""`clipguard.doctor`: the sanity checks on any torch module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipguard.api.objects.attacks import as_recipe
from clipguard.api.objects.defenses import DRAWS, VOTES, DefenseLike, defend_examples, refuse_undefended
from clipguard.api.objects.examples import Labels, Samples, Text, open_examples
from clipguard.api.objects.kinds import Data, Model
from clipguard.attacks.base import Attack
from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.passes.evaluator import Evaluator
from clipguard.attacks.inputs import Array, check_input, check_model, explained
from clipguard.attacks.recipes import Recipe
from clipguard.attacks.threat import ThreatModel
from clipguard.core.checking import check_type
from clipguard.core.eps import Norm, one_eps
from clipguard.core.errors import AttackError
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
        images: (N, C, H, W) in [0,1], or a data set, as for `clipguard.attack`.
        labels: (N,) class numbers; a data set has its own.
        eps: as for `clipguard.attack`, above 0.
        attack: whose numbers are in doubt.
        norm: "linf" or "l2".
        transfer_from: another model with the same classes, whose adversarial images are tried on this one.
        class_names: for words in findings; the classes of a loaded model. A data set has its own.
        templates: the prompts of a loaded model.
        batch_size: images in flight.
        seed: of every random number.
        n_samples: images of a data set, a seeded stratified subset, or "all"; default 32.
        defense: a defence at test time around the model, as for `clipguard.attack`: it is examined, too, and all other
            checks look at the defended model.
        votes: runs of a random defence that decide by majority, an odd number.
        draws: runs of a random defence that each step of an attack averages over.

    Raises:
        AttackError: for an unknown attack or norm, images outside [0,1], bad labels, or outputs that are no logits.
        DefenseError: for what is no defence, and one that cannot stand around the model.
        ClipguardError: for a name that cannot be opened.
    """
    if class_names is not None:
        check_type("`class_names`", class_names, list | tuple, AttackError)
    text = Text(class_names, templates)
    given = open_examples(model, images, labels, text, n_samples, default=SAMPLES, seed=seed)
    module, names = given.model, given.text.class_names
    pixels, numbers = check_input(module, given.images, given.labels, norm)
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
    defended = None
    if defense is None:
        refuse_undefended("adaptive", votes, draws)
    else:
        defended = defend_examples(given, defense, seed=seed, votes=votes, draws=draws)
    with torch.inference_mode(False), explained(module, pixels):
        evaluator = Evaluator(defended.search() if defended else module, batch_size)
        x, y = pixels.detach().float().clone(), numbers.to(pixels.device)
        indices = range(len(x)) if given.indices is None else given.indices
        subject = Subject(evaluator, x, y, indices, norm, eps_pixels, seed, names)
        findings = [*examine(subject, as_recipe(attack), other)]
        if defended:
            findings += DefenseProbe(defended, x, y, indices, ThreatModel(norm), eps_pixels, options).findings()
        return Findings(findings)
