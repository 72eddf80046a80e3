"""Lines as people have them (commented, numbered, in quotes, with bullets or commas) -> plain entries."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from clipguard.core.errors import DatasetError

QUOTES = {"'": "'", '"': '"', "`": "`", "\u2018": "\u2019", "\u201c": "\u201d", "\u201e": "\u201c", "\xab": "\xbb"}
NUMBERED = re.compile(r"(\d+)(?:[.):,;]|\s-)\s+")
BULLET = re.compile(r"[-*\u2022]\s+")


@dataclass(frozen=True)
class Lines:
    """Cleaned lines of a file, where each is from, and in words what was taken off."""

    texts: list[str]
    numbers: list[int]
    done: tuple[str, ...] = ()


def clean_lines(text: str, path: Path) -> Lines:
    """Stripped lines without comments, bullets, commas at the end, and quotes around all of them.

    Only what every line has is taken off: where a few have it, it is either part of them or a mistake.

    Raises:
        DatasetError: for a blank line, for none, and for commas or quotes that only some lines have.
    """
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if not any(lines):
        raise DatasetError(f"{path} is empty; write one entry a line")
    if "" in lines:
        # Skipped in silence, it would shift the meaning of every later class.
        raise DatasetError(f"{path}: line {lines.index('') + 1} is blank; remove it")
    kept = Lines(lines, list(range(1, len(lines) + 1)))
    for step in (_drop_comments, _drop_pipes, _drop_bullets, _drop_ends, unquote_lines):
        kept = step(kept, path)
    return kept


def _drop_comments(lines: Lines, path: Path) -> Lines:
    marked = [text.startswith(("#", "//")) for text in lines.texts]
    if not any(marked) or all(marked):
        return lines
    for text, number, mark in zip(lines.texts, lines.numbers, marked, strict=True):
        if mark and not re.match(r"(#+|//+)(\s|$)", text):
            raise DatasetError(f"{path}: line {number} begins like a comment: {text!r}; remove it, or give a JSON list")
    rest = [(t, n) for t, n, mark in zip(lines.texts, lines.numbers, marked, strict=True) if not mark]
    said = f"{sum(marked)} comment lines"
    return Lines([t for t, _ in rest], [n for _, n in rest], (*lines.done, said))


def _drop_pipes(lines: Lines, path: Path) -> Lines:  # noqa: ARG001  # the steps have one form
    """Rows of a Markdown table, without its line of dashes."""
    if len(lines.texts) < 2 or not all(text.startswith("|") and text.endswith("|") for text in lines.texts):
        return lines
    rows = [(t, n) for t, n in zip(lines.texts, lines.numbers, strict=True) if not re.fullmatch(r"[|:\s-]+", t)]
    return Lines([t.strip("| \t") for t, _ in rows], [n for _, n in rows], (*lines.done, "the bars of a table"))


def drop_numbers(lines: Lines) -> Lines:
    """Without the numbers of a list, where every line has one and they count from 0 or 1."""
    matches = [NUMBERED.match(text) for text in lines.texts]
    numbers = [int(match[1]) for match in matches if match]
    if len(numbers) < len(matches) or numbers[0] > 1 or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        return lines
    return Lines([NUMBERED.sub("", text, count=1) for text in lines.texts], lines.numbers, (*lines.done, "numbers"))


def _drop_bullets(lines: Lines, path: Path) -> Lines:  # noqa: ARG001  # the steps have one form
    if not all(BULLET.match(text) for text in lines.texts):
        return lines
    return Lines([BULLET.sub("", text, count=1) for text in lines.texts], lines.numbers, (*lines.done, "bullets"))


def _drop_ends(lines: Lines, path: Path) -> Lines:
    for end, name in ((",", "comma"), (";", "semicolon")):
        has = [text.endswith(end) for text in lines.texts]
        if not any(has):
            continue
        if not all(has[:-1]) or len(has) == 1:
            some = has.index(True) if len(has) > 1 else 0
            raise DatasetError(
                f"{path}: line {lines.numbers[some]} ends with a {name}, and not all lines do: {lines.texts[some]!r}; "
                "give one entry a line, without it"
            )
        texts = [text.removesuffix(end).rstrip() for text in lines.texts]
        return Lines(texts, lines.numbers, (*lines.done, f"the {name}s at the end of lines"))
    return lines


def unquote_lines(lines: Lines, path: Path) -> Lines:
    """Without quotes, where all lines are in quotes, or those with commas or quotes inside, as programs write them.

    Raises:
        DatasetError: where others are.
    """
    quoted = [is_quoted(text) for text in lines.texts]
    if not any(quoted):
        return lines
    texts, number = list(lines.texts), lines.numbers[quoted.index(True)]
    if not all(quoted):
        # As programs write a column: only entries with a comma or a quote inside are put in quotes.
        odd = [t for t, q in zip(texts, quoted, strict=True) if q and not (t[0] == '"' and set(t[1:-1]) & {",", '"'})]
        if odd and odd != ['"{}"']:  # a prompt of its own: the name in quotes
            number = lines.numbers[lines.texts.index(odd[0])]
            raise DatasetError(
                f"{path}: line {number} is in quotes, and not all lines are: {odd[0]!r}; put all in quotes, or none"
            )
        if odd:
            return lines
    texts = [unquote(text) if q else text for text, q in zip(texts, quoted, strict=True)]
    return Lines(texts, lines.numbers, (*lines.done, "quotes"))


def is_quoted(text: str) -> bool:
    """Whether a text is one string in quotes, as Python or a table writes it."""
    if len(text) < 2 or text[-1] != QUOTES.get(text[0]):
        return False
    inside = text[1:-1].replace("\\" + text[0], "").replace(text[0] * 2, "")
    return text[0] not in inside and text[-1] not in inside


def unquote(text: str) -> str:
    """What stands between the quotes, with `\\'` or `''` for one of them."""
    return text[1:-1].replace("\\" + text[0], text[0]).replace(text[0] * 2, text[0]).strip()
