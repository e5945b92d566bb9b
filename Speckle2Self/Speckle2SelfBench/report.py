"""The benchmark's output: a CSV file, Markdown tables and a picture. A row is a dict: set, case, method, figures."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_gradient_magnitude, minimum_filter

from Speckle2SelfLib.metrics import FIGURES, average
from Speckle2SelfLib.region import fill_outside
from Speckle2SelfLib.system import InputError

UNFAIR = ("input", "Noise2Noise", "Noise2True")  # these know more than the frames, or are the frames
TELLING = ("rms", "psnr", "ssim", "repeat", "dice")  # figures that the text compares, for sets with a known truth


def plot(width: float, height: float, layout: str = "constrained"):
    """Return an empty matplotlib figure; size in inches. Raises InputError if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("Plots need matplotlib; install it with: pip install 'speckle2self[bench]'.") from error
    return Figure((width, height), dpi=100, layout=layout)


def _means(rows: list[dict], name: str) -> dict[str, dict[str, float]]:
    """Return, for one set, method -> figure -> mean over the cases that have it."""
    found: dict[str, list[dict]] = {}
    for row in (row for row in rows if row["set"] == name):
        found.setdefault(row["method"], []).append({figure: row[figure] for figure in FIGURES if figure in row})
    return {method: average(some) for method, some in found.items()}


def _best(means: dict, figure: str) -> str | None:
    """Return the method with the best value of a figure among those that know only the frames; None if none is
    better."""
    pick = {"higher": max, "lower": min}.get(FIGURES[figure].better)
    there = [method for method in means if method not in UNFAIR and figure in means[method]]
    return pick(there, key=lambda method: means[method][figure]) if pick and there else None


def markdown(lines: list[list[str]]) -> str:
    """Return a table whose first line is its heading and whose first column is text."""
    lines = [lines[0], ["---", *("---:" for _ in lines[0][1:])], *lines[1:]]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def table(rows: list[dict], name: str) -> str:
    """Return the Markdown table of one set; the best of each column (except `UNFAIR` methods) is in bold."""
    means = _means(rows, name)
    columns = [figure for figure in FIGURES if any(figure in values for values in means.values())]
    best = {figure: _best(means, figure) for figure in columns}

    def cell(method, figure):
        if figure not in means[method]:
            return ""
        text = FIGURES[figure].text(means[method][figure])
        first = method not in UNFAIR and best[figure] and text == FIGURES[figure].text(means[best[figure]][figure])
        return f"**{text}**" if first else text

    heading = ["method", *(FIGURES[figure].heading for figure in columns)]
    return markdown([heading, *([method, *(cell(method, figure) for figure in columns)] for method in means)])


def _by_case(rows: list[dict]) -> str:
    """Return the Markdown table of SSIM, method by case with a known truth."""
    known = [row for row in rows if "ssim" in row]
    cases, lines = list(dict.fromkeys(row["case"] for row in known)), []
    for method in dict.fromkeys(row["method"] for row in known):
        values = [[row["ssim"] for row in known if (row["method"], row["case"]) == (method, case)] for case in cases]
        lines.append([method, *(f"{np.mean(some):.3f}" if some else "" for some in values)])
    return markdown([["SSIM", *cases], *lines])


def home_ground(rows: list[dict], ours: str) -> list[str]:
    """Return sentences on the figures in which one of our methods, whose names begin with `ours`, is first on simulated
    frames, which resemble its training data, and none of them on natural anatomy."""
    home, away = _means(rows, "simulated"), _means(rows, "natural")
    lines = []
    for name in TELLING:
        first, there, text = _best(home, name), _best(away, name), FIGURES[name].text
        if first and there and first.startswith(ours) and not there.startswith(ours) and name in away.get(first, {}):
            lines.append(
                f"**On our own phantoms only**: in {FIGURES[name].heading}, *{first}* is first on simulated frames "
                f"({text(home[first][name])}); on natural anatomy *{there}* is ({text(away[there][name])}, "
                f"*{first}* {text(away[first][name])})."
            )
    return lines


