"""Class names as papers write them: ImageNet's from WordNet ids, TeCoA's spelling, and duplicates told apart."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from typing import Any, Literal

from clipguard.core.errors import DatasetError
from clipguard.data.classes.ids import WNID

ClassNames = Literal["source", "tecoa"]
# Published lists give two ImageNet classes one name, so that no model can tell them apart. "source": wise-ft's list,
# which CLIP_benchmark and open_clip use (missile, sunglasses); "tecoa": the first word of each synset (crane,
# cardigan, maillot). The second of each pair gets another of its synset's words, or wise-ft's name.
MENDED: dict[ClassNames, dict[str, str]] = {
    "source": {"n04008634": "projectile", "n04355933": "sunglass"},
    "tecoa": {
        "n03126707": "construction crane",
        "n02113186": "cardigan welsh corgi",
        "n03710721": "one piece bathing suit",
    },
}


def style_names(
    names: list[str], style: ClassNames, *, imagenet: bool = False, raw: bool = False, duplicates: bool = False
) -> list[str]:
    """The names of C classes, in their order, as `style` writes them.

    Args:
        names: as they came with the data: words; or, if `imagenet`, WordNet ids or 0 to 999, which are translated.
        style: "source" keeps words as they are; "tecoa" is lower case without `_`, `-` and `/`, and the first word
            of each synset for ImageNet (Mao et al. 2023).
        imagenet: classes are ImageNet's; 1,000 of them are in the order of their WordNet ids.
        raw: names are of folders or a table's labels, as in `001.ak47` or `apple_pie`, and are tidied.
        duplicates: keep the duplicates of published lists.

    Raises:
        DatasetError: for a WordNet id that is not ImageNet's.
    """
    wnids = _wnids(names) if imagenet else None
    if wnids is not None and style == "tecoa":
        names = [_lemmas(wnid)[0] for wnid in wnids]
    elif wnids is not None and all(WNID.fullmatch(name) or name.isdecimal() for name in names):
        names = [_usual_names().get(wnid) or _lemmas(wnid)[0] for wnid in wnids]
    elif raw:
        names = [re.sub(r"^\d{3}\.|-101$", "", name).replace("_", " ") for name in names]
    if style == "tecoa":
        names = [re.sub("[-_/]", " ", name).lower() for name in names]
    return names if wnids is None or duplicates else _tell_apart(names, wnids, style)


def _tell_apart(names: list[str], wnids: list[str], style: ClassNames) -> list[str]:
    """ImageNet's names, where two classes share one with another for the second."""
    count = Counter(names)
    names = [MENDED[style].get(wnid, n) if count[n] > 1 else n for wnid, n in zip(wnids, names, strict=True)]
    count = Counter(names)  # beyond the 1,000, more share a word: those are told apart by all words of their synsets
    return [
        ", ".join(_lemmas(wnid)) if count[n] > 1 and wnid not in _usual_names() else n
        for wnid, n in zip(wnids, names, strict=True)
    ]


def ids_in_words(names: list[str], style: ClassNames) -> list[str] | None:
    """Names that all are WordNet ids ImageNet uses, or all start with one (`n02085620-Chihuahua`), in words; else None.

    Raises:
        DatasetError: for an id that is not ImageNet's among ids alone.
    """
    if names and all(WNID.fullmatch(name) for name in names):
        return style_names(names, style, imagenet=True)
    matches = [re.fullmatch(r"n\d{8}[-_ .]+(.*\w.*)", name) for name in names]
    words = [match[1].replace("_", " ").strip() for match in matches if match]
    return style_names(words, style) if words and len(words) == len(names) else None


def without_numbers(names: list[str]) -> list[str] | None:
    """Names behind numbers that count the classes, from 0 or 1 or with zeros before (`001.Black_footed_Albatross`)."""
    matches = [re.fullmatch(r"\d+[-_ .]+(.*[^\W\d_].*)", name) for name in names]
    cells = [re.match(r"\d*", name)[0] for name in names]  # type: ignore[index]
    if len(names) < 2 or not all(matches) or len({int(cell) for cell in cells}) < len(cells):
        return None
    padded = len({len(cell) for cell in cells}) == 1 and any(cell[0] == "0" and len(cell) > 1 for cell in cells)
    counts = max(map(int, cells)) - min(map(int, cells)) == len(cells) - 1 and min(map(int, cells)) in (0, 1)
    return [match[1].replace("_", " ").strip() for match in matches if match] if padded or counts else None


def imagenet_templates() -> tuple[str, ...]:
    """The 80 prompts for ImageNet (Radford et al. 2021)."""
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    return tuple(fill("{}") for fill in OPENAI_IMAGENET_TEMPLATES)


def _wnids(names: list[str]) -> list[str] | None:
    """The WordNet id of each class: the name itself, or by position in the 1,000; None if neither."""
    if all(WNID.fullmatch(name) for name in names):
        return names
    return list(_usual_names()) if len(names) == len(_usual_names()) else None


@cache
def _usual_names() -> dict[str, str]:
    """WordNet id -> wise-ft's name, for the 1,000 classes in their order."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    return dict(zip(_wordnet().label_names(), IMAGENET_CLASSNAMES, strict=True))


@cache
def _wordnet() -> Any:
    from timm.data import ImageNetInfo

    return ImageNetInfo("imagenet-1k")


def _lemmas(wnid: str) -> list[str]:
    """`great white shark`, `white shark`, ...: the words of a synset, of the 1,000 or of all 21,843 in ImageNet."""
    try:
        return str(_wordnet().label_name_to_description(wnid)).split(", ")
    except KeyError:
        raise DatasetError(f"{wnid} is no WordNet id of ImageNet; give the class names with `classes=FILE`") from None
