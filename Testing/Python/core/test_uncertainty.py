"""The uncertainty of models: its units, where it is defined, and what caution makes of it."""

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from Speckle2SelfLib import checkpoint, files
from Speckle2SelfLib.__main__ import main
from Speckle2SelfLib.calibration import Calibration, calibrate
from Speckle2SelfLib.checkpoint import Model
from Speckle2SelfLib.config import ModelConfig
from Speckle2SelfLib.despeckling import despeckle
from Speckle2SelfLib.look import DOUBTFUL, UNKNOWN, look, uncertainty_of_look
from Speckle2SelfLib.network import BEGINNING, MOST, UNSURE, build
from Speckle2SelfLib.system import InputError

MAPPING = (10.0, 210.0)  # the grey values that a model sees as 0 and 1
EXACT = {"precision": torch.float32, "device": "cpu"}


def make(deviation=UNSURE, spread=0.0, **config):
    """Return a model of random weights that estimates `deviation` everywhere, or around it with a spread of its
    logarithm."""
    torch.manual_seed(0)
    config = ModelConfig(width=8, uncertainty=True, **config)
    network = build(config).eval()
    for name, parameter in network.named_parameters():
        if not name.startswith("uncertainty"):
            torch.nn.init.normal_(parameter, std=0.1)
        elif name.endswith("fine.weight"):
            torch.nn.init.normal_(parameter, std=spread)
        elif name.endswith("fine.bias"):
            torch.nn.init.constant_(parameter, np.log(deviation / np.sqrt(1 - (deviation / MOST) ** 2)) - BEGINNING)
    return Model(config, network)


@pytest.fixture
def cine():
    return np.random.default_rng(0).integers(20, 220, (3, 40, 48)).astype(np.uint8)


@pytest.fixture
def whole(cine):
    return Calibration(np.ones(cine.shape[1:], bool), MAPPING)


def told(frames, model, calibration, **options):
    uncertainty = np.full(frames.shape[:3], 7, np.float32)
    output = despeckle(frames, model, calibration=calibration, uncertainty=uncertainty, **EXACT, **options)
    return output, uncertainty


def test_an_uncertainty_is_at_most_the_largest_possible_error(cine, whole):
    model = make()
    torch.nn.init.constant_(model.network.uncertainty.fine.bias, 20)
    _, uncertainty = told(cine, model, whole)
    assert uncertainty == pytest.approx(np.full(cine.shape, MOST * 200), rel=1e-5)


def test_it_is_in_grey_values_of_the_output(cine, whole):
    output, uncertainty = told(cine, make(), whole)
    assert uncertainty == pytest.approx(np.full(cine.shape, UNSURE * 200), rel=1e-5)
    assert np.array_equal(output, despeckle(cine, make(), calibration=whole, **EXACT))
    _, of_floats = told(cine.astype(np.float32) * 0.3 - 60, make(), replace(whole, mapping=(-57, 3)))
    assert of_floats == pytest.approx(np.full(cine.shape, UNSURE * 60), rel=1e-5)


def test_the_factor_that_was_fitted_to_held_out_frames_multiplies_it(cine, whole):
    _, uncertainty = told(cine, make(uncertainty_scale=1.5), whole)
    assert uncertainty == pytest.approx(np.full(cine.shape, 1.5 * UNSURE * 200), rel=1e-5)


def test_strength_and_the_slope_of_gamma_scale_it(cine, whole):
    plain, _ = told(cine.astype(np.float32), make(), whole)
    _, half = told(cine, make(), whole, strength=0.5)
    assert half == pytest.approx(np.full(cine.shape, 0.5 * UNSURE * 200), rel=1e-5)
    for gamma in (0.7, 2.0):
        _, uncertainty = told(cine.astype(np.float32), make(), whole, gamma=gamma)
        values = np.maximum((plain - MAPPING[0]) / 200, UNSURE)
        assert uncertainty == pytest.approx(gamma * values ** (gamma - 1) * UNSURE * 200, rel=1e-2)
    same, nothing = told(cine, make(), whole, strength=0)
    assert np.array_equal(same, cine) and not nothing.any()


def test_outside_the_region_and_where_nothing_is_changed_it_is_zero(cine):
    region = np.zeros((40, 48), bool)
    region[5:30, 10:40] = True
    frames = cine.astype(np.float32)
    frames[0, 8, 12] = np.nan
    _, uncertainty = told(frames, make(), Calibration(region, MAPPING, bounds=(20, 219)))
    assert not uncertainty[:, ~region].any() and uncertainty[0, 8, 12] == 0
    assert (uncertainty[1:, region] > 0).all()
    colors = np.repeat(cine[..., None], 3, -1)
    colors[:, 20:24, 20:24] = (200, 30, 30)
    _, uncertainty = told(colors, make(), Calibration(region, MAPPING, bounds=(20, 219)))
    assert not uncertainty[:, 20:24, 20:24].any() and (uncertainty[:, 5:15, 10:15] > 0).all()


