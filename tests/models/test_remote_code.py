"""Python files that lie beside a model are never run, whatever its config says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipguard.core.errors import ModelError
from clipguard.models import load_model


@pytest.fixture
def folder(model_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A model whose tokenizer is a Python file beside it, which leaves a mark when it is run."""
    made = Path(shutil.copytree(model_folder("vit"), tmp_path / "model"))
    auto = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (made / "tokenizer_config.json").write_text(json.dumps(auto))
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom transformers import PreTrainedTokenizer as Evil\n"
    (made / "evil.py").write_text(code)
    return made


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"tokenizer_kwargs": {"trust_remote_code": True}}, "has trust_remote_code in its config"),
        ({}, "Cannot load the tokenizer"),  # transformers would ask on the terminal
    ],
)
def test_a_tokenizer_of_code_is_refused(
    folder: Path, text: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "some/name", **text}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("nobody is asked"))
    with pytest.raises(ModelError, match=message):
        load_model(f"local-dir:{folder}")
    assert not (folder.parent / "ran").exists()
