"""Frames in, frames out: what changes, what is kept and what is refused."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from Speckle2SelfLib import despeckling
from Speckle2SelfLib.calibration import Calibration, calibrate
from Speckle2SelfLib.checkpoint import Model
from Speckle2SelfLib.config import ModelConfig
from Speckle2SelfLib.despeckling import despeckle
from Speckle2SelfLib.filters import median
from Speckle2SelfLib.grey import grey_mapping
from Speckle2SelfLib.library import load_model
from Speckle2SelfLib.network import SpeckleReductionNetwork
from Speckle2SelfLib.region import box_of
from Speckle2SelfLib.system import Cancelled, InputError, out_of_memory


def blur(frames):
    """Return a filter that any image survives recognizably: the mean of 5 x 5 pixels."""
    x = torch.nn.functional.avg_pool2d(torch.from_numpy(frames)[:, None], 5, 1, 2, count_include_pad=False)
    return x[:, 0].numpy()


def nothing(frames):
    return frames


@pytest.fixture
def cine(rng):
    return rng.integers(20, 220, (4, 40, 48)).astype(np.uint8)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "float32", "float64"])
def test_type_shape_and_range_of_the_input_are_kept(rng, dtype):
    frames = rng.integers(-100 if np.dtype(dtype).kind != "u" else 0, 120, (2, 33, 47)).astype(dtype)
    output = despeckle(frames, blur, region=None)
    assert output.dtype == frames.dtype and output.shape == frames.shape
    assert output.min() >= frames.min() and output.max() <= frames.max()
    assert output.std() < 0.5 * frames.std()


def test_a_filter_that_does_nothing_returns_the_input(cine):
    assert np.array_equal(despeckle(cine, nothing, region=None), cine)


def test_the_published_network_on_the_processor_does_not_change_cudas_settings(cine, monkeypatch):
    """They belong to the process: frames side by side would put them back in the wrong order."""
    monkeypatch.setattr(torch.backends.cudnn, "flags", None)
    model = Model(ModelConfig("published", scales=1, normalisation="frame"), SpeckleReductionNetwork(scales=1).eval())
    assert despeckle(cine, model, region=None, device="cpu").shape == cine.shape


def test_a_filter_has_a_name(cine):
    assert np.array_equal(despeckle(cine, "median", region=None), despeckle(cine, median, region=None))


def test_a_device_may_be_a_torch_device(cine):
    given = despeckle(cine, "default", region=None, device=torch.device("cpu"))
    assert np.array_equal(given, despeckle(cine, "default", region=None, device="cpu"))


def test_the_input_is_not_changed(cine):
    before = cine.copy()
    despeckle(cine, blur, region=None)
    assert np.array_equal(cine, before)


def test_the_changes_of_a_copy_on_write_mapping_are_seen(cine, tmp_path):
    np.save(tmp_path / "cine.npy", cine)
    frames = np.load(tmp_path / "cine.npy", mmap_mode="c")
    frames[:, :9, :9] = 0
    before = frames.copy()
    output = despeckle(frames, blur, region=None)
    assert np.array_equal(frames, before) and np.array_equal(output, despeckle(before, blur, region=None))


def test_flipped_frames_need_no_copy(cine):
    flipped = cine[::-1, ::-1]
    model = load_model("default")
    expected = despeckle(np.ascontiguousarray(flipped), model, region=None)
    assert np.array_equal(despeckle(flipped, model, region=None), expected)


def test_a_two_dimensional_frame_has_a_two_dimensional_result(cine):
    assert np.array_equal(despeckle(cine[0], blur, region=None), despeckle(cine[:1], blur, region=None)[0])


def test_outside_the_region_nothing_changes(cine):
    region = np.zeros((40, 48), bool)
    region[5:30, 7:41] = True
    region[10:15, 20:25] = False
    output = despeckle(cine, blur, region=region)
    assert np.array_equal(output[:, ~region], cine[:, ~region])
    assert np.mean(output[:, region] != cine[:, region]) > 0.9


def test_nothing_outside_the_region_leaks_in(cine):
    region = np.ones((40, 48), bool)
    region[:, :10] = False
    marked = cine.copy()
    marked[:, :, :10] = 255
    assert np.array_equal(
        despeckle(cine, blur, region=region)[:, region], despeckle(marked, blur, region=region)[:, region]
    )


def test_strength_blends_with_the_input(cine):
    frames = cine.astype(np.float32)
    full = despeckle(frames, blur, region=None)
    assert np.array_equal(despeckle(frames, blur, region=None, strength=0), frames)
    assert np.allclose(despeckle(frames, blur, region=None, strength=0.25), 0.75 * frames + 0.25 * full, atol=1e-3)


def test_a_gamma_above_one_darkens(cine):
    assert despeckle(cine, blur, region=None, gamma=2).mean() < despeckle(cine, blur, region=None).mean() - 10


def test_one_grey_mapping_serves_the_whole_cine(rng):
    """A step in brightness between frames survives: each frame is not stretched on its own."""
    frames = rng.uniform(0, 50, (2, 64, 64)).astype(np.float32)
    frames[1] += 100
    output = despeckle(frames, blur, region=None)
    assert output[1].mean() - output[0].mean() == pytest.approx(100, abs=1)


def test_few_bright_echoes_keep_their_brightness(rng, network):
    frames = rng.uniform(0, 30, (1, 128, 128)).astype(np.float32)
    frames[0, 60:63, 60:63] = 250
    output = despeckle(frames, nothing, region=None)
    assert output[0, 61, 61] == pytest.approx(250, abs=1)


def test_pixels_that_are_not_finite_are_kept_and_do_not_spread(rng):
    frames = rng.uniform(0, 1, (2, 32, 32)).astype(np.float32)
    holes = frames.copy()
    holes[0, 10, 10], holes[0, 20, 5], holes[1, 3, 3] = np.nan, np.inf, -np.inf
    output = despeckle(holes, blur, region=None)
    assert np.array_equal(np.isfinite(output), np.isfinite(holes))
    assert np.isposinf(output[0, 20, 5]) and np.isneginf(output[1, 3, 3])
    assert np.nanmax(np.abs(output[np.isfinite(output)])) <= 1


@pytest.mark.filterwarnings("error")
def test_colors_that_are_not_finite_are_kept_without_a_warning(rng):
    frames = rng.uniform(0, 1, (3, 32, 32, 1)).repeat(3, -1)
    frames[0, 10, 10, 1], frames[1, 20, 5], frames[2] = np.nan, np.inf, np.nan
    output = despeckle(frames, blur, region=None)
    assert np.array_equal(np.isfinite(output), np.isfinite(frames)) and (output != frames)[:2].mean() > 0.9


def test_a_constant_frame_within_a_cine_remains_constant(rng, network):
    frames = rng.integers(20, 220, (3, 64, 64)).astype(np.uint8)
    frames[1] = 77
    for normalisation in ("cine", "frame"):
        model = Model(ModelConfig(width=8, normalisation=normalisation), network)
        assert np.ptp(despeckle(frames, nothing, region=None)[1]) == 0
        assert np.isfinite(despeckle(frames, model, region=None)).all()


def test_without_an_ultrasound_region_nothing_changes(network):
    screen = np.full((2, 64, 64), 200, np.uint8)
    screen[:, 10:20, 10:50] = 30
    assert np.array_equal(despeckle(screen, Model(ModelConfig(width=8), network)), screen)


def test_colored_pixels_and_alpha_are_kept_and_grey_ones_keep_their_hue(rng):
    grey = rng.integers(40, 200, (2, 40, 40, 1)).astype(np.uint8)
    frames = np.concatenate([grey, grey, grey, np.full_like(grey, 255)], -1)
    frames[:, 10:20, 10:20, 0] = 250
    frames[:, 10:20, 10:20, 2] = 0
    output = despeckle(frames, blur, region=None)
    assert np.array_equal(output[:, 10:20, 10:20], frames[:, 10:20, 10:20])
    assert np.array_equal(output[..., 3], frames[..., 3])
    rest = output[:, 25:, 25:, :3].astype(int)
    assert np.ptp(rest, axis=-1).max() == 0
    assert rest.std() < 0.5 * frames[:, 25:, 25:, :3].std()


@pytest.mark.parametrize("shape", [(8, 8), (9, 70), (65, 31), (100, 8)])
@pytest.mark.parametrize("architecture", ["fast", "published"])
def test_frames_of_any_size_are_despeckled(rng, network, shape, architecture):
    frames = rng.uniform(0, 255, (2, *shape)).astype(np.float32)
    if architecture == "fast":
        model = Model(ModelConfig(width=8, grain=(0.75, 1.7)), network)
    else:
        model = Model(ModelConfig("published", scales=1, normalisation="frame"), SpeckleReductionNetwork(1))
    output = despeckle(frames, model, region=None)
    assert output.shape == frames.shape and np.isfinite(output).all()


def test_memory_is_bounded_by_blocks(rng):
    seen = []

    def spy(frames):
        seen.append(len(frames))
        return frames

    despeckle(rng.integers(0, 255, (9, 512, 512)).astype(np.uint8), spy, region=None)
    assert sum(seen) == 9 and max(seen) <= 4


def test_progress_counts_all_frames_and_cancel_stops_between_blocks(rng):
    frames = rng.integers(0, 255, (9, 256, 256)).astype(np.uint8)
    steps = []
    despeckle(frames, nothing, region=None, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(3, 9), (6, 9), (9, 9)]
    steps.clear()
    with pytest.raises(Cancelled):
        despeckle(
            frames,
            nothing,
            region=None,
            progress=lambda done, total: steps.append(done),
            cancelled=lambda: bool(steps),
        )
    assert steps == [3]


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (2, [1, 1]), (10, [3, 3, 2, 2]), (16, [4] * 4), (5, [3, 2])])
def test_blocks_are_of_similar_size_so_that_no_core_waits_at_the_end(monkeypatch, count, sizes):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    blocks, at_once = despeckling._split_into_blocks(count, 256 * 256, torch.device("cpu"), one_by_one=False)
    assert [block.stop - block.start for block in blocks] == sizes and at_once == 2
    assert blocks[0].start == 0 and blocks[-1].stop == count


def test_the_box_of_a_region_is_found_without_a_search():
    region = np.zeros((30, 40), bool)
    region[[7, 12], [35, 4]] = True
    assert box_of(region) == (slice(7, 13), slice(4, 36))


class Watched(torch.nn.Module):
    """A network that returns what the test demands."""

    margin, multiple = 0, 8

    def __init__(self, forward):
        super().__init__()
        self.forward = forward

    def __deepcopy__(self, memo):
        return self


@pytest.fixture
def three_at_once(monkeypatch):
    """Use blocks of one frame of 40 x 48 pixels, on three threads."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(despeckling, "BLOCK_PIXELS_CPU", 40 * 48)
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


