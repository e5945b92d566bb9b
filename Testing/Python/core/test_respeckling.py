"""Recordings speckled again over their own anatomy: the truth is exact, the scanner is like theirs, and a run is judged
by the error that is known."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from Speckle2SelfLib import checkpoint, config, library, recipes, respeckling, runs
from Speckle2SelfLib.config import Job, ModelConfig, TrainingConfig
from Speckle2SelfLib.dataset import Cine, prepare_cine
from Speckle2SelfLib.network import build
from Speckle2SelfLib.respeckling import despeckled, draw_recorded, find_scanners, respeckle, speckle_statistics
from Speckle2SelfLib.simulation import SimulationConfig, simulate, simulate_recorded
from Speckle2SelfLib.system import Cancelled, InputError
from Speckle2SelfLib.training import Training

MODEL = ModelConfig(width=4, grain=recipes.FAST_GRAIN)
CONFIG = TrainingConfig("respeckle", steps=4, batch=2, crop=32, simulated=8, share=0.6)
IMAGE = np.linspace(0.2, 0.9, 64, dtype=np.float32)[:, None] * np.ones(48, np.float32)


@pytest.fixture(scope="module")
def cine():
    made = simulate(SimulationConfig((96, 80), 14, (1.3, 1.3), "organ"), np.random.default_rng(0)).frames
    return prepare_cine(made, None, MODEL)


@pytest.fixture(autouse=True)
def few_trials(monkeypatch):
    monkeypatch.setattr(recipes, "TRIALS", 12)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build(MODEL).eval()


def generators(*seeds):
    return [np.random.default_rng(seed) for seed in seeds]


def test_a_piece_of_a_despeckled_frame_becomes_the_anatomy():
    for seed in range(6):
        anatomy = draw_recorded([IMAGE], (40, 56), *generators(seed, 1))
        assert anatomy.decibels.shape == (40, 56) and np.isfinite(anatomy.decibels).all()
        rows = np.median(anatomy.decibels, axis=1)
        slopes = np.sign(np.diff(rows[2:-2]))
        assert abs(slopes.mean()) > 0.8, "it rises or, mirrored, falls as the image does"
        assert 3 < np.ptp(rows) < 75


def test_the_truth_is_what_the_mean_of_many_draws_tends_to(cine):
    made = respeckle([cine], [[IMAGE]], 3, 48, np.random.default_rng(2), draws=80)
    frames, truth = (x.reshape(3, 80, 48, 48) for x in (made.frames, made.truth))
    assert torch.equal(truth[:, 0], truth[:, -1]) and not torch.equal(frames[:, 0], frames[:, 1])
    error = (frames.mean(1) - truth[:, 0]).abs().mean((-1, -2))
    assert (error < 0.25 * frames.std(1).mean((-1, -2))).all()


def test_a_scanner_is_the_same_whatever_it_images():
    images, ends = [[IMAGE], [IMAGE.T.copy(), IMAGE**2]], []
    for number, some in enumerate([*images, None]):
        rng, scanner = generators(number, 7)
        draw = partial(draw_recorded, some) if some else None
        simulate_recorded((48, 48), (1.2, 1.2), "linear", rng, "natural", draw, scanner=scanner)
        ends.append(scanner.bit_generator.state)
    assert ends[0] == ends[1] == ends[2]


def test_the_scanners_that_are_found_are_like_that_of_the_recording(cine, network):
    images, found = despeckled([cine], network), []
    scanners = find_scanners([cine], images, 48, network, np.random.default_rng(0), trials=40, kept=5)[0]
    target = speckle_statistics(cine.frames[:8], network)
    for seeds in (scanners, range(100, 140)):
        made = respeckle([cine], images, 40, 48, np.random.default_rng(1), scanners=[list(seeds)])
        each = [speckle_statistics(frame[None], network) for frame in made.frames]
        found.append(np.nanmean((np.array(each) - target) ** 2))
    assert len(set(scanners)) == 5 and found[0] < 0.8 * found[1]


def test_a_network_of_several_recordings_finds_scanners_for_each(cine, network):
    brighter = replace(cine, frames=cine.frames.clamp(0).sqrt(), grain=(1.4, 0.8))
    images = despeckled([cine, brighter], network)
    scanners = find_scanners([cine, brighter], images, 48, network, np.random.default_rng(0), trials=30, kept=3)
    assert len(scanners) == 2 and all(len(set(some)) == 3 for some in scanners) and scanners[0] != scanners[1]


def test_only_frames_of_known_truth_are_trained_on_and_others_are_held_out(cine):
    held_out = replace(cine, frames=cine.frames[-2:])
    training = Training([cine], CONFIG, MODEL, held_out=[held_out])
    assert training.recorded == [] and len(training.simulated.frames) == 8
    recorded, own, world = training.held_out
    assert recorded is held_out and (own.figure, world.figure, own.draws) == ("rms", "world", 2)
    assert len(own.frames) == 2 * len(world.frames)
    for apart in (own, world):
        assert not any((apart.frames[:, None] == training.simulated.frames[None]).flatten(2).all(-1).any(1))
    assert set(next(training.run()).terms) == {"truth", "slopes"}
    figures, picture = training.validate()
    assert {"rms", "world", "repeat", "structure"} <= set(figures) and picture is not None
    assert figures["repeat"] > 0 and "held-out lattice" not in figures


def test_without_anatomies_there_is_nothing_to_train_on(cine):
    with pytest.raises(InputError, match="nothing to train on"):
        Training([cine], replace(CONFIG, simulated=0), MODEL)


@pytest.mark.parametrize("frames", [
    np.random.default_rng(0).random((1, 40, 300)),  # a single frame, flat
    np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), np.uint8),  # color
    np.zeros((2, 64, 64)) + np.eye(64),  # nothing but a line
    np.where(np.indices((64, 64)).sum(0) % 16 < 8, 255, 0)[None].astype(np.uint8),  # graphics, black and white
])  # fmt: skip
def test_whatever_is_recorded_trains_to_finite_errors(frames, network):
    odd = prepare_cine(frames, None, MODEL)
    training = Training([odd], CONFIG, MODEL, network, held_out=[odd])
    assert len(list(training.run())) == 4
    assert all(np.isfinite(value) for value in training.validate()[0].values())


@pytest.mark.parametrize("grain", [(0.5, 0.5), (16.0, 16.0)])
def test_a_grain_that_is_measured_wrongly_is_no_error(cine, grain):
    training = Training([replace(cine, grain=grain)], CONFIG, MODEL)
    assert training.simulated.frames.isfinite().all() and list(training.run())


def test_of_a_long_recording_some_frames_serve(tmp_path, small_crops):
    np.save(tmp_path / "long.npy", np.random.default_rng(0).integers(0, 255, (400, 40, 40), np.uint8))
    job = Job(str(tmp_path / "m"), (str(tmp_path / "long.npy"),), preset="adapt", estimate=True, simulated=4,
              steps=2, batch=2, device="cpu", region="none")  # fmt: skip
    lines = []
    runs.run(job, lines.append)
    assert 40 <= lines[-1]["estimate"]["frames"] + lines[-1]["estimate"]["held_out"] <= recipes.MOST_FRAMES
    assert len(despeckled([Cine(torch.rand(100, 1, 16, 16))], build(MODEL).eval())[0]) == respeckling.FRAMES


@pytest.fixture
def folder(tmp_path, monkeypatch, small_crops):
    """A cine, and a model to start from that is good, in the current folder."""
    monkeypatch.chdir(tmp_path)
    frames = simulate(SimulationConfig((64, 64), 24, (1.3, 1.3), "organ"), np.random.default_rng(0)).frames
    np.save("cine.npy", np.round(frames * 255).astype(np.uint8))
    checkpoint.save("start.model", MODEL, build(MODEL), {})
    quick = replace(config.PRESETS["adapt"], interval=2, simulated=6, batch=2)
    monkeypatch.setitem(config.PRESETS, "adapt", quick)
    return tmp_path


def job(**changes):
    given = {"inputs": ["cine.npy"], "output": "m.model", "init": "start.model", "preset": "adapt", "steps": 6}
    return Job(**(given | {"device": "cpu", "region": "none", "report": 1} | changes))


def test_a_run_says_what_it_estimated_and_what_was_gained(folder):
    lines = []
    model = runs.run(job(init="default"), lines.append)
    messages = [line["message"] for line in lines if "message" in line]
    assert "Speckle size" in messages[0] and model.card["figures_at_start"]["rms"] > 0
    assert messages[-1].startswith(("The error on held-out simulated frames of your recordings", "Training did not"))


def test_a_run_that_makes_the_model_worse_says_so_and_keeps_the_start(folder, monkeypatch):
    monkeypatch.setitem(config.PRESETS, "adapt", replace(config.PRESETS["adapt"], learning_rate=0.01, averaging=0))
    monkeypatch.setattr(recipes, "WARM_UP", 1)
    lines = []
    kept = runs.run(job(init="default"), lines.append)
    start = library.load_model("default").network.state_dict()
    assert all(torch.equal(tensor, start[name]) for name, tensor in kept.network.state_dict().items())
    assert kept.card["steps"] == 0 and not library.worse_than_start(kept.card)
    assert "Training did not improve the model (rms" in lines[-2]["message"]
    assert lines[-1]["worse"].startswith("rms 0.")


@pytest.mark.parametrize("start", ["start.model", None])
def test_a_stopped_run_simulates_the_same_frames_again(folder, start):
    """They depend on the network that it started from, or on the bundled one where it starts from nothing."""
    given = {"init": start} if start else {"init": None, "width": 4, "preset": "standard", "simulated": 6, "batch": 2}
    whole = runs.run(job(output="whole.model", **given))
    asked = iter(range(1, 1000))
    lines = []
    with pytest.raises(Cancelled):
        runs.run(job(**given), lines.append, lambda: "rate" in lines[-1] or not next(asked))
    Path("start.model").unlink()
    parts = runs.run(job(resume=True, **given))
    assert all(torch.equal(x, parts.network.state_dict()[n]) for n, x in whole.network.state_dict().items())


def test_what_was_gained_is_said_in_words():
    card = {"figures_at_start": {"rms": 0.05, "world": 0.1}, "figures": {"rms": 0.046, "world": 0.1}}
    assert library.improvement(card) == "The error on held-out simulated frames of your recordings fell by 8.0%."
    back = {"figures_at_start": card["figures"], "figures": card["figures_at_start"]}
    assert "rose by 8.7%" in library.improvement(back)
    assert library.improvement({"figures": card["figures"]}) == ""