def page(rows: list[dict], notes: list[str], rates, frames: dict[str, int], seconds: float, ours: str) -> str:
    """Return all tables in Markdown, with the notes; rates: steps per second of the authors' loop and of ours."""
    text = f"Each learning method had {seconds:.3g} s of training on the frames of each set, without their truth.\n\n"
    text += (
        "*simulated*: the project's own phantoms, which resemble what its models are trained on; a lead there is "
        "knowledge of them. *natural*: photographs, and lesions in the texture of photographs, seen by a scanner that "
        "no training simulates.\n\n"
    )
    for name, count in frames.items():
        text += f"**{name}**, {count} frames\n\n{table(rows, name)}\n"
    lines = [*home_ground(rows, ours), *notes]
    lines.append(
        f"The published recipe trains at {rates[1]:.3g} steps/s; a re-enactment of the authors' loop on the same "
        f"machine and batch at {rates[0]:.3g} steps/s ({rates[1] / rates[0]:.2g} times)."
    )
    return text + _by_case(rows) + "\n" + "".join(f"- {line}\n" for line in lines)


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write one line for each method and case."""
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["set", "case", "method", "frames", *FIGURES], extrasaction="ignore")
        writer.writeheader()
        writer.writerows({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def steepest(image: np.ndarray, region: np.ndarray, side: int) -> tuple[slice, slice]:
    """Return the square of `side` pixels, within the region, around the place where the image is steepest."""
    guide = fill_outside(image[None], region)[0]
    steep = gaussian_gradient_magnitude(gaussian_filter(guide, 1), 3)
    steep *= minimum_filter(region, side + 2, mode="constant")
    row, column = (int(n) - side // 2 for n in np.unravel_index(np.argmax(steep), steep.shape))
    return slice(row, row + side), slice(column, column + side)


def picture(pictures: dict, side: int = 20, across: int = 10):
    """Return a matplotlib figure with each method's output: the whole frame, and below it the `side` pixels where the
    truth (without one: the blurred input) is steepest.

    Args: pictures, (set, case, method): (H, W) about [0, 1], including "input"; and "region", bool. All methods of a
    frame use the same grey map.
    """
    groups: dict[tuple, dict] = {}
    for (*place, method), image in pictures.items():
        groups.setdefault(tuple(place), {})[method] = image
    tile, gap, heading = 1.28, 0.03, 0.3  # inches
    line = 2 * (tile + gap) + 0.2
    lines = sum(-(-(len(images) - 1) // across) for images in groups.values())
    width, height = across * (tile + gap), lines * line + len(groups) * heading
    whole, y = plot(width, height, "none"), 0.0
    for (name, case), images in groups.items():
        whole.text(0.003, 1 - (y + 0.2) / height, f"{name}: {case}", fontsize=12, weight="bold")
        y += heading
        region, top = images.pop("region"), max(float(np.percentile(images["input"], 99.5)), 0.1)
        detail = steepest(images.get("truth", images["input"]), region, side)
        for number, (method, image) in enumerate(images.items()):
            x, down = number % across * (tile + gap), y + number // across * line + 0.2
            for part, under in ((image, 0), (image[detail], tile + gap)):
                place = (x / width, 1 - (down + under + tile) / height, tile / width, tile / height)
                axes = whole.add_axes(place, anchor="N")
                axes.imshow(
                    np.round(31 * np.clip(part / top, 0, 1) ** 0.7), "gray", vmin=0, vmax=31
                )  # keeps the file small
                axes.set_axis_off()
            label = method.replace("Speckle2Self as", "S2S as")
            whole.text(x / width, 1 - (down - 0.03) / height, label, fontsize=7.5, va="bottom")
        y += -(-len(images) // across) * line
    return whole
