"""Which images are trained on, in which order, and what is done to them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from training_runs import make_config, write_images, write_vit

from clipguard.core.errors import DatasetError, FinetuneError
from clipguard.core.notices import noticing
from clipguard.core.progress import Silent
from clipguard.finetuning.config import FinetuneConfig
from clipguard.finetuning.data import images as training_images
from clipguard.finetuning.data.augmentation import crop_and_mirror
from clipguard.finetuning.data.batches import choose_decoders, load_batches
from clipguard.finetuning.data.images import TrainingImages
from clipguard.finetuning.data.sampler import ResumableBatchSampler
from clipguard.finetuning.data.training_data import divide, open_data
from clipguard.finetuning.processes.team import Team
from clipguard.models import load_model

ANIMALS = make_config("tiny", "emoji-animals")


def test_validation_images_come_from_the_training_split_and_are_not_trained_on() -> None:
    data = open_data(ANIMALS, needs_labels=True)
    assert data.images.split == "train"
    assert data.held_out is not None
    assert data.held_out.split == "test"
    assert (len(data.train), len(data.validation)) == (545, 61)
    assert sorted([*data.train, *data.validation]) == list(range(606))
    assert data.labels is not None
    assert len(np.unique(data.labels[data.validation])) == 13  # stratified
    other = open_data(replace(ANIMALS, seed=1), needs_labels=True)
    assert set(other.validation) != set(data.validation)


def test_a_gpu_gets_as_many_processes_as_its_batches_take_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    augmented = replace(ANIMALS, augment="standard")
    assert [choose_decoders(ANIMALS, cached, cpu) for cached in (True, False)] == [0, 12]
    assert [choose_decoders(ANIMALS, cached, cuda) for cached in (True, False)] == [2, 12]
    assert choose_decoders(augmented, True, cuda) == 12
    assert choose_decoders(replace(ANIMALS, decoders=5), True, cpu) == 5


def test_n_samples_limits_both_parts() -> None:
    data = open_data(replace(ANIMALS, n_samples=50), needs_labels=True)
    assert (len(data.train), len(data.validation)) == (45, 5)
    with pytest.raises(FinetuneError, match="too few"):
        divide(replace(ANIMALS, n_samples=2, val_fraction=0.9), np.zeros(9, dtype=np.int64), 1)


def test_test_data_is_never_trained_on_unless_named(tmp_path: Path) -> None:
    write_images(tmp_path / "test")
    config = make_config("tiny", str(tmp_path))
    with pytest.raises(DatasetError, match="no split 'train'"):
        open_data(config, needs_labels=True)
    named = open_data(replace(config, split="test"), needs_labels=True)
    assert named.held_out is None  # it is the only split, and trained on


@pytest.mark.parametrize("needs_labels", [True, False])
def test_named_sets_are_found_in_the_folder_of_copies(tmp_path: Path, needs_labels: bool) -> None:
    for split in ("train", "test"):
        write_images(tmp_path / "caltech256" / split)
    config = replace(make_config("tiny", "caltech256"), data_root=str(tmp_path))
    data = open_data(config, needs_labels=needs_labels)
    assert data.images.split == "train"
    assert data.held_out is not None
    with pytest.raises(DatasetError, match="caltech256"):
        open_data(replace(config, data_root=str(tmp_path / "elsewhere")), needs_labels=needs_labels)


def test_any_folder_of_images_serves_methods_without_labels(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    for number, path in enumerate(sorted(Path(folder).rglob("*.png"))):
        path.rename(Path(folder) / f"{number}.png")
    for empty in list(Path(folder).glob("kind*")):
        shutil.rmtree(empty)
    config = make_config("tiny", folder, method="fare")
    with noticing() as notices:
        data = open_data(config, needs_labels=False)
    assert [n["kind"] for n in notices] == ["skipped"]
    assert "fare needs no labels and is trained without, for they cannot be read: " in notices[0]["text"]
    assert data.labels is None
    assert data.class_names == []
    assert len(data.train) + len(data.validation) == 24
    with pytest.raises(DatasetError, match=r"class/x\.jpg"):
        open_data(config, needs_labels=True)


def test_numbered_class_folders_are_not_trained_on_as_names(tmp_path: Path) -> None:
    folder = Path(write_images(tmp_path / "images"))
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / str(number))
    classes = len(list(folder.iterdir()))
    config = make_config("tiny", str(folder))
    with pytest.raises(DatasetError, match=r"numbers or ids without class names .* give `classes=FILE`"):
        open_data(config, needs_labels=True)
    (tmp_path / "names.txt").write_text("\n".join(f"kind {i}" for i in range(classes)))
    data = open_data(replace(config, classes=str(tmp_path / "names.txt")), needs_labels=True)
    assert data.class_names == [f"kind {i}" for i in range(classes)]


def sampler(**changes: object) -> ResumableBatchSampler:
    base = ResumableBatchSampler(np.arange(10, 17), seed=3, batch_size=4, accumulate=1, steps=6)
    return replace(base, **changes)  # type: ignore[arg-type]


def test_every_image_is_seen_once_an_epoch() -> None:
    seen = [visit for batch in sampler(steps=7) for visit in batch]
    assert len(seen) == 28
    for epoch in range(4):
        assert sorted(i for e, i in seen if e == epoch) == list(range(10, 17))
    assert [i for e, i in seen if e == 0] != [i for e, i in seen if e == 1]


def test_a_step_takes_the_same_images_wherever_one_starts_and_however_they_are_divided() -> None:
    whole = list(sampler())
    assert list(sampler(start=4)) == whole[4:]
    halves = list(sampler(batch_size=2, accumulate=2))
    assert [a + b for a, b in zip(halves[::2], halves[1::2], strict=True)] == whole
    for n in (2, 3, 4):
        parts = [list(sampler(team=Team(rank, n))) for rank in range(n)]
        assert [[visit for batch in batches for visit in batch] for batches in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize("augment", ["none", "standard"])
def test_workers_and_cache_change_no_pixel(augment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(write_vit(tmp_path / "vit"), write_images(tmp_path / "d", size=20), augment=augment)
    data = open_data(config, needs_labels=True)
    preprocess = load_model(config.model).preprocess()
    cached, decoded = TrainingImages(data, preprocess, config), TrainingImages(data, preprocess, config)
    assert cached.cache(data.train, Silent())
    monkeypatch.setattr(training_images, "CACHED_BYTES", 10)
    assert not decoded.cache(data.train, Silent())
    plan = ResumableBatchSampler(data.train, 0, 4, 1, 3)
    batches = zip(plan, load_batches(cached, plan, 0), load_batches(decoded, plan, 1), strict=True)
    for planned, one, other in batches:
        pixels = one.to(torch.device("cpu")).pixels
        assert torch.equal(pixels, other.to(torch.device("cpu")).pixels)
        if augment == "none":
            assert torch.equal(pixels, torch.stack([preprocess(data.images.image(index)) for _, index in planned]))
        assert one.keys == other.keys
        assert one.labels is not None
        assert data.labels is not None
        assert one.labels.tolist() == data.labels[[index for _, index in planned]].tolist()


def test_augmentation_depends_on_its_key_alone_and_stays_in_range() -> None:
    pixels = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0))
    views = [crop_and_mirror(pixels, key) for key in range(20)]
    assert all(view.shape == pixels.shape and view.min() >= 0 and view.max() <= 1 for view in views)
    assert torch.equal(views[3], crop_and_mirror(pixels, 3))
    assert not torch.equal(views[3], views[4])
    constant = torch.full((3, 8, 8), 0.5)
    assert torch.allclose(crop_and_mirror(constant, 7), constant)  # nothing but the picture is shown


def test_the_fingerprint_sees_pixels_labels_and_names(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "d")
    config = FinetuneConfig(dataset=folder)
    before = open_data(config, needs_labels=True).fingerprint()
    assert open_data(config, needs_labels=True).fingerprint() == before
    (tmp_path / "d" / "kind 0" / "0.png").write_bytes((tmp_path / "d" / "kind 0" / "1.png").read_bytes())
    assert open_data(config, needs_labels=True).fingerprint() != before
    assert open_data(config, needs_labels=True).fingerprint() != before


def test_what_decoding_does_to_training_images_is_said(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    first = sorted((tmp_path / "train").rglob("*.png"))[0]
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.open(first).save(first, exif=exif)
    data = open_data(make_config("tiny", str(tmp_path)), needs_labels=True)
    with noticing() as notices:
        data.fingerprint()
    assert [n["kind"] for n in notices] == ["rescaled"]
    assert " 1 rotated as their EXIF says" in notices[0]["text"]
