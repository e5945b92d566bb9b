"""Training runs: seen, stopped, killed, resumed, shared by processes, and honest about their result."""

import json
import os
import random
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from copies import Copy

from Speckle2SelfLib import checkpoint, config, recipes, runs
from Speckle2SelfLib.__main__ import main
from Speckle2SelfLib.config import Job, ModelConfig
from Speckle2SelfLib.dataset import read_cine
from Speckle2SelfLib.grain import estimate_grain
from Speckle2SelfLib.network import build
from Speckle2SelfLib.simulation import SimulationConfig, simulate
from Speckle2SelfLib.system import Cancelled, InputError
from Speckle2SelfLib.training import Training


@pytest.fixture(scope="module")
def cine():
    frames = simulate(SimulationConfig((64, 64), 24, (1.3, 1.3), "organ"), np.random.default_rng(0)).frames
    return np.round(frames * 255).astype(np.uint8)


@pytest.fixture
def folder(cine, tmp_path, monkeypatch, small_crops):
    """Return a cine of 24 frames and a small model to start from, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # for the processes started here
    np.save("Doe^Jane.npy", cine)
    model = ModelConfig(width=4, grain=(0.75, 1.7))
    torch.manual_seed(0)
    checkpoint.save("start.model", model, build(model), {})
    return tmp_path


def job(**changes):
    given = {"inputs": ["Doe^Jane.npy"], "output": "m.model", "init": "start.model", "preset": "adapt", "batch": 2}
    given |= {"simulated": 2}
    return Job(**({**given, "steps": 12, "device": "cpu", "region": "none", "report": 1} | changes))


@pytest.fixture
def short_interval(monkeypatch, small_crops):
    """Write a checkpoint after every 4 steps."""
    monkeypatch.setitem(config.PRESETS, "adapt", replace(config.PRESETS["adapt"], interval=4))


def weights(path):
    return checkpoint.load(path)[1].state_dict()


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


def last_step(lines):
    return [line["step"] for line in lines if "step" in line][-1]


def stopped(given, at=5):
    """Return a run that was stopped at a step. It also asks after each simulated anatomy."""
    asked = iter(range(1, 100))
    with pytest.raises(Cancelled):
        runs.run(given, stop=lambda: next(asked) == at + given.training.simulated)


def test_a_run_reports_its_data_losses_figures_and_model(folder, short_interval):
    lines = []
    model = runs.run(job(preview="preview.png"), lines.append)
    first, estimate, start, *steps, last = lines
    assert first["recordings"][0]["frames"] == 18 and first["held_out"] == 4 and not first["seen"]
    assert estimate["message"].startswith("Speckle measured: ")
    assert start["step"] == 0 and {"homogeneity", "holes", "structure", "held-out truth"} <= set(start)
    assert [line["step"] for line in steps if "step" in line] == list(range(1, 13))
    assert {"truth", "slopes", "rate", "seconds_left"} <= set(steps[0])
    assert steps[3]["preview"] == "preview.png" and Path("preview.png").read_bytes().startswith(b"\x89PNG")
    assert last["model"] == "m.model"
    assert sorted(path.name for path in folder.iterdir()) == ["Doe^Jane.npy", "m.model", "preview.png", "start.model"]
    assert model.card["figures"]["homogeneity"] > 0 and model.card["curve"]


def test_a_stopped_run_resumes_bit_for_bit(folder, short_interval):
    runs.run(job(output="whole.model"), lambda line: None)
    for stop_at in (5, 8):
        stopped(job(), stop_at)
        assert runs.state_path("m.model").exists()
        lines = []
        runs.run(job(resume=True), lines.append)
        assert lines[0]["from_step"] == stop_at
        assert not any("original settings" in line.get("message", "") for line in lines)
        assert same(weights("m.model"), weights("whole.model"))
        assert not runs.state_path("m.model").exists()


def test_the_simulation_before_a_run_is_reported_and_can_be_stopped(folder, monkeypatch):
    monkeypatch.setattr(runs, "SIMULATION_REPORTS", -1)
    lines = []
    runs.run(job(simulated=3, steps=3), lines.append)
    assert "config" in lines[0]
    assert lines[1:4] == [{"simulated": number, "anatomies": 3} for number in (1, 2, 3)]
    asked, lines = iter([False, True]), []
    with pytest.raises(Cancelled):
        runs.run(job(output="other.model", simulated=3), lines.append, lambda: next(asked))
    assert "Stopped" in lines[-1]["message"]
    assert not Path("other.model").exists() and not runs.state_path("other.model").exists()
    runs.run(job(output="other.model", simulated=3, steps=3, resume=True), lines.append)
    assert same(weights("other.model"), weights("m.model"))


def test_a_resumed_run_reports_the_settings_that_it_ignores(folder):
    stopped(job(), 1)
    lines = []
    runs.run(job(resume=True, steps=20, seed=4), lines.append)
    assert {
        "message": "Resumed with the original settings (steps = 12, seed = 0); the new values are ignored."
    } in lines
    assert max(line.get("step", 0) for line in lines) == 12


def test_an_unfinished_run_is_not_overwritten_by_a_new_one(folder, short_interval, capsys):
    stopped(job(), 1)
    with pytest.raises(InputError, match=r"has an unfinished run: resume it, or remove m.model.state"):
        runs.run(job(), lambda line: None)
    command = ["train", "Doe^Jane.npy", "--output", "m.model", "--init", "start.model", "--preset", "adapt"]
    assert main(command) == 2 and "add --resume, or remove m.model.state" in capsys.readouterr().err
    np.save("Doe^Jane.npy", np.load("Doe^Jane.npy")[:20])
    with pytest.raises(InputError, match="not those"):
        runs.run(job(resume=True), lambda line: None)


def test_a_run_resumes_without_the_model_that_it_started_from(folder, short_interval):
    """The state has it all: whether the weights were random, and the model to start from, which may be gone."""
    anew = {"init": None, "preset": "standard", "width": 4, "interval": 4}
    runs.run(job(output="whole.model", **anew))
    stopped(job(**anew))
    runs.run(job(resume=True, init="gone.model"))
    assert same(weights("m.model"), weights("whole.model"))


def test_a_resumed_run_draws_the_same_curve(folder):
    """Recorded and simulated frames alternate, and their loss terms differ."""
    mixed = {"preset": "standard", "simulated": 4, "steps": 8}
    runs.run(job(output="whole.model", **mixed))
    for at in (1, 3, 4, 6):
        stopped(job(output=f"{at}.model", **mixed), at)
        runs.run(job(output=f"{at}.model", resume=True, **mixed))
        curves = [checkpoint.load(name)[2]["curve"] for name in ("whole.model", f"{at}.model")]
        assert curves[0] == curves[1], at


def test_a_card_keeps_a_curve_of_few_points_to_its_end(folder, monkeypatch):
    monkeypatch.setattr(runs, "CURVE", 8)
    card = runs.run(job(steps=15)).card
    assert len(card["curve"]) == 8 and card["curve"][-1][0] == 15
    card = runs.run(job(steps=3)).card
    assert [point[0] for point in card["curve"]] == [1, 2, 3]


def test_a_finished_run_is_not_repeated(folder, short_interval):
    runs.run(job())
    content, lines = Path("m.model").read_bytes(), []
    again = runs.run(job(resume=True), lines.append)
    assert "finished" in lines[0]["message"] and lines[1]["model"] == "m.model" and len(lines) == 2
    assert same(again.network.state_dict(), weights("m.model"))
    assert Path("m.model").read_bytes() == content
    runs.run(job(resume=True, steps=13), lines.append)
    assert last_step(lines) == 13, "other settings are another run"
    stopped(job(output="n.model"), 8)
    runs.state_path("n.model").unlink()
    runs.run(job(output="n.model", resume=True), lines.append)
    assert last_step(lines) == 12, "a stopped run is not finished, with or without its state"


def test_two_runs_do_not_write_the_same_model(folder):
    def report(line):
        if line.get("step") == 1:
            with pytest.raises(InputError, match=r"Another process is writing m\.model"):
                runs.run(job())
            runs.run(job(output="other.model", steps=1))

    runs.run(job(steps=2), report)
    assert not list(folder.glob("*.lock"))


def test_a_black_frame_among_those_held_out_is_left_out_of_the_figures(folder, recwarn):
    frames = np.load("Doe^Jane.npy")
    frames[20:] = 0
    np.save("Doe^Jane.npy", frames)
    lines = []
    model = runs.run(job(steps=2), lines.append)
    json.dumps(lines, allow_nan=False)
    assert "held-out truth" in lines[2] and "structure" not in lines[2]
    assert "structure" not in model.card["figures"]
    assert not [warning for warning in recwarn if "nan" in str(warning.message).lower()]
    frames[20] = frames[0]
    np.save("Doe^Jane.npy", frames)
    assert "structure" in runs.run(job(output="n.model", steps=2)).card["figures"]


@pytest.mark.parametrize("preview", ["m.model", "m.model.state", "start.model", "./m.model"])
def test_a_preview_does_not_overwrite_the_runs_other_files(folder, preview):
    before = Path("start.model").read_bytes()
    with pytest.raises(InputError, match="another file"):
        runs.run(job(preview=preview))
    assert Path("start.model").read_bytes() == before and not Path("m.model").exists()


def test_a_run_does_not_find_its_own_files_in_its_folders(folder, short_interval):
    Path("cines").mkdir()
    Path("Doe^Jane.npy").rename("cines/Doe^Jane.npy")
    given = job(inputs=["cines"], output="cines/m.npy", preview="cines/p.png")
    stopped(given)
    assert Path("cines/p.png").exists() and Path("cines/m.npy").exists()
    lines = []
    runs.run(job(inputs=["cines"], output="cines/m.npy", preview="cines/p.png", resume=True), lines.append)
    assert lines[0]["from_step"] == 5 and len(lines[0]["recordings"]) == 1
    with pytest.raises(InputError, match="would be overwritten"):
        runs.run(given)


def test_no_recording_is_trained_on_twice_or_held_out_from_itself(folder):
    for held_out in ("Doe^Jane.npy", "./Doe^Jane.npy", "."):
        with pytest.raises(InputError, match="trained on and held out"):
            runs.run(job(held_out=[held_out]))
    lines = []
    runs.run(job(inputs=["Doe^Jane.npy", "./Doe^Jane.npy", "."], steps=1), lines.append)
    assert len(lines[0]["recordings"]) == 1 and not lines[0]["seen"]


def test_a_copy_is_neither_trained_on_twice_nor_held_out_from_itself(folder):
    frames = np.load("Doe^Jane.npy")
    np.save("copy.npy", frames)
    with pytest.raises(InputError, match=r"^copy\.npy: .*trained on and held out"):
        runs.run(job(held_out=["copy.npy"]))
    for number in range(2):
        np.save(f"{number}.npy", np.roll(frames, number + 1, 1))
    lines = []
    runs.run(job(inputs=["Doe^Jane.npy", "0.npy", "1.npy", "copy.npy"], steps=1), lines.append)
    assert [line["frames"] for line in lines[0]["recordings"]] == [18, 18, 18], "the copy is left out"


def test_a_recording_in_which_nothing_looks_like_ultrasound_is_not_trained_on(folder):
    screen = np.full((1, 200, 300), 240, np.uint8)  # a window of another program
    screen[:, ::20] = screen[:, :, ::30] = 90
    np.save("screen.npy", screen)
    with pytest.raises(InputError, match=r"^screen\.npy: No ultrasound region was found"):
        runs.run(job(inputs=["screen.npy", "Doe^Jane.npy"], region="auto"), lambda line: None)


def test_the_recording_that_cannot_be_used_is_named(folder):
    np.save("constant.npy", np.full((3, 64, 64), 7, np.uint8))
    Path("text.npy").write_text("no array")
    for name, reason in (("constant.npy", "constant"), ("text.npy", "NumPy|array|read")):
        with pytest.raises(InputError, match=f"^{name}: .*({reason})"):
            runs.run(job(inputs=["Doe^Jane.npy", name]))


def test_a_run_does_not_resume_with_other_data(folder, short_interval):
    """The other data have the same shape and are trained on or held out."""
    frames = np.load("Doe^Jane.npy")
    np.save("held.npy", frames[:6])
    stopped(job(held_out=["held.npy"]))
    for name, other in (("Doe^Jane.npy", frames[::-1]), ("held.npy", frames[6:12])):
        before = np.load(name)
        np.save(name, other)
        with pytest.raises(InputError, match="not those"):
            runs.run(job(held_out=["held.npy"], resume=True))
        np.save(name, before)
    runs.run(job(held_out=["held.npy"], resume=True))


@pytest.mark.parametrize("other", ["start.model", "Doe^Jane.npy"])
def test_a_model_that_was_replaced_during_a_pause_is_not_mistaken_for_the_runs_own(
    folder, short_interval, other, monkeypatch
):
    stopped(job())
    Path("m.model").write_bytes(Path(other).read_bytes())
    scores = iter(range(100, 200))  # worse than the kept model
    monkeypatch.setattr(runs, "score", lambda *_: next(scores))
    lines = []
    runs.run(job(resume=True), lines.append)
    assert any("not the file that this run kept" in line.get("message", "") for line in lines)
    assert checkpoint.load("m.model")[2]["steps"] == 5, "the best that is known"


def test_a_run_that_is_stopped_more_than_once_keeps_its_best(folder, short_interval, monkeypatch):
    scores = iter([9, 0, 1, 2, 9, *range(100)])  # the first checkpoint remains the best, in either run
    monkeypatch.setattr(runs, "score", lambda *_: next(scores))
    runs.run(job(output="whole.model"))
    stopped(job())
    stopped(job(resume=True), 1)
    lines = []
    runs.run(job(resume=True), lines.append)
    assert lines[0]["from_step"] == 6 and not any("not the file" in line.get("message", "") for line in lines)
    assert checkpoint.load("m.model")[2]["steps"] == 4 and same(weights("m.model"), weights("whole.model"))


def test_an_output_that_cannot_be_written_is_reported_before_the_run(folder, monkeypatch):
    long = "m" * 245  # its state's name is too long for a file system
    for given in (job(output=long), job(preview="p" * 250)):
        lines = []
        with pytest.raises(InputError, match="cannot be written"):
            runs.run(given, lines.append)
        assert not lines


def test_options_without_effect_are_refused_or_reported(folder):
    paper = job(init=None, preset="paper", recipe=None, width=8)
    for given in (job(width=8), job(init=None, width=8), paper):
        with pytest.raises(InputError, match="width"):
            runs.run(given)
    lines = []
    runs.run(Job("n.model", preset="default", simulated=2, steps=1, batch=2, width=4, device="cpu", preview="p.png"),
             lines.append)  # fmt: skip
    assert any("p.png is not written" in line.get("message", "") for line in lines) and not Path("p.png").exists()
    stopped(job(seed=3), 1)
    lines = []
    runs.run(job(resume=True), lines.append)
    assert not any("seed" in line.get("message", "") for line in lines), "none was asked for"


def test_a_deeper_level_and_the_uncertainty_can_be_added_without_changing_the_output(folder):
    start = runs._start(job(deep=1, uncertainty=True))
    assert start.model == ModelConfig(width=4, deep=1, uncertainty=True, grain=(0.75, 1.7))
    frame, plain = torch.rand(1, 1, 32, 32), checkpoint.load("start.model")[1]
    assert torch.equal(start.network(frame), plain(frame))
    checkpoint.save("grown.model", start.model, start.network, {})
    for shape in ({"width": 8}, {"init": "grown.model", "deep": 2}, {"init": "grown.model", "uncertainty": True}):
        with pytest.raises(InputError, match="--width applies only to a new network"):
            runs._start(job(**shape))


def test_processes_that_torchrun_did_not_start_are_refused(folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for value in ("2", "two"):
        monkeypatch.setenv("WORLD_SIZE", value)
        with pytest.raises(InputError, match="torchrun"):
            runs.run(job())


def test_nan_weights_keep_the_last_good_files(folder, short_interval, monkeypatch):
    """A gradient may overflow where the loss is still a number."""
    step = Training._train_step

    def broken(self):
        terms = step(self)
        if self.step == 6:
            self.learner.network.head.bias.data[0] = float("nan")
        return terms

    monkeypatch.setattr(Training, "_train_step", broken)
    learn = Training._learn
    monkeypatch.setattr(Training, "_learn", lambda self, *views: learn(self, *views).nan_to_num())
    with pytest.raises(InputError, match="became NaN at step 8"):
        runs.run(job())
    assert checkpoint.load_state(runs.state_path("m.model"))[1]["step"] == 4
    checkpoint.load("m.model")


def test_a_run_without_enough_memory_to_validate_loses_nothing(folder, short_interval, monkeypatch):
    runs.run(job(output="whole.model"))
    validate = Training.validate

    def short(self):
        if self.step == 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return validate(self)

    with monkeypatch.context() as patched, pytest.raises(torch.OutOfMemoryError):
        patched.setattr(Training, "validate", short)
        runs.run(job())
    lines = []
    runs.run(job(resume=True), lines.append)
    assert lines[0]["from_step"] == 8 and same(weights("m.model"), weights("whole.model"))


def test_a_damaged_state_is_refused(folder):
    runs.state_path("m.model").write_bytes(b"no state at all")
    with pytest.raises(InputError, match="damaged"):
        runs.run(job(resume=True), lambda line: None)


def test_recordings_are_held_out_as_a_whole_where_there_are_ten(folder):
    for number in range(10):
        np.save(f"{number}.npy", np.roll(np.load("Doe^Jane.npy"), number, 1)[:6])
    lines = []
    runs.run(job(inputs=[f"{n}.npy" for n in range(10)], steps=1), lines.append)
    assert [line["frames"] for line in lines[0]["recordings"]] == 9 * [6] and lines[0]["held_out"] == 6
    lines = []
    runs.run(job(inputs=[f"{n}.npy" for n in range(4)], steps=1), lines.append)
    assert [line["frames"] for line in lines[0]["recordings"]] == 4 * [6] and lines[0]["seen"]
    lines = []
    runs.run(job(inputs=["0.npy"], steps=1), lines.append)
    assert lines[0]["seen"] and not lines[0]["held_out"]
    assert "figures are from frames that are trained on" in lines[1]["message"], "six frames are too few"
    lines = []
    runs.run(job(inputs=["0.npy"], estimate=True), lines.append)
    assert lines[-1]["estimate"]["held_out"] == 0
    lines = []
    runs.run(job(inputs=["0.npy", "Doe^Jane.npy"], steps=1), lines.append)
    assert not lines[0]["seen"] and lines[0]["held_out"] == 4, "only of the long one"
    lines = []
    runs.run(job(inputs=["0.npy"], held_out=["3.npy"], steps=1), lines.append)
    assert not lines[0]["seen"] and lines[0]["held_out"] == 6


def test_single_frames_next_to_those_held_out_are_left_out(folder):
    """They may be of one cine."""
    Path("stills").mkdir()
    for number in range(40):
        np.save(f"stills/{number:02}.npy", np.roll(np.load("Doe^Jane.npy")[number % 24], number, 1))
    lines = []
    runs.run(job(inputs=["stills"], steps=1), lines.append)
    assert len(lines[0]["recordings"]) == 34 and lines[0]["held_out"] == 4


def test_nothing_outside_a_given_region_is_trained_on(folder, capsys):
    mask = np.zeros((64, 64), np.uint8)
    mask[8:56, 4:50] = 1
    mask[8:20, 4:20] = 0
    Path("masks").mkdir()
    for name in ("mask", "masks/Doe^Jane", "masks/other"):
        np.save(f"{name}.npy", mask)
    np.save("other.npy", np.where(mask, np.load("Doe^Jane.npy"), 255))
    for model in (ModelConfig(grain=(0.75, 1.7)), ModelConfig("published", normalisation="frame")):
        for given in ("mask.npy", "masks"):
            one, other = (read_cine(Path(n), given, model).frames for n in ("Doe^Jane.npy", "other.npy"))
            assert torch.equal(one, other)
    assert one.shape == (24, 1, 48, 46)
    np.save("small.npy", mask[1:])
    np.save("empty.npy", mask * 0)
    np.save("masks/Doe^Jane.npy", mask * 0)
    for given, expected in (("small.npy", "does not fit frames of 64 x 64 pixels"), ("empty.npy", "is empty"),
                            ("masks", "is empty"), ("nowhere.npy", "no file"), ("", "a mask file")):  # fmt: skip
        assert main(["train", "Doe^Jane.npy", "--output", "m.model", "--region", given]) == 2
        assert expected in capsys.readouterr().err
    assert not Path("m.model").exists()


def test_without_enough_memory_the_batch_is_halved_with_a_message(folder, monkeypatch):
    step = Training._train_step

    def short(self):
        if self.batch > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self)

    monkeypatch.setattr(Training, "_train_step", short)
    lines = []
    runs.run(job(batch=8, steps=2), lines.append)
    assert "batch size was reduced to 2" in " ".join(line.get("message", "") for line in lines)
    monkeypatch.setattr(Training, "_train_step", lambda self: torch.empty(2**50))
    with pytest.raises(InputError, match="Not enough memory for"):
        runs.run(job(output="n.model", steps=2), lambda line: None)


def test_a_nan_loss_keeps_the_last_good_checkpoint(folder, short_interval, monkeypatch):
    draw = Training._draw

    def broken(self):
        batch = draw(self)
        if self.step == 6:
            batch.frames.fill_(float("nan"))
        return batch

    monkeypatch.setattr(Training, "_draw", broken)
    with pytest.raises(InputError, match="became NaN at step 7"):
        runs.run(job(), lambda line: None)
    assert checkpoint.load_state(runs.state_path("m.model"))[1]["step"] == 4
    checkpoint.load("m.model")


def test_a_model_and_its_state_hold_no_name_of_a_patient_or_file(folder, short_interval):
    stopped(job(), 1)
    state = runs.state_path("m.model").read_bytes()
    runs.run(job(resume=True), lambda line: None)
    for content in (state, Path("m.model").read_bytes()):
        for secret in (b"Doe", b"Jane", b".npy", b"start.model", str(folder).encode()):
            assert secret not in content


def test_a_result_that_is_worse_than_its_start_is_reported():
    start = {"homogeneity": 0.8, "structure": 0.99, "holes": 0.0}
    assert not runs.worse_than_start({"figures_at_start": start, "figures": start | {"homogeneity": 0.9}})
    worse = runs.worse_than_start({"figures_at_start": start, "figures": start | {"structure": 0.95, "holes": 0.02}})
    assert worse == "structure 0.9900 -> 0.9500, holes 0.0000 -> 0.0200"
    assert not runs.worse_than_start({"figures": start})


def test_a_training_time_becomes_a_number_of_steps(folder):
    lines = []
    runs.run(job(steps=None, minutes=0.02), lines.append)
    assert 1 <= lines[0]["config"]["steps"] < 1000


class Clock:
    """A clock that only the steps of a training and its validations move on. Only the first of them compute."""

    def __init__(self, monkeypatch, pace, validation=0.0):
        from Speckle2SelfLib import training

        self.now, self.pace, self.done, self.figures = 1000.0, pace, 0, None
        train, learn, validate = Training._train_step, Training._learn, Training.validate

        def learn_first(one, *views):
            if not one._names:
                self.terms = learn(one, *views)
            return self.terms

        def step(one):
            self.now += self.pace(self.done)
            self.done += 1
            return train(one)

        def check(one):
            self.now += validation
            self.figures = self.figures or validate(one)
            return self.figures

        monkeypatch.setattr(Training, "_learn", learn_first)
        monkeypatch.setattr(Training, "_train_step", step)
        monkeypatch.setattr(Training, "validate", check)
        for module in (runs, training):
            monkeypatch.setattr(module, "time", self)

    def monotonic(self):
        return self.now


@pytest.mark.parametrize("slower", [1, 8, 0.25])
def test_the_training_time_is_kept_although_the_pace_changes(folder, monkeypatch, short_interval, slower):
    """Steps become slower, or faster, after the first was measured; each validation lasts two seconds."""
    clock = Clock(monkeypatch, lambda done: 0.5 if done < runs.WARM_UP + 3 else 0.5 * slower, 2.0)
    lines, rates = [], []
    rate = Training._train_step

    def step(one):
        terms = rate(one)
        rates.append(one.optimiser.param_groups[0]["lr"])
        return terms

    monkeypatch.setattr(Training, "_train_step", step)
    model = runs.run(job(steps=None, minutes=1.0), lambda line: lines.append((clock.now, line)))
    assert model.card["finished"] and lines[0][1]["config"]["steps"] == 120, "as measured first"
    began, ended = lines[0][0], lines[-1][0]
    assert 60 - 4 * max(0.5, 0.5 * slower) <= ended - began <= 60 + 0.5
    reports = [line for _, line in lines if "rate" in line]
    assert reports[-1]["step"] == reports[-1]["steps"] == model.card["training"]["steps"]
    left = [line["seconds_left"] for line in reports]
    assert left[0] < 60 and left == sorted(left, reverse=True) and left[-1] < 4
    highest = max(rates)
    assert rates[-1] < 0.1 * highest, "the learning rate has come down at the end"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (40, "Only 1 step fitted into 1 minute, too few to judge by (the preset has 500): "),
        (2, "Only 30 steps fitted into 1 minute, too few to judge by (the preset has 500): "),
        (0.5, None),
    ],
)
def test_a_time_in_which_few_steps_fit_is_reported(folder, monkeypatch, short_interval, seconds, expected):
    monkeypatch.setitem(config.PRESETS, "adapt", replace(config.PRESETS["adapt"], steps=500))
    Clock(monkeypatch, lambda done: seconds)
    lines = []
    runs.run(job(steps=None, minutes=1.0), lines.append)
    said = [line["message"] for line in lines if "message" in line]
    assert [text for text in said if "fitted into" in text] == said[-1:] * bool(expected)
    assert not expected or said[-1].endswith(f"{expected}allow more time, or use a faster device."), "after the result"


def test_a_resumed_run_uses_the_rest_of_its_time(folder, monkeypatch, short_interval):
    clock, lines = Clock(monkeypatch, lambda done: 0.5), []
    stop = lambda: len(lines) > 42  # noqa: E731
    with pytest.raises(Cancelled):
        runs.run(job(steps=None, minutes=1.0), lambda line: lines.append(line), stop)
    spent = 0.5 * next(line["step"] for line in reversed(lines) if "step" in line)
    assert 15 < spent < 40 and not any("--" in line.get("message", "") for line in lines)
    clock.now += 10_000  # over night
    began, lines = clock.now, []
    runs.run(job(steps=None, minutes=1.0, resume=True), lines.append)
    assert clock.now - began == pytest.approx(60 - spent, abs=1.5)
    assert lines[-1]["model"] and not [line for line in lines if "message" in line and "ignored" in line["message"]]


def test_the_estimate_of_a_run_with_a_training_time_is_that_time(folder):
    lines = []
    runs.run(job(steps=None, minutes=0.5, estimate=True), lines.append)
    estimate = lines[0]["estimate"]
    assert estimate["minutes"] == 0.5
    assert -0.02 < 30 * estimate["rate"] - estimate["steps"] < 1.02, "rounded down"


def test_time_and_memory_of_a_run_are_estimated_before_it(folder):
    lines = []
    assert runs.run(job(estimate=True), lines.append) is None
    (estimate,) = (line["estimate"] for line in lines)
    assert estimate["frames"] == 18 and estimate["held_out"] == 4 and estimate["steps"] == 12
    assert estimate["minutes"] == pytest.approx(12 / estimate["rate"] / 60, abs=0.01)
    assert estimate["correlation"][0][0][0] == 1 and 0.7 < estimate["grain"][0][0] < 2
    assert not Path("m.model").exists()


def test_what_is_done_once_before_the_simulation_is_estimated_once(folder, monkeypatch):
    despeckle = recipes.despeckle_anatomies
    monkeypatch.setattr(recipes, "despeckle_anatomies", lambda *given: time.sleep(1) or despeckle(*given))
    lines = []
    runs.run(job(simulated=500, steps=250, estimate=True), lines.append)
    estimate = lines[0]["estimate"]
    simulating = 60 * estimate["minutes"] - estimate["steps"] / estimate["rate"]
    assert 1 < simulating < 30, "not once for every twelve anatomies: 40 s"


def test_the_grain_is_reported_in_pixels_of_the_recording(folder, monkeypatch):
    monkeypatch.setattr(runs, "WARM_UP", 2)
    made = simulate(SimulationConfig((128, 128), 14, (1.2, 5.0), "flat"), np.random.default_rng(0)).frames
    np.save("coarse.npy", np.round(made * 255).astype(np.uint8))
    recorded = estimate_grain(made)
    assert recorded[1] > 2, "more than the model's"
    for given in ({}, {"init": None, "preset": "paper", "recipe": None, "batch": 1}):
        lines = []
        runs.run(job(inputs=["coarse.npy"], estimate=True, steps=1, **given), lines.append)
        assert lines[0]["estimate"]["grain"][0] == pytest.approx(recorded, abs=0.2)
        half = [sum(value > 0.5 for value in curve) for curve in lines[0]["estimate"]["correlation"][0]]
        assert half[0] <= 2 <= half[1]
    runs.run(job(inputs=["coarse.npy"], steps=1), lines.append)
    assert lines[1]["recordings"][0]["grain"] == pytest.approx(recorded, abs=0.2)


def test_a_job_file_and_the_command_line_are_equivalent(folder, capsys):
    Path("job.json").write_text(json.dumps({"inputs": ["Doe^Jane.npy"], "output": "m.model", "init": "start.model",
                                            "steps": 3, "batch": 2, "region": "none", "simulated": 2}))  # fmt: skip
    assert main(["train", "--job", "job.json", "--steps", "2"]) == 0
    assert last_step([json.loads(line) for line in capsys.readouterr().out.splitlines()]) == 2
    for content, expected in (("{", "not a job file"), ('{"inputs": "x"}', "Name the model"), ("[1]", "Name the model"),
                              ('{"output": "m", "colour": 1}', "unknown entries"),
                              ('{"output": "m", "steps": "x"}', "Not a")):  # fmt: skip
        Path("job.json").write_text(content)
        assert main(["train", "--job", "job.json"]) == 2
        assert expected in capsys.readouterr().err


ENDLESS = ["train", "Doe^Jane.npy", "--output", "m.model", "--init", "start.model", "--preset", "adapt",
           "--simulated", "2", "--batch", "2", "--steps", "100000", "--region", "none"]  # fmt: skip


def test_ctrl_c_saves_and_leaves_cleanly(folder, original):
    process = Copy(original, ENDLESS)
    process.read_to('"step": 10')
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130 and err.splitlines()[-1] == "speckle2self: stopped; add --resume to continue."
    assert "Stopped at step" in out and "--resume" in err
    assert checkpoint.load_state("m.model.state")[1]["step"] >= 10
    checkpoint.load("m.model")
    process = Copy(original, [*ENDLESS, "--resume", "--listen"])
    process.read_to('"step"')
    process.communicate()  # closes the standard input, as if the parent had ended
    assert process.returncode == 130


@pytest.mark.parametrize("gone", ["reader", "terminal"])
def test_a_run_whose_reader_or_terminal_closes_saves_and_ends(folder, original, gone):
    if gone == "terminal" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        pytest.skip("the signal is ignored, as under nohup")
    process = Copy(original, [*ENDLESS, "--report", "1"])
    process.read_to('"step": 5')
    if gone == "reader":
        process.stdout.close()
    else:
        os.kill(process.pid, signal.SIGHUP)
        os.kill(process.pid, signal.SIGHUP)  # the shell and the system may send one each
        process.stdout.read()
    assert process.wait() == 130 and process.stderr.read() == "speckle2self: stopped; add --resume to continue.\n"
    assert checkpoint.load_state("m.model.state")[1]["step"] >= 5


def test_after_a_kill_at_any_moment_the_checkpoints_load(folder, original):
    """A process trains and writes a checkpoint every step; it is killed at random moments and resumed."""
    chance, reached = random.Random(0), 0
    for _ in range(4):
        process = Copy(original, [*ENDLESS, "--resume", "--report", "1"], interval=1)
        process.read_to('"rate"')
        time.sleep(chance.uniform(0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        if Path("m.model.state").exists():
            step = checkpoint.load_state("m.model.state")[1]["step"]
            assert step >= reached
            reached = step
            checkpoint.load("m.model")
    assert reached > 0


def test_two_processes_train_as_one_does(folder, original, capsys):
    """The losses are the same for the same global batch, and two processes can finish a run that one began."""
    arguments = ["train", "Doe^Jane.npy", "--init", "start.model", "--batch", "4", "--steps", "8", "--region", "none",
                 "--simulated", "8", "--device", "cpu", "--report", "1", "--output"]  # fmt: skip
    assert main([*arguments, "1.model"]) == 0
    one = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    shared = Copy(original, [*arguments, "2.model"], processes=2)
    output, error = shared.communicate()
    assert shared.returncode == 0, error
    two, losses = [json.loads(line) for line in output.splitlines()], []
    for count, lines in enumerate((one, two), 1):
        assert lines[0]["processes"] == count
        terms = ("truth", "slopes")
        losses.append([sum(line.get(term, 0) for term in terms) for line in lines if line.get("step")])
    assert len(losses[0]) == 8
    tolerance = 1e-5 if one[0]["precision"] == two[0]["precision"] == "float32" else 1e-3
    assert np.allclose(losses[0], losses[1], atol=tolerance, rtol=0)
    stopped(job(batch=4, output="2.model", preset="standard"), 1)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}  # the variables of torchrun
    both = [
        Copy(original, [*arguments, "2.model", "--resume"], {**place, "RANK": rank, "LOCAL_RANK": rank})
        for rank in "01"
    ]
    outputs = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert json.loads(outputs[0][0].splitlines()[0])["from_step"] == 1 and not outputs[1][0]
