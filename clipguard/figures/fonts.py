"""Which fonts draw a text: ours, then installed ones for characters that it lacks, as names of classes may have."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from matplotlib.font_manager import FontEntry, fontManager, get_font

FONT = "DejaVu Sans"  # comes with matplotlib, and has ✓ and ✗
PREFERRED = ("Noto Sans", "Source Han Sans", "WenQuanYi", "Microsoft", "PingFang", "Hiragino", "Noto Emoji", "Symbola")
LAST_RESORT = "Last Resort"  # of matplotlib: a box for every character
UNSEEN = ("Cc", "Cf", "Cs", "Mn", "Zl", "Zp", "Zs")  # categories that need no glyph of their own
log = logging.getLogger("clipguard")


@lru_cache(maxsize=512)
def _glyphs(path: str) -> frozenset[int]:
    """Code points that a font file has glyphs for; none for one that matplotlib cannot read, as colour fonts."""
    try:
        return frozenset(get_font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()


def _seen(text: str) -> frozenset[int]:
    return frozenset(ord(character) for character in text if unicodedata.category(character) not in UNSEEN)


def _installed() -> list[FontEntry]:
    """Upright fonts of normal weight but ours, those that fit it first."""
    plain = [f for f in fontManager.ttflist if f.style == "normal" and f.weight in (400, "normal", "regular")]
    others = [f for f in plain if f.name != FONT and not f.name.startswith(LAST_RESORT)]
    return sorted(others, key=lambda f: (not f.name.startswith(PREFERRED), f.name))


@lru_cache(maxsize=64)
def _cover(missing: frozenset[int]) -> tuple[tuple[str, ...], frozenset[int]]:
    """Families that have these characters, as few as come first, and the characters that none has."""
    families: list[str] = []
    for entry in _installed():
        drawn = missing & _glyphs(entry.fname)
        if drawn:
            families.append(entry.name)
            missing -= drawn
        if not missing:
            break
    return tuple(families), missing


@lru_cache(maxsize=1)
def _own() -> frozenset[int]:
    return frozenset().union(*(_glyphs(f.fname) for f in fontManager.ttflist if f.name == FONT and f.weight == 400))


def families(text: str) -> list[str]:
    """Font families for a text, to be tried in this order for each character."""
    missing = _seen(text) - _own()
    return [FONT, *(_cover(missing)[0] if missing else ())]


def lacking(text: str) -> str:
    """The characters of a text that no font here can draw, each once."""
    missing = _seen(text) - _own()
    return "".join(map(chr, sorted(_cover(missing)[1]))) if missing else ""


def warn_of_boxes(where: str, texts: Iterable[str]) -> None:
    """Say on the log which characters of `texts` are boxes in pictures, and what to do."""
    missing = lacking("".join(texts))
    if missing:
        shown = missing[:8] + ("…" if len(missing) > 8 else "")
        log.warning(
            "%s: no font here has %s, which are drawn as boxes; install one that has them (Noto Sans CJK, Noto Emoji)",
            where,
            shown,
        )


def is_wide(character: str) -> bool:
    """Whether it takes a whole em, as Chinese, Japanese and Korean characters and emoji do."""
    return unicodedata.east_asian_width(character) in "WF"
