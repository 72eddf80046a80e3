"""Class names that are WordNet ids, numbers or other ids: in words where they are known, else refused."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from dataset_files import COLOURS, png, write_tar
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

from clipguard.core.errors import DatasetError
from clipguard.core.notices import noticing
from clipguard.data import ZeroShotDataset, load_dataset

IDS = ["n02113186", "n01440764"]  # not sorted: 264 and 0 of the 1,000
WORDS = {"n01440764": IMAGENET_CLASSNAMES[0], "n02113186": IMAGENET_CLASSNAMES[264]}


def write_folder(root: Path, names: list[str]) -> str:
    """One image a class; its red is the position in `names`."""
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        (root / name / "0.png").write_bytes(png((number, 0, 0)))
    return str(root)


def write_all_formats(root: Path, names: list[str]) -> dict[str, str]:
    """The same classes as folders, strings of a table, a ClassLabel, and `.cls` of a tar."""
    cells = [{"bytes": png((number, 0, 0)), "path": None} for number in range(len(names))]
    strings = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    classes = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    table = datasets.Dataset.from_dict({"image": cells, "label": names}, features=strings)
    labelled = datasets.Dataset.from_dict({"image": cells, "label": list(range(len(names)))}, features=classes)
    (root / "x.tar").parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(root / "strings.parquet")
    labelled.to_parquet(root / "classes.parquet")
    labelled.save_to_disk(root / "saved")
    members = [m for n, name in enumerate(names) for m in [(f"{n}.cls", name.encode()), (f"{n}.png", png((n, 0, 0)))]]
    write_tar(root / "x.tar", members)
    paths = {name: str(root / name) for name in ("strings.parquet", "classes.parquet", "saved", "x.tar")}
    return paths | {"folders": write_folder(root / "folders" / "val", names)}


def name_of_each(dataset: ZeroShotDataset) -> dict[int, str]:
    """Red of an image -> its class name: right in any class order."""
    rows = range(len(dataset))
    return {dataset.image(r).getpixel((0, 0))[0]: dataset.class_names[dataset.labels[r]] for r in rows}


def test_wordnet_ids_are_translated_in_every_format_and_the_labels_stay_with_them(tmp_path: Path) -> None:
    for path in write_all_formats(tmp_path, IDS).values():
        with noticing() as notices:
            dataset = load_dataset(path)
        assert name_of_each(dataset) == {0: WORDS[IDS[0]], 1: WORDS[IDS[1]]}, path
        assert [n["kind"] for n in notices] == ["translated"]
        assert f"{path}: 2 of 2 class names are not as they came with the data: 'n0" in notices[0]["text"]


def test_ids_beyond_the_thousand_and_ids_before_words(tmp_path: Path) -> None:
    assert load_dataset(write_folder(tmp_path / "21k", ["n00007846", "n01440764"])).class_names == ["person", "tench"]
    dogs = write_folder(tmp_path / "dogs", ["n02085620-Chihuahua", "n02085782-Japanese_spaniel"])
    assert load_dataset(dogs).class_names == ["Chihuahua", "Japanese spaniel"]
    queens = load_dataset(write_folder(tmp_path / "queens", ["n10499355", "n02129991"])).class_names
    assert len(set(queens)) == 2


def test_an_id_nobody_knows_is_refused_and_a_file_of_names_helps(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "x", ["n00000001", "n01440764"])
    with pytest.raises(DatasetError, match="n00000001 is no WordNet id of ImageNet; give the class names with `cla"):
        load_dataset(path)
    (tmp_path / "names.txt").write_text("cat\ndog")
    assert load_dataset(path, classes=tmp_path / "names.txt").class_names == ["cat", "dog"]


@pytest.mark.parametrize(
    "names",
    [
        ["10", "2", "0"],
        ["010", "002", "000"],
        ["class_10", "class_2", "class_0"],
        ["c10", "c2", "c0"],
        ["3.0", "2.0", "1.0"],
        ["9f86d081", "60303ae2"],
        ["/m/0bt9lr".replace("/", "_").strip("_"), "m_01yrx"],
        ["True", "False"],
    ],
    ids=lambda names: names[0],
)
def test_numbers_and_ids_are_no_names_and_the_cure_works(tmp_path: Path, names: list[str]) -> None:
    expected = dict(enumerate(f"name {n}" for n in names))
    file = tmp_path / "names.txt"
    for kind, path in write_all_formats(tmp_path, names).items():
        numeric = kind == "x.tar" and names[0] in ("10", "010", "3.0")  # integers in a tar
        message = "integers without class names" if numeric else r"numbers or ids without class names \("
        with pytest.raises(DatasetError, match=rf"{message}.*give `classes=FILE` with one name a line, in label order"):
            load_dataset(path)
        if names[0].startswith(("10", "010", "class_", "c10", "3.")):
            order = names[::-1]  # by number, also where a ClassLabel has another order, as folders 0, 1, 10, 2 get one
        else:
            order = names if kind in ("classes.parquet", "saved") else sorted(names)
        file.write_text("\n".join(f"name {n}" for n in order))
        if numeric:  # 0, 2, 10: a line for each number
            count = 4 if names[0] == "3.0" else 11
            by_value = {int(float(n)): n for n in names}
            file.write_text("\n".join(f"name {by_value.get(i, 'none ' + str(i))}" for i in range(count)))
        assert name_of_each(load_dataset(path, classes=file)) == expected, path


def test_numbers_are_names_where_the_prompt_says_that_there_are_some_to_be_seen(tmp_path: Path) -> None:
    digits = {0: "2", 1: "0", 2: "1"}
    for kind, path in write_all_formats(tmp_path, list(digits.values())).items():
        (tmp_path / "names.txt").write_text("0\n1\n2")
        if kind != "x.tar":  # there they are integers
            with pytest.raises(
                DatasetError, match=r"or, where the images show numbers, .*`templates` 'the number {}\.'"
            ):
                load_dataset(path)
            assert name_of_each(load_dataset(path, templates="the number {}.")) == digits, kind
        dataset = load_dataset(path, classes=tmp_path / "names.txt", templates="the number {}.")
        assert name_of_each(dataset) == digits, kind


def test_a_classnames_file_beside_the_data_is_the_cure_too(tmp_path: Path) -> None:
    for path in write_all_formats(tmp_path, ["1", "0"]).values():
        beside = Path(path) if Path(path).is_dir() else Path(path).parent
        (beside / "classnames.txt").write_text("zero\none")
        assert name_of_each(load_dataset(path)) == {0: "one", 1: "zero"}, path


def test_numbers_are_positions_where_the_file_has_more_names(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "x", ["7", "2"])
    file = tmp_path / "names.txt"
    file.write_text("\n".join("abcdefghij"))
    with noticing() as notices:
        assert name_of_each(load_dataset(path, classes=file)) == {0: "h", 1: "c"}
    assert "no label is 0, but they are counted from 0: 2 is 'c'" in notices[0]["text"]
    file.write_text("cat\ndog")
    with noticing() as notices:  # as many names as labels: in their order
        assert name_of_each(load_dataset(path, classes=file)) == {0: "dog", 1: "cat"}
    assert "labels run from 2 to 7 and take the 2 names in order: 2 is 'cat', 7 is 'dog'" in notices[0]["text"]
    file.write_text("cat\ndog\nbird")
    with pytest.raises(DatasetError, match=r"a label is 7, but .* has 3 class names \(0 to 2\)"):
        load_dataset(path, classes=file)


def test_a_longer_list_of_imagenets_names_in_any_order_meets_the_ids(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(["snail", "Cardigan_Welsh_Corgi", "tench"]))
    dataset = load_dataset(write_folder(tmp_path / "x", IDS), classes=tmp_path / "names.txt")
    assert name_of_each(dataset) == {0: "Cardigan_Welsh_Corgi", 1: "tench"}
    (tmp_path / "names.txt").write_text("doggy\nfishy")  # other names: in the order of the ids, which is said
    with noticing() as notices:
        dataset = load_dataset(str(tmp_path / "x"), classes=tmp_path / "names.txt")
    assert name_of_each(dataset) == {0: "fishy", 1: "doggy"}
    assert "take those in the same place: 'n01440764' is 'doggy'" in notices[0]["text"]
    (tmp_path / "ids.txt").write_text("\n".join(IDS))
    dataset = load_dataset(str(tmp_path / "x"), classes=tmp_path / "ids.txt")
    assert dataset.class_names == [WORDS[i] for i in IDS]
    assert name_of_each(dataset) == {0: WORDS[IDS[0]], 1: WORDS[IDS[1]]}


def test_a_file_of_ids_and_words_goes_by_the_ids_or_not_at_all(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "x", IDS)
    (tmp_path / "names.txt").write_text("n02113186 corgi\nn01440764 tench, Tinca tinca\nn01443537 goldfish")
    assert name_of_each(load_dataset(path, classes=tmp_path / "names.txt")) == {0: "corgi", 1: "tench"}
    (tmp_path / "names.txt").write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish")  # as many, but others
    with pytest.raises(DatasetError, match="'n02113186' is not among those names; give one name a class"):
        load_dataset(path, classes=tmp_path / "names.txt")


def test_names_that_differ_in_case_and_separators_meet_by_name_not_by_position(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "x", ["Golden_Retriever", "afghan-hound"])
    (tmp_path / "names.txt").write_text("Afghan Hound\ngolden retriever")
    dataset = load_dataset(path, classes=tmp_path / "names.txt")
    assert name_of_each(dataset) == {0: "golden retriever", 1: "Afghan Hound"}


def test_names_taken_by_position_are_said(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "x", ["hund", "katze"])
    (tmp_path / "names.txt").write_text("dog\ncat")
    with noticing() as notices:
        load_dataset(path, classes=tmp_path / "names.txt")
    assert [n["kind"] for n in notices] == ["guessed"]
    assert "2 of 2 classes are not among its names and take those in the same place: 'hund' is 'dog'" in str(notices)


@pytest.mark.parametrize("name", ["_", "--", "..."])
def test_punctuation_is_no_name(tmp_path: Path, name: str) -> None:
    paths = write_all_formats(tmp_path, ["dog", name]) if name != "..." else {}
    for path in paths.values():
        with pytest.raises(DatasetError, match=f"a class is called '{name}'; give names with `classes=FILE`"):
            load_dataset(path)


def test_ids_among_words_are_refused(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "x", ["background", "n01440764"])
    with pytest.raises(DatasetError, match=r"some labels are WordNet ids \(n01440764\) and others are not; give names"):
        load_dataset(path)
    (tmp_path / "names.txt").write_text("background\ntench")
    assert name_of_each(load_dataset(path, classes=tmp_path / "names.txt")) == {0: "background", 1: "tench"}


def test_equal_names_that_are_allowed_keep_their_places(tmp_path: Path) -> None:
    cells = [{"bytes": png((number, 0, 0)), "path": None} for number in range(3)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=3)})
    table = datasets.Dataset.from_dict({"image": cells, "label": [0, 1, 2]}, features=features)
    table.to_parquet(tmp_path / "x.parquet")
    (tmp_path / "names.txt").write_text("missile\ndog\nmissile")
    dataset = load_dataset(str(tmp_path / "x.parquet"), classes=tmp_path / "names.txt", duplicate_names=True)
    assert dataset.labels.tolist() == [0, 1, 2]


def test_a_registered_copy_in_numbered_folders_is_refused_too(tmp_path: Path) -> None:
    write_folder(tmp_path / "cifar10", [str(i) for i in range(10)])
    with pytest.raises(DatasetError, match=r"cifar10: the labels are numbers or ids .*`classes=FILE`"):
        load_dataset("cifar10", data_root=tmp_path)
    (tmp_path / "cifar10" / "classnames.txt").write_text("\n".join(f"name {i}" for i in range(10)))
    expected = {i: f"name {i}" for i in range(10)}
    assert name_of_each(load_dataset("cifar10", data_root=tmp_path)) == expected
    write_folder(tmp_path / "imagenet-a", ["0", "1"])
    with pytest.raises(DatasetError, match="numbers or ids"):
        load_dataset("imagenet-a", data_root=tmp_path)


def test_honest_names_with_numbers_pass(tmp_path: Path) -> None:
    for number, names in enumerate(
        [["737", "A320"], ["Boeing 737", "Boeing 747"], ["facade", "decade"], ["707-320", "727-200"]]
    ):
        with noticing() as notices:
            assert load_dataset(write_folder(tmp_path / str(number), names)).class_names == sorted(names)
        assert not notices


@pytest.mark.parametrize("labels", [[0.0, 1.0, 1.0], [0, 1, 2]])
def test_whole_floats_are_integers_and_one_class_of_many_is_enough(tmp_path: Path, labels: list[float]) -> None:
    (tmp_path / "names.txt").write_text("a\nb\nc")
    kind = "float32" if isinstance(labels[0], float) else "int64"
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value(kind)})
    cells = [{"bytes": png(COLOURS[0]), "path": None}] * 3
    datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features).to_parquet(tmp_path / "x.parquet")
    assert load_dataset(str(tmp_path / "x.parquet"), classes=tmp_path / "names.txt").labels.tolist() == labels


def test_one_class_present_of_nine_given_is_fine_in_every_format(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(f"thing {i}" for i in range(9)))
    cells = [{"bytes": png(COLOURS[0]), "path": None}] * 2
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    table = datasets.Dataset.from_dict({"image": cells, "label": ["thing 4"] * 2}, features=features)
    table.to_parquet(tmp_path / "x.parquet")
    write_folder(tmp_path / "folder", ["thing 4"])
    write_tar(tmp_path / "x.tar", [("0.cls", b"thing 4"), ("0.png", png(COLOURS[0]))])
    for name in ("x.parquet", "folder", "x.tar"):
        dataset = load_dataset(str(tmp_path / name), classes=tmp_path / "names.txt")
        assert set(dataset.labels.tolist()) == {4}
        assert len(dataset.class_names) == 9
        with pytest.raises(DatasetError, match="only one class"):
            load_dataset(str(tmp_path / name))


@pytest.mark.parametrize("first", [0, 1, 7])
def test_numbers_before_the_names_of_folders_are_left_out_and_said(tmp_path: Path, first: int) -> None:
    """As in CUB-200: `001.Black_footed_Albatross`."""
    names = [f"{first + i:03d}.{name}" for i, name in enumerate(["Black_footed_Albatross", "Crow", "Auk"])]
    with noticing() as notices:
        data = load_dataset(write_folder(tmp_path, names))
    assert data.class_names == ["Black footed Albatross", "Crow", "Auk"]
    assert [n["kind"] for n in notices] == ["translated"]


def test_names_of_synsets_are_ids_and_zero_width_characters_tell_nothing_apart(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="numbers or ids"):
        load_dataset(write_folder(tmp_path / "a", ["dog.n.01", "cat.n.02"]))
    with pytest.raises(DatasetError, match="duplicate"):
        load_dataset(write_folder(tmp_path / "b", ["fruit", "fruit\u200b"]))
