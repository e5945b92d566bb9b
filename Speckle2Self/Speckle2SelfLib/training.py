"""The training loop of all recipes: a generator of step reports that knows nothing of its listeners."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from . import validation
from .config import ModelConfig, TrainingConfig
from .dataset import Batch, Cine
from .devices import choose_precision
from .inference import SHAPES, Replayed, accelerate, convert
from .loss import total
from .network import build
from .recipes import recipe_of
from .system import InputError, Progress, _, out_of_memory

NOT_A_NUMBER = _("The loss became NaN at step {step}. Train again with another seed or another starting model.")


@dataclass(frozen=True)
class Report:
    """One optimizer step."""

    step: int  # number of the step, from 1
    steps: int
    terms: dict[str, float]  # the loss by name
    rate: float  # steps per second
    message: str = ""  # shown to the user if something has changed

    @property
    def seconds_left(self) -> float:
        """Return the time to the end at the present rate."""
        return (self.steps - self.step) / self.rate


class Training:
    """A run over `cines`. Iterate over `run()`; `network` is then the trained one, averaged over the last steps, with
    the config's share of the initial weights.

    Args: cines, recorded ones (may be empty if the config simulates); network, to start from, else a random one;
    held_out, cines that are used only for validation; progress, see `dataset.simulate_cines`, of those to train on;
    teacher, despeckles the recordings for recipes that need it, else the network to start from does.
    Deterministic on the CPU for a given config and precision.

    Under `torch.distributed` every process draws the same batch and uses its share of it, so that any number of
    processes has the same losses. Raises InputError where there is nothing to train on.
    """

    def __init__(
        self,
        cines: Sequence[Cine],
        config: TrainingConfig,
        model: ModelConfig,
        network: nn.Module | None = None,
        device: str | torch.device = "cpu",
        held_out: Sequence[Cine] = (),
        progress: Progress = lambda *_: None,
        teacher: nn.Module | None = None,
    ):
        self.config, self.device, self.recipe = config, torch.device(device), recipe_of(config)
        self.rank, self.processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if config.batch % self.processes:
            raise InputError(f"A batch of {config.batch} cannot be shared evenly by {self.processes} processes.")
        self.rng = np.random.default_rng(config.seed)
        self.step, self.batch, self.best = 0, config.batch, float("inf")
        self.precision = self._choose_precision()
        self._random = network is None
        cuda = self.device.type == "cuda"
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(config.seed)
            network = (network or build(model)).to(self.device)
            self.learner = accelerate(self.recipe.wrap(network)).to(self.device)
        own = teacher is None  # the teacher is then part of the state, for resuming
        self.start = copy.deepcopy(network).eval() if own and self.recipe.despeckles else None
        teacher = network.eval() if teacher is None else teacher.to(self.device).eval()
        simulated, apart = self.recipe.simulate(cines, teacher, self.rng, progress, held_out)
        self.recorded = [cine.move_to(self.device) for cine in cines] if self.recipe.learns_recorded else []
        if not self.recorded and simulated is None:
            raise InputError(_("There is nothing to train on: name recordings, or a number of anatomies to simulate."))
        self.simulated = simulated and simulated.move_to(self.device)
        self.held_out = [*held_out, *apart]
        self.learner = self.model = convert(self.learner, self.recipe.memory_format).train()
        if self.processes > 1:
            self.model = DistributedDataParallel(self.learner)
        self._trained = network
        self._averaged = copy.deepcopy(network) if config.averaging else network
        self._initial = self.start if config.start_share and not self._random else None
        self.network = self._averaged if self._initial is None else copy.deepcopy(network)
        self.optimiser = torch.optim.Adam(
            self.learner.parameters(), config.learning_rate, self.recipe.betas, fused=cuda
        )
        self._names: tuple[str, ...] = ()  # names of the loss's terms
        shapes = {self._crop_size(cine) for cine in (*self.recorded, self.simulated) if cine}
        self._replays = cuda and self.processes == 1 and len(shapes) <= SHAPES
        self._replayed = Replayed(self._learn, parameters=self.learner.parameters())

    def plan(self, steps: int) -> None:
        """Set the number of steps of the whole run, also during the run; schedules follow."""
        self.config = self.recipe.config = replace(self.config, steps=max(1, self.step, steps))

    def run(self) -> Iterator[Report]:
        """Train from the step that has been reached; yield a report after every step.

        If memory is short, the batch is halved, with a message in the report. Raises InputError where the loss
        is NaN, or where there is not enough memory for a single frame.
        """
        started, first, message = time.monotonic(), self.step, ""
        while self.step < self.config.steps:
            try:
                terms = self._train_step()
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or self.processes > 1:
                    raise
                message = self._halve_batch(error)
                continue
            self.step += 1
            rate = (self.step - first) / max(time.monotonic() - started, 1e-9)
            yield Report(self.step, self.config.steps, terms, rate, message)
            message = ""
        self._mix()

    def _train_step(self) -> dict[str, float]:
        self.optimiser.param_groups[0]["lr"] = self.recipe.learning_rate(self.step)
        self.optimiser.zero_grad(set_to_none=True)
        views = self.recipe.views(self._draw())
        values = self._replayed(*views) if self._replays else self._learn(*views)
        if self.processes > 1:
            dist.all_reduce(values)
            values /= self.processes
        numbers = values.tolist()  # waits for a GPU, once in a step
        if not np.isfinite(numbers).all():
            raise InputError(NOT_A_NUMBER.format(step=self.step + 1))
        self.optimiser.step()
        self._average()  # before the step is counted
        return dict(zip(self._names, numbers, strict=True))

    def _learn(self, *views: torch.Tensor) -> torch.Tensor:
        """Return the terms of the loss; `_names` then has their names, the parameters their sum's gradients."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            predictions = self.model(views)
            terms = self.recipe.loss(predictions, views)
        total(terms.values()).backward()
        self._names = tuple(terms)
        return torch.stack([term.detach().float() for term in terms.values()])

    def _average(self) -> None:
        """Update the exponential moving average. The decay ramps up, so random initial weights are quickly
        forgotten."""
        decay = self.config.averaging
        if not decay:
            return
        if self._random:
            decay = min(decay, (1 + self.step) / (10 + self.step))
        get_ema_multi_avg_fn(decay)(list(self._averaged.parameters()), list(self._trained.parameters()), None)

    @torch.no_grad()
    def _mix(self) -> None:
        """Update `network`: the averaged weights, mixed with a share of the initial ones if the config asks for it.

        Such means keep more of what a model could do before (WiSE-FT; Wortsman et al., CVPR 2022).
        """
        if self._initial is not None:
            parts = (module.parameters() for module in (self.network, self._averaged, self._initial))
            for result, averaged, initial in zip(*parts, strict=True):
                result.copy_(averaged.lerp(initial, self.config.start_share))
        self.network.eval()

    def _draw(self) -> Batch:
        """Draw a batch of crops of one cine, the same in every process, and return this process's share of it."""
        cine = self.simulated
        if cine is None or (self.recorded and self.rng.random() >= self.config.share):
            cine = self.recorded[int(self.rng.integers(len(self.recorded)))]
        chosen = self.rng.integers(len(cine.frames), size=self.batch)
        height, width = self._crop_size(cine)
        room = np.subtract(cine.frames.shape[-2:], (height, width)) + 1
        corners = self.rng.integers(room, size=(self.batch, 2))
        drawn = self.recipe.draw_augmentation(self.rng, self.batch)
        share = slice(self.rank, None, self.processes)

        def crop(frames: torch.Tensor) -> torch.Tensor:
            windows = zip(chosen[share], corners[share], strict=True)
            crops = [frames[n, :, y : y + height, x : x + width] for n, (y, x) in windows]  # (1, h, w) each
            return torch.stack(crops).to(self.device)  # (B, 1, h, w)

        truth = crop(cine.truth) if cine.truth is not None and self.recipe.learns_truth else None
        return Batch(crop(cine.frames), truth, drawn.share(share))

    def _crop_size(self, cine: Cine) -> tuple[int, ...]:
        multiple: Any = self.network.multiple
        return tuple(min(self.config.crop, n // multiple * multiple) for n in cine.frames.shape[-2:])

    def _choose_precision(self) -> torch.dtype:
        """Return the faster precision here. With several processes, use the first one's choice, because it is
        measured."""
        precision = choose_precision(self.device, training=True)
        if self.processes > 1:
            half = torch.tensor(precision == torch.bfloat16, dtype=torch.float32, device=self.device)
            dist.broadcast(half, 0)
            precision = torch.bfloat16 if half.item() else torch.float32
        return precision

    def _halve_batch(self, error: Exception) -> str:
        """Halve the batch and return a message about it. Raises InputError if it is one frame already."""
        if self.batch == 1:
            raise InputError(
                _("Not enough memory for a batch of one frame: close other programs, or use another device.")
            ) from error
        self.batch //= 2
        self._replayed.recorded.clear()
        self.optimiser.zero_grad(set_to_none=True)
        return f"Not enough memory; the batch size was reduced to {self.batch}."

    def validate(self) -> tuple[dict[str, float], np.ndarray | None]:
        """Return figures on the held-out cines and a picture, see `validation.validate`, of `network`: it is the one
        that is saved. Raises InputError where the loss is NaN."""
        self._mix()
        figures, picture = validation.validate(self.recipe, self.network, self.held_out, self.device)
        if not np.isfinite(list(figures.values())).all():
            raise InputError(NOT_A_NUMBER.format(step=self.step))
        return figures, picture

    def state(self) -> tuple[dict[str, torch.Tensor], dict]:
        """Return all that a run needs to continue bit for bit: tensors by name, and JSON types.

        Raises InputError where a weight is NaN: a gradient can be NaN while the loss is still finite.
        """
        tensors = {f"learner.{name}": tensor for name, tensor in self.learner.state_dict().items()}
        tensors |= {f"network.{name}": tensor for name, tensor in self._averaged.state_dict().items()}
        if self.start is not None:
            tensors |= {f"start.{name}": tensor for name, tensor in self.start.state_dict().items()}
        for number, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": tensor for name, tensor in moments.items()}
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise InputError(NOT_A_NUMBER.format(step=self.step))
        return tensors, {
            "step": self.step, "batch": self.batch, "best": self.best if np.isfinite(self.best) else None,
            "random": self._random, "rng": self.rng.bit_generator.state,
            "precision": str(self.precision).removeprefix("torch."),
        }  # fmt: skip

    def restore(self, tensors: dict[str, torch.Tensor], values: dict) -> None:
        """Continue from a `state` of a run of the same config. Raises InputError where it is another's."""
        parts: dict[str, dict[str, torch.Tensor]] = {"learner": {}, "network": {}, "start": {}, "adam": {}}
        try:
            for name, tensor in tensors.items():
                part, _, rest = name.partition(".")
                parts[part][rest] = tensor
            self.learner.load_state_dict(parts["learner"])
            self._averaged.load_state_dict(parts["network"])
            self.optimiser.load_state_dict(self._optimiser_state(parts["adam"]))
            self.rng.bit_generator.state = values["rng"]
            self.step, self.batch = values["step"], values["batch"]
            self.best = float("inf") if values["best"] is None else values["best"]
            self._random = values["random"]
            self.precision = {"bfloat16": torch.bfloat16, "float32": torch.float32}[values["precision"]]
        except (RuntimeError, KeyError, IndexError, ValueError, TypeError, OverflowError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise InputError(f"The saved run is not of this kind of network: {reason:.200}.") from error

    def _optimiser_state(self, tensors: dict[str, torch.Tensor]) -> dict:
        """Return the optimizer's state with moments named <parameter>.<moment>. Raises ValueError for others."""
        adam, sizes = self.optimiser.state_dict(), [parameter.shape for parameter in self.learner.parameters()]
        for name, tensor in tensors.items():
            number, moment = name.split(".")
            adam["state"].setdefault(int(number), {})[moment] = tensor
        for number, moments in adam["state"].items():
            found, size = {name: tensor.shape for name, tensor in moments.items()}, sizes[number]
            if found != {"step": torch.Size(), "exp_avg": size, "exp_avg_sq": size}:
                raise ValueError(f"the moments of parameter {number} differ")
        return adam
