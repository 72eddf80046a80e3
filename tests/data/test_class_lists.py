"""Class files and templates as people have them: read where they can mean one thing only, and said; else refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dataset_files import write_images

import clipguard
from clipguard.adversarial.image_files import ImageFiles
from clipguard.core.errors import DatasetError
from clipguard.core.notices import noticing
from clipguard.data import load_dataset
from clipguard.data.classes.labels import NameList
from clipguard.data.classes.lists import parse_classes, read_class_list
from clipguard.data.templates import PHOTO, read_templates, resolve_templates

FISH = ["tench", "gold fish", "CD player, portable"]


def read(tmp_path: Path, text: str, suffix: str = ".txt") -> NameList:
    path = tmp_path / f"names{suffix}"
    path.write_text(text, encoding="utf-8")
    return read_class_list(path)


TRANSLATED = {
    "comma": ("0,tench\n1,gold fish\n2,CD player, portable", ".txt"),
    "space": ("0 tench\n1 gold fish\n2 CD player, portable", ".txt"),
    "colon": ("0: tench\n1: gold fish\n2: CD player, portable", ".txt"),
    "tab": ("0\ttench\n1\tgold fish\n2\tCD player, portable", ".txt"),
    "any order": ("2,CD player, portable\n0,tench\n1,gold fish", ".txt"),
    "numbered": ("1. tench\n2. gold fish\n3. CD player, portable", ".txt"),
    "brackets": ("1) tench\n2) gold fish\n3) CD player, portable", ".txt"),
    "from one": ("1 tench\n2 gold fish\n3 CD player, portable", ".txt"),
    "number last": ("tench,0\ngold fish,1\nCD player, portable,2", ".txt"),
    "quoted lines": ('"tench"\n"gold fish"\n"CD player, portable"', ".txt"),
    "quoted lines with commas": ('"tench",\n"gold fish",\n"CD player, portable",', ".txt"),
    "quoted where needed": ('tench\ngold fish\n"CD player, portable"', ".txt"),
    "several a line": ("'tench', 'gold fish',\n  'CD player, portable'", ".txt"),
    "commas": ("tench,\ngold fish,\nCD player, portable,", ".txt"),
    "semicolons": ("tench;\ngold fish;\nCD player, portable", ".txt"),
    "comments": ("# classes\ntench\ngold fish\n// the last\nCD player, portable", ".txt"),
    "bullets": ("- tench\n- gold fish\n- CD player, portable", ".txt"),
    "typographic quotes": ("“tench”,\n“gold fish”,\n“CD player, portable”", ".txt"),
    "arrows": ("0 -> tench\n1 -> gold fish\n2 -> CD player, portable", ".txt"),
    "CSV in a text file": ('id,name\n0,tench\n1,gold fish\n2,"CD player, portable"', ".txt"),
    "Markdown": ("| id | name |\n|---|---|\n| 0 | tench |\n| 1 | gold fish |\n| 2 | CD player, portable |", ".md"),
    "Python dict": ("{0: 'tench',\n 1: 'gold fish',\n 2: 'CD player, portable'}", ".txt"),
    "Python dict without braces": ("0: 'tench',\n1: 'gold fish',\n2: 'CD player, portable'", ".txt"),
    "Python assignment": ("names = [\n    'tench', 'gold fish',\n    'CD player, portable',\n]", ".py"),
    "JSON dict": ('{"1": "gold fish", "0": "tench", "2": "CD player, portable"}', ".json"),
    "class to index": ('{"CD player, portable": 2, "tench": 0, "gold fish": 1}', ".json"),
    "id2label": ('{"id2label": {"0": "tench", "1": "gold fish", "2": "CD player, portable"}, "x": 1}', ".json"),
    "COCO": ('[{"id":1,"name":"tench"},{"id":2,"name":"gold fish"},{"id":3,"name":"CD player, portable"}]', ".json"),
    "YAML": ("- tench\n- gold fish\n- CD player, portable", ".yaml"),
    "YOLO": ("train: a\nnc: 3\nnames:\n  0: tench\n  1: gold fish\n  2: CD player, portable", ".yaml"),
    "CSV": ('0,tench\n1,gold fish\n2,"CD player, portable"', ".csv"),
    "CSV with a header": ('id,name,count\n1,gold fish,7\n0,tench,7\n2,"CD player, portable",1', ".csv"),
    "CSV of pandas": (',class\n0,tench\n1,gold fish\n2,"CD player, portable"', ".csv"),
    "CSV of one column": ('name\ntench\ngold fish\n"CD player, portable"', ".csv"),
    "GTSRB": ('ClassId,SignName\n0,tench\n1,gold fish\n2,"CD player, portable"', ".csv"),
    "a header in a text file": ("ClassId,SignName\n0,tench\n1,gold fish\n2,CD player, portable", ".txt"),
    "TSV": ("0\ttench\n1\tgold fish\n2\tCD player, portable", ".tsv"),
}


@pytest.mark.parametrize(("text", "suffix"), TRANSLATED.values(), ids=TRANSLATED)
def test_what_can_mean_one_thing_only_is_read_and_said_once(tmp_path: Path, text: str, suffix: str) -> None:
    with noticing() as notices:
        assert read(tmp_path, text, suffix).names == FISH
    assert [n["kind"] for n in notices] == ["translated"]
    assert notices[0]["text"].startswith(str(tmp_path / f"names{suffix}: read as "))
    assert "'tench'" in notices[0]["text"]


@pytest.mark.parametrize(
    "names",
    [
        ["7 up", "3 musketeers", "coke"],
        ["boeing 737", "boeing 747", "A380"],
        ["747-400", "707-320", "737-200"],
        ["CD player, portable", "radio, clock", "tench"],
        ["2012 Audi", "2013 BMW", "1999 Ford"],
        ["1 star", "2 stars", "3 stars"],
        ["0 objects", "1 object", "2 objects"],
        ["1 person", "2 people"],
        ["1,000 dollars", "2,000 dollars"],
        ["10:30", "11:45"],
        ["0.5 litre", "1.5 litre"],
        ["Apollo 1", "Gemini 2", "Vostok 3"],
        ["rock 'n' roll", "'til dawn", '6" pipe'],
        ["#love", "#gold"],
        ["apple_pie", "baby_back_ribs"],
        ["tench (Tinca tinca)", "T-shirt"],
        ["n'duja", "n1"],
        ["name, first", "name, last", "tench, old"],
        ["/a/airfield", "/m/mansion"],
    ],
)
def test_names_with_numbers_commas_and_quotes_stay_as_they_are(tmp_path: Path, names: list[str]) -> None:
    with noticing() as notices:
        assert read(tmp_path, "\n".join(names)).names == names
        assert read(tmp_path, json.dumps(names), ".json").names == names
    assert notices == []


def test_ids_go_with_the_first_word_of_their_synset_and_match_the_labels(tmp_path: Path) -> None:
    lines = "n01484850 great white shark, white shark\nn01440764 tench, Tinca tinca\nn01443537 goldfish"
    given = read(tmp_path, lines)
    assert given.names == ["great white shark", "tench", "goldfish"]
    assert given.ids == ["n01484850", "n01440764", "n01443537"]
    assert read(tmp_path, "0,n01440764,tench\n1,n01484850,great_white_shark").names == ["tench", "great white shark"]
    index = '{"1": ["n01484850", "great_white_shark"], "0": ["n01440764", "tench"]}'
    assert read(tmp_path, index, ".json").names == ["tench", "great white shark"]
    clsloc = "n01484850 3 great_white_shark\nn01440764 1 tench\nn01443537 2 goldfish"
    assert read(tmp_path, clsloc).names == ["tench", "goldfish", "great white shark"]
    assert read(tmp_path, "/m/011k07,Tortoise\n/m/011q46kg,Container").names == ["Tortoise", "Container"]

    # Two folders of the three, in another order than the file's: each label goes with its own id.
    write_images(tmp_path / "images", [0, 1, 1])
    for old, new in (("red thing", "n01440764"), ("blue thing", "n01484850")):
        (tmp_path / "images" / old).rename(tmp_path / "images" / new)
    (tmp_path / "names.txt").write_text(lines)
    data = load_dataset(str(tmp_path / "images"), classes=tmp_path / "names.txt")
    assert [data.class_names[label] for label in data.labels] == ["tench", "great white shark", "great white shark"]


@pytest.mark.parametrize("folder", ["{}", "{:03d}", "class_{}"])
def test_folders_that_are_numbers_go_with_the_numbers_of_a_list_from_one(tmp_path: Path, folder: str) -> None:
    write_images(tmp_path / "images", [0, 1, 1])
    (tmp_path / "images" / "red thing").rename(tmp_path / "images" / folder.format(1))
    (tmp_path / "images" / "blue thing").rename(tmp_path / "images" / folder.format(3))
    (tmp_path / "names.txt").write_text("1. tench\n2. goldfish\n3. shark")
    data = load_dataset(str(tmp_path / "images"), classes=tmp_path / "names.txt")
    assert [data.class_names[label] for label in data.labels] == ["tench", "shark", "shark"]


REFUSED = {
    "a gap": ("0,tench\n1,fish\n3,cat", ".txt", r"line 3 has the number 3, .* 2 is missing"),
    "twice": ("0,tench\n1,fish\n1,cat", ".txt", "line 3 has the index 1 for the second time"),
    "no number": ("0,tench\n1,fish\ncat", ".txt", "line 3 has no number"),
    "no id": ("n01440764 tench\nfish", ".txt", "line 2 has no id"),
    "some quoted": ('tench\n"fish"\ncat', ".txt", "line 2 is in quotes"),
    "some commas": ("tench,\nfish\ncat", ".txt", "line 1 ends with a comma"),
    "perhaps a comment": ("tench\n#fish", ".txt", "line 2 begins like a comment"),
    "a key twice": ('{"0": "a", "0": "b"}', ".json", "'0' twice"),
    "a Python key twice": ("{0: 'a', 0: 'b'}", ".txt", "0 twice"),
    "pairs": ('{"a": "b", "c": "d"}', ".json", "2 columns of words"),
    "nested": ('{"a": {"b": 1}}', ".json", "JSON list of strings"),
    "YAML's no": ("- no\n- yes", ".yaml", "entry 1 is False"),
    "forgotten comma": ("['tench'\n 'fish', 4]", ".txt", "JSON list of strings"),
}


@pytest.mark.parametrize(("text", "suffix", "message"), REFUSED.values(), ids=REFUSED)
def test_what_could_mean_two_things_is_refused_with_the_line(
    tmp_path: Path, text: str, suffix: str, message: str
) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        read(tmp_path, text, suffix)
    assert "\n" not in str(caught.value)


def test_names_that_are_numbers_or_ids_are_refused_unless_prompts_show_numbers(tmp_path: Path) -> None:
    write_images(tmp_path / "images", [0, 1])
    for text, what in (("0\n1", "numbers"), ("n00000001\nn00000002", "WordNet ids")):
        (tmp_path / "names.txt").write_text(text)
        with pytest.raises(DatasetError, match=f"all {what} .*give words with `classes=FILE`"):
            load_dataset(str(tmp_path / "images"), classes=tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("n01440764\nn01443537")  # ids that ImageNet has are put in words
    assert load_dataset(str(tmp_path / "images"), classes=tmp_path / "names.txt").class_names == ["tench", "goldfish"]
    red = next((tmp_path / "images").glob("*/*.png"))
    for label in ("goldfish", "n01443537"):
        opened = ImageFiles((red,), str(tmp_path / "names.txt"), (label,)).open("single")
        assert (opened.class_names, opened.labels.tolist()) == (["tench", "goldfish"], [1])
    (tmp_path / "names.txt").write_text("0\n1")
    options = {"classes": tmp_path / "names.txt", "templates": "the number {}."}  # the cure that is printed
    assert load_dataset(str(tmp_path / "images"), **options).class_names == ["0", "1"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat,dog", ["cat", "dog"]),
        (' cat , dog, "CD player, portable"', ["cat", "dog", "CD player, portable"]),
        ("'cat', 'dog'", ["cat", "dog"]),
        ("['cat', 'dog']", ["cat", "dog"]),
        ("rock 'n' roll, 'til dawn", ["rock 'n' roll", "'til dawn"]),
    ],
)
def test_names_between_commas(text: str, names: list[str]) -> None:
    assert parse_classes(text).names == names


def test_bench_takes_names_between_commas_and_indexed_files_as_plain_ones(tmp_path: Path) -> None:
    data = load_dataset("emoji-food")
    names = data.class_names
    (tmp_path / "plain.txt").write_text("\n".join(names))
    (tmp_path / "indexed.txt").write_text("\n".join(f"{i},{name}" for i, name in reversed(list(enumerate(names)))))

    def scores(classes: str) -> list[tuple[int, int]]:
        result = clipguard.bench(
            ["tiny"], ["emoji-food"], attacks=["none"], classes=classes, n_samples=40, templates="single"
        )
        kinds.append([n["kind"] for n in result.run["notices"]])
        return list(zip(result.samples["index"], result.samples["clean_pred"], strict=True))

    kinds: list[list[str]] = []
    plain = scores(str(tmp_path / "plain.txt"))
    assert np.mean([data.labels[i] == p for i, p in plain]) > 0.5  # the model knows them
    assert scores(str(tmp_path / "indexed.txt")) == plain
    assert scores(", ".join(f'"{name}"' for name in names)) == plain
    assert kinds == [[], ["translated"], []]


TEMPLATES = {
    "plain": ("a photo of a {}.\nart of the {c}.", ".txt", []),
    "quoted": ("'a photo of a {}.'\n'art of the {}.'", ".txt", ["translated"]),
    "quoted with commas": ('"a photo of a {}.",\n"art of the {}.",', ".txt", ["translated"]),
    "commas": ("a photo of a {}.,\nart of the {}.,", ".txt", ["translated"]),
    "numbered": ("1. a photo of a {}.\n2. art of the {}.", ".txt", ["translated"]),
    "comments": ("# two\na photo of a {}.\nart of the {}.", ".txt", ["translated"]),
    "lambdas": ("lambda c: f'a photo of a {c}.',\nlambda c: f'art of the {c}.',", ".txt", ["translated"]),
    "a list of lambdas": ("T = [\n lambda x: f'a photo of a {x}.',\n lambda x: f'art of the {x}.'\n]", ".py", None),
    "format": ("lambda c: 'a photo of a {}.'.format(c),\nlambda c: f'art of the {c}.'", ".txt", ["translated"]),
    "a list": ("imagenet_templates = [\n 'a photo of a {}.',\n 'art of the {}.',\n]", ".txt", ["translated"]),
    "JSON": ('["a photo of a {c}.", "art of the {c}."]', ".json", ["translated"]),
    "YAML": ("- a photo of a {}.\n- art of the {c}.", ".yml", ["translated"]),
    "table": ('{"cifar10": ["x {c}"], "vtab/pets": ["a photo of a {c}.", "art of the {c}."]}', ".json", ["translated"]),
}


@pytest.mark.parametrize(("text", "suffix", "kinds"), TEMPLATES.values(), ids=TEMPLATES)
def test_templates_as_people_have_them(tmp_path: Path, text: str, suffix: str, kinds: list[str] | None) -> None:
    path = tmp_path / f"t{suffix}"
    path.write_text(text)
    with noticing() as notices:
        assert read_templates(path, "wds:org/pets") == ["a photo of a {}.", "art of the {}."]
    assert [n["kind"] for n in notices] == (["translated"] if kinds is None else kinds)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a {}\na {class}", r"line 2 must hold one .*write \{\} in place of \{class\}"),
        ("a %s", r"line 1 .* in place of %s"),
        ("a { }.", r"in place of \{ \}"),
        ("a <class>", r"in place of <class>"),
        ("lambda c: f'{c} {d}'", "line 1 must hold one"),
        ("'a {}'\nb {}", "line 1 is in quotes"),
        ('{"a": ["{c}"], "b": ["{c}"]}', "templates of 2 data sets"),
    ],
)
def test_templates_that_are_none_are_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(DatasetError, match=message):
        read_templates(tmp_path / "t.txt")


def test_templates_that_begin_with_the_name_or_a_bracket_are_lines(tmp_path: Path) -> None:
    lines = ["{} in the wild", "[{}]", '"{}"', 'the number: "{}".']
    (tmp_path / "t.txt").write_text("\n".join(lines))
    with noticing() as notices:
        assert read_templates(tmp_path / "t.txt") == lines
    assert notices == []


def test_a_template_on_the_command_line_may_be_written_as_in_a_file() -> None:
    assert resolve_templates("a sketch of a {c}.", PHOTO) == ["a sketch of a {}."]
    assert resolve_templates("'a sketch of a {}.'", PHOTO) == ["a sketch of a {}."]
    with pytest.raises(DatasetError, match=r"write \{\} in place of \{class\}"):
        resolve_templates("a sketch of a {class}.", PHOTO)


@pytest.mark.parametrize(
    "lines",
    ["[{i}] {n}", "({i}) {n}", "class {i}: {n}", "{n} {i1}"],
)
def test_numbers_in_brackets_or_behind_names_are_an_index(tmp_path: Path, lines: str) -> None:
    names = ["bread", "fruit", "meat", "fish", "tea"]
    file = tmp_path / "names.txt"
    file.write_text("\n".join(lines.format(i=i, i1=i + 1, n=n) for i, n in enumerate(names)))
    with noticing() as notices:
        assert read_class_list(file).names == names
    assert [n["kind"] for n in notices] == ["translated"]


def test_a_header_of_one_column_is_no_class(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("class_name\nbread\nfruit\n")
    assert read_class_list(file).names == ["bread", "fruit"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("/data/train/bread\n/data/train/fruit\n/data/train/meat", r"begin with '/data/train/'"),
        ("__label__bread\n__label__fruit\n__label__meat", r"begin with '__label__'"),
        ("<n>bread</n>\n<n>fruit</n>\n<n>meat</n>", r"begin with '<n>'"),
        ("<names>\n<n>bread</n>\n</names>", "markup"),
        ("bowl\\u0020of food\nfruit", "escapes"),
    ],
)
def test_what_is_wrapped_round_names_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "names.txt"
    file.write_text(text)
    with pytest.raises(DatasetError, match=problem):
        read_class_list(file)


def test_prompts_given_as_names_are_said(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("a photo of a cat\na photo of a dog\na photo of a cow")
    with noticing() as notices:
        read_class_list(file)
    assert "look like prompts" in notices[0]["text"]


@pytest.mark.parametrize(
    "given",
    ["lambda c: f'a drawing of a {c}.'", "f'a drawing of a {c}.'", "['a drawing of a {}.']", "'a drawing of a {}.'"],
)
def test_templates_on_the_command_line_are_read_as_in_files(given: str) -> None:
    assert resolve_templates(given, PHOTO) == ["a drawing of a {}."]
