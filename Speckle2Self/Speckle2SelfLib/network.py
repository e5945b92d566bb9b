"""The networks: the published one (the paper's section 3.3) and our fast one; Documentation/method.md, 1 and 2."""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .config import ModelConfig

# --- The published network: one encoder per scale, one shared decoder. The attribute names are those of the authors'
# --- checkpoints, so that their files load as they are.


class NormalisedConvolution(nn.Module):
    """A convolution, instance normalisation without parameters, and (unless linear) a ReLU."""

    def __init__(self, conv: nn.Module, linear: bool = False):
        super().__init__()
        self.conv = conv
        self.linear = linear

    def forward(self, x):
        x = self.conv(x)
        if x.device.type == "cpu" and not self.training:
            x = F.group_norm(x, x.shape[1])  # the same up to rounding, and several times faster on the CPU
        elif x.device.type == "cpu" and x.dtype == torch.bfloat16:  # interleaved channels stay so, and 16 bits
            with torch.autocast("cpu", enabled=False):
                x = torch.cat([F.batch_norm(frame, None, None, training=True) for frame in x.split(1)])
        else:
            x = F.instance_norm(x)
        return x if self.linear else F.relu(x, inplace=True)


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions added to their input, (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        first, second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.model = nn.Sequential(NormalisedConvolution(first), NormalisedConvolution(second, linear=True))

    def forward(self, x):
        return x + self.model(x)


def _halving(inputs: int, outputs: int) -> NormalisedConvolution:
    return NormalisedConvolution(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1))


def _doubling(inputs: int, outputs: int) -> NormalisedConvolution:
    return NormalisedConvolution(nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1))


class Encoder(nn.Module):
    """(B, 1, H, W) -> (B, 256, H / 16, W / 16)."""

    def __init__(self):
        super().__init__()
        self.conv_block_1, self.residual_block_1 = _halving(1, 32), ResidualBlock(32)
        self.conv_block_2, self.residual_block_2 = _halving(32, 64), ResidualBlock(64)
        self.conv_block_3, self.residual_block_3 = _halving(64, 128), ResidualBlock(128)
        self.conv_block_4, self.residual_block_end = _halving(128, 256), ResidualBlock(256)

    def forward(self, x):
        for stage in self.children():
            x = stage(x)
        return x


class Decoder(nn.Module):
    """(B, 256, H / 16, W / 16) -> (B, 1, H, W), never negative: the last layer is normalised and cut at zero too."""

    def __init__(self):
        super().__init__()
        self.residual_block_start = ResidualBlock(256)
        self.conv_block_1, self.residual_block_1 = _doubling(256, 128), ResidualBlock(128)
        self.conv_block_2, self.residual_block_2 = _doubling(128, 64), ResidualBlock(64)
        self.conv_block_3, self.residual_block_3 = _doubling(64, 32), ResidualBlock(32)
        self.conv_block_4 = _doubling(32, 1)

    def forward(self, x):
        for stage in self.children():
            x = stage(x)
        return x


class SpeckleReductionNetwork(nn.Module):
    """The published network. Called with views (one (B, 1, H, W) each, full scale first) it gives a prediction for
    each; called with one tensor it gives the full-scale branch's, which is all that inference needs.

    H and W are multiples of `multiple`. Instance normalisation ties each pixel to the whole frame: no tiles.
    """

    multiple = 16
    margin = 0

    def __init__(self, scales: int = 3):
        super().__init__()
        self.encoder_highRes = Encoder()
        if scales == 3:
            self.encoder_midRes, self.encoder_lowRes = Encoder(), Encoder()
        self.decoder = Decoder()

    @property
    def encoders(self):
        """Full scale first."""
        return [module for name, module in self.named_children() if name.startswith("encoder")]

    def to_precision(self, precision: torch.dtype):
        """For inference; in 32 bits the normalisation is faster and more exact on contiguous channels, in 16 bits the
        convolutions are many times faster on interleaved ones. No bias survives the normalisation."""
        layout = torch.channels_last if precision == torch.bfloat16 else torch.contiguous_format
        for layer in self.modules():
            if isinstance(layer, NormalisedConvolution):
                layer.conv.bias = None
        return self.to(dtype=precision, memory_format=layout)

    def forward(self, views):
        if isinstance(views, torch.Tensor):
            precision = self.encoder_highRes.conv_block_1.conv.weight.dtype
            # CUDA's convolutions would round 32 bits to 19 (TF32), which the normalisation carries on to 0.03 of 1.
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if views.is_cuda else nullcontext():
                return self.decoder(self.encoder_highRes(views.to(precision))).float()
        return tuple(self.decoder(encoder(view)) for encoder, view in zip(self.encoders, views, strict=True))


