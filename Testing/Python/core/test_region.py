"""Only ultrasound is despeckled: what the region includes and excludes."""

import io
from dataclasses import replace

import numpy as np
import pydicom.examples
import pytest
import SimpleITK as sitk
import torch
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from Speckle2SelfBench.natural import SCANNERS, photograph
from Speckle2SelfLib import files
from Speckle2SelfLib.calibration import calibrate
from Speckle2SelfLib.despeckling import despeckle
from Speckle2SelfLib.detector import graphics_over_time, runs_of_one_value
from Speckle2SelfLib.region import _find_rims, detect, grey
from Speckle2SelfLib.simulation import SimulationConfig, simulate


@pytest.fixture(scope="module")
def sector():
    """Return a simulated sector cine with a white letter-like cross outside and one inside, and a grey bar."""
    simulated = simulate(
        SimulationConfig((240, 320), 6, (1.5, 2.5), "organ", "sector", np.inf), np.random.default_rng(4)
    )
    frames = np.round(simulated.frames * 200).astype(np.uint8)
    for y, x in ((10, 10), (120, 160)):
        frames[:, y : y + 9, x + 4] = 255
        frames[:, y + 4, x : x + 9] = 255
    frames[:, 60:160, 300:306] = np.linspace(0, 250, 100, dtype=np.uint8)[:, None]
    return frames, simulated.region


@pytest.mark.filterwarnings("error")
def test_colors_that_are_not_finite_do_not_hide_the_region(sector):
    frames = (sector[0][..., None].repeat(3, -1) / 255).astype(np.float32)
    found = detect(frames)
    frames[0, 130, 130, 1], frames[1, 140, 150], frames[2] = np.nan, np.inf, np.nan
    assert found.any() and (detect(frames) != found).mean() < 0.01


def test_a_sector_is_found_without_text_and_bars(sector):
    frames, imaged = sector
    region = detect(frames)
    assert region[imaged].mean() > 0.9
    assert region[~imaged].mean() < 0.05
    assert not region[5:25, 5:25].any() and not region[60:160, 300:306].any()


def test_a_still_overlay_amid_moving_speckle_is_left_out(sector):
    frames, _ = sector
    region = detect(frames)
    assert not region[120:129, 164].any() and not region[124, 160:169].any()
    assert region[100:150, 140:190].mean() > 0.8


def test_nothing_between_two_nearly_black_images_is_painted():
    """Only the skin is light. Deeper tissue is nearly black, but not as black as the gap."""
    tissue = simulate(SimulationConfig((140, 60), 1, (1.2, 2.0), "layers"), np.random.default_rng(0)).frames[0]
    frames, depth = np.zeros((1, 180, 360), np.uint8), np.arange(140)[:, None]
    for left, decay in ((20, 10), (280, 20)):
        frames[0, 20:160, left : left + 60] = np.round(2 + 240 * tissue * np.exp(-depth / decay))
    region = detect(frames)
    assert region[25:45, 25:75].mean() > 0.95 and region[25:45, 285:335].mean() > 0.95
    assert not region[:, 85:275].any()


def test_a_frame_full_of_tissue_is_one_region():
    frames = simulate(SimulationConfig((128, 128), 6, (1.2, 2.4), "vessel"), np.random.default_rng(0)).frames
    assert detect(np.round(frames * 255).astype(np.uint8)).mean() > 0.97


def test_margins_are_excluded_and_a_dark_cyst_is_included():
    frames = np.zeros((5, 200, 260), np.uint8)
    tissue = simulate(
        SimulationConfig((200, 160), 5, (1.5, 3), "flat", roughness=np.inf), np.random.default_rng(2)
    ).frames
    frames[:, :, 50:210] = np.round(40 + tissue * 200)
    y, x = np.mgrid[:200, :260]
    cyst = np.hypot(y - 100, x - 130) < 20
    frames[:, cyst] = 0
    region = detect(frames)
    assert not region[:, :50].any() and not region[:, 210:].any()
    assert region[cyst].mean() > 0.96


def even_tissue():
    """Return a frame (1, 240, 320) uint8."""
    config = SimulationConfig((240, 320), 1, (1.5, 3), "flat", roughness=np.inf)
    return np.round(20 + simulate(config, np.random.default_rng(2)).frames * 180).astype(np.uint8)


