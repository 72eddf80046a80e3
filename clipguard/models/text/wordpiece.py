"""BERT's WordPiece text in the order of tokens of Delta-CLIP: [bos] text [eos] [PAD] ... [PAD] [CLS].

Wang et al., arXiv 2501.09446 (github.com/zw615/Double_Visual_Defense), whose fork of open_clip names the vocabulary as
`vocab_path` in `text_cfg`. The text tower reads its embedding at the last place, where [CLS] always is.

Decided here: a text that is too long loses its end and keeps its [eos]. The published code looks at the first text of a
batch alone, so that there the others' last token depends on it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipguard.core.errors import ModelError

VOCABULARY_KEY = "vocab_path"  # of text_cfg
VOCABULARY_NAME = "vocab.txt"  # as BERT's tokenizers write it
_BOS, _EOS, _CLS, _UNKNOWN, _PAD = "[bos]", "[eos]", "[CLS]", "[UNK]", "[PAD]"
_RENAMED = {
    1: ("[unused0]", _BOS),
    2: ("[unused1]", _EOS),
}  # by line, of BERT's vocabulary


class WordPieceTokenizer:
    """Texts to token ids (N, L)."""

    def __init__(self, path: Path, context_length: int) -> None:
        """With the vocabulary in a file, one token a line.

        Raises:
            ModelError: when it is missing or is not such a vocabulary, or the tokenizers package is not installed.
        """
        self.context_length = context_length
        self.lines = _read_vocabulary(path)
        vocabulary = {token: number for number, token in enumerate(self.lines)}
        self.vocab_size = len(vocabulary)
        self._bos, self._eos, self._cls = (vocabulary[token] for token in (_BOS, _EOS, _CLS))
        self._encoder = _word_pieces(vocabulary)

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Token ids (N, L), int64, of L = `context_length`, by default the model's."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        length = context_length or self.context_length
        rows = torch.zeros(len(texts), length, dtype=torch.long)  # [PAD]
        for row, encoded in zip(rows, self._encoder.encode_batch(texts, add_special_tokens=False), strict=True):
            tokens = [self._bos, *encoded.ids[: length - 3], self._eos]
            row[: len(tokens)] = torch.tensor(tokens)
            row[-1] = self._cls
        return rows

    def files(self, model_cfg: Mapping[str, Any]) -> dict[str, bytes]:
        """The vocabulary as a model folder with this config has it, by file name."""
        return {vocabulary_name(model_cfg["text_cfg"]): "".join(f"{line}\n" for line in self.lines).encode()}


def uses_vocabulary(text_cfg: Mapping[str, Any]) -> bool:
    """Whether a config asks for this tokenizer; as in the published code, one of Hugging Face goes first."""
    return bool(text_cfg.get(VOCABULARY_KEY)) and not text_cfg.get("hf_tokenizer_name")


def vocabulary_name(text_cfg: Mapping[str, Any]) -> str:
    """The file's name, without the folder that it had where the model was made."""
    return re.split(r"[\\/]", str(text_cfg[VOCABULARY_KEY]))[-1]


def find_vocabulary(folder: Path, text_cfg: Mapping[str, Any]) -> Path:
    """The vocabulary of a model folder: the file that the config names, or BERT's `vocab.txt`.

    Raises:
        ModelError: when neither is there.
    """
    names = (vocabulary_name(text_cfg), VOCABULARY_NAME)
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise ModelError(
            f"{folder} has no {' or '.join(dict.fromkeys(names))}, the vocabulary that its config names:"
            " put it there; without it no text can be scored."
        )
    return found


def _read_vocabulary(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ModelError(f"Cannot read the vocabulary {path} ({error}): fetch it again.") from error
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")  # not splitlines: some tokens end lines for it
    for number, (plain, renamed) in _RENAMED.items():
        if len(lines) > number and lines[number] == plain and renamed not in lines:
            lines[number] = renamed
    lost = [token for token in (_PAD, _BOS, _EOS, _UNKNOWN, _CLS) if token not in lines]
    problem = f"lacks {', '.join(lost)}" if lost else ""
    if lines[0] != _PAD:
        problem = problem or "does not begin with [PAD]"
    elif len(set(lines)) < len(lines):
        problem = problem or "has a token twice"
    if problem:
        raise ModelError(
            f"{path} {problem}: it is not the vocabulary of a model with [bos] text [eos] ... [CLS]; fetch that one."
        )
    return lines


def _word_pieces(vocabulary: Mapping[str, int]) -> Any:
    """BERT's: lower case without accents, split at spaces and punctuation; no special token is read from a text."""
    try:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    except ImportError as error:
        raise ModelError(
            "A model with a WordPiece vocabulary needs the tokenizers package: pip install tokenizers."
        ) from error
    encoder = Tokenizer(models.WordPiece(dict(vocabulary), unk_token=_UNKNOWN, max_input_chars_per_word=100))
    encoder.normalizer = normalizers.BertNormalizer(lowercase=True)
    encoder.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return encoder
