"""Volumes as frames: the axis of acquisition, and the mean of three orientations."""

import numpy as np
import pytest

from Speckle2SelfLib import volumes
from Speckle2SelfLib.system import InputError


@pytest.mark.parametrize(
    ("shape", "spacing", "axis", "expected"),
    [
        ((9, 9, 9), (1, 1, 1), "auto", [0]),
        ((9, 9, 9), (1, 1, 2), "auto", [2]),
        ((9, 9, 9), (1, 1.4, 1), "auto", [0]),
        ((9, 1, 9), (1, 5, 1), "auto", [1]),
        ((9, 9, 9), (1, 1, 2), "J", [1]),
        ((9, 9, 9), (1, 1, 1), "average", [0, 1, 2]),
    ],
)
def test_frames_follow_the_axis_of_acquisition(shape, spacing, axis, expected):
    assert volumes.slicing_axes(shape, spacing, axis) == expected


@pytest.mark.parametrize(("shape", "axis"), [((9, 9, 9), "x"), ((1, 9, 9), "average")])
def test_an_unknown_axis_is_refused(shape, axis):
    with pytest.raises(InputError):
        volumes.slicing_axes(shape, (1, 1, 1), axis)


def test_each_frame_is_cut_across_the_axis_and_put_back():
    volume = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    seen = []

    def spy(frames, progress):
        seen.append(frames.shape)
        progress(len(frames), len(frames))
        return frames + 1

    told = []
    result = volumes.process(volume, [0, 1, 2], spy, lambda done, total: told.append((done, total)))
    assert np.array_equal(result, volume + 1)
    assert seen == [(6, 4, 5), (8, 3, 5), (10, 3, 4)]
    assert told[0] == (6, 18)


def test_an_orientation_in_which_nothing_changes_is_left_out_of_the_mean_with_a_message(caplog):
    volume = np.random.default_rng(0).normal(size=(2, 9, 10, 11))
    across_j = (9, 11)
    result = volumes.process(volume, [0, 1, 2], lambda frames, progress: frames + (frames.shape[1:] != across_j))
    assert np.allclose(result, volume + 1)
    assert "nothing was changed along j" in caplog.text.lower()
    assert np.array_equal(volumes.process(volume, [0, 1, 2], lambda frames, progress: frames), volume)
    assert len(caplog.records) == 1  # if no orientation works, each is reported


def test_the_mean_is_rounded_and_keeps_values_that_are_not_finite():
    a, b, c = (np.array([[[x]]], np.uint8) for x in (10, 11, 11))
    assert volumes.average([a, b, c]).item() == 11
    assert volumes.average([a, a, c]).item() == 10 and volumes.average([b, c]).item() == 11
    x = np.array([[[np.nan, 1e308]]])
    assert np.array_equal(volumes.average([x, x, x]), x, equal_nan=True)
