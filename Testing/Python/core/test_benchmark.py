"""The benchmark: its phantom, the other methods, the files that it writes. No quality is asked of short trainings."""

import csv
import itertools
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from scipy.ndimage import gaussian_filter

from Speckle2SelfBench import baselines, cases, natural, quality, report
from Speckle2SelfBench.phantom import draw
from Speckle2SelfLib import metrics
from Speckle2SelfLib.system import InputError

SIZE = 96


@pytest.fixture(scope="module")
def drawn():
    return draw(SIZE, (1.2, 2.0), np.random.default_rng(1), looks=2)


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr(baselines, "BATCH", 2)
    monkeypatch.setattr(baselines, "CROP", 32)


def test_the_mean_of_many_looks_is_the_truth():
    drawn = draw(SIZE, (1.2, 2.0), np.random.default_rng(2), looks=300)
    error = drawn.frames.mean(0) - drawn.truth
    assert abs(error.mean()) < 0.003
    assert np.sqrt(np.mean(error**2)) < 1.5 * drawn.frames.std(0).mean() / np.sqrt(300)


@pytest.mark.parametrize("grain", [(0.9, 1.3), (2.4, 3.6)])
def test_the_edges_of_the_box_are_clear_of_all_else(grain):
    """Each truth's edge is as wide as its pulse, whichever of the four it is."""
    drawn = draw(192, grain, np.random.default_rng(3))
    widths = [metrics.edge_width(drawn.truth, *end, 48) / along for end, along in drawn.edges()]
    assert max(widths) < 1.15 * min(widths)


def test_the_truth_keeps_all_of_a_phantom_and_a_blur_does_not(drawn):
    kept, blurred = drawn.measure(drawn.truth), drawn.measure(gaussian_filter(drawn.truth, 2))
    assert kept["points"] == pytest.approx(1) and kept["layers"] == pytest.approx(1)
    assert kept["gcnr"] == 1 and kept["edge"] == 1
    assert blurred["points"] < 0.6 and blurred["layers"] < 0.8 and blurred["edge"] > 1.2
    linear = drawn.measure(drawn.truth * 0.5 + 0.1)
    assert linear["points"] == pytest.approx(1) and linear["edge"] == pytest.approx(1)


def test_the_figures_of_a_region_ignore_the_rest():
    truth = np.tile(np.linspace(20, 220, 64), (64, 1))
    inside = np.zeros((64, 64), bool)
    inside[8:56, 8:56] = True
    noisy = truth + np.random.default_rng(0).normal(0, 20, truth.shape)
    other = np.where(inside, noisy, 0)
    for measure in (metrics.psnr, metrics.ssim):
        assert measure(other, truth, inside=inside) == pytest.approx(measure(noisy, truth, inside=inside))
        assert measure(noisy, truth, inside=np.ones_like(inside)) == pytest.approx(measure(noisy, truth))


@pytest.mark.parametrize("name", ["noise2void", "noise2self", "neighbor2neighbor", "zsn2n", "deep_image_prior"])
def test_a_few_steps_of_each_method_return_frames(name, drawn):
    frames = drawn.frames[:, :50, :61]
    outputs = getattr(baselines, name)(frames, 0.02)(frames[:1])
    assert outputs.shape == (1, 50, 61) and outputs.dtype == np.float32
    assert np.isfinite(outputs).all() and outputs.min() >= 0 and outputs.max() <= 1


def test_methods_trained_with_known_truth_lower_the_error(drawn, monkeypatch):
    torch.manual_seed(0)
    clock = types.SimpleNamespace(monotonic=itertools.count().__next__)  # a second a step, however busy the machine is
    monkeypatch.setattr(baselines, "time", clock)
    frames, truth = drawn.frames[:1], drawn.truth[None]
    for output in (
        baselines.noise2true(frames, 60.0, truth=truth)(frames),
        baselines.noise2noise(frames, 60.0, second=drawn.frames[1:])(frames),
    ):
        assert np.mean((output - truth) ** 2) < np.mean((frames - truth) ** 2)


def test_obnlm_removes_speckle_and_keeps_constants(drawn):
    output = baselines.obnlm(drawn.frames[:1])
    assert metrics.psnr(output[0] * 255, drawn.truth * 255) > metrics.psnr(drawn.frames[0] * 255, drawn.truth * 255) + 2
    assert np.allclose(baselines.obnlm(np.full((1, 40, 50), 0.3, np.float32)), 0.3, atol=1e-5)


def test_bm3d_is_used_where_it_is_installed(monkeypatch, drawn):
    monkeypatch.setitem(sys.modules, "bm3d", None)
    with pytest.raises(ImportError):
        baselines.bm3d(drawn.frames)
    monkeypatch.setitem(sys.modules, "bm3d", types.SimpleNamespace(bm3d=lambda frame, level: frame * 0 + level))
    assert 0 < baselines.bm3d(drawn.frames).mean() < 0.5


