"""Kills, full disks, little memory, removed nodes: the input is kept, nothing incomplete is left, the next run works.

SPECKLE2SELF_FUZZ sets how many random moments are tried, one in 400, as in test_hostile_input.py; each is named by its
seed.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import alive, frames_of, until

from Speckle2SelfLib import checkpoint, files, library
from Speckle2SelfLib.config import Job, ModelConfig, from_dict
from Speckle2SelfLib.network import build
from Speckle2SelfLib.system import InputError
from Speckle2SelfSlicer.exporting import export
from Speckle2SelfSlicer.trainer import Trainer
from Speckle2SelfSlicer.worker import Worker

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals and limits")
MOMENTS = max(1, int(os.environ.get("SPECKLE2SELF_FUZZ", "0")) // 400)
FRAMES = np.random.default_rng(0).rayleigh(40, (12, 48, 56)).clip(0, 255).astype(np.uint8)
MANY = np.concatenate([FRAMES] * 60)


def finish(worker, job):
    until(lambda: job.ended, worker.poll)
    return job


def python(code, *arguments, folder, **options):
    """Return a process that runs `code` with the core on its path."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


# --- Killed


def test_the_worker_is_killed_at_any_moment():
    worker = Worker()
    for number in range(MOMENTS):
        job = worker.despeckle(MANY, model="nlm")
        pid, end = worker.pid, time.monotonic() + float(np.random.default_rng(number).uniform(0, 2))
        while time.monotonic() < end:
            worker.poll()
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        finish(worker, job)
        assert job.state == "failed", number
        said = "The despeckling process ended unexpectedly (signal 9); nothing was changed."
        assert job.message == f"{said} Apply again to start a fresh one."
        assert np.array_equal(job.input, MANY) and not alive(pid)
        job.release()
    assert finish(worker, worker.despeckle(FRAMES, model="median")).state == "done"
    worker.close()


@pytest.fixture
def job(job):
    """Return a run that does not end, with a checkpoint every other step."""
    return replace(job, steps=10**6, interval=2)


def test_the_trainer_is_killed_at_any_moment(trainer, job):
    frames = np.random.default_rng(0).rayleigh(40, (16, 64, 64)).clip(0, 255).astype(np.uint8)
    run, reached = trainer.add("run", [frames], job), 0
    for number in range(MOMENTS):
        pid = run._child.process.pid
        end = time.monotonic() + float(np.random.default_rng([number, 1]).uniform(0, 4))
        while time.monotonic() < end and not run.ended:
            trainer.poll()
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        assert trainer.wait(run, 30) and run.state == "failed" and "ended unexpectedly" in run.message, number
        assert not alive(pid)
        assert np.array_equal(np.load(run.folder / "recording-1.npy"), frames)
        for name, load in (("model.safetensors", checkpoint.load), ("model.safetensors.state", checkpoint.load_state)):
            if (run.folder / name).exists():
                load(run.folder / name)  # whole
        if (run.folder / "model.safetensors.state").exists():
            step = checkpoint.load_state(run.folder / "model.safetensors.state")[1]["step"]
            assert step >= reached, "nothing that was saved is lost"
            reached = step
        trainer.resume(run)
        assert run.state == "running"
    until(lambda: run.settings.get("from_step", 0) >= reached, trainer.poll)
    until(lambda: run.reports and run.reports[-1]["step"] > reached, trainer.poll)
    pid, began = run._child.process.pid, time.monotonic()
    run.cancel()
    assert time.monotonic() < began + 1 and not alive(pid)
    assert not list(trainer.folder.iterdir())


