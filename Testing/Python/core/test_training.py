"""Training: it learns, it repeats itself exactly, and both recipes go through one loop."""

import re
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from Speckle2SelfLib import config as configs
from Speckle2SelfLib import devices, recipes, runs, validation
from Speckle2SelfLib.augmentation import Augmentation, augment
from Speckle2SelfLib.checkpoint import Model
from Speckle2SelfLib.config import Job, ModelConfig, TrainingConfig
from Speckle2SelfLib.dataset import Cine, prepare_cine, simulate_cines
from Speckle2SelfLib.despeckling import despeckle
from Speckle2SelfLib.grain import estimate_grain
from Speckle2SelfLib.grey import evenly_spaced
from Speckle2SelfLib.library import load_model
from Speckle2SelfLib.loss import published_loss
from Speckle2SelfLib.network import GREY, MOST, UNSURE, FrameLearner, build
from Speckle2SelfLib.perturbation import published_views
from Speckle2SelfLib.recipes import RECIPES, Recipe
from Speckle2SelfLib.simulation import SimulationConfig, simulate
from Speckle2SelfLib.system import Cancelled, InputError
from Speckle2SelfLib.training import Training
from Speckle2SelfLib.validation import fit_uncertainty, score

FAST = ModelConfig(width=8, grain=(0.75, 1.7))
CONFIG = TrainingConfig(steps=6, batch=2, crop=32, simulated=4)
pytestmark = pytest.mark.usefixtures("small_crops")


@pytest.fixture(scope="module")
def cine():
    simulated = simulate(SimulationConfig((96, 96), 8, (1.3, 1.3), "flat", roughness=np.inf), np.random.default_rng(0))
    return simulated.frames, simulated.truth


def finish(training):
    return list(training.run()), training.network


def test_held_out_simulated_frames_were_not_trained_on():
    for seed in (0, 5):
        training = Training([], TrainingConfig(steps=8, batch=4, crop=32, simulated=8, seed=seed), FAST)
        (held,) = training.held_out
        assert not any((held.frames[:, None] == training.simulated.frames[None]).flatten(2).all(-1).any(1))


def test_a_head_for_the_uncertainty_learns_without_changing_the_grey_values():
    config = TrainingConfig(steps=90, batch=4, crop=32, simulated=32, averaging=0)
    plain, told = (Training([], config, replace(FAST, deep=1, uncertainty=u)) for u in (False, True))
    reports = [list(training.run()) for training in (plain, told)]
    weights = told.network.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in plain.network.state_dict().items())
    assert "uncertainty" not in reports[0][-1].terms
    first, last = (np.mean([r.terms["uncertainty"] for r in some]) for some in (reports[1][:5], reports[1][-5:]))
    assert last < first
    figures, _ = told.validate()
    assert np.isfinite(figures["held-out uncertainty"])
    assert score(figures) == score({name: value for name, value in figures.items() if name != "held-out uncertainty"})


def test_estimated_deviations_are_fitted_to_held_out_simulated_frames():
    network = build(ModelConfig(width=8, uncertainty=True)).eval()
    torch.nn.init.zeros_(network.head.weight)
    torch.nn.init.constant_(network.head.bias, -GREY)  # black everywhere
    frames = torch.rand(3, 1, 40, 48)
    cine = Cine(frames, truth=torch.full_like(frames, 0.06))
    assert fit_uncertainty(network, [Cine(frames), cine]) == pytest.approx(0.06 / UNSURE, rel=1e-3)
    assert fit_uncertainty(network, [Cine(frames)]) == 1


