"""The field's data sets by name: copies in each layout, class names, prompts, groups, and one's own in one file."""

from __future__ import annotations

import logging
from pathlib import Path

import datasets
import pytest
from dataset_files import COLOURS, png, samples, write_clip_benchmark, write_tar

from clipguard.benchmark.protocols import PROTOCOLS
from clipguard.core.errors import DatasetError, SplitError
from clipguard.data import ZeroShotDataset, expand_groups, load_dataset, load_images
from clipguard.data.availability import check_registry
from clipguard.data.classes.names import MENDED, style_names
from clipguard.data.registry import groups, registry

PCAM = ["lymph node", "lymph node containing metastatic tumor tissue"]


def check_images(dataset: ZeroShotDataset, labels: list[int]) -> None:
    assert dataset.labels.tolist() == labels
    for index, label in enumerate(labels):
        assert dataset.image(index).getpixel((0, 0)) == COLOURS[label]


def test_entries_are_complete() -> None:
    assert len(registry()) == 22
    for entry in registry().values():
        assert entry.size
        assert entry.classes
        assert entry.single.count("{}") == 1
        assert entry.source is None or entry.source.startswith(("wds:clip-benchmark/wds_", "hf:"))
        assert entry.source or "copy" in entry.cure(None)
        assert entry.tecoa_names is None or len(entry.tecoa_names) == entry.classes
    assert {name for name, entry in registry().items() if entry.native} == {"cifar10", "cifar100", "stl10"}


def test_groups_name_data_sets_that_exist_and_expand_to_each_once() -> None:
    sizes = {"fare13": 13, "tecoa16": 16, "pmg16": 16, "ttc17": 17, "imagenet-shift": 4, "embedded": 4}
    assert {name: len(set(members)) for name, members in groups().items()} == sizes
    assert {name: len(members) for name, members in groups().items()} == sizes
    for name, members in groups().items():
        if name != "embedded":
            assert set(members) <= set(registry())
    both = expand_groups(["dtd", "fare13", "imagenet-shift"])
    assert len(both) == len(set(both)) == 13 + 2
    assert both[0] == "dtd"
    assert expand_groups(["a", "a"]) == ["a", "a"]  # a plan refuses what was typed twice
    assert {p.datasets for p in PROTOCOLS.values()} <= set(groups())


def test_a_copy_laid_out_as_the_web_dataset(tmp_path: Path) -> None:
    write_clip_benchmark(tmp_path / "pcam")
    (tmp_path / "pcam" / "classnames.txt").write_text("\n".join(PCAM))
    dataset = load_dataset("pcam", data_root=tmp_path)
    check_images(dataset, [0, 1, 1, 0])
    assert (dataset.name, dataset.source, dataset.split) == ("pcam", str(tmp_path / "pcam"), "test")
    assert dataset.class_names == PCAM
    assert dataset.templates == ["a blurry photo of {}.", "a photo of {}."]
    tecoa = load_dataset("pcam", data_root=tmp_path, templates="single", class_names="tecoa")
    prompts = [tecoa.templates[0].replace("{}", name) for name in tecoa.class_names]
    assert prompts == [
        "This is a photo of healthy lymph node tissue.",
        "This is a photo of lymph node tumor tissue.",
    ]
    assert load_dataset("pcam", data_root=tmp_path, split="train").labels.tolist() == [0, 1]
    assert len(load_images("pcam", data_root=tmp_path)) == 4


@pytest.mark.parametrize(
    ("name", "prompts"), [("cifar10", 18), ("stanford-cars", 8), ("dtd", 8), ("caltech101", 34), ("eurosat", 3)]
)
def test_ensembles_are_as_long_as_clip_benchmark_s(name: str, prompts: int) -> None:
    ensemble = registry()[name].ensemble
    assert ensemble is not None
    assert len(set(ensemble)) == prompts


