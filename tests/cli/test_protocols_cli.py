"""Protocols and named data sets on the command line."""

from __future__ import annotations

import io
import json
import tarfile
import time
from pathlib import Path

import pytest
from PIL import Image

from clipguard.benchmark.protocols import PROTOCOLS
from clipguard.cli import run
from clipguard.data.registry import registry


@pytest.fixture(autouse=True)
def _in_an_empty_folder_without_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLIPGUARD_DATA", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "no-hub"))


@pytest.fixture
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10 as its web dataset, with four images of 32 x 32."""
    root = tmp_path_factory.mktemp("data")
    (root / "cifar10" / "test").mkdir(parents=True)
    with tarfile.open(root / "cifar10" / "test" / "0.tar", "w") as tar:
        for label in range(4):
            png = io.BytesIO()
            Image.new("RGB", (32, 32), (60 * label, 0, 90)).save(png, "PNG")
            for suffix, content in (("cls", str(label).encode()), ("png", png.getvalue())):
                member = tarfile.TarInfo(f"s{label:07d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    (root / "cifar10" / "test" / "nshards.txt").write_text("1")
    (root / "cifar10" / "classnames.txt").write_text("airplane\nautomobile\nbird\ncat\n")
    (root / "cifar10" / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    return root


def test_a_protocol_on_a_copy(copies: Path, capfd: pytest.CaptureFixture[str]) -> None:
    named = ["-d", "cifar10", "--data-root", str(copies)]
    assert run(["bench", *named, "--protocol", "pmg", "--logit-scale", "1", "-f", "json", "--out", "r"]) == 0
    result = json.loads(capfd.readouterr().out)["run"]
    assert result["protocol"] == {"name": "pmg", "overrides": {"logit_scale": 1.0}}
    assert list(result["attacks"]) == ["pgd-10(step_size=1)"]
    assert (result["eps"], result["resolution"], result["resize"]) == ([1.0], "mixed", "crop256")
    assert result["datasets"]["cifar10"]["templates"] == ["This is a photo of a {}"]
    assert result["datasets"]["cifar10"]["source"] == str(copies / "cifar10")


def test_attack_takes_the_protocols_last_attack_and_largest_eps(
    copies: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLIPGUARD_DATA", str(copies))
    small = ["-d", "cifar10", "-n", "2", "-f", "json"]
    assert run(["attack", *small, "--protocol", "fare", "--attack", "pgd-2", "--out", "a"]) == 0
    result = json.loads(capfd.readouterr().out)["run"]
    assert result["eps"] == [4.0]
    assert result["protocol"]["overrides"] == {"attacks": ["pgd-2"], "eps": [4.0], "n_samples": 2}
    assert run(["attack", *small, "--protocol", "tecoa", "--out", "b"]) == 0
    assert list(json.loads(capfd.readouterr().out)["run"]["attacks"]) == ["pgd-100(step_size=1)"]


def test_a_group_stands_for_its_members(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "-d", "embedded", "-d", "emoji-food", "-a", "none", "-n", "2", "-f", "json", "-o", "r"]) == 0
    names = list(json.loads(capfd.readouterr().out)["run"]["datasets"])
    assert sorted(names) == ["emoji-animals", "emoji-food", "emoji-objects", "emoji-travel"]


def test_lists(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "datasets"]) == 0
    out = capfd.readouterr().out
    assert all(f"\n{name} " in out for name in (*registry(), "fare13", "tecoa16"))
    assert "wds:clip-benchmark/wds_vtab-cifar10" in out
    assert run(["list", "protocols"]) == 0
    out = capfd.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[: len(PROTOCOLS)]] == list(PROTOCOLS)


def test_check_without_a_network_is_quick_and_says_what_is_missing(
    copies: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    start = time.perf_counter()
    assert run(["list", "datasets", "--check", "--data-root", str(copies)]) == 1
    assert time.perf_counter() - start < 20
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == f"ok       cifar10          {copies / 'cifar10'} (tar files)"
    assert lines[1].startswith("MISSING  cifar100 ")
    assert f"put a copy into {copies / 'cifar100'}" in lines[1]
    assert lines[-1].startswith(f"1 of {len(registry())} ")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["bench", "--protocol", "fair"], "Did you mean 'fare'"),
        (["attack", "--protocol", "tecao"], "Did you mean 'tecoa'"),
        (["bench", "-d", "imagnet-r"], "Did you mean 'imagenet-r'"),
        (["bench", "-d", "fare31"], "Did you mean 'fare13'"),
        (["bench", "-d", "embedded", "-d", "cifar10"], "put a copy into DIR/cifar10"),
        (["attack", "-d", "fare13"], "takes one of it"),
        (["bench", "-d", "dtd", "--data-root", "nowhere"], "nowhere is no folder"),
        (["bench", "--class-names", "mine"], "Use source or tecoa"),
        (["bench", "--resize", "huge"], "crop256"),
        (["bench", "--logit-scale", "-3"], "--logit-scale"),
        (["bench", "-d", "none.toml"], "none.toml"),
        (["list", "models", "--check"], "list datasets"),
        (["list", "datasets", "--data-root", "."], "--check"),
    ],
)
def test_bad_input_is_one_line_and_exit_2_and_touches_nothing(
    arguments: list[str], hint: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert hint in err
    assert list(tmp_path.iterdir()) == []
