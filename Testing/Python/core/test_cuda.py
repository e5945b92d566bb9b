"""On a CUDA device: the processor's results, and training that continues. Skipped where there is none."""

from dataclasses import replace
from threading import Thread

import numpy as np
import pytest
import torch

from Speckle2SelfLib import checkpoint, config, despeckling, runs
from Speckle2SelfLib.calibration import Calibration
from Speckle2SelfLib.checkpoint import Model
from Speckle2SelfLib.config import Job, ModelConfig, TrainingConfig
from Speckle2SelfLib.dataset import prepare_cine
from Speckle2SelfLib.despeckling import despeckle
from Speckle2SelfLib.library import load_model
from Speckle2SelfLib.network import SpeckleReductionNetwork, build
from Speckle2SelfLib.simulation import SimulationConfig, simulate
from Speckle2SelfLib.system import Cancelled
from Speckle2SelfLib.training import Training

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


def recording(size, count=2, geometry="linear"):
    """Return frames (N, H, W) uint8 and their region."""
    large = tuple(max(32, n) for n in size)
    made = simulate(SimulationConfig(large, count, (1.2, 1.8), "vessel", geometry), np.random.default_rng(1))
    return np.round(made.frames * 255).astype(np.uint8)[:, : size[0], : size[1]], made.region


def both(frames, model="default", **options):
    """Return the processor's result and the device's, float64, in 32 bits."""
    options = {"region": None, "precision": torch.float32} | options
    return [despeckle(frames, model, device=device, **options).astype(float) for device in ("cpu", "cuda")]


def found_in(frames, mapping=(0.0, 255.0)):
    """Return the calibration, which is the same for any part of a recording."""
    return Calibration(np.ones(frames.shape[1:3], bool), mapping, (1.2, 1.8))


def begun(recipe, **settings):
    """Return a training on the device before its first step."""
    model, simulated = ModelConfig(grain=(0.65, 1.45)), 16
    if recipe == "published":
        model, simulated = ModelConfig("published", normalisation="frame"), 0
    config = TrainingConfig(recipe, batch=4, crop=64, simulated=simulated, **settings)
    return Training([prepare_cine(recording((96, 96), 8)[0], None, model)], config, model, device="cuda")


@pytest.mark.parametrize("size", [(256, 256), (123, 201), (20, 300), (1300, 1250)])
def test_frames_of_any_size_match_the_processors_result(size):
    cpu, cuda = both(recording(size)[0])
    assert np.abs(cpu - cuda).max() <= 2 and np.sqrt(np.mean((cpu - cuda) ** 2)) < 0.2


def test_the_uncertainty_matches_the_processors_result_also_when_replayed():
    torch.manual_seed(0)
    settings = ModelConfig(deep=1, uncertainty=True)
    network = build(settings).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    frames, maps = recording((123, 201))[0], {}
    for device in ("cpu", "cuda", "cuda", "cuda"):  # the same shape each time
        maps[device] = np.empty(frames.shape, np.float32)
        options = {"region": None, "device": device, "uncertainty": maps[device], "precision": torch.float32}
        despeckle(frames, Model(settings, network), **options)
        assert maps[device] == pytest.approx(maps["cpu"], rel=0.02)


@pytest.mark.parametrize("kind", ["int16", "float32", "not finite", "colour", "sector", "one frame", "weak and dark"])
def test_frames_of_any_kind_match_the_processors_result(kind):
    frames, region = recording((160, 200), geometry="sector" if kind == "sector" else "linear")
    options, unit = {}, 1.0
    if kind == "int16":
        frames = frames.astype(np.int16) * 20 - 1000
        unit = 20
    elif kind in ("float32", "not finite"):
        frames = frames.astype(np.float32) / 255
        unit = 1 / 255
    if kind == "not finite":
        frames[0, 40:50, 60:90] = np.nan
        frames[1, 3, 3] = np.inf
    elif kind == "colour":
        frames = np.repeat(frames[..., None], 3, -1)
        frames[:, 20:30, 20:60] = 250, 30, 10
    elif kind == "sector":
        options = {"region": region}
    elif kind == "one frame":
        frames = frames[0]
    elif kind == "weak and dark":
        options = {"strength": 0.6, "gamma": 1.5}
    cpu, cuda = both(frames, **options)
    finite = np.isfinite(frames)
    assert np.array_equal(cpu[~finite], cuda[~finite], equal_nan=True)
    assert np.abs(cpu[finite] - cuda[finite]).max() <= unit * 1.01


@pytest.mark.parametrize(("precision", "most", "rms"), [(torch.bfloat16, 8, 0.7), (torch.float16, 2, 0.2)])
def test_half_precision_is_close(precision, most, rms):
    frames = recording((300, 400), 3)[0]
    cpu, cuda = (despeckle(frames, region=None, device=d, precision=p).astype(float) for d, p in
                 (("cpu", torch.float32), ("cuda", precision)))  # fmt: skip
    assert np.abs(cpu - cuda).max() <= most and np.sqrt(np.mean((cpu - cuda) ** 2)) < rms


def test_the_published_network_matches_its_result_on_the_processor():
    torch.manual_seed(0)
    model = Model(ModelConfig("published", scales=1, normalisation="frame"), SpeckleReductionNetwork(scales=1).eval())
    frames = recording((256, 256))[0].astype(np.float32) / 255
    cpu, cuda = both(frames, model)
    assert np.abs(cpu - cuda).max() < 2e-4