def test_it_is_returned_at_the_resolution_of_the_frames_and_along_beams():
    frames = np.random.default_rng(0).integers(20, 220, (2, 120, 160)).astype(np.uint8)
    rows, columns = np.mgrid[:120, :160]
    depth, angle = np.hypot(rows + 20, columns - 80), np.arctan2(columns - 80, rows + 20)
    fan = (depth > 40) & (depth < 130) & (np.abs(angle) < 0.6)
    for region in (np.ones((120, 160), bool), fan):
        calibration = Calibration(region, MAPPING, grain=(3.0, 4.0))
        _, uncertainty = told(frames, make(grain=(0.65, 1.45)), calibration)
        assert uncertainty[:, region] == pytest.approx(UNSURE * 200, rel=1e-4)
        assert not uncertainty[:, ~region].any()


def test_a_single_frame_needs_a_single_map_and_others_are_refused(cine, whole):
    _, uncertainty = told(cine[0], make(), whole)
    assert uncertainty.shape == (40, 48) and (uncertainty > 0).all()
    for wrong in (np.zeros((40, 48), np.float32), np.zeros(cine.shape), np.zeros((48, 40, 3), np.float32).T):
        with pytest.raises(InputError, match="array for the uncertainty"):
            despeckle(cine, make(), calibration=whole, uncertainty=wrong)


@pytest.mark.parametrize("model", ["median", Model(ModelConfig(width=8), build(ModelConfig(width=8)))])
@pytest.mark.parametrize("asked", ["uncertainty", "cautious"])
def test_filters_and_models_without_a_head_are_refused_in_one_sentence(cine, model, asked):
    value = np.empty(cine.shape, np.float32) if asked == "uncertainty" else 0.5
    with pytest.raises(InputError, match="does not estimate its uncertainty"):
        despeckle(cine, model, region=None, **{asked: value})


@pytest.mark.parametrize("level, kept", [(DOUBTFUL * 0.9, 0), ((DOUBTFUL + UNKNOWN) / 2, 0.5), (UNKNOWN * 1.1, 1)])
def test_caution_keeps_the_input_where_the_model_is_uncertain(cine, whole, level, kept):
    frames, model = cine.astype(np.float32), make(level)
    plain = despeckle(frames, model, calibration=whole, **EXACT)
    careful = despeckle(frames, model, calibration=whole, cautious=0.8, **EXACT)
    share = 0.8 * kept
    assert careful == pytest.approx(share * frames + (1 - share) * plain, abs=1e-2)


@pytest.mark.parametrize("strength, gamma, cautious", [(1, 1, 0.7), (0.6, 1, 1), (0.5, 1.6, 0.3), (1, 0.8, 0)])
def test_the_look_changes_afterwards_without_the_network(cine, strength, gamma, cautious):
    frames, model = cine.astype(np.float32), make(0.055, spread=40.0)
    calibration = calibrate(frames, None, with_grain=False)
    plain, uncertainty = told(frames, model, calibration)
    assert uncertainty.std() > 0.2 * uncertainty.mean()
    options = {"strength": strength, "gamma": gamma}
    expected, expected_uncertainty = told(frames, model, calibration, cautious=cautious, **options)
    region, mapping = calibration.region, calibration.mapping
    found = look(frames, plain, region, mapping, strength, gamma, cautious, uncertainty)
    inside = (plain > frames.min()) & (plain < frames.max())  # others have been clipped
    assert found[inside] == pytest.approx(expected[inside], abs=0.05)
    found = uncertainty_of_look(uncertainty, plain, mapping, strength, gamma)
    assert found[inside] == pytest.approx(expected_uncertainty[inside], rel=1e-3)


# --- On the command line.


@pytest.fixture
def folder(tmp_path, monkeypatch, cine):
    monkeypatch.chdir(tmp_path)
    model = make()
    checkpoint.save("model", model.config, model.network, {})
    np.save("in.npy", cine)
    return tmp_path


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def run(*arguments):
    return main(["despeckle", *arguments, "--model", "model", "--region", "none", "--device", "cpu"])


