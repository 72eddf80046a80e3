"""Names that say nothing in a prompt: numbers, ids of WordNet and others, hashes, punctuation."""

from __future__ import annotations

import re
import string

from clipguard.core.errors import DatasetError

WNID = re.compile(r"n\d{8}")
NUMBERED = re.compile(
    r"(?!n\d{8}$)(?:(?:class|cls|c|label|lbl|category|categ|id|idx|index|n|no|num|nr|folder|dir|group|cluster)?[\s_.#-]*|[+-])"
    r"(?P<number>\d+)(?:\.0+)?",
    re.IGNORECASE,
)
_ID = re.compile(
    NUMBERED.pattern  # 0, -1, 3.0, class_3, c7
    + r"|n\d{8}"  # WordNet
    + r"|[\w-]+\.[nvasr]\.\d\d"  # WordNet's synsets, dog.n.01
    + r"|/?m[/._]0\w+"  # Freebase, as in OpenImages
    + r"|q\d{3,}"  # Wikidata
    + r"|(?=[0-9a-f-]*\d)[0-9a-f]{6,}(?:-[0-9a-f]{4,})*"  # hashes, UUIDs
    + r"|true|false|nan|none|null",
    re.IGNORECASE,
)
SAY_NUMBERS = ", or, where the images show numbers, say so in the prompt, as in `templates` 'the number {}.'"


def number_of(name: str) -> int:
    """The number in a name that `NUMBERED` matches: `7`, `-1`, `3.0` or `class_7`."""
    match = NUMBERED.fullmatch(name)
    assert match is not None
    return -int(match["number"]) if name.startswith("-") else int(match["number"])


def are_ids(names: list[str]) -> bool:
    """Whether no name says what its class is: `0`, `class_3`, `c7`, `n00000001`, `9f86d081`, `/m/0bt9lr`, `true`."""
    return all(_ID.fullmatch(name.strip()) for name in names)


def check_data_names(names: list[str], templates: list[str]) -> None:
    """Raise DatasetError for names that came with the data and say nothing in a prompt: numbers, ids, punctuation.

    Numbers pass if the prompts say that the images show numbers.
    """
    numbers = all(name.isdecimal() for name in names)
    if numbers and prompts_name_numbers(templates):
        return
    if are_ids(names):
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise DatasetError(
            f"the labels are numbers or ids without class names ({shown}); give `classes=FILE` with one name a line, "
            f"in label order{SAY_NUMBERS if numbers else ''}"
        )
    ids = [name for name in names if re.fullmatch(r"n\d{8}", name)]
    if ids:
        raise DatasetError(
            f"some labels are WordNet ids ({ids[0]}) and others are not; give names with `classes=FILE`, one a line, "
            "in label order"
        )
    for name in names:
        if not name.strip(string.punctuation + string.whitespace):
            raise DatasetError(
                f"a class is called {name!r}; give names with `classes=FILE`, one a line, in label order"
            )


def check_listed_names(names: list[str], templates: list[str]) -> None:
    """Raise DatasetError where all names that a file gives are numbers or WordNet ids: they mean nothing in a prompt.

    Numbers are names where prompts say that there are some to be seen: see `prompts_name_numbers`.
    """
    numbers = all(name.strip().isdecimal() for name in names)
    if numbers and prompts_name_numbers(templates):
        return
    if numbers or all(WNID.fullmatch(name.strip()) for name in names):
        raise DatasetError(
            f"the class names are all {'numbers' if numbers else 'WordNet ids'} ({', '.join(names[:3])}"
            f"{', ...' if len(names) > 3 else ''}), which mean nothing to a text model; give words with "
            f"`classes=FILE`, one name a line, in label order{SAY_NUMBERS if numbers else ''}"
        )


def prompts_name_numbers(templates: list[str]) -> bool:
    """Whether every prompt says that the images show numbers: "a photo of the number: {}"."""
    return all(re.search(r"\b(number|digit)", template, re.IGNORECASE) for template in templates)
