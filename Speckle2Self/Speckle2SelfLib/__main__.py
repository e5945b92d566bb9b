"""The command line: speckle2self despeckle | train | evaluate | simulate | benchmark."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path

from . import __version__
from .config import FILTER_NAMES, PRESETS, RECIPES, Job, from_dict
from .system import Cancelled, InputError, keep_memory, named, out_of_memory, replace_file, torchrun_place

_interrupted = threading.Event()  # by Ctrl-C: some libraries swallow KeyboardInterrupt while they are imported


def despeckle(arguments) -> None:
    """Removes the speckle of files. Under torchrun the processes share the files of an archive."""
    from . import files
    from .despeckling import load_model
    from .devices import choose_device
    from .filters import FILTERS

    *inputs, output = arguments.paths
    if not inputs:
        raise InputError("Name an input and an output: speckle2self despeckle INPUT OUTPUT.")
    output = Path(output)
    found = _found(inputs, output)
    unnamed = not output.suffix and found[0].suffix and files.is_readable(found[0])  # DICOM files may have no suffix
    many = len(found) > 1 or unnamed or output.is_dir() or any(Path(entry).is_dir() for entry in inputs)
    if many and output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; several inputs need a folder as output.")
    rank, local, processes = torchrun_place()
    device = arguments.device
    if processes > 1 and device in ("auto", "cuda") and str(choose_device("auto")) == "cuda":
        device = f"cuda:{local}"
    model = FILTERS.get(arguments.model) or load_model(arguments.model)
    choose_device(device)  # a wrong one is better told before anything is read
    if not many:
        if not (arguments.skip_existing and output.exists()):
            _despeckle_file(found[0], output, model, device, arguments)
        return
    made = not output.exists()
    failed, written = [], 0
    try:
        output.mkdir(parents=True, exist_ok=True)
        pairs = list(zip(found, _targets(found, inputs, output), strict=True))[rank::processes]
        for path, target in pairs:
            if arguments.skip_existing and target.exists():
                continue
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                _despeckle_file(path, target, model, device, arguments)
                written += 1
            except InputError as error:
                if len(found) == 1:
                    raise
                failed.append(named(path, error))
    finally:
        if made and not written and processes == 1:
            with suppress(OSError):
                remove_empty_folders(output)
    if processes > 1:
        failed = _gathered(failed, rank, processes)
    if failed:
        raise InputError(f"{len(failed)} of {len(found)} files could not be despeckled:\n" + "\n".join(failed))


def _found(inputs, output: Path) -> list[Path]:
    """The files to read; of a folder, without those in the output folder, which are results."""
    from . import files

    found, results = [], output.resolve()
    for entry in inputs:
        passed_over: list[Path] = []
        inside = files.find([entry], passed_over)
        if names := [str(path) for path in passed_over if results not in path.resolve().parents]:
            print(f"{entry}: passed over, as no images: {', '.join(names)}.", file=sys.stderr)
        if Path(entry).is_dir():
            inside = [path for path in inside if results not in path.resolve().parents]
            if not inside:
                raise InputError(f"All that {entry} holds lies in the output folder {output}; give another one.")
        found += inside
    return found


def _gathered(failed: list[str], rank: int, processes: int) -> list[str]:
    """What failed in any process, for the first one to tell, once all are done; nothing for the others: torchrun would
    end the others with one that ends in failure."""
    from datetime import timedelta

    from torch.distributed import PrefixStore, rendezvous

    month = timedelta(days=30)  # the others may have large files to do
    store, *_ = next(rendezvous("env://", timeout=month))
    store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    store.set_timeout(month)
    store.set(str(rank), json.dumps(failed))
    return [] if rank else [line for other in range(processes) for line in json.loads(store.get(str(other)))]


def remove_empty_folders(folder: Path) -> None:
    """Removes `folder` if there is no file in it at any depth, with all folders in it."""
    for inner in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        inner.rmdir()
    folder.rmdir()


def _despeckle_file(path: Path, target: Path, model, device: str, arguments) -> None:
    import numpy as np

    from . import files, region, volumes
    from .despeckling import despeckle as despeckle_frames

    with _named(path):
        recording = files.read(path, dynamic_range=arguments.dynamic_range)
        files.check_output(target, recording)
    output = Path(arguments.paths[-1]).resolve()
    settings = (getattr(arguments, name) for name in ("model", "strength", "gamma", "axis", "region"))
    recording.run = " ".join(map(str, (output if output.is_dir() else output.parent, *settings)))
    frames = recording.frames.reshape(recording.volumes, -1, *recording.frames.shape[1:])  # (T, K, J, I[, C])
    axis = "k" if arguments.axis == "auto" and recording.sequence else arguments.axis
    axes = volumes.slicing_axes(frames.shape[1:], recording.spacing, axis)
    if arguments.region not in ("auto", "none"):
        if len(axes) > 1:
            raise InputError("A mask fits the frames of one axis: give --axis k, j or i.")
        imaged = files.read_mask(arguments.region, tuple(np.delete(frames.shape[1:4], axes[0])))
    elif arguments.region == "auto" and recording.region is not None and axes == [0]:
        imaged = region.detect(recording.frames, recording.region)
    else:
        imaged = "auto" if arguments.region == "auto" else None

    def run(stack, progress):
        return despeckle_frames(
            stack, model, region=imaged, strength=arguments.strength, gamma=arguments.gamma,
            device=device, output=output if axes == [0] else None, progress=progress, cancelled=_interrupted.is_set,
        )  # fmt: skip

    with files.like(recording.frames, target.parent) as output:
        with _Bar(path.name) as bar, _named(path):
            result = volumes.process(frames, axes, run, bar.update)
        files.write(target, result.reshape(recording.frames.shape), recording)
    if arguments.axis == "auto" and axes != [0]:
        name = volumes.AXES[axes[0]]
        print(f"{path} was cut along its coarsest axis, {name}; --axis k takes frames as stored.", file=sys.stderr)


def _targets(found: list[Path], inputs, output: Path) -> list[Path]:
    """One file below the output folder for each input, laid out as below the folder that it was found in. JPEG files,
    which would lose detail, become PNG files."""
    folders = [Path(entry) for entry in inputs if Path(entry).is_dir()]
    targets: dict[Path, None] = {}
    for path in found:
        root = next((folder for folder in folders if folder in path.parents), path.parent)
        target = output / path.relative_to(root)
        target = target.with_suffix(".png") if target.suffix.lower() in (".jpg", ".jpeg") else target
        if target in targets:
            raise InputError(f"Two inputs would become {target}; despeckle them into different folders.")
        targets[target] = None
    return list(targets)


@contextmanager
def _named(path: Path):
    """What the core warns of goes to the standard error with the file's name before it."""
    handler, logger = logging.StreamHandler(), logging.getLogger(__package__)
    handler.setFormatter(logging.Formatter(str(path).replace("%", "%%") + ": %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Bar:
    """A progress bar with frames, rate and time left; silent where the output is no terminal."""

    def __init__(self, name: str, unit: str = "frame"):
        self.name, self.unit, self.bar = name, unit, None

    def __enter__(self):
        return self

    def update(self, done: int, total: int) -> None:
        if not sys.stderr.isatty():
            return
        if self.bar is None:
            from tqdm import tqdm  # not there in Slicer, which has no terminal

            self.bar = tqdm(total=total, desc=self.name, unit=self.unit)
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def __exit__(self, *error):
        self.close()


def train(arguments) -> None:
    """Trains a model on recordings, of which no clean image is needed."""
    from .runs import run

    given = {field.name: getattr(arguments, field.name, None) for field in fields(Job)}
    given = {name: value for name, value in given.items() if value is not None and value != []}
    if arguments.job:
        try:
            job = json.loads(Path(arguments.job).read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{arguments.job} is not a job file (JSON).") from error
        given = (job if isinstance(job, dict) else {"": job}) | given
    if "output" not in given:
        raise InputError("Name the model file to write: speckle2self train INPUT... --output MODEL.")
    job, asked = from_dict(Job, given), threading.Event()
    if arguments.job and Path(arguments.job).resolve() in {Path(p).resolve() for p in (job.output, job.preview) if p}:
        raise InputError(f"{arguments.job} is the job file, and would be overwritten; name another file to write.")
    with (
        _Bar("simulating", "anatomy") as simulating,
        _Bar("training", "step") as bar,
        _stop_request(asked, arguments.listen) as stop,
    ):

        def report(line):
            try:
                print(json.dumps(line, allow_nan=False), flush=True)
                if "anatomies" in line:
                    simulating.update(line["simulated"], line["anatomies"])
                if "step" in line:
                    simulating.close()
                    bar.update(line["step"], line["steps"])
            except OSError:  # nobody listens any more
                asked.set()
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in its buffer goes there

        run(job, report, stop)


@contextmanager
def _stop_request(asked: threading.Event, listen: bool):
    """A function that tells whether to stop: once `asked` is set, as Ctrl-C and SIGTERM do (a second one ends at once),
    a terminal that is closed, and, where `listen` is set, anything on the standard input, whose end counts too: whoever
    started us is gone.

    The signals are caught from its first call on. Before, there is nothing to save, and a process that waits for others
    that are gone has to end at once: torchrun starts none anew until it has.
    """
    handlers = {}

    def on_signal(number, frame):
        if asked.is_set() and number in (signal.SIGINT, signal.SIGTERM):
            raise KeyboardInterrupt
        asked.set()

    def stop() -> bool:
        if not handlers:
            numbers = [signal.SIGINT, signal.SIGTERM]
            if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup sets it
                numbers.append(signal.SIGHUP)
            handlers.update({number: signal.signal(number, on_signal) for number in numbers})
        return asked.is_set()

    if listen:
        threading.Thread(target=lambda: (sys.stdin.readline(), asked.set()), daemon=True).start()
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def evaluate(arguments) -> None:
    """Figures of merit of despeckled files against their inputs, or against a known truth."""
    import numpy as np

    from . import files, metrics
    from .grey import luminance

    before, after = (luminance(files.read(path).frames) for path in (arguments.input, arguments.output))
    if before.shape != after.shape:
        raise InputError(f"The two files hold frames of {before.shape} and {after.shape}; they must be alike.")
    finite = before[np.isfinite(before)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if high <= low:
        raise InputError("The input is constant; there is nothing to measure.")
    before, after = (np.nan_to_num(x, nan=low, posinf=high, neginf=low) for x in (before, after))
    before, after = ((x - low) / (high - low) * 255 for x in (before, after))
    rois = _rois(arguments.rois, before.shape) if arguments.rois else None
    figures = {
        "before": metrics.evaluate(before, before, rois),
        "after": metrics.evaluate(before, after, rois),
    }
    if arguments.truth:
        truth = luminance(files.read(arguments.truth, key="truth").frames)
        if truth.shape[1:] != before.shape[1:] or len(truth) not in (1, len(before)) or min(before.shape[1:]) < 7:
            raise InputError(f"A truth of {truth.shape} does not fit frames of {before.shape}, 7 x 7 pixels at least.")
        truth = truth - min(0.0, float(truth.min()))
        if not 0 < truth.max() < np.inf:  # not where a value is no number
            raise InputError(f"{arguments.truth} holds no echogenicity: values that are finite, not all of them zero.")
        truth = np.broadcast_to(truth * (255 / truth.max()), before.shape)
        for name, frames in (("before", before), ("after", after)):
            for measure in (metrics.psnr, metrics.ssim):
                figures[name][measure.__name__] = float(
                    np.mean([measure(x, t) for x, t in zip(frames, truth, strict=True)])
                )
    if arguments.json:  # which knows no infinite numbers
        figures = {name: {k: v if np.isfinite(v) else None for k, v in some.items()} for name, some in figures.items()}
        print(json.dumps(figures, allow_nan=False))
        return
    print(f"{'':12s}{'before':>10s}{'after':>10s}")
    for name in figures["before"]:
        print(f"{name:12s}{figures['before'][name]:10.4f}{figures['after'][name]:10.4f}")


def _rois(path: str, shape) -> dict:
    """The boxes of `metrics.evaluate` from a JSON file, for frames of `shape`; InputError where they do not fit."""
    try:
        rois = json.loads(Path(path).read_text())
        boxes = [
            (int(number), *boxes[name], *rois[f"{name}_half_size"])
            for number, boxes in rois["frames"].items()
            for name in ("lumen", "tissue")
        ]
        if not all(len(box) == 5 and all(type(value) is int for value in box) for box in boxes):
            raise ValueError("a box is no whole numbers")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is not a file of regions (JSON).") from error
    for number, x, y, wide, tall in boxes:
        inside = wide <= x <= shape[2] - wide and tall <= y <= shape[1] - tall
        if not (0 <= number < shape[0] and min(wide, tall) > 0 and inside):
            raise InputError(f"{path} has a box at {x}, {y} in frame {number} that is not inside the recording.")
    return rois


def simulate(arguments) -> None:
    """Frames with known truth: an .npz file with frames, truth, labels and region."""
    import io

    import numpy as np

    from .simulation import SimulationConfig
    from .simulation import simulate as run

    if not arguments.output.endswith(".npz"):
        raise InputError("Simulated frames are written as .npz; give the output that suffix.")
    if arguments.seed < 0:
        raise InputError(f"A seed of {arguments.seed} is below zero.")
    grain = tuple(arguments.grain) if arguments.grain else None
    config = SimulationConfig(tuple(arguments.size), arguments.frames, grain, arguments.layout, arguments.geometry)
    simulated = run(config, np.random.default_rng(arguments.seed))
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, frames=np.round(simulated.frames * 255).astype(np.uint8), truth=simulated.truth,
        labels=simulated.labels, region=simulated.region,
    )  # fmt: skip
    replace_file(arguments.output, buffer.getvalue())


def benchmark(arguments) -> None:
    """Measures quality (all methods on the same frames for the same time) or speed: a CSV file, tables, a picture."""
    ours = {"quality": ("real", "minutes"), "speed": ("history", "record")}
    for what, names in ours.items():
        for name in names:
            if what != arguments.what and getattr(arguments, name):
                raise InputError(f"--{name} belongs to: speckle2self benchmark {what}.")
    given = {name: getattr(arguments, name) for name in (*ours[arguments.what], "quick", "device")}
    try:
        from Speckle2SelfBench import quality, speed
    except ModuleNotFoundError as error:
        if error.name != "Speckle2SelfBench":
            raise
        raise InputError("Benchmarks are not installed with the extension; run them from the source code.") from error
    if arguments.what == "quality" and arguments.minutes is not None and not 0 < arguments.minutes <= 10**4:
        raise InputError(f"Training time must be between 0 and 10,000 minutes, not {arguments.minutes}.")
    {"quality": quality, "speed": speed}[arguments.what].run(arguments.output, **given)


class _Parser(argparse.ArgumentParser):
    """One that says what is wrong in one line, without its usage."""

    def error(self, message: str):
        self.exit(2, f"speckle2self: {message}; {self.prog} --help tells what there is.\n")


def parser() -> argparse.ArgumentParser:
    """All commands and options."""
    top = _Parser(prog="speckle2self", description="Speckle reduction for ultrasound. Not for diagnosis.")
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(function):
        new = commands.add_parser(function.__name__, help=function.__doc__, description=function.__doc__)
        new.set_defaults(run=function)
        return new

    one = command(despeckle)
    one.usage = "%(prog)s INPUT... OUTPUT [OPTION...]"
    one.add_argument(
        "paths",
        nargs="+",
        metavar="INPUT... OUTPUT",
        help="files or folders; several, or an output without suffix, mean an output folder",
    )
    one.add_argument(
        "--model",
        default="default",
        help="a model's name, a model file (also the authors' .pth), or a filter: "
        f"{', '.join(FILTER_NAMES)} (default: %(default)s)",
    )
    one.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")
    one.add_argument("--strength", type=float, default=1.0, help="0 (input) to 1 (despeckled) (default: %(default)s)")
    one.add_argument("--gamma", type=float, default=1.0, help="above 1 darkens (default: %(default)s)")
    one.add_argument(
        "--axis", default="auto", help="of volumes: auto, k (slices as stored), j, i or average (default: %(default)s)"
    )
    one.add_argument("--region", default="auto", help="auto, none, or a mask file (default: %(default)s)")
    one.add_argument("--skip-existing", action="store_true", help="go on with a folder: leave out what is there")
    one.add_argument("--dynamic-range", type=float, metavar="DB", help="of signals and envelopes (default: 60 dB)")

    one = command(train)
    one.add_argument("inputs", nargs="*", metavar="INPUT", help="recordings: files or folders")
    one.add_argument("--output", metavar="MODEL", help="the model file to write")
    one.add_argument("--held-out", nargs="+", metavar="INPUT", help="recordings for validation (default: some inputs)")
    one.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        help="adapt: from a model to the recordings; standard: from nothing; paper: as published; default: how the "
        "bundled model was begun (default: standard)",
    )
    one.add_argument("--recipe", choices=RECIPES, help="ours or the published one (default: the preset's)")
    one.add_argument("--init", metavar="MODEL", help="a model's name or file to start from (adapt: default)")
    one.add_argument("--steps", type=int, help="optimiser steps (default: the preset's)")
    one.add_argument("--minutes", type=float, help="to train for, after simulating, instead of a number of steps")
    one.add_argument("--batch", type=int, help="crops a step, over all processes (default: the preset's)")
    one.add_argument("--interval", type=int, help="steps from one checkpoint to the next (default: the preset's)")
    one.add_argument("--width", type=int, help="of a new network; 64 takes three times as long (default: 32)")
    one.add_argument("--simulated", type=int, help="anatomies to simulate and mix in (default: the preset's)")
    one.add_argument("--region", help="auto, none, or a mask file or folder of them (default: auto)")
    one.add_argument("--seed", type=int, help="of all random choices (default: 0)")
    one.add_argument("--resume", action="store_true", default=None, help="go on with an interrupted run of this MODEL")
    one.add_argument("--report", type=int, help="steps from one JSON line to the next (default: 10)")
    one.add_argument("--preview", metavar="PNG", help="a held-out frame before and after, at every validation")
    one.add_argument("--device", help="auto, cpu, cuda or mps (default: auto)")
    one.add_argument("--estimate", action="store_true", default=None, help="do not train: tell what it would take")
    one.add_argument(
        "--job",
        metavar="JSON",
        help="a file with these settings (held_out for --held-out); those given here come first",
    )
    one.add_argument("--listen", action="store_true", help="stop, to be resumed, at a line on the standard input")

    one = command(evaluate)
    one.add_argument("input", help="the recording before")
    one.add_argument("output", help="the recording after")
    one.add_argument(
        "--rois", help="JSON file of lumen and tissue boxes for gCNR, CNR and SNR; see Documentation/method.md"
    )
    one.add_argument("--truth", help="file of known echogenicity for PSNR and SSIM")
    one.add_argument("--json", action="store_true", help="print JSON instead of a table")

    one = command(simulate)
    one.add_argument("output", help="the .npz file to write")
    one.add_argument("--frames", type=int, default=10, help="with independent speckle (default: %(default)s)")
    one.add_argument(
        "--size", type=int, nargs=2, default=(256, 256), metavar=("H", "W"), help="pixels (default: 256 256)"
    )
    one.add_argument("--grain", type=float, nargs=2, metavar=("Y", "X"), help="of the speckle, pixels (default: drawn)")
    one.add_argument("--layout", help="phantom, vessel, layers, organ or flat (default: drawn)")
    one.add_argument("--geometry", default="linear", help="linear, sector or piece (default: %(default)s)")
    one.add_argument("--seed", type=int, default=0, help="of all random choices (default: %(default)s)")

    one = command(benchmark)
    one.add_argument("what", choices=("quality", "speed"), help="of the despeckled frames, or of despeckling")
    one.add_argument("output", help="the folder to write")
    one.add_argument("--quick", action="store_true", help="in less than five (speed: two) minutes")
    one.add_argument(
        "--real", nargs="+", default=[], metavar="FILE", help="quality: real frames too, recordings or .npz"
    )
    one.add_argument(
        "--minutes", type=float, help="quality: of training, each method and set (default: 5; quick: 0.2 in all)"
    )
    one.add_argument("--history", metavar="CSV", help="speed: earlier ratios to compare with")
    one.add_argument("--record", action="store_true", help="speed: add the ratios to the history")
    one.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")
    return top


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, 2 for bad input, 130 when interrupted."""
    arguments = parser().parse_args(argv)
    _interrupted.clear()
    keep_memory()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _end_with_launcher()
    before = signal.signal(signal.SIGINT, _interrupt)
    try:
        arguments.run(arguments)
    except InputError as error:
        print(f"speckle2self: {error}", file=sys.stderr)
        return 2
    except (OSError, MemoryError, RuntimeError) as error:
        if out_of_memory(error):
            print("speckle2self: there is not enough memory; close other programs, or give less.", file=sys.stderr)
            return 2
        if not isinstance(error, OSError):
            raise
        print(f"speckle2self: {error.filename or 'file'}: {error.strerror or error}.", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Cancelled):
        print("speckle2self: stopped.", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGINT, before)
    return 0


def _end_with_launcher() -> None:
    """Ends this process when torchrun, which starts each in a session of its own, has gone in whatever way."""
    launcher = os.getppid()

    def watch():
        while os.getppid() == launcher:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _interrupt(number, frame) -> None:
    _interrupted.set()
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