# --- The fast network.

GREY = 0.25  # about the mean grey value: zero padding then resembles tissue more than a black frame
MIDDLE = 0.5  # of the grey scale
SHARE = 1 / 16  # of its output that a head gives, whose sixteenfold is what `_summed` makes of it

# Convolutions of oneDNN that cut at zero, or add to a tensor, before they write: half the traffic to memory.
_CONVOLVE = getattr(torch.ops.mkldnn, "_convolution_pointwise", None) if torch.backends.mkldnn.is_available() else None
_CONVOLVE_ONTO = getattr(torch.ops.mkldnn, "_convolution_pointwise_", None) if _CONVOLVE else None
# They refuse 16 bits on processors without instructions for them (AVX2), where torch has slow ones of its own.
_IN_16_BITS = bool(_CONVOLVE) and getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)()


def _taken(x: torch.Tensor) -> bool:
    """Whether the operations above take this tensor."""
    return _CONVOLVE_ONTO is not None and x.is_cpu and (_IN_16_BITS or x.dtype != torch.bfloat16)


def _fused(x: torch.Tensor) -> bool:
    """Whether inference on this tensor can take the operations above."""
    return torch.is_inference_mode_enabled() and _taken(x)


def _convolve(layer: nn.Conv2d, x: torch.Tensor, relu: bool = False) -> torch.Tensor:
    """`layer(x)`, then cut at zero if `relu`."""
    if _fused(x):
        how = layer.padding, layer.stride, layer.dilation, layer.groups, "relu" if relu else "none", [], ""
        return _CONVOLVE(x, getattr(layer, "packed", layer.weight), layer.bias, *how)
    if relu and x.is_cuda and torch.version.cuda and torch.is_inference_mode_enabled():
        how = layer.stride, layer.padding, layer.dilation, layer.groups
        return torch.cudnn_convolution_relu(x, layer.weight, layer.bias, *how)
    x = layer(x)
    return F.relu(x) if relu else x


