"""Give folded convolutions their BatchNormalization back while they are trained, and fold it away again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.nn import functional as F

from conet_onnx.errors import UsageError
from conet_onnx.graph import Graph
from conet_onnx.torch_backend.ops.normalize import BatchNormalization

__all__ = ["BatchNorm", "Reinsert", "calibrate", "fold", "insert", "wanted"]

BatchNorm = Literal["auto", "reinsert", "none"]
HOW = ("auto", "reinsert", "none")

EPS, MOMENTUM = 1e-5, 0.1
BATCHES = 8  # that statistics are taken of
NORMS = {
    *("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization"),
    *("MeanVarianceNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization"),
}
_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)


class Reinsert(nn.Module):
    """A BatchNormalization after one convolution: the identity where it is inserted (Ioffe and Szegedy, 2015)."""

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.measured: list[torch.Tensor] | None = None  # counts, sums and sums of squares, while it is calibrated
        self.positions = 0  # of a sample, the most that were seen

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [batch, channels, ...]; while it is calibrated, x as it is."""
        if self.measured is None:
            settings = (self.weight, self.bias, self.training, MOMENTUM, EPS)
            return F.batch_norm(x, self.running_mean, self.running_var, *settings)
        flat = x.detach().transpose(0, 1).flatten(1).double()
        self.positions = max(self.positions, flat.shape[1] // len(x))
        new = [torch.tensor(float(flat.shape[1]), device=x.device), flat.sum(1), flat.square().sum(1)]
        self.measured = [a + b for a, b in zip(self.measured, new, strict=True)] if self.measured else new
        return x

    def settle(self, *, identity: bool) -> None:
        """Take what was measured for statistics, and undo them by weight and bias, or normalise from now on."""
        assert self.measured, "nothing was measured"
        count, total, squares = self.measured
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        with torch.no_grad():
            self.running_mean.copy_(mean)
            self.running_var.copy_(variance)
            if identity:
                self.weight.copy_((variance + EPS).sqrt())
                self.bias.copy_(mean)
        self.measured = None


def wanted(graph: Graph, how: BatchNorm) -> bool:
    """Whether BatchNormalization is to be inserted; `auto`: into networks of convolutions without any norm."""
    if how not in HOW:
        raise UsageError(f"batchnorm {how!r}: it is one of {', '.join(HOW)}.")
    if how != "auto":
        return how == "reinsert"
    operators = {node.op for node in graph.nodes}
    return "Conv" in operators and operators.isdisjoint(NORMS)


def insert(module: fx.GraphModule) -> int:
    """A norm after each convolution that has a bias, and a weight and bias of its own; how many there are now.

    `calibrate` must come before anything is computed with them.
    """
    graph = module.graph
    count = 0
    for node in list(graph.nodes):
        if not _can_be_folded_into(module, node):
            continue
        name = f"reinserted_{count}"
        module.add_submodule(name, Reinsert(module.get_parameter(node.args[1].target).shape[0]))
        with graph.inserting_after(node):
            norm = graph.call_module(name, (node,))
        node.replace_all_uses_with(norm, delete_user_cb=lambda user, norm=norm: user is not norm)
        count += 1
    module.recompile()
    return count


def calibrate(module: fx.GraphModule, batches: Iterable[Sequence[torch.Tensor]], *, identity: bool = True) -> int:
    """Make all norms the identity, by the statistics of some batches (the module's inputs); how many are left.

    Without `identity` they normalise, as in a new network. Those that see one position of a sample (behind a global
    pool) are taken out: a batch has too few for statistics.
    """
    norms = {name: norm for name, norm in module.named_modules() if isinstance(norm, Reinsert)}
    before = module.training
    module.eval()
    for norm in norms.values():
        norm.to(next(module.parameters()).device)
        norm.measured = []
    with torch.no_grad():
        for batch in batches:
            module(*batch)
    for name, norm in norms.items():
        if norm.positions > 1:
            norm.settle(identity=identity)
        else:
            _take_out(module, name)
    module.train(before)
    module.recompile()
    return sum(norm.positions > 1 for norm in norms.values())


def fold(module: fx.GraphModule) -> None:
    """Put all norms into the convolutions before them, by their running statistics, in double precision."""
    for node in list(module.graph.nodes):
        if node.op != "call_module" or not isinstance(norm := module.get_submodule(node.target), Reinsert):
            continue
        convolution = node.args[0]
        weight, bias = (module.get_parameter(convolution.args[k].target) for k in (1, 2))
        scale = norm.weight.double() / (norm.running_var.double() + EPS).sqrt()
        with torch.no_grad():
            weight.copy_(weight.double() * scale.reshape([-1] + [1] * (weight.dim() - 1)))
            bias.copy_((bias.double() - norm.running_mean.double()) * scale + norm.bias.double())
        _take_out(module, node.target)
    module.recompile()


def _can_be_folded_into(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is a convolution whose weight and bias are parameters that nobody else reads."""
    if node.target not in _CONVOLUTIONS or len(node.args) < 3:
        return False
    parameters = dict(module.named_parameters())
    for given in node.args[1:3]:
        if not isinstance(given, fx.Node) or given.op != "get_attr" or given.target not in parameters:
            return False
        readers = {user for other in module.graph.nodes if other.target == given.target for user in other.users}
        if readers != {node}:
            return False
    return not any(_is_norm(module, user) for user in node.users)


def _is_norm(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), BatchNormalization)
    return node.target is F.batch_norm


def _take_out(module: fx.GraphModule, name: str) -> None:
    node: Any = next(node for node in module.graph.nodes if node.op == "call_module" and node.target == name)
    node.replace_all_uses_with(node.args[0])
    module.graph.erase_node(node)
    module.delete_submodule(name)
