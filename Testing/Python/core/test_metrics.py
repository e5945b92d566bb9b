"""The figures of merit: known answers, and agreement with the reference figures of real frames."""

import json

import numpy as np
import pytest

from Speckle2SelfLib import metrics

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
    assert metrics.enl(envelope) == pytest.approx(3.66, abs=0.05)
    assert metrics.cnr(NOISE, NOISE + 5) == pytest.approx(5 / np.sqrt(2 * NOISE.var()))


def test_smoothing_raises_homogeneity_and_keeps_structure():
    noisy = np.clip(RAMP + 25 * NOISE, 0, 255)
    assert metrics.homogeneity(noisy, RAMP) > metrics.homogeneity(noisy, noisy) + 0.2
    assert metrics.structure(noisy, RAMP) > 0.98
    assert metrics.structure(RAMP, 255 - RAMP) == pytest.approx(-1)


def test_a_darker_mapping_alone_gains_nothing():
    noisy = np.clip(RAMP + 25 * NOISE, 0, 255)
    assert metrics.homogeneity(noisy, noisy / 4) == pytest.approx(metrics.homogeneity(noisy, noisy), abs=1e-6)


def test_what_no_frame_has_is_no_figure(recwarn):
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


def test_truth_is_reached_through_any_monotone_mapping():
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
