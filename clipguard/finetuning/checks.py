"""What is checked of a run's settings before anything is loaded or written."""

from __future__ import annotations

from accelerate.utils import is_tensorboard_available, is_wandb_available

from clipguard.core.errors import FinetuneError
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.methods.base import CAPTION_NEEDS, Method, TextMode
from clipguard.finetuning.methods.registry import parse_method
from clipguard.finetuning.methods.regularizers.base import Regularized
from clipguard.finetuning.methods.regularizers.registry import parse_regularizer
from clipguard.finetuning.processes.launch import read_launch
from clipguard.finetuning.sources import NAMED, Sources
from clipguard.models.sources.spec import parse_source

TRACKERS = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}
NOT_IN_THE_WEIGHTS: tuple[TextMode, ...] = ("free", "laat")  # text modes whose result is a file beside them


def check_processes(config: FinetuneConfig) -> None:
    """Raises FinetuneError for settings that need several processes where only one was launched."""
    if config.fsdp and read_launch().size == 1:
        raise FinetuneError(
            "`fsdp` divides the image tower among several processes: add `workers=N`, or start it with torchrun."
        )


def method_of(config: FinetuneConfig) -> Method:
    """The method that the settings name, with the regulariser beside it.

    Raises:
        FinetuneError: for names or options that there are not, for an attack that would not move, and for a regulariser
            that would compare an image with itself.
    """
    method = parse_method(config.method)
    if method.needs_random_start and not config.random_start:
        raise FinetuneError(
            f"{config.method}: what its attack maximises has no gradient at the clean image: leave `random_start` on."
        )
    if config.regularizer is None:
        return method
    regularizer = parse_regularizer(config.regularizer)
    if not config.random_start and regularizer.needs() & {"start", "fixed_start"}:
        raise FinetuneError(
            f"`regularizer={config.regularizer}` looks at where the attack begins at random: leave `random_start` on,"
            " or give alpha=0,beta=0."
        )
    return Regularized(method, regularizer)


def check(config: FinetuneConfig, sources: Sources = NAMED) -> tuple[Method, TextMode]:
    """The method, and how it tunes the text.

    Args:
        config: the settings.
        sources: the objects in place of names.

    Raises:
        ClipguardError: for settings that no run could use.
    """
    config.check()
    if sources.model is None:
        parse_source(config.model)
    method = method_of(config)
    mode = method.text_mode()
    if method.prompt_design() is not None:
        _check_prompts(config)
    if config.train == "all":
        if mode not in ("frozen", "encoder"):
            raise FinetuneError(f"`train=all` trains the text tower, but {config.method} has text={mode}; choose one.")
        mode = "encoder"
    if config.fsdp and config.compile:
        raise FinetuneError("`fsdp` puts the tower together block by block, not compiled: leave `compile` out.")
    if config.fsdp and config.batch_size is None:
        raise FinetuneError("`batch_size=auto` tries passes with a whole tower, not with `fsdp`: give a number.")
    divided = config.effective_batch is not None and (config.batch_size or 0) < config.effective_batch
    if divided and not method.divisible():
        raise FinetuneError(
            f"{config.method} takes a batch as a whole, its loss is no mean over images: give `batch_size` as a number,"
            " without `effective_batch`."
        )
    _check_captions(config, method)
    if config.wise_ft < 1 and mode in NOT_IN_THE_WEIGHTS:
        raise FinetuneError(f"`wise_ft` mixes weights, but text={mode} is not in the weights; leave it out.")
    if config.tracker != "none" and not TRACKERS[config.tracker]():
        raise FinetuneError(f"`tracker={config.tracker}` needs a package: pip install 'clipguard[tracking]'.")
    return method, mode


def _check_prompts(config: FinetuneConfig) -> None:
    """Raise FinetuneError for settings about weights, where prompts alone are trained."""
    given = {"train": "visual", "lora": 0, "fsdp": False, "wise_ft": 1.0, "awp": 0.0}
    for name, default in given.items():
        if getattr(config, name) != default:
            raise FinetuneError(f"{config.method} trains prompts and no weights: leave `{name}` out.")


def _check_captions(config: FinetuneConfig, method: Method) -> None:
    """Raise FinetuneError for settings about images, of methods that attack captions, and for those of no use."""
    if not method.sees_images():
        given: dict[str, object] = {"train": config.train != "visual", "lora": config.lora, "fsdp": config.fsdp}
        given |= {"noise": config.noise, "grad_checkpointing": config.grad_checkpointing, "compile": config.compile}
        given |= {"regularizer": config.regularizer}  # which compares predictions on images
        for name, is_given in given.items():
            if is_given:
                raise FinetuneError(f"{config.method} trains the text tower alone: leave `{name}` out.")
    if config.caption_column and not method.all_needs() & CAPTION_NEEDS:
        raise FinetuneError(f"{config.method} trains on no captions: leave `caption_column` out.")
    if config.awp and method.edits() is not None:
        raise FinetuneError(
            f"`awp` takes a second gradient on the same adversarial images, but {config.method} attacks captions: leave"
            " it out."
        )
