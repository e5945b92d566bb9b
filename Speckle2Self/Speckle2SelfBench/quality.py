"""The benchmark of quality: simulated frames with known truth, real frames, all methods, one table."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from Speckle2SelfLib.augmentation import augment, draw_affine
from Speckle2SelfLib.checkpoint import Model
from Speckle2SelfLib.config import PRESETS, ModelConfig, TrainingConfig
from Speckle2SelfLib.dataset import prepare_cine
from Speckle2SelfLib.despeckling import despeckle
from Speckle2SelfLib.devices import choose_device
from Speckle2SelfLib.filters import FILTERS
from Speckle2SelfLib.library import load_model
from Speckle2SelfLib.loss import published_loss
from Speckle2SelfLib.network import SpeckleReductionNetwork
from Speckle2SelfLib.perturbation import PUBLISHED_SCALES, min_max
from Speckle2SelfLib.recipes import recipe_of
from Speckle2SelfLib.region import fill_outside
from Speckle2SelfLib.training import Training

from . import baselines
from .cases import SCANNERS, Case, real_case, simulated_cases
from .natural import natural_cases
from .report import page, picture, plot, table, write_csv

SLOW = {"deep image prior": 4}  # methods that are run on only this many frames of each set
# The strengths with the filters' best SSIM on 27 other simulated frames of these scanners; the bundled strengths are
# weaker, since points and layers are lost first.
STRONG = {
    "median": {"size": 11}, "lee": {"size": 15}, "srad": {"steps": 400}, "nlm": {"strength": 2.4},
    "curvature": {"steps": 320}, "OBNLM": {"strength": 4}, "BM3D": {"strength": 7},
}  # fmt: skip


@dataclass
class Method:
    """A method; `train(cases, seconds)` returns a function from a case to its despeckled frames (N, H, W)."""

    name: str
    train: Callable
    learns: bool = False
    needs: str = ""  # data that it needs beyond the frames, and that only simulated frames have


def _trained_by(name: str, device, given=None) -> Callable:
    """Return one of `baselines`, trained on all frames of a set together; `given`: "truth" or "second"."""

    def train(cases, seconds):
        frames = np.concatenate([case.filled for case in cases])
        more = {}
        if given:
            extra = {
                "truth": lambda case: np.broadcast_to(case.truth, case.frames.shape),
                "second": lambda case: np.roll(case.frames, 1, axis=0),  # each draw is paired with another one
            }[given]
            more = {given: np.concatenate([fill_outside(extra(case), case.region) for case in cases])}
        apply = getattr(baselines, name)(frames, seconds, device=device, **more)
        return lambda case: apply(case.filled)

    return train


def _ours(device, preset: TrainingConfig, start: Model | None = None) -> Callable:
    """Return a method that runs `Training` on the set's frames, a cine per case, for a time; start: initial model."""

    def train(cases, seconds):
        config = replace(preset, crop=min(preset.crop, *cases[0].region.shape))
        recipe = recipe_of(config)
        model = start.config if start else recipe.new_model()
        frames = [case.frames if recipe.detects_region else case.filled for case in cases]
        cines = [prepare_cine(each, case.region, model) for each, case in zip(frames, cases, strict=True)]
        for cut in (0.1, 1.0):  # a short run measures how many steps fit into the time, as the learning rate needs
            network = copy.deepcopy(start.network) if start else None
            teacher = load_model("default").network if recipe.despeckles and start is None else None
            began, training = time.monotonic(), Training(cines, config, model, network, device, teacher=teacher)
            for report in training.run():
                done = report.step
                if time.monotonic() - began > seconds * cut:
                    break
            steps = max(1, round(done * seconds / max(time.monotonic() - began, 1e-9)))
            config = replace(config, steps=steps)
        trained = Model(model, training.network.eval())
        return lambda case: despeckle(case.frames, trained, region=case.region, device=str(device))

    return train


