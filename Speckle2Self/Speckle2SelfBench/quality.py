"""How good it is beside everything else: simulated frames with known truth, real frames, all methods, one table."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import maximum_filter, minimum_filter

from Speckle2SelfLib import files, metrics, region
from Speckle2SelfLib.augmentation import augment, draw_affine
from Speckle2SelfLib.checkpoint import Model
from Speckle2SelfLib.config import PRESETS, ModelConfig, TrainingConfig
from Speckle2SelfLib.dataset import prepare_cine
from Speckle2SelfLib.despeckling import despeckle
from Speckle2SelfLib.devices import choose_device
from Speckle2SelfLib.filters import FILTERS
from Speckle2SelfLib.grey import evenly, grey_mapping, luminance
from Speckle2SelfLib.library import load_model
from Speckle2SelfLib.loss import published_loss
from Speckle2SelfLib.network import SpeckleReductionNetwork
from Speckle2SelfLib.perturbation import PUBLISHED_SCALES, min_max
from Speckle2SelfLib.recipes import Disjoint
from Speckle2SelfLib.region import fill_outside
from Speckle2SelfLib.simulation import SimulationConfig, simulate
from Speckle2SelfLib.system import InputError
from Speckle2SelfLib.training import Training

from . import baselines
from .phantom import Chart, draw
from .report import page, picture, table, write_csv

SCANNERS = {  # speckle grain (axial, lateral) in pixels, and geometry
    "fine": ((0.9, 1.3), "linear"),
    "long": ((1.2, 3.0), "linear"),
    "sector": ((1.3, 2.0), "sector"),
    "coarse": ((2.4, 3.6), "linear"),
}
LAYOUTS = ("vessel", "layers", "organ")
SLOW = {"deep image prior": 3}  # methods that get this many frames of each set only
# What gave the filters the best SSIM of a few strengths on 27 other simulated frames of these scanners; those that are
# bundled are weaker, since points and layers go first.
STRONG = {
    "median": {"size": 11}, "lee": {"size": 15}, "srad": {"steps": 400}, "nlm": {"strength": 2.4},
    "curvature": {"steps": 320}, "OBNLM": {"strength": 4}, "BM3D": {"strength": 7},
}  # fmt: skip


@dataclass
class Case:
    """Frames that look alike; (H, W) is the same for all cases of a set."""

    name: str
    frames: np.ndarray  # (N, H, W) float32 in [0, 1]
    region: np.ndarray  # (H, W) bool
    truth: np.ndarray | None = None  # (H, W) float32 in [0, 1]
    second: np.ndarray | None = None  # (N, H, W) with independent speckle
    chart: Chart | None = None
    rois: dict | None = None  # see `metrics.evaluate`
    stored: dict[str, np.ndarray] = field(default_factory=dict)  # others' outputs, (N, H, W) float32 in [0, 1]

    @property
    def filled(self) -> np.ndarray:
        """The frames with nothing black around the imaged part."""
        return fill_outside(self.frames, self.region)


@dataclass
class Method:
    """`train(cases, seconds)` gives a function from a case to its despeckled frames (N, H, W)."""

    name: str
    train: Callable
    learns: bool = False
    needs: str = ""  # what it is told beyond the frames; it then takes part on simulated frames alone


def simulated_cases(size: int, repeats: int, scanners) -> list[Case]:
    """Charts and anatomies (size, size) of each scanner, `repeats` of each, from seeds that no training uses."""
    cases = []
    for number, scanner in enumerate(scanners):
        grain, geometry = SCANNERS[scanner]
        for repeat in range(repeats):
            rng = np.random.default_rng([2507, 6828, number, repeat])
            if geometry == "linear":
                drawn = draw(size, grain, rng, looks=2)
                everywhere = np.ones((size, size), bool)
                looks = drawn.frames[:1], drawn.frames[1:]
                cases.append(Case(f"phantom, {scanner}", looks[0], everywhere, drawn.truth, looks[1], drawn))
            for layout in LAYOUTS:
                made = simulate(SimulationConfig((size, size), 2, grain, layout, geometry), rng)
                first, second = made.frames[:1], made.frames[1:]
                cases.append(Case(f"{layout}, {scanner}", first, made.region, made.truth, second))
    return cases


def real_case(path, size: int, most: int) -> Case:
    """Frames of a recording, cut to the middle `size` pixels of its imaged part, or of an .npz file (`input`, and
    others' outputs under other names; `rois.json` beside it serves gCNR and SNR). At most `most`, evenly spread."""
    path = Path(path)
    if path.suffix == ".npz":
        try:
            stored = {name: np.asarray(x) for name, x in np.load(path).items()}
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is not a readable .npz file.") from error
        frames = stored.pop("input", stored.pop("frames", None))
        if frames is None or frames.ndim != 3:
            raise InputError(f"{path} has no frames (N, H, W) under the name 'input'.")
        scale = 1 / 255 if frames.dtype == np.uint8 else 1 / max(float(frames.max()), 1e-9)
        stored = {name: (x * np.float32(scale)) for name, x in stored.items() if x.shape == frames.shape}
        rois = path.with_name("rois.json")
        rois = json.loads(rois.read_text()) if rois.exists() else None
        inside = np.ones(frames.shape[1:], bool)
        return Case(path.stem, frames.astype(np.float32) * np.float32(scale), inside, rois=rois, stored=stored)
    recording = files.read(path)
    inside = region.detect(recording.frames, recording.region)
    frames = recording.frames[evenly(len(recording.frames), most)]
    middle = [int(np.median(places)) for places in np.nonzero(inside)]
    low, high = grey_mapping(frames, inside)
    window = []
    for centre, length in zip(middle, inside.shape, strict=True):
        start = int(np.clip(centre - size // 2, 0, max(0, length - size)))
        window.append(slice(start, start + size))
    frames = np.clip((luminance(frames)[:, *window] - low) / max(high - low, 1e-9), 0, 1).astype(np.float32)
    return Case(path.stem, frames, inside[*window])


def _trained_by(name: str, device, given=None) -> Callable:
    """One of `baselines`, trained on all frames of the set together; `given`: "truth" or "second"."""

    def train(cases, seconds):
        frames = np.concatenate([case.filled for case in cases])
        more = {}
        if given:
            extra = [fill_outside(np.broadcast_to(getattr(c, given), c.frames.shape), c.region) for c in cases]
            more = {given: np.concatenate(extra)}
        apply = getattr(baselines, name)(frames, seconds, device=device, **more)
        return lambda case: apply(case.filled)

    return train


def _ours(device, recipe: str, start: Model | None = None, simulated: int = PRESETS["adapt"].simulated) -> Callable:
    """`Training` on the set's frames, a cine for each case, for a time; from a model where one is given. Anatomies
    with known truth are simulated beforehand, except as published."""

    def train(cases, seconds):
        if recipe == "published":
            model = ModelConfig("published", normalisation="frame")
            config = TrainingConfig(recipe, batch=4, crop=min(512, *cases[0].region.shape), averaging=0.0)
        else:
            model = start.config if start else Disjoint.model
            config = replace(
                PRESETS["adapt" if start else "standard"],
                batch=baselines.BATCH,
                crop=baselines.CROP,
                simulated=simulated,
            )
        frames = [case.filled if recipe == "published" else case.frames for case in cases]
        cines = [prepare_cine(each, case.region, model) for each, case in zip(frames, cases, strict=True)]
        for cut in (0.1, 1.0):  # a short run tells how many steps the time allows: the rate of learning ends with it
            network = copy.deepcopy(start.network) if start else None
            training, began = Training(cines, config, model, network, device), time.monotonic()
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
    """All that take part, in the table's order."""
    default = load_model("default")

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
        Method("Speckle2Self as published", _ours(device, "published"), True),
        Method("ours, frames alone", _ours(device, "disjoint", simulated=0), True),
        Method("ours, from nothing", _ours(device, "disjoint"), True),
        Method(
            "ours, default model",
            lambda cases, seconds: lambda c: despeckle(c.frames, default, region=c.region, device=str(device)),
        ),
        Method("ours, default adapted", _ours(device, "disjoint", default), True),
        Method("Noise2Noise", _trained_by("noise2noise", device, "second"), True, "a second look"),
        Method("Noise2True", _trained_by("noise2true", device, "truth"), True, "the truth"),
    ]
    return found


def measure(case: Case, outputs: np.ndarray) -> dict[str, float]:
    """All figures that the case allows, of its first outputs (n, H, W) in [0, 1]; means over the frames."""
    before, after = (fill_outside(x, case.region) for x in (case.frames[: len(outputs)], outputs))
    figures = metrics.evaluate(before * 255, np.clip(after, 0, 1) * 255, case.rois)
    if case.truth is None:
        return figures
    figures.pop("snr", None)
    rows, inside = [], case.region
    flat = inside & (maximum_filter(case.truth, 9) - minimum_filter(case.truth, 9) < 0.04)
    for output in outputs:
        row = {name: getattr(metrics, name)(output * 255, case.truth * 255, inside=inside) for name in ("psnr", "ssim")}
        if flat.sum() > 100:
            on_truth = metrics.to_truth(output[inside], case.truth[inside])
            row["flat"] = float(np.sqrt(np.mean((on_truth - case.truth[inside])[flat[inside]] ** 2)))
        rows.append(row | (case.chart.measure(output) if case.chart else {}))
    return figures | {name: float(np.nanmean([row[name] for row in rows])) for name in rows[0]}


def loop_rates(size: int, batch: int, seconds: float, device) -> tuple[float, float]:
    """Steps per second of the published recipe: the authors' loop as re-enacted here, and ours; the same machine.

    Theirs, in 32 bits: each sample on its own on the main thread, resized by OpenCV (by torch where there is none,
    which is not slower), normalised, its three views augmented; then the batch through network, losses and Adam.
    """
    try:
        import cv2
    except ImportError:
        cv2 = None
    rng = np.random.default_rng(0)
    frames = (rng.random((batch, size, size)) * 255).astype(np.uint8)

    def resize(image, to):
        if cv2:
            return cv2.resize(image, (to, to))
        return F.interpolate(torch.from_numpy(image).float()[None, None], (to, to), mode="bilinear")[0, 0].numpy()

    def sample(frame):
        scaled = [resize(resize(frame, round(size * scale)), size) for scale in PUBLISHED_SCALES]
        drawn = draw_affine(rng, 1)
        return [augment(min_max(torch.from_numpy(view).float()[None, None]), drawn)[0] for view in scaled]

    network = SpeckleReductionNetwork().to(device).train()
    optimiser = torch.optim.Adam(network.parameters(), 1e-3, (0.5, 0.999))

    def theirs():
        while True:
            views = [torch.stack(view).to(device) for view in zip(*(sample(f) for f in frames), strict=True)]
            loss = sum(published_loss(network(views), views).values())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            yield loss.item()

    model = ModelConfig("published", normalisation="frame")
    config = TrainingConfig("published", steps=10**6, batch=batch, crop=size, averaging=0.0)
    ours = Training([prepare_cine(frames, None, model)], config, model, device=device)
    loops, times, began = (theirs(), ours.run()), ([], []), time.monotonic()
    for loop in loops:
        next(loop)  # what is done once only
    while time.monotonic() - began < seconds or not times[0]:  # in turn, as the machine may have others to serve
        for loop, spent in zip(loops, times, strict=True):
            start = time.monotonic()
            next(loop)
            spent.append(time.monotonic() - start)
    return tuple(1 / float(np.median(spent)) for spent in times)


def run(output, *, quick=False, real=(), minutes: float | None = None, device="auto", size: int | None = None) -> None:
    """The whole benchmark into a folder: quality.csv, quality.md, quality.png. Prints as it goes.

    Args: quick, fewer and smaller frames, under five minutes on two slow cores; real, files besides the simulated
    set; minutes, of training for each method and set (default 5; quick: 12 s shared by the sets); size, of the
    simulated frames in pixels. Raises InputError.
    """
    device, folder = choose_device(device), Path(output)
    size = size or (160 if quick else 256)
    seconds = minutes * 60 if minutes else (12 / (1 + len(real)) if quick else 300)
    scanners = ("fine", "sector", "coarse") if quick else tuple(SCANNERS)
    sets = {"simulated": simulated_cases(size, 1 if quick else 3, scanners)}
    for path in real:
        case = real_case(path, 192 if quick else 384, 4 if quick else 16)
        sets[case.name] = [case]
    folder.mkdir(parents=True, exist_ok=True)
    rates = loop_rates(128 if quick else 256, 4 if quick else 16, 2 if quick else 20, device)
    print(f"Training as published: the authors' loop {rates[0]:.3g} steps/s, ours {rates[1]:.3g} steps/s", flush=True)
    rows, pictures, notes = [], {}, []
    for name, cases in sets.items():
        _run_set(name, cases, seconds, device, rows, pictures, notes)
        print("\n" + table(rows, name), flush=True)
    write_csv(folder / "quality.csv", rows)
    frames = {name: sum(len(case.frames) for case in cases) for name, cases in sets.items()}
    (folder / "quality.md").write_text(page(rows, notes, rates, frames, seconds))
    picture(pictures).save(folder / "quality.png", optimize=True)


def _run_set(name, cases, seconds, device, rows, pictures, notes) -> None:
    """All methods on the cases of one set; adds to the three lists."""
    shown = _shown(cases)
    entries = methods(device)
    for key in dict.fromkeys(key for case in cases for key in case.stored):
        title = {"speckle2self_paper": "Speckle2Self"}.get(key, key)
        entries.append(Method(f"{title}, stored", partial(lambda key, *_: lambda c: c.stored[key], key)))
    for at, case in enumerate(shown):
        pictures[name, at, "region"] = case.region
        pictures[name, at, "input"] = case.frames[0]
        if case.truth is not None:
            pictures[name, at, "truth"] = case.truth
    for method in entries:
        if method.needs and cases[0].truth is None:
            continue
        used = _part(cases, shown, SLOW[method.name]) if method.name in SLOW else cases
        try:
            apply = method.train(used, seconds)
            if not method.learns and method.name not in SLOW:
                apply(used[0])  # what is done once only
            for case in used:
                began = time.perf_counter()
                outputs = np.asarray(apply(case))[: len(case.frames)]  # stored ones are not cut
                spent = (time.perf_counter() - began) / len(outputs) * 1000
                outputs = np.where(case.region, outputs, case.frames)
                times = {} if method.name == "input" or method.name.endswith("stored") else {"milliseconds": spent}
                row = {"set": name, "case": case.name, "method": method.name, "frames": len(outputs)}
                rows.append(row | measure(case, outputs) | times)
                for at, one in enumerate(shown):
                    if np.shares_memory(one.frames, case.frames):
                        pictures[name, at, method.name] = outputs[0]
        except ImportError as error:
            notes.append(f"{method.name} is left out of '{name}': {error}; see `baselines.py`.")
            continue
        count, whole = (sum(len(case.frames) for case in some) for some in (used, cases))
        if count < whole:
            notes.append(f"{method.name} is slow: it was run on {count} of the {whole} frames of '{name}'.")
        print(f"{name}: {method.name}", flush=True)


def _part(cases, shown, count: int) -> list[Case]:
    """The first `count` frames: those in the picture come first."""
    part = []
    for case in sorted(cases, key=lambda case: not any(case is one for one in shown)):
        if count > 0:
            second = None if case.second is None else case.second[:count]
            part.append(replace(case, frames=case.frames[:count], second=second))
            count -= len(part[-1].frames)
    return part


def _shown(cases) -> list[Case]:
    """The cases in the picture: a phantom and a vessel, or the only one."""
    wanted = ("phantom, fine", "vessel, sector")
    return [next(c for c in cases if c.name == name) for name in wanted if any(c.name == name for c in cases)] or cases[
        :1
    ]
