"""`clipguard.doctor`: the sanity checks on any torch module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clipguard.api.objects import as_module, as_recipe
from clipguard.attacks.base import Attack
from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.engine.passes.evaluator import Evaluator
from clipguard.attacks.inputs import Array, check_input, check_model, explained
from clipguard.attacks.recipes import Recipe
from clipguard.core.checking import check_type
from clipguard.core.eps import Norm, one_eps
from clipguard.core.errors import AttackError
from clipguard.models.loading import LoadedModel
from clipguard.sanity.doctor import examine
from clipguard.sanity.findings import Findings
from clipguard.sanity.subject import Subject


def doctor(
    model: nn.Module | LoadedModel,
    images: Tensor | Array,
    labels: Tensor | Array | Sequence[int],
    *,
    eps: float | str,
    attack: str | Attack | Recipe = "autoattack-fast",
    norm: Norm = "linf",
    transfer_from: nn.Module | LoadedModel | None = None,
    class_names: Sequence[str] | None = None,
    templates: str | Sequence[str] = "ensemble",
    batch_size: int = 64,
    seed: int = 0,
) -> Findings:
    """Examine whether the robustness of a model is real (docs/doctor.md). A few dozen images are enough.

    Args:
        model: as for `clipguard.attack`; one in train mode is not run at all.
        images: (N, C, H, W) in [0,1].
        labels: (N,) class numbers.
        eps: as for `clipguard.attack`, above 0.
        attack: whose numbers are in doubt.
        norm: "linf" or "l2".
        transfer_from: another model with the same classes, whose adversarial images are tried on this one.
        class_names: for words in findings; the classes of a loaded model.
        templates: the prompts of a loaded model.
        batch_size: images in flight.
        seed: of every random number.

    Raises:
        AttackError: for an unknown attack or norm, images outside [0,1], bad labels, or outputs that are no logits.
    """
    model = as_module(model, class_names, templates)
    if transfer_from is not None:
        transfer_from = as_module(transfer_from, class_names, templates)
    images, labels = check_input(model, images, labels, norm)
    eps_pixels = one_eps(eps, norm, whole_range=True).pixels
    if eps_pixels == 0:
        raise AttackError("`eps` must be above 0: the doctor examines an attack.")
    check_type("`batch_size`", batch_size, int, AttackError)
    EngineOptions(batch_size, seed)
    if class_names is not None:
        check_type("`class_names`", class_names, list | tuple, AttackError)
    if transfer_from is not None:
        check_model(transfer_from, images)
    if not ((images >= 0) & (images <= 1)).all():
        raise AttackError("Images must lie in [0,1]; normalisation belongs inside the model.")
    with torch.inference_mode(False), explained(model, images):
        evaluator = Evaluator(model, batch_size)
        x, y = images.detach().float().clone(), labels.to(images.device)
        subject = Subject(evaluator, x, y, range(len(x)), norm, eps_pixels, seed, class_names)
        return Findings(examine(subject, as_recipe(attack), transfer_from))
