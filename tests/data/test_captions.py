"""Captions from real files: tables, web datasets, folders and the embedded emoji; and what is refused."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from clipguard.core.errors import CaptionError, DatasetError
from clipguard.data import load_dataset, load_images


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), shade, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path: Path, columns: Mapping[str, list[object]]) -> str:
    images = [{"bytes": png(i), "path": None} for i in range(len(next(iter(columns.values()))))]
    features = datasets.Dataset.from_dict({"image": images, **columns}).cast_column("image", datasets.Image())
    features.to_parquet(path)
    return str(path)


def write_tar(path: Path, members: Mapping[str, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def captions_of(name: str, **settings: str) -> list[tuple[str, ...]]:
    captions = load_images(name, captions=True, **settings).captions  # type: ignore[arg-type]
    assert captions is not None
    return list(captions)


def test_a_table_s_caption_column_is_found_or_named(tmp_path: Path) -> None:
    columns = {"url": ["u", "v"], "TEXT": [" a  red cat", "a dog\n"], "tags": [["x"], ["y", "z "]]}
    table = write_parquet(tmp_path / "pairs.parquet", columns)  # type: ignore[arg-type]
    assert captions_of(table) == [("a red cat",), ("a dog",)]
    assert captions_of(table, caption_column="url") == [("u",), ("v",)]
    assert captions_of(table, caption_column="tags") == [("x",), ("y", "z")]
    assert load_images(table).captions is None


def test_labels_and_captions_of_one_table(tmp_path: Path) -> None:
    columns = {"label": ["cat", "dog"], "caption": ["a red cat", "a dog"]}
    table = load_dataset(write_parquet(tmp_path / "pairs.parquet", columns), captions=True)  # type: ignore[arg-type]
    assert table.captions == [("a red cat",), ("a dog",)]
    assert table.labels.tolist() == [0, 1]


def test_web_datasets_have_captions_in_text_or_json(tmp_path: Path) -> None:
    pairs = {f"{i:03}.{kind}": content for i in range(3) for kind, content in (("png", png(i)), ("txt", b" shade \n"))}
    pairs |= {
        f"{i:03}.json": json.dumps({"url": "u", "caption": f"json {i}", "alt": f"alt {i}"}).encode() for i in range(3)
    }
    both = write_tar(tmp_path / "both.tar", pairs)
    assert captions_of(both) == [("shade",)] * 3
    assert captions_of(both, caption_column="alt") == [("alt 0",), ("alt 1",), ("alt 2",)]
    alone = write_tar(tmp_path / "json.tar", {name: c for name, c in pairs.items() if not name.endswith("txt")})
    assert captions_of(alone) == [("json 0",), ("json 1",), ("json 2",)]
    labelled = write_tar(tmp_path / "labelled.tar", pairs | {f"{i:03}.cls": (b"cat", b"dog")[i % 2] for i in range(3)})
    loaded = load_dataset(labelled, captions=True)
    assert (loaded.captions, loaded.class_names) == ([("shade",)] * 3, ["cat", "dog"])
    assert loaded.image(2).getpixel((0, 0)) == (2, 2, 2)


def test_folders_have_captions_in_a_list_or_beside_the_images(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(png(i))
        (tmp_path / f"{i}.txt").write_text(f"beside {i}\n")
    assert captions_of(str(tmp_path)) == [("beside 0",), ("beside 1",)]
    (tmp_path / "metadata.csv").write_text('file_name,text\n1.png,listed 1\n0.png,"listed, 0"\n')
    assert captions_of(str(tmp_path)) == [("listed, 0",), ("listed 1",)]
    lines = [{"file_name": f"{i}.png", "caption": f"line {i}", "other": "x"} for i in range(2)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert captions_of(str(tmp_path)) == [("line 0",), ("line 1",)]
    assert captions_of(str(tmp_path), caption_column="other") == [("x",), ("x",)]


def test_emoji_have_their_names() -> None:
    animals = load_dataset("emoji-animals", split="train", captions=True)
    assert animals.captions is not None
    assert animals.captions[0] == ("a drawing of a rooster.",)
    assert len(animals.captions) == len(animals) == 606
    styles = load_dataset("emoji-animals", split="train", captions=True, caption_column="style")
    assert styles.captions is not None
    assert styles.captions[0] == ("noto",)


@pytest.mark.parametrize(
    ("columns", "named", "kind", "message"),
    [
        ({"url": ["u", "v"]}, None, CaptionError, "it has no captions; name their column with `caption_column`"),
        ({"text": ["u", "v"], "caption": ["w", "x"]}, None, CaptionError, "2 columns could be the captions"),
        ({"text": ["u", "v"]}, "txet", DatasetError, "no column 'txet' for `caption_column`. Did you mean 'text'?"),
        ({"text": ["u", "v"], "n": [1, 2]}, "n", DatasetError, "column 'n' holds no text; name another"),
        ({"text": ["u", " "]}, None, DatasetError, "row 1 of column 'text' has no caption (1 of 2 rows); remove"),
        ({"text": [None, "u"]}, None, DatasetError, "row 0 of column 'text' has no caption"),
    ],
)
def test_tables_without_usable_captions(
    tmp_path: Path, columns: dict[str, list[object]], named: str | None, kind: type[DatasetError], message: str
) -> None:
    table = write_parquet(tmp_path / "pairs.parquet", columns)
    with pytest.raises(kind) as error:
        load_images(table, captions=True, caption_column=named)
    assert message in str(error.value)
    assert str(error.value).startswith(table)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("members", "named", "message"),
    [
        ({}, None, "its images have no captions; store that of x.jpg as x.txt"),
        ({"0.txt": b"a cat"}, None, "1.png has no caption (1 of 2 rows)"),
        ({"0.txt": b"\xff\xfe\x00", "1.txt": b"a"}, None, "0.txt is not UTF-8 text"),
        ({"0.json": b"{", "1.json": b"{}"}, None, "0.json is no JSON"),
        ({"0.json": b'{"a": "x"}', "1.json": b'{"b": "x"}'}, "a", "1.json has no 'a' for `caption_column`. It has b."),
    ],
)
def test_tars_without_usable_captions(
    tmp_path: Path, members: dict[str, bytes], named: str | None, message: str
) -> None:
    tar = write_tar(tmp_path / "pairs.tar", {"0.png": png(0), "1.png": png(1), **members})
    with pytest.raises(DatasetError) as error:
        load_images(tar, captions=True, caption_column=named)
    assert message in str(error.value)


def test_folders_without_usable_captions(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    with pytest.raises(CaptionError, match=r"its images have no captions; write them to .*metadata.jsonl"):
        load_images(str(tmp_path), captions=True)
    (tmp_path / "0.txt").write_text("a cat")
    with pytest.raises(DatasetError, match=r"1.png has no caption \(1 of 2 rows\)"):
        load_images(str(tmp_path), captions=True)
    (tmp_path / "metadata.csv").write_text("name,text\n0.png,a cat\n")
    with pytest.raises(CaptionError, match="has no 'file_name'"):
        load_images(str(tmp_path), captions=True)
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,a cat\n")
    with pytest.raises(DatasetError, match=r"1.png, as .*metadata.csv lists it, has no caption"):
        load_images(str(tmp_path), captions=True)
    (tmp_path / "metadata.jsonl").write_text("no json\n")
    with pytest.raises(DatasetError, match="is no JSON object; write one a line"):
        load_images(str(tmp_path), captions=True)
