"""K networks of one architecture in one: their channels side by side, in K times the groups.

The second dimension of every activation holds member 0's channels, then member 1's, and so on. A convolution of K
times the groups, a BatchNorm of K times the channels and a GroupNorm of K times the groups then never mix two members;
what works pixel by pixel, or on height and width alone, needs no change at all. So the network's own code runs, with
wider layers in it, and the names of its weights stay. One that does anything else is refused, with the place.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Never

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from ablate.errors import AblateError

CLOSE = 1e-2  # of the largest logit: far beyond rounding, far below what mixing two members does

# each works on every element, or on height and width
_AS_IT_IS = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus,
    nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d,
)  # fmt: skip
_WIDENED = (nn.Conv2d, nn.BatchNorm2d, nn.BatchNorm1d, nn.GroupNorm, nn.Linear)
_OF_TWO = (
    operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul, operator.truediv,
    torch.add, torch.sub, torch.mul, torch.div,
)  # fmt: skip
_OF_ONE = (
    operator.neg, torch.relu, torch.tanh, torch.sigmoid, functional.relu, functional.relu6, functional.leaky_relu,
    functional.elu, functional.gelu, functional.silu, functional.mish, functional.softplus, functional.hardtanh,
    functional.hardswish, functional.hardsigmoid, functional.max_pool2d, functional.avg_pool2d,
    functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d,
)  # fmt: skip
_METHODS_OF_TWO = ("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_")
_METHODS_OF_ONE = ("relu", "relu_", "tanh", "sigmoid", "contiguous", "neg", "clone")


class Unfusable(AblateError):
    """A network whose seeds can't be trained in one model; says which part hinders it."""


def fuse(models: Sequence[nn.Module], image: Tensor) -> nn.Module:
    """Return one network of all ``models``: float images [B, K·C, H, W] → logits [B, K·classes], both member by member.

    Its weights are theirs (``joined_states``). The first one's forward pass is checked, and the whole is tried on
    ``image`` [B, C, H, W] against each of them. Raises Unfusable.
    """
    first, *others = models
    _check(first)
    if any(str(other) != str(first) for other in others):
        raise Unfusable("the network's architecture depends on the seed")
    fused = _widened(first, len(models))
    fused.load_state_dict(joined_states([model.state_dict() for model in models]))
    _try(fused, models, image)
    return fused


def joined_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the state of a fused network from those of its members. What has no dimension is the same in all."""
    return {name: _cat([state[name] for state in states]) for name in states[0]}


def own_state(state: Mapping[str, Any], member: int, members: int) -> dict[str, Any]:
    """Return a member's own state, under the names that it had: a copy."""
    return {name: _own(value, member, members) for name, value in state.items()}


def joined_optimizer_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the state of an optimizer of a fused network from its members', after equally many iterations of each."""
    joined = {number: joined_states([each["state"][number] for each in states]) for number in states[0]["state"]}
    return {**states[0], "state": joined}


def own_optimizer_state(state: Mapping[str, Any], member: int, members: int) -> dict[str, Any]:
    """Return the state of a member's own optimizer: a copy."""
    parts = {number: own_state(values, member, members) for number, values in state["state"].items()}
    return {"state": parts, "param_groups": copy.deepcopy(state["param_groups"])}