def test_blocks_in_parallel_have_the_same_results_as_one_by_one(rng, network, three_at_once):
    model, frames, steps = Model(ModelConfig(), network), rng.integers(20, 220, (7, 40, 48)).astype(np.uint8), []
    found = replace(calibrate(frames, None), mapping=(0, 255), bounds=None)
    together = despeckle(frames, model, calibration=found, progress=lambda *step: steps.append(step))
    assert steps == [(n, 7) for n in range(1, 8)] and torch.get_num_threads() == 3
    torch.set_num_threads(1)
    for frame, output in zip(frames, together, strict=True):
        assert np.array_equal(despeckle(frame, model, calibration=found), output)


def test_a_cancel_or_an_error_stops_the_blocks_that_have_not_begun(rng, three_at_once):
    frames, begun = rng.integers(20, 220, (60, 40, 48)).astype(np.uint8), []

    def forward(x):
        begun.append(x)
        time.sleep(0.01)
        if len(begun) > 10:
            raise MemoryError("for the test")
        return x

    model = Model(ModelConfig(), Watched(forward))
    with pytest.raises(Cancelled):
        despeckle(frames, model, region=None, cancelled=lambda: len(begun) > 2)
    assert len(begun) < 10
    with pytest.raises(MemoryError):
        despeckle(frames, model, region=None)
    assert len(begun) < 30 and torch.get_num_threads() == 3