def test_all_files_are_written(tmp_path, monkeypatch, capsys, small_crops):
    monkeypatch.setitem(quality.PRESETS, "adapt", replace(quality.PRESETS["adapt"], simulated=8))
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (2, 64, 64), dtype=np.uint8)
    np.savez(tmp_path / "real.npz", input=frames, srad=frames // 2, other=np.zeros(3))
    monkeypatch.setattr(natural, "PHOTOGRAPHS", {"astronaut": (0.25, 0.43, 0.5)})
    monkeypatch.setattr(natural, "TISSUES", ("grass",))
    monkeypatch.setattr(
        quality, "SCANNERS", scanners := {"fine": ((1.0, 1.3), "linear"), "sector": ((1.2, 2.0), "sector")}
    )
    monkeypatch.setattr(cases, "SCANNERS", scanners)
    monkeypatch.setattr(cases, "LAYOUTS", ("vessel",))
    monkeypatch.setattr(quality, "loop_rates", lambda *arguments: (1.0, 3.5))
    everything = quality.methods
    few = ["input", "srad", "BM3D", "ours, from nothing", "Speckle2Self as published"]
    few += ["Noise2True", "deep image prior"]
    monkeypatch.setattr(quality, "methods", lambda device: [m for m in everything(device) if m.name in few])
    monkeypatch.setattr(quality, "SLOW", {"deep image prior": 1})
    monkeypatch.setitem(sys.modules, "bm3d", None)
    output = tmp_path / "found"
    quality.run(output, quick=True, real=[tmp_path / "real.npz"], minutes=0.0005, device="cpu", size=SIZE)
    rows = list(csv.DictReader((output / "quality.csv").open()))
    simulated = [row for row in rows if row["set"] == "simulated"]
    assert {row["case"] for row in simulated} == {"phantom, fine", "vessel, fine", "vessel, sector"}
    assert {row["method"] for row in rows} == {*few, "srad, stored"} - {"BM3D"}
    assert not [row for row in rows if row["set"] == "real" and row["method"] == "Noise2True"]
    assert all(float(row["psnr"]) > 5 and 0 <= float(row["ssim"]) <= 1 for row in simulated)
    assert len([row for row in simulated if row["method"] == "deep image prior"]) == 1
    unseen = [row for row in rows if row["set"] == "natural"]
    assert {row["case"] for row in unseen} == {"astronaut", "lesions in grass"}
    for row in simulated + unseen:
        assert row["method"] == "deep image prior" or (float(row["repeat"]) >= 0 and float(row["kept"]) < 1.5)
    assert all(float(row["dice"]) > 0.1 for row in unseen if row["case"] == "lesions in grass")
    page = (output / "quality.md").read_text()
    assert "BM3D is left out" in page and "deep image prior is slow" in page and "3.5 times" in page
    assert "| input |" in capsys.readouterr().out
    assert imread(output / "quality.png").shape[1] > 500


def test_both_loops_of_the_published_recipe_run():
    rates = quality.loop_rates(32, 2, 0.01, "cpu")
    assert len(rates) == 2 and min(rates) > 0


def test_the_picture_shows_the_steepest_place_within_the_image_not_its_border():
    """In a bright fan with a faint step, the border of the fan is far steeper than the step."""
    y, x = np.mgrid[:120, :120]
    inside = np.abs(x - 60) < 0.45 * y
    truth = (0.8 + 0.1 * (y > 80)) * inside
    detail = 255 * truth[report.steepest(truth, inside, 8)]
    assert detail.shape == (8, 8) and len(np.unique(detail)) == 2 and detail.min() > 100


def test_the_natural_truth_is_the_mean_of_many_draws_and_no_two_draws_are_equal():
    case = natural.natural_cases(SIZE, quick=True)[0]
    assert case.name == "astronaut" and not np.array_equal(*case.frames)
    further = natural.SCANNERS[0].frames(38 * (case.echogenicity - 1), 200, np.random.default_rng(5)) / 255
    error = further.mean(0) - case.truth
    assert abs(error.mean()) < 0.002
    assert np.sqrt(np.mean(error**2)) < 1.2 * np.sqrt(case.noise * (1 + natural.DRAWS / 200))
    found = case.measure(np.stack([case.truth] * 2))
    assert found["rms"] == 0 and found["repeat"] == 0 and found["kept"] > 0.9


def test_an_object_is_measured_where_the_truth_shows_it_within_the_frame():
    labels = np.zeros((60, 60), int)
    labels[20:32, 20:34], labels[50:, 5:25], labels[5:8, 5:8], labels[40:50, 40:52] = 1, 2, 3, 4
    truth = np.where((labels > 0) & (labels != 4), 0.2, 0.7)
    objects = cases.segmentable(truth, labels)
    assert len(objects) == 1 and np.array_equal(objects[0], labels == 1), "the others: cut, tiny, and not to be seen"


def test_a_lead_only_on_our_own_phantoms_is_reported():
    def rows(ssim, repeat):
        sets = {"simulated": (0.9, 0.01), "natural": (ssim, repeat)}
        ours = [{"set": s, "method": "ours, a", "ssim": a, "repeat": b} for s, (a, b) in sets.items()]
        return ours + [{"set": s, "method": m, "ssim": 0.8, "repeat": 0.02} for s in sets for m in ("nlm", "input")]

    (line,) = report.home_ground(rows(0.7, 0.01), "ours")
    assert "own phantoms only" in line and "SSIM" in line and "0.900" in line
    assert "*nlm* is (0.800, *ours, a* 0.700)" in line
    assert not report.home_ground(rows(0.85, 0.01), "ours")
    assert "**0.900**" in report.table(rows(0.7, 0.01), "simulated") and "**0.8" not in report.table([], "simulated")


def test_missing_matplotlib_is_reported_before_anything_is_measured(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"speckle2self\[bench\]"):
        quality.run(tmp_path / "out")
    assert not (tmp_path / "out").exists()
