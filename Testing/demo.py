"""Despeckle an ultrasound recording in a Slicer scene: `make demo`.

    Testing/headless-slicer Testing/demo.py [INPUT] [--model NAME] [--output FOLDER]

INPUT is any recording or volume that Slicer opens, or a .npy file; without it, pydicom's cardiac cine. FOLDER (default
build/demo) gets scene.mrb, before_after.png and metrics.csv, all of them or none. A bad INPUT is reported in one line;
the exit status is 2 then.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import slicer

from HeadlessSlicer import loaders, views

MEASURED = 24  # number of evenly spaced frames to measure
BLACK = 10  # largest grey level that counts as black
PATCH = 24  # pixels; side of the patch of even tissue for the SNR


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="demo.py", description="Despeckles a recording in a Slicer scene.")
    parser.add_argument("input", nargs="?", type=Path, help="recording or volume; default: a cardiac cine")
    parser.add_argument("--model", default="default", help="model or filter")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[1] / "build" / "demo")
    options = parser.parse_args(arguments)
    if options.input is None:
        import pydicom.examples

        options.input = Path(pydicom.examples.get_path("ybr_color"))
    try:
        demonstrate(options.input, options.model, options.output)
    except ValueError as error:  # any fault of the input or the model
        print(f"demo: {error}", file=sys.stderr)
        return 2
    return 0


def demonstrate(path: Path, model: str, output: Path) -> None:
    """Load, despeckle, measure, write and read back. Raises ValueError for input that cannot be used."""
    from Speckle2SelfLib.grey import evenly_spaced

    node = loaders.load(path)
    check_writable(output)
    logic = slicer.util.getModuleLogic("Speckle2Self")
    started = time.perf_counter()
    despeckled = logic.process(node, model=model, progress=tell)
    seconds = time.perf_counter() - started
    count = len(frames(node))
    chosen = evenly_spaced(count, MEASURED)
    before, after = (np.stack([frames(one)[i] for i in chosen]) for one in (node, despeckled))
    rows = measure(before, after)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".demo-") as folder:
        folder = Path(folder)
        picture(node, despeckled, folder / "before_after.png")
        write_table(rows, folder / "metrics.csv")
        write_scene(node, despeckled, folder / "scene.mrb")
        for name in ("scene.mrb", "before_after.png", "metrics.csv"):
            os.replace(folder / name, output / name)
    height, width = before.shape[1:3]
    print(f"\nDespeckled {path.name}: {count} frames of {width} x {height} pixels in {seconds:.1f} s, ", end="")
    print(f"{count / seconds:.1f} frames per second.\n")
    summarise(rows, output)


def check_writable(folder: Path) -> None:
    """Raise ValueError if the folder cannot be created or written; create nothing."""
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"'{folder}' cannot be written; choose another folder with --output.")


def tell(done: int, total: int) -> None:
    """Print progress, only on a terminal."""
    if sys.stderr.isatty():
        print(f"\rDespeckling frame {done} of {total}", end="\n" if done == total else "", file=sys.stderr)


def volumes(node) -> list:
    """Return the volumes of a sequence, or the volume itself."""
    if node.IsA("vtkMRMLSequenceNode"):
        return [node.GetNthDataNode(i) for i in range(node.GetNumberOfDataNodes())]
    return [node]


def frames(node) -> list[np.ndarray]:
    """Return all frames of a volume or sequence node, (H, W) or in color (H, W, C), not copied."""
    return [frame for volume in volumes(node) for frame in slicer.util.arrayFromVolume(volume)]


#
# Measuring
#


def measure(before: np.ndarray, after: np.ndarray) -> dict[str, dict[str, float]]:
    """Return figures {"before": ..., "after": ...} of frames (N, H, W[, C]): luminance, imaged region, 8-bit scale."""
    from Speckle2SelfLib import metrics
    from Speckle2SelfLib.grey import luminance
    from Speckle2SelfLib.region import detect

    region = detect(before)
    if not region.any():
        region[:] = True
    rows, columns = (np.flatnonzero(region.any(axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    grey = [luminance(before), luminance(after)]
    low, high = (0, 255) if before.dtype == np.uint8 else (grey[0].min(), grey[0].max())
    scaled = [(x - low) * (255 / max(high - low, 1e-9)) for x in grey]
    # Outside the region, both equal the input; they are made black here, so that text and scales do not count.
    inputs, outputs = ((x * region)[:, box[0], box[1]] for x in scaled)
    patch = even_patch(inputs, region[box])

    def figures(results):
        # Frames that are flat in the patch, for example next to the anatomy, have no speckle to measure.
        return metrics.average(
            metrics.measure(image, result, tissue=patch if patch and image[patch].std() > 1 else None)
            for image, result in zip(inputs, results, strict=True)
        )

    return {"before": figures(inputs), "after": figures(outputs)}


def even_patch(inputs: np.ndarray, region: np.ndarray) -> tuple[slice, slice] | None:
    """Return the lit patch inside the region where the mean input (N, H, W) varies least; None if none fits."""
    from scipy.ndimage import gaussian_filter, minimum_filter, uniform_filter

    def level_and_spread(image):
        level = uniform_filter(image, PATCH)
        return level, np.sqrt(np.maximum(uniform_filter(image**2, PATCH) - level**2, 0))

    level, spread = level_and_spread(gaussian_filter(inputs.mean(0), 3))
    grain = np.mean([level_and_spread(image)[1] for image in inputs], axis=0)
    inside = minimum_filter(region, PATCH, mode="constant", cval=False)
    inside &= (level > BLACK) & (grain > 1)  # neither black nor without any speckle
    if not inside.any():
        return None
    inside &= level >= np.median(level[inside])
    y, x = np.unravel_index(np.argmin(np.where(inside, spread / np.maximum(level, 1), np.inf)), level.shape)
    top, left = y - PATCH // 2, x - PATCH // 2
    return slice(top, top + PATCH), slice(left, left + PATCH)


#
# Writing
#


def browser_of(sequence):
    """Return the browser that shows the sequence."""
    browsers = slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode")
    return next(b for b in browsers if b.IsSynchronizedSequenceNodeID(sequence.GetID(), True))


def picture(node, despeckled, path: Path) -> None:
    """Draw slice views of the middle frame before and after, whole and closer, and set the scene's views to match."""
    shown = [node, despeckled]
    if node.IsA("vtkMRMLSequenceNode"):
        browser = browser_of(node)
        browser.SetSelectedItemNumber(node.GetNumberOfDataNodes() // 2)
        shown = [browser.GetProxyNode(sequence) for sequence in shown]
    image = slicer.util.arrayFromVolume(shown[0])
    middle = np.asarray(image[len(image) // 2], float)
    weight = middle.mean(-1) if middle.ndim == 3 else middle
    weight = weight - weight.min() + 1e-6
    centre = [
        float((weight.sum(axis) * np.linspace(0, 1, n)).sum() / weight.sum())
        for axis, n in ((0, weight.shape[1]), (1, weight.shape[0]))
    ]
    views.render(shown, ["input", "despeckled"], path, closer=(3.0, centre))
    views.arrange(shown)


def write_table(table: dict, path: Path) -> None:
    """Write the figures as CSV, with a row each for before and after."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *table["before"]])
        for name, row in table.items():
            writer.writerow([name, *(f"{value:.4f}" for value in row.values())])


def write_scene(node, despeckled, path: Path) -> None:
    """Save the scene, read it back into an emptied one, and compare. Raises RuntimeError if something is lost."""
    expected = [contents(node), contents(despeckled)]
    if not slicer.util.saveScene(str(path)):
        raise RuntimeError(f"The scene could not be saved as {path}.")
    slicer.mrmlScene.Clear()
    slicer.util.loadScene(str(path))
    nodes = [slicer.mrmlScene.GetFirstNodeByName(one["name"]) for one in expected]
    for one, again in zip(expected, nodes, strict=True):
        found = contents(again) if again is not None else {}
        for key, value in one.items():
            if not np.array_equal(value, found.get(key)):
                raise RuntimeError(f"The saved scene has lost the {key} of '{one['name']}'.")
    if nodes[0].IsA("vtkMRMLSequenceNode") and browser_of(nodes[0]) is not browser_of(nodes[1]):
        raise RuntimeError("In the saved scene, input and output are no longer in one browser.")


def contents(node) -> dict:
    """Return the properties of a volume or sequence node that a scene file must keep."""
    digests = [hashlib.sha256(np.ascontiguousarray(frame)).hexdigest() for frame in frames(node)]
    kept = {"name": node.GetName(), "frames": digests}
    if node.IsA("vtkMRMLSequenceNode"):
        kept["index"] = (node.GetIndexName(), node.GetIndexUnit())
        kept["index values"] = [node.GetNthIndexValue(i) for i in range(node.GetNumberOfDataNodes())]
    return kept


def summarise(table: dict, output: Path) -> None:
    """Print the figures and the output paths."""
    from Speckle2SelfLib.metrics import FIGURES

    print(f"{'':14}{'before':>8}{'after':>8}")
    for name, value in table["before"].items():
        print(f"{name:14}{value:8.3f}{table['after'][name]:8.3f}   {FIGURES[name].meaning}")
    print("\nSlicer scene    " + str(output / "scene.mrb"))
    print("Before, after   " + str(output / "before_after.png"))
    print("Figures         " + str(output / "metrics.csv"))


if __name__ == "__main__":
    slicer.util.exit(main(sys.argv[1:]))
