"""MATLAB's files and HDF5: the frames are found, and all else that a file holds is kept."""

import builtins

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from Speckle2SelfLib import files
from Speckle2SelfLib.formats.base import Recording
from Speckle2SelfLib.system import InputError

h5py = pytest.importorskip("h5py")
FRAMES = np.random.default_rng(0).integers(1, 255, (4, 20, 30)).astype(np.uint8)
COLOUR = np.random.default_rng(1).integers(1, 255, (4, 20, 30, 3)).astype(np.uint8)


def mat73(path, name, array, complex_values=False):
    """Write a file as MATLAB writes version 7.3: HDF5 after a text, with reversed axes."""
    with h5py.File(path, "w", userblock_size=512) as file:
        stored = array.transpose()
        if complex_values:
            pairs = np.zeros(stored.shape, [("real", "f4"), ("imag", "f4")])
            pairs["real"], pairs["imag"] = stored.real, stored.imag
            stored = pairs
        file[name] = stored
        file[name].attrs["MATLAB_class"] = np.bytes_("uint8")
        file["depth"] = np.arange(5.0)[None]
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    return path


@pytest.mark.parametrize("version", ["5", "7.3"])
@pytest.mark.parametrize("kind", ["cine", "image", "colour", "signed"])
def test_a_matlab_file_keeps_its_order_of_axes_and_its_other_variables(tmp_path, version, kind):
    frames = {"cine": FRAMES, "image": FRAMES[0], "colour": COLOUR, "signed": FRAMES.astype(np.int16) - 99}[kind]
    stored = np.moveaxis(frames, 0, -1) if frames.ndim > 2 else frames  # (H, W, N) or (H, W, 3, N)
    source, struct = tmp_path / "in.mat", {"probe": "L14", "depth": np.arange(5.0)}
    if version == "5":
        savemat(source, {"bmode": stored, "info": struct, "fs": 40e6, "cells": np.array(["a", "bc"], object)})
    else:
        mat73(source, "bmode", stored)
    recording = files.read(source)
    assert np.array_equal(recording.frames, frames if frames.ndim > 2 else frames[None])
    files.check_output(tmp_path / "out.mat", recording)
    files.write(tmp_path / "out.mat", recording.frames[:, ::-1], recording)
    assert np.array_equal(files.read(tmp_path / "out.mat").frames, recording.frames[:, ::-1])
    if version == "5":
        made = loadmat(tmp_path / "out.mat")
        assert np.array_equal(made["bmode"], stored[::-1]) and made["bmode"].dtype == stored.dtype
        assert made["info"]["probe"][0, 0][0] == "L14" and made["fs"] == 40e6 and made["cells"][0, 1][0] == "bc"
    else:
        with h5py.File(tmp_path / "out.mat") as made:
            assert np.array_equal(made["bmode"][...].transpose(), stored[::-1])
            assert made["bmode"].attrs["MATLAB_class"] == b"uint8" and made["depth"].shape == (1, 5)
        assert (tmp_path / "out.mat").read_bytes().startswith(b"MATLAB 7.3 MAT-file")


def test_complex_values_of_matlab_become_decibels(tmp_path):
    values = (FRAMES * np.exp(1j * FRAMES)).astype(np.complex64)
    expected = 20 * np.log10(FRAMES / FRAMES.max())
    savemat(tmp_path / "5.mat", {"iq": np.moveaxis(values, 0, -1)})
    mat73(tmp_path / "73.mat", "iq", np.moveaxis(values, 0, -1), complex_values=True)
    for name in ("5.mat", "73.mat"):
        recording = files.read(tmp_path / name)
        assert np.allclose(recording.frames, expected, atol=1e-3) and recording.frames.dtype == np.float32
        files.write(tmp_path / f"out {name}", recording.frames, recording)
        assert np.allclose(files.read(tmp_path / f"out {name}").frames, expected, atol=1e-3)


def test_an_hdf5_file_of_zea_keeps_its_other_content(tmp_path):
    with h5py.File(tmp_path / "in.hdf5", "w") as file:
        file["data/image"] = FRAMES.astype(np.float32)
        file["data/image"].attrs["unit"] = "dB"
        file["data/raw_data"] = np.zeros((4, 2, 16, 12, 1), np.int16)
        file["scan/probe_geometry"] = np.zeros((128, 3))
        file.attrs["probe"] = "L11"
    recording = files.read(tmp_path / "in.hdf5")
    assert np.array_equal(recording.frames, FRAMES)
    files.write(tmp_path / "out.hdf5", recording.frames / 2, recording)
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert np.array_equal(file["data/image"], FRAMES / 2) and file["data/image"].attrs["unit"] == "dB"
        assert file["data/raw_data"].shape == (4, 2, 16, 12, 1) and file.attrs["probe"] == "L11"