def _add_convolved(onto: torch.Tensor, layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """`onto + layer(x)`; in inference, `onto` is overwritten."""
    if _fused(x):
        how = layer.padding, layer.stride, layer.dilation, layer.groups, "add", 1.0, None, [], None
        return _CONVOLVE_ONTO.binary(onto, x, getattr(layer, "packed", layer.weight), layer.bias, *how)
    return onto + layer(x)


def _pack(layer: nn.Conv2d) -> None:
    """Keeps the weights, on the processor, in the order that oneDNN puts them in, or it would in each call."""
    pack = getattr(torch.ops.mkldnn, "_reorder_convolution_weight", None) if _taken(layer.weight) else None
    if pack is not None:
        size = [1, layer.in_channels, 128, 128]
        how = list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups, size
        layer.packed = pack(layer.weight.detach(), *how)


def _double(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, C, 2 H, 2 W), bilinear."""
    if not _fused(x) and not (x.is_cuda and torch.is_inference_mode_enabled()):
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    x = x.permute(0, 2, 3, 1)  # (B, H, W, C); twice as fast as torch's in 16 bits, on a GPU three times
    for axis in (2, 1):
        size, count = list(x.shape), x.shape[axis]
        size.insert(axis + 1, 2)
        y = x.new_empty(size)  # (B, H, W, 2, C), then (B, H, 2, 2 W, C)
        for phase, (end, here, there) in enumerate(((0, 1, 0), (count - 1, 0, 1))):
            to = y.select(axis + 1, phase)
            torch.lerp(
                x.narrow(axis, here, count - 1),
                x.narrow(axis, there, count - 1),
                0.25,
                out=to.narrow(axis, here, count - 1),
            )
            to.select(axis, end).copy_(x.select(axis, end))
        x = y.flatten(axis, axis + 1)
    return x.permute(0, 3, 1, 2)


_PAIRS = {2: torch.int32, 4: torch.int64}  # two neighbours of a row, by the bytes of one, so that they move as one


def _to_cells(x: torch.Tensor) -> torch.Tensor:
    """(B, 1, H, W) -> (B, 4, H / 2, W / 2), interleaved: `pixel_unshuffle` for cells of 2 x 2, four times as fast."""
    if not _fused(x):
        return F.pixel_unshuffle(x, 2)
    count, _, height, width = x.shape
    rows = x.contiguous().view(_PAIRS[x.element_size()]).view(count, height // 2, 2, width // 2)
    cells = rows.new_empty(count, height // 2, width // 2, 2).copy_(rows.permute(0, 1, 3, 2))
    return cells.view(x.dtype).permute(0, 3, 1, 2)


def _from_cells(x: torch.Tensor) -> torch.Tensor:
    """(B, 4, H, W) -> (B, 1, 2 H, 2 W): the way back, `pixel_shuffle`."""
    if not _fused(x):
        return F.pixel_shuffle(x, 2)
    count, _, height, width = x.shape
    cells = x.permute(0, 2, 3, 1).contiguous().view(_PAIRS[x.element_size()])  # (B, H, W, 2)
    rows = cells.new_empty(count, height, 2, width).copy_(cells.permute(0, 1, 3, 2))
    return rows.view(x.dtype).view(count, 1, 2 * height, 2 * width)


def _summed(x: torch.Tensor) -> torch.Tensor:
    """Sixteen times `x` (B, 1, H, W) filtered with 1/4, 1/2, 1/4 along rows and columns; the last pixels are repeated
    beyond the edges."""
    for axis in (2, 3):
        last = x.shape[axis] - 1
        sums = x.narrow(axis, 0, last) + x.narrow(axis, 1, last)
        first = torch.add(sums.narrow(axis, 0, 1), x.narrow(axis, 0, 1), alpha=2)
        final = torch.add(sums.narrow(axis, last - 1, 1), x.narrow(axis, last, 1), alpha=2)
        if _fused(x):
            x = torch.empty_like(x)
            x.narrow(axis, 0, 1).copy_(first)
            torch.add(sums.narrow(axis, 0, last - 1), sums.narrow(axis, 1, last - 1), out=x.narrow(axis, 1, last - 1))
            x.narrow(axis, last, 1).copy_(final)
        else:
            x = torch.cat([first, sums.narrow(axis, 0, last - 1) + sums.narrow(axis, 1, last - 1), final], axis)
    return x


class FastBlock(nn.Module):
    """Two 3x3 convolutions added to their input; no normalisation, so a pixel depends on its neighbourhood alone."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.kaiming_normal_(self.first.weight, nonlinearity="relu")
        nn.init.zeros_(self.second.weight)  # a block starts as the identity
        nn.init.zeros_(self.second.bias)

    def forward(self, x):
        return _add_convolved(x, self.second, _convolve(self.first, x, relu=True))


class FastNetwork(nn.Module):
    """A small U-Net at half resolution without normalisation layers and with a linear output.

    Three convolutions at half resolution, where each costs most, hold the detail; the blocks at a quarter and an
    eighth see what is around. The 2 x 2 depth-to-space head is followed by a fixed binomial filter that is zero at the
    cells' period: the staircases which such a head leaves along edges cannot pass it. Bilinear up-sampling keeps the
    coarser levels free of grids of their own.

    Args: width, whose half, itself and double are the channels of the three levels; cell, 2 for frames, 1 for
    lattices, which are coarse already; extra, further input channels.
    Input (B, 1 + extra, H, W) with H and W multiples of `multiple`; output (B, 1, H, W) float32. `margin`: no input
    pixel further away than this changes an output pixel.
    """

    layout = torch.channels_last

    def __init__(self, width: int = 32, cell: int = 2, extra: int = 0):
        super().__init__()
        self.cell, self.multiple, self.margin = cell, 4 * cell, 40 * cell
        self.offset = None  # of the output, once the network is for inference alone
        fine, middle, coarse = width // 2, width, 2 * width
        self.stem = nn.Conv2d((1 + extra) * cell**2, fine, 3, padding=1)
        self.down_1, self.encoder = nn.Conv2d(fine, middle, 2, stride=2), FastBlock(middle)
        self.down_2 = nn.Conv2d(middle, coarse, 2, stride=2)
        self.bottom = nn.Sequential(FastBlock(coarse), FastBlock(coarse))
        self.up_2, self.decoder = nn.Conv2d(coarse, middle, 1), FastBlock(middle)
        self.up_1 = nn.Conv2d(middle, fine, 1)
        self.last = nn.ModuleList(nn.Conv2d(fine, fine, 3, padding=1) for _ in range(2))
        self.head = nn.Conv2d(fine, cell**2, 1)
        for layer in (self.stem, self.down_1, self.down_2, *self.last):  # those before a ReLU
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def to_precision(self, precision: torch.dtype):
        """For inference. The head's output is counted from the middle of the grey scale: in 16 bits it is then rounded
        by a quarter of a grey level (of 256) at most, of which the filter behind it leaves half."""
        bias = self.head.bias.detach().float() + GREY - MIDDLE
        self.to(dtype=precision, memory_format=self.layout)
        if self.stem.weight.is_cuda and precision != torch.float32:  # whose fast kernels take eight channels or more
            weight = F.pad(self.stem.weight.detach(), (0, 0, 0, 0, 0, -self.stem.in_channels % 8))
            self.stem.weight = nn.Parameter(weight.contiguous(memory_format=self.layout))
        self.head.weight.data.mul_(SHARE)
        self.head.bias.data.copy_(bias * SHARE)
        self.offset = MIDDLE + (bias - self.head.bias.detach().float() / SHARE).mean().item()
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                _pack(layer)
        return self

    def forward(self, x):
        x = (x - GREY).to(self.stem.weight.dtype)
        x = _to_cells(x) if self.cell == 2 else x  # (B, cell^2 (1 + extra), H / cell, W / cell)
        missing = self.stem.weight.shape[1] - x.shape[1]  # on a GPU in 16 bits
        x = F.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x
        fine = _convolve(self.stem, x.contiguous(memory_format=self.layout), relu=True)
        middle = self.encoder(_convolve(self.down_1, fine, relu=True))  # at half of that
        coarse = self.bottom(_convolve(self.down_2, middle, relu=True))  # at a quarter
        middle = self.decoder(_double(_convolve(self.up_2, coarse)).add_(middle))
        fine = _double(_convolve(self.up_1, middle)).add_(fine)
        for layer in self.last:
            fine = _convolve(layer, fine, relu=True)
        if self.offset is not None:
            return _summed(_from_cells(_convolve(self.head, fine)).float()).add_(self.offset)
        share = SHARE if self.cell == 2 else 1.0
        with torch.autocast(x.device.type, enabled=False):
            x = F.conv2d(fine.float(), self.head.weight * share, (self.head.bias + GREY) * share)
        return _summed(_from_cells(x)) if self.cell == 2 else x  # (B, 1, H, W)


class LatticePredictions(NamedTuple):
    """What a `LatticePair` predicts from `LatticeViews`."""

    lattice: torch.Tensor | None  # (B, 1, h, w) at the sites, from the lattice alone, where there is one
    frame: torch.Tensor  # (B, 1, H, W) everywhere, from the whole frame


class LatticePair(nn.Module):
    """The two networks of the disjoint recipe: `low` sees one lattice, `high` the frame. Only `high` is kept."""

    def __init__(self, high: FastNetwork, width: int = 32):
        super().__init__()
        self.high = high
        self.low = FastNetwork(width, cell=1, extra=4)

    def forward(self, views, high: FastNetwork | None = None) -> LatticePredictions:
        """high: in place of its own."""
        frame = (high or self.high)(views.frame)
        if views.lattice is None:
            return LatticePredictions(None, frame)
        height, width = views.lattice.shape[-2:]
        lattice = F.pad(views.lattice, (0, -width % 4, 0, -height % 4), mode="replicate")
        return LatticePredictions(self.low(lattice)[..., :height, :width], frame)


def build(config: ModelConfig) -> nn.Module:
    """The network that `config` describes, with random weights."""
    if config.architecture == "published":
        return SpeckleReductionNetwork(config.scales)
    return FastNetwork(config.width)
