"""Run networks fast: 16 bits, fused operations, packed weights, recorded CUDA graphs, tiles.

`fast_network(model, device)` returns the callable, and `through_network(network, frames)` runs frames of any size
through it. The computation is defined in `network.py`; the results are the same up to rounding. Only this file may use
private names of torch.
"""

from __future__ import annotations

import copy
import logging
import math
import threading
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from .checkpoint import Model
from .devices import choose_precision
from .network import (
    BEGINNING,
    GREY,
    LEAST,
    MOST,
    NETWORKS,
    FastNetwork,
    NormalisedConvolution,
    SpeckleReductionNetwork,
    UncertaintyHead,
    double,
    equal_neighbors,
)
from .system import out_of_memory

REPLAYED = 2**23  # pixels; limit for the inputs of CUDA graphs that are kept in memory
SHAPES = 4  # number of input shapes whose CUDA graphs are kept if there is no limit in pixels
EDGE = 4  # pixels around a frame that keep the network's zero padding away from it
TILE = 1152  # pixels; larger images go through a network without normalization layers in tiles
SAME = 0.03  # fraction of the grey range; about four times the effect of rounding noise to bfloat16
MIDDLE = 0.5  # middle of the grey scale
SHARE = 1 / 16  # scale of the head's output; the sum in `smooth_sixteenfold` compensates it
logger = logging.getLogger(__name__)
Network = TypeVar("Network", bound=nn.Module)

# --- From a model to a fast callable.


class Runnable(Protocol):
    """A network, or a faster form of it: (N, 1, H, W) float32 -> (N, C, H, W), H and W multiples of `multiple`.

    margin: no input pixel further away than this changes an output pixel; 0: all of them may.
    """

    multiple: Any
    margin: Any
    __call__: Callable[..., Any]


def fast_network(
    model: Model, device: torch.device, precision: torch.dtype | None = None, uncertainty: bool = False
) -> Runnable:
    """Return the model's network as a function for inference on a device.

    It maps (N, 1, H, W) float32 on the device to the same, where H and W are multiples of its `multiple`; see
    `through_network` for other sizes. The latest four are kept; training a model's weights further gives another one.

    Args: precision, of weights and operations; None: see `precision_of`; uncertainty, whether a second channel is the
    standard deviation of the first one's error (as the network returns it, without the model's `uncertainty_scale`),
    which only models with a head for it have.
    """
    weights = model.network.parameters()
    version = sum(0 if weight.is_inference() else weight._version for weight in weights)
    return _fast_network(model, device, precision or precision_of(model, device), uncertainty, version)


@lru_cache(maxsize=4)
def _fast_network(
    model: Model, device: torch.device, precision: torch.dtype, uncertainty: bool, version: int
) -> Runnable:
    kind = RUNNERS.get(type(model.network))
    network = copy.deepcopy(model.network).to(device).eval()
    runner: Any = network if kind is None else kind(network, precision, *([True] if uncertainty else []))
    if device.type == "cuda":
        runner.forward = Replayed(runner.forward, REPLAYED)
    return runner