def test_a_run_makes_a_model_that_estimates_its_uncertainty_also_when_adapted(tmp_path, small_crops):
    given = {"preset": "default", "simulated": 2, "steps": 2, "batch": 2, "device": "cpu"}
    first = runs.run(Job(str(tmp_path / "first"), width=4, deep=1, uncertainty=True, **given))
    assert (first.config.width, first.config.deep, first.config.uncertainty) == (4, 1, True)
    assert first.config.uncertainty_scale == pytest.approx(fit_uncertainty(first.network, runs_held_out(given)))
    again = runs.run(Job(str(tmp_path / "again"), init=str(tmp_path / "first"), **given))
    assert again.config == replace(first.config, uncertainty_scale=again.config.uncertainty_scale)
    for shape in ({"deep": 1}, {"uncertainty": True}):
        with pytest.raises(InputError, match="new network of ours"):
            runs.run(Job(str(tmp_path / "other"), init=str(tmp_path / "first"), **shape, **given))


def runs_held_out(given):
    """Return the frames that a run of these settings holds out."""
    config = Job("m", **given).training
    return Training([], config, ModelConfig(width=4, grain=recipes.FAST_GRAIN)).held_out


def test_the_averaged_weights_of_a_short_run_are_the_mean_of_its_steps_and_are_judged():
    """The network starts from random weights, which have hardly any effect after 30 steps."""
    config = TrainingConfig(steps=30, batch=4, crop=32, simulated=32, averaging=0.995)
    training = Training([], config, FAST)
    before = [parameter.clone() for parameter in training.network.parameters()]
    reports = list(training.run())
    moved = sum(((p - q) ** 2).sum() for p, q in zip(training.network.parameters(), before, strict=True))
    whole = sum(((p - q) ** 2).sum() for p, q in zip(training.learner.network.parameters(), before, strict=True))
    assert len(reports) == 30 and moved > 0.5 * whole
    figures, _ = training.validate()
    with torch.no_grad():
        for parameter in training.learner.network.parameters():
            parameter.zero_()
    assert training.validate()[0] == figures and training.learner.training


def test_the_result_of_an_adaptation_has_a_share_of_the_initial_weights(cine):
    torch.manual_seed(0)
    start = build(FAST).eval()
    before = [parameter.clone() for parameter in start.parameters()]
    config = TrainingConfig(steps=3, batch=2, crop=32, simulated=4, averaging=0.0, start_share=0.25)
    training = Training([prepare_cine(cine[0], None, FAST)], config, FAST, start)
    list(training.run())
    parts = zip(training.network.parameters(), training.learner.network.parameters(), before, strict=True)
    for result, trained, initial in parts:
        assert torch.allclose(result, 0.75 * trained + 0.25 * initial, atol=1e-6)
    assert any(not torch.equal(a, b) for a, b in zip(training.network.parameters(), before, strict=True))


def test_the_published_recipe_judges_the_averaged_network_that_is_kept(cine):
    model = ModelConfig("published", normalisation="frame")
    recording = prepare_cine(cine[0], None, model)
    config = TrainingConfig("published", steps=3, batch=2, crop=32, averaging=0.9)
    training = Training([recording], config, model, held_out=[recording])
    _, network = finish(training)
    figures, _ = training.validate()
    frames = recording.frames[evenly_spaced(len(recording.frames), validation.FRAMES)]
    with torch.no_grad():
        views = [published_views(frame[None]) for frame in frames]
        terms = [published_loss(network(view), view) for view in views]
    for name in ("reconstruction", "consistency"):
        assert figures[f"held-out {name}"] == pytest.approx(np.mean([term[name].item() for term in terms]), rel=1e-4)


def test_training_does_not_change_the_callers_random_numbers():
    before = torch.get_rng_state()
    Training([], TrainingConfig(steps=1, batch=1, crop=32, simulated=1, seed=3), FAST)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_rotated_square_remains_a_square_in_frames_that_are_not_square():
    image = torch.zeros(1, 1, 100, 200)
    image[..., 40:60, 90:110] = 1
    turn = torch.tensor([[[0.866, -0.5, 0], [0.5, 0.866, 0]]])
    where = augment(image, Augmentation(turn))[0, 0].nonzero().double()
    widths = torch.linalg.eigvalsh(torch.cov(where.T)).sqrt()
    assert widths[1] < 1.05 * widths[0]