def test_marks_in_the_dark_and_on_the_wall_of_a_cyst_are_left_out():
    frame = simulate(
        SimulationConfig((240, 320), 1, (1.5, 3), "flat", roughness=np.inf), np.random.default_rng(2)
    ).frames
    frame = np.round(20 + frame * 180).astype(np.uint8)
    y, x = np.mgrid[:240, :320]
    cyst = np.hypot((y - 120) / 32, (x - 160) / 45) < 1
    frame[:, cyst] = 0
    marks = np.zeros(cyst.shape, bool)
    for column in (115, 205):
        marks[114:127, column] = marks[120, column - 6 : column + 7] = True
    marks[120, 125:200:5] = True
    frame[:, marks] = 255
    region = detect(frame)
    assert not region[marks].any()
    assert region[cyst & ~ndimage.binary_dilation(marks, np.ones((3, 3)), 4)].mean() > 0.95


def test_the_black_ground_of_white_text_is_left_out():
    frame = simulate(
        SimulationConfig((240, 320), 1, (1.5, 3), "flat", roughness=np.inf), np.random.default_rng(2)
    ).frames
    frame = np.round(20 + frame * 180).astype(np.uint8)
    label = Image.new("L", (116, 22))
    ImageDraw.Draw(label).text((6, 2), "WF WF RT", 255, ImageFont.load_default(16))
    frame[:, 150:172, 90:206] = np.asarray(label)
    region = detect(frame)
    assert not region[150:172, 90:206].any() and region.mean() > 0.9


def test_decibels_with_gaps_are_as_good_as_grey_values(sector):
    frames, imaged = sector
    decibels = frames / 255.0 * 60 - 60
    decibels[:, :10] = np.nan
    region = detect(decibels)
    assert region[10:][imaged[10:]].mean() > 0.9
    assert region[~imaged].mean() < 0.05


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_constant_cine_has_no_region(value):
    assert not detect(np.full((4, 64, 64), value, np.uint8)).any()


def test_only_the_given_part_is_searched(sector):
    frames, _ = sector
    within = np.zeros((240, 320), bool)
    within[:, :160] = True
    region = detect(frames, within)
    assert region.any() and not region[:, 160:].any()


def test_grey_tolerates_what_jpeg_does_to_grey_and_nothing_more():
    pixels = np.array([[[[90, 92, 88], [200, 195, 205], [0, 0, 6], [200, 40, 40], [60, 60, 120]]]], np.uint8)
    assert grey(pixels).tolist() == [[[True, True, True, False, False]]]


CINE_TEXT = [(0, 30, 0, 40), (10, 34, 300, 320), (60, 100, 300, 320), (115, 145, 300, 320), (195, 210, 283, 300),
             (225, 240, 36, 285)]  # fmt: skip


def test_the_cardiac_cine_is_found_without_its_text_and_is_grey():
    frames = files.read(pydicom.examples.get_path("ybr_color")).frames
    region = detect(frames)
    for top, bottom, left, right in CINE_TEXT:
        assert not region[top:bottom, left:right].any()
    assert region[40:190, 130:200].mean() > 0.99
    assert np.array_equal(region, ndimage.binary_fill_holes(region)), "the probe's face hardly moves"
    assert ndimage.label(region)[1] == 1, "nothing of the ticks next to the sector"
    assert grey(frames)[:, 60:180, 120:210].mean() > 0.999


FRAME_GRABBER_TEXT = [(20, 50, 20, 110), (34, 50, 230, 380), (10, 260, 518, 640), (55, 165, 20, 40), (60, 75, 45, 150),
                      (80, 360, 48, 58), (243, 258, 57, 68), (360, 378, 325, 342), (400, 480, 0, 640)]  # fmt: skip


def test_the_frame_grabber_recording_is_found_without_its_text(shared_data):
    path = shared_data / "plus" / "USTC_FrameGrabber_ProbeTranslationData.igs.mha"
    frames = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    region = detect(frames)
    shown = frames[::40]
    text = (changeable(shown, region) & (shown > 80)).any(0)  # some boxes touch the fan's faint rim
    for top, bottom, left, right in FRAME_GRABBER_TEXT:
        assert not text[top:bottom, left:right].any()
    assert region[200:350, 150:400].mean() > 0.6


