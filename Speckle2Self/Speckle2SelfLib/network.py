"""Define the networks: the published one (the paper's section 3.3) and ours; Documentation/method.md, 1 and 2.

They are written for readers. `inference.py` computes the same faster.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .config import ModelConfig

# --- The published network: one encoder per scale, one shared decoder. The attribute names are those of the authors'
# --- checkpoints, so that their files load unchanged.


class NormalisedConvolution(nn.Module):
    """A convolution, instance normalization without parameters, and (unless linear) a ReLU."""

    normalise = staticmethod(F.instance_norm)  # `inference.accelerate` replaces it with a faster function

    def __init__(self, conv: nn.Module, linear: bool = False):
        super().__init__()
        self.conv = conv
        self.linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.normalise(self.conv(x))
        return x if self.linear else F.relu(x, inplace=True)


class ResidualBlock(nn.Module):
    """Two normalized 3x3 convolutions added to their input, (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        first, second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.model = nn.Sequential(NormalisedConvolution(first), NormalisedConvolution(second, linear=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.model(x)


def _halving(inputs: int, outputs: int) -> NormalisedConvolution:
    """Return a layer (B, inputs, H, W) -> (B, outputs, H / 2, W / 2)."""
    return NormalisedConvolution(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1))


def _doubling(inputs: int, outputs: int) -> NormalisedConvolution:
    """Return a layer (B, inputs, H, W) -> (B, outputs, 2 H, 2 W)."""
    return NormalisedConvolution(nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1))


class Encoder(nn.Module):
    """(B, 1, H, W) -> (B, 256, H / 16, W / 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_block_1, self.residual_block_1 = _halving(1, 32), ResidualBlock(32)
        self.conv_block_2, self.residual_block_2 = _halving(32, 64), ResidualBlock(64)
        self.conv_block_3, self.residual_block_3 = _halving(64, 128), ResidualBlock(128)
        self.conv_block_4, self.residual_block_end = _halving(128, 256), ResidualBlock(256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.children():
            x = stage(x)
        return x


class Decoder(nn.Module):
    """(B, 256, H / 16, W / 16) -> (B, 1, H, W), never negative: the last layer also has a normalization and a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.residual_block_start = ResidualBlock(256)
        self.conv_block_1, self.residual_block_1 = _doubling(256, 128), ResidualBlock(128)
        self.conv_block_2, self.residual_block_2 = _doubling(128, 64), ResidualBlock(64)
        self.conv_block_3, self.residual_block_3 = _doubling(64, 32), ResidualBlock(32)
        self.conv_block_4 = _doubling(32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.children():
            x = stage(x)
        return x


class SpeckleReductionNetwork(nn.Module):
    """The published network.

    Called with views (one (B, 1, H, W) each, full scale first), it returns a prediction for each; called with one
    tensor, it returns the prediction of the full-scale branch, which is all that inference needs. H and W are multiples
    of `multiple`. Instance normalization ties each pixel to the whole frame: there is no `margin` for tiles.
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
    def encoders(self) -> list[nn.Module]:
        """Return the encoders, full scale first."""
        return [module for name, module in self.named_children() if name.startswith("encoder")]

    def forward(self, views: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor | tuple[torch.Tensor, ...]:
        if isinstance(views, torch.Tensor):
            return self.decoder(self.encoder_highRes(views))
        return tuple(self.decoder(encoder(view)) for encoder, view in zip(self.encoders, views, strict=True))


# --- Our network.

GREY = 0.25  # about the mean grey value, so that zero padding resembles tissue rather than a black frame
CELL = 2  # pixels: the network works on cells of 2 x 2
STEPS = ((0, 1), (1, 0), (1, 1), (1, -1))  # rows and columns from a pixel to its next neighbors; the others mirror them
UNSURE = 0.03  # grey values; the error's standard deviation that a new head returns
LEAST, MOST = 1e-3, 0.07  # grey values; range of a head's deviations, since larger ones proved wrong
BEGINNING = math.log(UNSURE / math.sqrt(1 - (UNSURE / MOST) ** 2))  # output of a new head, whose layers add nothing


class FastBlock(nn.Module):
    """Two 3x3 convolutions added to their input, then `more` such blocks. Without normalization, a pixel depends only
    on its neighborhood."""

    def __init__(self, channels: int, more: int = 0):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.kaiming_normal_(self.first.weight, nonlinearity="relu")
        for parameter in self.second.parameters():
            nn.init.zeros_(parameter)  # a block starts as the identity
        self.more = nn.Sequential(*(FastBlock(channels) for _ in range(more)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.more(x + self.second(F.relu(self.first(x))))


def double(x: torch.Tensor) -> torch.Tensor:
    """Interpolate (B, C, H, W) bilinearly to (B, C, 2 H, 2 W)."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def smooth(x: torch.Tensor) -> torch.Tensor:
    """Filter (B, C, H, W) with 1/4, 1/2, 1/4 along rows and columns, repeating the last pixels beyond the edges."""
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")  # (B, C, H + 2, W + 2)
    for axis in (2, 3):
        for _ in range(2):  # the mean of two neighbors, twice
            pairs = x.shape[axis] - 1
            x = (x.narrow(axis, 0, pairs) + x.narrow(axis, 1, pairs)) / 2
    return x


def equal_neighbors(x: torch.Tensor) -> torch.Tensor:
    """Return the fraction of each pixel's eight neighbors that have exactly its value, (B, 1, H, W) float32.

    Lines and letters that a scanner draws often have a single grey value; speckle hardly ever has, except where it is
    saturated.
    """
    counts = torch.zeros(x.shape, dtype=torch.uint8, device=x.device)
    for step in STEPS:
        one, other = windows(x, 2, step)
        same = (x[one] == x[other]).view(torch.uint8)
        counts[one] += same
        counts[other] += same
    return counts.float() / 8


def windows(x: torch.Tensor, count: int, step: tuple[int, int]) -> Iterator[tuple]:
    """Yield the windows of x (..., H, W) that hold the first, second, ... pixel of runs of `count` pixels; step: rows
    and columns from one pixel of a run to the next, see STEPS."""
    (height, width), (down, right), last = x.shape[-2:], step, count - 1
    for pixel in range(count):
        left = pixel * right if right >= 0 else last - pixel
        rows = slice(pixel * down, height - (last - pixel) * down)
        yield ..., rows, slice(left, left + width - last * abs(right))


class UncertaintyHead(nn.Module):
    """The natural logarithm of the error's standard deviation in grey values, from the features of the grey value.

    A coarse part sees the surroundings (two layers at a quarter of the frame's resolution), a fine part the edges (one
    layer at half of it). No gradient passes to the features: the grey value learns nothing from this head.
    Input (B, width / 2, H / 2, W / 2) and (B, width, H / 4, W / 4); output (B, 1, H, W) float32.
    """

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = nn.Conv2d(width, 16, 3, padding=1), nn.Conv2d(16, CELL**2, 1)
        self.fine = nn.Conv2d(width // 2, CELL**2, 1)
        for parameter in (*self.second.parameters(), *self.fine.parameters()):
            nn.init.zeros_(parameter)  # a new head returns UNSURE everywhere

    def forward(self, fine: torch.Tensor, middle: torch.Tensor) -> torch.Tensor:
        coarse = self.second(F.relu(self.first(middle.detach())))  # (B, 4, H / 4, W / 4)
        coarse = double(F.pixel_shuffle(coarse.float(), CELL))  # (B, 1, H, W)
        detail = F.pixel_shuffle(self.fine(fine.detach()).float(), CELL)
        free = (smooth(detail) + coarse + BEGINNING).clamp(min=math.log(LEAST))
        return free - F.softplus(2 * (free - math.log(MOST))) / 2  # the logarithm of d / (1 + (d / MOST)^2)^(1/2)


class FastNetwork(nn.Module):
    """A small U-Net at half resolution without normalization layers and with a linear output.

    Three convolutions at half resolution, where each costs most, hold the detail; the blocks at a quarter and an
    eighth see the surroundings, those at a sixteenth, where there are `deep` ones, wider ones still. The 2 x 2
    depth-to-space head is followed by a fixed binomial filter that is zero at the cells' period: the staircases which
    such a head leaves along edges cannot pass it. Bilinear up-sampling keeps the coarser levels free of grids of their
    own.

    Args: width, whose half, itself, double and fourfold are the channels of the levels; blocks, the length of each of
    the four rows of blocks at a quarter and an eighth; deep, blocks at the deepest level, 0 for none; uncertainty,
    whether there is a head for the error's standard deviation; equality, whether the first layer also sees
    `equal_neighbors`. A further head is a module of the same inputs, called in `maps`.
    Input (B, 1, H, W) with H and W multiples of `multiple`; output (B, 1, H, W) float32. `margin`: no input pixel
    further away than this changes an output pixel.
    """

    def __init__(
        self, width: int = 32, deep: int = 0, uncertainty: bool = False, equality: bool = False, blocks: int = 1
    ):
        super().__init__()
        self.equality, more = equality, blocks - 1
        self.multiple, self.margin = (16, 96 + 32 * deep + 48 * more) if deep else (8, 80 + 48 * more)
        fine, middle, coarse = width // 2, width, 2 * width
        self.stem = nn.Conv2d(CELL**2 * (2 if equality else 1), fine, 3, padding=1)
        self.down_1, self.encoder = nn.Conv2d(fine, middle, 2, stride=2), FastBlock(middle, more)
        self.down_2 = nn.Conv2d(middle, coarse, 2, stride=2)
        self.bottom = nn.Sequential(FastBlock(coarse, more), FastBlock(coarse, more))
        self.up_2, self.decoder = nn.Conv2d(coarse, middle, 1), FastBlock(middle, more)
        self.up_1 = nn.Conv2d(middle, fine, 1)
        self.last = nn.ModuleList(nn.Conv2d(fine, fine, 3, padding=1) for _ in range(2))
        self.head = nn.Conv2d(fine, CELL**2, 1)
        for layer in (self.stem, self.down_1, self.down_2, *self.last):  # those before a ReLU
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        self.deep = nn.Sequential(*(FastBlock(2 * coarse) for _ in range(deep))) if deep else None
        if deep:
            self.down_3, self.up_3 = nn.Conv2d(coarse, 2 * coarse, 2, stride=2), nn.Conv2d(2 * coarse, coarse, 1)
            nn.init.kaiming_normal_(self.down_3.weight, nonlinearity="relu")
            for parameter in self.up_3.parameters():
                nn.init.zeros_(parameter)  # at first the level changes nothing
        self.uncertainty = UncertaintyHead(width) if uncertainty else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.grey(self.features(x)[0])

    def maps(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the outputs of the heads in one pass: the grey value, and the logarithm of its error's standard
        deviation (None without that head), (B, 1, H, W) float32 each."""
        fine, middle = self.features(x)
        return self.grey(fine), self.uncertainty(fine, middle) if self.uncertainty is not None else None

    def grey(self, fine: torch.Tensor) -> torch.Tensor:
        """Return the grey value, (B, 1, H, W) float32, from features (B, width / 2, H / 2, W / 2)."""
        with torch.autocast(fine.device.type, enabled=False):  # single precision, also when training runs in half
            x = self.head(fine.float()) + GREY  # (B, 4, H / 2, W / 2)
        return smooth(F.pixel_shuffle(x, CELL))  # (B, 1, H, W)

    def features(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features for the heads, (B, width / 2, H / 2, W / 2) and (B, width, H / 4, W / 4)."""
        x = torch.cat([x, equal_neighbors(x)], 1) if self.equality else x  # (B, 2 or 1, H, W)
        x = F.pixel_unshuffle(x - GREY, CELL)  # (B, 8 or 4, H / 2, W / 2)
        fine = F.relu(self.stem(x))
        middle = self.encoder(F.relu(self.down_1(fine)))  # half of that resolution
        coarse = self.bottom[0](F.relu(self.down_2(middle)))  # a quarter
        if self.deep is not None:  # an eighth
            coarse = coarse + double(self.up_3(self.deep(F.relu(self.down_3(coarse)))))
        coarse = self.bottom[1](coarse)
        middle = self.decoder(double(self.up_2(coarse)) + middle)
        fine = double(self.up_1(middle)) + fine
        for layer in self.last:
            fine = F.relu(layer(fine))
        return fine, middle


class FrameLearner(nn.Module):
    """Our network as it is trained: called with views, a frame and its truth, it returns its `maps` of the frame."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network: Any = network

    def forward(self, views: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.network.maps(views[0])


NETWORKS = {"fast": FastNetwork, "published": SpeckleReductionNetwork}  # network classes by `ModelConfig.architecture`


def build(config: ModelConfig) -> FastNetwork | SpeckleReductionNetwork:
    """Return the network that `config` describes, with random weights."""
    if NETWORKS[config.architecture] is SpeckleReductionNetwork:
        return SpeckleReductionNetwork(config.scales)
    return FastNetwork(config.width, config.deep, config.uncertainty, config.equality, config.blocks)


def grow(network: nn.Module, config: ModelConfig, seed: int) -> FastNetwork | SpeckleReductionNetwork:
    """Return the network that `config` describes with the weights of another; parts that it lacks are new."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        grown = build(config)
    grown.load_state_dict(network.state_dict(), strict=False)
    return grown.eval()
