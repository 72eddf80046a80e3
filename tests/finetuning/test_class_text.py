"""Tuned text: what training computes is what the exported checkpoint computes, in clipguard and in open_clip."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load, load_file
from text_models import open_clip_embeddings, write_export, write_model
from torch import Tensor
from torch.nn import functional as F

import clipguard
from clipguard.core.errors import FinetuneError, ModelError
from clipguard.finetuning.tuned.class_text import ClassText, fold
from clipguard.models.loading import LoadedModel, load_model
from clipguard.models.text.tuned import ORIGINAL_FILE, TEXT_FILE, LaatMap

TRAINED = ["cat", "dog", "red car", "tree"]
UNSEEN = ["boat", "green house", "aeroplane"]
TEMPLATES = ["a photo of a {}.", "a drawing of the {}"]
EXACT = {"rtol": 0, "atol": 5e-7}  # of unit vectors in float32
TINY = Path(clipguard.__file__).parent / "assets" / "models" / "tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {"tiny": TINY}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = write_model(tmp_path_factory.mktemp("text") / kind, kind)
        return made[kind]

    return get


def tuned_head(loaded: LoadedModel, templates: list[str] = TEMPLATES) -> ClassText:
    side = ClassText(loaded, TRAINED, templates, "head")
    (weight,) = side.tuned_parameters()
    torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(1))
    return side


def mapped(side: ClassText, rows: Tensor) -> Tensor:
    """norm(t0 (I + W)) in float64."""
    (weight,) = side.tuned_parameters()
    return F.normalize(rows.double() @ (torch.eye(len(weight)) + weight.detach()).double(), dim=-1).float()


@pytest.mark.parametrize("kind", ["tiny", "parameter", "linear", "custom-parameter", "custom-linear"])
def test_a_folded_head_is_exact_for_new_names_in_open_clip_itself(
    kind: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    loaded = load_model(f"local-dir:{folder(kind)}")
    side = tuned_head(loaded)
    expected = mapped(side, open_clip_embeddings(folder(kind), UNSEEN, "a {}"))
    trained = side().detach()
    out = write_export(tmp_path / "out", folder(kind), loaded, files := side.export(loaded.model))

    torch.testing.assert_close(open_clip_embeddings(out, UNSEEN, "a {}"), expected, **EXACT)
    exported = load_model(f"local-dir:{out}")
    torch.testing.assert_close(exported.text_features(TRAINED, TEMPLATES).T, trained, **EXACT)
    assert exported.text_map is None
    assert exported.info.text == "tuned, in the weights"

    (name,) = files
    assert name == ORIGINAL_FILE
    changed = set(load(files[name]))
    assert changed <= {f"{p}text_projection{s}" for p in ("", "text.") for s in ("", ".weight", ".bias")}
    original = load_model(f"local-dir:{out}", text="original")
    before = load_model(f"local-dir:{folder(kind)}")
    assert torch.equal(original.text_features(UNSEEN, TEMPLATES), before.text_features(UNSEEN, TEMPLATES))
    assert original.info.text == f"original, from {ORIGINAL_FILE}"
    assert original.info.text_sha256


def test_a_head_folds_into_the_end_of_a_hugging_face_towers_mlp() -> None:
    transformers = pytest.importorskip("transformers")
    from open_clip.hf_model import HFTextEncoder

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.RobertaConfig(vocab_size=50, max_position_embeddings=20, **sizes)
    tokens = torch.tensor([[0, 5, 6, 2], [0, 7, 2, 1]])
    for kind in ("linear", "mlp"):
        torch.manual_seed(0)
        model = torch.nn.Module()
        model.text = HFTextEncoder("roberta", 8, config=config, proj_type=kind).eval()
        weight = 0.1 * torch.randn(8, 8)
        with torch.no_grad():
            before = F.normalize(model.text(tokens), dim=-1)
            assert fold(weight, model)
            after = F.normalize(model.text(tokens), dim=-1)
        torch.testing.assert_close(after, F.normalize(before + before @ weight, dim=-1), **EXACT)
    model.text.proj = torch.nn.Identity()
    assert not fold(weight, model)


def test_a_head_on_a_tower_without_projection_is_kept_beside_the_weights(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    loaded = load_model(f"local-dir:{folder('none')}")
    side = tuned_head(loaded)
    out = write_export(tmp_path / "out", folder("none"), loaded, files := side.export(loaded.model))
    assert set(files) == {TEXT_FILE}
    exported = load_model(f"local-dir:{out}")
    assert exported.info.text == f"tuned, by the linear map in {TEXT_FILE}"
    assert exported.info.text_sha256
    torch.testing.assert_close(exported.text_features(TRAINED, TEMPLATES).T, side().detach(), **EXACT)
    before = open_clip_embeddings(folder("none"), UNSEEN, "a {}")
    torch.testing.assert_close(exported.text_features(UNSEEN, ["a {}"]).T, mapped(side, before), **EXACT)
    assert torch.equal(open_clip_embeddings(out, UNSEEN, "a {}"), before)  # open_clip knows nothing of the file
    original = load_model(f"local-dir:{out}", text="original")
    torch.testing.assert_close(original.text_features(UNSEEN, ["a {}"]).T, before, **EXACT)
    assert original.info.text == f"original, without {TEXT_FILE}"


def test_a_zero_head_is_the_model_itself() -> None:
    """Same embeddings, same predictions, hence CLIP's zero-shot accuracy."""
    loaded, data = load_model("tiny"), clipguard.load_dataset("emoji-food")
    side = ClassText(loaded, data.class_names, data.templates, "head")
    torch.testing.assert_close(side(), side.original, **EXACT)
    classifier = loaded.classifier(data.class_names, data.templates)
    preprocess = loaded.preprocess()
    pixels = torch.stack([preprocess(data.image(i)) for i in range(64)])
    labels = torch.tensor(data.labels[:64])
    with torch.no_grad():
        predicted = (classifier.embed(pixels) @ side().T).argmax(dim=1)
        expected = classifier(pixels).argmax(dim=1)
    assert torch.equal(predicted, expected)
    assert (predicted == labels).float().mean() > 0.3  # and it is an accuracy, not noise
    assert side.export(loaded.model) == {}  # nothing was tuned, so nothing changes


