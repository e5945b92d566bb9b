"""The demo: three files that are right, or one line and nothing."""

import csv
import importlib.util

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
from PIL import Image  # noqa: E402


@pytest.fixture
def demo(project, slicer_app):
    spec = importlib.util.spec_from_file_location("demo", project / "Testing" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def speckled(folder, count=3):
    """Return a recording of two tissues under speckle, (count, 96, 128) uint8."""
    rng = np.random.default_rng(0)
    tissue = np.full((count, 96, 128), 40.0)
    tissue[:, :, 64:] = 120
    path = folder / "cine.npy"
    np.save(path, (tissue * rng.rayleigh(0.8, tissue.shape)).clip(0, 255).astype(np.uint8))
    return path


def table(path):
    with path.open() as file:
        return {row.pop("image"): {k: float(v) for k, v in row.items()} for row in csv.DictReader(file)}


def test_the_demo_leaves_scene_picture_and_figures(demo, tmp_path, capsys):
    output = tmp_path / "build" / "demo"
    path = speckled(tmp_path)
    assert demo.main([str(path), "--model", "median", "--output", str(output)]) == 0
    assert sorted(p.name for p in output.iterdir()) == ["before_after.png", "metrics.csv", "scene.mrb"]
    assert [p.name for p in output.parent.iterdir()] == ["demo"]

    figures = table(output / "metrics.csv")
    assert figures["before"]["structure"] == 1
    assert figures["after"]["homogeneity"] > figures["before"]["homogeneity"]
    assert figures["after"]["snr"] > 1.3 * figures["before"]["snr"]

    with Image.open(output / "before_after.png") as picture:
        page = np.asarray(picture.convert("L")).astype(float)
    half = page.shape[1] // 2
    grain = [np.abs(np.diff(page[200:-20, side], axis=1)).mean() for side in (slice(20, half), slice(half, -20))]
    assert grain[1] < 0.8 * grain[0]

    said = capsys.readouterr().out
    for words in ("3 frames of 128 x 96", "frames per second", "homogeneity", str(output / "scene.mrb")):
        assert words in said


def test_the_saved_scene_holds_both_recordings_in_one_browser(demo, tmp_path):
    path = speckled(tmp_path)
    assert demo.main([str(path), "--model", "median", "--output", str(tmp_path / "demo")]) == 0
    slicer.mrmlScene.Clear()
    slicer.util.loadScene(str(tmp_path / "demo" / "scene.mrb"))
    browser = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSequenceBrowserNode")
    recordings = [slicer.mrmlScene.GetFirstNodeByName(name) for name in ("cine", "cine despeckled")]
    assert np.array_equal(demo.frames(recordings[0]), np.load(path))
    for recording in recordings:
        assert browser.IsSynchronizedSequenceNodeID(recording.GetID(), True)
        assert [recording.GetNthIndexValue(i) for i in range(3)] == ["0", "1", "2"]
    shown = slicer.mrmlScene.GetNodeByID("vtkMRMLSliceCompositeNodeYellow").GetBackgroundVolumeID()
    assert slicer.mrmlScene.GetNodeByID(shown) is browser.GetProxyNode(recordings[1])


def test_a_volume_is_despeckled_as_well(demo, tmp_path):
    volume = slicer.util.addVolumeFromArray(np.load(speckled(tmp_path)))
    assert slicer.util.saveNode(volume, str(tmp_path / "volume.nrrd"))
    slicer.mrmlScene.Clear()
    arguments = [str(tmp_path / "volume.nrrd"), "--model", "median", "--output", str(tmp_path / "demo")]
    assert demo.main(arguments) == 0
    assert table(tmp_path / "demo" / "metrics.csv").keys() == {"before", "after"}


@pytest.mark.parametrize("name", ["missing.dcm", "text.txt", "scene.mrb", "tiny.npy"])
def test_bad_input_is_one_line_and_leaves_nothing(demo, tmp_path, capfd, name):
    (tmp_path / "text.txt").write_text("no image")
    (tmp_path / "scene.mrb").write_text("no image")
    np.save(tmp_path / "tiny.npy", np.zeros((1, 1), np.uint8))
    arguments = [str(tmp_path / name), "--model", "median", "--output", str(tmp_path / "build" / "demo")]
    status = demo.main(arguments)
    captured = capfd.readouterr()
    assert status == 2
    assert captured.out == ""
    assert captured.err.startswith("demo: ")
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "build").exists()


def test_an_unknown_model_is_one_line_and_leaves_nothing(demo, tmp_path, capsys):
    arguments = [str(speckled(tmp_path)), "--model", "nonsense", "--output", str(tmp_path / "demo")]
    assert demo.main(arguments) == 2
    assert "nonsense" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_an_output_that_cannot_be_written_is_one_line(demo, tmp_path, capsys):
    path = speckled(tmp_path)
    assert demo.main([str(path), "--model", "median", "--output", str(path / "demo")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_failed_run_keeps_the_files_of_the_last_one(demo, tmp_path, monkeypatch):
    output = tmp_path / "demo"
    arguments = [str(speckled(tmp_path)), "--model", "median", "--output", str(output)]
    assert demo.main(arguments) == 0
    before = {p.name: p.read_bytes() for p in output.iterdir()}
    slicer.mrmlScene.Clear()
    monkeypatch.setattr(slicer.util, "saveScene", lambda path: False)
    with pytest.raises(RuntimeError, match="could not be saved"):
        demo.main(arguments)
    assert {p.name: p.read_bytes() for p in output.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cine.npy", "demo"]


def test_a_scene_that_lost_frames_is_not_accepted(demo, tmp_path, monkeypatch):
    real = slicer.util.loadScene

    def lossy(path):
        real(path)
        sequence = slicer.mrmlScene.GetFirstNodeByName("cine despeckled")
        sequence.RemoveDataNodeAtValue("1")

    monkeypatch.setattr(slicer.util, "loadScene", lossy)
    with pytest.raises(RuntimeError, match="lost the frames of 'cine despeckled'"):
        demo.main([str(speckled(tmp_path)), "--model", "median", "--output", str(tmp_path / "demo")])


def test_the_even_patch_lies_in_lit_even_tissue(demo):
    rng = np.random.default_rng(0)
    frames = np.zeros((2, 90, 90))
    frames[:, 30:, :] = rng.uniform(0, 200, (60, 90))  # rough
    frames[:, :, :30] = 100  # no speckle at all
    frames[:, 50:80, 40:80] = rng.normal(100, 5, (30, 40))  # even
    region = np.ones((90, 90), bool)
    rows, columns = demo.even_patch(frames, region)
    assert rows.start >= 48 and rows.stop <= 82
    assert columns.start >= 38 and columns.stop <= 82
    assert demo.even_patch(frames * 0, region) is None
