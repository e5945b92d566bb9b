"""Simulated graphics: everything that is drawn is in the mask, and nothing else changes."""

import sys
import time

import numpy as np
import pytest

from Speckle2SelfBench.graphics_cases import graphics_cases, shift
from Speckle2SelfLib import graphics
from Speckle2SelfLib.calibration import calibrate
from Speckle2SelfLib.despeckling import despeckle
from Speckle2SelfLib.graphics import FONTS, HELD_OUT_FONTS, KINDS, draw_graphics
from Speckle2SelfLib.system import InputError

GROUND = np.full((5, 96, 120), 90, np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_changes_the_pixels_of_its_mask_and_no_others(kind):
    drawn = 0
    for seed in range(6):
        frames, mask = draw_graphics(GROUND, np.random.default_rng(seed), kinds=(kind,), count=2, jpeg=0)
        assert frames.shape == mask.shape == GROUND.shape and frames.dtype == np.uint8
        assert np.array_equal(frames[~mask], GROUND[~mask])
        assert np.mean(frames[mask] != 90) > 0.7 or not mask.any()
        drawn += mask.any()
    assert drawn >= 3


def test_equal_seeds_draw_equal_pictures_and_others_do_not():
    one, same, other = (draw_graphics(GROUND, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one.frames, same.frames) and np.array_equal(one.mask, same.mask)
    assert not np.array_equal(one.mask, other.mask)


def test_a_single_frame_in_floating_point_is_returned_as_one():
    frame = np.full((64, 64), 0.3, np.float32)
    frames, mask = draw_graphics(frame, np.random.default_rng(3), jpeg=0)
    assert frames.shape == mask.shape == (64, 64) and frames.dtype == np.float32
    assert mask.any() and np.abs(frames[~mask] - 0.3).max() < 1e-6 and frames.min() >= 0 and frames.max() <= 1


def test_clocks_and_traces_move_and_names_do_not():
    for kind, moves in (("clock", True), ("trace", True), ("text", False), ("panel", False)):
        masks = [draw_graphics(GROUND, np.random.default_rng(s), kinds=(kind,), count=1).mask for s in range(5)]
        assert any((mask != mask[:1]).any() for mask in masks) == moves, kind


def test_compression_leaves_the_mask_and_blurs_the_frames():
    plain, packed = (draw_graphics(GROUND[:1], np.random.default_rng(8), jpeg=share) for share in (0, 1))
    assert np.array_equal(plain.mask, packed.mask)
    assert (plain.frames != packed.frames).any()
    assert np.abs(plain.frames.astype(int) - packed.frames)[~plain.mask].mean() < 4


def test_no_font_is_both_trained_on_and_measured_with(monkeypatch):
    assert not set(FONTS) & set(HELD_OUT_FONTS)
    used, original = set(), graphics._font
    monkeypatch.setattr(graphics, "_font", lambda name, size: used.add(name) or original(name, size))
    for seed in range(30):
        draw_graphics(GROUND[:1], np.random.default_rng(seed), held_out=True, kinds=("text",))
    assert used == set(HELD_OUT_FONTS)


def test_every_font_writes_every_letter():
    for font in FONTS + HELD_OUT_FONTS:
        canvas = graphics.Canvas((40, 400), 1, True)
        canvas.text((2, 2), "12.5 cm/s LIVER Dist: -3", font, 14)
        assert (np.asarray(canvas.image) > 100).sum() > 150, font


def test_a_crop_is_drawn_within_milliseconds():
    crop = np.zeros((128, 128), np.float32)
    draw_graphics(crop, np.random.default_rng(0))
    began = time.perf_counter()
    for seed in range(40):
        draw_graphics(crop, np.random.default_rng(seed))
    assert (time.perf_counter() - began) / 40 < 0.1


def test_missing_matplotlib_and_pixels_of_another_type_are_reported(monkeypatch):
    with pytest.raises(InputError, match="uint8 or in"):
        draw_graphics(GROUND.astype(np.int32), np.random.default_rng(0))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    graphics._font.cache_clear()
    graphics._font_folder.cache_clear()
    with pytest.raises(InputError, match="install matplotlib"):
        for seed in range(20):
            draw_graphics(GROUND[:1], np.random.default_rng(seed), kinds=("text",))


def test_most_graphics_are_kept_hardly_any_tissue_is_and_nothing_outside_is_painted():
    """The fonts were not used to train the detector; the bounds are a little wider than what it reaches."""
    cases = graphics_cases(1, (200, 260), lengths=(1, 4))
    rows = [case.measure(despeckle(case.frames, shift)) for case in cases]
    changed, left, painted = (np.mean([row[name] for row in rows]) for name in rows[0])
    assert changed < 14 and left < 3 and painted <= 0.01, (changed, left, painted)


@pytest.mark.parametrize(("size", "searched"), [((127, 200), False), ((128, 200), True)])
def test_moving_graphics_are_searched_for_on_screens_but_not_in_slices_of_small_volumes(size, searched):
    frames = np.random.default_rng(0).rayleigh(40, (3, *size)).clip(0, 255).astype(np.uint8)
    assert calibrate(frames).graphics is searched
    assert calibrate(frames[:1]).graphics is False and calibrate(frames, None).graphics is False