APPLICATION = """
import sys
from pathlib import Path
import numpy as np
import slicer
from Speckle2SelfLib import library
from Speckle2SelfSlicer import comparison, regions, scene
source, start, folder, what = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]
despeckle, train = (slicer.util.getModuleLogic(name) for name in ("Speckle2Self", "SpeckleTrain"))
frame = np.zeros((128, 128), bool)
frame[4:40, 4:50] = True
def now(moment):
    print(moment, flush=True)
while True:
    now("loading")
    slicer.mrmlScene.Clear()
    cine = slicer.util.loadSequence(str(source))
    now("starting to train")
    train.trainer.unfinished_runs()
    for job in list(train.trainer.jobs):
        if job.resumable:
            train.trainer.resume(job)
        elif job.ended or what == "write":  # it had no checkpoint yet
            job.cancel()
            train.trainer.jobs.remove(job)
    if not train.trainer.jobs:
        train.start([cine], init=start, steps=10**6, device="cpu", region="none", name="Mine")
    (job,) = train.trainer.jobs
    if what != "write":
        now("despeckling and training")
        run = despeckle.start(cine, model="median", region=frame)
        while not run.ended:
            despeckle.worker.poll()
            train.poll()
            run.step()
        assert run.state == "done", run.message
    now("keeping region, figures and model")
    regions.saveRegion(scene.proxyOf(cine), frame)
    figures = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", "figures")
    slicer.util.updateTableFromArray(figures, np.arange(3000.0).reshape(1000, 3), ["a", "b", "c"])
    comparison.writeTable(figures, folder / "figures.csv")
    library.export(library.add(start, library.free_name("copy")), folder / "copy.safetensors")
    now("exporting a run")
    number = sum(1 for _ in folder.glob("export-*"))
    train.exportJob([cine], folder / f"export-{number}", preset="adapt", init=start)
    assert job.state == "running", job.message
    if what == "once":
        break
now("ending")
job.cancel()
despeckle.close()
"""


def whole(folder, home, recording):
    """Read everything with a final name that the application writes to its end."""
    for path in [*folder.glob("*.safetensors"), *home.glob("models/*.safetensors"), *home.glob("runs/*/*.safetensors")]:
        checkpoint.load(path)
    for path in home.glob("runs/*/*.state"):
        checkpoint.load_state(path)
    for path in (path for path in [*folder.glob("export-*"), *home.glob("runs/*")] if not path.name.endswith(".part")):
        assert from_dict(Job, json.loads((path / "job.json").read_text())).preset == "adapt"
        assert np.array_equal(np.load(path / "recording-1.npy"), recording)
    for path in folder.glob("export-*"):
        assert {"run.sh", "run.slurm", "run-hosts.sh"} <= {entry.name for entry in path.iterdir()}
    for path in folder.glob("figures.csv"):
        assert np.loadtxt(path, delimiter=",", skiprows=1).shape == (1000, 3)
    for path in home.glob("regions/*.npy"):
        assert np.load(path).sum() == 36 * 46
    kinds = {"in.seq.nrrd", "start.model", "figures.csv", "copy.safetensors", "home"}
    assert {path.name for path in folder.iterdir() if not path.name.startswith((".", "export-"))} <= kinds


def running(folder):
    """Return the processes whose environment names this folder: the application and all that it started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"SPECKLE2SELF_HOME={folder}".encode() in path.read_bytes() and alive(int(path.parent.name)):
                found.append(int(path.parent.name))
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_application_is_killed_at_any_moment(job, tmp_path, project):
    """While it loads, trains, despeckles, writes into the scene, exports and keeps models and regions."""
    pytest.importorskip("slicer")
    source, script, home = tmp_path / "in.seq.nrrd", tmp_path / ".application.py", tmp_path / "home"
    shutil.copyfile(project / "Testing" / "Data" / "Speckle2SelfCine1.seq.nrrd", source)
    content = source.read_bytes()
    script.write_text(APPLICATION)
    environment = {**os.environ, "SPECKLE2SELF_HOME": str(home), "OMP_NUM_THREADS": "1",
                   "HEADLESS_SLICER_PYTHON": sys.executable}  # fmt: skip

    def application(what):
        command = [project / "Testing" / "headless-slicer", script, source, job.init, tmp_path, what]
        return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    moments, longest = [], 0.0
    for number in range(MOMENTS):
        process = application(("despeckle", "write")[number % 2])
        assert process.stdout.readline() == "loading\n", process.communicate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(float(np.random.default_rng([number, 7]).uniform(0, (4, 2)[number % 2])))
        assert process.poll() is None, process.communicate()
        process.kill()
        moments.append(["loading", *process.communicate()[0].splitlines()][-1])
        killed = time.monotonic()
        until(lambda: not running(home), seconds=120)
        longest = max(longest, time.monotonic() - killed)
        assert source.read_bytes() == content, number
        whole(tmp_path, home, files.read(source).frames)
    print(f"Killed while {Counter(moments)}; the last process ended {longest:.1f} s later at most.")
    process = application("once")
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "ending" in said, errors
    assert not running(home) and source.read_bytes() == content
    assert list(tmp_path.glob("export-*")) and (tmp_path / "figures.csv").exists()
    assert list(home.glob("models/*.safetensors")) and list(home.glob("regions/*.npy"))
    assert not [path for path in home.glob("runs/*") if not path.name.endswith(".part")], "the run was removed"


SUFFIXES = [".npy", ".npz", ".mha", ".nrrd", ".tif", ".nii.gz", ".dcm"]
WRITER = """
import sys, numpy as np
from Speckle2SelfLib import files
recording = files.read(sys.argv[1])
print("ready", flush=True)
while True:
    for frames in (recording.frames, 255 - recording.frames):
        files.write(sys.argv[2], frames, recording)
