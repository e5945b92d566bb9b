"""Data before log compression are recognized by their values and become decibels, with a warning."""

import logging
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from Speckle2SelfLib import files
from Speckle2SelfLib.__main__ import main
from Speckle2SelfLib.formats import signals
from Speckle2SelfLib.simulation import SimulationConfig, simulate
from Speckle2SelfLib.system import InputError


def echoes(count=2, shape=(128, 96), seed=0):
    """Return complex echoes (N, H, W) of a background, bright layers and a cyst, and their strength (H, W)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    strength = np.where(y % 40 < 8, 10.0, 1.0) * np.where(np.hypot(y - 64, x - 48) < 20, 0.05, 1.0) * 10 ** (-y / 128)
    values = (rng.normal(size=(count, *shape)) + 1j * rng.normal(size=(count, *shape))) * strength
    return (gaussian_filter(values.real, (0, 2, 1)) + 1j * gaussian_filter(values.imag, (0, 2, 1))).astype(np.complex64)


def lines(values, cycles=0.2):
    """Return radio-frequency lines for complex echoes, whose rows are samples."""
    carrier = np.exp(2j * np.pi * cycles * np.arange(values.shape[1]))[:, None]
    return (values * carrier).real


def expected(values, dynamic_range=60):
    envelope = np.abs(values)
    return np.maximum(20 * np.log10(np.maximum(envelope, 1e-12) / envelope.max()), -dynamic_range)


VALUES = echoes()
CASES = {
    "IQ": VALUES,
    "pairs": np.stack([VALUES.real, VALUES.imag], -1),
    "RF": lines(VALUES),
    "RF of 16 bits": np.round(lines(VALUES) * 3000).astype(np.int16),
    "envelope": np.abs(VALUES),
    "envelope of 16 bits": np.round(np.abs(VALUES) * 3000).astype(np.uint16),
}


@pytest.mark.parametrize("name", CASES)
def test_signals_become_decibels_with_a_warning(tmp_path, name, caplog):
    np.save(tmp_path / "in.npy", CASES[name])
    frames = files.read(tmp_path / "in.npy").frames
    assert frames.dtype == np.float32 and frames.shape == VALUES.shape
    assert frames.max() == 0 and frames.min() >= -60
    error = np.abs(frames - expected(VALUES))
    assert np.median(error) < (3 if "RF" in name else 0.01), "the band of lines that end at layers is wider than theirs"
    assert np.corrcoef(frames.ravel(), expected(VALUES).ravel())[0, 1] > 0.9
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "converted to decibels, 60 dB" in record.message


@pytest.mark.parametrize("dynamic_range", [40, 80])
def test_the_dynamic_range_is_an_option(tmp_path, dynamic_range):
    np.save(tmp_path / "in.npy", np.abs(VALUES))
    frames = files.read(tmp_path / "in.npy", dynamic_range=dynamic_range).frames
    assert frames.min() == pytest.approx(-dynamic_range) and np.allclose(
        frames, expected(VALUES, dynamic_range), atol=1e-3
    )


def test_with_a_dynamic_range_values_of_unknown_kind_are_treated_as_an_envelope(tmp_path):
    flat = np.abs(VALUES) ** 0.3
    np.save(tmp_path / "in.npy", flat)
    assert np.array_equal(files.read(tmp_path / "in.npy").frames, flat)
    assert files.read(tmp_path / "in.npy", dynamic_range=30).frames.min() == pytest.approx(-30)


@pytest.mark.parametrize("dynamic_range", [0, -3, 300, float("nan")])
def test_an_invalid_dynamic_range_is_refused(tmp_path, dynamic_range):
    np.save(tmp_path / "in.npy", np.abs(VALUES))
    with pytest.raises(InputError, match="outside 1 to 200 dB"):
        files.read(tmp_path / "in.npy", dynamic_range=dynamic_range)


def grey_images():
    rng = np.random.default_rng(0)
    for layout in ("phantom", "vessel", "layers", "organ", "flat"):
        yield layout, simulate(SimulationConfig((128, 128), 2, (1.3, 1.3), layout), rng).frames
    for seed in range(25):
        grain = tuple(rng.uniform(1, 3, 2))
        yield f"layers {seed}", simulate(SimulationConfig((128, 128), 2, grain, "layers"), rng).frames
    yield "decibels", expected(VALUES)
    yield "noise", rng.normal(size=(2, 64, 64))
    yield "uniform noise", rng.uniform(0, 4000, (2, 64, 64))
    yield "signed steps", (rng.integers(0, 255, (2, 64, 64)) - 200) * 100
    dark = np.zeros((2, 128, 128))
    dark[:, 40:90, 40:90] = simulate(SimulationConfig((50, 50), 2, (1.3, 1.3), "flat"), rng).frames
    yield "mostly black", dark


@pytest.mark.parametrize(
    ("name", "frames"), list(grey_images()), ids=lambda value: value if isinstance(value, str) else ""
)
@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_grey_values_are_not_mistaken_for_signals(name, frames, dtype):
    values = frames * (2000 if dtype == np.int16 and np.abs(frames).max() < 100 else 1)
    assert signals.kind_of(values.astype(dtype)) is None


def test_values_that_may_be_an_envelope_are_reported(tmp_path, caplog):
    np.save(tmp_path / "in.npy", np.minimum(np.abs(VALUES), 30 * np.median(np.abs(VALUES))))
    files.read(tmp_path / "in.npy")
    assert ["may hold a linear envelope" in record.message for record in caplog.records] == [True]


def test_real_recordings_are_read_as_grey_values_in_any_type(shared_data):
    for path in sorted((shared_data / "plus").glob("*.mha")):
        frames = files.read(path).frames
        assert signals.kind_of(frames.astype(np.float32)) is None and signals.kind_of(frames) is None
    for frames in np.load(shared_data / "natural" / "natural.npz")["bmode"]:
        assert signals.kind_of(frames.astype(np.float32)) is None
        assert signals.kind_of(frames.astype(np.uint16) * 257) is None


def test_an_envelope_is_despeckled_as_a_whole_with_a_warning(shared_data, tmp_path, capsys):
    source = Path(shared_data) / "faults" / "envelope" / "envelope.npy"
    if not source.exists():
        pytest.skip("the faults are not on this machine")
    assert main(["despeckle", str(source), str(tmp_path / "out.npy"), "--region", "none"]) == 0
    error = capsys.readouterr().err
    assert (
        error.startswith(f"{source}: The file holds a linear envelope: converted to decibels")
        and len(error.splitlines()) == 1
    )
    output, before = np.load(tmp_path / "out.npy"), files.read(source).frames
    assert (np.abs(output - before) > 0.01).mean() > 0.9 and output.dtype == np.float32


@pytest.mark.parametrize("name", ["out.npy", "out.mha", "out.nrrd", "out.tif", "out.nii.gz"])
def test_decibels_of_an_array_are_written_to_every_format_with_floating_point(tmp_path, name):
    np.save(tmp_path / "in.npy", VALUES)
    recording = files.read(tmp_path / "in.npy")
    files.write(tmp_path / name, recording.frames, recording)
    assert np.array_equal(files.read(tmp_path / name).frames, recording.frames)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".nii.gz"])
def test_an_envelope_in_a_volume_file_keeps_its_geometry(tmp_path, suffix):
    image = sitk.GetImageFromArray(np.round(np.abs(VALUES) * 3000).astype(np.uint16))
    image.SetSpacing((0.1, 0.2, 3.0))
    image.SetOrigin((1.0, 2.0, 3.0))
    sitk.WriteImage(image, str(tmp_path / f"in{suffix}"))
    recording = files.read(tmp_path / f"in{suffix}")
    files.write(tmp_path / f"out{suffix}", recording.frames, recording)
    written = sitk.ReadImage(str(tmp_path / f"out{suffix}"))
    assert written.GetPixelIDTypeAsString() == "32-bit float"
    assert np.array_equal(sitk.GetArrayFromImage(written), recording.frames)
    assert written.GetSpacing() == pytest.approx((0.1, 0.2, 3.0)) and written.GetOrigin() == pytest.approx((1, 2, 3))
