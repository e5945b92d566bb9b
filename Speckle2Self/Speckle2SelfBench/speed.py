"""The benchmark of speed, relative to the published script in the same run, and to the limits of this machine.

Methods with the same size and number of threads run in turns, and the best turn of each counts, so that the ratios hold
on a shared machine. The multiply-adds and the least memory traffic are counted from the layers. They are compared with
limits that are measured here: the best of several ways to multiply matrices, and a copy.
"""

from __future__ import annotations

import csv
import ctypes
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from Speckle2SelfLib import __version__, files, region
from Speckle2SelfLib.calibration import Calibration, calibrate
from Speckle2SelfLib.checkpoint import Model
from Speckle2SelfLib.config import ModelConfig
from Speckle2SelfLib.despeckling import despeckle
from Speckle2SelfLib.devices import choose_device, choose_precision, each_in_order, sixteen_bits
from Speckle2SelfLib.filters import FILTERS
from Speckle2SelfLib.grey import grey_mapping
from Speckle2SelfLib.inference import fast_network, through_network
from Speckle2SelfLib.library import bundled_models, load_model
from Speckle2SelfLib.network import SpeckleReductionNetwork
from Speckle2SelfLib.perturbation import published_views
from Speckle2SelfLib.simulation import SimulationConfig, simulate
from Speckle2SelfLib.system import InputError

from .baselines import bm3d
from .report import markdown, plot

SIZES = ((256, 256), (512, 512), (616, 820), (1024, 1024))  # (H, W) pixels
CLASSICAL = {"srad": FILTERS["srad"], "nlm": FILTERS["nlm"], "BM3D": bm3d, "median": FILTERS["median"]}
SCRIPT, ENGINE, DEFAULT = "published, by its script", "published, our engine", "default model"
CINE_PIXELS = 2**22  # pixels in all frames of a cine together
LENGTH_SIZES = SIZES[:3]  # sizes at which the number of frames is varied
SLOWER = 0.85  # a ratio below this fraction of the last release's is reported
COLUMNS = {  # name: heading, format
    "method": ("method", "s"),
    "size": ("size", "s"),
    "frames": ("frames", "d"),
    "precision": ("precision", "s"),
    "threads": ("threads", "d"),
    "ratio": ("times the script", ".2f"),
    "milliseconds": ("ms / frame", ".1f"),
    "fps": ("frames / s", ".1f"),
    "gmacs": ("10^9 multiply-adds / frame", ".2f"),
    "gflops": ("GFLOP/s", ".0f"),
    "of_matrix": ("of the limit", ".0%"),
    "of_copy": ("of a copy", ".0%"),
    "megabytes": ("peak MB", ".0f"),
}


@dataclass(frozen=True)
class Work:
    """The work of a network for each pixel of its input (weights: for each batch), counted from its convolutions."""

    multiply_adds: float  # per pixel
    elements: float  # numbers read and written per pixel if every convolution's input and output moves once
    weights: int