def test_a_set_without_usual_prompts_gets_those_for_any_photo(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("001.ak47", "002.american-flag"):
        (tmp_path / "caltech256" / name).mkdir(parents=True)
        (tmp_path / "caltech256" / name / "0.png").write_bytes(png(COLOURS[0]))
    with caplog.at_level(logging.WARNING, logger="clipguard"):
        assert len(load_dataset("caltech256", data_root=tmp_path).templates) == 7
    assert "no zeroshot_classification_templates.txt" in caplog.text


def test_a_copy_in_parquet_and_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["apple_pie", "beef_tartare"])}
    )
    cells = [{"bytes": png(colour), "path": None} for colour in COLOURS]
    (tmp_path / "food101").mkdir()
    table = datasets.Dataset.from_dict({"img": cells, "label": [0, 1]}, features=features)
    table.to_parquet(tmp_path / "food101" / "validation-00000-of-00001.parquet")
    monkeypatch.setenv("CLIPGUARD_DATA", str(tmp_path))
    with caplog.at_level(logging.WARNING, logger="clipguard"):
        dataset = load_dataset("food101")
    check_images(dataset, [0, 1])
    assert (dataset.split, dataset.class_names) == ("validation", ["apple pie", "beef tartare"])
    assert dataset.templates == ["a photo of {}, a type of food."]  # the set's own of CLIP's paper
    assert [record.getMessage() for record in caplog.records] == [
        "food101: 2 of 2 class names are not as they came with the data: 'apple_pie' is 'apple pie'; "
        "--classes FILE gives others"
    ]
    (tmp_path / "food101" / "zeroshot_classification_templates.txt").write_text("{c} on a plate.\n")
    assert load_dataset("food101").templates == ["{} on a plate."]  # what comes with the copy wins
    assert load_dataset("food101", templates="single").templates == ["A photo of {}, a type of food."]


def write_folder(root: Path, classes: list[str]) -> None:
    for name, colour in zip(classes, COLOURS, strict=True):
        (root / name).mkdir(parents=True)
        (root / name / "0.png").write_bytes(png(colour))


def test_a_copy_in_class_folders(tmp_path: Path) -> None:
    write_folder(tmp_path / "caltech256", ["001.ak47", "251.airplanes-101"])
    assert load_dataset("caltech256", data_root=tmp_path).class_names == ["ak47", "airplanes"]
    write_folder(tmp_path / "imagenet" / "val", ["n01440764", "n02113186"])
    dataset = load_dataset("imagenet", data_root=tmp_path)
    check_images(dataset, [0, 1])
    assert (dataset.class_names, dataset.split) == (["tench", "Cardigan Welsh Corgi"], "val")
    assert len(dataset.templates) == 80
    tecoa = load_dataset("imagenet", data_root=tmp_path, class_names="tecoa")
    assert tecoa.class_names == ["tench", "cardigan"]  # alone among these two, so not mended
    write_folder(tmp_path / "tiny-imagenet" / "val", ["n00000001", "n02113186"])
    with pytest.raises(DatasetError, match=r"tiny-imagenet: n00000001 is no WordNet id.*`classes"):
        load_dataset("tiny-imagenet", data_root=tmp_path)


def test_a_path_here_of_the_same_name_is_not_taken_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "caltech256", ["001.ak47", "002.flag"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=r"caltech256: a data set of the field and a path here; write ./caltech256"):
        load_dataset("caltech256")
    assert load_dataset("./caltech256").class_names == ["ak47", "flag"]
    assert load_dataset("caltech256", data_root=Path()).class_names == ["ak47", "flag"]


def doubles(names: list[str]) -> dict[str, list[int]]:
    return {n: [i for i, other in enumerate(names) if other == n] for n in names if names.count(n) > 1}


