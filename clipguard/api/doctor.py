"""`clipguard.doctor`: the sanity checks on any torch module."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clipguard.attacks.engine.evaluator import Evaluator
from clipguard.attacks.engine.outcome import EngineOptions
from clipguard.attacks.inputs import Array, check_eps, check_input, check_model, explained
from clipguard.attacks.threat import Norm
from clipguard.benchmark.recipe_files import open_recipe
from clipguard.core.checking import check_type
from clipguard.core.errors import AttackError
from clipguard.sanity.checks import Finding
from clipguard.sanity.doctor import examine
from clipguard.sanity.probes import Subject


def doctor(
    model: nn.Module,
    images: Tensor | Array,
    labels: Tensor | Array | Sequence[int],
    *,
    eps: float,
    attack: str = "autoattack-fast",
    norm: Norm = "linf",
    transfer_from: nn.Module | None = None,
    class_names: Sequence[str] | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> list[Finding]:
    """Examine a module that maps pixels (B, C, H, W) in [0,1] to logits (B, classes), on its own device.

    `eps` in pixel units (8 / 255, not 8) and `attack` are those whose numbers are in doubt. `transfer_from`: another
    module with the same classes. A model in train mode is not run at all. A few dozen images are enough.
    Raises AttackError for an unknown attack or norm, images outside [0,1], bad labels, or outputs that are no logits.
    """
    images, labels = check_input(model, images, labels, norm)
    eps = check_eps(eps, norm)
    if eps == 0:
        raise AttackError("eps must be above 0: the doctor examines an attack.")
    check_type("batch_size", batch_size, int, AttackError)
    EngineOptions(batch_size, seed)
    if class_names is not None:
        check_type("class_names", class_names, list | tuple, AttackError)
    if transfer_from is not None:
        check_model(transfer_from, images)
    if not ((images >= 0) & (images <= 1)).all():
        raise AttackError("Images must lie in [0,1]; normalisation belongs inside the model.")
    with torch.inference_mode(False), explained(model, images):
        evaluator = Evaluator(model, batch_size)
        x, y = images.detach().float().clone(), labels.to(images.device)
        subject = Subject(evaluator, x, y, range(len(x)), norm, eps, seed, class_names)
        return list(examine(subject, open_recipe(attack), transfer_from))