def test_a_thread_that_starts_during_a_run_and_ends_last_leaves_all_cores_to_later_threads(cine, three_at_once):
    torch.set_num_threads(4)  # each of two frames uses two of them, as does a thread that starts torch then
    begun, ended, seen, others = threading.Event(), threading.Event(), [], ThreadPoolExecutor(2)

    def run(forward):
        despeckle(cine[:2], Model(ModelConfig(), Watched(forward)), region=None, precision=torch.float32)

    def begin_another(x):
        others.submit(run, last)
        begun.wait(5)
        return x

    def last(x):
        begun.set()
        ended.wait(5)
        return x

    run(begin_another)
    ended.set()
    others.shutdown()
    threading.Thread(target=lambda: seen.append(torch.get_num_threads())).start()
    while not seen:
        time.sleep(0.01)
    assert seen == [4]


def test_a_thread_that_cannot_start_is_reported_at_once(cine, network, three_at_once, monkeypatch):
    start, started = threading.Thread.start, []

    def second_fails(thread):
        started.append(thread)
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", second_fails)
    began = time.monotonic()
    with pytest.raises(RuntimeError) as error:
        despeckle(cine, Model(ModelConfig(width=8), network), region=None, precision=torch.float32)
    assert out_of_memory(error.value) and time.monotonic() < began + 0.9 and torch.get_num_threads() == 3