def test_duplicate_imagenet_names_are_mended_or_kept() -> None:
    folders = [str(i) for i in range(1000)]  # as ImageNet-V2 comes
    assert doubles(style_names(folders, "source", imagenet=True, raw=True)) == {}
    assert doubles(style_names(folders, "tecoa", imagenet=True, raw=True)) == {}
    kept = style_names(folders, "source", imagenet=True, raw=True, duplicates=True)
    assert doubles(kept) == {"missile": [657, 744], "sunglasses": [836, 837]}
    tecoa = style_names(folders, "tecoa", imagenet=True, raw=True, duplicates=True)
    assert doubles(tecoa) == {"crane": [134, 517], "cardigan": [264, 474], "maillot": [638, 639]}
    mended = style_names(kept, "source", imagenet=True)  # as classnames.txt of the web dataset has them
    assert {i: (a, b) for i, (a, b) in enumerate(zip(kept, mended, strict=True)) if a != b} == {
        744: ("missile", "projectile"),
        836: ("sunglasses", "sunglass"),
    }
    assert set(MENDED["tecoa"].values()) < set(style_names(folders, "tecoa", imagenet=True))


def test_a_web_dataset_with_duplicate_names_opens(tmp_path: Path) -> None:
    kept = style_names([str(i) for i in range(1000)], "source", imagenet=True, duplicates=True)
    write_tar(
        tmp_path / "imagenet" / "test" / "0.tar",
        [(n, b"744") if n.endswith("cls") else (n, b) for n, b in samples([0, 1])],
    )
    (tmp_path / "imagenet" / "classnames.txt").write_text("\n".join(kept))
    dataset = load_dataset("imagenet", data_root=tmp_path)
    assert dataset.class_names[dataset.labels[0]] == "projectile"
    again = load_dataset("imagenet", data_root=tmp_path, duplicate_names=True)
    assert again.class_names == kept
    with pytest.raises(DatasetError, match="duplicate class names"):
        load_dataset(str(tmp_path / "imagenet"))


OWN = """
source = "pictures"
class_names = ["cat", "dog"]
templates = ["a drawing of a {}.", "a sketch of a {c}."]
single = "a drawing of a {}"
notes = "mine"
"""


