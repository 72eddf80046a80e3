"""Any model that loads, as the files of a folder that open_clip or transformers loads."""

from __future__ import annotations

import json
from typing import Literal

from safetensors.torch import save

from clipguard.core.errors import ModelError
from clipguard.core.markdown import escape_markdown
from clipguard.core.version import __version__
from clipguard.models.checkpoint.image_processor import PREPROCESSOR_NAME, write_image_processor
from clipguard.models.checkpoint.transformers import CONFIG_NAME, to_transformers, transformers_config
from clipguard.models.export import checkpoint_files, plain_state
from clipguard.models.loading import LoadedModel, hash_tensors
from clipguard.models.text.trained_prompts import describe_prompts, record_prompts
from clipguard.models.text.tuned import TEXT_FILE
from clipguard.models.text.wordpiece import uses_vocabulary

Layout = Literal["open_clip", "hf"]
CARD = """\
---
library_name: {library}
pipeline_tag: zero-shot-image-classification
tags: [clip, {library}, clipguard]
---

# {name}

Converted by clipguard {version}; the weights are those of the source, in float32.

| | |
| --- | --- |
{facts}

Load it with {use} or `clipguard bench --model local-dir:FOLDER`.

The licence of the source's weights holds for these, too: look it up before you publish them.
"""
USE = {
    "open_clip": '`open_clip.create_model_and_transforms("local-dir:FOLDER")`',
    "hf": '`transformers.CLIPModel.from_pretrained("FOLDER")`',
    "clipguard": '`clipguard.load_model("local-dir:FOLDER")`',
}


def convert_files(loaded: LoadedModel, to: Layout, *, in_memory: bool = False) -> dict[str, bytes]:
    """Config, float32 weights and model card, by file name.

    "open_clip" is its `local-dir:`; "hf" is transformers' `CLIPModel` with its image processor and tokenizer. Both
    compute what the loaded model computes: the weights are copied, not changed. The prompts that it was fine-tuned with
    are recorded in the weight file. Of a model that was given `in_memory`, which may have been changed there, the card
    has SHA-256 of the tensors, too.

    Raises:
        ModelError: when transformers' CLIPModel, or open_clip's preprocessing, cannot be this model's.
    """
    if to == "hf":
        files = _transformers_files(loaded)
    elif loaded.preprocessing.cuts:
        raise ModelError(
            f"{loaded.info.name} cuts the centre out of images that it resizes otherwise ({loaded.info.resize_mode}),"
            " which open_clip's config cannot say: convert it with `to=hf`."
        )
    else:
        files = checkpoint_files(loaded, loaded.model.state_dict(), loaded.info.trained_prompts)
        if loaded.text_map is not None:
            files[TEXT_FILE] = loaded.text_map.to_bytes()
    return {**files, "README.md": _card(loaded, to, in_memory=in_memory).encode()}


def _transformers_files(loaded: LoadedModel) -> dict[str, bytes]:
    if loaded.text_map is not None:
        raise ModelError(
            f"The tuned text of {loaded.info.name} is not in its weights, and transformers has no place for it: convert"
            " it without `to=hf`."
        )
    config = transformers_config(loaded.model_cfg, loaded.info.name)
    tensors = plain_state(to_transformers(loaded.model.state_dict()))
    return {
        "model.safetensors": record_prompts(save(tensors, {"format": "pt"}), loaded.info.trained_prompts),
        CONFIG_NAME: _json(config),
        PREPROCESSOR_NAME: _json(write_image_processor(loaded.preprocessing)),
        **_tokenizer_files(config["text_config"]["max_position_embeddings"]),
    }


def _tokenizer_files(length: int) -> dict[str, bytes]:
    """CLIP's tokenizer as transformers names its tokens; the numbers are the same."""
    import open_clip

    tokenizer = open_clip.SimpleTokenizer()
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {special.get(token, token): number for token, number in tokenizer.encoder.items()}
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in tokenizer.bpe_ranks)])
    end = "<|endoftext|>"
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "bos_token": "<|startoftext|>",
        "eos_token": end,
        "pad_token": end,
        "unk_token": end,
    }
    return {
        "vocab.json": _json(vocabulary),
        "merges.txt": f"{merges}\n".encode(),
        "tokenizer_config.json": _json(config),
    }


def _json(content: object) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _card(loaded: LoadedModel, to: Layout, *, in_memory: bool) -> str:
    i = loaded.info
    facts = {
        "Source": f"`{i.name}`: {i.weights}",
        "SHA-256": f"`{i.sha256}`",
        "Layout of the source": i.format,
        "Architecture": i.architecture,
        "Activation": i.activation,
        "Image size": f"{i.image_size[0]}x{i.image_size[1]}",
        "Normalisation": f"mean {i.mean}, std {i.std}",
    }
    if i.base is not None:
        facts["Text tower"] = f"of `{i.base}`, SHA-256 `{i.base_sha256}`"
    if in_memory:
        facts["Given in memory"] = f"SHA-256 of its tensors `{hash_tensors(loaded.model.state_dict())}`"
    if i.trained_prompts:
        facts["Fine-tuned with"] = escape_markdown(describe_prompts(i.trained_prompts))
    facts |= {"Detected": "; ".join(i.detected)} if i.detected else {}
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    library = "open_clip" if to == "open_clip" else "transformers"
    use = USE["clipguard" if uses_vocabulary(loaded.model_cfg["text_cfg"]) else to]
    return CARD.format(library=library, name=i.name, version=__version__, facts=rows, use=use)
