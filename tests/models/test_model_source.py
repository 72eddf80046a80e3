"""Names: every form, every spelling mistake, and QuickGELU for tags, all without network or weights."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from clipguard.core.errors import ModelError
from clipguard.models import list_models, load_model, parse_source


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, clipguard.models; sys.exit('torch' in sys.modules or 'open_clip' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_forms(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.touch()
    assert parse_source("tiny").kind == "tiny"
    assert parse_source("hf-hub:chs20/fare2-clip").name == "chs20/fare2-clip"
    assert parse_source(f"local-dir:{tmp_path}").kind == "dir"
    tag = parse_source("ViT-B-32-quickgelu:openai")
    assert (tag.kind, tag.name, tag.weights) == ("tag", "ViT-B-32-quickgelu", "openai")
    assert parse_source(f"ViT-B-32:{file}").kind == "file"
    assert parse_source(str(file)).name == ""
    assert parse_source("ViT-B/32:laion2b_s34b_b79k").name == "ViT-B-32"


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("", ["No model is named", "hf-hub:org/repo"]),
        ("tinny", ["Did you mean 'tiny'"]),
        ("ViT-B-32", ["without weights", "ViT-B-32:TAG", "laion2b_s34b_b79k"]),
        ("ViT-B-32:", ["without weights"]),
        ("ViT-B-33:openai", ["Unknown model architecture 'ViT-B-33'", "Did you mean 'ViT-B-32'"]),
        ("hf_hub:org/repo", ["Did you mean 'hf-hub'"]),
        ("ViT-B-32:laion2b_s34b", ["no weights tagged", "Did you mean 'laion2b_s34b_b79k'", "Tags of ViT-B-32:"]),
        ("ViT-B-32:opnai", ["Did you mean 'openai'", "Tags of ViT-B-32-quickgelu: openai"]),
        ("hf-hub:fare2-clip", ["hf-hub:organisation/repository"]),
        ("hf-hub:", ["hf-hub:organisation/repository"]),
        ("chs20/fare2-clip", ["write hf-hub:chs20/fare2-clip"]),
        ("local-dir:", ["names no folder"]),
        ("local-dir:/no/such/folder", ["No folder /no/such/folder"]),
        ("ViT-B-32:/no/such/weights.pt", ["No weight file /no/such/weights.pt"]),
        ("ViT-B-32:weights.safetensors", ["No weight file weights.safetensors"]),
    ],
)
def test_mistakes_name_their_cure(spec: str, parts: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(spec)
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


def test_a_path_without_its_form(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.touch()
    for spec, part in (
        (str(tmp_path), f"write local-dir:{tmp_path}"),
        (f"ViT-B-32:{tmp_path}", f"give local-dir:{tmp_path}"),
        (f"local-dir:{file}", "is a file"),
    ):
        with pytest.raises(ModelError, match=r".") as caught:
            parse_source(spec)
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "use"),
    [
        ("ViT-B-32:openai", "ViT-B-32-quickgelu:openai"),
        ("RN50:openai", "RN50-quickgelu:openai"),
        ("ViT-B-16:dfn2b", "ViT-B-16-quickgelu:dfn2b"),
        ("ViT-L-14:metaclip_400m", "ViT-L-14-quickgelu:metaclip_400m"),
        ("ViT-B-32-quickgelu:laion2b_s34b_b79k", "ViT-B-32:laion2b_s34b_b79k"),
    ],
)
def test_a_tag_of_the_other_activation_is_refused_before_any_download(spec: str, use: str) -> None:
    with pytest.raises(ModelError, match=rf"trained with (Quick)?GELU .* use {use}\."):
        load_model(spec)


def test_list_models_holds_only_names_that_parse(model_folder: Callable[[str], Path]) -> None:  # noqa: ARG001
    names = list_models()
    assert names[0] == "tiny"
    assert "ViT-B-32-quickgelu:openai" in names
    assert "ViT-B-32:openai" not in names
    assert "roberta-ViT-B-32:laion2b_s12b_b32k" in names  # QuickGELU in its architecture, and no twin
    for name in names:
        parse_source(name)


def test_unknown_device(model_folder: Callable[[str], Path]) -> None:
    for device in ("warp", "cuda:99"):
        with pytest.raises(ModelError, match="cannot be used on this machine"):
            load_model(f"local-dir:{model_folder('vit')}", device=device)
