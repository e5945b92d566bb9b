"""What the benchmark writes: a CSV file, Markdown tables and a picture. A row is a dict: set, case, method, figures."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

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


def picture(pictures: dict, tile: int = 160, across: int = 7) -> Image.Image:
    """For each set and case shown, each method's output: its middle at twice the size, and below it at eight times."""
    font, head = ImageFont.load_default(13), 18
    strips = []
    for key in dict.fromkeys(key[:2] for key in pictures):
        tiles = []
        for (*place, method), image in pictures.items():
            if tuple(place) != key:
                continue
            canvas = Image.new("L", (tile, head + 2 * tile + 6), 255)
            ImageDraw.Draw(canvas).text((2, 1), method, 0, font)
            for number, zoom in enumerate((2, 8)):
                side = tile // zoom
                cut = image[tuple(slice(max(0, (n - side) // 2), (n + side) // 2) for n in image.shape)]
                grey = Image.fromarray((np.clip(cut, 0, 1) * 63).round().astype(np.uint8) * 4)
                canvas.paste(
                    grey.resize((cut.shape[1] * zoom, cut.shape[0] * zoom), 0), (0, head + number * (tile + 2))
                )
            tiles.append(canvas)
        wide, tall = tile + 4, tiles[0].height + 6
        strip = Image.new("L", (wide * across, tall * -(-len(tiles) // across)), 255)
        for number, canvas in enumerate(tiles):
            strip.paste(canvas, (number % across * wide, number // across * tall))
        strips.append(strip)
    sheet = Image.new("L", (strips[0].width, sum(s.height + 10 for s in strips)), 255)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height + 10
    return sheet