@pytest.mark.parametrize("recipe", ["respeckle", "published"])
def test_a_run_continues_as_if_it_had_not_been_stopped_or_validated(cine, recipe):
    model = ModelConfig("published", normalisation="frame") if recipe == "published" else FAST
    of_recipe = {"averaging": 0.0} if recipe == "published" else {"averaging": 0.99, "simulated": 4}
    config = TrainingConfig(recipe, steps=4, batch=2, crop=32, **of_recipe)
    recording = prepare_cine(cine[0], None, model)
    made = []
    for stopped in (False, True):
        training = Training([recording], config, model, held_out=[recording])
        training.validate()
        for report in training.run():
            if stopped and report.step == 2:
                state = training.state()
                training = Training([recording], config, model, held_out=[recording])
                training.restore(*state)
                made.append(finish(training)[1])
                break
        else:
            made.append(training.network)
    assert all(torch.equal(one, two) for one, two in zip(*(m.state_dict().values() for m in made), strict=True))


def test_training_on_one_recording_reduces_its_speckle(cine):
    """Neither a clean image nor a second recording is used: the truth only judges."""
    frames, truth = cine
    model = replace(FAST, width=32)
    config = TrainingConfig(steps=150, batch=4, crop=64, averaging=0.9, simulated=60, share=1.0)
    teacher = load_model("default").network
    reports, network = finish(Training([prepare_cine(frames, None, model)], config, model, teacher=teacher))
    assert set(reports[0].terms) == {"truth", "slopes"}
    result = despeckle(frames, Model(model, network), region=None)
    before, after = ((x - truth).std() for x in (frames, result))
    assert after < 0.6 * before


@pytest.mark.parametrize("recipe", ["respeckle", "published"])
def test_the_same_seed_trains_the_same_weights(cine, recipe):
    model, simulated = (FAST, 4) if recipe == "respeckle" else (ModelConfig("published", normalisation="frame"), 0)
    config = TrainingConfig(recipe=recipe, steps=2, batch=2, crop=32, simulated=simulated, averaging=0.0)
    networks = [finish(Training([prepare_cine(cine[0], None, model)], config, model))[1] for _ in range(2)]
    for one, two in zip(*(network.state_dict().values() for network in networks), strict=True):
        assert torch.equal(one, two)


def test_the_test_of_the_precision_draws_no_random_numbers():
    """Otherwise the first run of a process would begin with other weights than a second one with the same seed."""
    before = torch.get_rng_state()
    devices.choose_precision.cache_clear()
    devices.choose_precision(torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)


def test_simulated_frames_include_their_truth(cine):
    config = TrainingConfig(steps=2, batch=2, crop=32, simulated=3, share=1.0)
    reports, _ = finish(Training([], config, FAST))
    assert set(reports[-1].terms) == {"truth", "slopes"}
    assert reports[-1].step == reports[-1].steps == 2


@pytest.mark.parametrize("grain", [(0.9, 1.6), (1.5, 1.1)])
def test_simulated_frames_have_the_recordings_grain(grain):
    cine = simulate_cines(8, 96, np.random.default_rng(0), [grain])
    found = np.median([estimate_grain(frames.numpy()) for frames in cine.frames], axis=0)
    assert found == pytest.approx(grain, rel=0.25)


def test_anatomies_do_not_depend_on_the_number_of_threads():
    threads, made = torch.get_num_threads(), []
    for count in (1, 3):
        torch.set_num_threads(count)
        try:
            made.append(simulate_cines(6, 32, np.random.default_rng(4)))
        finally:
            torch.set_num_threads(threads)
    for one, three in zip(made[0].frames, made[1].frames, strict=True):
        assert torch.allclose(one, three, atol=0.006), "a grey level of 255, where rounding tips"
    assert not torch.allclose(made[0].frames[0], made[0].frames[1], atol=0.1)