@pytest.mark.parametrize(
    ("frames", "options"),
    [
        (np.zeros((1, 1)), {}),
        (np.zeros((2, 7, 40)), {}),
        (np.zeros((0, 32, 32)), {}),
        (np.zeros(32), {}),
        (np.zeros((2, 32, 32, 2)), {}),
        (np.zeros((32, 32), complex), {}),
        (np.full((32, 32), "a"), {}),
        (np.full((32, 32), np.nan), {}),
        (np.full((3, 32, 32), 7, np.uint8), {}),
        (np.eye(32), {"strength": 1.5}),
        (np.eye(32), {"sharpness": 1}),
        (np.eye(32), {"axis": "k"}),
        (np.eye(32), {"gamma": 0}),
        (np.eye(32), {"region": np.ones((3, 3), bool)}),
        (np.eye(32), {"region": "nonsense"}),
        (np.eye(32), {"model": "no such model"}),
        (np.eye(32), {"model": "default", "device": "abacus"}),
    ],
)
def test_bad_input_is_refused_in_one_sentence(frames, options):
    with pytest.raises(InputError) as error:
        despeckle(frames, **{"model": nothing, "region": None, **options})
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


@pytest.mark.parametrize("wrong", [{"grain": (np.nan, 1.0)}, {"grain": (0, 1)}, {"mapping": (0, np.nan)}])
def test_a_calibration_without_valid_lengths_or_grey_values_is_refused(wrong):
    with pytest.raises(InputError, match=r"^[A-Z][^\n]*\.$"):
        Calibration(**{"region": np.ones((32, 32), bool), "mapping": (0, 255), **wrong})


def test_the_result_can_be_written_into_the_callers_array(cine):
    output = np.zeros_like(cine)
    assert despeckle(cine, blur, output=output) is output
    np.testing.assert_array_equal(output, despeckle(cine, blur))
    one = np.zeros_like(cine[0])
    np.testing.assert_array_equal(despeckle(cine[0], blur, output=one), one)
    for wrong in (np.zeros_like(cine[:2]), cine.astype(float), np.zeros_like(cine)[:, :, ::-1]):
        with pytest.raises(InputError, match="contiguous"):
            despeckle(cine, blur, output=wrong)


