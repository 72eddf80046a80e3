"""An image tower that is divided among processes (FSDP2): each keeps its part of the weights, gradients and moments.

A block is put together where it is needed, and taken apart again, in forward passes and in backward ones; all
processes must therefore make the same passes. What is saved is whole: checkpoints know nothing of processes.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from clipguard.core.errors import FinetuneError
from clipguard.finetuning.processes.team import Team

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


def shard(tower: nn.Module, device: torch.device, team: Team) -> None:
    """Divide a tower's parameters among the processes of a team, block by block, in place.

    Outside of its forward and backward passes its parameters are DTensors, of which each process has its rows.

    Raises:
        FinetuneError: where FSDP2 cannot take the tower.
    """
    # The embeddings may be a view of the last block's output; nobody writes into them.
    warnings.filterwarnings("ignore", rf"FSDP2-wrapped module \(FSDP{type(tower).__name__}\) returned a view tensor")
    mesh = init_device_mesh(device.type, (team.size,))
    tower.to(memory_format=torch.contiguous_format)  # FSDP2 takes no other
    try:
        # The tower's own parameters, too, are taken apart after each pass: whether they get gradients is said of the
        # parts, and counts from the next pass.
        for module in [*blocks(tower), tower]:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    except (NotImplementedError, ValueError) as error:
        raise FinetuneError(f"`fsdp` cannot divide {type(tower).__name__} ({error}); leave it out.") from error


def blocks(tower: nn.Module) -> list[nn.Module]:
    """What a tower repeats, inner ones first: modules of lists of at least two of one class; none for some towers."""
    found: list[nn.Module] = []
    for child in tower.children():
        found += blocks(child)
        parts = list(child.children())
        if isinstance(child, nn.ModuleList | nn.Sequential) and len(parts) > 1 and len(set(map(type, parts))) == 1:
            found += parts
    return found


def own_part(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this process has of each; the tensor itself where it is not divided."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def whole(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with its tensors put together, on all; all ask for it at the same time."""
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in weights.items()}


def saved(state: T, *, keep: bool) -> T:
    """What is to be saved with its tensors put together, in the memory of the CPU; all ask for it at the same time.

    Args:
        state: mappings, lists and what is in them.
        keep: whether this process gets it; others only help.
    """
    together: T = tree_map_only(DTensor, lambda tensor: _on_the_cpu(tensor.full_tensor(), keep), state)
    return together


def _on_the_cpu(tensor: Tensor, keep: bool) -> Tensor | None:
    return tensor.cpu() if keep else None


def divided(value: Tensor, like: Tensor) -> Tensor:
    """What a whole tensor, which all processes have, is where one is divided as `like` is."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    value = value.to(like.device, like.dtype)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def load_whole(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a whole state dict into a model that may be divided."""
    own = model.state_dict()
    model.load_state_dict({name: divided(value, own[name]) if name in own else value for name, value in state.items()})


def load_whole_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimiser's whole state dict where its parameters may be divided."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        number: {name: divided(value, parameters[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    # How a step is computed is the optimiser's own: not every way is there for divided parameters.
    groups = [
        {**saved, "fused": own["fused"]}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**state, "state": moments, "param_groups": groups})


class Mould(Generic[M]):
    """A model without weights, from which whole ones are made, for what processes do each on their own.

    Args:
        model: before it is divided; its buffers are shared.
    """

    def __init__(self, model: M) -> None:
        empty: dict[int, Any] = {
            id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()
        }
        self._buffers = {id(buffer): buffer for buffer in model.buffers()}
        self._model = copy.deepcopy(model, {**empty, **self._buffers})

    def filled(self, state: Mapping[str, Tensor]) -> M:
        """The model with these weights, which are not copied."""
        model = copy.deepcopy(self._model, dict(self._buffers))
        model.load_state_dict(state, assign=True)
        return model
