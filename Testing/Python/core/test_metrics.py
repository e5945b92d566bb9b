"""The figures of merit: known answers, and agreement with the reference figures of real frames."""

import json
import subprocess
import sys

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr

from Speckle2SelfLib import library, metrics

RAMP = np.tile(np.linspace(20, 220, 64), (64, 1))
NOISE = np.random.default_rng(0).standard_normal((64, 64))


def test_regions_apart_have_full_gcnr_and_equal_ones_none():
    a = np.arange(100.0)
    assert metrics.gcnr(a, a + 1000) == pytest.approx(1)
    assert metrics.gcnr(a, a) == pytest.approx(0)
    assert metrics.gcnr(np.sqrt(a), np.sqrt(a + 1000)) == pytest.approx(1)


def test_cnr_snr_and_looks_of_known_distributions():
    envelope = np.random.default_rng(1).rayleigh(size=200_000)
    assert metrics.snr(envelope) == pytest.approx(1.913, abs=0.01)
    assert metrics.snr(envelope) ** 2 == pytest.approx(3.66, abs=0.05)
    assert metrics.cnr(NOISE, NOISE + 5) == pytest.approx(5 / np.sqrt(2 * NOISE.var()))


def test_smoothing_raises_homogeneity_and_keeps_structure():
    noisy = np.clip(RAMP + 25 * NOISE, 0, 255)
    assert metrics.homogeneity(noisy, RAMP) > metrics.homogeneity(noisy, noisy) + 0.2
    assert metrics.structure(noisy, RAMP) > 0.98
    assert metrics.structure(RAMP, 255 - RAMP) == pytest.approx(-1)


@pytest.mark.parametrize("decimals", [2, -1])
def test_structure_is_the_rank_correlation_of_scipy_with_and_without_ties(monkeypatch, decimals):
    monkeypatch.setattr(metrics, "reference", lambda image: np.round(image, decimals))
    noisy = RAMP + 40 * NOISE
    expected = spearmanr(np.round(noisy, decimals).ravel(), np.round(RAMP, decimals).ravel()).statistic
    assert metrics.structure(RAMP, noisy) == expected


def test_a_darker_mapping_gains_nothing():
    noisy = np.clip(RAMP + 25 * NOISE, 0, 255)
    assert metrics.homogeneity(noisy, noisy / 4) == pytest.approx(metrics.homogeneity(noisy, noisy), abs=1e-6)


def test_a_figure_without_a_value_in_any_frame_is_left_out(recwarn):
    black, image = np.zeros((1, 64, 64)), RAMP[None]
    assert "structure" not in metrics.evaluate(black, black)
    assert metrics.evaluate(np.concatenate([black, image]), np.concatenate([black, image]))["structure"] == 1
    assert metrics.evaluate(image, black + 7)["structure"] == 0, "of an output that shows nothing"
    assert not recwarn


def test_holes_are_black_where_tissue_is():
    output = RAMP.copy()
    output[:32] = 0
    assert metrics.holes(RAMP, output) == 0.5
    assert metrics.holes(RAMP, RAMP) == 0


def test_any_monotone_mapping_of_the_truth_counts_as_perfect():
    truth = RAMP.round()
    for mapping in (np.sqrt, np.log1p, lambda x: x**3 / 1000):
        assert np.allclose(metrics.to_truth(mapping(truth), truth), truth)
        assert metrics.ssim(mapping(truth), truth) == pytest.approx(1)
    assert metrics.psnr(truth + 20 * NOISE, truth) < metrics.psnr(truth + 2 * NOISE, truth)


@pytest.mark.parametrize("width", [2.0, 5.0, 10.0])
def test_the_width_of_a_linear_edge_is_measured(width):
    x = np.arange(64)
    edge = np.tile(np.clip((x - 32) / width + 0.5, 0, 1) * 100, (20, 1))
    assert metrics.edge_width(edge, (10, 8), (10, 56), lines=5) == pytest.approx(0.8 * width, abs=0.25)
    assert metrics.edge_width(edge.T, (56, 10), (8, 10)) == pytest.approx(0.8 * width, abs=0.25)


def test_flicker_is_the_ratio_of_the_deviations():
    tissue = np.ones((4, 4), bool)
    before = np.arange(5.0)[:, None, None] * np.ones((5, 4, 4))
    assert metrics.flicker(before, before / 2, tissue) == pytest.approx(0.5)


def test_repeat_is_the_noise_that_a_filter_passes():
    draws = np.random.default_rng(0).normal(100, 25.5, (2, 200, 200))
    assert metrics.repeat(draws) == pytest.approx(0.1, rel=0.01)
    assert metrics.repeat(np.repeat(draws[:1], 2, axis=0)) == 0 and np.isnan(metrics.repeat(draws[:1]))


def test_the_error_of_the_truth_itself_is_subtracted():
    truth = RAMP + 10 * NOISE
    assert metrics.rms(RAMP[None], truth) == pytest.approx(10 / 255, rel=0.02)
    assert metrics.rms(RAMP[None], truth, noise=100.0) < 2 / 255
    inside = RAMP > 120
    assert metrics.rms(np.where(inside, RAMP, 0)[None], RAMP, inside=inside) == 0


def test_half_the_contrast_keeps_half_the_slopes():
    waves = 100 + 50 * np.sin(RAMP / 9) * np.cos(RAMP.T / 7)
    assert metrics.kept_slopes(waves[None] / 2, waves) == pytest.approx(0.5)
    assert metrics.kept_slopes(waves[None] + 5, waves + 10 * NOISE, noise=100.0) == pytest.approx(1, abs=0.05)
    assert metrics.kept_slopes(np.zeros((1, 64, 64)), waves) == 0


