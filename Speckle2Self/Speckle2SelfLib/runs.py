"""One training run from files to a model, shared by the command line, the panel and a cluster's job.

A run keeps two files: the best model so far, under its own name, and, while it is unfinished, `<model>.state` with all
that it needs to continue bit for bit. Both are replaced as a whole or not at all, and kept
from other processes by `<model>.lock`.
"""

from __future__ import annotations

import copy
import gc
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from imageio.v3 import imwrite

from . import __version__, checkpoint, files
from .checkpoint import Model
from .config import Job, ModelConfig, TrainingConfig, from_dict, to_dict
from .dataset import Cine, hold_out, read_cine
from .devices import choose_device, choose_precision, memory_taken
from .grain import speckle_correlation
from .library import bundled_models, few_steps, improvement, load_model, worse_than_start
from .metrics import TRUE_ERRORS
from .network import build, grow
from .recipes import NEW, recipe_of
from .system import Cancelled, FilePath, InputError, file_lock, replace_file, torchrun_place, with_path
from .training import Report, Training
from .validation import fit_uncertainty, score

SIMULATION_REPORTS = 2.0  # seconds from one report on the simulation to the next
WARM_UP = 12  # steps, to measure the rate
MOST_STEPS = 10**8  # the largest number that a config accepts
RANDOM = "random weights"  # instead of the name of an initial model
CURVE = 200  # points of the loss that a model's card keeps at most
OVERRIDES = ("recipe", "steps", "simulated", "batch", "interval", "seed")  # fields that a job may change


class Unfinished(InputError):
    """A run of the same model must be resumed or removed first."""


@dataclass(frozen=True)
class RunState:
    """The values of a run's state other than its tensors."""

    config: dict
    model: dict
    data: tuple[int, ...]  # digests of the recordings trained on, and of those held out
    curve: tuple[tuple[float, ...], ...]  # pairs of step and loss
    start: dict[str, float]  # figures of the model that it started from
    started_from: str
    step: int  # this and the next: see `Training.state`
    batch: int
    best: float | None
    random: bool
    rng: dict
    precision: str
    kept: int | None = None  # digest of the model file that holds the best so far
    minutes: float | None = None  # training time of the whole run
    seconds: float = 0.0  # training time so far
    rate: float = 0.0  # steps per second, measured before the first step if there is a training time

    def __post_init__(self) -> None:
        config, model = from_dict(TrainingConfig, self.config), from_dict(ModelConfig, self.model)
        if self.minutes is not None and not (self.minutes > 0 and self.rate > 0 and self.seconds >= 0):
            raise InputError("its training time does not fit")
        within = 0 <= self.step <= config.steps and 1 <= self.batch <= config.batch
        if not recipe_of(config).fits(model) or not within or not all(len(point) == 2 for point in self.curve):
            raise InputError("its entries do not fit each other")


class Budget:
    """A training time, and the number of steps that fit into it at the pace so far.

    Args: seconds, of the whole run; spent, seconds of an earlier part of the run; rate, steps per second as measured.
    """

    def __init__(self, seconds: float, spent: float, rate: float):
        self.seconds, self._spent, self.rate = seconds, spent, rate
        self._began, self._first, self._steps = time.monotonic(), 0.0, -1
        self.closing = 0.0  # seconds of the validation after the last step

    @property
    def spent(self) -> float:
        """Return the training time so far, in seconds."""
        return self._spent + time.monotonic() - self._began

    @property
    def left(self) -> float:
        """Return the seconds that are left for steps."""
        return self.seconds - self.spent - self.closing

    def steps(self, step: int) -> int:
        """Return the number of steps of the whole run, given that `step` are done: `step` itself when the time is up.

        The pace is measured from the first step on, with validations; since single steps differ, the rate measured
        before counts as much as WARM_UP steps.
        """
        now, self._steps = time.monotonic(), self._steps + 1
        self._first = self._first or now
        pace = (now - self._first + WARM_UP / self.rate) / (self._steps + WARM_UP)  # seconds a step
        return step + max(0, int(self.left / pace))