"""


def recording(path, frames=FRAMES):
    """Return a file of the format that the suffix names."""
    if path.suffix in (".npy", ".npz"):
        np.save(path, frames) if path.suffix == ".npy" else np.savez(path, frames=frames)
    elif path.suffix == ".dcm":
        from test_hostile_input import dicom

        path.write_bytes(dicom(frames=frames))
    else:
        import SimpleITK as sitk

        sitk.WriteImage(sitk.GetImageFromArray(frames), str(path))
    return path


@pytest.mark.parametrize("suffix", [".npy", ".mha", ".tif"])
def test_a_file_is_written_whole_or_not_at_all_whenever_it_is_killed(suffix, tmp_path, project):
    source, target = recording(tmp_path / f"in{suffix}"), tmp_path / f"out{suffix}"
    content = source.read_bytes()
    for number in range(max(2, MOMENTS // 3)):
        process = python(WRITER, source, target, folder=tmp_path)
        process.stdout.readline()
        time.sleep(float(np.random.default_rng([number, 2]).uniform(0, 0.2)))
        process.kill()
        process.communicate()
        assert source.read_bytes() == content
        if target.exists():
            frames = files.read(target).frames
            assert np.array_equal(frames, FRAMES) or np.array_equal(frames, 255 - FRAMES), number
        assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} <= {source.name, target.name}
    files.write(target, FRAMES, files.read(source))


# --- No room


FULL = """
import resource, sys
from pathlib import Path
from Speckle2SelfLib import checkpoint, files, library
from Speckle2SelfLib.config import InputError
from Speckle2SelfSlicer.exporting import export
import numpy as np
recordings = [files.read(path) for path in sys.argv[1:]]
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
def refused(what):
    try:
        what()
    except InputError as error:
        print(error)
    else:
        print("NOT REFUSED", what)
for recording in recordings:
    refused(lambda: files.write("out" + "".join(recording.path.suffixes), recording.frames, recording))
refused(lambda: library.export("default", "out.safetensors"))
refused(lambda: library.add(library.models()["default"], "mine"))
refused(lambda: library.save_region("a", np.ones((80, 80), bool)))
from Speckle2SelfLib.config import Job
refused(lambda: export(Path("run"), [recordings[0].frames], Job("", preset="standard")))
"""


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path, project):
    """Files may have 4000 bytes at most."""
    (tmp_path / "in").mkdir()
    noise = np.random.default_rng(1).integers(0, 255, FRAMES.shape).astype(np.uint8)  # it cannot be packed
    sources = [recording(tmp_path / "in" / f"in{suffix}", noise) for suffix in SUFFIXES]
    contents = [path.read_bytes() for path in sources]
    environment = {**os.environ, "SPECKLE2SELF_HOME": str(tmp_path / "home")}
    environment["PYTHONPATH"] = str(project / "Speckle2Self")
    process = python(FULL, *sources, folder=tmp_path, env=environment)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert said.count("cannot be written") == len(said.splitlines()) == len(SUFFIXES) + 4, said
    assert [path.read_bytes() for path in sources] == contents
    left = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"in"}


def test_a_folder_that_cannot_be_written_is_reported(tmp_path, monkeypatch):
    """A file is in the folder's place, which stops the administrator as well."""
    closed = tmp_path / "closed"
    closed.write_bytes(b"")
    monkeypatch.setenv("SPECKLE2SELF_HOME", str(closed))
    np.save(tmp_path / "in.npy", FRAMES)
    for work in (
        lambda: files.write(closed / "out.npy", FRAMES, files.read(tmp_path / "in.npy")),
        lambda: checkpoint.save(closed / "a.model", ModelConfig(width=4), build(ModelConfig(width=4)), {}),
        lambda: library.add(library.models()["default"], "mine"),
        lambda: library.save_region("a", np.ones((8, 8), bool)),
        lambda: library.export("default", closed / "out.safetensors"),
        lambda: export(closed / "run", [FRAMES], Job("")),
        lambda: Trainer().add("run", [FRAMES], Job("")),
    ):
        with pytest.raises(InputError) as error:
            work()
        assert "closed" in str(error.value) and "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["closed", "in.npy"]
    assert library.own_models() == {} and Trainer().unfinished_runs() == []


