"""One training run from files to a model: what the command line, the panel and a cluster's job do alike.

A run keeps two files: the model, the best so far, under its own name, and beside it, while it is unfinished,
`<model>.state` with all that it needs to go on bit for bit. Both are replaced as a whole or not at all, and kept from
other processes by `<model>.lock`.
"""

from __future__ import annotations

import copy
import gc
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from imageio.v3 import imwrite

from . import __version__, checkpoint, files, region
from .checkpoint import Model
from .config import Job, ModelConfig, TrainingConfig, from_dict, to_dict
from .devices import choose_device, choose_precision
from .grain import speckle_correlation
from .grey import evenly
from .library import bundled_models, load_model, worse_than_start
from .region import fill_outside
from .system import Cancelled, InputError, locked, named, replace_file, torchrun_place
from .training import FAST_GRAIN, Cine, Training, prepare_cine

TOLD = 2.0  # seconds from one report on the simulation to the next
WARM_UP = 12  # steps, to measure the rate
CURVE = 200  # points of the loss that a model's card keeps at most


@dataclass(frozen=True)
class Saved:
    """What a run's state holds besides its tensors."""

    config: dict
    model: dict
    data: tuple[int, ...]  # digests of the recordings trained on, and of those held out
    curve: tuple[tuple[float, ...], ...]  # of [step, loss]
    start: dict[str, float]  # figures of the model that it started from
    started_from: str
    step: int  # this and the next: see `Training.state`
    batch: int
    best: float | None
    latest: dict[str, float]
    random: bool
    rng: dict
    precision: str
    kept: int | None = None  # digest of the model file that holds the best so far

    def __post_init__(self):
        config, model = from_dict(TrainingConfig, self.config), from_dict(ModelConfig, self.model)
        fits = (config.recipe == "published") == (model.architecture == "published")
        within = 0 <= self.step <= config.steps and 1 <= self.batch <= config.batch
        if not fits or not within or not all(len(point) == 2 for point in self.curve):
            raise InputError("its entries do not fit each other")


def state_path(output) -> Path:
    """Where the unfinished run of a model file is kept."""
    return Path(f"{output}.state")


def run(
    job: Job, report: Callable[[dict], None] = lambda line: None, stop: Callable[[], bool] = lambda: False
) -> Model:
    """Trains; returns the best model, which is then in the job's output file.

    report: called with JSON types: first the settings and the data; while anatomies are simulated, every other second,
    `simulated` and `anatomies`, how many are and will be; then, every `job.report` steps, `step`, `steps`,
    the loss terms, `rate` (steps/s) and `seconds_left`; with the validation figures and `preview` after every
    `interval` steps (and before the first: step 0); `message` where the user should know something; last `model`.
    stop: asked after each step, and each anatomy; True saves the run, to be resumed, and raises Cancelled.

    With `job.estimate` nothing is trained: one report, `estimate`, tells what it would take, and None is returned.
    Under torchrun all processes share each batch, and the first one reports and writes. Raises InputError.
    """
    with _processes(job.device) as (device, first):
        listen = report if first else lambda line: None
        for target in _targets(job):
            if not target.parent.is_dir():
                raise InputError(f"There is no folder {target.parent} to write to.")
            if target.is_dir():
                raise InputError(f"{target} is a folder; name a file to write.")
        with locked(job.output) if first and not job.estimate else nullcontext():
            return _run(job, device, listen, lambda: _any(stop(), device), first)