def test_a_set_of_ones_own_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "pictures", ["a", "b"])
    (tmp_path / "mine.toml").write_text(OWN)
    monkeypatch.chdir(tmp_path.parent)  # paths are meant from the file
    name = f"{tmp_path.name}/mine.toml"
    dataset = load_dataset(name)
    check_images(dataset, [0, 1])
    assert (dataset.name, dataset.class_names) == (name, ["cat", "dog"])
    assert dataset.templates == ["a drawing of a {}.", "a sketch of a {}."]
    assert load_dataset(name, templates="single").templates == ["a drawing of a {}"]
    (tmp_path / "names.txt").write_text("hund\nkatze")
    (tmp_path / "mine.yaml").write_text("source: pictures\nclass_names: names.txt\nsplit: all")
    assert load_dataset(str(tmp_path / "mine.yaml")).class_names == ["hund", "katze"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('notes = "x"', "it has no `source`"),
        ('source = "pictures"\nclassnames = ["a", "b"]', r"no key 'classnames'. Did you mean 'class_names'"),
        ('source = "pictures"\nclass_names = [1, 2]', "class_names = .* is not of the right kind"),
        ('source = "pictures"\nnative = "yes"', "native = 'yes' is not of the right kind"),
        ('source = "pictures"\nclass_names = ["a", "a"]', "duplicate class names: 'a'"),
        ('source = "pictures"\nclass_names = "none.txt"', "cannot read .*none.txt"),
        ('source = "pictures"\ntemplates = ["a photo"]', "templates must hold one"),
        ('source = "pictures"\nsingle = "{} {}"', "single must hold one"),
        ('source = "elsewhere"', "no such file or folder"),
        ('source = "pictures"\nsplit = "dev"', "no split 'dev'"),
    ],
)
def test_bad_files_of_ones_own(tmp_path: Path, content: str, message: str) -> None:
    write_folder(tmp_path / "pictures", ["a", "b"])
    (tmp_path / "mine.toml").write_text(content)
    with pytest.raises(DatasetError, match=f"mine.toml: .*{message}"):
        load_dataset(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar1O", {}, "Did you mean 'cifar10'"),
        ("fare13", {}, "a group of data sets .*name one"),
        ("cifar10", {"class_names": "mine"}, "`class_names` 'mine' is unknown; use source or tecoa"),
        ("cifar10", {"data_root": Path("none")}, "none is no folder"),
        ("caltech256", {}, "no public source .*DIR/caltech256 and say `data_root=DIR`"),
        ("wds:org", {}, "is written wds:org/name"),
    ],
)
def test_bad_names_say_the_cure(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(DatasetError, match=f"{name}: .*{message}"):
        load_dataset(name, **options)  # type: ignore[arg-type]


@pytest.fixture
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.usefixtures("_offline")
def test_without_a_network_the_cure_is_a_copy(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"cifar10: .*cannot be reached.*put a copy into .*/cifar10"):
        load_dataset("cifar10", data_root=tmp_path)
    with pytest.raises(DatasetError, match=r"tiny-imagenet: .*cannot be reached.*put a copy into DIR/tiny-imagenet"):
        load_dataset("tiny-imagenet")


@pytest.mark.usefixtures("_offline")
def test_a_web_dataset_in_the_hubs_cache(tmp_path: Path) -> None:
    repo = tmp_path / "hub" / "datasets--clip-benchmark--wds_vtab-pcam"
    write_clip_benchmark(repo / "snapshots" / ("5" * 40))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("5" * 40)
    dataset = load_dataset("pcam")
    check_images(dataset, [0, 1, 1, 0])
    assert dataset.source == f"clip-benchmark/wds_vtab-pcam@{'5' * 40}"
    assert load_dataset("wds:clip-benchmark/wds_vtab-pcam", split="train").labels.tolist() == [0, 1]
    with pytest.raises(SplitError, match=r"pcam: no split 'val' in .* as far as it is cached"):
        load_dataset("pcam", split="val")
    found = {a.name: a for a in check_registry()}
    assert found["pcam"].available
    assert not found["dtd"].available


@pytest.mark.usefixtures("_offline")
def test_check_says_what_is_missing_and_where_to_put_it(tmp_path: Path) -> None:
    write_clip_benchmark(tmp_path / "dtd")
    (tmp_path / "stl10").mkdir()
    (tmp_path / "stl10" / "README.md").write_text("soon")
    found = {a.name: a for a in check_registry(tmp_path)}
    assert list(found) == list(registry())
    assert [name for name, a in found.items() if a.available] == ["dtd"]
    assert found["dtd"].where == f"{tmp_path / 'dtd'} (tar files)"
    assert "holds no parquet, arrow, tar or image files" in found["stl10"].where
    assert f"put a copy into {tmp_path / 'cifar10'}" in found["cifar10"].where
    assert "256_ObjectCategories.tar" in found["caltech256"].where


def test_the_documentation_lists_the_registry_and_its_example_works(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
    table = text.partition("<!-- registry -->")[2].partition("<!-- end -->")[0].strip().splitlines()[2:]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table]
    assert rows == [
        [e.name, f"{e.size:,}", f"{e.classes:,}", e.source or "a copy", e.single] for e in registry().values()
    ]
    assert all(f"`{e.name}`: {e.notes}." in text for e in registry().values() if e.notes)
    write_folder(tmp_path / "pictures" / "test", ["a", "b"])
    (tmp_path / "mine.toml").write_text(text.partition("```toml\n")[2].partition("```")[0])
    dataset = load_dataset(str(tmp_path / "mine.toml"))
    assert (dataset.class_names, dataset.split) == (["tabby cat", "sheepdog"], "test")