def count(network: torch.nn.Module, inputs, pixels: int) -> Work:
    """Return the work of `network(inputs)`, whose inputs have `pixels` pixels in total; only convolutions count."""
    total = [0, 0, 0]

    def add(layer, given, made):
        taken = given[0]
        if isinstance(layer, torch.nn.ConvTranspose2d):
            total[0] += taken.numel() * layer.weight[0].numel()
        else:
            total[0] += made.numel() * layer.weight[0].numel()
        total[1] += taken.numel() + made.numel()
        total[2] += layer.weight.numel()

    kinds = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    hooks = [layer.register_forward_hook(add) for layer in network.modules() if isinstance(layer, kinds)]
    try:
        with torch.no_grad():  # in inference, convolutions are fused and hooks are not called
            network(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return Work(total[0] / pixels, total[1] / pixels, total[2])


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds(work: Callable, device: torch.device) -> float:
    """Return the seconds of one call, including all of its work on the device."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    _synchronise(device)
    started = time.perf_counter()
    work()
    _synchronise(device)
    return time.perf_counter() - started


def best(work: Callable, device: torch.device, budget: float = 0.5, least: int = 2) -> float:
    """Return the seconds of the shortest of at least `least` calls during `budget` seconds."""
    found, began = [], time.perf_counter()
    while len(found) < least or time.perf_counter() - began < budget:
        found.append(seconds(work, device))
    return min(found)


def peak_megabytes(work: Callable, device: torch.device) -> float | None:
    """Return the memory that one call adds at its peak; None if the system does not report it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)  # return freed memory, whose use would otherwise go unnoticed
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        work()
        return (_status("VmHWM") - before) / 1024
    except (OSError, AttributeError, TypeError, StopIteration):
        return None


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def _products(device: torch.device, precision: torch.dtype):
    """Yield ways to multiply matrices, because the fastest differs between libraries and processors: (function, its
    multiply-adds), the small ones first."""
    count = 1 if device.type == "cpu" else 16  # a GPU needs larger products

    def drawn(*shape):
        return torch.randn(*shape, device=device).to(precision)

    for channels, side, kernel in ((64, 64, 1), (256, 32, 1), (256, 64, 1), (64, 64, 3), (256, 32, 3), (128, 96, 3)):
        x = drawn(count, channels, side, side).to(memory_format=torch.channels_last)
        weight = drawn(channels, channels, kernel, kernel).to(memory_format=torch.channels_last)
        yield partial(F.conv2d, x, weight, padding=kernel // 2), x.numel() * weight[0].numel()
    for side in (256, 512, 1024) if device.type == "cpu" else (4096, 8192):
        left, right = drawn(side, side), drawn(side, side)
        for product in (torch.mm, F.linear):
            yield partial(product, left, right), side**3


def machine_rates(device: torch.device, budget: float = 0.5) -> dict:
    """Return the limits of this device: multiply-adds per second in 32 and in 16 bits, by the best of `_products`, each
    tried for a part of `budget` seconds, and bytes per second of a copy (read and written)."""
    rates = {}
    with torch.inference_mode():
        for precision in (torch.float32, sixteen_bits(device)):
            rate = 0.0
            for product, work in _products(device, precision):
                if work < rate * budget or not rate:  # on some machines, 16 bits are a hundred times slower
                    rate = max(rate, work / best(product, device, budget / 8))
            rates[precision] = rate
    source = torch.ones(2**26 if device.type == "cpu" else 2**28, device=device)
    target = torch.empty_like(source)
    rates["copy"] = 2 * source.numel() * 4 / best(lambda: target.copy_(source), device, budget)
    return rates


def add_shares(rows: list[dict], rates: dict) -> None:
    """Add to each row its fractions of the machine's rates."""
    for row in rows:
        if "gflops" in row:
            row["of_matrix"] = row["gflops"] * 5e8 / rates[getattr(torch, row["precision"])]
        row["of_copy"] = row["gigabytes"] * 1e9 / rates["copy"]


def beyond(rows: list[dict]) -> list[str]:
    """Return sentences on rows that seem to exceed the machine's limits: a limit was measured wrong."""
    return [
        f"WRONG LIMIT: {row['method']}, {row['size']}, {row['precision']}: {row[share]:.0%} {COLUMNS[share][0]}."
        for row in rows
        for share in ("of_matrix", "of_copy")
        if row.get(share, 0) > 1
    ]


def published_script(network: SpeckleReductionNetwork, device: torch.device) -> Callable:
    """Return the authors' method as their script runs it, (N, H, W) -> (N, H, W) float32: one frame at a time, its
    three views through all three branches in 32 bits, the full-scale prediction clipped to [0, 1]. Sides are padded to
    multiples of 16; the script resizes instead."""
    network = network.to(device).train()  # uses the authors' instance normalization, not our faster one

    def run(frames):
        outputs = []
        for frame in frames:
            views = published_views(torch.from_numpy(frame).float()[None, None])
            height, width = frame.shape
            pads = (0, -width % network.multiple, 0, -height % network.multiple)
            with torch.no_grad():
                predictions = network(tuple(F.pad(view.to(device), pads, mode="replicate") for view in views))
            outputs.append(predictions[0][0, 0, :height, :width].clamp(0, 1).cpu().numpy())
        return np.stack(outputs)

    return run


@dataclass
class Entry:
    """One line of the table: `run(frames)` takes (N, H, W) uint8."""

    method: str
    frames: np.ndarray
    precision: torch.dtype
    run: Callable
    work: Work | None = None
    once: bool = False  # too slow for a second turn


def recording(size: tuple[int, int], count: int) -> np.ndarray:
    """Return a cine (count, H, W) uint8 of simulated tissue that drifts."""
    made = simulate(SimulationConfig(size, 1, (1.1, 1.5), "organ", "linear"), np.random.default_rng(6))
    frame = np.round(made.frames[0] * 255).astype(np.uint8)
    return np.stack([np.roll(frame, number % 64, axis=1) for number in range(count)])


def published_pair(seed: int = 0) -> tuple[SpeckleReductionNetwork, Model]:
    """Return the published network with random weights, and its full-scale half as a model for our engine."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        whole = SpeckleReductionNetwork()
    half = SpeckleReductionNetwork(scales=1)
    half.load_state_dict({name: w for name, w in whole.state_dict().items() if name in half.state_dict()})
    return whole, Model(ModelConfig("published", scales=1, normalisation="frame"), half.eval())


def entries(size, threads: int, quick: bool, device, precisions, networks) -> list[Entry]:
    """Return all entries for one size (H, W), the script first. `networks`: from `published_pair`."""
    whole, half = networks
    models = {f"{name} model": load_model(path) for name, path in bundled_models().items()}
    cine = recording(size, max(2, min(8 if quick else 16, CINE_PIXELS // (size[0] * size[1]))))
    everywhere = np.ones(size, bool)
    found_once = Calibration(everywhere, grey_mapping(cine, everywhere), (1.1, 1.5))
    small = torch.rand(1, 1, 64, 64)

    def work(network, inputs=small):
        return count(network.cpu().eval(), inputs, 64 * 64)

    def engine(model, precision):
        given = {"precision": precision, "calibration": found_once, "device": str(device)}
        return lambda frames: despeckle(frames, model, **given)

    works = {ENGINE: work(half.network)} | {name: work(model.network) for name, model in models.items()}
    three, default = work(whole, (small,) * 3), models[DEFAULT]
    found = [Entry(SCRIPT, cine[:1], torch.float32, published_script(whole, device), three)]
    for precision in precisions:
        for frames in (cine[:1], cine):
            for name, model in {ENGINE: half, **models}.items():
                found.append(Entry(name, frames, precision, engine(model, precision), works[name]))
    alone = network_alone(default, device, precisions[0])
    found.append(Entry(f"{DEFAULT}, network alone", cine, precisions[0], alone, works[DEFAULT]))
    if threads == torch.get_num_threads() and device.type == "cpu":
        for name in ("median",) if quick else CLASSICAL:
            run = _filtered(CLASSICAL[name], {"calibration": found_once})
            if name != "BM3D" or find_spec("bm3d"):
                found.append(Entry(name, cine[:1], torch.float32, run, once=name != "median"))
    return found


def _filtered(function, given) -> Callable:
    return lambda frames: despeckle(frames, function, **given)


def network_alone(model: Model, device, precision) -> Callable:
    """Return only the network as a function of frames (N, H, W) uint8, which remain on the device from the second call
    on."""
    network, kept = fast_network(model, device, precision), {}

    def run(frames):
        if id(frames) not in kept:
            kept[id(frames)] = (torch.from_numpy(frames)[:, None].float() / 255).to(device)
        parts = kept[id(frames)].split(1 if device.type == "cpu" else 16)

        @torch.inference_mode()
        def work(number):
            through_network(network, parts[number])

        with each_in_order(work, range(len(parts)), len(parts) if device.type == "cpu" else 1, device) as done:
            for _ in done:
                pass

    return run


def measure(found: list[Entry], size, threads: int, device, budget: float) -> list[dict]:
    """Return the rows of one size and number of threads; ratios are relative to the first entry's time. Fractions of
    the machine's rates are added later (`add_shares`)."""
    times: list[list[float]] = [[] for _ in found]
    memory = []
    for entry, spent in zip(found, times, strict=True):  # the first turn, timed only if it is also the last

        def first(entry=entry, spent=spent):
            took = seconds(lambda: entry.run(entry.frames), device)
            if entry.once:
                spent.append(took)

        memory.append(peak_megabytes(first, device))
    began, turns, least = time.perf_counter(), 0, 2 if budget < 2 else 3
    while turns < least or time.perf_counter() - began < budget:
        turns += 1
        for entry, spent in zip(found, times, strict=True):
            if not entry.once:
                spent.append(seconds(lambda e=entry: e.run(e.frames), device))
    rows, script = [], min(times[0]) / len(found[0].frames)
    for entry, spent, peak in zip(found, times, memory, strict=True):
        each = min(spent) / len(entry.frames)
        row = {
            "method": entry.method,
            "size": f"{size[1]} x {size[0]}",
            "frames": len(entry.frames),
            "precision": str(entry.precision).removeprefix("torch."),
            "threads": threads,
            "ratio": script / each,
            "milliseconds": 1000 * each,
            "fps": 1 / each,
            "megabytes": peak,
        }
        pixels, numbers = size[0] * size[1], 2.0 * size[0] * size[1]
        if entry.work:
            done = entry.work.multiply_adds * pixels
            numbers = entry.work.elements * pixels + entry.work.weights / len(entry.frames)
            row |= {"gmacs": done / 1e9, "gflops": 2 * done / each / 1e9}
        rows.append(row | {"gigabytes": numbers * entry.precision.itemsize / each / 1e9})
    return rows


def differences(networks, device, precisions, size: int = 128) -> dict[str, float]:
    """Return the largest difference of our engine's output from the script's, of a grey range of 1, by precision."""
    whole, half = networks
    frames = recording((size, size), 2).astype(np.float32)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # otherwise CUDA rounds to 19 bits
        script = published_script(whole, device)(frames)
    found = {}
    for precision in precisions:
        output = despeckle(frames, half, region=None, precision=precision, device=str(device))
        low, high = (f(frames, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
        name = str(precision).removeprefix("torch.")
        found[name] = float(np.abs((output - low) / (high - low) - script).max())
    return found


def by_length(device, lengths, size: tuple[int, int], turns: int = 3) -> dict[int, float]:
    """Return milliseconds per frame for cines of these lengths, in turns; region, mapping and grain are given."""
    model, cine = load_model("default"), recording(size, max(lengths))
    given = {"calibration": Calibration(np.ones(size, bool), (0, 255), (1.1, 1.5)), "device": str(device)}
    found: dict[int, list[float]] = {length: [] for length in lengths}
    for length in lengths * 2:  # warm up
        despeckle(cine[:length], model, **given)
    for _ in range(turns):
        for length, spent in found.items():
            for _ in range(max(1, max(lengths) // length)):  # short cines are repeated to last as long as long ones
                took = seconds(lambda n=length: despeckle(cine[:n], model, **given), device)
                spent.append(1000 * took / length)
    return {length: float(np.median(spent)) for length, spent in found.items()}


def stages(device, frames: int, size=(480, 640)) -> dict[str, float]:
    """Return milliseconds per frame of each stage from disk to disk, for an uncompressed cine."""
    model, cine = load_model("default"), recording(size, frames)
    found, clock = {}, time.perf_counter

    def stage(name, work):
        started = clock()
        result = work()
        found[name] = 1000 * (clock() - started) / frames
        return result

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "cine.npy"), Path(folder, "despeckled.npy")
        np.save(source, cine)
        despeckle(cine[:1], model, region=None, device=str(device))  # warm up
        read = stage("read", lambda: files.read(source))
        inside = stage("region", lambda: region.detect(read.frames))
        calibration = stage("grey values, grain", lambda: calibrate(read.frames, inside))
        spent, threads = [], set()  # times and threads of blocks that run in parallel
        network = fast_network(model, device)
        run = network.forward

        def timed(x):
            started = clock()
            y = run(x)
            _synchronise(device)
            spent.append(clock() - started)
            threads.add(threading.get_ident())
            return y

        network.forward = timed
        given = {"calibration": calibration, "device": str(device)}
        result = stage("despeckling", lambda: despeckle(read.frames, model, **given))
        network.forward = run
        found["of it, network"] = 1000 * sum(spent) / len(threads) / frames
        stage("write", lambda: files.write(target, result, read))
    return found


def kind(device: torch.device, threads: int) -> str:
    """Return the kind of device and precision, within which ratios of the history can be compared."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "mps"
    precision, about = str(choose_precision(device)).removeprefix("torch."), Path("/proc/cpuinfo")
    tiles = about.exists() and "amx_tile" in about.read_text()  # five times as fast as without
    return f"{'AMX' if tiles else torch.backends.cpu.get_cpu_capability()}, {threads} threads, {precision}"


def compare(path, rows: list[dict], name: str) -> list[str]:
    """Return sentences that compare the default model's ratios with the last ones of this kind in a history file."""
    last = {}
    with Path(path).open(newline="") as stream:
        for line in csv.DictReader(stream):
            if line["kind"] == name:
                last[line["size"], line["frames"]] = line
    told = []
    for key, ratio in _ratios(rows).items():
        if key in last:
            before, version = float(last[key]["ratio"]), last[key]["version"]
            verdict = "SLOWER than" if ratio < SLOWER * before else "not slower (within 15 %) than"
            told.append(f"default model, {key[0]}, {key[1]}: {verdict} {version}: {before:.1f} -> {ratio:.1f} times")
    return told or [f"The history has no ratios of this kind of device ({name})."]


def add_ratios(path, rows: list[dict], name: str) -> None:
    """Append the default model's ratios to a history file."""
    path = Path(path)
    fresh = not path.exists()
    with path.open("a", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        if fresh:
            writer.writerow(["version", "kind", "size", "frames", "ratio"])
        for (size, frames), ratio in _ratios(rows).items():
            writer.writerow([__version__, name, size, frames, f"{ratio:.2f}"])


def _ratios(rows) -> dict[tuple[str, str], float]:
    """Return (size, "live" or "cine") -> the default model's best ratio with all threads."""
    most, found = max(row["threads"] for row in rows), {}
    for row in rows:
        if row["method"] == DEFAULT and row["threads"] == most:
            key = row["size"], "live" if row["frames"] == 1 else "cine"
            found[key] = max(found.get(key, 0), row["ratio"])
    return found


def table(rows: list[dict]) -> str:
    """Format the rows as a Markdown table."""
    lines = [[heading for heading, _ in COLUMNS.values()]]
    for row in rows:
        lines.append(["" if row.get(name) is None else f"{row[name]:{form}}" for name, (_, form) in COLUMNS.items()])
    return markdown(lines)


def picture(rows: list[dict], rates):
    """Return a matplotlib figure of time per frame against pixels, both logarithmic: the best of each method with all
    threads; dashed, the time of the default model's multiply-adds at the machine's limit."""
    most, curves, pixels = max(row["threads"] for row in rows), {}, {}
    for row in rows:
        across, down = (int(n) for n in row["size"].split(" x "))
        pixels[row["size"]] = across * down
        if row["threads"] == most and not row["method"].endswith("alone"):
            curve = curves.setdefault(row["method"], {})
            curve[across * down] = min(curve.get(across * down, np.inf), row["milliseconds"])
    ours = next(row for row in rows if row["method"] == DEFAULT)
    fastest = max(rate for name, rate in rates.items() if name != "copy")
    each = 1e12 * ours["gmacs"] / pixels[ours["size"]] / fastest
    whole = plot(9, 5)
    axes, last = whole.subplots(), max(pixels.values())
    for name, curve in sorted(curves.items(), key=lambda item: -item[1].get(last, 0)):
        (line,) = axes.loglog(*zip(*sorted(curve.items()), strict=True), "o-", label=name)
        if name == DEFAULT:
            axes.loglog(list(curve), [each * n for n in curve], "--", color=line.get_color(), label=f"{name}'s limit")
    axes.set_xticks(list(pixels.values()), list(pixels), fontsize=8)
    axes.minorticks_off()
    axes.set(xlabel="size of the frame, pixels", ylabel="ms / frame")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(axis="y", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    whole.legend(loc="outside right upper", frameon=False, fontsize=9)
    return whole


def page(rows, rates, about: dict) -> str:
    """Return all results in Markdown, ratios first."""
    gflops = {name: 2 * rate / 1e9 for name, rate in rates.items() if name != "copy"}
    text = "Measured on: " + about["kind"] + f", torch {torch.__version__}. "
    text += "; ".join(f"{str(n).removeprefix('torch.')} matrix product {r:.3g} GFLOP/s" for n, r in gflops.items())
    text += f"; copy {rates['copy'] / 1e9:.3g} GB/s.\n\n" + table(rows) + "\n"
    for name, value in about["differences"].items():
        text += f"- The published network's output, our engine against the script, {name}: {value:.1e} at most.\n"
    if about["skipped"]:
        text += f"- {about['skipped']}\n"
    for size, found in about["lengths"].items():
        lengths = ", ".join(f"{ms:.1f} ms with {n}" for n, ms in found.items())
        text += f"- Cost a frame by the number of frames ({size[1]} x {size[0]}): {lengths}.\n"
    parts = ", ".join(f"{name} {ms:.2f}" for name, ms in about["stages"].items())
    text += f"- From disk to disk, a cine of 640 x 480, uncompressed, ms a frame: {parts}.\n"
    return text + "".join(f"- {line}\n" for line in (*about["history"], *beyond(rows)))


def run(output, *, quick=False, device="auto", history=None, record=False, sizes=None) -> list[dict]:
    """Write the whole benchmark into a folder: speed.csv, speed.md, speed.png.

    Args: quick, fewer sizes and turns, less than two minutes; history, a file of the default model's ratios to compare
    with, and, where `record` is set, to add to; sizes, (H, W) each. Returns the table's rows. Raises InputError.
    """
    plot(1, 1)  # reports a missing matplotlib now
    device, folder = choose_device(device), Path(output)
    if record and not history:
        raise InputError("Name the history file to record in: --history FILE.")
    if history and not record and not Path(history).is_file():
        raise InputError(f"There is no history file {history}; --record makes one.")
    folder.mkdir(parents=True, exist_ok=True)
    most, networks, span = torch.get_num_threads(), published_pair(), 0.2 if quick else 1.0
    measured = machine_rates(device, span)
    precisions, skipped = _precisions(device, measured)
    sizes, rows, rates = sizes or (SIZES[:2] if quick else SIZES), [], {}
    try:
        for threads in [most] if quick or most == 1 or device.type != "cpu" else [most, 1]:
            torch.set_num_threads(threads)
            limits, some = measured if threads == most else machine_rates(device, span), []
            for size in sizes if threads == most else sizes[1:2]:
                found = entries(size, most if threads == most else 0, quick, device, precisions, networks)
                some += measure(found, size, threads, device, 1.0 if quick else 6.0)
                again = machine_rates(device, span)  # other programs may have run the first time
                limits = {name: max(rate, again[name]) for name, rate in limits.items()}
                print(f"{size[1]} x {size[0]}, {threads} threads", flush=True)
            add_shares(some, limits)
            rows, rates = rows + some, rates or limits
    finally:
        torch.set_num_threads(most)
    name = kind(device, most)
    about = {
        "kind": name,
        "skipped": skipped,
        "differences": differences(networks, device, precisions),
        "lengths": {size: by_length(device, (1, 10) if quick else (1, 10, 100), size) for size in LENGTH_SIZES},
        "stages": stages(device, 8 if quick else 500),
        "history": compare(history, rows, name) if history and Path(history).is_file() else [],
    }
    if record:
        add_ratios(history, rows, name)
    with (folder / "speed.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(COLUMNS), restval="", lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    text = page(rows, rates, about)
    (folder / "speed.md").write_text(text)
    picture(rows, rates).savefig(folder / "speed.png")
    print(text)
    return rows


def _precisions(device: torch.device, rates: dict) -> tuple[list[torch.dtype], str]:
    """Return the precisions to measure, the device's own first, and why one is left out, if any."""
    own = choose_precision(device)
    other = sixteen_bits(device) if own == torch.float32 else torch.float32
    if rates[other] > rates[own] / 20:
        return [own, other], ""
    share = rates[own] / rates[other]
    return [own], f"{str(other).removeprefix('torch.')} is left out: its matrix product is {share:.0f} times slower."
