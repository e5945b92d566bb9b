"""One training run from files to a model: what the command line, the panel and a cluster's job do alike.

A run keeps two files: the model, the best so far, under its own name, and beside it, while it is unfinished,
`<model>.state` with all that it needs to go on bit for bit. Both are replaced as a whole or not at all.
"""

from __future__ import annotations

import copy
import gc
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from imageio.v3 import imwrite

from . import __version__, checkpoint, files, region
from .config import Cancelled, InputError, Job, ModelConfig, TrainingConfig, from_dict, locked, replace_file, to_dict
from .despeckling import Model, load_model
from .devices import choose_device, choose_precision
from .frames import fill_outside
from .library import bundled_models, worse_than_start
from .perturbation import speckle_correlation
from .training import FAST_GRAIN, Cine, Training, prepare_cine

NEEDED = {"config", "model", "shapes", "curve", "start", "started_from", "step", "precision"}  # of a run's state
TOLD = 2.0  # seconds from one report on the simulation to the next
WARM_UP = 12  # steps, to measure the rate
CURVE = 200  # points of the loss that a model's card keeps at most


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
        _check_targets(job)
        listen = report if first else lambda line: None
        with locked(job.output) if first and not job.estimate else nullcontext():
            return _run(job, device, listen, lambda: _any(stop(), device), first)


