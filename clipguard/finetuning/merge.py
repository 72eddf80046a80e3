"""Weights between two checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from clipguard.core.checking import check_type
from clipguard.core.errors import FinetuneError
from clipguard.core.files.output import OutputFolder
from clipguard.models.export import State, checkpoint_files, complete_config
from clipguard.models.given import open_weights
from clipguard.models.loading import LoadedModel, ModelInfo, hash_tensors
from clipguard.models.text.trained_prompts import common_prompts, describe_prompts

log = logging.getLogger("clipguard")


def interpolate(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float) -> State:
    """(1 - alpha) base + alpha tuned, tensor by tensor; whole numbers (batch-norm counters) are the tuned ones.

    WiSE-FT (Wortsman et al., CVPR 2022, arXiv 2109.01903, equation 1).

    Args:
        base, tuned: state dicts of one architecture.
        alpha: share of the tuned one, in [0,1]; 0 and 1 give either one exactly.
    """
    if alpha in (0, 1):
        return dict(tuned if alpha else base)
    return {
        name: base[name].lerp(value, alpha) if value.is_floating_point() else value for name, value in tuned.items()
    }


def merge(base: str | Path | LoadedModel, tuned: str | Path | LoadedModel, alpha: float, out: str | Path) -> Path:
    """Write the model between two of one architecture into a new folder.

    The prompts that it was fine-tuned with, which `bench` compares with those of scoring, are those of either model
    where the other has none, as a model that was not fine-tuned, or the same. Where both have some and they differ,
    none are recorded, and it is said: the model between was trained with neither alone.

    Args:
        base, tuned: their names, or what `load_model` gave: their weights as they are in memory.
        alpha: share of the tuned one, in [0,1].
        out: the folder.

    Returns:
        The folder.

    Raises:
        FinetuneError: for another alpha, models that do not match, or tuned text outside the weights.
        ModelError: for a model that does not load, or is scored with learned prompts.
        OutputError: if the folder exists.
    """
    check_type("`alpha`", alpha, float, FinetuneError)
    check_type("`out`", out, str | Path, FinetuneError)
    if not 0 <= alpha <= 1:
        raise FinetuneError(f"`alpha` must be in 0 ... 1 (0: the base, 1: the tuned model), not {alpha:g}.")
    with OutputFolder(Path(out), whole=True) as folder:
        base_model, tuned_model = open_weights(base), open_weights(tuned)
        _require_a_pair(base_model, tuned_model)
        state = interpolate(_weights(base_model), _weights(tuned_model), alpha)
        card = _card([(1 - alpha, base_model, base), (alpha, tuned_model, tuned)]).encode()
        prompts = _prompts_between(base_model.info, tuned_model.info, alpha)
        folder.write_files({**checkpoint_files(tuned_model, state, prompts), "README.md": card})
    return Path(out)


def _prompts_between(base: ModelInfo, tuned: ModelInfo, alpha: float) -> tuple[str, ...]:
    """The prompts to record; at either end those of that model."""
    if alpha in (0, 1):
        return (tuned if alpha else base).trained_prompts
    prompts = common_prompts(base.trained_prompts, tuned.trained_prompts)
    if prompts is None:
        log.warning(
            "%s was trained with %s, and %s with %s: no prompts are recorded for the model between, and `bench` will "
            "not say where it is scored with others",
            base.name,
            describe_prompts(base.trained_prompts),
            tuned.name,
            describe_prompts(tuned.trained_prompts),
        )
    return prompts or ()


def _weights(model: LoadedModel) -> State:
    """On the CPU, wherever the model is."""
    return {name: value.cpu() for name, value in model.model.state_dict().items()}


def _card(shares: Sequence[tuple[float, LoadedModel, str | Path | LoadedModel]]) -> str:
    """README.md, from what was mixed: share, model, and how it was given."""
    rows = [
        (share, f"{model.info.name}, in memory", f"{hash_tensors(model.model.state_dict())}` (its tensors)")
        if model is given
        else (share, model.info.name, f"{model.info.sha256}`")
        for share, model, given in shares
    ]
    table = "".join(f"| {share:g} | {name} | `{sha256} |\n" for share, name, sha256 in rows)
    return f"# Weights between two models (WiSE-FT)\n\n| share | model | sha256 |\n| --- | --- | --- |\n{table}"


def _require_a_pair(base: LoadedModel, tuned: LoadedModel) -> None:
    """Raise FinetuneError unless the two differ in nothing but the values of their weights."""
    names = f"{base.info.name} and {tuned.info.name}"
    shapes = [{name: value.shape for name, value in m.model.state_dict().items()} for m in (base, tuned)]
    configs = [complete_config(m.model_cfg) for m in (base, tuned)]
    activations = [bool(config.get("quick_gelu", False)) for config in configs]
    if shapes[0] != shapes[1] or activations[0] != activations[1] or base.info.activation != tuned.info.activation:
        raise FinetuneError(f"{names} differ in architecture; give a model and its fine-tuned self.")
    if base.preprocessing != tuned.preprocessing:
        raise FinetuneError(f"{names} differ in preprocessing; give a model and its fine-tuned self.")
    for model in (base, tuned):
        if model.text_map is not None:
            raise FinetuneError(f"The tuned text of {model.info.name} is not in its weights and cannot be merged.")
