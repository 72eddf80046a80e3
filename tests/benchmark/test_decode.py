"""Protocols of other papers decode as their code does, and results know which way it was."""

from __future__ import annotations

import shlex
from importlib.resources import files
from pathlib import Path

import open_clip
import PIL.Image
import pytest
import torch

import clipguard
from clipguard.benchmark.rerun_command import rerun
from clipguard.benchmark.results.result import BenchResult
from clipguard.cli import run
from clipguard.comparison.comparability import unlike


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Emoji in class folders, all of them stored on their side with the tag that turns them upright."""
    root = tmp_path_factory.mktemp("decode") / "photos"
    data = clipguard.load_dataset("emoji-food")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    for index in range(24):
        folder = root / data.class_names[int(data.labels[index])]
        folder.mkdir(parents=True, exist_ok=True)
        image = data.image(index)
        if index % 2:
            image.save(folder / f"{index}.png")
        else:
            image.transpose(PIL.Image.Transpose.ROTATE_90).save(folder / f"{index}.png", exif=exif)
    return root


def by_open_clip(photos: Path) -> list[int]:
    """Predictions with open_clip's model, transform and tokenizer, and images as PIL alone gives them."""
    tiny = "local-dir:" + str(files("clipguard") / "assets" / "models" / "tiny")
    model, _, transform = open_clip.create_model_and_transforms(tiny)
    model.eval()
    names = sorted(folder.name for folder in photos.iterdir())
    paths = [path for name in names for path in sorted((photos / name).iterdir(), key=lambda p: int(p.stem))]
    with torch.no_grad():
        text = model.encode_text(open_clip.get_tokenizer(tiny)([f"a photo of a {n}." for n in names]), normalize=True)
        pixels = torch.stack([transform(PIL.Image.open(path).convert("RGB")) for path in paths])
        return (model.encode_image(pixels, normalize=True) @ text.T).argmax(dim=1).tolist()


def bench(photos: Path, store: Path | None = None, **options: str) -> BenchResult:
    return clipguard.bench(
        ["tiny"], [str(photos)], attacks=["none"], n_samples=None, templates="single", store=store, **options
    )


def test_a_papers_protocol_sees_the_pixels_that_its_code_sees(photos: Path, tmp_path: Path) -> None:
    ours, fare = bench(photos, tmp_path / "store"), bench(photos, tmp_path / "store", protocol="fare")
    assert fare.samples["clean_pred"].tolist() == by_open_clip(photos)
    assert ours.samples["clean_pred"].tolist() != by_open_clip(photos)
    assert (ours.run["decode"], fare.run["decode"]) == ("upright", "plain")
    assert ours.run["datasets"][str(photos)]["pixels"] == {"rotated": 12}
    assert fare.run["datasets"][str(photos)]["pixels"] == {"not_rotated": 12}
    # The store holds images by their pixels: of the two ways the same 12 images are the same.
    plain = bench(photos, tmp_path / "store", decode="plain")
    assert [r.run["costs"][0]["reused"] for r in (ours, plain)] == [0, 24 - 12]
    assert plain.samples["clean_pred"].tolist() == by_open_clip(photos)


def test_overrides_comparisons_and_reruns_know_the_way(photos: Path) -> None:
    upright, plain = bench(photos).run, bench(photos, decode="plain").run
    assert "decode is upright in BASE and plain in CANDIDATE" in unlike(upright, plain)
    older = {key: value for key, value in upright.items() if key != "decode"}
    assert not any("decode" in reason for reason in unlike(older, upright))
    assert "--decode plain" in rerun(plain).command
    fare = bench(photos, protocol="fare", decode="upright").run
    assert fare["protocol"]["overrides"]["decode"] == "upright"
    assert "--decode upright" in rerun(fare).command
    del fare["plan"]["decode"]  # as of an older clipguard, which had no such field
    del fare["plan"]["overrides"]["decode"]
    assert shlex.split(rerun(fare).command).count("--decode") == 1


def test_image_files_are_decoded_as_asked(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    photo = str(next(photos.glob("*/0.png")))
    command = ["attack", photo, "--classes", "fruit, drink", "--attack", "pgd-2", "--resolution", "native"]
    assert run([*command, "--decode", "plain", "--out", str(tmp_path / "plain")]) == 0
    assert "of 1 images 1 not rotated as their EXIF says" in " ".join(capfd.readouterr().err.split())
    assert run([*command, "--out", str(tmp_path / "upright")]) == 0
    from safetensors.torch import load_file

    clean = [load_file(tmp_path / way / "adversarial.safetensors")["clean"] for way in ("plain", "upright")]
    assert torch.equal(torch.rot90(clean[0], -1, (2, 3)), clean[1])


def test_an_unknown_way_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--decode", "raw"]) == 2
    assert capfd.readouterr().err == "Error: --decode 'raw' is unknown. Use upright or plain.\n"
