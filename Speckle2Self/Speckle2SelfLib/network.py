"""The networks: the published one (METHOD.md 1, the paper's section 3.3) and our fast one (METHOD.md 3)."""

from __future__ import annotations

from itertools import pairwise
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
        # One group per channel is the same up to rounding, and several times faster on the CPU.
        fast = x.device.type == "cpu" and not self.training
        x = F.group_norm(x, x.shape[1]) if fast else F.instance_norm(x)
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
    layout = torch.contiguous_format  # on the CPU, its normalisation is faster and more exact so

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

    def forward(self, views):
        if isinstance(views, torch.Tensor):
            return self.decoder(self.encoder_highRes(views))
        return tuple(self.decoder(encoder(view)) for encoder, view in zip(self.encoders, views, strict=True))


# --- The fast network.


class FastBlock(nn.Module):
    """Two 3x3 convolutions added to their input; no normalisation, so a pixel depends on its neighbourhood alone."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)  # a block starts as the identity
        nn.init.zeros_(self.second.bias)

    def forward(self, x):
        return self.second(self.first(F.relu(x)).relu_()).add_(x)


class FastNetwork(nn.Module):
    """A small U-Net at half resolution without normalisation layers and with a linear output.

    The 2 x 2 depth-to-space head is followed by a fixed binomial filter that is zero at the cells' period: the
    staircases which such a head leaves along edges cannot pass it. Mean pooling and bilinear up-sampling keep the
    coarser levels free of grids of their own.

    Args: width, channels of the first level, doubled on the next two; cell, 2 for frames, 1 for lattices, which are
    coarse already; extra, further input channels.
    Input (B, 1 + extra, H, W) with H and W multiples of `multiple`; output (B, 1, H, W). `margin`: no input pixel
    further away than this changes an output pixel.
    """

    layout = torch.channels_last

    def __init__(self, width: int = 32, cell: int = 2, extra: int = 0):
        super().__init__()
        self.cell, self.multiple, self.margin = cell, 4 * cell, 40 * cell
        channels = [width, 2 * width, 4 * width]
        pairs = list(pairwise(channels))
        self.stem = nn.Conv2d((1 + extra) * cell**2, width, 3, padding=1)
        self.encoder = nn.ModuleList(FastBlock(c) for c in channels[:-1])
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 1) for fine, coarse in pairs)
        self.bottom = nn.Sequential(FastBlock(channels[-1]), FastBlock(channels[-1]))
        self.up = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in pairs)
        self.decoder = nn.ModuleList(FastBlock(c) for c in channels[:-1])
        self.head = nn.Conv2d(width, cell**2, 3, padding=1)
        binomial = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("binomial", (binomial[:, None] * binomial)[None, None], persistent=False)

    def forward(self, x):
        middle = 0.25  # about the mean grey value: zero padding then resembles tissue more than a black frame
        x = self.stem(F.pixel_unshuffle(x - middle, self.cell))  # (B, width, H / cell, W / cell)
        skips = []
        for block, down in zip(self.encoder, self.down, strict=True):
            x = block(x)
            skips.append(x)
            x = down(F.avg_pool2d(x, 2))
        x = self.bottom(x)  # (B, 4 width, H / (4 cell), W / (4 cell))
        for block, up, skip in zip(self.decoder[::-1], self.up[::-1], skips[::-1], strict=True):
            x = block(skip + F.interpolate(up(x), scale_factor=2, mode="bilinear", align_corners=False))
        with torch.autocast(x.device.type, enabled=False):  # 16 bits would leave steps of a grey level
            x = F.pixel_shuffle(self.head(F.relu(x).float()), self.cell)  # (B, 1, H, W)
        if self.cell == 2:
            x = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), self.binomial)
        return x + middle


class LatticePredictions(NamedTuple):
    """What a `LatticePair` predicts from `LatticeViews`."""

    lattice: torch.Tensor  # (B, 1, h, w) at the sites, from the lattice alone
    frame: torch.Tensor  # (B, 1, H, W) everywhere, from the whole frame


class LatticePair(nn.Module):
    """The two networks of the disjoint recipe: `low` sees one lattice, `high` the frame. Only `high` is kept."""

    def __init__(self, high: FastNetwork, width: int = 32):
        super().__init__()
        self.high = high
        self.low = FastNetwork(width, cell=1, extra=4)

    def forward(self, views) -> LatticePredictions:
        height, width = views.lattice.shape[-2:]
        lattice = F.pad(views.lattice, (0, -width % 4, 0, -height % 4), mode="replicate")
        return LatticePredictions(self.low(lattice)[..., :height, :width], self.high(views.frame))


def build(config: ModelConfig) -> nn.Module:
    """The network that `config` describes, with random weights."""
    if config.architecture == "published":
        return SpeckleReductionNetwork(config.scales)
    return FastNetwork(config.width)