@dataclass(frozen=True)
class Start:
    """The settings and the network that a run begins or continues with."""

    config: TrainingConfig
    model: ModelConfig
    network: torch.nn.Module | None  # None: random weights, or those of the saved run
    name: str  # name of the initial model
    teacher: torch.nn.Module | None = None  # despeckles the recordings, where the network to start from does not


def state_path(output: FilePath) -> Path:
    """Return where the unfinished run of a model file is kept."""
    return Path(f"{output}.state")


def run(
    job: Job, report: Callable[[dict], None] = lambda line: None, stop: Callable[[], bool] = lambda: False
) -> Model | None:
    """Train; return the best model, which is then in the job's output file.

    report: called with JSON types: first the settings and the data; while anatomies are simulated, every other second,
    `simulated` and `anatomies`, how many are and will be; then, every `job.report` steps, `step`, `steps`,
    the loss terms, `rate` (steps/s) and `seconds_left`; with the validation figures and `preview` after every
    `interval` steps (and before the first: step 0); `message` where the user should know something; last `model`.
    stop: asked after each step, and each anatomy; True saves the run, to be resumed, and raises Cancelled.

    With `job.estimate` nothing is trained: one report, `estimate`, holds time and memory, and None is returned.
    Under torchrun all processes share each batch, and the first one reports and writes. Raises InputError.
    """
    with _processes(job.device) as (device, first):
        for target in _targets(job):
            if not target.parent.is_dir():
                raise InputError(f"The folder {target.parent} does not exist.")
            if target.is_dir():
                raise InputError(f"{target} is a folder; name a file to write.")
        listen = report if first else lambda line: None
        with file_lock(job.output) if first and not job.estimate else nullcontext():
            return Run(job, device, first, listen, lambda: _any_process(stop(), device)).carry_out()