@pytest.mark.parametrize("moves", [False, True])
def test_graphics_are_kept_and_leave_no_trace_in_the_tissue_next_to_them(cine, monkeypatch, moves):
    """Whatever is drawn: the tissue around it becomes the same."""
    drawn = np.zeros(cine.shape, bool)
    for number, mask in enumerate(drawn):
        mask[10 + 5 * number * moves : 18 + 5 * number * moves, 12:30] = True
    bright, dark = np.where(drawn, 255, cine), np.where(drawn, 0, cine)
    monkeypatch.setattr(despeckling, "find_graphics", lambda values, bounds: drawn[: len(values)])
    found = Calibration(np.ones((40, 48), bool), (20, 219), bounds=(0, 255), graphics=moves or drawn[0])
    outputs = [despeckle(frames.astype(np.uint8), blur, calibration=found) for frames in (bright, dark)]
    assert np.array_equal(outputs[0][drawn], bright[drawn]) and np.array_equal(outputs[1][drawn], dark[drawn])
    assert np.array_equal(outputs[0][~drawn], outputs[1][~drawn])
    assert (outputs[0] != bright)[~drawn].mean() > 0.9


def test_a_given_region_and_whole_frames_are_not_searched_for_graphics(cine, monkeypatch):
    monkeypatch.setattr(despeckling, "find_graphics", None)
    for region in (None, np.ones((40, 48), bool)):
        assert (despeckle(cine, blur, region=region) != cine).mean() > 0.9


def test_with_a_given_mapping_a_frame_does_not_depend_on_its_neighbors(cine):
    found = replace(calibrate(cine, None), mapping=(0, 255), bounds=None)
    alone = despeckle(cine[1], blur, calibration=found)
    together = despeckle(cine, blur, calibration=found)[1]
    assert (alone != cine[1]).any() and np.abs(alone.astype(int) - together).max() == 0


def test_a_few_pixels_of_another_scale_do_not_flatten_the_rest(rng):
    """Tissue up to 1000 in 16 bits, and marks at 65535, as some exports have."""
    frames = np.clip(rng.rayleigh(250, (4, 128, 128)), 0, 1000).astype(np.uint16)
    low, high = grey_mapping(frames, None)
    frames[:, 3, 5:15] = 65535
    assert grey_mapping(frames, None)[1] - low < 2 * (high - low)


@pytest.mark.parametrize("floor", [-100, -150, -300])
def test_decibels_for_no_signal_do_not_flatten_the_rest(rng, floor):
    tissue = np.clip(20 * np.log10(rng.rayleigh(0.1, (4, 128, 128))), -70, 0).astype(np.float32)
    low, high = grey_mapping(tissue, None)
    frames = tissue.copy()
    frames[:, 40:60, 40:60] = floor
    assert grey_mapping(frames, None) == pytest.approx((min(low, high - 60), high), abs=2)
    frames[:, 20:30] = -90  # a display that is as deep as this
    frames[:, 20:30, 1::2] = -80
    assert grey_mapping(frames, None)[0] <= -90


def test_colors_of_16_bits_do_not_depend_on_other_frames(rng, network, monkeypatch):
    frames = rng.integers(0, 4000, (4, 48, 48, 1)).repeat(3, -1).astype(np.uint16)
    frames[..., 0] += 300
    frames[3, 10:20, 10:20] = 60000
    model = Model(ModelConfig(width=8), network)
    whole = despeckle(frames, model, region=None)
    monkeypatch.setattr(despeckling, "BLOCK_PIXELS_CPU", 1)
    assert np.abs(despeckle(frames, model, region=None).astype(int) - whole).max() <= 1