def test_the_linear_recording_loses_only_its_margins(shared_data):
    path = shared_data / "plus" / "BoneUltrasound_L14.igs.mha"
    region = detect(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
    assert not region[:, :175].any() and not region[:, 644:].any()
    assert region[10:610, 180:640].mean() > 0.99


def test_a_screen_of_windows_is_not_ultrasound(shared_data):
    path = shared_data / "plus" / "ColorNrrdSample.igs.nrrd"
    assert not detect(sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[None]).any()


def test_tissue_that_hardly_moves_is_not_mistaken_for_graphics():
    """Six frames of a probe that is held still: some pixels do not change by chance, and letters never do."""
    rng = np.random.default_rng(0)
    speckle = rng.rayleigh(50, (200, 200))
    frames = np.zeros((6, 240, 240), np.uint8)
    for frame in frames:
        frame[20:220, 20:220] = (speckle + rng.normal(0, 4, speckle.shape)).clip(1, 255)
    frames[:, 100:112, 100:103] = 255
    region = detect(frames)
    tissue = np.zeros((240, 240), bool)
    tissue[20:220, 20:220] = True
    tissue[95:117, 95:108] = False
    assert region[tissue].mean() > 0.95
    assert not region[100:112, 100:103].any()


@pytest.mark.parametrize("name, text, lines", [
    ("jpeg2k", [(135, 150, 8, 42), (215, 232, 8, 42), (135, 150, 598, 632), (215, 232, 598, 632)],
     [(158, 205, 8, 18), (148, 294, 87, 88), (148, 294, 547, 548), (149, 150, 87, 547), (293, 294, 87, 547)]),
    ("rgb_color", [(66, 75, 4, 20), (108, 116, 4, 20), (66, 75, 300, 316)],
     [(76, 146, 43, 44), (76, 146, 158, 159), (76, 146, 273, 274), (147, 148, 180, 270)]),
])  # fmt: skip
def test_text_scales_and_a_doppler_window_on_a_still_image_are_kept(name, text, lines):
    frames = getattr(pydicom.examples, name).pixel_array[None]
    region = detect(frames)
    bright = frames[0].min(-1) > 140
    for top, bottom, left, right in text:
        assert bright[top:bottom, left:right].any() and not (region & bright)[top:bottom, left:right].any()
    for top, bottom, left, right in lines:
        assert not region[top:bottom, left:right].any()
    assert region.mean() > 0.27, "the tissue inside and outside the window is there"


def test_a_doppler_window_survives_compression():
    file = io.BytesIO()
    Image.fromarray(pydicom.examples.jpeg2k.pixel_array).save(file, "JPEG", quality=80)
    region = detect(np.asarray(Image.open(file))[None])
    for column in (87, 547):
        assert not region[152:290, column].any()


def test_a_colored_bar_across_the_screen_does_not_hide_the_region():
    region = detect(files.read(pydicom.examples.get_path("palette_color")).frames)
    assert region[100:140, 360:560].mean() > 0.95
    assert not region[:62].any() and not region[:, :320].any() and not region[200:].any()


def test_noise_that_was_enlarged_by_repeating_pixels_is_tissue():
    noise = np.random.default_rng(0).rayleigh(40, (1, 48, 64)).clip(1, 255).astype(np.uint8)
    assert detect(noise.repeat(2, 1).repeat(2, 2)).mean() > 0.95


def test_hardly_any_tissue_is_mistaken_for_graphics_in_a_single_frame():
    taken = []
    for seed in range(12):
        made = simulate(SimulationConfig((200, 200), 1, (1.0, 1.6)), np.random.default_rng(seed))
        taken.append(graphics_over_time(np.round(made.frames * 255))[0].mean())
    assert np.mean(taken) < 0.003, taken


def test_tissue_that_changes_is_not_mistaken_for_static_graphics():
    decibels = 38 * (photograph("camera", 256) - 1)  # its background is saturated, and reaches the edges
    frames = SCANNERS[0].frames(decibels, 2, np.random.default_rng(1))
    assert detect(frames).mean() > 0.995
    frames[:, 180:183, 40:100] = 255  # a line
    assert not detect(frames)[180:183, 40:100].any()


def test_a_moving_trace_as_bright_as_tissue_is_found():
    """It has one grey value, which many pixels of the tissue exceed."""
    frames = np.round(20 + 230 * tissue((200, 240), 5, 4, "flat"))
    y, x = np.mgrid[:200, :240]
    level = np.quantile(frames, 0.85).round()
    traces = np.stack([np.abs(y - 120 - 9 * np.sin((x + 25 * n) / 18)) < 1.6 for n in range(4)])
    _, moving, _ = graphics_over_time(np.where(traces, level, frames))
    assert moving[traces].mean() > 0.95 and moving.mean() < traces.mean() + 0.04
    assert graphics_over_time(frames)[1].mean() < 0.003


def test_saturated_and_dark_tissue_is_not_mistaken_for_a_line_of_one_value():
    frame = np.round(300 * tissue((160, 200), 6, 1, "layers")).clip(5, 200)
    frame[20:26, 30:44] = 255  # letters are brighter than the tissue
    runs = runs_of_one_value(torch.from_numpy(frame), 6)[0].numpy()
    assert (runs & (frame == 200)).any() and (runs & (frame == 5)).any()
    assert graphics_over_time(frame)[1][0][frame[0] == 200].mean() < 0.02


@pytest.mark.parametrize("change", [lambda x: x.repeat(3, 1).repeat(3, 2), lambda x: x // 24 * 24])
def test_runs_of_one_value_count_for_nothing_in_enlarged_frames_and_those_of_few_grey_values(monkeypatch, change):
    frame = change(np.round(255 * tissue((100, 120), 8, 1)))
    assert runs_of_one_value(torch.from_numpy(frame), 6).float().mean() > 0.05
    found = graphics_over_time(frame)[0]
    monkeypatch.setattr("Speckle2SelfLib.detector.POSSIBLE", np.inf)
    assert np.array_equal(found, graphics_over_time(frame)[0])


@pytest.mark.parametrize("length", [2, 3, 6])
def test_runs_of_one_value_are_found_along_rows_columns_and_diagonals(length):
    values = np.random.default_rng(0).integers(0, 3, (2, 23, 31))
    expected = np.zeros(values.shape, bool)
    for n, y, x in np.ndindex(values.shape):
        for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
            places = [(n, y + k * down, x + k * right) for k in range(length)]
            if places[-1][1] < 23 and 0 <= places[-1][2] < 31 and len({values[place] for place in places}) == 1:
                expected[tuple(np.transpose(places))] = True
    assert np.array_equal(runs_of_one_value(torch.from_numpy(values).float(), length).numpy(), expected)


def placed(frames, canvas, inside):
    """Return frames placed where `inside` (H, W) is True, on black, (N, H, W) uint8; (H, W) is the canvas's size."""
    screen = np.zeros((len(frames), *canvas), np.uint8)
    values = np.round(8 + frames * 240)[:, : canvas[0], : canvas[1]]
    np.copyto(screen, values.astype(np.uint8), where=inside)
    return screen


def tissue(size, seed, frames=1, layout="organ"):
    return simulate(SimulationConfig(size, frames, (1.1, 1.7), layout), np.random.default_rng(seed)).frames


def trapezoid(size, lean):
    """Return a linear probe's image with steered sides, in the middle of a black screen (H, W) bool."""
    y, x = np.mgrid[: size[0], : size[1]]
    return (np.abs(x - size[1] / 2) < size[1] / 3 + lean * (y - size[0] / 2)) & (y >= 12) & (y < size[0] - 12)


def fan(size, center, inner, outer, half):
    """Return a curved probe's image with its arc on top (H, W) bool; center (x, y) of the arcs, half its opening
    (rad)."""
    y, x = np.mgrid[: size[0], : size[1]]
    depth, angle = np.hypot(y - center[1], x - center[0]), np.arctan2(x - center[0], y - center[1])
    return (depth >= inner) & (depth < outer) & (np.abs(angle) < half)


CURVED = fan((240, 320), (160, -60), 80, 280, 0.5)
SHAPES = {
    "trapezoid, leaning a little": trapezoid((240, 320), 0.04),
    "trapezoid, leaning more": trapezoid((240, 320), -0.12),
    "curved": CURVED,
    "two curved": fan((240, 320), (80, -20), 40, 240, 0.33) | fan((240, 320), (240, -20), 40, 240, 0.33),
    "two linear": (np.abs(np.arange(320) - 160) > 5) & trapezoid((240, 320), 0),
}


@pytest.mark.parametrize("frames", [1, 6])
@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_is_painted_outside_an_image_of_any_shape(shape, frames):
    inside = SHAPES[shape]
    region = detect(placed(tissue((240, 320), 3, frames), (240, 320), inside))
    assert (region & ~inside).mean() <= 1e-4
    assert region[inside].mean() > 0.98


@pytest.mark.parametrize("frames", [1, 5])
def test_a_box_over_a_name_is_kept_black_with_its_rim(frames):
    inside = trapezoid((200, 260), 0)
    screen = placed(tissue((200, 260), 5, frames), (200, 260), inside)
    screen[:, 130:152, 120:180] = 0
    region = detect(screen)
    assert not region[130:152, 120:180].any()
    inside[126:156, 116:184] = False
    assert region[inside].mean() > 0.94, "pixels that are left out are next to black"


def test_a_straight_fascia_is_tissue():
    """It is as bright as a ruled line, but its brightness varies along it, and it fades over some pixels."""
    frames = tissue((160, 200), 7, layout="flat") * 0.6
    along = 0.75 + 0.06 * ndimage.gaussian_filter1d(np.random.default_rng(1).standard_normal(200), 2, mode="wrap") * 3
    for row, share in zip(range(76, 83), (0.3, 0.6, 0.9, 1.0, 0.9, 0.6, 0.3), strict=True):
        frames[0, row, 30:170] = np.maximum(frames[0, row, 30:170], (along * share)[30:170])
    region = detect(np.round(frames * 255).astype(np.uint8))
    assert region[70:90, 20:180].mean() > 0.99


def test_a_screen_of_panels_around_an_image_is_left_as_it_is():
    screen = np.full((1, 240, 320), 235, np.uint8)
    screen[:, 110:230, 130:310] = 0
    screen[:, 115:225, 140:260] = np.round(tissue((110, 120), 2) * 255)
    rng = np.random.default_rng(0)
    for y, x in rng.integers(10, 100, (60, 2)):  # labels
        screen[:, y, x : x + 7] = 20
    assert not detect(screen).any()


@pytest.mark.parametrize("name, lost", [("trapezoid/trapezoid", "outside"), ("blackout_box/box", "box")])
def test_the_black_parts_of_the_shared_inputs_are_kept(shared_data, name, lost):
    path = shared_data / "faults" / f"{name}.png"
    region = detect(np.asarray(Image.open(path))[None])
    if lost == "outside":
        assert not region[~np.load(path.with_name("inside.npy")).astype(bool)].any()
    else:
        assert not region[200:240, 220:320].any()
    assert region.mean() > 0.6


def test_the_shared_screen_of_windows_and_the_shared_fascia(shared_data):
    faults = shared_data / "faults"
    assert not detect(np.asarray(Image.open(faults / "screenshot" / "slicer_window.png"))[None]).any()
    region = detect(np.asarray(Image.open(faults / "layer_as_ruled" / "thyroid_crop.png"))[None])
    assert region[80:90, 25:107].all()


def crossed(frames, y, x, reach):
    """Draw a caliper's cross of three bright pixels' width with a dark rim on frames (N, H, W); return where."""
    mask = np.zeros(frames.shape[1:], bool)
    mask[y - 1 : y + 2, x - reach : x + reach] = mask[y - reach : y + reach, x - 1 : x + 2] = True
    frames[:, ndimage.binary_dilation(mask, np.ones((3, 3)))] = 0
    frames[:, mask] = 255
    return mask


@pytest.mark.parametrize("count", [1, 8])
def test_calipers_and_dotted_lines_on_tissue_are_kept(count):
    frames = np.round(tissue((160, 200), 4, count) * 190).astype(np.uint8)
    drawn = crossed(frames, 60, 50, 12) | crossed(frames, 110, 150, 12)
    for step in np.linspace(0.15, 0.85, 14):
        y, x = round(60 + 50 * step), round(50 + 100 * step)
        frames[:, y : y + 2, x : x + 2] = 255
        drawn[y : y + 2, x : x + 2] = True
    region = detect(frames)
    assert (region & drawn).sum() <= 0.02 * drawn.sum()
    assert region[~ndimage.binary_dilation(drawn, iterations=5)].mean() > 0.98


def test_ticks_at_the_edge_of_the_image_are_kept():
    frames = np.zeros((1, 180, 240), np.uint8)
    frames[:, 15:165, 20:] = np.round(tissue((150, 220), 9) * 190)
    drawn = np.zeros((180, 240), bool)
    for row in range(20, 160, 18):
        drawn[row : row + 2, 240 - (14 if row % 4 else 9) :] = True
    frames[:, drawn] = 210
    assert not (detect(frames) & drawn).any()


def changeable(frames, region=None):
    """Return where despeckling may change frames (N, H, W), bool, found with a filter that changes every pixel.

    region: the region of the frames' recording; None: it is detected in them.
    """
    found = calibrate(frames, with_grain=False)
    found = found if region is None else replace(found, region=region)
    shift = lambda values: np.where(values > 0.5, values - 0.3, values + 0.3)  # noqa: E731
    return despeckle(frames, shift, calibration=found) != frames


def test_a_scrolling_trace_is_preserved_in_every_frame_and_the_tissue_that_it_crosses_is_despeckled():
    frames = np.round(tissue((160, 200), 6, 8, "flat") * 150).astype(np.uint8)
    x = np.arange(200)
    for number, frame in enumerate(frames):
        height = np.where((x + 7 * number) % 50 < 3, 20, 0)
        for column in x:
            frame[130 - height[column] : 132, column] = 255
    changes = changeable(frames)
    assert (changes & (frames == 255)).sum() <= 0.01 * (frames == 255).sum()
    assert changes[:, :90].mean() > 0.95 and changes[:, 108:126].mean() > 0.7


def test_the_shared_graphics_are_kept(shared_data):
    faults = shared_data / "faults"
    overlays, mask = (np.load(faults / "cine_overlays" / f"{name}.npz")["arr_0"] for name in ("overlays", "mask"))
    changes = changeable(overlays)
    assert (mask & changes).sum() <= 0.01 * mask.sum()
    ticks = np.asarray(Image.open(faults / "scale_ticks" / "ticks.png"))
    drawn = (ticks == 210) & (ndimage.uniform_filter((ticks == 210).astype(float), (1, 5)) > 0.99)
    assert drawn.sum() > 50 and not (detect(ticks[None]) & drawn).any()
    lines = np.asarray(Image.open(faults / "caliper_still" / "measure_lines.png"))
    white = np.zeros(lines.shape[:2], bool)
    white[350:380, 155:185] = lines[350:380, 155:185].min(-1) > 250
    assert (detect(lines[None]) & white).sum() < 0.1 * white.sum()


def test_the_sharp_edge_of_an_image_is_tissue_and_lines_along_it_are_not():
    level = np.zeros((60, 80))
    level[:40] = 90 + 20 * np.random.default_rng(0).standard_normal((40, 80))
    level[38:40] *= 0.8
    found = np.zeros(level.shape, bool)
    found[38:43, 5:35] = found[38:43, 45:75] = found[50:54, 10:40] = found[20:24, 10:40] = True
    level[40, 46:74] = level[51, 11:39] = level[21, 11:39] = 200  # ruled along the edge, on black, on tissue
    rims = _find_rims(found, level, level > 10)
    assert rims[38:43, 5:35].all() and rims.sum() == 150


def test_the_cardiac_fan_is_found_down_to_its_lower_edge():
    frames = files.read(pydicom.examples.get_path("ybr_color")).frames
    region, lit = detect(frames), frames[..., 0].max(0) > 12
    assert region[190:201, 136:200][lit[190:201, 136:200]].all()
