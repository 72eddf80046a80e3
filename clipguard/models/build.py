"""Build the open_clip model of a checkpoint that is on this machine, its tokenizer, and put the weights in."""

from __future__ import annotations

import importlib.util
import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from clipguard.core.errors import ModelError, first_line
from clipguard.models.checkpoint.config import CONFIG_NAME
from clipguard.models.checkpoint.contents import explain_adapter
from clipguard.models.checkpoint.match import check_activation, fit_state
from clipguard.models.checkpoint.reader import WeightFile, check_finite, hash_file, read_weights
from clipguard.models.text.encoding import Tokenizer
from clipguard.models.text.wordpiece import VOCABULARY_KEY, WordPieceTokenizer, find_vocabulary, uses_vocabulary

CUT = 0.9  # of the rows of a text tower: a vocabulary with fewer tokens is no whole file (Delta-CLIP's has 95 %)


@dataclass(frozen=True)
class Checkpoint:
    """A model whose config and weights are on this machine."""

    architecture: str  # for people: open_clip's name, or the config file
    tokenizer_name: str  # for open_clip.get_tokenizer; "" for CLIP's own
    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    weights: Path
    label: str  # the weights, for people
    from_tag: bool = False
    from_folder: bool = False
    file: WeightFile | None = None  # the weights, if they were read already
    notes: tuple[str, ...] = ()  # what was detected and the file does not say

    @property
    def activation(self) -> str:
        """ "QuickGELU" or "GELU", or the name of the timm model that the image tower is."""
        plain = "QuickGELU" if self.model_cfg.get("quick_gelu", False) else "GELU"
        return str(self.model_cfg["vision_cfg"].get("timm_model_name") or plain)

    @property
    def folder(self) -> Path:
        """Where what belongs to the weights lies: their folder, or they themselves if they are one."""
        return self.weights if self.weights.is_dir() else self.weights.parent


class PlacedWeights(NamedTuple):
    """The weights that were put into a model."""

    sha256: str  # of their file
    left_out: tuple[str, ...]  # what else is in it


def _check_packages(checkpoint: Checkpoint) -> None:
    """Raise ModelError when a text tower or tokenizer needs the optional transformers package and it is missing."""
    text = checkpoint.model_cfg["text_cfg"]
    from_transformers = text.get("hf_model_name") or text.get("hf_tokenizer_name")
    if from_transformers and importlib.util.find_spec("transformers") is None:
        raise ModelError(f"{checkpoint.architecture} needs the transformers package: pip install transformers.")


@contextmanager
def _without_remote_code(checkpoint: Checkpoint) -> Iterator[None]:
    """Python files that lie beside weights or tokenizers are not run in here.

    transformers runs them where a config says so, or else asks on the terminal; here, whatever needs them fails.

    Raises:
        ModelError: for a config that says so.
    """
    if _trusts_remote_code(checkpoint.model_cfg):
        raise ModelError(
            f"{checkpoint.architecture} has trust_remote_code in its config, which runs code that lies beside the"
            " weights, and clipguard runs none: take it out, and name a tokenizer that transformers has built in."
        )
    if importlib.util.find_spec("transformers") is None:
        yield
        return
    from transformers import dynamic_module_utils

    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # seconds that it waits for an answer; at 0 it does not ask
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before


def _trusts_remote_code(config: Any) -> bool:
    """Whether `trust_remote_code` is on anywhere in a config."""
    if isinstance(config, Mapping):
        return bool(config.get("trust_remote_code")) or any(_trusts_remote_code(value) for value in config.values())
    return isinstance(config, list) and any(_trusts_remote_code(value) for value in config)


def build(checkpoint: Checkpoint) -> nn.Module:
    """The model with random weights, and its preprocessing attached as `visual.preprocess_cfg`.

    Raises:
        ModelError: when open_clip cannot build it from this config.
    """
    import open_clip
    from open_clip.transform import merge_preprocess_dict

    _check_packages(checkpoint)
    try:
        # open_clip builds from names and folders only, and our config may be neither's.
        with _without_remote_code(checkpoint), tempfile.TemporaryDirectory() as folder:
            (Path(folder) / CONFIG_NAME).write_text(
                json.dumps({"model_cfg": _known_to_open_clip(checkpoint.model_cfg)}), encoding="utf-8"
            )
            model = open_clip.create_model(
                f"local-dir:{folder}",
                load_weights=False,  # ours are loaded strictly, afterwards
                pretrained_text=False,
                force_preprocess_cfg=merge_preprocess_dict({}, {**checkpoint.preprocess_cfg, "size": None}),
            )
    except ModelError:
        raise
    except Exception as error:  # timm, transformers and open_clip each raise their own
        cure = "check its model_cfg, and that the packages it needs are installed"
        if "unexpected keyword" in str(error):
            later = f"open_clip {open_clip.__version__} has no such setting"
            cure = f"{later}; update it if the model was made with a later one, or check its model_cfg"
        raise ModelError(f"open_clip cannot build {checkpoint.architecture} ({first_line(error)}): {cure}.") from error
    return cast(nn.Module, model)