def test_frozen_text_is_the_original_and_leaves_nothing(folder: Callable[[str], Path]) -> None:
    loaded = load_model(f"local-dir:{folder('parameter')}")
    side = ClassText(loaded, TRAINED, TEMPLATES, "frozen")
    assert side() is side.original
    assert torch.equal(side.original, loaded.text_features(TRAINED, TEMPLATES).T)
    assert side.tuned_parameters() == []
    assert side.state_dict() == {}
    assert side.export(loaded.model) == {}


def test_only_what_is_tuned_is_state(folder: Callable[[str], Path]) -> None:
    side = tuned_head(load_model(f"local-dir:{folder('parameter')}"))
    assert set(side.state_dict()) == {"map.weight"}
    again = ClassText(load_model(f"local-dir:{folder('parameter')}"), TRAINED, TEMPLATES, "head")
    again.load_state_dict(side.state_dict())
    assert torch.equal(again(), side())


@pytest.mark.parametrize("kind", ["parameter", "custom-linear"])
def test_a_tuned_encoder_becomes_the_text_tower(kind: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    loaded = load_model(f"local-dir:{folder(kind)}")
    side = ClassText(loaded, TRAINED, TEMPLATES, "encoder")
    torch.testing.assert_close(side(), side.original, **EXACT)
    side.train()
    side()[0, 0].backward()
    with torch.no_grad():
        for parameter in side.tuned_parameters():
            assert parameter.grad is not None
            parameter -= 0.1 * parameter.grad
    assert not any(p.requires_grad or p.grad is not None for p in loaded.model.parameters())
    image_tower = {k: v.clone() for k, v in loaded.model.visual.state_dict().items()}  # type: ignore[union-attr]
    tuned = side().detach()
    assert (tuned - side.original).abs().max() > 1e-3
    out = write_export(tmp_path / "out", folder(kind), loaded, files := side.export(loaded.model))
    assert set(files) == {ORIGINAL_FILE}
    torch.testing.assert_close(load_model(f"local-dir:{out}").text_features(TRAINED, TEMPLATES).T, tuned, **EXACT)
    original = load_model(f"local-dir:{out}", text="original").text_features(TRAINED, TEMPLATES).T
    assert torch.equal(original, side.original)
    assert all(torch.equal(v, image_tower[k]) for k, v in loaded.model.visual.state_dict().items())  # type: ignore[union-attr]


def test_laat_stretches_the_widest_angle_to_ninety_degrees() -> None:
    angles = torch.tensor([-0.4, 0.2, 0.2])  # in one plane
    prompts = torch.stack([angles.cos(), angles.sin(), torch.zeros(3)], dim=1).unsqueeze(1)
    fitted = LaatMap(3).fit(prompts)
    pole = math.atan2(float(fitted.pole[1]), float(fitted.pole[0]))
    widest = abs(-0.4 - pole)
    assert float(fitted.widest) == pytest.approx(widest, rel=1e-5)
    out = fitted(prompts, ["a", "b", "c"]).squeeze(1)
    stretched = torch.atan2(out[:, 1], out[:, 0])
    expected = pole + (angles - pole) * math.pi / 2 / widest
    torch.testing.assert_close(stretched, expected)
    torch.testing.assert_close(out.norm(dim=1), torch.ones(3))
    unseen = torch.tensor([[[math.cos(pole), math.sin(pole), 0.0]]])  # the pole itself stays
    torch.testing.assert_close(fitted(unseen, ["d"]), unseen)


def test_laat_is_kept_beside_the_weights_and_holds_for_new_names(folder: Callable[[str], Path], tmp_path: Path) -> None:
    loaded = load_model(f"local-dir:{folder('parameter')}")
    side = ClassText(loaded, TRAINED, TEMPLATES, "laat")
    assert side.tuned_parameters() == []
    assert side.map is not None
    out = write_export(tmp_path / "out", folder("parameter"), loaded, side.export(loaded.model))
    exported = load_model(f"local-dir:{out}")
    assert exported.info.text == f"tuned, by the laat map in {TEXT_FILE}"
    torch.testing.assert_close(exported.text_features(TRAINED, TEMPLATES).T, side(), **EXACT)
    before = loaded.text_features(UNSEEN, ["a {}"]).T
    expected = side.map(before.unsqueeze(1), UNSEEN).squeeze(1)
    torch.testing.assert_close(exported.text_features(UNSEEN, ["a {}"]).T, expected, **EXACT)
    assert (off_diagonal_mean(side()) + 0.05) < off_diagonal_mean(side.original)

    with pytest.raises(FinetuneError, match=r"tuned already .*laat.* text=frozen"):
        ClassText(exported, TRAINED, TEMPLATES, "head")
    carried = ClassText(exported, TRAINED, TEMPLATES, "frozen")
    torch.testing.assert_close(carried(), side(), **EXACT)
    assert carried.export(exported.model) == {TEXT_FILE: (out / TEXT_FILE).read_bytes()}


def off_diagonal_mean(rows: Tensor) -> float:
    cosines = rows @ rows.T
    return float((cosines.sum() - cosines.trace()) / (len(rows) * (len(rows) - 1)))


def test_a_free_table_scores_its_classes_and_no_other(folder: Callable[[str], Path], tmp_path: Path) -> None:
    loaded = load_model(f"local-dir:{folder('parameter')}")
    names = [*TRAINED, "cat"]  # two classes of one name share a vector, here as in the exported model
    side = ClassText(loaded, names, TEMPLATES, "free")
    torch.testing.assert_close(side(), side.original, **EXACT)
    (table,) = side.tuned_parameters()
    torch.nn.init.normal_(table, generator=torch.Generator().manual_seed(2))
    assert torch.equal(side()[0], side()[4])
    out = write_export(tmp_path / "out", folder("parameter"), loaded, side.export(loaded.model))
    exported = load_model(f"local-dir:{out}")
    assert torch.equal(exported.text_features(names, ["whatever {}"]).T, side())
    assert torch.equal(exported.text_features(["tree", "dog"], TEMPLATES).T, side()[[3, 1]])
    with pytest.raises(ModelError, match="table of its 5 training classes, without 'boat': score it with `text=orig"):
        exported.text_features(["dog", "boat"], TEMPLATES)
    original = load_model(f"local-dir:{out}", text="original")
    assert torch.equal(original.text_features(UNSEEN, TEMPLATES), loaded.text_features(UNSEEN, TEMPLATES))


def test_a_model_without_original_text_says_so() -> None:
    with pytest.raises(ModelError, match="tiny has no original text beside its own: clipguard did not tune its text"):
        load_model("tiny", text="original")
    with pytest.raises(ModelError, match="'old' is unknown; use tuned or original"):
        load_model("tiny", text="old")  # type: ignore[arg-type]


def test_damaged_files_beside_the_weights_are_refused(folder: Callable[[str], Path], tmp_path: Path) -> None:
    loaded = load_model(f"local-dir:{folder('parameter')}")
    files = ClassText(loaded, TRAINED, TEMPLATES, "laat").export(loaded.model)
    out = write_export(tmp_path / "out", folder("parameter"), loaded, files)
    other = ClassText(load_model("tiny"), TRAINED, TEMPLATES, "laat").export(load_model("tiny").model)
    for content in (b"", files[TEXT_FILE][:-4], other[TEXT_FILE], (out / "open_clip_model.safetensors").read_bytes()):
        (out / TEXT_FILE).write_bytes(content)
        with pytest.raises(ModelError, match=f"{TEXT_FILE} is no text map for this model .*export the model again"):
            load_model(f"local-dir:{out}")
    (out / ORIGINAL_FILE).write_bytes(other[TEXT_FILE])
    with pytest.raises(ModelError, match=f"{ORIGINAL_FILE} does not fit this model .no parameter"):
        load_model(f"local-dir:{out}", text="original")
    (out / ORIGINAL_FILE).write_bytes(b"no")
    with pytest.raises(ModelError, match=f"{ORIGINAL_FILE} does not fit this model"):
        load_model(f"local-dir:{out}", text="original")


def test_gradients_reach_the_map_through_every_template(folder: Callable[[str], Path]) -> None:
    """The map acts on prompts, not on their mean: with two templates that is another function."""
    side = tuned_head(load_model(f"local-dir:{folder('parameter')}"))
    side()[0, 0].backward()
    (weight,) = side.tuned_parameters()
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0
    on_the_mean = mapped(side, side.original)
    assert (side() - on_the_mean).abs().max() > 1e-4


def test_state_files_are_plain_safetensors(folder: Callable[[str], Path], tmp_path: Path) -> None:
    loaded = load_model(f"local-dir:{folder('linear')}")
    before = {k: v.clone() for k, v in loaded.model.state_dict().items()}
    out = write_export(tmp_path / "out", folder("linear"), loaded, tuned_head(loaded).export(loaded.model))
    for name, value in load_file(out / ORIGINAL_FILE).items():
        assert torch.equal(value, before[name])
    assert isinstance(open_clip.create_model(f"local-dir:{out}"), open_clip.CLIP)
