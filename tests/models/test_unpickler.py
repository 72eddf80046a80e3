"""Pickles written by hand to do harm: nothing in them is called, and what tensors need is all that has a meaning."""

from __future__ import annotations

import collections
import zipfile
from pathlib import Path

import pytest
import torch
from open_clip import factory
from tiny_models import CONFIGS

from clipguard.core.errors import ModelError
from clipguard.models.checkpoint.reader import read_weights
from clipguard.models.checkpoint.unpickler import Inert, RefusedError, read_archive


def archive(path: Path, pickle: bytes, order: str = "little") -> Path:
    """A file as torch.save makes it, of any pickle and one storage of four float32 zeros."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", pickle)
        file.writestr("a/byteorder", order)
        file.writestr("a/data/0", bytes(16))
    return path


@pytest.mark.parametrize(
    ("pickle", "name"),
    [
        (b"cposix\nsystem\n(X\x04\x00\x00\x00truetR.", "posix.system"),
        (b"cbuiltins\neval\n(X\x01\x00\x00\x001tR.", "builtins.eval"),
        (b"c__builtin__\ngetattr\n.", "__builtin__.getattr"),
        (b"ctorch.hub\nload\n.", "torch.hub.load"),
        (b"csubprocess\nPopen\n.", "subprocess.Popen"),
    ],
)
def test_names_that_only_an_attack_needs(pickle: bytes, name: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "w.pt", b"}X\x01\x00\x00\x00w" + pickle[:-1] + b"s.")
    with pytest.raises(RefusedError, match=name):
        read_archive(path)
    with pytest.raises(ModelError, match=f"names {name}, which can run code and which no checkpoint needs"):
        read_weights(path)


def test_unknown_classes_are_inert(tmp_path: Path) -> None:
    """A call, an object with state, and items: all of one that does nothing."""
    called = b"cfunctools\npartial\n(cfoo\nBar\ntR"
    stateful = b"cfoo\nBar\n)\x81}X\x03\x00\x00\x00epsK\x01sb"
    filled = b"cfoo\nDict\n)RX\x03\x00\x00\x00epsK\x02s"
    content = read_archive(archive(tmp_path / "w.pt", b"\x80\x02]" + called + b"a" + stateful + b"a" + filled + b"a."))
    assert all(isinstance(item, Inert) for item in content)
    assert [item.name for item in content] == ["functools.partial", "foo.Bar", "foo.Dict"]
    assert [item.state for item in content] == [{}, {"eps": 1}, {"eps": 2}]


@pytest.mark.parametrize(
    "pickle",
    [
        b"cfoo\nBar\n(dN}X\x01\x00\x00\x00aK\x01s\x86b.",  # attributes of a class
        b"ccollections\nOrderedDict\n}X\x04\x00\x00\x00copyK\x01sb.",
        b"cbuiltins\ndict\n}X\x04\x00\x00\x00copyK\x01sb.",
    ],
)
def test_classes_cannot_be_changed(pickle: bytes, tmp_path: Path) -> None:
    with pytest.raises((AttributeError, TypeError)):
        read_archive(archive(tmp_path / "w.pt", pickle))
    assert collections.OrderedDict(a=1).copy() == {"a": 1}
    assert {"a": 1}.copy() == {"a": 1}


def tensor(size: int, offset: int) -> bytes:
    """The pickle of a dictionary with a tensor (size,) in the archive's storage."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    arguments = b"(" + storage + b"K" + bytes([offset]) + b"K" + bytes([size]) + b"\x85K\x01\x85\x89}t"
    return b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"Rs."


def test_tensors_stay_inside_their_storage(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    assert torch.equal(read_archive(archive(path, tensor(3, 1)))["w"], torch.zeros(3))
    for size, offset in ((5, 0), (3, 2)):
        with pytest.raises((ValueError, RuntimeError)):
            read_archive(archive(path, tensor(size, offset)))
    with pytest.raises(ValueError, match="byte order"):
        read_archive(archive(path, tensor(3, 1), order="big"))


def test_an_archive_without_a_pickle(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as file:
        file.writestr("a/model.json", "{}")  # TorchScript before 1.0
        file.writestr("a/constants.pkl", "")
    with pytest.raises(ModelError, match=r"not a TorchScript archive .*save its state_dict\(\) with torch.save"):
        read_weights(tmp_path / "w.pt")


def test_a_pickled_module_is_no_state_dict(tmp_path: Path) -> None:
    """`torch.save(model)` instead of its state dict."""
    config = dict(CONFIGS["vit"])
    torch.save(factory.CLIP(**config).visual, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"holds no state dict.*save model.state_dict\(\)"):
        read_weights(tmp_path / "w.pt")
