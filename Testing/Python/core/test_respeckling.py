"""Recordings with their own speckle drawn again over their own anatomy: the truth is exact, and a run is judged by the
error that is known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import skew
from torch import nn

from Speckle2SelfLib import checkpoint, config, library, recipes, respeckling, runs
from Speckle2SelfLib.config import Job, ModelConfig, TrainingConfig
from Speckle2SelfLib.dataset import Cine, prepare_cine
from Speckle2SelfLib.network import build
from Speckle2SelfLib.recorded_speckle import measure
from Speckle2SelfLib.respeckling import (
    OFFSET,
    as_bright,
    despeckle_anatomies,
    draw_pairs,
    draw_piece,
    find_pairs,
    respeckle,
)
from Speckle2SelfLib.simulation import SimulationConfig, simulate
from Speckle2SelfLib.system import Cancelled, InputError
from Speckle2SelfLib.training import Training

MODEL = ModelConfig(width=4, grain=recipes.FAST_GRAIN)
CONFIG = TrainingConfig("respeckle", steps=4, batch=2, crop=32, simulated=8, share=0.6)
IMAGE = np.linspace(0.2, 0.9, 64, dtype=np.float32)[:, None] * np.ones(48, np.float32)


@pytest.fixture(scope="module")
def cine():
    made = simulate(SimulationConfig((96, 80), 14, (1.3, 1.3), "organ"), np.random.default_rng(0)).frames
    return prepare_cine(made, None, MODEL)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build(MODEL).eval()


@pytest.fixture(scope="module")
def recording():
    """Return frames (6, 120, 150) whose speckle, skewed and wider than high, is stronger where they are brighter; and
    the same without speckle."""
    rng = np.random.default_rng(3)
    clean = np.broadcast_to(np.linspace(0.2, 0.8, 150), (6, 120, 150))
    field = gaussian_filter(rng.standard_normal((2, *clean.shape)), (0, 0, 0.8, 1.6))
    power = (field**2).sum(0)
    return clean + 0.3 * clean * (power / power.mean() - 1), clean


def correlations(x):
    """Return the correlations of neighboring rows and of neighboring columns of (..., H, W)."""
    return [np.corrcoef(x[..., 1:, :].ravel(), x[..., :-1, :].ravel())[0, 1],
            np.corrcoef(x[..., 1:].ravel(), x[..., :-1].ravel())[0, 1]]  # fmt: skip


def test_drawn_speckle_has_the_measured_statistics(recording):
    frames, clean = recording
    speckle, rng = measure(frames, clean, np.ones((120, 150), bool)), np.random.default_rng(4)
    drawn = np.stack([speckle.draw(image, rng) for image in clean]) - clean
    measured = frames - clean
    for columns in (slice(10, 40), slice(60, 90), slice(110, 140)):
        one, other = measured[..., columns], drawn[..., columns]
        assert other.std() == pytest.approx(one.std(), rel=0.1)
        assert skew(other.ravel()) == pytest.approx(skew(one.ravel()), rel=0.25)
    assert correlations(drawn / clean) == pytest.approx(correlations(measured / clean), abs=0.06)


def test_speckle_is_measured_inside_the_region_only(recording):
    frames, clean = (x.copy() for x in recording)
    inside = np.ones((120, 150), bool)
    inside[:40] = False
    whole = measure(frames, clean, inside)
    frames[:, :40] = clean[:, :40]
    assert np.array_equal(measure(frames, clean, inside).quantiles, whole.quantiles)


def test_the_mean_of_many_draws_tends_to_the_image(recording):
    speckle, rng = measure(*recording, np.ones((120, 150), bool)), np.random.default_rng(5)
    image = np.full((24, 32), 0.5, np.float32)
    draws = np.stack([speckle.draw(image, rng) for _ in range(400)])
    assert draws.dtype == np.float32 and draws.shape == (400, 24, 32)
    assert abs(draws.mean(0) - 0.5).max() < 5 * draws.std() / 20 and abs(draws.mean() - 0.5) < 0.005


def test_a_piece_of_a_despeckled_frame_becomes_the_truth():
    for seed in range(6):
        piece = draw_piece(IMAGE[None], (40, 56), np.random.default_rng(seed))
        assert piece.shape == (40, 56) and piece.min() >= 0
        slopes = np.sign(np.diff(np.median(piece, axis=1)[2:-2]))
        assert abs(slopes.mean()) > 0.8, "it rises or, mirrored, falls as the image does"


def test_the_truth_is_the_limit_of_the_mean_of_many_draws(cine, network):
    made = respeckle(despeckle_anatomies([cine], network), 3, 48, np.random.default_rng(2), draws=80)
    frames, truth = (x.reshape(3, 80, 48, 48) for x in (made.frames, made.truth))
    assert torch.equal(truth[:, 0], truth[:, -1]) and not torch.equal(frames[:, 0], frames[:, 1])
    error = (frames.mean(1) - truth[:, 0]).abs().mean((-1, -2))
    assert (error < 0.25 * frames.std(1).mean((-1, -2))).all()


def test_each_recording_keeps_its_own_speckle(cine, network):
    fainter = replace(cine, frames=0.5 + (cine.frames - 0.5) / 4)
    anatomies = despeckle_anatomies([cine, fainter], network)
    spreads = [np.ptp(anatomy.speckle.quantiles, axis=1).max() for anatomy in anatomies]
    assert spreads[1] < 0.5 * spreads[0]


@pytest.fixture(scope="module")
def still():
    """Return a cine of one anatomy, each frame with speckle of its own, at the bundled model's grain; and that
    model."""
    made = simulate(SimulationConfig((160, 160), 4, (1.3, 1.6), "layers"), np.random.default_rng(6)).frames
    model = library.load_model("default")
    return prepare_cine(made, np.ones((160, 160), bool), model.config), model.network


@pytest.mark.parametrize("change, found", [
    (lambda frames: frames, [0, 1, 2]),
    (lambda frames: torch.stack([frames[0].roll(n // 2, -1) for n in range(4)]), []),
    (lambda frames: torch.stack([frame.roll(12 * n, -2) for n, frame in enumerate(frames)]), []),
    (lambda frames: torch.stack([frames[0], frames[1], 0 * frames[0], 0 * frames[0]]), [0]),
], ids=["independent speckle", "the same speckle", "moving anatomy", "black frames"])  # fmt: skip
def test_pairs_are_frames_of_one_anatomy_below_independent_speckle(still, change, found):
    cine, network = still
    (anatomy,) = despeckle_anatomies([cine], network)
    assert find_pairs(replace(cine, frames=change(cine.frames)), anatomy.speckle, network) == found


def test_each_frame_of_a_pair_is_the_target_of_the_other(cine):
    made = draw_pairs([(cine, 3)], 12, 48, np.random.default_rng(0))
    frames, targets = (x.flatten(1) for x in (made.frames, made.truth))
    whole = cine.frames[3:5, 0].unfold(1, 48, 1).unfold(2, 48, 1).flatten(3).flatten(1, 2)  # (2, places, pixels)
    for frame, target in zip(frames, targets, strict=True):
        of, place = torch.nonzero((whole == frame).all(-1))[0]
        assert torch.equal(whole[1 - of, place], target)


def test_a_still_cine_trains_on_its_pairs_with_a_message(still):
    cine, network = still
    training = Training([cine], replace(CONFIG, crop=128, simulated=8), library.load_model("default").config, network)
    assert len(training.simulated.frames) == 12
    assert "In 3 of 3 pairs of neighboring frames the anatomy stands still" in training.recipe.message


class Brighter(nn.Module):
    """Return frames that are brighter by a constant."""

    margin, multiple = 0, 2

    def __init__(self, offset):
        super().__init__()
        self.offset = nn.Parameter(torch.tensor(offset))

    def forward(self, x):
        return x + self.offset


@pytest.mark.parametrize(("offset", "change"), [(0.002, 0.002), (-0.002, -0.002), (0.1, OFFSET), (-0.1, -OFFSET)])
def test_training_keeps_the_brightness_of_the_initial_model_unless_it_is_far_off(offset, change):
    frames = torch.rand(3, 1, 32, 48, generator=torch.Generator().manual_seed(0))
    changed = as_bright(Cine(frames, truth=frames), Brighter(offset))
    torch.testing.assert_close(changed.truth, frames + change)
    assert torch.equal(changed.frames, frames)


def test_the_spread_of_the_speckle_is_that_of_its_draws(recording):
    frames, clean = recording
    speckle, rng = measure(frames, clean, np.ones((120, 150), bool)), np.random.default_rng(5)
    levels = speckle.levels[[0, len(speckle.levels) // 2, -1]]
    drawn = [speckle.draw(np.full((200, 200), level), rng).std() for level in levels]
    assert speckle.spread == pytest.approx(drawn, rel=0.1) and speckle.spread[0] < speckle.spread[2] / 2


def test_the_message_of_a_run_names_the_speckle_that_it_measured(cine, network):
    training = Training([cine], CONFIG, MODEL, network)
    grains = "{:.1f} x {:.1f} pixels (down x across), of ".format(*cine.recorded_grain)
    assert training.recipe.message.startswith(f"Speckle measured: {grains}")


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
    assert figures["repeat"] > 0


def test_a_run_is_judged_by_the_held_out_anatomy_where_there_is_one(cine, monkeypatch):
    asked = []
    monkeypatch.setattr(
        recipes, "respeckle", lambda *given, **more: asked.append(given[0]) or respeckle(*given, **more)
    )
    held_out = replace(cine, frames=cine.frames[-2:])
    Training([cine], CONFIG, MODEL, held_out=[held_out])
    Training([cine], CONFIG, MODEL, held_out=[cine])
    assert [len(anatomy.images) for (anatomy,) in asked] == [14, 2, 14, 14], "trained on, judged by, in turn"
    assert asked[2][0] is asked[3][0], "despeckled once"


def test_without_anatomies_there_is_nothing_to_train_on(cine):
    with pytest.raises(InputError, match="nothing to train on"):
        Training([cine], replace(CONFIG, simulated=0), MODEL)


@pytest.mark.parametrize("frames", [
    np.random.default_rng(0).random((1, 40, 300)),  # a single frame, flat
    np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), np.uint8),  # color
    np.zeros((2, 64, 64)) + np.eye(64),  # nothing but a line
    np.where(np.indices((64, 64)).sum(0) % 16 < 8, 255, 0)[None].astype(np.uint8),  # graphics, black and white
])  # fmt: skip
def test_every_odd_recording_trains_to_finite_errors(frames, network):
    odd = prepare_cine(frames, None, MODEL)
    training = Training([odd], CONFIG, MODEL, network, held_out=[odd])
    assert len(list(training.run())) == 4
    assert all(np.isfinite(value) for value in training.validate()[0].values())


@pytest.mark.parametrize("grain", [(0.5, 0.5), (16.0, 16.0)])
def test_a_grain_that_is_measured_wrongly_is_not_an_error(cine, grain):
    training = Training([replace(cine, grain=grain)], CONFIG, MODEL)
    assert training.simulated.frames.isfinite().all() and list(training.run())


def test_only_some_frames_of_a_long_recording_are_used(tmp_path, small_crops):
    np.save(tmp_path / "long.npy", np.random.default_rng(0).integers(0, 255, (400, 40, 40), np.uint8))
    job = Job(str(tmp_path / "m"), (str(tmp_path / "long.npy"),), preset="adapt", estimate=True, simulated=4,
              steps=2, batch=2, device="cpu", region="none")  # fmt: skip
    lines = []
    runs.run(job, lines.append)
    assert 40 <= lines[-1]["estimate"]["frames"] + lines[-1]["estimate"]["held_out"] <= recipes.MOST_FRAMES
    (anatomy,) = despeckle_anatomies([Cine(torch.rand(100, 1, 16, 16))], build(MODEL).eval())
    assert len(anatomy.images) == respeckling.FRAMES


@pytest.fixture
def folder(tmp_path, monkeypatch, small_crops):
    """Return a cine, and a model to start from that is good, in the current folder."""
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


def test_a_run_reports_its_estimate_and_its_gain(folder):
    lines = []
    model = runs.run(job(init="default"), lines.append)
    messages = [line["message"] for line in lines if "message" in line]
    assert messages[0].startswith("Speckle measured: ") and model.card["figures_at_start"]["rms"] > 0
    assert messages[-1].startswith(("The error on held-out simulated frames of your recordings", "Training did not"))


def test_a_run_that_makes_the_model_worse_keeps_the_start_with_a_message(folder, monkeypatch):
    monkeypatch.setitem(config.PRESETS, "adapt", replace(config.PRESETS["adapt"], learning_rate=0.01, averaging=0))
    monkeypatch.setattr(recipes, "WARM_UP", 1)
    lines = []
    kept = runs.run(job(init="default"), lines.append)
    start = library.load_model("default").network.state_dict()
    assert all(torch.equal(tensor, start[name]) for name, tensor in kept.network.state_dict().items())
    assert kept.card["steps"] == 0 and not library.worse_than_start(kept.card)
    assert "Training did not improve the model (error on your recordings" in lines[-2]["message"]
    assert lines[-1]["worse"].startswith("error on your recordings 0.")


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


def test_the_gain_is_summarized_in_a_sentence():
    card = {"figures_at_start": {"rms": 0.05, "world": 0.1}, "figures": {"rms": 0.046, "world": 0.1}}
    told = library.improvement(card)
    assert "fell by 8.0%, and on other anatomies with your speckle it did not change. The true change" in told
    back = {"figures_at_start": card["figures"], "figures": card["figures_at_start"]}
    assert "rose by 8.7%" in library.improvement(back)
    same = {"figures_at_start": card["figures"], "figures": card["figures"]}
    assert library.improvement(same) == "The error on held-out simulated frames of your recordings did not change."
    assert library.improvement({"figures": card["figures"]}) == ""