@lru_cache(maxsize=8)
def precision_of(model: Model, device: torch.device) -> torch.dtype:
    """Return the precision that is fastest on this device, if the model's output is the same in it.

    The published network runs in 32 bits because its normalization amplifies every rounding to 16 bits: with the
    authors' reference weights its output is then off by 0.05 (rms, of 1). On some graphics cards 16 bits yield NaN, and
    some weights exceed their range.
    """
    precision = choose_precision(device)
    if NETWORKS[model.config.architecture] is SpeckleReductionNetwork or precision == torch.float32:
        return torch.float32
    noise = torch.rand(1, 1, 128, 128, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.inference_mode():
        exact, fast = (through_network(fast_network(model, device, p), noise) for p in (torch.float32, precision))
    if (fast - exact).abs().max() < SAME:  # False for NaN
        return precision
    logger.warning("This model's results differ in half precision on %s; single precision is used.", device)
    return torch.float32


def through_network(network: Runnable, x: torch.Tensor, tile: int = TILE) -> torch.Tensor:
    """Run (N, 1, H, W) of any size through a network, with reflection padding and, where possible, in tiles.

    A tile includes `network.margin` pixels of its surroundings, so that tiles match whole frames. Returns (N, C, H, W)
    float32.
    """
    height, width = int(x.shape[-2]), int(x.shape[-1])
    edge = EDGE if network.margin else 0
    pads: list[int] = []
    for size in (width, height):
        whole = max(size + 2 * edge, 2 * network.multiple)
        pads += [edge, whole + -whole % network.multiple - size - edge]
    reflect = max(pads[:2]) < width and max(pads[2:]) < height
    x = F.pad(x, pads, mode="reflect" if reflect else "replicate")
    # CUDA's convolutions would round 32 bits to 19 (TF32), which a normalization amplifies to 0.03 of 1.
    exact = x.is_cuda and not network.margin
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if exact else nullcontext():
        if not network.margin or max(x.shape[-2:]) <= tile + 2 * network.margin:
            y = network(x)
        else:
            y = _in_tiles(network, x, tile)
    return y[..., edge : edge + height, edge : edge + width]


def through_mirrored(network: Runnable, x: torch.Tensor) -> torch.Tensor:
    """Return the mean of a network's outputs for (N, 1, H, W) and its mirror images, whose errors differ in part.

    It is closer to the truth than a single pass, at four times the cost ("self-ensemble"; Timofte, Rothe, Van Gool,
    "Seven ways to improve example-based single image super resolution", CVPR 2016).
    """
    mirrored = [through_network(network, x.flip(axes)).flip(axes) for axes in ((), (-1,), (-2,), (-1, -2))]
    return torch.stack(mirrored).mean(0)


def _in_tiles(network: Runnable, x: torch.Tensor, tile: int) -> torch.Tensor:
    """Return `network(x)` for (N, 1, H, W), a tile of `tile` x `tile` pixels and its surroundings at a time."""
    whole, margin = x, network.margin
    for top in range(0, x.shape[-2], tile):
        for left in range(0, x.shape[-1], tile):
            outer, core = [], []
            for start, size in ((top, x.shape[-2]), (left, x.shape[-1])):
                first, last = max(0, start - margin), min(size, start + tile + margin)
                outer.append(slice(first, last))
                core.append(slice(start - first, min(start + tile, size) - first))
            y = network(x[..., outer[0], outer[1]])
            if whole is x:
                whole = y.new_empty((*y.shape[:2], *x.shape[-2:]))
            whole[..., top : top + tile, left : left + tile] = y[..., core[0], core[1]]
    return whole


# --- The published network.


def fast_instance_norm(x: torch.Tensor) -> torch.Tensor:
    """Return `F.instance_norm(x)` for (B, C, H, W), up to rounding; on the CPU several times faster."""
    if x.device.type != "cpu":
        return F.instance_norm(x)
    if not torch.is_grad_enabled():
        return F.group_norm(x, x.shape[1])
    if x.dtype == torch.bfloat16:  # keeps channels-last and 16 bits
        with torch.autocast("cpu", enabled=False):
            return torch.cat([F.batch_norm(frame, None, None, training=True) for frame in x.split(1)])
    return F.instance_norm(x)


def accelerate(network: nn.Module) -> nn.Module:
    """Replace the normalizations of a network with `fast_instance_norm`, also in training; return the network."""
    for layer in network.modules():
        if isinstance(layer, NormalisedConvolution):
            layer.normalise = fast_instance_norm  # type: ignore[assignment]
    return network


def convert(network: Network, memory_format: torch.memory_format, precision: torch.dtype | None = None) -> Network:
    """Change the memory format of a network's weights, and their type if given, in place; return the network."""
    return network.to(dtype=precision, memory_format=memory_format)  # type: ignore[call-overload]


class PublishedRunner(nn.Module):
    """The full-scale branch of the published network for inference, (N, 1, H, W) float32 -> the same."""

    def __init__(self, network: SpeckleReductionNetwork, precision: torch.dtype):
        super().__init__()
        self.multiple, self.margin, self.precision = network.multiple, network.margin, precision
        # In 32 bits the normalization is faster and more exact on contiguous channels, in 16 bits the convolutions are
        # many times faster with channels-last. No bias survives the normalization.
        memory_format = torch.channels_last if precision == torch.bfloat16 else torch.contiguous_format
        self.branch = accelerate(nn.Sequential(network.encoder_highRes, network.decoder))
        for layer in self.branch.modules():
            if isinstance(layer, NormalisedConvolution):
                layer.conv.bias = None  # type: ignore[assignment]
        convert(self.branch, memory_format, precision)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.branch(frames.to(self.precision)).float()


# --- Our network.

# Convolutions of oneDNN that apply a ReLU, or add to a tensor, before they write: half the memory traffic.
_CONVOLVE: Any = (
    getattr(torch.ops.mkldnn, "_convolution_pointwise", None) if torch.backends.mkldnn.is_available() else None
)
_CONVOLVE_ONTO: Any = getattr(torch.ops.mkldnn, "_convolution_pointwise_", None) if _CONVOLVE else None
# They refuse 16 bits on processors without instructions for them (AVX2), where torch has slow ones of its own.
_IN_16_BITS = bool(_CONVOLVE) and getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)()