def methods(device) -> list[Method]:
    """Return all methods, in the table's order."""
    default = load_model("default")
    adapt = replace(PRESETS["adapt"], batch=baselines.BATCH, crop=baselines.CROP)
    new = replace(PRESETS["standard"], batch=adapt.batch, crop=adapt.crop, simulated=adapt.simulated)

    def plain(function):
        return lambda cases, seconds: lambda case: function(case.filled)

    found = [Method("input", plain(lambda frames: frames))]
    filters = FILTERS | {"OBNLM": baselines.obnlm, "BM3D": baselines.bm3d}
    found += [Method(name, plain(function)) for name, function in filters.items()]
    found += [Method(f"{name}, strong", plain(partial(filters[name], **more))) for name, more in STRONG.items()]
    for title, name in (
        ("Noise2Void", "noise2void"), ("Noise2Self", "noise2self"), ("Neighbor2Neighbor", "neighbor2neighbor"),
        ("ZS-N2N", "zsn2n"), ("deep image prior", "deep_image_prior"),
    ):  # fmt: skip
        found.append(Method(title, _trained_by(name, device), True))
    found += [
        Method("Speckle2Self as published", _ours(device, replace(PRESETS["paper"], batch=4)), True),
        Method("ours, from nothing", _ours(device, new), True),
        Method(
            "ours, default model",
            lambda cases, seconds: lambda c: despeckle(c.frames, default, region=c.region, device=str(device)),
        ),
        Method("ours, default adapted", _ours(device, adapt, default), True),
        Method("Noise2Noise", _trained_by("noise2noise", device, "second"), True, "a second look"),
        Method("Noise2True", _trained_by("noise2true", device, "truth"), True, "the truth"),
    ]
    return found


