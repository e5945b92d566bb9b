"""The command line and the bundled model on real recordings that the model was not trained on."""

import json
import shutil
import zlib

import numpy as np
import pydicom.examples
import pytest

from Speckle2SelfLib import files, metrics
from Speckle2SelfLib.__main__ import main
from Speckle2SelfLib.despeckling import despeckle
from Speckle2SelfLib.filters import FILTERS
from Speckle2SelfLib.grey import luminance
from Speckle2SelfLib.library import load_model
from Speckle2SelfLib.region import detect, grey
from Speckle2SelfLib.simulation import SimulationConfig, simulate

FIELD_THAT_DIFFERS = b"CompressedDataSize"


def run(source, folder):
    """Return both recordings, before and after the command line."""
    target = folder / source.name
    assert main(["despeckle", str(source), str(target)]) == 0
    return files.read(source), files.read(target)


def header(path):
    lines = path.read_bytes().split(b"ElementDataFile")[0].split(b"\n")
    return [line for line in lines if not line.startswith(FIELD_THAT_DIFFERS)]


def shortened(source, folder, step):
    """Return a compressed recording with every `step`-th frame of another, and the fields of its first ones."""
    fields, data = source.read_bytes().split(b"ElementDataFile = LOCAL\n")
    fields = dict(line.split(b" = ", 1) for line in fields.splitlines())
    width, height, count = map(int, fields[b"DimSize"].split())
    frames = np.frombuffer(zlib.decompress(data), np.uint8).reshape(count, height, width)[::step]
    data = zlib.compress(frames.tobytes(), 1)
    fields |= {b"DimSize": b"%d %d %d" % frames.shape[::-1], FIELD_THAT_DIFFERS: b"%d" % len(data)}
    kept = [key for key in fields if not key.startswith(b"Seq_Frame") or int(key[9:13]) < len(frames)]
    lines = [key + b" = " + fields[key] for key in kept] + [b"ElementDataFile = LOCAL\n"]
    target = folder / f"every {source.name}"
    target.write_bytes(b"\n".join(lines) + data)
    return target


def roughness(frames, mask):
    """Return the mean step from pixel to pixel."""
    return np.abs(np.diff(frames.astype(float), axis=2))[:, mask[:, 1:]].mean()


def test_the_linear_plus_recording(shared_data, tmp_path):
    source = shared_data / "plus" / "BoneUltrasound_L14.igs.mha"
    before, after = run(source, tmp_path)
    assert header(source) == header(tmp_path / source.name)
    assert after.frames.shape == (21, 616, 820) and after.frames.dtype == np.uint8
    margins = np.ones((616, 820), bool)
    margins[:, 175:645] = False
    assert np.array_equal(before.frames[:, margins], after.frames[:, margins])
    muscle = np.zeros((616, 820), bool)
    muscle[90:160, 250:600] = True
    assert roughness(after.frames, muscle) < 0.4 * roughness(before.frames, muscle)
    for frame, result in zip(before.frames[::5], after.frames[::5], strict=True):
        rows = [np.argmax(metrics.reference(x)[220:400, 240:500], axis=0) for x in (frame, result)]
        assert np.median(np.abs(rows[0] - rows[1])) <= 2, "the bone's edge does not move"
        ridge = [x[220:400, 240:500].max(0).mean() for x in (frame, result)]
        assert ridge[1] > 0.7 * ridge[0], "and bright"


def test_the_frame_grabber_recording(shared_data, tmp_path):
    whole = shared_data / "plus" / "USTC_FrameGrabber_ProbeTranslationData.igs.mha"
    source, output = shortened(whole, tmp_path, 4), tmp_path / "out"
    output.mkdir()
    before, after = run(source, output)
    assert before.frames.shape == (50, 480, 640) and header(source) == header(output / source.name)
    region = detect(before.frames)
    assert np.array_equal(before.frames[:, ~region], after.frames[:, ~region])
    text = [(0, 260, 518, 640), (20, 80, 20, 110), (34, 50, 230, 380), (60, 75, 45, 150), (400, 480, 0, 640)]
    for top, bottom, left, right in text:
        assert np.array_equal(before.frames[:, top:bottom, left:right], after.frames[:, top:bottom, left:right])


