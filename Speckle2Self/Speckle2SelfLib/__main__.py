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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_origin, get_type_hints

from . import __version__
from .config import DespeckleOptions, Job, ReadOptions, from_dict
from .system import (
    Cancelled,
    FilePath,
    InputError,
    Progress,
    keep_memory,
    missing_package,
    out_of_memory,
    replace_file,
    torch_fault,
    torchrun_place,
    with_path,
)

if TYPE_CHECKING:
    import numpy as np

    from .checkpoint import Model
    from .despeckling import Filter

_interrupted = threading.Event()  # set by Ctrl-C: some libraries swallow KeyboardInterrupt while they are imported


def despeckle(arguments: argparse.Namespace) -> None:
    """Remove the speckle of files. Under torchrun the processes share the files of an archive."""
    from . import files
    from .despeckling import check_uncertainty
    from .devices import choose_device
    from .filters import FILTERS
    from .library import load_model

    *inputs, output = arguments.paths
    if not inputs:
        raise InputError("Name an input and an output: speckle2self despeckle INPUT OUTPUT.")
    options, output = DespeckleOptions(**_values_of(DespeckleOptions, arguments)), Path(output)
    read_options = ReadOptions(**_values_of(ReadOptions, arguments))
    map_output = Path(arguments.uncertainty) if arguments.uncertainty else None
    paths = _input_files(inputs, [folder for folder in (output, map_output) if folder is not None])
    unnamed = not output.suffix and paths[0].suffix and files.is_readable(paths[0])  # DICOM files may have no suffix
    many = len(paths) > 1 or unnamed or output.is_dir() or any(Path(entry).is_dir() for entry in inputs)
    if many and output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; several inputs need a folder as output.")
    if many and map_output is not None and (map_output.is_file() or map_output.resolve() == output.resolve()):
        raise InputError(f"--uncertainty {map_output}: several inputs need a folder of their own for it.")
    rank, local, processes = torchrun_place()
    if processes > 1 and options.device in ("auto", "cuda") and str(choose_device("auto")) == "cuda":
        options = replace(options, device=f"cuda:{local}")
    model = FILTERS.get(options.model) or load_model(options.model)
    choose_device(options.device)  # report a missing device before anything is read
    if map_output is not None or options.cautious:
        check_uncertainty(model)
    if not many:
        if not (arguments.skip_existing and output.exists()):
            _despeckle_file(paths[0], output, map_output, output.parent, model, options, read_options)
        return
    new = [folder for folder in (output, map_output) if folder is not None and not folder.exists()]
    failed, written = [], 0
    try:
        for folder in new:
            folder.mkdir(parents=True, exist_ok=True)
        pairs = list(zip(paths, _targets(paths, inputs, output), strict=True))[rank::processes]
        pending = [pair for pair in pairs if not (arguments.skip_existing and pair[1].exists())]
        for path, target in pending:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                map_path = _map_path(target, output, map_output)
                _despeckle_file(path, target, map_path, output, model, options, read_options)
                written += 1
            except InputError as error:
                if len(paths) == 1:
                    raise
                failed.append(with_path(path, error))
    finally:
        for folder in new if not written and processes == 1 else ():
            with suppress(OSError):
                remove_empty_folders(folder)
    if processes > 1:
        failed = _gather_failures(failed, rank, processes)
    if failed:
        raise InputError(f"{len(failed)} of {len(paths)} files could not be despeckled:\n" + "\n".join(failed))


def _input_files(inputs: Iterable[FilePath], outputs: list[Path]) -> list[Path]:
    """Return the files to read. Files of a folder that lie in an output folder are results, and left out."""
    from . import files

    paths, results = [], {output.resolve() for output in outputs}
    for entry in inputs:
        other_files: list[Path] = []
        inside = files.find([entry], other_files)
        names = [str(path) for path in other_files if results.isdisjoint(path.resolve().parents)]
        if names and torchrun_place()[0] == 0:
            print(f"{entry}: skipped, not images: {', '.join(names)}.", file=sys.stderr)
        if Path(entry).is_dir():
            inside = [path for path in inside if results.isdisjoint(path.resolve().parents)]
            if not inside:
                raise InputError(f"All files of {entry} are in the output folder {outputs[0]}; choose another one.")
        paths += inside
    return paths