def test_dice_compares_the_regions_that_otsu_finds_dark_or_bright():
    mask = np.zeros((64, 64), bool)
    mask[20:36, 24:44] = True
    for image in (np.where(mask, 50, 150), np.where(mask, 150, 50)):
        assert metrics.dice(image, mask[None]) == 1
    assert 0.5 < metrics.dice(np.where(np.roll(mask, 5, 1), 50, 150), mask[None]) < 0.8
    assert metrics.dice(100 + NOISE, mask[None]) < 0.6 and np.isnan(metrics.dice(RAMP, mask[:0]))


def test_the_registry_measures_the_known_figures_and_how_they_are_judged():
    everything = {"truth": RAMP, "echogenicity": RAMP, "outputs": RAMP[None], "inside": RAMP > 0, "values": RAMP}
    noisy = np.clip(RAMP + 25 * NOISE, 0, 255)
    assert set(metrics.measure(noisy, RAMP)) == {"homogeneity", "structure", "holes"}
    found = metrics.measure(noisy, RAMP, tissue=RAMP > 100, lumen=(slice(10), slice(10)), **everything)
    assert list(found) == [name for name in metrics.FIGURES if name in found], "in the registry's order"
    assert set(metrics.FIGURES) - set(found) == {"dice", "edge", "points", "layers", "milliseconds", "world"}
    assert found["mean"] == pytest.approx(RAMP.mean()) and found["rms"] == 0 and found["gcnr"] > 0.9
    for name, figure in metrics.FIGURES.items():
        assert figure.name == name and figure.meaning and figure.better in ("higher", "lower", "")
        assert figure.function is None or figure.function.__name__.startswith(name)
        assert figure.tolerance is None or figure.better


def test_a_model_is_worse_only_beyond_a_figures_tolerance():
    assert set(metrics.JUDGED) == {"rms", "world", "homogeneity", "structure", "holes"}
    blind = {"homogeneity": 0.8, "structure": 0.99, "holes": 0.0}
    known = blind | {"rms": 0.03, "world": 0.02}
    for start, name, change in (
        (blind, "homogeneity", -0.004), (blind, "structure", -0.004), (blind, "holes", 0.0009),
        (known, "rms", 0.00019), (known, "world", 0.0009),
    ):  # fmt: skip
        for times, told in ((1, ""), (2, metrics.FIGURES[name].label or name), (-2, "")):
            end = start | {name: start[name] + times * change}
            assert library.worse_than_start({"figures_at_start": start, "figures": end}).startswith(told)
            assert bool(library.worse_than_start({"figures_at_start": start, "figures": end})) == bool(told)
    end = known | {"homogeneity": 0.1, "structure": 0.5, "holes": 0.2}
    assert not library.worse_than_start({"figures_at_start": known, "figures": end}), "where truth is known it decides"


def test_the_registry_needs_only_numpy(project):
    code = f"""
import sys
for name in ("torch", "scipy", "skimage", "safetensors", "PIL", "matplotlib"):
    sys.modules[name] = None
sys.path.insert(0, {str(project / "Speckle2Self")!r})
from Speckle2SelfLib import metrics
assert metrics.FIGURES["snr"].text(2) == "2.00" and round(metrics.snr([1, 3]), 6) == 2 and metrics.JUDGED
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_reference_figures_of_natural_anatomy_are_reproduced(shared_data):
    """The reference is a separate implementation, for the input and a blur: rms, SSIM, repeat, slopes kept. Its SSIM is
    after a monotone mapping of 256 steps."""
    stored = np.load(shared_data / "natural" / "natural.npz")
    images, truths, echogenicities = (stored[n].astype(float) for n in ("bmode", "mean30", "echogenicity"))
    expected = {0: (0.09408, 0.46251, 0.09416, 0.8637), 2: (0.04093, 0.64245, 0.03505, 0.57309)}
    for sigma, row in expected.items():
        rows = []
        for draws, truth, echogenicity in zip(images, truths * 255, echogenicities, strict=True):
            outputs = gaussian_filter(draws, (0, sigma, sigma))
            noise = np.mean((draws - truth) ** 2) / 31  # the truth is the mean of 30 other draws
            known = {"outputs": outputs, "truth": truth, "noise": noise}
            of_all = {name: metrics.FIGURES[name].measure(known) for name in ("rms", "repeat", "kept")}
            rows += [of_all | {"ssim": metrics.ssim(output, echogenicity)} for output in outputs]
        found = metrics.average(rows)
        for name, value, within in zip(("rms", "ssim", "repeat", "kept"), row, (1e-5, 2e-3, 1e-5, 1e-5), strict=True):
            assert found[name] == pytest.approx(value, abs=within), name


def test_the_reference_figures_of_the_carotid_frames_are_reproduced(shared_data):
    stored = np.load(shared_data / "carotid" / "carotid_frames.npz")
    rois = json.loads((shared_data / "carotid" / "rois.json").read_text())
    expected = {
        "input": (0.336, 0.0265, 1.000, 0.909, 3.57),
        "speckle2self_paper": (0.790, 0.0046, 0.985, 1.000, 13.62),
        "srad": (0.773, 0.0002, 0.999, 1.000, 9.58),
    }
    for name, row in expected.items():
        found = metrics.evaluate(stored["input"], stored[name], rois)
        for measure, value in zip(("homogeneity", "holes", "structure", "gcnr", "snr"), row, strict=True):
            assert found[measure] == pytest.approx(value, abs=0.005 if measure != "snr" else 0.01)
