"""Folders of torch.distributed, sharded over processes or not: read without running code, whole or not at all."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checkpoint_files import NAMES, TEMPLATE, optimizer_state, tuned_model, visual
from tiny_models import state_of
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from clipguard.core.errors import ModelError
from clipguard.models import load_model
from clipguard.models.inspection import inspect_model

State = dict[str, torch.Tensor]
Folder = Callable[[str], Path]
# Two processes, each with half of every matrix, as FSDP leaves them.
SHARDED = """
import sys
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

source, folder, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[4]}", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
state = torch.load(source, weights_only=True)
split = {n: distribute_tensor(t, mesh, [Shard(0) if t.ndim > 1 else Replicate()]) for n, t in state.items()}
dcp.save({"model": split, "epoch": 3}, checkpoint_id=folder)
dist.destroy_process_group()
"""


def save(content: dict[str, Any], folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it is alone
        dcp.save(content, checkpoint_id=folder)
    return folder


def refusal(spec: str) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_holds(spec: str, state: State) -> None:
    loaded = load_model(spec).model.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in state.items())


def test_as_open_clip_writes_it(architecture: str, model_folder: Folder, tmp_path: Path) -> None:
    model = tuned_model(model_folder("vit-quick"))
    state = state_of(model)
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}
    content = {"model": wrapped, "optimizer": optimizer_state(model), "epoch": 3}
    folder = save(content, tmp_path / "epoch_3")
    assert_holds(f"{architecture}-quickgelu:{folder}", state)
    found = inspect_model(str(folder))
    assert (found.container, found.entry, found.towers) == ("torch.distributed, 2 files", "model", ["image", "text"])
    assert found.tensors == len(state)  # not those of the optimizer
    assert found.sha256 == load_model(f"{architecture}:{folder}").info.sha256
    assert f"write {architecture}:{folder} or" in refusal(str(folder))
    shutil.copy(model_folder("vit-quick") / "open_clip_config.json", folder)
    assert_holds(f"local-dir:{folder}", state)
    assert inspect_model(str(folder)).command == f"clipguard bench --model local-dir:{folder}"


def test_an_image_tower(model_folder: Folder, tmp_path: Path) -> None:
    base = model_folder("vit-quick")
    tower = visual(tuned_model(base))
    for name, content in (("flat", tower), ("nested", {"state_dict": {"visual": tower}})):
        folder = save(content, tmp_path / name)
        loaded = load_model(f"{folder}@local-dir:{base}")
        assert all(torch.equal(tensor, loaded.model.visual.state_dict()[key]) for key, tensor in tower.items())
        assert loaded.classifier(NAMES, [TEMPLATE])(torch.rand(1, 3, 32, 32)).isfinite().all()


@pytest.mark.slow
def test_sharded_over_two_processes(architecture: str, vit_state: State, tmp_path: Path) -> None:
    torch.save(vit_state, tmp_path / "whole.pt")
    (tmp_path / "shard.py").write_text(SHARDED)
    common = [sys.executable, "-W", "ignore", tmp_path / "shard.py", tmp_path / "whole.pt", tmp_path / "dcp"]
    runs = [subprocess.Popen([*common, str(rank), tmp_path / "meet"]) for rank in range(2)]
    assert [run.wait(timeout=120) for run in runs] == [0, 0]
    assert len(list((tmp_path / "dcp").glob("*.distcp"))) == 2
    assert_holds(f"{architecture}:{tmp_path / 'dcp'}", vit_state)


def test_a_tensor_in_parts(architecture: str, vit_state: State, tmp_path: Path) -> None:
    """As two processes leave it: put together here from the checkpoints of two halves."""
    first = {name: tensor[: len(tensor) // 2] if tensor.ndim > 1 else tensor for name, tensor in vit_state.items()}
    second = {name: tensor[len(tensor) // 2 :] for name, tensor in vit_state.items() if tensor.ndim > 1}
    folder, other = save(first, tmp_path / "dcp"), save(second, tmp_path / "other")
    plan, more = (pickle.loads((place / ".metadata").read_bytes()) for place in (folder, other))
    (other / "__0_0.distcp").rename(folder / "__1_0.distcp")
    for name, tensor in second.items():
        stored, offset = plan.state_dict_metadata[name], torch.Size([len(first[name]), *[0] * (tensor.ndim - 1)])
        stored.size = vit_state[name].shape
        stored.chunks.append(ChunkStorageMetadata(offset, tensor.shape))
        info = more.storage_data[MetadataIndex(name, torch.Size([0] * tensor.ndim))]
        plan.storage_data[MetadataIndex(name, offset)] = replace(info, relative_path="__1_0.distcp")
    (folder / ".metadata").write_bytes(pickle.dumps(plan))
    assert_holds(f"{architecture}:{folder}", vit_state)
    assert inspect_model(str(folder)).container == "torch.distributed, 3 files"


class RunsCode:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


def test_code_in_its_pickles_does_not_run(architecture: str, vit_state: State, tmp_path: Path) -> None:
    target = tmp_path / "pwned"
    folder = save({"model": vit_state, "epoch": RunsCode(target)}, tmp_path / "dcp")
    target.unlink(missing_ok=True)
    assert_holds(f"{architecture}:{folder}", vit_state)  # what is no tensor is not read
    assert not target.exists()
    plan = pickle.loads((folder / ".metadata").read_bytes())
    plan.planner_data["x"] = RunsCode(target)
    (folder / ".metadata").write_bytes(pickle.dumps(plan))
    message = refusal(f"{architecture}:{folder}")
    assert "names posix.system, which can run code" in message
    assert "dcp_to_torch FOLDER model.pt" in message
    assert not target.exists()


def test_damaged_ones(architecture: str, vit_state: State, tmp_path: Path) -> None:
    folder = save({"model": vit_state}, tmp_path / "dcp")
    spec, index, part = f"{architecture}:{folder}", folder / ".metadata", folder / "__0_0.distcp"
    good, weights = index.read_bytes(), part.read_bytes()
    plan = pickle.loads(good)

    def changed(change: Callable[[Any], Any]) -> str:
        other = pickle.loads(good)
        change(other)
        index.write_bytes(pickle.dumps(other))
        return refusal(spec)

    name = "model.text_projection"
    chunks = plan.state_dict_metadata[name].chunks
    assert chunks
    assert f"holds only a part of {name}" in changed(lambda plan: plan.state_dict_metadata[name].chunks.clear())
    move = lambda plan: [setattr(info, "relative_path", "../x.distcp") for info in plan.storage_data.values()]  # noqa: E731
    assert "names files elsewhere (../x.distcp)" in changed(move)
    assert "says nothing of tensors" in changed(lambda plan: setattr(plan, "storage_data", None))
    index.write_bytes(good[: len(good) // 2])
    assert ".metadata is damaged" in refusal(spec)
    index.write_bytes(good)
    part.write_bytes(weights[: len(weights) // 2])
    assert "is damaged, or of a torch that this one cannot read" in refusal(spec)
    assert "one part of a checkpoint of torch.distributed: give its folder" in refusal(f"{architecture}:{part}")
    part.rename(folder / "away")
    assert "lacks __0_0.distcp, which its .metadata names: fetch all 1 files" in refusal(spec)
    (folder / "away").rename(part)
    index.unlink()
    assert f"{folder} is a folder" in refusal(spec)


def test_parts_without_their_index(model_folder: Folder, vit_state: State, tmp_path: Path) -> None:
    folder = save({"model": vit_state}, tmp_path / "dcp")
    (folder / ".metadata").unlink()
    shutil.copy(model_folder("vit") / "open_clip_config.json", folder)
    assert "parts of a checkpoint of torch.distributed without its .metadata" in refusal(f"local-dir:{folder}")


def test_a_part_in_a_torch_file_is_refused(architecture: str, vit_state: State, tmp_path: Path) -> None:
    """torch.save of what a process of FSDP has; here it is the only one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        parts = {n: distribute_tensor(t, mesh, [Shard(0)]) if t.ndim > 1 else t for n, t in vit_state.items()}
        torch.save({"state_dict": parts}, tmp_path / "w.pt")
    finally:
        dist.destroy_process_group()
    assert "the part that one process of several has (DTensor" in refusal(f"{architecture}:{tmp_path / 'w.pt'}")