def _gather_failures(failed: list[str], rank: int, processes: int) -> list[str]:
    """Return the failures of all processes in the first one, once all are done, and nothing in the others: torchrun
    would end the others with one that fails."""
    from datetime import timedelta

    from torch.distributed import PrefixStore, rendezvous

    month = timedelta(days=30)  # the others may have large files to do
    store, *_ = next(rendezvous("env://", timeout=month))
    store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    store.set_timeout(month)
    store.set(str(rank), json.dumps(failed))
    return [] if rank else [line for other in range(processes) for line in json.loads(store.get(str(other)))]


def remove_empty_folders(folder: Path) -> None:
    """Remove `folder` if there is no file in it at any depth, with all folders in it."""
    for inner in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        inner.rmdir()
    folder.rmdir()


def _map_path(target: Path, output: Path, folder: Path | None) -> Path | None:
    """Return the file for the uncertainty of `target`, laid out below the `folder` as that is below `output`."""
    from . import files

    if folder is None:
        return None
    path = folder / target.relative_to(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path if path.name.lower().endswith(files.FLOATING) else path.with_name(path.name + ".nrrd")


def _despeckle_file(
    path: Path, target: Path, map_path: Path | None, folder: Path, model: Model | Filter, options: DespeckleOptions,
    read_options: ReadOptions,
) -> None:  # fmt: skip
    """Despeckle one file.

    map_path: the file for the uncertainty. folder: the output folder, which with the options identifies the run.
    """
    from . import files, volumes
    from .despeckling import OPTIONS
    from .despeckling import despeckle as despeckle_frames

    with _warnings_with_path(path):
        recording = files.read(path, dynamic_range=read_options.dynamic_range)
        files.check_output(target, recording)
        if map_path is not None:
            files.check_map(map_path, recording, target)
    recording.run = f"{folder.resolve()} {asdict(options)}"
    frames = recording.frames.reshape(recording.volumes, -1, *recording.frames.shape[1:])  # (T, K, J, I[, C])
    axis = "k" if options.axis == "auto" and recording.sequence else options.axis
    axes = volumes.slicing_axes(frames.shape[1:], recording.spacing, axis)
    region, maps = _region(frames.shape[1:4], options.region, axes), []
    within = recording.region if axes == [0] else None
    frame_options = {name: getattr(options, name) for name in OPTIONS}

    def run(stack: np.ndarray, progress: Progress) -> np.ndarray:
        if map_path is not None:
            maps.append(files.allocate(stack.shape[:3], "float32"))
        return despeckle_frames(
            stack, model, region=region, within=within, output=output if axes == [0] else None, progress=progress,
            cancelled=_interrupted.is_set, uncertainty=maps[-1] if maps else None, **frame_options,
        )  # fmt: skip

    with files.array_like(recording.frames, target.parent) as output:
        with _bar(path.name, "frame") as progress, _warnings_with_path(path):
            result = volumes.process(frames, axes, run, progress)
        if map_path is not None:  # first, so that an existing output means a complete result
            files.write_map(map_path, volumes.average_maps(maps, frames.shape[:4], axes), recording)
        try:
            files.write(target, result.reshape(recording.frames.shape), recording)
        except BaseException:
            if map_path is not None:
                map_path.unlink(missing_ok=True)
            raise
    if options.axis == "auto" and axes != [0]:
        name = volumes.AXES[axes[0]]
        print(f"{path} was cut along its coarsest axis, {name}; --axis k takes frames as stored.", file=sys.stderr)


def _region(shape: tuple[int, ...], choice: str, axes: list[int]) -> np.ndarray | str | None:
    """Return the region for `despeckle`: a mask (H, W) bool, "auto" or None. shape: of a volume (K, J, I)."""
    import numpy as np

    from . import files

    if choice in ("auto", "none"):
        return "auto" if choice == "auto" else None
    if len(axes) > 1:
        raise InputError("A mask fits the frames of only one axis: choose --axis k, j or i.")
    return files.read_mask(choice, tuple(np.delete(shape, axes[0])))


def _targets(paths: list[Path], inputs: Iterable[FilePath], output: Path) -> list[Path]:
    """Return a file below the output folder for each input, laid out as below the folder that it was found in.

    JPEG files, which would lose detail, become PNG files.
    """
    folders = [Path(entry) for entry in inputs if Path(entry).is_dir()]
    targets: dict[Path, None] = {}
    for path in paths:
        root = next((folder for folder in folders if folder in path.parents), path.parent)
        target = output / path.relative_to(root)
        target = target.with_suffix(".png") if target.suffix.lower() in (".jpg", ".jpeg") else target
        if target in targets:
            raise InputError(f"Two inputs would become {target}; despeckle them into different folders.")
        targets[target] = None
    return list(targets)


@contextmanager
def _warnings_with_path(path: Path) -> Iterator[None]:
    """Send the core's warnings to the standard error with the file's name before them."""
    handler, logger = logging.StreamHandler(), logging.getLogger(__package__)
    handler.setFormatter(logging.Formatter(str(path).replace("%", "%%") + ": %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def _bar(name: str, unit: str) -> Iterator[Progress]:
    """Yield a function of (done, total) that shows a progress bar; it shows nothing if the output is not a terminal."""
    from tqdm import tqdm

    with tqdm(desc=name, unit=unit, disable=None, delay=1e-9) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def train(arguments: argparse.Namespace) -> None:
    """Train a model on recordings; no clean images are needed."""
    from .runs import Unfinished, run

    values = _values_of(Job, arguments)
    if arguments.job:
        try:
            settings = json.loads(Path(arguments.job).read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{arguments.job} is not a job file (JSON).") from error
        values = (settings if isinstance(settings, dict) else {"": settings}) | values
    if "output" not in values:
        raise InputError("Name the model file to write: speckle2self train INPUT... --output MODEL.")
    job, stop_event = from_dict(Job, values), threading.Event()
    if arguments.job and Path(arguments.job).resolve() in {Path(p).resolve() for p in (job.output, job.preview) if p}:
        raise InputError(f"{arguments.job} is the job file, and would be overwritten; name another file to write.")
    with (
        _bar("simulating", "anatomy") as simulated,
        _bar("training", "step") as trained,
        _stop_request(stop_event, arguments.listen) as stop,
    ):

        def report(line: dict[str, Any]) -> None:
            try:
                print(json.dumps(line, allow_nan=False), flush=True)
                if "anatomies" in line:
                    simulated(line["simulated"], line["anatomies"])
                if "step" in line:
                    trained(line["step"], line["steps"])
            except OSError:  # the reader was closed
                stop_event.set()
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # discards the rest

        try:
            run(job, report, stop)
        except Unfinished as error:
            raise InputError(str(error).replace("resume it", "add --resume")) from error
        except Cancelled as stopped:
            again = "call it again" if job.resume else "add --resume"
            raise stopped if arguments.listen else Cancelled(f"{again} to continue") from None


@contextmanager
def _stop_request(stop_event: threading.Event, listen: bool) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether to stop: after Ctrl-C, SIGTERM (a second one ends the process at once) or
    a closed terminal, which set `stop_event`; with `listen`, also after any standard input, or its end, which means
    that the parent has ended.

    Signals are caught from the first call on. Before that, there is nothing to save, and a process that waits for
    others that have ended must end at once: torchrun restarts none before that.
    """
    handlers: dict[int, Any] = {}

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop_event.is_set() and number in (signal.SIGINT, signal.SIGTERM):
            raise KeyboardInterrupt
        stop_event.set()

    def stop() -> bool:
        if not handlers:
            numbers = [signal.SIGINT, signal.SIGTERM]
            if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
                numbers.append(signal.SIGHUP)
            handlers.update({number: signal.signal(number, on_signal) for number in numbers})
        return stop_event.is_set()

    def wait_for_line() -> None:
        sys.stdin.readline()
        stop_event.set()

    if listen:
        threading.Thread(target=wait_for_line, daemon=True).start()
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def evaluate(arguments: argparse.Namespace) -> None:
    """Measure despeckled files against their inputs, or against a known ground truth."""
    import numpy as np

    from . import files, metrics
    from .grey import luminance

    before, after = (luminance(files.read(path).frames) for path in (arguments.input, arguments.output))
    if before.shape != after.shape:
        raise InputError(f"The files hold frames of {before.shape} and {after.shape}; they must have the same shape.")
    values = before[np.isfinite(before)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if high <= low:
        raise InputError("The input is constant; there is nothing to measure.")
    before, after = (np.nan_to_num(x, nan=low, posinf=high, neginf=low) for x in (before, after))
    before, after = ((x - low) / (high - low) * 255 for x in (before, after))
    rois = _rois(arguments.rois, before.shape) if arguments.rois else None
    truth = _truth(arguments.truth, before.shape) if arguments.truth else None
    pairs = {"before": before, "after": after}
    figures = {name: metrics.evaluate(before, frames, rois, truth) for name, frames in pairs.items()}
    if arguments.json:  # JSON has no infinity
        finite = {name: {k: v if np.isfinite(v) else None for k, v in row.items()} for name, row in figures.items()}
        print(json.dumps(finite, allow_nan=False))
        return
    print(f"{'':12s}{'before':>10s}{'after':>10s}")
    for name in figures["before"]:
        print(f"{name:12s}{figures['before'][name]:10.4f}{figures['after'][name]:10.4f}")


def _truth(path: str, shape: tuple[int, int, int]) -> np.ndarray:
    """Return the known echogenicity in a file, 0 to 255, for frames of `shape` (N, H, W). Raises InputError if it does
    not fit."""
    import numpy as np

    from . import files
    from .grey import luminance

    truth = luminance(files.read(path, key="truth").frames)
    if truth.shape[1:] != shape[1:] or len(truth) not in (1, shape[0]) or min(shape[1:]) < 7:
        raise InputError(
            f"The truth has the shape {truth.shape}, the frames {shape}; they must agree, with at least 7 x 7 pixels."
        )
    truth = truth - min(0.0, float(truth.min()))
    if not 0 < truth.max() < np.inf:  # also refuses NaN
        raise InputError(f"{path} is not a ground truth: its values must be finite, and not all zero.")
    return np.broadcast_to(truth * (255 / truth.max()), shape)


def _rois(path: str, shape: Sequence[int]) -> dict:
    """Return the boxes of `metrics.evaluate` from a JSON file, for frames of `shape`. Raises InputError if they do not
    fit."""
    try:
        rois = json.loads(Path(path).read_text())
        boxes = [
            (int(number), *boxes[name], *rois[f"{name}_half_size"])
            for number, boxes in rois["frames"].items()
            for name in ("lumen", "tissue")
        ]
        if not all(len(box) == 5 and all(type(value) is int for value in box) for box in boxes):
            raise ValueError("a box does not consist of whole numbers")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is not a JSON file of regions.") from error
    for number, x, y, wide, tall in boxes:
        inside = wide <= x <= shape[2] - wide and tall <= y <= shape[1] - tall
        if not (0 <= number < shape[0] and min(wide, tall) > 0 and inside):
            raise InputError(f"{path} has a box at {x}, {y} in frame {number} that is not inside the recording.")
    return rois


def simulate(arguments: argparse.Namespace) -> None:
    """Simulate frames with known ground truth: an .npz file with frames, truth, labels and region."""
    import io

    import numpy as np

    from .simulation import SimulationConfig
    from .simulation import simulate as run

    if not arguments.output.endswith(".npz"):
        raise InputError("Simulated frames are written as .npz; use that suffix for the output.")
    if arguments.seed < 0:
        raise InputError(f"--seed must be at least 0, not {arguments.seed}.")
    grain = tuple(arguments.grain) if arguments.grain else None
    config = SimulationConfig(tuple(arguments.size), arguments.frames, grain, arguments.layout, arguments.geometry)
    simulated = run(config, np.random.default_rng(arguments.seed))
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, frames=np.round(simulated.frames * 255).astype(np.uint8), truth=simulated.truth,
        labels=simulated.labels, region=simulated.region,
    )  # fmt: skip
    replace_file(arguments.output, buffer.getvalue())


def benchmark(arguments: argparse.Namespace) -> None:
    """Measure quality (all methods on the same frames for the same time) or speed: a CSV file, tables, a picture."""
    own_options = {"quality": ("real", "minutes"), "speed": ("history", "record")}
    for measurement, names in own_options.items():
        for name in names:
            if measurement != arguments.what and getattr(arguments, name):
                raise InputError(f"--{name} belongs to: speckle2self benchmark {measurement}.")
    options = {name: getattr(arguments, name) for name in (*own_options[arguments.what], "quick", "device")}
    try:
        from Speckle2SelfBench import quality, speed
    except ModuleNotFoundError as error:
        if error.name != "Speckle2SelfBench":
            raise
        raise InputError("Benchmarks are not installed with the extension; run them from the source code.") from error
    if arguments.what == "quality" and arguments.minutes is not None and not 0 < arguments.minutes <= 10**4:
        raise InputError(f"Training time must be between 0 and 10,000 minutes, not {arguments.minutes}.")
    {"quality": quality, "speed": speed}[arguments.what].run(arguments.output, **options)


class _Parser(argparse.ArgumentParser):
    """A parser that reports errors in one line, without its usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"speckle2self: {message}; see {self.prog} --help.\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands and options."""
    top = _Parser(prog="speckle2self", description="Speckle reduction for ultrasound. Not for diagnosis.")
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for function, add_arguments in (
        (despeckle, _add_despeckle), (train, _add_train), (evaluate, _add_evaluate), (simulate, _add_simulate),
        (benchmark, _add_benchmark),
    ):  # fmt: skip
        command = commands.add_parser(function.__name__, help=function.__doc__, description=function.__doc__)
        command.set_defaults(run=function)
        add_arguments(command)
    return top


def add_options(command: argparse.ArgumentParser, kind: type, positional: tuple[str, ...] = ()) -> None:
    """Add the fields of a dataclass as options, with their help; options that are not used are not in the namespace.

    positional: names of fields that are arguments without a flag.
    """
    types = get_type_hints(kind)
    for entry in fields(kind):
        info, annotation, name = entry.metadata, types[entry.name], "--" + entry.name.replace("_", "-")
        keywords: dict = {"help": info["help"].replace("%", "%%"), "default": argparse.SUPPRESS}
        if annotation is bool:
            keywords["action"] = "store_true"
        else:
            inner = next(part for part in (*get_args(annotation), annotation) if part in (int, float, str))
            choices = "{" + ",".join(info["choices"]) + "}" if info["choices"] else None  # the dataclass checks them
            keywords |= {"type": inner, "metavar": info["metavar"] or choices}
            if get_origin(annotation) is tuple:
                keywords["nargs"] = "*" if entry.name in positional else "+"
            elif entry.default not in (None, MISSING):
                keywords["help"] += f" (default: {entry.default})"
        command.add_argument(entry.name if entry.name in positional else name, **keywords)


def _values_of(kind: type, arguments: argparse.Namespace) -> dict:
    """Return the options of a dataclass that were given, by the names of its fields."""
    values = {entry.name: getattr(arguments, entry.name, None) for entry in fields(kind)}
    return {name: value for name, value in values.items() if value not in (None, [])}


def _add_despeckle(command: argparse.ArgumentParser) -> None:
    command.usage = "%(prog)s INPUT... OUTPUT [OPTION...]"
    help = "files or folders; several, or an output without suffix, mean an output folder"
    command.add_argument("paths", nargs="+", metavar="INPUT... OUTPUT", help=help)
    add_options(command, DespeckleOptions)
    add_options(command, ReadOptions)
    help = (
        "write one standard deviation of the output's error at each pixel, in its grey values, as .npy, .nrrd or .mha; "
        "several inputs: a folder"
    )
    command.add_argument("--uncertainty", metavar="FILE", help=help)
    command.add_argument("--skip-existing", action="store_true", help="skip files whose output exists")


def _add_train(command: argparse.ArgumentParser) -> None:
    add_options(command, Job, positional=("inputs",))
    help = "a file with these settings (held_out for --held-out); options on the command line take precedence"
    command.add_argument("--job", metavar="JSON", help=help)
    help = "stop at a line on the standard input; --resume continues the run"
    command.add_argument("--listen", action="store_true", help=help)


def _add_evaluate(command: argparse.ArgumentParser) -> None:
    command.add_argument("input", help="the recording before")
    command.add_argument("output", help="the recording after")
    help = "JSON file of lumen and tissue boxes for gCNR, CNR and SNR; see Documentation/method.md"
    command.add_argument("--rois", help=help)
    command.add_argument("--truth", help="file of known echogenicity for PSNR and SSIM")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _add_simulate(command: argparse.ArgumentParser) -> None:
    size, grain = "pixels (default: 256 256)", "speckle size, pixels (default: random)"
    command.add_argument("output", help="the .npz file to write")
    command.add_argument("--frames", type=int, default=10, help="frames with new speckle each (default: %(default)s)")
    command.add_argument("--size", type=int, nargs=2, default=(256, 256), metavar=("H", "W"), help=size)
    command.add_argument("--grain", type=float, nargs=2, metavar=("Y", "X"), help=grain)
    command.add_argument("--layout", help="phantom, vessel, layers, organ, flat or natural (default: random)")
    command.add_argument("--geometry", default="linear", help="linear, sector or piece (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="seed of all random choices (default: %(default)s)")


def _add_benchmark(command: argparse.ArgumentParser) -> None:
    minutes = "quality: training time of each method and set (default: 5; quick: 0.2 in all)"
    real = "quality: real frames as well, recordings or .npz"
    command.add_argument("what", choices=("quality", "speed"), help="of the despeckled frames, or of the program")
    command.add_argument("output", help="the folder to write")
    command.add_argument("--quick", action="store_true", help="shorter run: under five minutes (speed: under two)")
    command.add_argument("--real", nargs="+", default=[], metavar="FILE", help=real)
    command.add_argument("--minutes", type=float, help=minutes)
    command.add_argument("--history", metavar="CSV", help="speed: earlier ratios to compare with")
    command.add_argument("--record", action="store_true", help="speed: add the ratios to the history")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 2 for bad input, 130 when interrupted."""
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
    except (ImportError, OSError, MemoryError, RuntimeError) as error:
        if "torch" not in sys.modules and (fault := torch_fault()):
            print(f"speckle2self: {fault}", file=sys.stderr)
            return 2
        if lacking := missing_package(error):
            print(f"speckle2self: {lacking}", file=sys.stderr)
            return 2
        if out_of_memory(error):
            print("speckle2self: not enough memory; close other programs, or despeckle less.", file=sys.stderr)
            return 2
        if not isinstance(error, OSError):
            raise
        print(f"speckle2self: {error.filename or 'file'}: {error.strerror or error}.", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Cancelled) as error:
        print(f"speckle2self: stopped{f'; {error}' if str(error) else ''}.", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGINT, before)
    return 0


def _end_with_launcher() -> None:
    """End this process when torchrun, which starts each process in its own session, has ended for any reason."""
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _interrupt(number: int, frame: FrameType | None) -> None:
    _interrupted.set()
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