@pytest.mark.parametrize("suffix", ["npy", "nrrd", "mha"])
def test_it_is_written_as_floating_point_of_the_inputs_shape(folder, cine, suffix):
    assert run("in.npy", "out.npy", "--uncertainty", f"told.{suffix}", "--strength", "0.5") == 0
    found = files.read(f"told.{suffix}").frames
    low, high = calibrate(cine, None, with_grain=False).mapping
    assert found.dtype == np.float32 and found.shape == cine.shape
    assert found == pytest.approx(0.5 * UNSURE * (high - low), rel=1e-4)
    assert np.load("out.npy").dtype == np.uint8


@pytest.mark.parametrize("kind", ["mha", "nrrd", "nii.gz", "png", "colour.mha", "colour.nrrd"])
@pytest.mark.parametrize("suffix", ["npy", "nrrd", "mha"])
def test_recordings_of_all_kinds_have_one_with_their_geometry(folder, cine, kind, suffix):
    frames = cine[0] if kind == "png" else cine
    image = sitk.GetImageFromArray(np.repeat(frames[..., None], 3, -1) if "colour" in kind else frames)
    image.SetSpacing((0.5, 0.25, 2.0)[: image.GetDimension()])
    if kind != "png":
        image.SetOrigin((10.0, -20.0, 30.0))
        image.SetDirection((0, 1, 0, 0, 0, 1, 1, 0, 0))
    sitk.WriteImage(image, f"scan.{kind}")
    assert run(f"scan.{kind}", f"out.{kind}", "--axis", "k", "--uncertainty", f"told.{suffix}") == 0
    if suffix == "npy":
        assert np.load("told.npy").shape == frames.shape
        return
    told = sitk.ReadImage(f"told.{suffix}")
    assert told.GetPixelID() == sitk.sitkFloat32 and sitk.GetArrayFromImage(told).shape == frames.shape
    for place in ("GetSpacing", "GetOrigin", "GetDirection") if kind != "png" else ():
        assert getattr(told, place)() == pytest.approx(getattr(image, place)()), place
    assert (sitk.GetArrayFromImage(told) > 0).all()


@pytest.mark.parametrize("axis", ["j", "average"])
def test_volumes_have_one_along_any_axis(folder, axis):
    volume = np.random.default_rng(0).integers(20, 220, (16, 24, 32)).astype(np.uint8)
    np.save("volume.npy", volume)
    assert run("volume.npy", "out.npy", "--axis", axis, "--uncertainty", "told.npy") == 0
    assert np.load("told.npy").shape == volume.shape
    assert np.load("told.npy") == pytest.approx(UNSURE * 199, rel=0.05)


def test_several_inputs_have_theirs_in_a_folder_of_the_same_layout(folder, cine, capsys):
    (folder / "data" / "deep").mkdir(parents=True)
    np.save("data/a.npy", cine)
    sitk.WriteImage(sitk.GetImageFromArray(cine[0]), "data/deep/b.png")
    assert run("data", "data/out", "--uncertainty", "data/told") == 0
    assert names(folder / "data" / "told") == ["a.npy", "deep/b.png.nrrd"]
    assert run("data", "data/out", "--uncertainty", "data/told") == 0, "results are not used as inputs"
    assert names(folder / "data" / "out") == ["a.npy", "deep/b.png"]
    assert run("data", "other", "--uncertainty", "other") == 2
    assert "folder of their own" in capsys.readouterr().err and not (folder / "other").exists()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--uncertainty", "told.png"], "suffix .npy, .nrrd or .mha"),
        (["--uncertainty", "out.npy"], "is the output already"),
        (["--uncertainty", "in.npy"], "is the input"),
        (["--uncertainty", "nowhere/told.npy"], "does not exist"),
        (["--uncertainty", "told.npy", "--model", "median"], "does not estimate its uncertainty"),
        (["--cautious", "0.5", "--model", "median"], "does not estimate its uncertainty"),
        (["--cautious", "2"], "cautious must be between 0 and 1"),
    ],
)
def test_impossible_requests_for_uncertainty_are_refused_in_one_line_and_write_nothing(folder, capsys, arguments, said):
    assert main(["despeckle", "in.npy", "out.npy", "--model", "model", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1
    assert names(folder) == ["in.npy", "model"]


def test_where_the_output_cannot_be_written_nothing_is_left(folder, monkeypatch, capsys):
    write = files.write

    def full(path, *rest):
        if path.name == "out.npy":
            raise InputError("The disk is full.")
        write(path, *rest)

    monkeypatch.setattr(files, "write", full)
    assert run("in.npy", "out.npy", "--uncertainty", "told.npy") == 2
    assert names(folder) == ["in.npy", "model"]
