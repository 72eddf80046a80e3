"""Settings that a run would not look at, where someone gave them."""

from __future__ import annotations

from collections.abc import Collection

from clipguard.core.errors import FinetuneError
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.methods.base import Method, Need
from clipguard.finetuning.methods.registry import parse_method
from clipguard.finetuning.methods.regularizers.base import Regularized
from clipguard.finetuning.methods.regularizers.registry import parse_regularizer

ATTACKED: frozenset[Need] = frozenset({"adversarial", "adversarial_patches", "original_adversarial"})
BEGUN: frozenset[Need] = frozenset({"start", "fixed_start"})


def refuse_unused(config: FinetuneConfig, given: Collection[str]) -> None:
    """Raise FinetuneError for a setting that the run would not look at.

    Presets, and files, which may serve several methods, name such settings with reason; who types one expects it to do
    something.

    Args:
        config: the settings of the run.
        given: those from the command line or from Python.
    """
    for names, reason in _unused(config):
        for name in names:
            if name in given:
                raise FinetuneError(f"{reason}: leave `{name}` out.")


def _unused(config: FinetuneConfig) -> list[tuple[tuple[str, ...], str]]:
    """Names of settings that nothing would look at, and why."""
    method = _method(config)
    needs = method.all_needs()
    attacked = method.sees_images() and bool(needs & (ATTACKED | BEGUN))
    validated = bool(config.val_fraction) and "labels" in method.needs(1.0)  # under PGD-10, at the run's eps
    found: list[tuple[tuple[str, ...], str]] = []
    if not attacked:
        found.append(
            (("attack_steps", "step_size", "random_start"), f"{config.method} trains on no adversarial images")
        )
    if not (attacked or validated or config.evaluation):
        found.append((("eps", "norm"), f"{config.method} attacks no images, and without evaluation nothing does"))
    if not method.sees_images():
        found.append((("augment",), f"{config.method} trains the text tower alone"))
    if not (config.evaluation or method.reads_templates() or method.takes_prompts() or method.prompt_design()):
        found.append((("templates",), f"{config.method} reads no class texts, and without evaluation nothing does"))
    if not config.evaluation:
        found.append((("eval_dataset",), "Without evaluation there is no final test"))
        if not config.val_fraction:
            found.append((("eval_samples",), "Without evaluation and `val_fraction` nothing is scored"))
    if not config.awp:
        found.append((("awp_warmup",), "`awp_warmup` is the time before `awp` perturbs weights, and there is none"))
    if config.optimizer != "sgd":
        found.append((("momentum",), f"`momentum` is of sgd, and the optimizer is {config.optimizer}"))
    return found


def _method(config: FinetuneConfig) -> Method:
    """The method, with the regulariser beside it."""
    method = parse_method(config.method)
    return method if config.regularizer is None else Regularized(method, parse_regularizer(config.regularizer))
