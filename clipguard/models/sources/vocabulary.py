"""What a config with a vocabulary of its own (Delta-CLIP) leaves open: how many tokens, and which normalisation."""

from __future__ import annotations

from dataclasses import replace

from clipguard.core.notices import notice
from clipguard.models.build import Checkpoint
from clipguard.models.checkpoint.reader import read_weights
from clipguard.models.normalization import NORMALIZATIONS
from clipguard.models.text.wordpiece import uses_vocabulary

_PREPROCESSING = {**NORMALIZATIONS["imagenet"]._asdict(), "interpolation": "bilinear"}


def with_vocabulary(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint; of a config with `vocab_path`, with what such models have where the config does not say.

    The text tower has a row for every token and more (32,000 for 30,522 in the published ones): its tensor tells how
    many. Preprocessing that is not stated is that of the authors' code: ImageNet's mean and standard deviation,
    bilinear. open_clip's own default would be CLIP's, which such a model was not trained with.
    """
    text = checkpoint.model_cfg["text_cfg"]
    if not uses_vocabulary(text):
        return checkpoint
    file = checkpoint.file or read_weights(checkpoint.weights)
    table = next((t for name, t in file.tensors.items() if name.endswith("token_embedding.weight")), None)
    notes = list(checkpoint.notes)
    if table is not None and text.get("vocab_size") != len(table):
        notes.append(f"vocabulary of {len(table)} rows, as the weights have (its config: {text.get('vocab_size')})")
        text = {**text, "vocab_size": len(table)}
    assumed = {key: value for key, value in _PREPROCESSING.items() if checkpoint.preprocess_cfg.get(key) is None}
    if assumed:
        notes.append(f"assumed {', '.join(assumed)} of Delta-CLIP's code (ImageNet's, bilinear): its config has none")
        notice("guessed", f"{checkpoint.architecture}: {notes[-1]}; #normalization= names others")
    return replace(
        checkpoint,
        model_cfg={**checkpoint.model_cfg, "text_cfg": text},
        preprocess_cfg={**checkpoint.preprocess_cfg, **assumed},
        file=file,
        notes=tuple(notes),
    )