def test_the_reconstructed_volume(shared_data, tmp_path):
    source = shared_data / "plus" / "SpinePhantomFreehandReconstructed.mha"
    before, after = run(source, tmp_path)
    assert header(source) == header(tmp_path / source.name)
    assert after.frames.shape == before.frames.shape and after.spacing == before.spacing
    region = detect(before.frames)
    assert roughness(after.frames, region) < 0.8 * roughness(before.frames, region)


def test_the_color_recording(shared_data, tmp_path):
    source = shared_data / "plus" / "ColorNrrdSample.igs.nrrd"
    before, after = run(source, tmp_path)
    coloured = ~grey(before.frames)
    assert coloured.sum() > 10_000
    assert np.array_equal(before.frames[coloured], after.frames[coloured])


def test_the_cardiac_dicom_cine(tmp_path):
    source = tmp_path / "cine.dcm"
    shutil.copy(pydicom.examples.get_path("ybr_color"), source)
    (tmp_path / "out").mkdir()
    before, after = run(source, tmp_path / "out")
    region = detect(before.frames)
    assert np.array_equal(before.frames[:, ~region], after.frames[:, ~region])
    grey_before, grey_after = luminance(before.frames), luminance(after.frames)
    tissue = np.zeros(region.shape, bool)
    tissue[60:180, 120:210] = True
    assert roughness(grey_after, tissue) < 0.6 * roughness(grey_before, tissue)
    figures = metrics.evaluate(grey_before[::6, 40:190, 100:220], grey_after[::6, 40:190, 100:220])
    assert figures["structure"] > 0.97 and figures["holes"] < 0.001


def test_the_carotid_frames(shared_data):
    frames = np.load(shared_data / "carotid" / "carotid_frames.npz")["input"]
    rois = json.loads((shared_data / "carotid" / "rois.json").read_text())
    before, after = (metrics.evaluate(frames, x, rois) for x in (frames, despeckle(frames)))
    for name in ("homogeneity", "gcnr", "snr"):
        assert after[name] > before[name]
    assert after["homogeneity"] >= 0.765 and after["snr"] >= 13.6 and after["gcnr"] >= 0.999
    assert after["structure"] >= 0.99 and after["holes"] <= 0.0006


@pytest.mark.parametrize("layout", ["phantom", "vessel", "layers", "organ"])
def test_simulated_frames_get_closer_to_their_truth_than_with_any_filter(layout):
    simulated = simulate(SimulationConfig((160, 160), 2, (1.3, 2.0), layout), np.random.default_rng(2024))

    def error(model):
        return np.sqrt(np.mean((despeckle(simulated.frames, model, region=None) - simulated.truth) ** 2))

    ours = error(load_model("default"))
    for name, function in FILTERS.items():
        assert ours < error(function), name


def test_a_flat_phantom_gains_no_structure():
    """In tissue without anatomy, less than a fifth of the speckle (root mean square) is left."""
    errors = []
    for seed in range(4):
        flat = simulate(SimulationConfig((160, 160), 1, (1.3, 2.0), "flat"), np.random.default_rng(seed))
        result = despeckle(flat.frames, region=None)
        errors.append([(x - flat.truth).std() for x in (flat.frames, result)])
    before, after = np.mean(errors, 0)
    assert after < 0.2 * before


def test_a_static_scene_flickers_less():
    simulated = simulate(SimulationConfig((128, 128), 12, (1.3, 2.0), "organ"), np.random.default_rng(5))
    result = despeckle(simulated.frames, region=None)
    tissue = np.zeros((128, 128), bool)
    tissue[40:60, 40:60] = True
    assert metrics.flicker(simulated.frames, result, tissue) < 1.1
    assert result.std(0).mean() < 0.35 * simulated.frames.std(0).mean()
