"""The command line as users meet it."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from copies import Copy

from Speckle2SelfLib import checkpoint, files
from Speckle2SelfLib.__main__ import main
from Speckle2SelfLib.config import ModelConfig
from Speckle2SelfLib.formats import base
from Speckle2SelfLib.network import build

FRAMES = np.random.default_rng(0).integers(20, 200, (3, 40, 48)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("in.npy", FRAMES)
    return tmp_path


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_file_is_despeckled_into_another(folder):
    assert main(["despeckle", "in.npy", "out.npy", "--model", "median", "--region", "none"]) == 0
    output = np.load("out.npy")
    assert output.dtype == FRAMES.dtype and output.shape == FRAMES.shape
    assert output.std() < 0.5 * FRAMES.std()
    assert np.array_equal(np.load("in.npy"), FRAMES)


def test_options_reach_the_engine(folder):
    np.save("mask.npy", np.tri(40, 48, dtype=np.uint8))
    assert main(["despeckle", "in.npy", "masked.npy", "--model", "median", "--region", "mask.npy"]) == 0
    assert np.array_equal(np.load("masked.npy")[:, np.tri(40, 48) == 0], FRAMES[:, np.tri(40, 48) == 0])
    assert main(["despeckle", "in.npy", "same.npy", "--model", "median", "--strength", "0"]) == 0
    assert np.array_equal(np.load("same.npy"), FRAMES)


def test_a_folder_is_written_to_a_folder_of_the_same_layout(folder):
    os.makedirs("data/deep")
    np.save("data/a.npy", FRAMES)
    np.save("data/deep/b.npy", FRAMES[0])
    assert main(["despeckle", "data", "results", "--model", "lee", "--region", "none"]) == 0
    assert names(folder / "results") == ["a.npy", "deep/b.npy"]
    assert np.load("results/deep/b.npy").shape == FRAMES[0].shape


def test_a_bad_file_in_a_folder_does_not_keep_the_others_from_being_done(folder, capsys):
    os.makedirs("data")
    for name in ("a", "c"):
        np.save(f"data/{name}.npy", FRAMES)
    (folder / "data" / "b.npy").write_text("no array")
    assert main(["despeckle", "data", "results", "--model", "lee", "--region", "none"]) == 2
    error = capsys.readouterr().err
    assert "1 of 3 files" in error and "b.npy" in error
    assert names(folder / "results") == ["a.npy", "c.npy"]


def test_jpegs_of_a_folder_become_png_files(folder, capsys):
    os.makedirs("data")
    for name in ("data/a.jpg", "data/b.JPEG"):
        sitk.WriteImage(sitk.GetImageFromArray(FRAMES[0]), name)
    arguments = ["despeckle", "data", "results", "--model", "median", "--region", "none"]
    assert main(arguments) == 0
    assert names(folder / "results") == ["a.png", "b.png"]
    sitk.WriteImage(sitk.GetImageFromArray(FRAMES[0]), "data/a.png")
    assert main(arguments) == 2
    assert "a.png" in capsys.readouterr().err


def test_an_output_without_suffix_is_a_folder(folder, capsys):
    arguments = ["--model", "median", "--region", "none"]
    assert main(["despeckle", "in.npy", "results", *arguments]) == 0
    assert names(folder / "results") == ["in.npy"]
    (folder / "text.npy").write_text("no array")
    assert main(["despeckle", "text.npy", "other", *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1 and not (folder / "other").exists()


def test_an_archive_is_shared_by_processes_and_resumed_after_a_kill(folder, original):
    """200 files by two processes, killed on the way and started again: each is done, and none twice; files of the one
    that cannot be read are reported at the end, and do not end the other."""
    os.makedirs("archive")
    for number in range(200):
        np.save(f"archive/{number:03}.npy", FRAMES[0])
    arguments = ["despeckle", "archive", "out", "--model", "nlm", "--skip-existing"]
    process = Copy(original, arguments, processes=2)
    end = time.monotonic() + 120
    while time.monotonic() < end and len(list(folder.glob("out/*.npy"))) < 20:
        time.sleep(0.01)
    ranks = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while any(os.path.exists(f"/proc/{rank}/exe") for rank in ranks.split()):  # they end with it
        assert time.monotonic() < end
        time.sleep(0.01)
    for child in folder.glob("out/*.part"):
        child.unlink()
    done = {path.name: path.stat().st_mtime_ns for path in folder.glob("out/*.npy")}
    assert 20 <= len(done) < 200
    bad = [name for name in (f"{number:03}.npy" for number in range(1, 200, 2)) if name not in done]
    for name in bad:
        (folder / "archive" / name).write_text("no array")
    again = Copy(original, arguments, processes=2)
    _, error = again.communicate()
    assert again.returncode == 1 and f"{len(bad)} of 200 files could not be despeckled" in error
    assert all(f"{name}: " in error for name in bad)
    assert names(folder / "out") == [f"{number:03}.npy" for number in range(200) if f"{number:03}.npy" not in bad]
    assert all((folder / "out" / name).stat().st_mtime_ns == moment for name, moment in done.items())
    assert all(np.load(path).shape == FRAMES[0].shape for path in folder.glob("out/*.npy"))


def test_the_axis_of_a_volume_is_chosen(folder):
    assert main(["despeckle", "in.npy", "k.npy", "--model", "median", "--region", "none", "--axis", "k"]) == 0
    np.save("turned.npy", np.ascontiguousarray(np.moveaxis(FRAMES, 0, 2)).astype(np.uint16))
    assert main(["despeckle", "turned.npy", "i.npy", "--model", "median", "--region", "none", "--axis", "i"]) == 0
    assert np.array_equal(np.moveaxis(np.load("i.npy"), 2, 0), np.load("k.npy"))


def test_a_recording_is_despeckled_frame_by_frame_for_any_spacing(folder, monkeypatch):
    """A coarse lateral spacing shows how volumes were acquired; frames with time stamps are frames."""
    header = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 48 40 3\nkinds: domain domain {}\nencoding: raw\n"
    header += "space dimension: 2\nspace directions: (3,0) (0,1) none\n\n"
    (folder / "cine.nrrd").write_bytes(header.format("list").encode() + FRAMES.tobytes())
    assert main(["despeckle", "cine.nrrd", "out.nrrd", "--model", "median", "--region", "none"]) == 0
    assert main(["despeckle", "in.npy", "out.npy", "--model", "median", "--region", "none"]) == 0
    assert (folder / "out.nrrd").read_bytes().endswith(np.load("out.npy").tobytes())


BAD = [
    ["despeckle", "missing.npy", "out.npy"],
    ["despeckle", "in.npy"],
    ["despeckle", "in.npy", "in.npy", "--model", "median"],
    ["despeckle", "in.npy", "no/folder/out.npy", "--model", "median"],
    ["despeckle", "in.npy", "out.npy", "--model", "no such model"],
    ["despeckle", "in.npy", "out.npy", "--model", "text.npy"],
    ["despeckle", "in.npy", "out.npy", "--model", "median", "--strength", "2"],
    ["despeckle", "in.npy", "out.npy", "--model", "median", "--axis", "z"],
    ["despeckle", "in.npy", "out.npy", "--model", "median", "--region", "small.npy"],
    ["despeckle", "in.npy", "out.npy", "--model", "median", "--region", "zeros.npy"],
    ["despeckle", "in.npy", "out.npy", "--model", "median", "--region", "zeros.npy", "--axis", "average"],
    ["despeckle", "in.npy", "out.npy", "--model", "median", "--device", "abacus"],
    ["despeckle", "text.npy", "out.npy", "--model", "median"],
    ["despeckle", "one.npy", "out.npy", "--model", "median"],
    ["despeckle", "nan.npy", "out.npy", "--model", "median"],
    ["despeckle", "constant.npy", "out.npy", "--model", "median"],
    ["despeckle", "empty", "results", "--model", "median"],
    ["despeckle", "in.npy", "small.npy", "text.npy", "--model", "median"],
    ["despeckle", "alone", "alone", "--model", "median"],
    ["train", "--output", "model.safetensors", "--steps", "1"],
    ["train", "in.npy", "--output", "no/folder/model.safetensors"],
    ["train", "in.npy", "--output", "model.safetensors", "--steps", "0"],
    ["train", "in.npy", "--output", "in.npy"],
    ["train", "small.npy", "--held-out", "in.npy", "--output", "in.npy"],
    ["train", "in.npy", "--output", "model.safetensors", "--preview", "in.npy"],
    ["train", "in.npy", "--output", "model.safetensors", "--preview", "no/folder/preview.png"],
    ["train", "in.npy", "--output", "model.safetensors", "--region", "zeros.npy", "--preview", "zeros.npy"],
    ["train", "in.npy", "--output", "empty"],
    ["train", "--job", "job.json", "--output", "job.json"],
    ["train", "--job", "job.json", "--output", "model.safetensors", "--preview", "job.json"],
    ["evaluate", "in.npy", "small.npy"],
    ["evaluate", "in.npy", "in.npy", "--rois", "text.npy"],
    ["evaluate", "in.npy", "in.npy", "--rois", "list.json"],
    ["evaluate", "in.npy", "in.npy", "--rois", "half.json"],
    ["evaluate", "in.npy", "in.npy", "--rois", "outside.json"],
    ["evaluate", "in.npy", "in.npy", "--rois", "late.json"],
    ["evaluate", "in.npy", "in.npy", "--truth", "small.npy"],
    ["evaluate", "in.npy", "in.npy", "--truth", "zeros.npy"],
    ["evaluate", "constant.npy", "constant.npy"],
    ["simulate", "out.png"],
    ["simulate", "out.npz", "--size", "2", "2"],
    ["simulate", "out.npz", "--seed", "-1"],
    ["simulate", "no/folder/out.npz"],
]


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_bad_input_gets_one_line_and_exit_code_2_and_writes_nothing(folder, capsys, arguments):
    (folder / "text.npy").write_text("no array")
    (folder / "empty").mkdir()
    np.save("small.npy", np.ones((10, 10), np.uint8))
    np.save("one.npy", np.ones((1, 1), np.uint8))
    np.save("constant.npy", np.full((3, 20, 20), 7, np.uint8))
    np.save("nan.npy", np.full((20, 20), np.nan))
    np.save("zeros.npy", np.zeros((40, 48), np.uint8))
    (folder / "alone").mkdir()
    np.save("alone/in.npy", FRAMES)
    (folder / "job.json").write_text('{"inputs": ["in.npy"], "steps": 1}')
    (folder / "list.json").write_text('{"frames": []}')
    for name, frame, x in (("half", 0, 10.5), ("outside", 0, 47), ("late", 3, 20)):
        rois = {"frames": {frame: {"lumen": [20, 20], "tissue": [x, 20]}}}
        (folder / f"{name}.json").write_text(json.dumps(rois | {"lumen_half_size": [4, 4], "tissue_half_size": [4, 4]}))
    before = names(folder)
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("speckle2self: ") and "\n" not in error
    assert names(folder) == before and (folder / "job.json").read_text().startswith('{"inputs"')
    assert np.array_equal(np.load("in.npy"), FRAMES)


@pytest.mark.parametrize("arguments", [[], ["despeckle"], ["despeckle", "a", "b", "--modle", "x"], ["clean", "a"]])
def test_wrong_options_also_get_one_line(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("speckle2self: ") and len(error.splitlines()) == 1
    assert "--help" in error


def test_the_help_of_despeckle_begins_with_what_to_type(capsys):
    with pytest.raises(SystemExit):
        main(["despeckle", "--help"])
    assert capsys.readouterr().out.startswith("usage: speckle2self despeckle INPUT... OUTPUT [")


def test_the_alternatives_to_an_unknown_model_or_to_dicom_are_named(folder, capsys):
    for arguments in (["out.npy", "--model", "xx"], ["out.dcm", "--model", "median"]):
        assert main(["despeckle", "in.npy", *arguments]) == 2
    unknown, dicom = capsys.readouterr().err.splitlines()
    assert "default" in unknown and "curvature" in unknown
    assert "DICOM" in dicom and "fields" not in dicom


def test_a_trained_model_despeckles(folder, small_crops, capsys):
    recording = np.random.default_rng(1).rayleigh(40, (4, 64, 64)).clip(0, 255).astype(np.uint8)
    np.save("cine.npy", recording)
    checkpoint.save("start.model", *(lambda c: (c, build(c), {}))(ModelConfig(width=8, grain=(0.75, 1.7))))
    arguments = ["train", "cine.npy", "--output", "my.model", "--init", "start.model", "--steps", "2", "--report", "1"]
    assert main(arguments) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["config"]["steps"] == 2
    steps = [line for line in lines if "step" in line]
    assert [line["step"] for line in steps] == [0, 1, 2]
    assert {"truth", "slopes", "seconds_left"} <= set(steps[1]), "of simulated frames, as three in four steps are"
    assert main(["despeckle", "cine.npy", "out.npy", "--model", "my.model", "--region", "none"]) == 0
    assert checkpoint.load("my.model")[2]["training"]["steps"] == 2
    assert "cine" not in json.dumps(checkpoint.load("my.model")[2])


def test_simulated_frames_are_evaluated_against_their_truth(folder, capsys):
    assert main(["simulate", "sim.npz", "--frames", "2", "--size", "64", "64", "--seed", "3"]) == 0
    with np.load("sim.npz") as simulated:
        assert simulated["frames"].shape == (2, 64, 64)
        np.save("truth.npy", simulated["truth"])
    assert main(["despeckle", "sim.npz", "out.npy", "--model", "srad", "--region", "none"]) == 0
    assert main(["evaluate", "sim.npz", "out.npy", "--truth", "truth.npy", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["after"]["homogeneity"] > figures["before"]["homogeneity"]
    assert figures["after"]["ssim"] > figures["before"]["ssim"]


def test_the_truth_of_simulated_frames_is_found_in_their_file(folder, capsys):
    assert main(["simulate", "sim.npz", "--frames", "2", "--size", "64", "64", "--seed", "3"]) == 0
    with np.load("sim.npz") as simulated:
        np.save("truth.npy", simulated["truth"])
    for truth in ("sim.npz", "truth.npy"):
        assert main(["evaluate", "sim.npz", "sim.npz", "--truth", truth, "--json"]) == 0
    one, two = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert one == two and one["before"]["ssim"] < 0.9


def test_values_that_are_not_finite_do_not_improve_the_figures(folder, capsys):
    decibels = FRAMES.astype(np.float32)
    decibels[:, :3] = -np.inf
    decibels[0, 20, 20] = np.nan
    np.save("decibels.npy", decibels)
    assert main(["evaluate", "decibels.npy", "decibels.npy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["after"]["homogeneity"] < 0.6


def test_figures_without_a_finite_value_are_null(folder, capsys):
    assert main(["evaluate", "in.npy", "in.npy", "--truth", "in.npy", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert figures["after"]["psnr"] is None and figures["after"]["ssim"] == 1, "they are equal"


def test_a_file_that_is_left_unchanged_is_reported_by_name(folder, capsys):
    np.save("50 % dots.npy", np.where(np.arange(40 * 48).reshape(1, 40, 48) % 97, 0, 200).astype(np.uint8))
    assert main(["despeckle", "50 % dots.npy", "in.npy", "out", "--model", "median"]) == 0
    assert np.array_equal(np.load("out/50 % dots.npy"), np.load("50 % dots.npy"))
    assert capsys.readouterr().err.count("50 % dots.npy: The frames are unchanged") == 1


def test_results_inside_the_input_folder_are_not_despeckled_again(folder):
    os.makedirs("data")
    np.save("data/a.npy", FRAMES)
    for _ in range(3):
        arguments = ["despeckle", "data", "data/out", "--model", "median", "--region", "none", "--skip-existing"]
        assert main(arguments) == 0
    assert names(folder / "data") == ["a.npy", "out/a.npy"]


def test_a_single_file_is_written_into_a_folder_and_skipped_if_it_exists_there(folder):
    os.makedirs("out")
    arguments = ["despeckle", "in.npy", "out", "--model", "median", "--region", "none", "--skip-existing"]
    assert main(arguments) == 0 and names(folder / "out") == ["in.npy"]
    np.save("out/in.npy", FRAMES[:1])
    for output in ("out", "out/in.npy"):
        assert main([*arguments[:2], output, *arguments[3:]]) == 0
        assert len(np.load("out/in.npy")) == 1


def test_a_mask_fits_the_frames_as_they_are_cut(folder, capsys):
    volume = np.random.default_rng(1).integers(20, 200, (20, 40, 48)).astype(np.uint8)
    np.save("volume.npy", volume)
    np.save("mask.npy", np.arange(20 * 48).reshape(20, 48) % 48 < 24)
    assert main(["despeckle", "volume.npy", "out.npy", "--model", "median", "--region", "mask.npy", "--axis", "j"]) == 0
    output = np.load("out.npy")
    assert np.array_equal(output[..., 24:], volume[..., 24:]) and (output[..., :24] != volume[..., :24]).any()
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing((1, 0.2, 0.2))
    sitk.WriteImage(image, "volume.nrrd")
    assert main(["despeckle", "volume.nrrd", "out.nrrd", "--model", "median", "--region", "none"]) == 0
    assert "along its coarsest axis, i" in capsys.readouterr().err


def test_an_interruption_that_a_library_catches_still_stops_the_run(folder, monkeypatch):
    def swallowing(path, **options):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            return read(path, **options)

    read = files.read
    monkeypatch.setattr(files, "read", swallowing)
    assert main(["despeckle", "in.npy", "out.npy", "--model", "median"]) == 130
    assert names(folder) == ["in.npy"]


def test_an_interrupted_run_stops_and_leaves_nothing(folder, original):
    np.save("long.npy", np.random.default_rng(0).integers(0, 255, (400, 256, 256)).astype(np.uint8))
    process = Copy(original, ["despeckle", "long.npy", "out.npy", "--model", "nlm", "--region", "none"])
    libraries = Path(f"/proc/{process.pid}/maps")
    while libraries.exists() and "_nl_means" not in libraries.read_text() and process.poll() is None:
        time.sleep(0.05)  # until the filter is loaded
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130 and error.strip().endswith("speckle2self: stopped.")
    assert names(folder) == ["in.npy", "long.npy"]


@pytest.mark.parametrize("suffix", ["igs.mha", "nrrd", "npy"])
def test_a_large_recording_is_kept_on_the_disk_with_the_same_result(folder, monkeypatch, suffix):
    if suffix == "npy":
        np.save("long.npy", FRAMES)
    elif suffix == "nrrd":
        header = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 48 40 3\nkinds: domain domain list\nencoding: raw\n\n"
        (folder / "long.nrrd").write_bytes(header.encode() + FRAMES.tobytes())
    else:
        header = "NDims = 3\nDimSize = 48 40 3\nElementType = MET_UCHAR\nSeq_Frame0000_A = b\nElementDataFile = LOCAL\n"
        (folder / "long.igs.mha").write_bytes(header.encode() + FRAMES.tobytes())
    for name in ("memory", "disk"):
        monkeypatch.setattr(base, "LARGE", 1 if name == "disk" else 10**9)
        assert isinstance(files.read(f"long.{suffix}").frames.base, np.memmap) == (name == "disk")
        assert main(["despeckle", f"long.{suffix}", f"{name}.{suffix}", "--model", "median"]) == 0
    written = (folder / f"disk.{suffix}").read_bytes()
    assert written == (folder / f"memory.{suffix}").read_bytes() and len(written) > FRAMES.nbytes
    assert len(list(folder.iterdir())) == 4
