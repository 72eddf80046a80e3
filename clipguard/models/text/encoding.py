"""Class names and prompt templates -> one text embedding per class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipguard.core.errors import ModelError
from clipguard.core.notices import notice
from clipguard.models.text.tuned import TextMap

Tokenizer = Callable[[list[str]], Tensor]
BATCH = 256  # prompts, in one pass of the text tower


@torch.no_grad()
def encode_classes(
    model: nn.Module,
    tokenizer: Tokenizer,
    class_names: Sequence[str],
    templates: Sequence[str],
    device: torch.device,
    text_map: TextMap | None = None,
    *,
    duplicates: bool = False,
) -> Tensor:
    """Class-text matrix (D, C), float32, columns of unit length, on `device`.

    Args:
        model: an open_clip model, with `encode_text`.
        tokenizer: its own.
        class_names: C names; each fills the `{}` of every template.
        templates: prompts such as "a photo of a {}."
        device: where the model is.
        text_map: what tuned text does to the embedding of each prompt, for models that keep it beside their weights.
        duplicates: see `tokenize`.

    Raises:
        ModelError: as `tokenize`, and when the map does not know a name.
    """
    tokens = tokenize(tokenizer, class_names, templates, duplicates=duplicates)
    prompts = encode_prompts(model, tokens.to(device), len(class_names))
    if text_map is not None:
        prompts = text_map(prompts, class_names)
    return class_rows(prompts).T.contiguous()


def tokenize(
    tokenizer: Tokenizer, class_names: Sequence[str], templates: Sequence[str], *, duplicates: bool = False
) -> Tensor:
    """Token ids (C * T, L) of every template filled with every name, name by name.

    Says which prompts are cut, and which classes have the prompts of another.

    Args:
        tokenizer: texts to token ids (N, L).
        class_names: C names.
        templates: T prompts with `{}` for the name.
        duplicates: allow classes that have the prompts of another for other than equal names, too.

    Raises:
        ModelError: when there are no names or templates, a template has no `{}`, or two names that differ have the
            same tokens in every prompt, so that no image could be told to be of one rather than the other.
    """
    _check_prompts(class_names, templates)
    prompts = [template.replace("{}", name) for name in class_names for template in templates]
    tokens = torch.cat([tokenizer(prompts[start : start + BATCH]) for start in range(0, len(prompts), BATCH)])
    cut = {row // len(templates) for row in find_cut(tokenizer, prompts, tokens)}
    if cut:
        notice(
            "truncated",
            f"{len(cut)} of {len(class_names)} classes have prompts longer than the model's context of "
            f"{tokens.shape[1]} tokens, {class_names[min(cut)]!r} among them: they are cut there; shorten names or "
            "templates",
        )
    _check_distinct(tokens.reshape(len(class_names), len(templates), -1), class_names, cut, duplicates)
    return tokens


def find_cut(tokenizer: Tokenizer, prompts: Sequence[str], tokens: Tensor) -> list[int]:
    """Which of N prompts have lost their end in their tokens (N, L); none where the tokenizer cannot be asked.

    With room for one token more, a prompt that was whole gets nothing but padding, on the right: at the end, or before
    a last token that all have.
    """
    import inspect

    length = tokens.shape[1]
    asks = "context_length" in inspect.signature(tokenizer).parameters
    if not asks or length < 2 or getattr(tokenizer, "reduction_fn", None) is not None:
        return []
    longer: Callable[..., Tensor] = tokenizer
    short, plain = longer(["a"], context_length=length + 1)[0], longer(["a"])[0]
    last = len(short) == length + 1 and not torch.equal(short[:-1], plain) and bool(short[-1] == plain[-1])
    length -= last
    alike = len(short) == length + 1 + last and torch.equal(short[:length], plain[:length])
    if not alike or (last and plain[0] == short[length]):
        return []  # padded on the left
    padding, tokens = short[length], tokens[:, :length]
    full = (tokens[:, -2] != padding).nonzero().flatten().tolist()  # of others the last token is padding
    lost_end: list[int] = []
    for start in range(0, len(full), BATCH):
        rows = full[start : start + BATCH]
        more = longer([prompts[row] for row in rows], context_length=length + 1 + last)[:, : length + 1]
        cut = (more[:, :-1] != tokens[rows]).any(dim=1) | (more[:, -1] != padding)
        lost_end += [row for row, is_cut in zip(rows, cut.tolist(), strict=True) if is_cut]
    return lost_end


def encode_prompts(model: nn.Module, tokens: Tensor, classes: int) -> Tensor:
    """Embeddings (C, T, D) of prompts, float32 unit rows, from their tokens (C * T, L)."""
    encode: Callable[..., Tensor] = model.encode_text  # type: ignore[assignment]
    pieces = (tokens[start : start + BATCH] for start in range(0, len(tokens), BATCH))
    features = torch.cat([encode(piece, normalize=True).float() for piece in pieces])
    return features.reshape(classes, -1, features.shape[1])


def class_rows(prompts: Tensor) -> Tensor:
    """Class embeddings (C, D), unit rows, from those of their prompts (C, T, D), unit rows.

    CLIP's zero-shot convention (Radford et al. 2021, section 3.1.4): the normalised embeddings of a class are averaged
    over the templates and normalised again.
    """
    return F.normalize(prompts.mean(dim=1), dim=-1)


def _check_prompts(class_names: Sequence[str], templates: Sequence[str]) -> None:
    if not class_names or not templates:
        raise ModelError("A zero-shot classifier needs at least one class name and one template.")
    bad = next((template for template in templates if "{}" not in template), None)
    if bad is not None:
        raise ModelError(f"The template {bad!r} has no {{}} for the class name: write it as in 'a photo of a {{}}.'")


def _check_distinct(tokens: Tensor, names: Sequence[str], cut: Container[int], duplicates: bool) -> None:
    """Compare the tokens (C, T, L) of classes: all templates alike is an error or a notice, some a notice."""
    equal = _equal_pairs(tokens.flatten(1).unsqueeze(1))
    refused = [pair for pair in equal if names[pair[0]] != names[pair[1]]]
    if refused and not duplicates:
        one, other = refused[0]
        more = f", and so have {len(refused) - 1} more pairs" if len(refused) > 1 else ""
        why = _why_equal(names[one], names[other], one in cut and other in cut)
        raise ModelError(
            f"The classes {names[one]!r} and {names[other]!r} have the same tokens in every prompt "
            f"({why}){more}: no image can be told to be of one rather than the other. Give names that differ with "
            "`classes`; bench, attack and doctor go on with `duplicate_names`."
        )
    if equal:
        one, other = next(iter(equal))
        notice(
            "guessed",
            f"{len(equal)} of {len(names)} classes have the prompts of another ({names[one]!r} = {names[other]!r}): "
            "no image can be told to be of one rather than the other",
        )
    partly = {pair: count for pair, count in _equal_pairs(tokens).items() if pair not in equal}
    if partly:
        (one, other), count = next(iter(partly.items()))
        notice(
            "truncated",
            f"{len(partly)} pairs of classes have the same tokens in some prompts, as {names[one]!r} and "
            f"{names[other]!r} in {count} of {tokens.shape[1]} "
            f"({_why_equal(names[one], names[other], one in cut and other in cut)}); shorten these templates",
        )


def _equal_pairs(tokens: Tensor) -> dict[tuple[int, int], int]:
    """Class and earlier class -> in how many of T prompts they have the same tokens (C, T, L), where there is any."""
    pairs: Counter[tuple[int, int]] = Counter()
    for prompts in tokens.cpu().unbind(dim=1):
        first: dict[bytes, int] = {}
        for number, row in enumerate(prompts.numpy()):
            earlier = first.setdefault(row.tobytes(), number)
            if earlier != number:
                pairs[earlier, number] += 1
    return dict(pairs)


def _why_equal(one: str, other: str, cut: bool) -> str:
    """What a tokenizer does not see between two names."""
    import html

    if one == other:
        return "it is one name"
    if " ".join(one.split()) == " ".join(other.split()):
        return "they differ in spaces alone"
    if one.casefold() == other.casefold():
        return "they differ in case alone, which the tokenizer ignores"
    if html.unescape(html.unescape(one)) == html.unescape(html.unescape(other)):
        return "they differ in HTML entities alone, which the tokenizer reads"
    return "they are cut to the same beginning" if cut else "the tokenizer does not tell them apart"