class Run:
    """A job in the process that carries it out, or in one of several.

    Args: device; first, whether this process reports and writes; report and stop, see `run`.
    """

    def __init__(
        self, job: Job, device: torch.device, first: bool, report: Callable[[dict], None], stop: Callable[[], bool]
    ):
        self.job, self.device, self.first, self.report, self.stop = job, device, first, report, stop
        self.output, self.state = Path(job.output), state_path(job.output)
        self.saved: tuple[dict[str, torch.Tensor], dict] | None = None  # tensors and values of an unfinished run
        self.cines: list[Cine] = []
        self.held_out: list[Cine] = []
        self.trains_on_held_out = False  # whether the held-out frames are also trained on, if there are too few
        self.curve: list[list[float]] = []
        self.figures_at_start: dict[str, float] = {}
        self.latest_figures: dict[str, float] = {}  # figures of the last validation
        self.model_digest: int | None = None  # digest of the model file that this run kept last
        self.rate = 0.0  # steps per second, measured if there is a training time
        self.budget: Budget | None = None

    def carry_out(self) -> Model | None:
        """Do the job; see `run`."""
        if not self.job.resume and self.state.exists():
            raise Unfinished(f"{self.output} has an unfinished run: resume it, or remove {self.state}.")
        if self.job.resume and self.state.exists():
            self.saved = _load_state(self.state)
        elif self.job.resume and not self.job.estimate and (model := self.finished_before()):
            return model
        self.prepare()
        if self.job.estimate:
            self.report({"estimate": self.estimate()})
            return None
        self.training = self.begin()
        if self.saved:
            self.resume(*self.saved)
        self.report_what_differs()
        began = time.monotonic()
        self.train()
        return self.finish(began)

    def say(self, message: str) -> None:
        """Report a sentence for the user."""
        self.report({"message": message})

    def finished_before(self) -> Model | None:
        """Return the job's model if a run with the same settings has already finished."""
        if not self.output.exists():
            return None
        model = Model(*checkpoint.load(self.output))
        settings = to_dict(TrainingConfig()) | model.card.get("training", {})  # a field may be newer than the file
        wanted = to_dict(self.job.training)
        if self.job.minutes is not None:
            wanted["steps"] = settings.get("steps")
        if model.card.get("finished") is not True or settings != wanted:
            return None
        self.say(f"{self.output} is finished; to train it again, start a new run.")
        self.report({"model": str(self.output), "minutes": 0.0, "worse": worse_than_start(model.card)})
        return model

    def prepare(self) -> None:
        """Find what to start from and read the recordings. Raises InputError."""
        paths = _find_recordings(self.job, resumed=self.saved is not None)
        _check_targets(self.job, paths)
        if self.saved:
            values = self.saved[1]
            config, model = from_dict(TrainingConfig, values["config"]), from_dict(ModelConfig, values["model"])
            self.start = _start_of_saved(config, model, values["started_from"], self.saved[0])
        else:
            self.start = _start(self.job)
        self.cines, self.held_out, self.trains_on_held_out = _read_data(self.job, self.start, *paths)

    @property
    def minutes(self) -> float | None:
        """Return the training time of the whole run; a resumed run keeps the one it was started with."""
        return self.saved[1].get("minutes") if self.saved else self.job.minutes

    @property
    def count_held_out(self) -> int:
        """Return the number of frames that are held out."""
        return 0 if self.trains_on_held_out else sum(len(cine.frames) for cine in self.held_out)

    def estimate(self) -> dict:
        """Return the time and memory of a run, and the grain of the speckle in its recordings."""
        rate, simulating = self.measure()
        steps, minutes = self.start.config.steps, self.job.minutes
        steps = steps if minutes is None else max(1, int(minutes * 60 * rate))
        curves = [[[round(float(v), 3) for v in axis] for axis in curve]
                  for curve in map(_correlation, self.cines) if curve]  # fmt: skip
        return {
            "frames": sum(len(cine.frames) for cine in self.cines), "held_out": self.count_held_out,
            "grain": [_round(cine.recorded_grain) for cine in self.cines], "correlation": curves,
            "steps": steps, "rate": round(rate, 3),
            "minutes": round(simulating / 60 + (steps / rate / 60 if minutes is None else minutes), 2),
            "memory": memory_taken(self.device), "device": str(self.device),
        }  # fmt: skip

    def measure(self) -> tuple[float, float]:
        """Return steps per second and the seconds of the simulation before, from a short run that is discarded."""
        config, moments = self.start.config, [time.monotonic()]
        trial = replace(config, steps=WARM_UP, simulated=min(config.simulated, WARM_UP))
        training = Training(
            self.cines, trial, self.start.model, copy.deepcopy(self.start.network), self.device,
            progress=lambda *_: moments.append(time.monotonic()), teacher=self.start.teacher,
        )  # fmt: skip
        first, *others = np.diff(moments) if len(moments) > 1 else [0.0]  # the first one includes initial work
        simulating = first + float(np.mean(others or [0.0])) * min(config.simulated, config.steps * config.batch)
        steps = [time.monotonic() for _ in training.run()]
        rate = torch.tensor(1 / np.diff(steps[len(steps) // 2 - 1 :]).mean())  # mean of the second half
        if dist.is_initialized():
            rate = rate.to(self.device)
            dist.broadcast(rate, 0)
        return rate.item(), simulating

    def begin(self) -> Training:
        """Report settings and data, simulate, and return the training before its first step."""
        start = self.start
        if self.saved is None and self.minutes is not None:
            self.rate, _ = self.measure()
            steps = min(MOST_STEPS, max(1, int(self.minutes * 60 * self.rate)))
            start = self.start = replace(start, config=replace(start.config, steps=steps))
        self.data = [cine.digest for cine in (*self.cines, *self.held_out)]
        if self.saved and self.saved[1]["data"] != self.data:
            raise InputError(
                "The recordings are not those of the unfinished run; use the same ones, or start a new run."
            )
        precision = str(choose_precision(self.device, training=True)).removeprefix("torch.")
        reached = self.saved[1] if self.saved else {"step": 0, "precision": precision}
        self.report({
            "config": to_dict(start.config), "model": to_dict(start.model), "device": str(self.device),
            "precision": reached["precision"], "processes": dist.get_world_size() if dist.is_initialized() else 1,
            "recordings": [{"frames": len(c.frames), "grain": _round(c.recorded_grain)} for c in self.cines],
            "held_out": self.count_held_out, "seen": self.trains_on_held_out, "from_step": reached["step"],
        })  # fmt: skip
        if self.trains_on_held_out:
            self.say("There are too few frames to hold any out; the figures are from frames that are trained on.")
        self.reported = time.monotonic()
        training = Training(
            self.cines, start.config, start.model, start.network, self.device, self.held_out, self.report_simulation,
            start.teacher,
        )  # fmt: skip
        if message := training.recipe.message:
            self.say(message)
        return training

    def report_simulation(self, done: int, count: int) -> None:
        """Report how many anatomies are simulated, now and then. Raises Cancelled if asked to stop."""
        if not dist.is_initialized() and self.stop():  # several processes agree on stopping from the first step on
            self.say("Stopped during simulation. Resuming will simulate the anatomies again.")
            raise Cancelled
        if time.monotonic() > self.reported + SIMULATION_REPORTS:
            self.reported = time.monotonic()
            self.report({"simulated": done, "anatomies": count})

    def resume(self, tensors: dict[str, torch.Tensor], values: dict) -> None:
        """Continue from the tensors and values of the saved run."""
        self.training.restore(tensors, values)
        self.curve, self.figures_at_start = values["curve"], values["start"]
        self.rate = values.get("rate", 0.0)
        if self.first and self.output.exists():
            self.model_digest = _digest(self.output)
            if self.model_digest != values.get("kept"):
                self.model_digest = None
                self.say(f"{self.output} is not the file that this run kept last, and will be overwritten.")

    def report_what_differs(self) -> None:
        """Report the settings of the job that have no effect."""
        job, config = self.job, self.start.config
        if self.saved and (names := [n for n in OVERRIDES if getattr(job, n) not in (None, getattr(config, n))]):
            kept = ", ".join(f"{name} = {getattr(config, name)}" for name in names)
            self.say(f"Resumed with the original settings ({kept}); the new values are ignored.")
        if self.saved and job.minutes not in (None, self.minutes):
            kept = f"{config.steps} steps" if self.minutes is None else f"{self.minutes:g} minutes"
            self.say(f"Resumed with the run's original length, {kept}; the new training time is ignored.")
        if job.resume and not self.saved:
            self.say("There is no unfinished run to continue; a new one starts.")
        if job.preview and not self.held_out:
            self.say(f"Without recordings there is no preview: {job.preview} is not written.")

    def train(self) -> None:
        """Train to the last step; report, validate and save on the way. Raises Cancelled if asked to stop."""
        training = self.training
        if self.minutes is not None:
            spent = self.saved[1].get("seconds", 0.0) if self.saved else 0.0
            self.budget = Budget(60 * self.minutes, spent, self.rate)
        figures = self.validate() if self.saved or training.step == 0 else {}
        if training.step == 0:
            self.report({"step": 0, "steps": training.config.steps, **figures})
        for done in training.run():
            self.after_step(done)

    def keep_to_budget(self, budget: Budget) -> None:
        """Fit the number of steps to the time that is left; all processes get the same number."""
        steps = torch.tensor(budget.steps(self.training.step), dtype=torch.int64)
        if dist.is_initialized():
            steps = steps.to(self.device)
            dist.broadcast(steps, 0)
        self.training.plan(min(MOST_STEPS, int(steps.item())))
        self.start = replace(self.start, config=self.training.config)

    def after_step(self, done: Report) -> None:
        """Report a step; validate and save where it is time. Raises Cancelled if asked to stop."""
        seconds_left = done.seconds_left
        if self.budget is not None:
            self.keep_to_budget(self.budget)
            seconds_left = max(0.0, self.budget.left)
        steps = self.training.config.steps
        last = done.step == steps
        line = {"step": done.step, "steps": steps, **done.terms, "rate": round(done.rate, 3)}
        line["seconds_left"] = round(seconds_left, 1)
        if done.message:
            self.say(done.message)
        validates = last or done.step % self.start.config.interval == 0
        due = validates or done.step % self.job.report == 0
        if due:
            self.curve.append([done.step, round(sum(done.terms.values()), 6)])
        stopping = not last and self.stop()
        if stopping or validates:
            line |= self.validate()
        if due or stopping:
            self.report(line)
        if stopping:
            self.say(f"Stopped at step {done.step}.")
            raise Cancelled

    def validate(self) -> dict:
        """Validate; keep the model file if it is the best, the run's state and the preview. Return the figures."""
        training, preview, began = self.training, self.job.preview, time.monotonic()
        if not self.first:
            return {}
        if training.step:
            self.save()  # save first: validation may run out of memory, and a resumed run repeats it
        figures, picture = training.validate()
        self.latest_figures, reached = figures, score(figures)
        if training.step == 0 and self.start.name != RANDOM:
            self.figures_at_start = figures
        counts = training.step > 0 or self.keeps_start(figures)
        if counts and (reached <= training.best or self.model_digest is None):
            training.best = reached
            checkpoint.save(self.output, self.start.model, training.network, self.card(figures))
            self.model_digest = _digest(self.output)
            self.save()
        shown = {}
        if picture is not None and preview:
            replace_file(preview, imwrite("<bytes>", picture, extension=".png"))
            shown = {"preview": preview}
        if self.budget is not None:
            self.budget.closing = time.monotonic() - began
        return {**figures, **shown}

    def keeps_start(self, figures: dict[str, float]) -> bool:
        """Return whether the initial model counts as the best so far: if its error to a truth is known."""
        return self.start.name != RANDOM and any(name in figures for name in TRUE_ERRORS)

    def save(self) -> None:
        """Write the run's state."""
        tensors, values = self.training.state()
        values |= {"config": to_dict(self.start.config), "model": to_dict(self.start.model), "data": self.data}
        values |= {"curve": self.curve, "start": self.figures_at_start}
        values |= {"started_from": self.start.name, "kept": self.model_digest, "minutes": self.minutes}
        values |= {"seconds": self.budget.spent if self.budget else 0.0, "rate": self.rate}
        checkpoint.save_state(self.state, tensors, values)

    def card(self, figures: dict[str, float]) -> dict:
        """Return the description of the run that is stored in the model file."""
        apart = -(-len(self.curve) // CURVE) or 1
        return {
            "description": self.description(), "start": self.start.name, "training": to_dict(self.start.config),
            "steps": self.training.step, "version": __version__,
            "curve": self.curve[(len(self.curve) - 1) % apart :: apart],
            "figures": figures, "figures_at_start": self.figures_at_start,
            "figures_are_of": "frames trained on" if self.trains_on_held_out else "frames held out",
        }  # fmt: skip

    def description(self) -> str:
        """Return a sentence that says what the model was trained on."""
        config, count, frames = self.start.config, len(self.cines), sum(len(cine.frames) for cine in self.cines)
        sources = [f"{frames} frames of {count} recording{'s' if count > 1 else ''}"] if count else []
        sources += ["simulated frames"] if config.simulated else []
        return f"Trained on {' and '.join(sources)} (recipe '{config.recipe}')."

    def finish(self, began: float) -> Model:
        """Mark the best model as finished, remove the state and return the model; began: when, by the clock."""
        if not self.first:
            return Model(self.start.model, self.training.network)
        config, network, card = checkpoint.load(self.output)
        card["finished"] = True
        card["training"] = to_dict(self.start.config)  # the best was kept before the number of steps was known
        if config.uncertainty:
            config = replace(config, uncertainty_scale=fit_uncertainty(network, self.training.held_out))
        checkpoint.save(self.output, config, network, card)
        model = Model(config, network, card)
        self.state.unlink(missing_ok=True)
        worse = worse_than_start(model.card)
        if card["steps"] == 0:
            worse = worse_than_start(card | {"figures": self.latest_figures})
            result = (
                f"Training did not improve the model{f' ({worse})' if worse else ''}; the one it started from is kept."
            )
        elif worse:
            result = f"This model is worse than the one it started from: {worse}."
        else:
            result = improvement(card)
        if message := f"{result} {few_steps(self.training.step, self.job.training.steps, self.minutes)}".strip():
            self.say(message)
        minutes = round((time.monotonic() - began) / 60, 2)
        self.report({"model": str(self.output), "minutes": minutes, "worse": worse})
        return model


def _load_state(state: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Return the tensors and values of an unfinished run. Raises InputError where it is damaged."""
    tensors, values = checkpoint.load_state(state)
    try:
        from_dict(RunState, values)
    except InputError as error:
        raise InputError(f"{state} is damaged: {str(error).rstrip('.')}.") from error
    return tensors, values


def _digest(path: Path) -> int:
    """Return a checksum of a file's content, to recognize it."""
    return zlib.crc32(path.read_bytes())


def _round(grain: tuple[float, float]) -> list[float]:
    return [round(length, 2) for length in grain]


def _find_recordings(job: Job, resumed: bool) -> tuple[list[Path], list[Path]]:
    """Return the files to train on and those held out, each once; of folders, without what a resumed run wrote."""
    own = {path.resolve() for path in _targets(job)} if resumed else set()
    taken: set[Path] = set()
    found = []
    for entries in (job.inputs, job.held_out):
        paths: dict[Path, Path] = {}
        for entry in entries:
            left_out = own if Path(entry).is_dir() else set()
            paths |= {path.resolve(): path for path in files.find([entry]) if path.resolve() not in left_out}
        if both := taken & set(paths):
            raise InputError(f"{paths[both.pop()]} is both trained on and held out; remove it from one of them.")
        taken |= set(paths)
        found.append(list(paths.values()))
    return found[0], found[1]


def _targets(job: Job) -> list[Path]:
    """Return the files that a run writes."""
    return [Path(job.output), state_path(job.output), *([Path(job.preview)] if job.preview else [])]


def _check_targets(job: Job, recordings: tuple[list[Path], list[Path]]) -> None:
    """Raise InputError where a file that the run would write cannot be written, or is another one of its files."""
    targets, masks = _targets(job), [] if job.region in ("auto", "none") else [Path(job.region)]
    read = {path.resolve() for path in (*recordings[0], *recordings[1], *masks)}
    for target in targets:
        if target.resolve() in read:
            raise InputError(
                f"{target} is a recording or mask of this run, and would be overwritten; name another file."
            )
    if len({target.resolve() for target in targets}) < len(targets):
        raise InputError(f"{job.preview} is the model or its state already; name another file for the preview.")
    if job.preview and job.init and Path(job.preview).resolve() == Path(job.init).resolve():
        raise InputError(f"{job.preview} is the model to start from, and would be overwritten; name another file.")
    for target in () if job.estimate else targets[1:]:
        try:
            with tempfile.NamedTemporaryFile(prefix=f".{target.name}.", suffix=".part", dir=target.parent):
                pass
        except OSError as error:
            raise InputError(f"{target} cannot be written: {error.strerror or error}.") from error


def _start(job: Job) -> Start:
    """Return what a new run begins with. Raises InputError where its recipe cannot train the model that is named."""
    config, name = job.training, job.init or ("default" if job.preset == "adapt" else None)
    recipe = recipe_of(config)
    asked = {"width": job.width, "deep": job.deep, "uncertainty": job.uncertainty or None}
    shape = {entry: value for entry, value in asked.items() if value is not None}
    if name is None:
        teacher = load_model("default").network if recipe.despeckles else None
        return Start(config, recipe.new_model(**shape), None, RANDOM, teacher)
    start = load_model(name)
    if not recipe.fits(start.config):
        raise InputError(
            f"A {start.config.architecture} model cannot be trained by the recipe '{config.recipe}': "
            "start from another model, or from none (preset 'standard')."
        )
    if shape:
        start = _grow(start, shape, config.seed)
    return Start(config, start.config, start.network, name if name in bundled_models() else "another model")


def _start_of_saved(config: TrainingConfig, model: ModelConfig, name: str, tensors: dict[str, torch.Tensor]) -> Start:
    """Return what an unfinished run began with: its recordings are despeckled by the same network again.

    Raises InputError where the state's tensors are of another kind of network.
    """
    if not recipe_of(config).despeckles:
        return Start(config, model, None, name)
    if name == RANDOM:
        return Start(config, model, None, name, load_model("default").network)
    network = build(model)
    try:
        prefix = "start."
        network.load_state_dict({key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)})
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"The saved run is not of this kind of network: {reason:.200}.") from error
    return Start(config, model, network.eval(), name)


def _grow(start: Model, shape: dict[str, Any], seed: int) -> Model:
    """Return a model with parts that it did not have, which at first change nothing. Raises InputError otherwise."""
    config = replace(start.config, **shape)
    deeper, estimates = config.deep != start.config.deep, config.uncertainty != start.config.uncertainty
    added = replace(start.config, deep=config.deep, uncertainty=config.uncertainty) == config
    if not added or (deeper and start.config.deep) or not (deeper or estimates):
        raise InputError(NEW)
    return Model(config, grow(start.network, config, seed))


def _read_data(job: Job, start: Start, inputs: list[Path], held_out: list[Path]) -> tuple[list[Cine], list[Cine], bool]:
    """Return the cines to train on, those held out, and whether these are the same because there are too few."""
    read = partial(_read, job=job, start=start, names=len(inputs) + len(held_out) > 1)
    known = {cine.digest: cine for cine in map(read, inputs)}  # copies once
    cines, others = list(known.values()), [read(path) for path in held_out]
    for path, other in zip(held_out, others, strict=True):
        if other.digest in known:
            raise InputError(f"{path}: the same frames are trained on and held out; remove one of the files.")
    if held_out:
        return cines, others, False
    cines, others = hold_out(cines)
    return (cines, others, False) if others else (cines, cines, bool(cines))


def _read(path: Path, job: Job, start: Start, names: bool) -> Cine:
    """Return a recording as the run's model needs it; names: whether errors name its file."""
    recipe = recipe_of(start.config)
    try:
        return read_cine(path, job.region, start.model, recipe.detects_region, recipe.most_frames)
    except InputError as error:
        if not names:
            raise
        raise InputError(with_path(path, error)) from error


def _correlation(cine: Cine) -> list[np.ndarray]:
    """Return `speckle_correlation` of a cine at lags of the recording's pixels; empty where it cannot be measured."""
    curves, wide = [], cine.recorded_grain if cine.resampling is None else cine.grain
    measured = speckle_correlation(cine.frames[:: max(1, len(cine.frames) // 4), 0].numpy())
    for curve, grain, recorded in zip(measured or (), wide, cine.recorded_grain, strict=False):
        curves.append(np.interp(np.arange(0, len(curve) - 1, grain / recorded), np.arange(len(curve)), curve))
    return curves


@contextmanager
def _processes(name: str) -> Iterator[tuple[torch.device, bool]]:
    """Yield the device and whether this is the first process; join the others if torchrun has started them."""
    _, local, count = torchrun_place()
    if count == 1:
        yield choose_device(name), True
        return
    cuda = name in ("auto", "cuda") and torch.cuda.is_available()
    device = torch.device(f"cuda:{local}") if cuda else choose_device("cpu" if name == "auto" else name)
    # The group's threads end with the last reference to it; while they run, ending the process may abort it.
    from torch.distributed import nn  # noqa: F401 - whose default values are the group that is there when it is imported

    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield device, dist.get_rank() == 0
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        gc.collect()
        dist.destroy_process_group()


def _any_process(flag: bool, device: torch.device) -> bool:
    """Return whether the flag is set in any process."""
    if not dist.is_initialized():
        return flag
    flags = torch.tensor(float(flag), device=device)
    dist.all_reduce(flags)
    return flags.item() > 0