def _run(job: Job, device, report, stop, first: bool) -> Model | None:
    output, state = Path(job.output), state_path(job.output)
    if not job.resume and state.exists():
        raise InputError(f"{output} has an unfinished run: add --resume to go on with it, or remove {state}.")
    saved = _saved(state) if job.resume and state.exists() else None
    if job.resume and not saved and not job.estimate and (finished := _finished(job)):
        worse = worse_than_start(finished.card)
        report({"message": f"{output} is finished; to train it anew, leave --resume out."})
        report({"model": str(output), "minutes": 0.0, "worse": worse})
        return finished
    paths = _recordings(job, bool(saved))
    _check_targets(job, paths)
    if saved:
        values = saved[1]
        config, model = from_dict(TrainingConfig, values["config"]), from_dict(ModelConfig, values["model"])
        network, started_from = None, values["started_from"]
    else:
        config, model, network, started_from = _start(job)
    cines, held_out, seen = _data(job, model, *paths)
    apart = 0 if seen else sum(len(cine.frames) for cine in held_out)
    if job.estimate:
        report({"estimate": _estimate(job, cines, apart, config, model, network, device)})
        return None
    if saved is None and job.minutes is not None:
        rate, _ = _measured(cines, config, model, network, device)
        config = replace(config, steps=max(1, int(job.minutes * 60 * rate)))
    data = [cine.digest for cine in (*cines, *held_out)]
    if saved and values["data"] != data:
        raise InputError("The recordings are not those that the unfinished run was started with.")
    precision = str(choose_precision(device, training=True)).removeprefix("torch.")
    reached = values if saved else {"step": 0, "precision": precision}
    report({
        "config": to_dict(config), "model": to_dict(model), "device": str(device), "precision": reached["precision"],
        "processes": dist.get_world_size() if dist.is_initialized() else 1,
        "recordings": [{"frames": len(c.frames), "grain": [round(g, 2) for g in c.recorded_grain]} for c in cines],
        "held_out": apart, "seen": seen, "from_step": reached["step"],
    })  # fmt: skip
    if seen:
        report({"message": "Too few frames to hold any out: the figures are of frames that are trained on."})
    told = time.monotonic()

    def made(done: int, count: int) -> None:
        nonlocal told
        if not dist.is_initialized() and stop():  # processes that have to agree do so from the first step on
            report({"message": "Stopped while anatomies were simulated; they are anew when it goes on."})
            raise Cancelled
        if time.monotonic() > told + TOLD:
            told = time.monotonic()
            report({"simulated": done, "anatomies": count})

    training = Training(cines, config, model, network, device, held_out, made)
    curve, start, digest = [], {}, None
    if saved:
        training.restore(*saved)
        curve, start = values["curve"], values["start"]
        if first and output.exists():
            digest = _digest(output)
            if digest != values.get("kept"):
                digest = None
                report({"message": f"{output} is not the file that this run kept last, and is written anew."})
    names = ("recipe", "steps", "simulated", "batch", "interval", "seed")
    if saved and (kept := [n for n in names if getattr(job, n) not in (None, getattr(config, n))]):
        kept = ", ".join(f"{name} = {getattr(config, name)}" for name in kept)
        report({"message": f"The run goes on as it was begun: {kept}."})
    if job.resume and not saved:
        report({"message": "There is no unfinished run to go on with; a new one starts."})
    if job.preview and not held_out:
        report({"message": f"There is no recording to show: {job.preview} is not written."})

    def card(figures):
        apart = -(-len(curve) // CURVE) or 1
        return {
            "description": _description(config, cines),
            "start": started_from, "training": to_dict(config), "steps": training.step, "version": __version__,
            "curve": curve[(len(curve) - 1) % apart :: apart], "figures": figures, "figures_at_start": start,
            "figures_are_of": "frames trained on" if seen else "frames held out",
        }  # fmt: skip

    def save():
        tensors, values = training.state()
        values |= {"config": to_dict(config), "model": to_dict(model), "data": data}
        values |= {"curve": curve, "start": start, "started_from": started_from, "kept": digest}
        checkpoint.save_state(state, tensors, values)

    def validate():
        """Figures, and what they lead to: the model file if it is the best, the run's state, the preview."""
        nonlocal digest
        if not first:
            return {}
        if training.step:
            save()  # before, for memory may be too short to validate; when it goes on, that is made up for
        figures, picture = training.validate()
        score = _score(figures, training.recorded)
        if training.step and (score <= training.best or digest is None):
            training.best = score
            checkpoint.save(output, model, training.network, card(figures))
            digest = _digest(output)
            save()
        if picture is not None and job.preview:
            replace_file(job.preview, imwrite("<bytes>", picture, extension=".png"))
            figures = figures | {"preview": job.preview}
        return figures

    figures = validate() if saved or training.step == 0 else {}
    if training.step == 0:
        start = {} if started_from == "random weights" else {k: v for k, v in figures.items() if k != "preview"}
        report({"step": 0, "steps": config.steps, **figures})
    began = time.monotonic()
    for done in training.run():
        last = done.step == done.steps
        line = {"step": done.step, "steps": done.steps, **done.terms, "rate": round(done.rate, 3)}
        line["seconds_left"] = round(done.seconds_left, 1)
        if done.message:
            report({"message": done.message})
        due = done.step % job.report == 0 or last or done.step % config.interval == 0
        if due:
            curve.append([done.step, round(sum(done.terms.values()), 6)])
        stopping = not last and stop()
        if stopping or last or done.step % config.interval == 0:
            line |= validate()
        if due or stopping:
            report(line)
        if stopping:
            report({"message": f"Stopped at step {done.step}; --resume goes on from there."})
            raise Cancelled
    result = Model(*checkpoint.load(output)) if first else Model(model, training.network)
    if first:
        result.card["finished"] = True
        checkpoint.save(output, result.config, result.network, result.card)
        state.unlink(missing_ok=True)
        worse = worse_than_start(result.card)
        if worse:
            report({"message": f"This model is worse than the one it started from: {worse}."})
        report({"model": str(output), "minutes": round((time.monotonic() - began) / 60, 2), "worse": worse})
    return result


def _saved(state: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """The tensors and values of an unfinished run. Raises InputError where they are none."""
    tensors, values = checkpoint.load_state(state)
    try:
        from_dict(Saved, values)
    except InputError as error:
        raise InputError(f"{state} is damaged: {str(error).rstrip('.')}.") from error
    return tensors, values


def _digest(path: Path) -> int:
    """Of a file's content, to know it again."""
    return zlib.crc32(path.read_bytes())


def _finished(job: Job) -> Model | None:
    """The job's model where a run with its settings has ended with it."""
    if not Path(job.output).exists():
        return None
    found = Model(*checkpoint.load(job.output))
    settings = found.card.get("training", {})
    wanted = to_dict(job.training) | ({"steps": settings.get("steps")} if job.minutes is not None else {})
    return found if found.card.get("finished") is True and settings == wanted else None


def _recordings(job: Job, resumed: bool) -> tuple[list[Path], list[Path]]:
    """The files to train on and those held out, each once; of folders, when a run goes on, without what it wrote."""
    own = {path.resolve() for path in _targets(job)} if resumed else set()
    taken: set[Path] = set()
    found = []
    for entries in (job.inputs, job.held_out):
        paths = {}
        for entry in entries:
            left_out = own if Path(entry).is_dir() else set()
            paths |= {path.resolve(): path for path in files.find([entry]) if path.resolve() not in left_out}
        if both := taken & set(paths):
            raise InputError(f"{paths[both.pop()]} is to be trained on and held out; leave it out of one of them.")
        taken |= set(paths)
        found.append(list(paths.values()))
    return found[0], found[1]


def _targets(job: Job) -> list[Path]:
    """The files that a run writes."""
    return [Path(job.output), state_path(job.output), *([Path(job.preview)] if job.preview else [])]


def _check_targets(job: Job, recordings) -> None:
    """Raises InputError where a file that the run would write cannot be written, or is another one of its files."""
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


def _description(config, cines) -> str:
    count, frames = len(cines), sum(len(cine.frames) for cine in cines)
    sources = [f"{frames} frames of {count} recording{'s' if count > 1 else ''}"] if count else []
    sources += ["simulated frames"] if config.simulated else []
    return f"Trained on {' and '.join(sources)} (recipe '{config.recipe}')."


def _start(job: Job):
    """The run's config, its model's config, the network to start from or None, and what that is called."""
    config = job.training
    published = config.recipe == "published"
    name = job.init or ("default" if job.preset == "adapt" else None)
    if job.width is not None and (name or published):
        raise InputError("A width is that of a new network of ours; leave it out, or the model to start from.")
    if name is None:
        if published:
            return config, ModelConfig("published", normalisation="frame"), None, "random weights"
        model = ModelConfig("fast", grain=FAST_GRAIN)
        model = model if job.width is None else replace(model, width=job.width)
        return config, model, None, "random weights"
    start = load_model(name)
    if (start.config.architecture == "published") != published or start.config.scales != 3:
        raise InputError(
            f"A {start.config.architecture} model cannot be trained by the recipe '{config.recipe}': "
            "start from another model, or from none (preset 'standard')."
        )
    return config, start.config, start.network, name if name in bundled_models() else "another model"


def _data(job: Job, model: ModelConfig, inputs, held_out) -> tuple[list[Cine], list[Cine], bool]:
    """The cines to train on, those held out, and whether the latter are no others than the former."""

    def read(path: Path) -> Cine:
        try:
            return _read(path, job, model)
        except InputError as error:
            if len(inputs) + len(held_out) == 1:
                raise
            raise InputError(named(path, error)) from error

    known = {cine.digest: cine for cine in map(read, inputs)}  # copies once
    cines, others = list(known.values()), [read(path) for path in held_out]
    for path, other in zip(held_out, others, strict=True):
        if other.digest in known:
            raise InputError(f"{path}: a copy of this is to be trained on and held out; leave out one of them.")
    if held_out:
        return cines, others, False
    if len(cines) > 2:
        count = max(1, len(cines) // 10)
        gap = len(cines) // 20 if all(len(cine.frames) == 1 for cine in cines) else 0  # they may be of one cine
        return cines[: -count - gap], cines[-count:], False
    parts = [_split(cine) for cine in cines]
    if ends := [held for _, held in parts if held is not None]:
        return [taken for taken, _ in parts], ends, False
    return cines, cines, bool(cines)


def _split(cine: Cine) -> tuple[Cine, Cine | None]:
    """A lone recording without its last sixth, and that; the twelfth between them, too like either, is in neither."""
    count = len(cine.frames)
    if count < 12:
        return cine, None
    held, gap = count // 6, count // 12
    return replace(cine, frames=cine.frames[: count - held - gap]), replace(cine, frames=cine.frames[count - held :])


def _read(path, job: Job, model: ModelConfig) -> Cine:
    recording = files.read(path)
    frames, imaged = recording.frames, None
    digest = zlib.crc32(np.ascontiguousarray(frames[evenly(len(frames), 4)]), len(frames))
    if job.region not in ("auto", "none"):
        imaged = _mask(job.region, path, frames.shape[1:3])
        frames = fill_outside(frames, imaged)  # the published network would else see what is around it
        digest = zlib.crc32(np.packbits(imaged), digest)
    elif job.region == "auto" and model.architecture != "published":
        imaged = region.detect(frames, recording.region)
    return replace(prepare_cine(frames, imaged, model), digest=digest)


def _mask(given: str, path: Path, shape: tuple[int, int]) -> np.ndarray:
    """The mask (H, W) bool for a recording: the file `given`, or the one with the recording's name in that folder."""
    masks = Path(given)
    if masks.is_dir():
        masks = next((mask for mask in sorted(masks.iterdir()) if mask.stem == path.stem), masks / path.name)
    return files.read_mask(masks, shape)


def _measured(cines, config, model, network, device) -> tuple[float, float]:
    """Steps per second, and seconds that simulating takes before, by a short run of which nothing is kept."""
    trial, made = replace(config, steps=WARM_UP, simulated=min(config.simulated, WARM_UP)), [time.monotonic()]
    training = Training(
        cines, trial, model, copy.deepcopy(network), device, made=lambda *_: made.append(time.monotonic())
    )
    simulating = (made[-1] - made[0]) / len(made) * min(config.simulated, config.steps * config.batch)
    moments = [time.monotonic() for _ in training.run()]
    rate = torch.tensor((len(moments) // 2) / (moments[-1] - moments[len(moments) // 2 - 1]))
    if dist.is_initialized():
        rate = rate.to(device)
        dist.broadcast(rate, 0)
    return rate.item(), simulating


def _estimate(job, cines, apart: int, config, model, network, device) -> dict:
    """What a run would take, and the speckle's grain as it is seen in its recordings; apart: frames held out."""
    rate, simulating = _measured(cines, config, model, network, device)
    steps = config.steps if job.minutes is None else max(1, int(job.minutes * 60 * rate))
    curves = [[[round(float(v), 3) for v in axis] for axis in curve] for curve in map(_correlation, cines) if curve]
    return {
        "frames": sum(len(cine.frames) for cine in cines), "held_out": apart,
        "grain": [[round(g, 2) for g in cine.recorded_grain] for cine in cines], "correlation": curves,
        "steps": steps, "rate": round(rate, 3), "minutes": round((simulating + steps / rate) / 60, 2),
        "memory": _memory(device), "device": str(device),
    }  # fmt: skip


def _correlation(cine: Cine) -> list[np.ndarray]:
    """`speckle_correlation` of a cine, at lags of pixels of the recording; empty where it cannot be measured."""
    curves, wide = [], cine.recorded_grain if cine.resampling is None else cine.grain
    measured = speckle_correlation(cine.frames[:: max(1, len(cine.frames) // 4), 0].numpy())
    for curve, grain, recorded in zip(measured or (), wide, cine.recorded_grain, strict=False):
        curves.append(np.interp(np.arange(0, len(curve) - 1, grain / recorded), np.arange(len(curve)), curve))
    return curves


def _memory(device) -> int:
    """Megabytes that this process has taken at most, on the device if it is not the processor."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def _score(figures: dict[str, float], recorded) -> float:
    """What the best model is chosen by: the held-out loss, or the error against the truth where all is simulated."""
    if not recorded and "rms" in figures:
        return figures["rms"]
    return sum(value for name, value in figures.items() if name.startswith("held-out"))


@contextmanager
def _processes(name: str):
    """The device, and whether this is the first process; joins the others where torchrun has started them."""
    _, local, count = torchrun_place()
    if count == 1:
        yield choose_device(name), True
        return
    cuda = name in ("auto", "cuda") and torch.cuda.is_available()
    device = torch.device(f"cuda:{local}") if cuda else choose_device("cpu" if name == "auto" else name)
    # The group's threads end with the last that refers to it; while they run, the end of the process may abort it.
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


def _any(flag: bool, device) -> bool:
    """Whether the flag is set in any process."""
    if not dist.is_initialized():
        return flag
    flags = torch.tensor(float(flag), device=device)
    dist.all_reduce(flags)
    return flags.item() > 0