LITTLE_MEMORY = """
import resource, sys
from Speckle2SelfLib import despeckling, files, filters
from Speckle2SelfLib.__main__ import main
with open("/proc/self/statm") as status:
    used = int(status.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]) * 2**20,) * 2)
sys.exit(main(["despeckle", "in.npy", "out.npy", "--model", sys.argv[2], "--region", "none", "--device", "cpu"]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space")
@pytest.mark.parametrize(("room", "model"), [(60, "median"), (160, "default")])
def test_too_little_memory_is_reported_and_leaves_nothing(room, model, tmp_path, project):
    """`room` MB in addition to the libraries; the frames have 50 MB."""
    np.save(tmp_path / "in.npy", np.random.default_rng(0).integers(0, 255, (3, 4096, 4096)).astype(np.uint8))
    process = python(LITTLE_MEMORY, room, model, folder=tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    assert len(errors.splitlines()) == 1 and errors.startswith("speckle2self: ") and "memory" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["in.npy"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space")
def test_a_worker_with_too_little_memory_reports_it_and_does_the_next_job(tmp_path):
    first = Worker(python=sys.executable)  # without Slicer's launcher, whose own memory would be measured
    finish(first, first.despeckle(FRAMES, model="median"))
    status = Path(f"/proc/{first.pid}/status").read_text()
    peak = int(status.split("VmPeak:")[1].split()[0])  # kB
    first.close()
    limited = tmp_path / "python"
    limited.write_text(f'#!/bin/sh\nulimit -v {peak + 300_000}\nexec {sys.executable} "$@"\n')
    limited.chmod(0o755)
    worker = Worker(python=str(limited))
    job = worker.allocate((1, 20_000, 20_000), np.uint8)
    finish(worker, worker.start(job, {"model": "median"}))
    assert job.state == "failed" and "not enough memory on this computer" in job.message, job.message
    job.release()
    assert finish(worker, worker.despeckle(FRAMES, model="median")).state == "done"
    worker.close()


def test_a_device_that_disappears_fails_only_the_job():
    from types import SimpleNamespace

    from Speckle2SelfLib.protocol import Failed
    from Speckle2SelfLib.worker_process import Server

    said = []
    server = Server(SimpleNamespace(), said.append)

    def lost():
        raise RuntimeError("CUDA error: device-side failure\nmore lines")

    server.attempt(SimpleNamespace(job=1), lost)
    assert isinstance(said[0], Failed) and "\n" not in said[0].message and "CUDA error" in said[0].message


# --- The scene changes during a run


@pytest.fixture(scope="module")
def worker():
    worker = Worker()
    yield worker
    worker.close()


@pytest.fixture
def sequence():
    slicer = pytest.importorskip("slicer")
    slicer.mrmlScene.Clear()
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "Cine")
    for number, frame in enumerate(FRAMES):
        volume = slicer.vtkMRMLScalarVolumeNode()
        slicer.util.updateVolumeFromArray(volume, frame[None])
        sequence.SetDataNodeAtValue(volume, f"{number}")
    yield sequence
    slicer.mrmlScene.Clear()


def steps_to(run, worker, moment):
    while run.state != moment and not run.ended:
        worker.poll()
        run.step(0)


def ends(run, worker):
    until(lambda: run.ended, lambda: (worker.poll(), run.step()))


def remove_input(scene, sequence):
    scene.RemoveNode(sequence)


def close_scene(scene, sequence):
    scene.Clear()


MOMENTS_OF_A_RUN = ["reading", "despeckling", "writing"]


@pytest.mark.parametrize("moment", MOMENTS_OF_A_RUN)
@pytest.mark.parametrize("fault", [remove_input, close_scene])
def test_removing_the_input_ends_the_run_and_leaves_nothing(fault, moment, worker, sequence):
    import slicer

    from Speckle2SelfSlicer.processing import Run

    run = Run(worker, sequence, model="median", region="none")
    steps_to(run, worker, moment)
    fault(slicer.mrmlScene, sequence)
    count = slicer.mrmlScene.GetNumberOfNodes()
    ends(run, worker)
    assert run.state == "failed" and "removed" in run.message and run.message.endswith(".")
    assert slicer.mrmlScene.GetNumberOfNodes() == count
    assert np.array_equal(frames_of(sequence), FRAMES), "an old reference still has the old values"


@pytest.mark.parametrize("moment", MOMENTS_OF_A_RUN)
def test_removing_the_output_ends_the_run(moment, worker, sequence):
    import slicer

    from Speckle2SelfSlicer.processing import Run

    output = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "Output")
    run = Run(worker, sequence, output, model="median", region="none")
    steps_to(run, worker, moment)
    slicer.mrmlScene.RemoveNode(output)
    count = slicer.mrmlScene.GetNumberOfNodes()
    ends(run, worker)
    assert run.state == "failed" and "output" in run.message and slicer.mrmlScene.GetNumberOfNodes() == count
    assert np.array_equal(frames_of(sequence), FRAMES)


@pytest.mark.parametrize("moment", MOMENTS_OF_A_RUN)
def test_a_sequence_that_is_edited_keeps_its_edit(moment, worker, sequence):
    """Items removed, added and changed: the result is of the original items, or the run ends with a sentence."""
    import slicer

    from Speckle2SelfSlicer.processing import Run

    run = Run(worker, sequence, model="median", region="none")
    steps_to(run, worker, moment)
    run.step(0)
    sequence.RemoveDataNodeAtValue("3")
    added = slicer.vtkMRMLScalarVolumeNode()
    slicer.util.updateVolumeFromArray(added, FRAMES[:1, :8])
    sequence.SetDataNodeAtValue(added, "99")
    slicer.util.arrayFromVolume(sequence.GetDataNodeAtValue("11"))[...] = 7
    ends(run, worker)
    assert run.state == "done", run.message
    assert run.result.node.GetNumberOfDataNodes() == 12
    assert sequence.GetNumberOfDataNodes() == 12 and sequence.GetDataNodeAtValue("3") is None
    assert (slicer.util.arrayFromVolume(sequence.GetDataNodeAtValue("11")) == 7).all()


def test_a_frame_that_changes_its_size_before_it_is_read_ends_the_run(worker, sequence):
    import slicer

    from Speckle2SelfSlicer.processing import Run

    run = Run(worker, sequence, model="median", region="none")
    run.step(0)
    count = slicer.mrmlScene.GetNumberOfNodes()
    slicer.util.updateVolumeFromArray(sequence.GetNthDataNode(9), FRAMES[:1, :20])
    ends(run, worker)
    assert run.state == "failed" and "differ in size" in run.message
    assert slicer.mrmlScene.GetNumberOfNodes() == count


def test_two_runs_on_one_input_at_once(worker, sequence):
    from Speckle2SelfSlicer.processing import Run

    other = Worker()
    runs = [Run(chosen, sequence, model="median", region="none") for chosen in (worker, worker, other)]

    def poll():
        for chosen in (worker, other):
            chosen.poll()
        for run in runs:
            run.step(0.001)

    until(lambda: all(run.ended for run in runs), poll)
    other.close()
    assert [run.state for run in runs] == ["done"] * 3, [run.message for run in runs]
    results = [frames_of(run.result.node) for run in runs]
    assert all(np.array_equal(result, results[0]) for result in results) and (results[0] != FRAMES).any()
    assert len({run.result.node.GetName() for run in runs}) == 3
    assert np.array_equal(frames_of(sequence), FRAMES)


def test_a_clock_that_is_set_back_changes_nothing(worker, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)
    job = finish(worker, worker.despeckle(FRAMES, model="median"))
    assert job.state == "done" and 0 < job.rate < np.inf


def test_no_process_is_left_running_after_these_tests(trainer, job):
    """A closed run leaves no process in any state."""
    run = trainer.add("run", [np.repeat(FRAMES, 2, 1)[:, :64, :48]], replace(job, steps=10**6))
    pid = run._child.process.pid
    trainer.close()
    until(lambda: not alive(pid), seconds=5)