def _authors_loop(network, frames: np.ndarray, rng, device):
    """Run a re-implementation of the authors' loop; yield after each step.

    In 32 bits: each sample on its own on the main thread, resized (by torch, which is not slower than their OpenCV),
    normalized, its three views augmented; then the batch through network, losses and Adam.
    """
    size = frames.shape[-1]

    def resize(image, to):
        return F.interpolate(torch.from_numpy(image).float()[None, None], (to, to), mode="bilinear")[0, 0].numpy()

    def sample(frame):
        scaled = [resize(resize(frame, round(size * scale)), size) for scale in PUBLISHED_SCALES]
        drawn = draw_affine(rng, 1)
        return [augment(min_max(torch.from_numpy(view).float()[None, None]), drawn)[0] for view in scaled]

    optimizer = torch.optim.Adam(network.parameters(), 1e-3, (0.5, 0.999))
    while True:
        views = [torch.stack(view).to(device) for view in zip(*(sample(f) for f in frames), strict=True)]
        loss = sum(published_loss(network(views), views).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


def loop_rates(size: int, batch: int, seconds: float, device) -> tuple[float, float]:
    """Return steps per second of the published recipe on this machine, by the authors' loop and by ours."""
    rng = np.random.default_rng(0)
    frames = (rng.random((batch, size, size)) * 255).astype(np.uint8)
    theirs = _authors_loop(SpeckleReductionNetwork().to(device).train(), frames, rng, device)
    model = ModelConfig("published", normalisation="frame")
    config = TrainingConfig("published", steps=10**6, batch=batch, crop=size, averaging=0.0)
    ours = Training([prepare_cine(frames, None, model)], config, model, device=device)
    loops, times, began = (theirs, ours.run()), ([], []), time.monotonic()
    for loop in loops:
        next(loop)  # warm up
    while time.monotonic() - began < seconds or not times[0]:  # in turns, because other programs may use the machine
        for loop, spent in zip(loops, times, strict=True):
            start = time.monotonic()
            next(loop)
            spent.append(time.monotonic() - start)
    return tuple(1 / float(np.median(spent)) for spent in times)


def run(output, *, quick=False, real=(), minutes: float | None = None, device="auto", size: int | None = None) -> None:
    """Write the whole benchmark into a folder: quality.csv, quality.md, quality.png. Prints its progress.

    Args: quick, fewer and smaller frames, under five minutes on two slow cores; real, files in addition to the sets
    with known truth; minutes, of training for each method and set (default 5; quick: 12 s shared by the sets); size, of
    the frames with a truth in pixels. Raises InputError.
    """
    plot(1, 1)  # reports a missing matplotlib now
    device, folder = choose_device(device), Path(output)
    size = size or (160 if quick else 256)
    seconds = minutes * 60 if minutes else (12 / (2 + len(real)) if quick else 300)
    scanners = [name for name in SCANNERS if not (quick and name == "long")]
    sets = {"simulated": simulated_cases(size, 1 if quick else 3, scanners), "natural": natural_cases(size, quick)}
    for path in real:
        case = real_case(path, 192 if quick else 384, 4 if quick else 16)
        sets[case.name] = [case]
    folder.mkdir(parents=True, exist_ok=True)
    rates = loop_rates(128 if quick else 256, 4 if quick else 16, 2 if quick else 20, device)
    print(f"Training as published: the authors' loop {rates[0]:.3g} steps/s, ours {rates[1]:.3g} steps/s", flush=True)
    rows, pictures, notes = [], {}, []
    for name, cases in sets.items():
        for method in _entries(cases, device):
            _run_method(name, method, cases, seconds, rows, pictures, notes)
        print("\n" + table(rows, name), flush=True)
    write_csv(folder / "quality.csv", rows)
    frames = {name: sum(len(case.frames) for case in cases) for name, cases in sets.items()}
    (folder / "quality.md").write_text(page(rows, notes, rates, frames, seconds, "ours"))
    picture(pictures).savefig(folder / "quality.png")


def _entries(cases: list[Case], device) -> list[Method]:
    """Return the methods that can run on the set, and the outputs stored with it."""
    entries = [method for method in methods(device) if not method.needs or cases[0].truth is not None]
    for key in dict.fromkeys(key for case in cases for key in case.stored):
        title = {"speckle2self_paper": "Speckle2Self"}.get(key, key)
        entries.append(Method(f"{title}, stored", partial(lambda key, *_: lambda c: c.stored[key], key)))
    return entries


def _run_method(name, method: Method, cases, seconds, rows, pictures, notes) -> None:
    """Run one method on the cases of the set `name`; add to `rows`, `pictures` and `notes`."""
    shown = _shown(cases)
    slow = method.name in SLOW
    used = _part(cases, shown, SLOW[method.name]) if slow else cases
    try:
        apply = method.train(used, seconds)
        if not method.learns and not slow:
            apply(used[0])  # warm up
        for case in used:
            began = time.perf_counter()
            outputs = np.asarray(apply(case))[: len(case.frames)]  # stored outputs are not cut
            spent = (time.perf_counter() - began) / len(outputs) * 1000
            outputs = np.where(case.region, outputs, case.frames)
            times = {} if method.name == "input" or method.name.endswith("stored") else {"milliseconds": spent}
            row = {"set": name, "case": case.name, "method": method.name, "frames": len(outputs)}
            rows.append(row | case.measure(outputs) | times)
            if any(case.name == one.name for one in shown) and (name, case.name, method.name) not in pictures:
                if method.name == "input":
                    known = {"region": case.region, "input": case.frames[0], "truth": case.truth}
                    pictures |= {(name, case.name, key): image for key, image in known.items() if image is not None}
                pictures[name, case.name, method.name] = outputs[0]
    except ImportError as error:
        notes.append(f"{method.name} is left out of '{name}': {error}; see `baselines.py`.")
        return
    count, whole = (sum(len(case.frames) for case in some) for some in (used, cases))
    if count < whole:
        notes.append(f"{method.name} is slow: it was run on {count} of the {whole} frames of '{name}'.")
    print(f"{name}: {method.name}", flush=True)


def _part(cases: list[Case], shown: list[Case], count: int) -> list[Case]:
    """Return the first `count` frames; those in the picture come first."""
    part = []
    for case in sorted(cases, key=lambda case: not any(case is one for one in shown)):
        if count > 0:
            part.append(replace(case, frames=case.frames[:count]))
            count -= len(part[-1].frames)
    return part


def _shown(cases: list[Case]) -> list[Case]:
    """Return the cases in the picture: a phantom, a photograph and lesions, or the only one."""
    wanted = ("phantom, fine", "astronaut", "lesions in grass")
    first = {case.name: case for case in reversed(cases)}
    return [first[name] for name in wanted if name in first] or cases[:1]
