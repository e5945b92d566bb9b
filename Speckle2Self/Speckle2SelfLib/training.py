"""The training loop of both recipes: a generator of step reports that knows nothing of who listens."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from . import metrics
from .augmentation import Augmentation, augment, draw_augmentation
from .config import ModelConfig, TrainingConfig
from .devices import choose_precision, each_in_order
from .grain import measure_grain
from .grey import BRIGHTEST, evenly, grey_mapping, luminance
from .inference import SHAPES, Replayed, accelerate, through_network
from .loss import disjoint_loss, published_loss
from .network import LatticePair, build
from .perturbation import LatticeViews, lattice_views, min_max, published_views
from .region import box_of, fill_outside
from .resampling import Resampling
from .simulation import simulate_recorded
from .system import InputError, out_of_memory

FAST_GRAIN = (0.65, 1.45)  # pixels, as `estimate_grain` measures it; other recordings are resampled to it
SIMULATED_GRAIN = (0.85, 2.6)  # pixels, as the simulator counts it: 0.8 to 2 as measured
COUNTED = (0.85, 1.2, 1.7, 2.2, 2.6, 3.2)  # pixels, grains of the simulator
MEASURED = (0.80, 1.15, 1.5, 1.8, 1.97, 2.75)  # what `estimate_grain` finds in their frames
PIECES = 0.3  # of the simulated frames that span all grains: pieces of fans, where the grain is turned
SIDE_BY_SIDE = 4  # anatomies that are made at a time; Python itself serves one thread alone
HELD_OUT_ANATOMIES = (16, 64)  # at least and at most, a hundredth of those trained on in between
NONE = Augmentation(None)
NO_NUMBER = "The loss is no longer a number at step {}: train anew with another seed, or from another model."
Made = Callable[[int, int], None]


@dataclass(frozen=True)
class Cine:
    """One recording as training sees it."""

    frames: torch.Tensor  # (N, 1, H, W) at the model's grain, float32 about [0, 1], or uint8 as recorded
    grain: tuple[float, float] = (1.0, 1.0)  # (axial, lateral) pixels, as `estimate_grain` measures it
    truth: torch.Tensor | None = None  # (N, 1, H, W) for simulated frames
    resampling: Resampling | None = None  # that brought it to the model's grain
    recorded_grain: tuple[float, float] | None = None  # pixels of the recording
    digest: int = 0  # of the recording, to know it again


@dataclass(frozen=True)
class Report:
    """One optimiser step."""

    step: int  # from 1
    steps: int
    terms: dict[str, float]  # the loss by name; the sum is minimised
    rate: float  # steps per second
    message: str = ""  # for the user, where something has changed

    @property
    def seconds_left(self) -> float:
        """At the present rate."""
        return (self.steps - self.step) / self.rate


@dataclass(frozen=True)
class Batch:
    """One process's share of a batch."""

    frames: torch.Tensor  # (B, 1, h, w)
    truth: torch.Tensor | None  # (B, 1, h, w)
    grain: tuple[float, float]  # pixels
    augmentation: Augmentation = NONE