class FastRunner(nn.Module):
    """`FastNetwork` for inference, (N, 1, H, W) float32 -> (N, C, H, W): the grey value, then the standard deviation of
    its error if `uncertainty`.

    Further heads belong here too: they use the same features, so that one pass serves all of them.
    """

    def __init__(self, network: FastNetwork, precision: torch.dtype, uncertainty: bool = False):
        super().__init__()
        self.multiple, self.margin, self.precision = network.multiple, network.margin, precision
        # The head's output is counted from the middle of the grey scale: in 16 bits it is then rounded by a quarter of
        # a grey level (of 256) at most, and the filter behind it leaves half of that.
        stem, head = network.stem, network.head
        assert head.bias is not None
        bias = head.bias.detach().float() + GREY - MIDDLE
        if not uncertainty:
            network.uncertainty = None
        self.network: Any = convert(network, torch.channels_last, precision)  # torch does not type layers in containers
        if stem.weight.is_cuda and precision != torch.float32:  # the fast kernels need at least eight channels
            weight = F.pad(stem.weight.detach(), (0, 0, 0, 0, 0, -stem.in_channels % 8))
            stem.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
        head.weight.data.mul_(SHARE)
        head.bias.data.copy_(bias * SHARE)
        self.offset = MIDDLE + (bias - head.bias.detach().float() / SHARE).mean().item()
        if network.uncertainty is not None:
            for parameter in network.uncertainty.fine.parameters():
                parameter.data.mul_(2 * SHARE)  # see `deviation`
            for parameter in network.uncertainty.second.parameters():
                parameter.data.mul_(2)
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                pack(layer)

    @torch.inference_mode()
    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        fine, middle = self.features(frames)
        cells = convolve(self.network.head, fine)  # (N, 4, H / 2, W / 2)
        grey = smooth_sixteenfold(from_cells(cells).float())
        if self.network.uncertainty is None:
            return grey.add_(self.offset)
        maps = grey.new_empty(len(grey), 2, *grey.shape[2:])
        torch.add(grey, self.offset, out=maps[:, :1])
        torch.mul(self.deviation(self.network.uncertainty, fine, middle), MOST, out=maps[:, 1:])
        return maps

    def deviation(self, head: UncertaintyHead, fine: torch.Tensor, middle: torch.Tensor) -> torch.Tensor:
        """Return exp(`UncertaintyHead.forward`) / MOST, (N, 1, H, W) float32.

        The limit is d / (1 + d^2)^(1/2) = sigmoid(2 log d)^(1/2). The layers return 2 log d: their weights are doubled.
        """
        coarse = from_cells(convolve(head.second, convolve(head.first, middle, relu=True)))  # (N, 1, H / 2, W / 2)
        detail = smooth_sixteenfold(from_cells(convolve(head.fine, fine)).float())
        twice = detail.add_(fast_double(coarse.float())).add_(2 * (BEGINNING - math.log(MOST)))
        return twice.clamp_(2 * math.log(LEAST / MOST)).sigmoid_().sqrt_()

    def features(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the same as `FastNetwork.features`."""
        network = self.network
        x = to_cells((frames - GREY).to(self.precision))  # (N, 4, H / 2, W / 2)
        if network.equality:
            equal = to_cells((equal_neighbors(frames) - GREY).to(self.precision))
            x = torch.cat([x, equal], 1)  # (N, 8, H / 2, W / 2)
        missing = network.stem.weight.shape[1] - x.shape[1]  # channels to pad, on a GPU in 16 bits
        x = F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x
        fine = convolve(network.stem, x.contiguous(memory_format=torch.channels_last), relu=True)
        middle = through_blocks([network.encoder], convolve(network.down_1, fine, relu=True))
        coarse = through_blocks(network.bottom[:1], convolve(network.down_2, middle, relu=True))
        if network.deep is not None:
            deepest = through_blocks(network.deep, convolve(network.down_3, coarse, relu=True))
            coarse = fast_double(convolve(network.up_3, deepest)).add_(coarse)
        coarse = through_blocks(network.bottom[1:], coarse)
        middle = through_blocks([network.decoder], fast_double(convolve(network.up_2, coarse)).add_(middle))
        fine = fast_double(convolve(network.up_1, middle)).add_(fine)
        for layer in network.last:
            fine = convolve(layer, fine, relu=True)
        return fine, middle


RUNNERS: dict[type, Callable] = {FastNetwork: FastRunner, SpeckleReductionNetwork: PublishedRunner}


def has_fused_operations(x: torch.Tensor) -> bool:
    """Return whether oneDNN's fused convolutions can be used on this tensor."""
    return _CONVOLVE_ONTO is not None and x.is_cpu and (_IN_16_BITS or x.dtype != torch.bfloat16)


def pack(layer: nn.Conv2d) -> None:
    """Reorder the weights once, on the CPU, as oneDNN would otherwise do in each call."""
    reorder = getattr(torch.ops.mkldnn, "_reorder_convolution_weight", None)
    if reorder is not None and has_fused_operations(layer.weight):
        size = [1, layer.in_channels, 128, 128]
        parameters = list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups, size
        layer.packed = reorder(layer.weight.detach(), *parameters)


def convolve(layer: nn.Conv2d, x: torch.Tensor, relu: bool = False) -> torch.Tensor:
    """Return `layer(x)`, followed by a ReLU if `relu`."""
    if has_fused_operations(x):
        parameters: Any = layer.padding, layer.stride, layer.dilation, layer.groups, "relu" if relu else "none", [], ""
        return _CONVOLVE(x, getattr(layer, "packed", layer.weight), layer.bias, *parameters)
    if relu and x.is_cuda and torch.version.cuda:
        parameters = layer.stride, layer.padding, layer.dilation, layer.groups
        return torch.cudnn_convolution_relu(x, layer.weight, layer.bias, *parameters)
    x = layer(x)
    return F.relu(x) if relu else x


def through_blocks(blocks: Iterable[Any], x: torch.Tensor) -> torch.Tensor:
    """Apply `FastBlock`s in sequence to `x`, which may be overwritten."""
    for block in blocks:
        inner, second = convolve(block.first, x, relu=True), block.second
        if has_fused_operations(x):
            parameters: Any = second.padding, second.stride, second.dilation, second.groups, "add", 1.0, None, [], None
            x = _CONVOLVE_ONTO.binary(x, inner, getattr(second, "packed", second.weight), second.bias, *parameters)
        else:
            x = x + second(inner)
        x = through_blocks(block.more, x)
    return x


def fast_double(x: torch.Tensor) -> torch.Tensor:
    """Return `network.double(x)`, in 16 bits twice as fast as torch, and three times on a GPU."""
    if not has_fused_operations(x) and not x.is_cuda:
        return double(x)
    x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
    for axis in (2, 1):
        size, count = list(x.shape), x.shape[axis]
        size.insert(axis + 1, 2)
        y = x.new_empty(size)  # (B, H, W, 2, C), then (B, H, 2, 2 W, C)
        for phase, (end, here, there) in enumerate(((0, 1, 0), (count - 1, 0, 1))):
            target = y.select(axis + 1, phase)
            from_here, from_there = x.narrow(axis, here, count - 1), x.narrow(axis, there, count - 1)
            torch.lerp(from_here, from_there, 0.25, out=target.narrow(axis, here, count - 1))
            target.select(axis, end).copy_(x.select(axis, end))
        x = y.flatten(axis, axis + 1)
    return x.permute(0, 3, 1, 2)


PAIRS = {2: torch.int32, 4: torch.int64}  # two neighbors of a row, by the bytes of one, so that they move as one


def to_cells(x: torch.Tensor) -> torch.Tensor:
    """Return (B, 1, H, W) as (B, 4, H / 2, W / 2), channels-last: `pixel_unshuffle` for 2 x 2 cells, 4 times faster."""
    if not has_fused_operations(x):
        return F.pixel_unshuffle(x, 2)
    count, _, height, width = x.shape
    rows = x.contiguous().view(PAIRS[x.element_size()]).view(count, height // 2, 2, width // 2)
    cells = rows.new_empty(count, height // 2, width // 2, 2).copy_(rows.permute(0, 1, 3, 2))
    return cells.view(x.dtype).permute(0, 3, 1, 2)


def from_cells(x: torch.Tensor) -> torch.Tensor:
    """Return (B, 4, H, W) as (B, 1, 2 H, 2 W), the inverse: `pixel_shuffle`."""
    if not has_fused_operations(x):
        return F.pixel_shuffle(x, 2)
    count, _, height, width = x.shape
    cells = x.permute(0, 2, 3, 1).contiguous().view(PAIRS[x.element_size()])  # (B, H, W, 2)
    rows = cells.new_empty(count, height, 2, width).copy_(cells.permute(0, 1, 3, 2))
    return rows.view(x.dtype).view(count, 1, 2 * height, 2 * width)


def smooth_sixteenfold(x: torch.Tensor) -> torch.Tensor:
    """Return 16 `network.smooth(x)` for (B, 1, H, W), without a copy for the repeated pixels."""
    for axis in (2, 3):
        last = x.shape[axis] - 1
        sums = x.narrow(axis, 0, last) + x.narrow(axis, 1, last)
        first = torch.add(sums.narrow(axis, 0, 1), x.narrow(axis, 0, 1), alpha=2)
        final = torch.add(sums.narrow(axis, last - 1, 1), x.narrow(axis, last, 1), alpha=2)
        x = torch.empty_like(x)
        x.narrow(axis, 0, 1).copy_(first)
        torch.add(sums.narrow(axis, 0, last - 1), sums.narrow(axis, 1, last - 1), out=x.narrow(axis, 1, last - 1))
        x.narrow(axis, last, 1).copy_(final)
    return x


# --- CUDA graphs.


class Replayed:
    """A function's operations on a CUDA device, recorded once for each shape of its inputs and started as one (a CUDA
    graph): started one by one, they take several times as long to start as to run.

    A shape is recorded when it occurs for the second time; the latest are kept. If the device, its driver or its memory
    does not allow it, the function is called directly. Threads and their streams take turns.

    Args: function, from tensors to one tensor; limit, total of the numbers in the first inputs of all recordings that
    are kept (larger inputs go to the function directly), None: any number, in SHAPES recordings; parameters, whose
    gradients the function computes.
    """

    def __init__(self, function: Callable, limit: int | None = None, parameters: Iterable[torch.Tensor] = ()):
        self.function, self.limit, self.parameters = function, limit, list(parameters)
        self.recorded: dict[tuple[torch.Size, ...], Any] = {}
        self.lock, self.works = threading.Lock(), True
        self.last: torch.cuda.Stream | None = None

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        shapes = tuple(x.shape for x in inputs)
        with self.lock:
            if not self.works or (self.limit is not None and inputs[0].numel() > self.limit):
                return self.function(*inputs)
            first, recording = shapes not in self.recorded, self.recorded.pop(shapes, None)
            self.recorded[shapes] = recording  # the latest is the last
            self._forget()
            if first:
                return self.function(*inputs)
            try:
                self.recorded[shapes] = graph, buffers, output, gradients = recording or self._record(inputs)
            except RuntimeError as error:
                self.recorded.clear()
                if not out_of_memory(error):
                    warnings.warn(f"Nothing is recorded on this device: {error}", stacklevel=2)
                    self.works = False
                for parameter in self.parameters:
                    parameter.grad = None
                return self.function(*inputs)
            stream = torch.cuda.current_stream(inputs[0].device)
            if self.last is not None and self.last != stream:
                stream.wait_stream(self.last)  # it may still use its inputs
            self.last = stream
            for to, x in zip(buffers, inputs, strict=True):
                to.copy_(x)
            graph.replay()
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient
            return output.clone()

    def _forget(self) -> None:
        """Drop the oldest shapes, so that at most `limit` is kept."""
        total = 0
        for number, shapes in enumerate(reversed(list(self.recorded))):
            total += shapes[0].numel()
            if number >= SHAPES if self.limit is None else total > self.limit:
                if self.last is not None:
                    self.last.synchronize()  # its memory may still be in use
                del self.recorded[shapes]

    def _record(self, inputs: tuple[torch.Tensor, ...]) -> tuple[Any, list, torch.Tensor, list]:
        """Return the graph, the tensors it reads and writes, and the gradients that it leaves."""
        buffers, device = [x.clone() for x in inputs], inputs[0].device
        stream, graph, current = torch.cuda.Stream(device), torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            self.function(*buffers)  # libraries set themselves up
            for parameter in self.parameters:
                parameter.grad = None
            stream.synchronize()
            # Not `torch.cuda.graph`, which collects garbage and frees all unused memory: a tenth of a second.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                output = self.function(*buffers)
            finally:
                graph.capture_end()
        current.wait_stream(stream)
        return graph, buffers, output, [parameter.grad for parameter in self.parameters]