def _known_to_open_clip(model_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Without the vocabulary of Delta-CLIP, which open_clip has no field for; see `load_tokenizer`."""
    text = {key: value for key, value in model_cfg["text_cfg"].items() if key != VOCABULARY_KEY}
    return {**model_cfg, "text_cfg": text}


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """open_clip's tokenizer for the model, or that of its own vocabulary, with the context length of its config.

    Raises:
        ModelError: when its files or packages are missing, or it has more tokens than the text tower.
    """
    import open_clip

    text = checkpoint.model_cfg["text_cfg"]
    if uses_vocabulary(text):
        return _load_word_pieces(checkpoint)
    try:
        length = text.get("context_length")
        with _without_remote_code(checkpoint):
            tokenizer = open_clip.get_tokenizer(checkpoint.tokenizer_name, context_length=length)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"Cannot load the tokenizer of {checkpoint.architecture} ({first_line(error)}): check that its files can"
            " be had."
        ) from error
    size = text.get("vocab_size", math.inf)
    if isinstance(tokenizer, open_clip.SimpleTokenizer) and tokenizer.vocab_size > size:
        raise ModelError(
            f"{checkpoint.architecture} has a vocabulary of {size}, but CLIP's tokenizer has {tokenizer.vocab_size}"
            ' tokens: name its own tokenizer as "hf_tokenizer_name" in text_cfg.'
        )
    return cast(Tokenizer, tokenizer)


def _load_word_pieces(checkpoint: Checkpoint) -> Tokenizer:
    import open_clip

    text = checkpoint.model_cfg["text_cfg"]
    length = text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
    path = find_vocabulary(checkpoint.folder, text)
    tokenizer = WordPieceTokenizer(path, length)
    if tokenizer.vocab_size < CUT * text["vocab_size"]:
        raise ModelError(
            f"{path} has {tokenizer.vocab_size} tokens, and the text tower of {checkpoint.architecture} knows"
            f" {text['vocab_size']}: the file is cut; fetch it again."
        )
    if tokenizer.vocab_size > text["vocab_size"]:
        raise ModelError(
            f"{path} has {tokenizer.vocab_size} tokens, and the text tower of {checkpoint.architecture} knows"
            f" {text['vocab_size']}: it is another model's vocabulary; put this one's there."
        )
    return tokenizer


def with_file(checkpoint: Checkpoint) -> Checkpoint:
    """The same with its weights read, but for those behind a tag, which open_clip reads; says what is odd about them.

    Raises:
        ModelError: when the file cannot be read safely.
    """
    if checkpoint.from_tag or checkpoint.file is not None:
        return checkpoint
    return replace(checkpoint, file=read_weights(checkpoint.weights))


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> PlacedWeights:
    """Put the weights into the model, all of them or none.

    Raises:
        ModelError: when the file cannot be read safely, does not fit, or was trained with another activation.
    """
    placed = _load_tag(model, checkpoint) if checkpoint.from_tag else _load_file(model, checkpoint)
    scale = float(cast(torch.Tensor, model.logit_scale).detach().exp())
    if not math.isfinite(scale) or scale <= 0:
        raise ModelError(
            f"{checkpoint.label} has a logit scale of exp({math.log(scale) if scale > 0 else scale}): it must be"
            " stored as a logarithm (CLIP's is 4.6)."
        )
    return placed


def _load_file(model: nn.Module, checkpoint: Checkpoint) -> PlacedWeights:
    file = checkpoint.file or read_weights(checkpoint.weights)
    if file.contents.adapter:
        raise ModelError(explain_adapter(file.path))
    if file.contents.image_only:
        raise ModelError(
            f"{file.path} holds an image tower alone ({file.contents.format}): give that file itself as `model`,"
            " and the model it was tuned from as `base`."
        )
    state = fit_state(model, file, checkpoint.architecture)
    check_activation(file, checkpoint.architecture, checkpoint.model_cfg, from_folder=checkpoint.from_folder)
    model.load_state_dict(state)
    return PlacedWeights(file.sha256, file.contents.notes)


def load_tower(model: nn.Module, file: WeightFile, base: Checkpoint) -> float:
    """Put the image tower of a file into its base model, all of it or nothing.

    Returns:
        The cosine similarity of its weights and those it replaces, norms and biases apart: near 1 for a tower tuned
        from this base, near 0 for an unrelated one.

    Raises:
        ModelError: when it does not fit, or was trained with another activation.
    """
    state = fit_state(model, file, base.architecture)
    check_activation(file, base.architecture, base.model_cfg, from_folder=base.from_folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if name in state and tensor.ndim > 1}
    model.load_state_dict(state, strict=False)
    pairs = [(before[name], state[name].float()) for name in before]
    product = sum(float((old * new).sum()) for old, new in pairs)
    lengths = [math.sqrt(sum(float(tensor.square().sum()) for tensor in side)) for side in zip(*pairs, strict=True)]
    return product / (lengths[0] * lengths[1])


def _load_tag(model: nn.Module, checkpoint: Checkpoint) -> PlacedWeights:
    """open_clip's own loader knows the formats behind its tags (.npz, MobileCLIP ...), and here loads strictly."""
    from open_clip.factory import load_checkpoint

    try:
        load_checkpoint(model, str(checkpoint.weights), strict=True, weights_only=True)
    except Exception as error:
        raise ModelError(
            f"The cached weights {checkpoint.weights} do not load into {checkpoint.architecture}"
            f" ({first_line(error)}): delete that file and run again to fetch it anew."
        ) from error
    check_finite(model.state_dict(), checkpoint.weights)
    return PlacedWeights(hash_file(checkpoint.weights), ())
