"""The key of stored outcomes: everything that can change them."""

from __future__ import annotations

from typing import Any

from clipguard.attacks.engine.options import EngineOptions
from clipguard.attacks.recipes import Recipe
from clipguard.benchmark.plan import BenchPlan
from clipguard.benchmark.preprocess import choose_resize
from clipguard.models.classifier import ZeroShotClassifier
from clipguard.models.loading import LoadedModel
from clipguard.store.store import sha256

# Of clipguard's results. Increase it with any change that can change an image's outcome (an attack, a projection, the
# order of runs, the preprocessing): what is stored under another number is never used again.
RESULT_VERSION = 3


def cell_key(
    plan: BenchPlan,
    model: LoadedModel,
    classifier: ZeroShotClassifier,
    dataset: str,
    recipe: Recipe,
    options: EngineOptions,
    indices: list[int],
) -> dict[str, Any]:
    """Everything that can change an image's outcome at an eps, but for the image, its label, its index and the eps.

    Args:
        plan: of the run.
        model: what is attacked.
        classifier: the same with its classes.
        dataset: its name, which only decides how images are resized.
        recipe: of the attacks.
        options: of the engine.
        indices: of all images; they count where random numbers belong to the batch.

    Returns:
        Plain JSON types, without names that the user chose.
    """
    resolution, resize = choose_resize(plan, dataset)
    parameters = recipe.parameters()
    key = {
        "result_version": RESULT_VERSION,
        "weights": model.tower_sha256,
        "architecture": {name: value for name, value in model.model_cfg.items() if name != "text_cfg"},
        "activation": model.info.activation,
        "text": sha256(classifier.text.cpu().contiguous().numpy().tobytes()),
        "logit_scale": float(classifier.logit_scale),
        "logit_bias": None if classifier.logit_bias is None else float(classifier.logit_bias),
        "preprocessing": model.preprocessing.to_dict(),
        "resolution": resolution,
        "resize": resize,
        "norm": plan.norm,
        "quantize": plan.quantize,
        "stages": parameters["stages"],
        "eot": parameters["eot"],
        "seed": plan.seed,
        "engine": plan.engine,
        "precision": options.precision,
        "compile": options.compile,
        "device": model.device.type,
    }
    if model.prompts is not None:
        key["prompts"] = model.prompts.sha256
    if plan.eps_mode == "nested":  # what an image faces at an eps depends on the others
        key["nested"] = [eps.typed for eps in plan.eps]
    if plan.engine == "reference":  # random numbers belong to the batch
        key["reference"] = {"indices": indices, "batch_size": plan.batch_size or "auto"}
    return key