def ustb(path, values, scan):
    """Write beamformed data (N, H, W) like the USTB toolbox: pixels in one axis, along each line first."""
    pixels = values.swapaxes(1, 2).reshape(len(values), 1, 1, -1)  # frames, waves, channels, pixels
    with h5py.File(path, "w") as file:
        if np.iscomplexobj(values):
            file["b_data/data/real"], file["b_data/data/imag"] = pixels.real, pixels.imag
        else:
            file["b_data/data"] = pixels
        for name, axis in scan.items():
            file[f"b_data/scan/{name}"] = axis[None]
        file["channel_data/data"] = np.zeros((len(values), 1, 128, 1000), np.float32)
    return path


LINEAR = {"x_axis": np.arange(30) * 2e-4, "z_axis": np.arange(20) * 1e-4}


@pytest.mark.parametrize("scan", ["linear", "sector"])
def test_beamformed_data_of_ustb_become_decibels(tmp_path, scan):
    sector = {"azimuth_axis": np.linspace(-0.5, 0.5, 30), "depth_axis": np.arange(20) * 1e-4}
    values = (FRAMES * np.exp(1j * FRAMES)).astype(np.complex64)
    recording = files.read(ustb(tmp_path / "in.uff", values, LINEAR if scan == "linear" else sector))
    assert np.allclose(recording.frames, 20 * np.log10(FRAMES / FRAMES.max()), atol=1e-3)
    assert recording.spacing == pytest.approx((1, 0.1, 0.2) if scan == "linear" else (1, 1, 1))
    files.write(tmp_path / "out.uff", recording.frames, recording)
    assert np.allclose(files.read(tmp_path / "out.uff").frames, recording.frames)


def test_real_beamformed_data_of_ustb_are_written_into_their_file(tmp_path):
    recording = files.read(ustb(tmp_path / "in.uff", FRAMES, LINEAR))
    assert np.array_equal(recording.frames, FRAMES)
    files.write(tmp_path / "out.uff", FRAMES // 2, recording)
    assert np.array_equal(files.read(tmp_path / "out.uff").frames, FRAMES // 2)
    with h5py.File(tmp_path / "out.uff") as file:
        assert np.array_equal(file["b_data/data"][0, 0, 0, :20], FRAMES[0, :, 0] // 2), "the first line"
        assert file["channel_data/data"].shape == (4, 1, 128, 1000)


def test_several_arrays_need_a_name_and_a_file_without_frames_is_refused(tmp_path):
    savemat(tmp_path / "two.mat", {"left": FRAMES.transpose(1, 2, 0), "right": FRAMES.transpose(1, 2, 0)})
    with pytest.raises(InputError, match="holds left, right; name one 'frames'"):
        files.read(tmp_path / "two.mat")
    assert files.read(tmp_path / "two.mat", key="right").frames.shape == FRAMES.shape
    savemat(tmp_path / "none.mat", {"fs": 3.0})
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file["fs"] = 3.0
    for name in ("none.mat", "none.h5"):
        with pytest.raises(InputError, match="no array of frames"):
            files.read(tmp_path / name)


@pytest.mark.parametrize("name", ["out.mat", "out.h5"])
@pytest.mark.parametrize("frames", [FRAMES, COLOUR, FRAMES[:1]], ids=["grey", "colour", "one"])
def test_a_cine_keeps_its_times_and_pixel_size(tmp_path, name, frames):
    times = np.arange(4) * 0.04 if len(frames) > 1 else None
    recording = Recording(frames, tmp_path / "in.dcm", "DICOM", single=len(frames) == 1, sequence=True, times=times,
                          spacing=(1.0, 0.2, 0.3))  # fmt: skip
    files.check_output(tmp_path / name, recording)
    files.write(tmp_path / name, frames, recording)
    again = files.read(tmp_path / name)
    assert np.array_equal(again.frames, frames) and again.spacing == pytest.approx((1, 0.2, 0.3))
    assert again.times is None if times is None else again.times == pytest.approx(times)


def test_missing_h5py_is_named(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "in.h5", "w") as file:
        file["frames"] = FRAMES
    imported = builtins.__import__

    def without(name, *arguments):
        if name == "h5py":
            raise ImportError(name)
        return imported(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="need the package h5py; install it"):
        files.read(tmp_path / "in.h5")


@pytest.mark.parametrize("name", ["in.mat", "in.h5", "in73.mat"])
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path, name):
    if name == "in.mat":
        savemat(tmp_path / name, {"frames": FRAMES.transpose(1, 2, 0)})
    elif name == "in.h5":
        with h5py.File(tmp_path / name, "w") as file:
            file["frames"] = FRAMES
    else:
        mat73(tmp_path / name, "frames", FRAMES.transpose(1, 2, 0))
    data = (tmp_path / name).read_bytes()
    for cut in (len(data) // 2, 600, 140):
        (tmp_path / name).write_bytes(data[:cut])
        with pytest.raises(InputError) as error:
            files.read(tmp_path / name)
        assert "\n" not in str(error.value)