def test_a_single_frame_has_the_same_result_as_in_a_cine():
    """Single frames are replayed; a cine is processed in blocks of many."""
    frames = recording((512, 512), 3)[0]
    cine = np.concatenate([frames] * 9)
    given = {"calibration": found_in(frames), "device": "cuda"}
    whole = despeckle(cine, **given)
    for number in (0, 1, 2, 0):
        alone = despeckle(frames[number : number + 1], **given)
        assert np.abs(whole[number].astype(int) - alone[0]).max() <= 1
    assert np.abs(whole[0].astype(int) - whole[1]).mean() > 1, "or the same result would pass for all"


def test_replayed_frames_of_many_shapes_and_threads_are_kept_apart():
    model, wrong = load_model("default"), []
    sizes = [(96 + 8 * n, 128) for n in range(7)]  # more than are kept
    expected = {size: both(recording(size)[0], model)[0] for size in sizes}

    def work(start):
        for number in range(3 * len(sizes)):
            size = sizes[(start + number) % len(sizes)]
            frames = recording(size)[0]
            got = despeckle(frames, model, region=None, device="cuda", precision=torch.float32)
            wrong.extend([size] if np.abs(got - expected[size]).max() > 1 else [])

    threads = [Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("kind", ["uint8", "int16", "colour", "published"])
@pytest.mark.parametrize("side", [64, 160])
def test_blocks_in_separate_streams_have_the_same_results_as_one_by_one(monkeypatch, kind, side):
    """Small ones are replayed, large ones are not; nothing is read before it is there or after it is overwritten."""
    frames = recording((side, side), 61)[0]
    model, mapping = "default", (0.0, 255.0)
    if kind == "int16":
        frames = frames.astype(np.int16) - 100
        mapping = -100.0, 155.0
    elif kind == "colour":
        frames = np.repeat(frames[..., None], 3, -1)
    elif kind == "published":
        torch.manual_seed(0)
        model = Model(ModelConfig("published", scales=1, normalisation="frame"), SpeckleReductionNetwork(1).eval())
    given = {"calibration": found_in(frames, mapping), "device": "cuda"}
    monkeypatch.setattr(despeckling, "BLOCK_PIXELS", side * side * 3)
    results = [despeckle(frames, model, **given) for _ in range(6)]
    monkeypatch.setattr(despeckling, "AT_ONCE_CUDA", 1)
    alone = despeckle(frames, model, **given)
    for result in results:
        assert np.abs(result.astype(int) - alone).max() <= 1
    assert np.abs(alone[0].astype(int) - alone[1]).mean() > 1, "or the same result would pass for all"


def test_a_cancel_is_heard_and_memory_does_not_grow():
    frames = np.concatenate([recording((512, 512), 1)[0]] * 256)
    given = {"calibration": found_in(frames), "device": "cuda"}
    peaks = []
    for count in (96, 192):  # blocks of 16
        torch.cuda.reset_peak_memory_stats()
        despeckle(frames[:count], **given)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] <= 1.2 * peaks[0] and peaks[0] < 2**30  # blocks meet by chance
    with pytest.raises(Cancelled):
        despeckle(frames, cancelled=lambda: True, **given)


@pytest.mark.parametrize("recipe", ["respeckle", "published"])
def test_training_learns_and_resumes_from_its_state(recipe):
    first, again = (begun(recipe, steps=60, share=1.0) for _ in range(2))
    losses = []
    for report in first.run():
        losses.append(sum(report.terms.values()))
        if report.step == 30:
            tensors, values = first.state()
            tensors = {name: tensor.clone().cpu() for name, tensor in tensors.items()}
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
    again.restore(tensors, values)
    rest = [sum(report.terms.values()) for report in again.run()]
    assert len(rest) == 30 and np.mean(rest) == pytest.approx(np.mean(losses[30:]), rel=0.1)


@pytest.mark.parametrize("recipe", ["respeckle", "published"])
def test_replayed_steps_equal_steps_that_are_not_replayed(recipe):
    losses = []
    for replays in (True, False):
        training = begun(recipe, steps=12)
        assert training._replays
        training._replays = replays
        losses.append([sum(report.terms.values()) for report in training.run()])
    assert losses[0][:5] == pytest.approx(losses[1][:5], rel=0.02)  # rounding makes later ones differ


def test_a_job_trains_there_and_its_model_works_everywhere(tmp_path, monkeypatch):
    monkeypatch.setitem(config.PRESETS, "adapt", replace(config.PRESETS["adapt"], interval=10, simulated=20))
    np.save(tmp_path / "cine.npy", recording((128, 128), 14)[0])
    lines = []
    job = Job(str(tmp_path / "m.model"), (str(tmp_path / "cine.npy"),), preset="adapt", steps=20, device="cuda",
              region="none", report=5)  # fmt: skip
    runs.run(job, lines.append)
    assert lines[0]["device"] == "cuda" and "rms" in lines[-2]
    model = Model(*checkpoint.load(tmp_path / "m.model"))
    cpu, cuda = both(recording((128, 128))[0], model)
    assert np.abs(cpu - cuda).max() <= 1
