"""What the benchmark writes: a CSV file, Markdown tables and a picture. A row is a dict: set, case, method, figures."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter, gaussian_gradient_magnitude, minimum_filter

from Speckle2SelfLib.region import fill_outside

MEASURES = {  # name: heading, decimals, and whether more is better (None: neither)
    "psnr": ("PSNR dB", 2, True),
    "ssim": ("SSIM", 3, True),
    "flat": ("flat rms", 4, False),
    "edge": ("edge width", 2, None),
    "points": ("points kept", 2, None),
    "layers": ("layers kept", 2, None),
    "gcnr": ("gCNR", 3, True),
    "homogeneity": ("Hom", 3, True),
    "holes": ("holes", 4, False),
    "structure": ("structure", 3, True),
    "snr": ("SNR", 2, True),
    "milliseconds": ("ms / frame", 1, None),
}


def _means(rows: list[dict], name: str) -> dict[str, dict[str, float]]:
    """Of one set: method -> measure -> mean over the cases that have it."""
    found: dict[str, dict[str, list]] = {}
    for row in (row for row in rows if row["set"] == name):
        for measure_name in set(MEASURES) & set(row):
            found.setdefault(row["method"], {}).setdefault(measure_name, []).append(row[measure_name])
    return {method: {m: float(np.nanmean(v)) for m, v in values.items()} for method, values in found.items()}


def table(rows: list[dict], name: str) -> str:
    """The Markdown table of one set; the best of each column (but for methods told more than the frames) in bold."""
    means = _means(rows, name)
    columns = [m for m in MEASURES if any(m in values for values in means.values())]
    fair = [m for m in means if m not in ("input", "Noise2Noise", "Noise2True")]
    best = {}
    for m in columns:
        _, places, more = MEASURES[m]
        values = [round(means[method][m], places) for method in fair if m in means[method]]
        if more is not None and values:
            best[m] = max(values) if more else min(values)

    def cell(method, m):
        if m not in means[method]:
            return ""
        value, places = means[method][m], MEASURES[m][1]
        bold = method in fair and round(value, places) == best.get(m)
        return f"**{value:.{places}f}**" if bold else f"{value:.{places}f}"

    lines = [["method", *(MEASURES[m][0] for m in columns)], ["---", *("---:" for _ in columns)]]
    lines += [[method, *(cell(method, m) for m in columns)] for method in means]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _by_case(rows: list[dict]) -> str:
    """The Markdown table of SSIM, method by simulated case."""
    cases = list(dict.fromkeys(row["case"] for row in rows if "ssim" in row))
    text = "| SSIM | " + " | ".join(cases) + " |\n|---|" + "---:|" * len(cases) + "\n"
    for method in dict.fromkeys(row["method"] for row in rows if "ssim" in row):
        values = [[r["ssim"] for r in rows if (r["method"], r["case"]) == (method, c) and "ssim" in r] for c in cases]
        text += f"| {method} | " + " | ".join(f"{np.mean(v):.3f}" if v else "" for v in values) + " |\n"
    return text


def page(rows: list[dict], notes: list[str], rates, frames: dict[str, int], seconds: float) -> str:
    """All tables in Markdown, with the notes; rates: steps per second of the authors' loop and of ours."""
    text = f"Each learning method had {seconds:.3g} s of training on the frames of each set, without their truth.\n\n"
    for name, count in frames.items():
        text += f"**{name}**, {count} frames\n\n{table(rows, name)}\n"
    text += _by_case(rows) + "\n" + "".join(f"- {note}\n" for note in notes)
    return text + (
        f"- The published recipe trains at {rates[1]:.3g} steps/s; a re-enactment of the authors' loop on the same "
        f"machine and batch at {rates[0]:.3g} steps/s ({rates[1] / rates[0]:.2g} times).\n"
    )


def write_csv(path: Path, rows: list[dict]) -> None:
    """One line for each method and case."""
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["set", "case", "method", "frames", *MEASURES], extrasaction="ignore")
        writer.writeheader()
        writer.writerows({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def picture(pictures: dict, tile: int = 128, across: int = 8) -> Image.Image:
    """Each method's output of the frames shown: the whole frame, and below it, at eight times its size, the place where
    the truth (without one: the blurred input) is steepest in the imaged region.

    Args: pictures, (set, number, method): (H, W) about [0, 1], "input" among them; and "region", bool. The same grey
    map serves all methods.
    """
    font, head = ImageFont.load_default(12), 17
    strips = []
    for key in dict.fromkeys(key[:2] for key in pictures):
        images = {method: image for (*place, method), image in pictures.items() if tuple(place) == key}
        side, top = tile // 8, max(float(np.percentile(images["input"], 99.5)), 0.1)
        region = images.pop("region")
        guide = fill_outside(images.get("truth", images["input"])[None], region)[0]
        steep = gaussian_gradient_magnitude(gaussian_filter(guide, 1), 3)
        steep *= minimum_filter(region, side + 2, mode="constant")
        row, column = (int(n) - side // 2 for n in np.unravel_index(np.argmax(steep), steep.shape))
        wide, tall = tile + 4, head + 2 * tile + 8
        strip = Image.new("L", (wide * across, tall * -(-len(images) // across) + 8), 255)
        for number, (method, image) in enumerate(images.items()):
            x, y = number % across * wide, number // across * tall
            ImageDraw.Draw(strip).text((x + 2, y + 1), method.replace("Speckle2Self as", "S2S as"), 0, font)
            grey = (np.clip(image / top, 0, 1) ** 0.7 * 31).round().astype(np.uint8) * 8
            whole = Image.fromarray(grey)
            whole.thumbnail((tile, tile), Image.Resampling.BOX)
            strip.paste(whole, (x, y + head))
            detail = Image.fromarray(grey[row : row + side, column : column + side])
            strip.paste(detail.resize((tile, tile), Image.Resampling.NEAREST), (x, y + head + tile + 2))
        strips.append(strip)
    sheet = Image.new("L", (strips[0].width, sum(strip.height for strip in strips)), 255)
    for number, strip in enumerate(strips):
        sheet.paste(strip, (0, sum(before.height for before in strips[:number])))
    return sheet
