"""Notices: said once on the log, and kept in the run that is under way."""

from __future__ import annotations

import ast
import logging
from pathlib import Path

import pytest

import clipguard
from clipguard.core.notices import KINDS, notice, noticing


def test_a_notice_is_a_warning_and_is_kept_once_in_the_run_under_way(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="clipguard"), noticing() as kept:
        notice("skipped", "photos: 2 files are no images")
        with noticing() as inner:  # a part of the run
            notice("skipped", "photos: 2 files are no images")
            notice("guessed", "photos: split val")
    assert kept is inner
    assert [n["text"] for n in kept] == ["photos: 2 files are no images", "photos: split val"] == caplog.messages
    with noticing() as fresh:
        assert fresh == []


# Every place that skips, cuts, translates, rescales or guesses, in the order of its lines. A new one belongs here, with
# a test of what it says; and what is done to an input in any other place must be an error.
PLACES = {
    "benchmark/recipe_files.py": [("guessed", "eps of a recipe below one grey level")],
    "adversarial/image_files.py": [("translated", "WordNet ids given as classes")],
    "core/eps.py": [("guessed", "eps below one grey level")],
    "data/classes/lists.py": [
        ("guessed", "class names that look like prompts"),
        ("translated", "class names with an index, ids, quotes, or as a table or dictionary"),
    ],
    "data/formats/columns.py": [("guessed", "one of several label columns")],
    "data/decoding.py": [
        ("rescaled", "images rotated, laid over white, or of 16 bits"),
        ("skipped", "the same, left undone under --decode plain"),
        ("skipped", "frames after the first"),
        ("guessed", "orientation where EXIF cannot be read"),
        ("guessed", "8- or 12-bit values in 16-bit files"),
    ],
    "data/formats/paths.py": [("skipped", "files that are not read")],
    "data/formats/image_folder.py": [
        ("guessed", "top folders that are splits, since some are called so"),
        ("guessed", "images below folders in class folders"),
    ],
    "data/classes/labels.py": [
        ("guessed", "numbers as positions, though none is 0"),
        ("guessed", "numbers that take names in their order"),
        ("guessed", "names by their place"),
    ],
    "data/classes/naming.py": [
        ("skipped", "classes that only other splits have"),
        ("translated", "class names: ids in words, another style"),
    ],
    "data/sources.py": [("guessed", "the ensemble for any photos, where a copy brings no prompts")],
    "data/formats/table_images.py": [("guessed", "arrays as channels, height, width")],
    "data/formats/tar_index.py": [
        ("guessed", "dots that belong to a sample's name"),
        ("guessed", "the only image of a sample, with dots"),
        ("skipped", "members that are no image or label"),
    ],
    "data/templates.py": [("translated", "templates in quotes, lists, functions or JSON")],
    "finetuning/processes/launch.py": [
        ("skipped", "variables of accelerate that would change settings"),
        ("skipped", "variables of a launch of one process"),
    ],
    "finetuning/captions/encoder.py": [("truncated", "captions longer than the context")],
    "finetuning/data/training_data.py": [
        ("skipped", "labels that cannot be read, of a method that needs none"),
        ("guessed", "prompts of classes as captions, where there are none"),
    ],
    "finetuning/tuned/prompt_text.py": [
        ("truncated", "context vectors that there is no room for"),
        ("truncated", "blocks with prompts that a tower does not have"),
    ],
    "models/checkpoint/image_processor.py": [
        ("guessed", "CLIP's own processor, where there is no file"),
        ("skipped", "keys that transformers does not use either"),
        ("guessed", "which of two processor files that differ"),
        ("guessed", "sizes that a processor file lacks"),
    ],
    "models/checkpoint/contents.py": [
        ("skipped", "other models in the same file"),
        ("translated", "an unknown prefix of all names"),
        ("skipped", "tensors that lie beside the model"),
    ],
    "models/prompts/learned.py": [("guessed", "the order of classes of class-specific prompts without names")],
    "models/sources/locate.py": [
        ("skipped", "unknown keys of preprocess_cfg"),
        ("guessed", "one size of images for a NaFlex tower"),
    ],
    "models/sources/vocabulary.py": [("guessed", "Delta-CLIP's preprocessing, where a config does not say it")],
    "models/text/encoding.py": [
        ("truncated", "prompts longer than the context"),
        ("guessed", "classes alike in all prompts, where that is allowed"),
        ("truncated", "classes alike in some prompts"),
    ],
}


def test_every_place_that_does_something_to_an_input_is_known() -> None:
    package = Path(clipguard.__file__).parent
    found: dict[str, list[tuple[int, str]]] = {}
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "notice":
                name = path.relative_to(package).as_posix()
                found.setdefault(name, []).append((node.lineno, ast.literal_eval(node.args[0])))
    kinds = {name: [kind for _, kind in sorted(calls)] for name, calls in found.items()}
    assert kinds == {name: [kind for kind, _ in places] for name, places in PLACES.items()}
    assert {kind for calls in kinds.values() for kind in calls} <= set(KINDS)
