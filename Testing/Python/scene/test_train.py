"""SpeckleTrain's logic on real MRML with real child processes."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from copies import Copy
from imageio.v3 import imwrite

from Speckle2SelfLib import checkpoint, library
from Speckle2SelfLib.config import Job, ModelConfig
from Speckle2SelfLib.network import build
from Speckle2SelfLib.system import InputError

slicer = pytest.importorskip("slicer")

FRAMES = np.random.default_rng(0).rayleigh(40, (16, 64, 64)).clip(0, 255).astype(np.uint8)


@pytest.fixture
def logic(slicer_app, tmp_path, monkeypatch):
    """Return SpeckleTrain's logic with a home of its own, which holds a small model `start`."""
    monkeypatch.setenv("SPECKLE2SELF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    from Speckle2SelfSlicer import training_data
    from Speckle2SelfSlicer.trainer import Trainer
    from SpeckleTrain import SpeckleTrainLogic

    # the anatomies and batches of the preset need long
    monkeypatch.setattr(training_data, "Job", lambda *given, **options: Job(*given, simulated=4, batch=2, **options))
    model = ModelConfig(width=4, grain=(0.75, 1.7))
    (tmp_path / "home" / "models").mkdir(parents=True)
    checkpoint.save(library.own_path("start"), model, build(model), {})
    logic = SpeckleTrainLogic(Trainer())
    yield logic
    logic.trainer.close()


@pytest.fixture
def copies(original, monkeypatch):
    """Start training processes as copies of one that has imported everything."""
    start = subprocess.Popen

    def popen(command, **options):
        if command[1:3] != ["-m", "Speckle2SelfLib"]:
            return start(command, **options)
        return Copy(original, command[3:], options["env"], options["cwd"], binary=True)

    monkeypatch.setattr(subprocess, "Popen", popen)


@pytest.fixture
def volume(slicer_app):
    return slicer.util.addVolumeFromArray(FRAMES, name="Doe^Jane")


@pytest.fixture
def box(volume):
    """Return a box on the first 48 of the volume's 64 columns."""
    box = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box")
    box.SetCenter(23.5, 32, 8)
    box.SetSize(48, 100, 100)
    return box


def test_a_recording_in_the_scene_becomes_a_model_that_despeckles(logic, volume, copies):
    before = slicer.mrmlScene.GetNumberOfNodes()
    job = logic.start([volume], preset="adapt", init="start", steps=4, region="none")
    assert job.wait(90) and job.state == "done", job.message
    assert job.model == "Doe Jane adapt"
    assert slicer.mrmlScene.GetNumberOfNodes() == before, "only showProgress touches the scene"
    assert np.array_equal(slicer.util.arrayFromVolume(volume), FRAMES)
    output = slicer.util.getModuleLogic("Speckle2Self").process(volume, model=job.model, region="none")
    assert output.GetName() == "Doe^Jane despeckled"
    assert job.model in slicer.util.getModuleLogic("Speckle2Self").models()


def test_recordings_with_the_same_long_name_can_be_trained_on_at_the_same_time(logic, copies):
    volume = slicer.util.addVolumeFromArray(FRAMES, name="Cardiac apical four chamber view cine loop of the year " * 2)
    jobs = [logic.start([volume], init="start", steps=10**6, region="none") for _ in range(3)]
    assert len({job.folder for job in jobs}) == 3 and jobs[2].name == f"{jobs[0].name[:78]} 3"


def test_a_given_trainer_belongs_only_to_its_logic(logic):
    from SpeckleTrain import SpeckleTrainLogic

    assert SpeckleTrainLogic().trainer is not logic.trainer
    assert SpeckleTrainLogic().trainer is SpeckleTrainLogic().trainer, "one queue for the application"


def test_recordings_are_distinguished_by_their_nodes_and_not_by_their_names(logic, volume):
    same = slicer.util.addVolumeFromArray(FRAMES[::-1].copy(), name=volume.GetName())
    from Speckle2SelfSlicer import training_data

    data = training_data.gather(logic.session, [volume, volume], heldOut=[same], region="none", device="cpu")
    assert [len(some) for some in (data.recordings, data.heldOut)] == [1, 1]
    with pytest.raises(InputError, match="both trained on and held out"):
        training_data.gather(logic.session, [volume], heldOut=[volume], region="none", device="cpu")


def test_curves_and_previews_are_nodes_that_are_kept_up_to_date(logic, volume, copies):
    job = logic.start([volume], init="start", steps=80, region="none", name="Mine")
    while len(job.reports) < 3:
        logic.poll()
        time.sleep(0.02)
    nodes = logic.showProgress(job)
    rows = nodes["table"].GetNumberOfRows()
    terms = nodes["loss"].GetNumberOfPlotSeriesNodes()
    assert rows >= 3 and terms == 4, "two of simulated frames, each also held out"
    assert nodes["errors"].GetNumberOfPlotSeriesNodes() == 3, "of the recording, of other anatomies, and repeat"
    legend = [nodes["errors"].GetNthPlotSeriesNode(i).GetName() for i in range(3)]
    plain = ["error on your recordings", "error on other anatomies", "difference of two speckle draws"]
    assert sorted(legend) == sorted(plain), "not the names of the columns"
    assert nodes["figures"].GetNumberOfPlotSeriesNodes() == 3, "those that need no truth"
    names = [nodes["table"].GetColumnName(i) for i in range(nodes["table"].GetNumberOfColumns())]
    assert names[0] == "step" and {"truth", "slopes", "held-out truth", "homogeneity", "rms", "world"} <= set(names)
    before, after = (slicer.util.arrayFromVolume(nodes[role]) for role in ("before", "after"))
    assert before.shape == after.shape == (1, 64, 64) and before.std() > 10, "as recorded"
    assert job.wait(90) and job.state == "done", job.message
    again = logic.showProgress(job)
    assert {role: again[role] for role in nodes} == nodes
    count = slicer.mrmlScene.GetNumberOfNodes()
    assert logic.showProgress(job) == again and slicer.mrmlScene.GetNumberOfNodes() == count
    assert nodes["table"].GetNumberOfRows() == len(job.reports) > rows
    compared = logic.compare("Mine")
    assert compared.GetColumnName(2) == "trained" and compared.GetNumberOfRows() == 8


def test_a_comparison_updates_its_own_table_and_not_the_users(logic):
    def save(name, structure):
        model = ModelConfig(width=4, grain=(0.75, 1.7))
        card = {"figures": {"structure": structure, "holes": 0.5}, "figures_are_of": name}
        checkpoint.save(library.own_path(name), model, build(model), card)

    def trained(table):
        return [table.GetTable().GetValueByName(row, "trained").ToString() for row in range(table.GetNumberOfRows())]

    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", "one compared")
    save("one", 0.25)
    save("two", 0.75)
    one, two = logic.compare("one"), logic.compare("two")
    assert len({mine, one, two}) == 3 and mine.GetNumberOfColumns() == 0
    save("one", 0.5)
    assert logic.compare("one") is one and trained(one) == ["0.5000", "0.5000"] and trained(two)[0] == "0.7500"
    one.SetName("Before the second try")
    save("one", 0.125)
    assert logic.compare("one").GetName() == "one compared" and trained(one)[0] == "0.5000", "it was kept by a name"
    count = slicer.mrmlScene.GetNumberOfNodes()
    assert trained(logic.compare("one"))[0] == "0.1250" and slicer.mrmlScene.GetNumberOfNodes() == count


def test_the_preview_shows_a_frame_upright(logic, volume):
    from Speckle2SelfSlicer.curves import runNodes, updatePreview

    picture = np.zeros((40, 60), np.uint8)
    picture[:5, :7] = 200
    nodes = runNodes(slicer.mrmlScene, "x")
    updatePreview(nodes, picture)
    before = slicer.util.arrayFromVolume(nodes["before"])[0]
    assert before.shape == (40, 30) and before[:5, :7].min() == 200 and before[5:].max() == 0
    ras = nodes["before"]
    import vtk

    matrix = vtk.vtkMatrix4x4()
    ras.GetIJKToRASMatrix(matrix)
    assert matrix.GetElement(1, 1) < 0 and matrix.GetElement(0, 0) < 0, "first row anterior, first column to the right"


def test_the_preview_shows_the_uncertainty_of_a_model_that_estimates_it(logic):
    from Speckle2SelfSlicer import curves

    class Run:
        name, nodes, reports = "y", [], [{"step": 0, "steps": 2, "held-out uncertainty": -0.1}]

        def picture(self):
            picture = np.hstack([np.full((40, 30), value, np.uint8) for value in (10, 20, 51)])
            return imwrite("<bytes>", picture, extension=".png")

    nodes = curves.showRun(Run())
    values = [np.unique(slicer.util.arrayFromVolume(nodes[role])) for role in ("before", "after", "uncertainty")]
    assert values == [10, 20, pytest.approx(1.4)], "the last in % of the grey range"
    assert curves.showRun(Run()) == nodes
    Run.reports = [{"step": 0, "steps": 2}]
    assert "uncertainty" not in curves.showRun(Run())


def test_nodes_that_cannot_be_trained_on_are_refused(logic, volume, box, tmp_path):
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Empty")
    other = slicer.util.addVolumeFromArray(FRAMES[:, 4:], name="Other")
    far = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Far")
    far.SetCenter(1000, 0, 0)
    for nodes, options, expected in (
        ([], {}, "nothing to train on"),
        (["nobody"], {}, "no node"),
        ([empty], {}, "no image data"),
        ([volume], {"preset": "fast"}, "Unknown preset"),
        ([volume], {"steps": 3, "minutes": 1.0}, "not both"),
        ([volume], {"heldOut": [volume]}, "both trained on and held out"),
        ([volume], {"region": "given"}, "none was used"),
        ([volume], {"region": volume}, "Choose a segmentation"),
        ([tmp_path], {"region": box}, "needs a recording"),
        ([volume, other, tmp_path], {"region": box}, "not the same"),
        ([volume], {"region": far}, "'Far' covers no part"),
    ):
        with pytest.raises(InputError, match=expected):
            logic.start(nodes, **options)
    assert logic.trainer.jobs == [] and not logic.trainer.folder.exists()


def test_unknown_and_ill_typed_arguments_are_refused_in_one_sentence(logic, volume, tmp_path):
    calls = {
        "start": logic.start,
        "estimate": lambda nodes, **options: logic.estimate(nodes, print, **options),
        "export": lambda nodes, **options: logic.exportJob(nodes, tmp_path / "run", **options),
        "export in the background": lambda nodes, **o: logic.startExport(nodes, tmp_path / "run", print, **o),
    }
    for options, expected in (
        ({"simulated": 10}, "'simulated' is not an argument here; use preset, name, heldOut, .*minutes"),
        ({"steps": "three"}, "steps cannot be 'three'"),
        ({"minutes": [1]}, r"minutes cannot be \[1\]"),
        ({"seed": {}}, "seed cannot be {}"),
    ):
        for name, call in calls.items():
            with pytest.raises(InputError, match=expected):
                call([volume], **options)
                pytest.fail(name)
    for nodes in (3, [3], None, [None]):
        with pytest.raises(InputError, match=r"^[A-Z'][^\n]*\.$"):
            logic.start(nodes)
    assert logic.trainer.jobs == [] and not list(tmp_path.glob("run*"))


def test_a_single_recording_needs_no_list(logic, volume, copies):
    job = logic.start(volume.GetName(), init="start", steps=2, region="none")
    assert job.nodes == [volume]


def test_the_scene_may_be_closed_during_a_run(logic, volume, copies):
    job = logic.start([volume], init="start", steps=4, region="none")
    slicer.mrmlScene.Clear()
    assert job.wait(90) and job.state == "done", job.message


def test_the_time_and_memory_of_training_are_estimated(logic, volume, copies):
    told = []
    logic.estimate([volume], told.append, init="start", region="none", steps=50)
    logic.estimate([slicer.util.addVolumeFromArray(FRAMES * 0, name="flat")], told.append, init="start")
    while len(told) < 2:
        logic.poll()
        time.sleep(0.02)
    estimate, refused = sorted(told, key=lambda x: isinstance(x, InputError))
    assert estimate["steps"] == 50 and estimate["frames"] == 13 and estimate["minutes"] > 0
    assert "No ultrasound region was found" in str(refused)
    assert logic.trainer.jobs == []


def test_a_region_covers_its_own_pixels_of_each_recording_and_is_remembered(logic, volume, box, tmp_path):
    shifted = slicer.util.addVolumeFromArray(FRAMES, name="Shifted")
    shifted.SetOrigin(-16, 0, 0)
    logic.exportJob([volume], tmp_path / "both", heldOut=[shifted], region=box)
    masks = [np.load(tmp_path / "both" / "regions" / f"{name}-1.npy") for name in ("recording", "held-out")]
    assert masks[0][:, :48].all() and not masks[0][:, 48:].any()
    assert masks[1][:, 16:].all() and not masks[1][:, :16].any()
    logic.exportJob([volume], tmp_path / "one", region=box)
    logic.exportJob([volume], tmp_path / "again", region="given")
    assert all(np.array_equal(np.load(tmp_path / name / "region.npy"), masks[0]) for name in ("one", "again"))


def test_a_model_file_to_start_from_is_found_in_any_folder_and_copied(logic, volume, copies, tmp_path, monkeypatch):
    (tmp_path / "file.model").write_bytes(library.own_path("start").read_bytes())
    monkeypatch.chdir(tmp_path)
    job = logic.start([volume], init="file.model", steps=1, region="none")
    assert job.wait(90) and job.state == "done", job.message
    for init in ("file.model", tmp_path / "file.model"):
        folder = logic.exportJob([volume], tmp_path / f"{len(str(init))}", init=init, region="none")
        settings = json.loads((folder / "job.json").read_text())
        assert settings["init"] == "start.safetensors" and (folder / settings["init"]).exists()
    for refused in (logic.start, lambda *given, **options: logic.exportJob(*given, tmp_path / "x", **options)):
        with pytest.raises(InputError, match="no model 'nowhere'"):
            refused([volume], init="nowhere")
    assert not (tmp_path / "x").exists() and len(logic.trainer.jobs) == 1


def test_an_exported_run_trains_elsewhere_and_its_result_is_imported(logic, volume, box, tmp_path):
    folder = logic.exportJob([volume], tmp_path / "job", preset="adapt", init="start", steps=3, region=box)
    content = {path.name for path in folder.iterdir()}
    scripts = {"run.sh", "run-hosts.sh", "run.slurm"}
    assert content == {"job.json", "recording-1.npy", "region.npy", "start.safetensors", *scripts}
    text = (folder / "job.json").read_text()
    assert "Doe" not in text and str(tmp_path) not in text
    with pytest.raises(InputError, match="not empty"):
        logic.exportJob([volume], folder)
    with pytest.raises(InputError, match="no result"):
        logic.importModel(folder)
    for script in ("run.sh", "run-hosts.sh", "run.slurm"):
        assert subprocess.run(["sh", "-n", folder / script]).returncode == 0
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    done = subprocess.run([folder / "run.sh"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["model"] == "model.safetensors"
    assert logic.importModel(folder, "from afar") == "from afar"
    assert "from afar" in library.own_models()