def _run(job: Job, device, report, stop, first: bool) -> Model | None:
    output, state = Path(job.output), state_path(job.output)
    saved = checkpoint.load_state(state) if job.resume and state.exists() else None
    if not job.resume and state.exists():
        raise InputError(f"{output} has an unfinished run: add --resume to go on with it, or remove {state}.")
    config, model, network, started_from = _start(job)
    if saved:
        if missing := NEEDED - set(saved[1]):
            raise InputError(f"{state} is damaged: it lacks {', '.join(sorted(missing))}.")
        config, model = from_dict(TrainingConfig, saved[1]["config"]), from_dict(ModelConfig, saved[1]["model"])
    cines, held_out, seen = _data(job, model, config)
    if job.estimate:
        report({"estimate": _estimate(job, cines, held_out, config, model, network, device)})
        return None
    if saved is None and job.minutes is not None:
        rate, _ = _measured(cines, config, model, network, device)
        config = replace(config, steps=max(1, int(job.minutes * 60 * rate)))
    shapes = [list(cine.frames.shape) for cine in cines]
    if saved and saved[1]["shapes"] != shapes:
        raise InputError("The recordings are not those that the unfinished run was started with.")
    reached = saved[1] if saved else {"step": 0, "precision": str(choose_precision(device)).removeprefix("torch.")}
    report({
        "config": to_dict(config), "model": to_dict(model), "device": str(device), "precision": reached["precision"],
        "processes": dist.get_world_size() if dist.is_initialized() else 1,
        "recordings": [{"frames": len(cine.frames), "grain": [round(g, 2) for g in cine.grain]} for cine in cines],
        "held_out": sum(len(cine.frames) for cine in held_out), "seen": seen, "from_step": reached["step"],
    })  # fmt: skip
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
    curve, start, best = [], {}, None
    if saved:
        tensors, values = saved
        training.restore(tensors, values)
        curve, start, started_from = values["curve"], values["start"], values["started_from"]
        best = checkpoint.load(output) if output.exists() else None
    names = ("recipe", "steps", "simulated", "batch", "interval", "seed")
    if saved and (kept := [n for n in names if getattr(job, n) not in (None, getattr(config, n))]):
        kept = ", ".join(f"{name} = {getattr(config, name)}" for name in kept)
        report({"message": f"The run goes on as it was begun: {kept}."})
    if job.resume and not saved:
        report({"message": "There is no unfinished run to go on with; a new one starts."})

    def card(figures):
        return {
            "description": _description(config, cines),
            "start": started_from, "training": to_dict(config), "steps": training.step, "version": __version__,
            "curve": curve[:: max(1, len(curve) // CURVE)], "figures": figures, "figures_at_start": start,
            "figures_are_of": "frames trained on" if seen else "frames held out",
        }  # fmt: skip

    def validate():
        """Figures, and what they lead to: the model file if it is the best, the run's state, the preview."""
        nonlocal best
        figures, picture = training.validate() if first else ({}, None)
        score = _score(figures, training.recorded)
        if first and training.step and (score <= training.best or best is None):
            training.best = score
            best = model, training.network, card(figures)
            checkpoint.save(output, *best)
        if first and training.step:
            tensors, values = training.state()
            values |= {"config": to_dict(config), "model": to_dict(model), "shapes": shapes}
            values |= {"curve": curve, "start": start, "started_from": started_from}
            checkpoint.save_state(state, tensors, values)
        if picture is not None and job.preview:
            replace_file(job.preview, imwrite("<bytes>", picture, extension=".png"))
            figures = figures | {"preview": job.preview}
        return figures

    if training.step == 0 and first:
        figures = validate()
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
        state.unlink(missing_ok=True)
        worse = worse_than_start(result.card)
        if worse:
            report({"message": f"This model is worse than the one it started from: {worse}."})
        report({"model": str(output), "minutes": round((time.monotonic() - began) / 60, 2), "worse": worse})
    return result


def _check_targets(job: Job) -> None:
    """Raises InputError where a file that the run would write cannot be there, or is one that it reads."""
    for target in map(Path, filter(None, (job.output, job.preview))):
        if not target.parent.is_dir():
            raise InputError(f"There is no folder {target.parent} to write to.")
        if target.is_dir():
            raise InputError(f"{target} is a folder; name a file to write.")
        if not target.exists():
            continue  # an archive is not searched for it
        read = [*files.find([*job.inputs, *job.held_out]), Path(job.region)]
        if target.resolve() in (path.resolve() for path in read):
            raise InputError(
                f"{target} is a recording or mask of this run, and would be overwritten; name another file."
            )


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


def _data(job: Job, model: ModelConfig, config: TrainingConfig) -> tuple[list[Cine], list[Cine], bool]:
    """The cines to train on, those held out, and whether the latter are no others than the former."""
    cines = [_read(path, job, model) for path in files.find(list(job.inputs))] if job.inputs else []
    if job.held_out:
        return cines, [_read(path, job, model) for path in files.find(list(job.held_out))], False
    if len(cines) > 2:
        count = max(1, len(cines) // 10)
        return cines[:-count], cines[-count:], False
    parts = [_split(cine) for cine in cines]
    if cines and all(held is not None for _, held in parts):
        return [taken for taken, _ in parts], [held for _, held in parts], False
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
    if job.region not in ("auto", "none"):
        imaged = _mask(job.region, path, frames.shape[1:3])
        frames = fill_outside(frames, imaged)  # the published network would else see what is around it
    elif job.region == "auto" and model.architecture != "published":
        imaged = region.detect(frames, recording.region)
    return prepare_cine(frames, imaged, model)


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


def _estimate(job, cines, held_out, config, model, network, device) -> dict:
    """What a run would take, and the speckle's grain as it is seen in its recordings."""
    rate, simulating = _measured(cines, config, model, network, device)
    steps = config.steps if job.minutes is None else max(1, int(job.minutes * 60 * rate))
    curves = [speckle_correlation(cine.frames[:: max(1, len(cine.frames) // 4), 0].numpy()) for cine in cines]
    curves = [[[round(float(v), 3) for v in axis] for axis in curve] for curve in curves if curve is not None]
    return {
        "frames": sum(len(cine.frames) for cine in cines), "held_out": sum(len(cine.frames) for cine in held_out),
        "grain": [[round(g, 2) for g in cine.grain] for cine in cines], "correlation": curves,
        "steps": steps, "rate": round(rate, 3), "minutes": round((simulating + steps / rate) / 60, 2),
        "memory": _memory(device), "device": str(device),
    }  # fmt: skip


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
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield choose_device(name), True
        return
    local = int(os.environ["LOCAL_RANK"])
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