def side_by_side(images: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Return images [K, B, C, H, W] as a fused network takes them: [B, K·C, H, W]."""
    members, batch, channels, height, width = images.shape
    if memory_format == torch.channels_last:
        laid = images.permute(1, 3, 4, 0, 2).reshape(batch, height, width, members * channels)
        return laid.permute(0, 3, 1, 2)
    return images.transpose(0, 1).reshape(batch, members * channels, height, width)


def by_member(logits: Tensor, members: int) -> Tensor:
    """Return logits [B, K·classes] as [K, B, classes]."""
    return logits.reshape(len(logits), members, -1).transpose(0, 1)


class FusedLinear(nn.Module):
    """K linear layers: [B, K·inputs] → [B, K·outputs]. Its weights lie below each other: [K·outputs, inputs]."""

    def __init__(self, linear: nn.Linear, members: int) -> None:
        super().__init__()
        self.members = members
        options: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        rows = members * linear.out_features
        self.weight = nn.Parameter(torch.empty(rows, linear.in_features, **options))
        self.bias = nn.Parameter(torch.empty(rows, **options)) if linear.bias is not None else None

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2:
            raise Unfusable(f"a Linear is given {x.dim()} dimensions; only [batch, features] can be fused")
        inputs = x.reshape(len(x), self.members, -1).transpose(0, 1)
        weight = self.weight.view(self.members, -1, self.weight.shape[1]).mT
        if self.bias is None:
            out = torch.bmm(inputs, weight)
        else:
            out = torch.baddbmm(self.bias.view(self.members, 1, -1), inputs, weight)
        return out.transpose(0, 1).flatten(1)


def _cat(values: Sequence[Any]) -> Any:
    first = values[0]
    if not isinstance(first, Tensor) or not first.dim():
        return first
    return torch.cat([value.to(first.device) for value in values])  # what was resumed lies on the CPU


def _own(value: Any, member: int, members: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    return (value.chunk(members)[member] if value.dim() else value).detach().clone()


def _check(model: nn.Module) -> None:
    """Raise Unfusable where the network has a part that can't be fused."""
    for name, module in model.named_modules():
        if any(getattr(module, hooks) for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")):
            _refuse(f"`{name or type(model).__name__}` has a hook")
    if len(list(model.parameters())) < len(list(model.named_parameters(remove_duplicate=False))):
        _refuse("a weight stands in it under two names")
    was_training = model.training
    try:
        graphs = [fx.Tracer().trace(model.train(mode)) for mode in (True, False)]
    except Exception as error:  # of the network's own code, on an input without numbers
        _refuse(f"its forward pass can't be followed without numbers ({str(error).splitlines()[0]})")
    finally:
        model.train(was_training)
    code, evaluated = (graph.python_code("self").src for graph in graphs)
    if code != evaluated:
        _refuse("its forward pass differs in evaluation")
    known = dict(model.named_modules())
    if sum(node.op == "placeholder" for node in graphs[0].nodes) != 1:
        _refuse("its forward pass takes more than the images")
    for node in graphs[0].nodes:
        if not _is_known(node, known):
            _refuse(_described(node, known))
    used = {node.target for node in graphs[0].nodes if node.op == "call_module"}
    for name, _ in model.named_parameters():
        if name.rpartition(".")[0] not in used:
            _refuse(f"its weight `{name}` is not one of a layer that the forward pass calls")


def _refuse(why: str) -> Never:
    raise Unfusable(f"the seeds of this network can't be trained in one model: {why}")


def _is_known(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Tell whether a step of the forward pass never mixes two members."""
    match node.op:
        case "placeholder" | "output":
            return True
        case "call_module":
            module = modules[str(node.target)]
            kind = type(module)  # not of a subclass, whose forward pass is another
            if kind is nn.Flatten:
                return bool(module.start_dim == 1 and module.end_dim == -1)
            return kind in _WIDENED or (kind in _AS_IT_IS and not getattr(module, "return_indices", False))
        case "call_function":
            if node.target in _OF_TWO:
                return all(isinstance(arg, fx.Node | int | float) for arg in node.args)
            if node.target is torch.flatten:
                return _is_flat(node)
            return node.target in _OF_ONE or _is_batch_size(node)
        case "call_method":
            if node.target in ("view", "reshape"):
                shape = node.args[1:] if len(node.args) > 2 else node.args[-1]
                return (
                    isinstance(shape, tuple) and len(shape) == 2 and _is_batch_size(shape[0]) and bool(shape[1] == -1)
                )
            if node.target == "flatten":
                return _is_flat(node)
            if node.target == "mean":
                return _is_of_pixels(node)
            if node.target in _METHODS_OF_TWO:
                return all(isinstance(arg, fx.Node | int | float) for arg in node.args)
            return node.target in _METHODS_OF_ONE or _is_batch_size(node)
    return False


def _is_flat(node: fx.Node) -> bool:
    start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim")
    return bool(start == 1) and len(node.args) <= 2 and "end_dim" not in node.kwargs


def _is_of_pixels(node: fx.Node) -> bool:
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return dims in ((2, 3), [2, 3], (-2, -1), [-2, -1])


def _is_batch_size(node: object) -> bool:
    """Tell whether a node is ``x.size(0)``, ``x.shape[0]`` or the ``x.shape`` that the latter begins with."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_method" and node.target == "size":
        return bool(node.args[1:] == (0,))
    if node.target is getattr:
        return bool(node.args[1] == "shape") and all(_is_batch_size(user) for user in node.users)
    return node.target is operator.getitem and bool(node.args[1] == 0) and _is_shape(node.args[0])


def _is_shape(node: object) -> bool:
    return isinstance(node, fx.Node) and node.target is getattr and bool(node.args[1] == "shape")


def _described(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    if node.op == "call_module":
        return f"`{node.target}` is {modules[str(node.target)]}"
    name = getattr(node.target, "__name__", node.target)
    if node.op == "get_attr":
        return f"it computes with `{name}`, which is no layer"
    return f"`{name}({', '.join(map(str, node.args))})` may mix what belongs to two seeds"


_Wider = Callable[[Any, int], nn.Module]


def _wider_conv(conv: nn.Conv2d, members: int) -> nn.Module:
    wider: nn.Module = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Conv2d, members * conv.in_channels, members * conv.out_channels, conv.kernel_size, stride=conv.stride,
        padding=conv.padding, dilation=conv.dilation, groups=members * conv.groups, bias=conv.bias is not None,
        padding_mode=conv.padding_mode, device=conv.weight.device, dtype=conv.weight.dtype,
    )  # fmt: skip
    return wider


def _wider_batch_norm(norm: nn.BatchNorm2d | nn.BatchNorm1d, members: int) -> nn.Module:
    wider = type(norm)(members * norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    return _like(wider, norm)


def _wider_group_norm(norm: nn.GroupNorm, members: int) -> nn.Module:
    return _like(nn.GroupNorm(members * norm.num_groups, members * norm.num_channels, norm.eps, norm.affine), norm)


def _like(wider: nn.Module, module: nn.Module) -> nn.Module:
    weights = [*module.parameters(), *module.buffers()]
    return wider.to(weights[0].device, weights[0].dtype) if weights else wider


_WIDER: dict[type[nn.Module], _Wider] = {
    nn.Conv2d: _wider_conv,
    nn.BatchNorm2d: _wider_batch_norm,
    nn.BatchNorm1d: _wider_batch_norm,
    nn.GroupNorm: _wider_group_norm,
    nn.Linear: FusedLinear,
}


def _widened(model: nn.Module, members: int) -> nn.Module:
    """Return a copy of the network with ``members`` times as wide layers, whose weights are still to be set."""
    fused = copy.deepcopy(model)
    for name, module in list(fused.named_modules()):
        if type(module) in _WIDER:
            wider = _WIDER[type(module)](module, members)
            for (_, weight), (_, former) in zip(wider.named_parameters(), module.named_parameters(), strict=True):
                weight.requires_grad_(former.requires_grad)
            wider.train(module.training)
            if not name:
                return wider
            parent, _, child = name.rpartition(".")
            setattr(fused.get_submodule(parent), child, wider)
    return fused


@torch.no_grad()
def _try(fused: nn.Module, models: Sequence[nn.Module], image: Tensor) -> None:
    """Raise Unfusable where the fused network does not give each member's own logits."""
    was_training = fused.training
    images = torch.stack([image * (1 + number) for number in range(len(models))])
    expected = [model.eval()(each) for model, each in zip(models, images, strict=True)]
    try:
        found = by_member(fused.eval()(side_by_side(images, torch.contiguous_format)), len(models))
    except RuntimeError as error:  # of shapes that do not fit each other any more
        _refuse(str(error).splitlines()[0])
    finally:
        for model in (fused, *models):
            model.train(was_training)
    for own, other in zip(expected, found, strict=True):
        if own.shape != other.shape or (own - other).abs().max() > CLOSE * own.abs().max():
            _refuse("fused, it gives other logits")