def test_training_starts_from_a_given_network_and_leaves_it_trained(cine):
    training = Training([prepare_cine(cine[0], None, FAST)], CONFIG, FAST)
    before = {name: tensor.clone() for name, tensor in training.network.state_dict().items()}
    _, network = finish(training)
    assert any(not torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert not network.training


def test_a_nan_loss_ends_training_with_an_explanation(cine):
    broken = Cine(torch.full((1, 1, 64, 64), float("nan")))
    with pytest.raises(InputError, match="became NaN"):
        finish(Training([broken], TrainingConfig("published", 2, 2, 32), ModelConfig("published")))


def test_nothing_to_train_on_is_refused():
    with pytest.raises(InputError, match="nothing to train on"):
        Training([], TrainingConfig(), FAST)
    with pytest.raises(InputError, match="Nothing can be learned"):
        prepare_cine(np.zeros((3, 64, 64)), None, FAST)


def test_small_frames_of_a_coarse_grain_are_refused():
    """At the model's grain there are too few pixels."""
    made = simulate(SimulationConfig((160, 160), 4, (6.0, 6.0), "flat"), np.random.default_rng(0)).frames
    assert min(prepare_cine(made, None, FAST).frames.shape[-2:]) >= 16
    with pytest.raises(InputError, match="too small for their speckle size"):
        prepare_cine(made[:, :40, :40], None, FAST)


@pytest.mark.parametrize("model", [FAST, ModelConfig("published", normalisation="frame")])
def test_nan_values_are_filled(cine, model):
    frames = cine[0].copy()
    frames[0, 10:20], frames[1, 3, 3] = np.nan, np.inf
    prepared, whole = (prepare_cine(each, None, model).frames for each in (frames, cine[0]))
    assert prepared.isfinite().all() and torch.allclose(prepared[2:], whole[2:], atol=0.01)


def test_frames_are_cut_to_their_region_and_resampled_to_the_models_grain():
    frames = simulate(
        SimulationConfig((96, 128), 2, (1.5, 6.0), "flat", roughness=np.inf), np.random.default_rng(0)
    ).frames
    region = np.zeros((96, 128), bool)
    region[10:90, 20:120] = True
    cine = prepare_cine(frames, region, FAST)
    assert cine.frames.shape[:3] == (2, 1, 80), "the axial grain is within the model's bounds"
    assert 30 <= cine.frames.shape[3] <= 50 and cine.grain[1] == pytest.approx(1.7, rel=0.02)


@pytest.mark.parametrize("recipe", ["respeckle", "published"])
def test_one_drawn_augmentation_always_has_the_same_result(recipe):
    x = torch.rand(5, 1, 24, 24)
    drawn = RECIPES[recipe](TrainingConfig(recipe)).draw_augmentation(np.random.default_rng(3), 5)
    assert torch.equal(augment(x, drawn), augment(x.clone(), drawn))
    assert augment(x, drawn).shape == x.shape
    assert not torch.equal(augment(x, drawn), x)


def test_a_sector_is_trained_on_along_its_beams_and_shown_as_recorded():
    made = simulate(SimulationConfig((150, 180), 2, (1.2, 2.4), "organ", "sector"), np.random.default_rng(1))
    cine = prepare_cine(made.frames, made.region, FAST)
    rows, columns = made.region.any(1), made.region.any(0)
    assert cine.frames.shape[-2:] == cine.resampling.size != (rows.sum(), columns.sum())
    training = Training([cine], TrainingConfig(steps=1, batch=2, simulated=2), FAST, held_out=[cine])
    _, picture = training.validate()
    inside = made.region[np.ix_(rows, columns)]
    assert picture.shape == (rows.sum(), 2 * columns.sum())
    assert not picture[:, : columns.sum()][~inside].any() and picture[:, : columns.sum()][inside].mean() > 20


def test_the_preview_of_a_model_with_uncertainty_has_a_third_part():
    config, frames = replace(FAST, uncertainty=True), np.full((2, 40, 56), 0.5, np.float32)
    cine = Cine(torch.from_numpy(frames)[:, None])
    training = Training([cine], TrainingConfig(steps=1, batch=2, simulated=2), config, held_out=[cine])
    _, picture = training.validate()
    assert picture.shape == (40, 3 * 56)
    assert np.abs(picture[:, 112:] - 255 * UNSURE / MOST).max() < 1, "what a new head estimates"


@pytest.mark.skipif(torch.cuda.is_available(), reason="test_cuda.py has the other case")
def test_where_operations_cannot_be_recorded_they_run_one_by_one(cine):
    config = TrainingConfig(steps=3, batch=2, crop=32, simulated=3, share=1.0)
    losses = []
    for replays in (True, False):
        training = Training([], config, FAST)
        training._replays = replays
        with pytest.warns(UserWarning, match="Nothing is recorded") if replays else nullcontext():
            losses.append([report.terms for report in training.run()])
    assert losses[0] == losses[1]


class FromHalfTheRows(Recipe):
    """Predicts a frame whose odd rows are blank from itself."""

    model = FAST

    def wrap(self, network):
        return FrameLearner(network)

    def views(self, batch):
        frames = augment(batch.frames, batch.augmentation).clone()
        frames[..., 1::2, :] = 0
        return (frames,)

    def loss(self, predictions, views):
        return {"error": (predictions[0] - views[0]).square().mean()}


def test_a_new_recipe_is_a_class_and_a_preset(cine, tmp_path, monkeypatch):
    """It trains, is stopped, resumed and validated as the others are, with and without simulated frames."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(recipes.RECIPES, "rows", FromHalfTheRows)
    monkeypatch.setattr(configs, "RECIPES", (*configs.RECIPES, "rows"))
    monkeypatch.setitem(configs.PRESETS, "rows", TrainingConfig("rows", steps=6, batch=2, crop=32, interval=2))
    np.save("cine.npy", np.concatenate([cine[0]] * 2))
    for simulated in (0, 2):
        given = {"inputs": ["cine.npy"], "preset": "rows", "width": 4, "simulated": simulated, "region": "none",
                 "device": "cpu", "report": 1}  # fmt: skip
        lines = []
        whole = runs.run(Job(f"whole{simulated}", **given), lines.append)
        assert {"error", "held-out error", "structure"} <= set(lines[-2])
        assert whole.config.width == 4 and whole.card["training"]["recipe"] == "rows"
        with pytest.raises(Cancelled):
            runs.run(Job(f"parts{simulated}", **given), stop=iter([False] * (simulated + 3) + [True]).__next__)
        parts = runs.run(Job(f"parts{simulated}", resume=True, **given))
        for one, two in zip(*(m.network.state_dict().values() for m in (whole, parts)), strict=True):
            assert torch.equal(one, two)


def test_every_recipe_of_the_config_is_a_class():
    assert set(RECIPES) == set(configs.RECIPES)
    assert all(RECIPES[preset.recipe].model for preset in configs.PRESETS.values())


def test_nothing_in_the_core_checks_for_a_recipe_by_name(project):
    for path in (project / "Speckle2Self" / "Speckle2SelfLib").glob("*.py"):
        asks = re.findall(r"recipe (?:==|!=|in) .*", path.read_text())
        assert not asks or path.stem in ("config", "recipes"), f"{path.name}: {asks}"


def test_a_model_without_a_grain_learns_from_frames_as_they_are_despeckled(cine):
    """Mapped to its grey values, at the size of the recording."""
    frames = np.round(cine[0] * 200 + 20).astype(np.uint8)
    prepared = prepare_cine(frames, None, ModelConfig(width=4))
    assert prepared.frames.shape == (8, 1, 96, 96) and prepared.resampling is None
    assert -0.2 < prepared.frames.min() < 0.1 and 0.9 < prepared.frames.max() < 1.3