def prepare_cine(frames: np.ndarray, region: np.ndarray | None, model: ModelConfig) -> Cine:
    """A recording (N, H, W[, C]) cut to its region's bounding box and brought to the model's grain.

    Raises InputError where it is smaller than 32 pixels, 16 at the model's grain, or constant.
    """
    if region is not None and region.any():
        box = box_of(region)
        frames, region = frames[:, box[0], box[1]], region[box]
    else:
        region = np.ones(frames.shape[1:3], bool)
    low, high = grey_mapping(frames, region)
    if high <= low or min(frames.shape[1:3]) < 32:
        raise InputError("Nothing can be learnt from frames or regions that are constant or smaller than 32 pixels.")
    grain = measure_grain(luminance(frames[:: max(1, len(frames) // 8)]), region)
    if model.grain is None:
        eight_bit = frames.dtype == np.uint8 and frames.ndim == 3
        frames = frames.copy() if eight_bit else np.nan_to_num(luminance(frames), False, low, high, low)
        return Cine(torch.from_numpy(frames)[:, None], recorded_grain=grain)
    resampling = Resampling(region, grain, model.grain)
    if min(resampling.size) < 16:
        raise InputError("Frames or regions are too small for the grain of their speckle: nothing can be learnt.")
    prepared = []
    for frame in frames:
        frame = np.nan_to_num(luminance(frame[None]), nan=low, posinf=high, neginf=low)
        frame = torch.from_numpy((fill_outside(frame, region) - low) / (high - low))
        prepared.append(resampling.to_network(frame[:, None]))
    return Cine(torch.cat(prepared), resampling.grain, resampling=resampling, recorded_grain=grain)


def simulate_cines(count: int, crop: int, rng: np.random.Generator, grains=(), made: Made = lambda *_: None) -> Cine:
    """`count` anatomies of crop x crop pixels with their truth, as recorders store them, mapped as recordings are.

    grains: those of recordings, as measured; each anatomy has one of them, give or take 15 %. Without, they span all.
    made: called after each with (anatomies made, anatomies); what it raises ends the simulation.
    Each anatomy has a seed of its own, so that they can be made side by side.
    """
    frames, truths = np.empty((2, count, 1, crop, crop), np.float32)
    seeds = rng.integers(2**63, size=count)

    def make(number: int) -> None:
        frames[number, 0], truths[number, 0] = _anatomy(seeds[number], crop, grains)

    with each_in_order(make, range(count), SIDE_BY_SIDE, torch.device("cpu")) as anatomies:
        for number, _ in enumerate(anatomies, 1):
            made(number, count)
    return Cine(torch.from_numpy(frames), truth=torch.from_numpy(truths))


def _anatomy(seed: int, crop: int, grains) -> tuple[np.ndarray, np.ndarray]:
    """One frame (crop, crop) and its truth; see `simulate_cines`."""
    rng = np.random.default_rng(seed)
    if grains:
        measured = grains[int(rng.integers(len(grains)))]
        grain = tuple(np.interp(measured, MEASURED, COUNTED) * np.exp(rng.uniform(-0.15, 0.15, 2)))
    else:
        grain = tuple(np.exp(rng.uniform(*np.log(SIMULATED_GRAIN), 2)))
    geometry = "linear" if grains or rng.random() >= PIECES else "piece"
    frame, truth = simulate_recorded((crop, crop), grain, geometry, rng)
    low, high = grey_mapping(frame[None], None)
    span = max(high - low, 1e-3)
    return np.minimum((frame - low) / span, BRIGHTEST), (truth - low) / span


class Training:
    """A run over `cines`. Iterate over `run()`; `network` is then the trained one, averaged over the last steps.

    Args: cines, recorded ones (may be empty if the config simulates); held_out, cines for validation alone; network,
    where to start from, else random; device; made, see `simulate_cines`, of those to train on. Deterministic
    on the CPU for a given config and precision.

    Under `torch.distributed` every process draws the same batch and takes its share of it, so that any number of
    processes gives the same losses. Raises InputError where there is nothing to train on.
    """

    def __init__(
        self,
        cines: list[Cine],
        config: TrainingConfig,
        model: ModelConfig,
        network=None,
        device="cpu",
        held_out=(),
        made: Made = lambda *_: None,
    ):
        self.config, self.device = config, torch.device(device)
        self.rank, self.processes = 0, 1
        if dist.is_initialized():
            self.rank, self.processes = dist.get_rank(), dist.get_world_size()
            if config.batch % self.processes:
                raise InputError(f"A batch of {config.batch} cannot be shared by {self.processes} processes evenly.")
        self.rng = np.random.default_rng(config.seed)
        self.held_out = list(held_out)
        self.simulated = None
        if config.simulated:
            count = min(config.simulated, config.steps * config.batch)
            grains, apart = [cine.grain for cine in cines], np.random.default_rng([config.seed, 1])
            self.simulated = _near(simulate_cines(count, config.crop, self.rng, grains, made), self.device)
            held_out = int(np.clip(config.simulated // 100, *HELD_OUT_ANATOMIES))
            self.held_out.append(simulate_cines(held_out, config.crop, apart, grains))
        if not cines and not config.simulated:
            raise InputError("There is nothing to train on: give recordings, or simulate some.")
        self.recorded = [_near(cine, self.device) for cine in cines]
        self.step, self.batch, self.best = 0, config.batch, float("inf")
        self.latest: dict[str, float] = {}  # terms of the loss
        self.precision = choose_precision(self.device, training=True)
        if self.processes > 1:  # it is measured, and each may find another
            half = torch.tensor(self.precision == torch.bfloat16, dtype=torch.float32, device=self.device)
            dist.broadcast(half, 0)
            self.precision = torch.bfloat16 if half.item() else torch.float32
        self._random = network is None
        published, cuda = config.recipe == "published", self.device.type == "cuda"
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(config.seed)
            network = network or build(model)
            self.pair = accelerate(network if published else LatticePair(network))
        network, self.pair = network.to(self.device), self.pair.to(self.device)
        self.views, self.loss = self._published_views, published_loss
        if not published:
            self.views, self.loss = self._lattice_views, partial(disjoint_loss, detail=config.detail)
        # CUDA's normalisation would turn interleaved channels back.
        layout = torch.contiguous_format if published and cuda else torch.channels_last
        self.pair = self.model = self.pair.to(memory_format=layout).train()
        if self.processes > 1:  # simulated frames leave the lattice's network out
            self.model = DistributedDataParallel(
                self.pair, find_unused_parameters=bool(config.simulated or config.lead)
            )
        self.network, self._average = network, lambda: None
        if config.averaging:
            self.network = copy.deepcopy(network)
            self._average = lambda: self._follow(network)
        betas = (0.5, 0.999) if published else (0.9, 0.99)
        self.optimiser = torch.optim.Adam(self.pair.parameters(), config.learning_rate, betas, fused=cuda)
        self._names: dict[bool, tuple[str, ...]] = {}  # of the loss's terms: of recordings, of simulated frames
        sizes = {tuple(min(config.crop, n) for n in cine.frames.shape[-2:]) for cine in cines} if published else ()
        self._replays = cuda and self.processes == 1 and len(sizes) <= SHAPES and not (published and config.lead)
        self._replayed = Replayed(
            lambda *given: self._learn(given if published else LatticeViews(given[0], truth=given[1])),
            parameters=self.pair.parameters(),
        )

    def run(self) -> Iterator[Report]:
        """Trains from the step that has been reached; yields a report after every step.

        Where memory is short the batch is halved, and the report's message says so. Raises InputError where the loss
        is no number, or where memory is too short for a single frame.
        """
        started, first, message = time.monotonic(), self.step, ""
        while self.step < self.config.steps:
            try:
                terms = self._train_step()
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or self.processes > 1:
                    raise
                if self.batch == 1:
                    raise InputError(
                        "Memory is too short for a batch of one frame: close other programs, or take another device."
                    ) from error
                self.batch //= 2
                self._replayed.recorded.clear()
                self.optimiser.zero_grad(set_to_none=True)
                message = f"Memory is too short: the batch is now {self.batch}."
                continue
            self.step += 1
            rate = (self.step - first) / max(time.monotonic() - started, 1e-9)
            self.latest = self.latest | terms  # simulated and recorded frames have terms of their own
            yield Report(self.step, self.config.steps, self.latest, rate, message)
            message = ""
        self.network.eval()

    def _train_step(self) -> dict[str, float]:
        config = self.config
        if config.recipe != "published":
            warm = min(1, (self.step + 1) / 50)
            falling = 0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * self.step / config.steps))
            self.optimiser.param_groups[0]["lr"] = config.learning_rate * warm * falling
        views = self.views(self._draw(), self.rng)
        self.optimiser.zero_grad(set_to_none=True)
        simulated = config.recipe != "published" and views.truth is not None
        if simulated and self._replays:
            values = self._replayed(views.frame, views.truth)
        elif config.recipe == "published" and self._replays:
            values = self._replayed(*views)
        else:  # lattices have another shape each time
            values = self._learn(views)
        if self.processes > 1:
            dist.all_reduce(values)
            values /= self.processes
        values = values.tolist()  # waits for a GPU, once in a step
        if not np.isfinite(values).all():
            raise InputError(NO_NUMBER.format(self.step + 1))
        self.optimiser.step()
        self._average()  # before the step is counted
        return dict(zip(self._names[simulated], values, strict=True))

    def _follow(self, network) -> None:
        """The averaged weights after a step; of random ones, where the run started, soon nothing is left."""
        decay = self.config.averaging
        if self._random:
            decay = min(decay, (1 + self.step) / (10 + self.step))
        get_ema_multi_avg_fn(decay)(list(self.network.parameters()), list(network.parameters()), None)

    def _learn(self, views) -> torch.Tensor:
        """The terms of the loss; their names are in `_names` then, the gradients of their sum in the parameters."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            terms = self.loss(self.model(views), views)
        leads = self.step < self.config.lead * self.config.steps
        sum(term for name, term in terms.items() if not (leads and name == "consistency")).backward()
        self._names["truth" in terms] = tuple(terms)
        return torch.stack([term.detach().float() for term in terms.values()])

    @torch.no_grad()
    def validate(self) -> tuple[dict[str, float], np.ndarray | None]:
        """Figures on the held-out cines, and one of their frames beside its result.

        The loss terms, over views that are the same each time (`held-out <term>`); homogeneity, holes and structure
        (Documentation/method.md, section 5), of recorded frames at the model's grain; rms, the error against the truth,
        of simulated ones. What cannot be measured (the structure of a black frame) is left out; nothing is where
        nothing is held out. The picture is (H, 2 W) uint8. Raises InputError where the loss is no number.
        """
        rng, terms, figures, picture = np.random.default_rng(0), {}, {}, None
        network = self.network.eval()
        for cine in self.held_out:
            count = len(cine.frames)
            for number in evenly(count, 4) if cine.truth is None else range(count):
                frame = cine.frames[number : number + 1].to(self.device)
                truth = None if cine.truth is None else cine.truth[number : number + 1].to(self.device)
                height, width = (min(n // 16 * 16, 512) for n in frame.shape[-2:])
                part = None if truth is None else truth[..., :height, :width]
                views = self.views(Batch(frame[..., :height, :width], part, cine.grain), rng)
                # What is kept is what is judged.
                predictions = network(views) if self.config.recipe == "published" else self.pair(views, network)
                for name, term in self.loss(predictions, views).items():
                    terms.setdefault(f"held-out {name}", []).append(term.item())
                before = min_max(frame.float()) if self.config.recipe == "published" else frame
                after = through_network(network, before).clamp(0, BRIGHTEST)
                if truth is not None:
                    figures.setdefault("rms", []).append((after - truth).square().mean().sqrt().item())
                    continue
                if picture is None:
                    picture = np.hstack([to_8_bit(_as_recorded(x, cine.resampling)) for x in (before, after)])
                before, after = (to_8_bit(x) for x in (before, after))
                for name, value in metrics.evaluate(before[None], after[None]).items():
                    figures.setdefault(name, []).append(value)
        self.pair.train()
        means = {name: float(np.mean(values)) for name, values in (terms | figures).items()}
        if not np.isfinite(list(means.values())).all():
            raise InputError(NO_NUMBER.format(self.step))
        return means, picture

    def state(self) -> tuple[dict[str, torch.Tensor], dict]:
        """All that a run needs to go on bit for bit: tensors by name, and JSON types.

        Raises InputError where a weight is no number: a gradient may be none where the loss still is one.
        """
        tensors = {f"pair.{name}": tensor for name, tensor in self.pair.state_dict().items()}
        tensors |= {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        for number, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": tensor for name, tensor in moments.items()}
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise InputError(NO_NUMBER.format(self.step))
        return tensors, {
            "step": self.step, "batch": self.batch, "best": self.best if np.isfinite(self.best) else None,
            "latest": self.latest, "random": self._random, "rng": self.rng.bit_generator.state,
            "precision": str(self.precision).removeprefix("torch."),
        }  # fmt: skip

    def restore(self, tensors: dict[str, torch.Tensor], values: dict) -> None:
        """Goes on from a `state` of a run of the same config. Raises InputError where it is another's."""
        adam, sizes = self.optimiser.state_dict(), [parameter.shape for parameter in self.pair.parameters()]
        try:
            for name, tensor in tensors.items():
                part, _, rest = name.partition(".")
                if part == "adam":
                    number, name = rest.split(".")
                    adam["state"].setdefault(int(number), {})[name] = tensor
            for number, moments in adam["state"].items():
                found, size = {name: tensor.shape for name, tensor in moments.items()}, sizes[number]
                if found != {"step": torch.Size(), "exp_avg": size, "exp_avg_sq": size}:
                    raise ValueError(f"the moments of parameter {number} are others")
            parts = [
                {n.partition(".")[2]: t for n, t in tensors.items() if n.startswith(p)} for p in ("pair.", "network.")
            ]
            self.pair.load_state_dict(parts[0])
            self.network.load_state_dict(parts[1])
            self.optimiser.load_state_dict(adam)
            self.rng.bit_generator.state = values["rng"]
            self.step, self.batch, self.latest = values["step"], values["batch"], values["latest"]
            self.best = float("inf") if values["best"] is None else values["best"]
            self._random = values["random"]
            self.precision = {"bfloat16": torch.bfloat16, "float32": torch.float32}[values["precision"]]
        except (RuntimeError, KeyError, IndexError, ValueError, TypeError, OverflowError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise InputError(f"The saved run is not of this kind of network: {reason:.200}.") from error

    def _draw(self) -> Batch:
        """A batch of crops of one cine, drawn alike in every process; this process's share of it."""
        take_simulated = self.simulated is not None and (not self.recorded or self.rng.random() < self.config.share)
        cine = self.simulated if take_simulated else self.recorded[int(self.rng.integers(len(self.recorded)))]
        chosen = self.rng.integers(len(cine.frames), size=self.batch)
        multiple = 16 if self.config.recipe == "published" else 8
        height, width = (min(self.config.crop, n // multiple * multiple) for n in cine.frames.shape[-2:])
        room = np.array(cine.frames.shape[-2:]) - (height, width) + 1
        corners = self.rng.integers(room, size=(self.batch, 2))
        drawn = draw_augmentation(self.rng, self.batch, self.config.recipe)
        share = slice(self.rank, None, self.processes)

        def crop(frames):
            windows = zip(chosen[share], corners[share], strict=True)
            return torch.stack([frames[n, :, y : y + height, x : x + width] for n, (y, x) in windows]).to(self.device)

        return Batch(
            crop(cine.frames), None if cine.truth is None else crop(cine.truth), cine.grain, drawn.share(share)
        )

    def _published_views(self, batch: Batch, rng):
        return tuple(augment(view, batch.augmentation) for view in published_views(batch.frames))

    def _lattice_views(self, batch: Batch, rng):
        frames = augment(batch.frames, batch.augmentation)
        if batch.truth is not None:
            return LatticeViews(frames, truth=augment(batch.truth, batch.augmentation))
        return lattice_views(frames, rng, batch.grain)


def _near(cine: Cine, device: torch.device) -> Cine:
    """The cine with its frames on the device, unless they take more than a quarter of the memory that is free there."""
    tensors = {name: getattr(cine, name) for name in ("frames", "truth") if getattr(cine, name) is not None}
    if device.type != "cuda" or 4 * sum(x.nbytes for x in tensors.values()) > torch.cuda.mem_get_info(device)[0]:
        return cine
    return replace(cine, **{name: x.to(device) for name, x in tensors.items()})


def _as_recorded(x: torch.Tensor, resampling: Resampling | None) -> torch.Tensor:
    """(1, 1, h, w) at the model's grain -> (1, 1, H, W) in the recording's region, black around it."""
    return x if resampling is None else resampling.to_recording(x.cpu()) * torch.from_numpy(resampling.region)


def to_8_bit(x: torch.Tensor) -> np.ndarray:
    """(1, 1, H, W) about [0, 1] -> (H, W) uint8."""
    return (x[0, 0].float().clamp(0, 1) * 255).round().byte().cpu().numpy()
