"""The trained weights of a model in this process: all of them, or a shard of each.

The optimizer updates `masters`, plain float32 tensors: the model's own parameters, the float32 weights behind a
bfloat16 copy, or this process's shards of either. Gradients are summed over the processes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from reval_core import launch
from reval_core.learning import processes
from reval_core.learning.checksum import Part, weights_checksum
from reval_core.model.layers import decoder_layers, set_up
from reval_core.model.low_precision import LowPrecisionCopy, low_precision
from reval_core.model.scoring import Scorer

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel

    from reval_core.config import Learner


class Weights:
    """Whole weights in float32, or the bfloat16 copy of such weights."""

    def __init__(self, model: PreTrainedModel, settings: Learner, seed: int, device: torch.device) -> None:
        set_up(model, settings.packed, settings.compiles_on(device.type))
        self.model: PreTrainedModel = model.to(device)
        self.scorer: nn.Module = Scorer(model)
        """Its forward pass is `score`."""
        self.copy = LowPrecisionCopy(model, seed) if settings.precision == "bfloat16" else None
        trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
        self.computing: Mapping[str, Tensor] = trained
        """The trained tensors that compute, by parameter name."""
        self.masters: Mapping[str, Tensor] = self.copy.masters if self.copy else trained
        """The tensors that the optimizer updates, by parameter name."""
        self.parts = {name: Part(one.shape) for name, one in self.masters.items()}

    def collect(self) -> None:
        """Add the gradients of a backward pass to those of the masters."""

    def reduce(self) -> None:
        """Sum the masters' gradients over the processes. Collective."""
        if launch.count() > 1:
            for master in self.masters.values():
                master.grad = processes.total(torch.zeros_like(master) if master.grad is None else master.grad)

    def clip(self, limit: float) -> float:
        """Scale the gradient down to the norm `limit`. Returns the norm before. Collective."""
        masters = list(self.masters.values())
        norm = self._norm(torch.nn.utils.get_total_norm([one.grad for one in masters if one.grad is not None]))
        torch.nn.utils.clip_grads_with_norm_(masters, limit, norm)
        return float(norm)

    def refresh(self) -> None:
        """Recompute what depends on the masters after they have changed."""
        if self.copy is not None:
            self.copy.refresh()

    def checksum(self) -> str:
        """The checksum of the masters, the same for every number of processes. Collective."""
        return weights_checksum(self.masters)

    @contextmanager
    def whole(self, masters: bool) -> Iterator[PreTrainedModel]:
        """The whole model in the first process, inside the context. Collective.

        Args:
            masters: With the float32 weights that the optimizer holds, for saving and digests.
        """
        with self.copy.replaced_by_masters() if masters and self.copy else nullcontext():
            yield self.model

    def as_saved(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of the shape of a master, as torch.distributed.checkpoint saves and loads it."""
        return tensor

    def _norm(self, norm: Tensor) -> Tensor:
        return norm


class ShardedWeights(Weights):
    """A shard of each weight. The layers gather their weights while they compute (FSDP2)."""

    def __init__(self, model: PreTrainedModel, settings: Learner, seed: int, device: torch.device) -> None:
        self._seed = seed
        self._skeleton = _skeleton(model) if launch.is_first() else model
        self._half = settings.precision == "bfloat16"
        self._mesh = _mesh(settings.shard, device)
        exact = {name: one.data for name, one in model.named_parameters() if one.requires_grad}
        set_up(model, settings.packed, settings.compiles_on(device.type))
        self.model, self.scorer = model, _sharded(model, self._mesh, self._half)
        local = {name: _local(one) for name, one in model.named_parameters() if one.requires_grad}
        self.parts = {name: self._part(exact[name].shape, local[name].shape) for name in local}
        self.copy = None
        self.computing, self._gradients = local, dict(model.named_parameters())
        self.masters = {
            name: nn.Parameter(_shard_of(exact[name], self.parts[name], one).to(device) if self._half else one)
            for name, one in local.items()
        }
        self.refresh()

    @torch.no_grad()
    def collect(self) -> None:
        for name, master in self.masters.items():
            found = self._gradients[name]
            if found.grad is not None:
                gradient = _local(found.grad).float()
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)
                found.grad = None

    def reduce(self) -> None:
        """FSDP2 has summed them."""

    @torch.no_grad()
    def refresh(self) -> None:
        if self._half:
            for name, one in self.computing.items():
                one.copy_(low_precision(self.masters[name], self._seed, name, self.parts[name].start))
        release(self.scorer)

    def checksum(self) -> str:
        return weights_checksum(self.masters, self.parts, self._over_shards)

    @contextmanager
    def whole(self, masters: bool) -> Iterator[PreTrainedModel]:
        """In the first process, a second model in CPU memory with the gathered weights; None in the others."""
        empty = dict(self._skeleton.named_parameters()) if launch.is_first() else {}
        try:
            for name, one in (self.masters if masters else self.computing).items():
                tensor = self.as_saved(name, one.detach()).full_tensor().cpu()  # type: ignore[attr-defined]
                if name in empty:
                    empty[name].data = tensor
            yield self._skeleton
        finally:
            for one in empty.values():
                one.data = torch.empty(0)

    def as_saved(self, name: str, tensor: Tensor) -> Tensor:
        like: Any = self._gradients[name]
        return DTensor.from_local(
            tensor, self._mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )

    def _part(self, shape: torch.Size, local: torch.Size) -> Part:
        """torch gives each process ⌈n / processes⌉ rows, the last ones fewer or none."""
        rows = -(-shape[0] // self._mesh.size(-1))
        return Part(shape, min(self._mesh.get_local_rank(-1) * rows, shape[0]) * shape[1:].numel())

    def _norm(self, norm: Tensor) -> Tensor:
        return self._over_shards(norm.square()).sqrt()

    def _over_shards(self, values: Tensor) -> Tensor:
        return processes.total(values, self._mesh.get_group(self._mesh.ndim - 1))


def make_weights(model: PreTrainedModel, settings: Learner, seed: int, device: torch.device) -> Weights:
    """The weights of a float32 model, sharded if `learner.shard` is set and there are several processes."""
    kind = ShardedWeights if is_sharded(settings) else Weights
    return kind(model, settings, seed, device)


def is_sharded(settings: Learner) -> bool:
    """Whether weights are sharded in this process."""
    return settings.shard != "none" and launch.count() > 1


def release(scorer: nn.Module) -> None:
    """Release what a forward pass of a sharded model has gathered, before its weights change."""
    for module in scorer.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _mesh(shard: str, device: torch.device) -> DeviceMesh:
    """All processes in one dimension; for `node` [hosts, processes of a host], sharded over the second."""
    count, local = launch.count(), launch.local_count()
    if shard == "node" and count > local:
        return init_device_mesh(device.type, (count // local, local), mesh_dim_names=("replicate", "shard"))
    return init_device_mesh(device.type, (count,))


def _sharded(model: PreTrainedModel, mesh: DeviceMesh, half: bool) -> nn.Module:
    """Shard the parameters over the mesh. Returns the scorer, whose forward pass gathers them layer by layer."""
    if half:  # not the buffers, since positions need float32
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    scorer = Scorer(model)
    for module in (*decoder_layers(model), scorer):
        wrapped: Any = fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))
        wrapped.set_gradient_divide_factor(1.0)
        wrapped.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction with a factor
    return scorer


def _skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model with its buffers and without its parameters."""
    empty: dict[int, Any] = {id(one): nn.Parameter(torch.empty(0)) for one in model.parameters()}
    return copy.deepcopy(model, empty)


def _local(tensor: Tensor) -> Tensor:
    """This process's shard, in the same memory."""
    assert isinstance(tensor, DTensor)
    detached: Any = tensor.detach()
    local: Tensor = detached.to_local()
    return local


def _shard_of(whole: Tensor, part: Part, like: Tensor) -> Tensor:
    return whole.flatten()[part.start : part.start + like.numel()].view(like.shape).clone()
