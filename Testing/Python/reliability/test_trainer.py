"""Training in child processes: a queue, stop and resume, kills, full disks; no orphan, no half result."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import alive, until

from Speckle2SelfLib import checkpoint, files, library
from Speckle2SelfLib.system import InputError
from Speckle2SelfSlicer.exporting import export
from Speckle2SelfSlicer.run_files import complete, job_in_steps, write_recordings
from Speckle2SelfSlicer.trainer import Trainer, read_reports

FRAMES = np.random.default_rng(0).rayleigh(40, (16, 64, 64)).clip(0, 255).astype(np.uint8)


def test_runs_wait_for_their_turn_and_end_as_models(trainer, job):
    heard = []
    one = trainer.add("Carotid: left", [FRAMES], job, listener=lambda job, line: heard.append(line))
    two = trainer.add("Carotid: left 2", [FRAMES[..., None].repeat(3, -1)], job)
    assert (one.state, two.state) == ("running", "waiting")
    assert trainer.wait(one, 90) and trainer.wait(two, 90)
    assert (one.state, two.state) == ("done", "done"), (one.message, two.message)
    assert (one.model, two.model) == ("Carotid left", "Carotid left 2")
    assert set(library.own_models()) == {one.model, two.model}
    assert [line["step"] for line in heard if "step" in line] == [0, 1, 2, 3] == [r["step"] for r in one.reports]
    assert one.settings["recordings"][0]["frames"] == 13
    assert not list(trainer.folder.iterdir()), "the frames are removed with the run"


def test_a_stopped_run_is_resumed_also_by_another_application(trainer, job):
    run = trainer.add("long", [FRAMES], replace(job, steps=100_000))
    until(lambda: len(run.reports) > 4, trainer.poll)
    assert run.preview.read_bytes().startswith(b"\x89PNG")
    pid = run._child.process.pid
    run.pause()
    assert trainer.wait(run, 30) and run.state == "stopped" and run.resumable
    assert not alive(pid)
    reached = run.reports[-1]["step"]
    other = Trainer()
    (found,) = other.unfinished_runs()
    assert found.name == "long" and found.reports[-1]["step"] == reached
    other.resume(found)
    until(lambda: found.reports and found.reports[-1]["step"] > reached, other.poll)
    steps = [report["step"] for report in found.reports]
    assert steps == sorted(set(steps)), "the curve continues where it was"
    found.cancel()
    assert not list(trainer.folder.iterdir()) and not other.unfinished_runs()


def test_a_run_that_another_application_trains_is_left_to_it(trainer, job):
    run = trainer.add("shared", [FRAMES], replace(job, steps=100_000))
    until(lambda: len(run.reports) > 2, trainer.poll)
    other = Trainer()
    assert not other.unfinished_runs() and not other.jobs
    with pytest.raises(InputError, match="'shared' is active in another application"):
        other.add("shared", [FRAMES], job)
    run.pause()
    assert trainer.wait(run, 30)
    (seen,) = other.unfinished_runs()
    trainer.resume(run)
    until(lambda: run.settings.get("from_step"), trainer.poll)
    for tried in (lambda: other.resume(seen), seen.stop, seen.cancel):
        with pytest.raises(InputError, match="'shared' is active in another application"):
            tried()
    assert seen.state == "stopped" and run.folder.exists() and not trainer.poll() and run.state == "running"
    os.kill(run._child.process.pid, signal.SIGKILL)
    assert trainer.wait(run, 30) and run.state == "failed"
    seen.cancel()
    assert not list(trainer.folder.iterdir())


def test_reports_of_repeated_steps_are_kept_once(tmp_path):
    lines = [{"config": {}, "from_step": 0}, *({"step": step} for step in range(5)), {"config": {}, "from_step": 2}]
    lines += [{"step": 3}, {"message": "x"}, {"step": 4}, {"config": {}, "from_step": "?"}, {"step": "?"}]
    (tmp_path / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"step": ')
    assert [report["step"] for report in read_reports(tmp_path / "log.jsonl")] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["x" * 90, "-cardiac", "心" * 90, "default"])
def test_an_invalid_model_name_ends_no_run(trainer, job, name):
    run = trainer.add(name, [FRAMES], replace(job, steps=1))
    with pytest.raises(InputError, match="unfinished run"):
        trainer.add(name, [FRAMES], job)
    assert trainer.free_name(name) != run.name
    assert trainer.wait(run, 60) and run.state == "done", run.message
    assert run.model in library.own_models()


def test_a_run_that_ended_unseen_is_not_repeated(trainer, job):
    """The application was killed between the end of the process and its next look."""
    run = trainer.add("unseen", [FRAMES], job)
    assert run._child.process.wait(60) == 0
    other = Trainer()
    (left,) = other.unfinished_runs()
    other.resume(left)
    assert other.wait(left, 60) and (left.state, left.model) == ("done", "unseen"), left.message
    assert not left.settings, "no process was started"
    assert not list(trainer.folder.iterdir())


def test_a_finished_run_does_not_touch_another_of_its_name(trainer, job):
    done = trainer.add("twice", [FRAMES], replace(job, steps=1))
    assert trainer.wait(done, 60) and done.state == "done", done.message
    second = trainer.add("twice", [FRAMES], replace(job, steps=100_000))
    until(lambda: len(second.reports) > 2, trainer.poll)
    done.cancel()
    second.pause()
    assert trainer.wait(second, 30) and second.state == "stopped"
    done.cancel()
    assert second.resumable and done.state == "done"


def test_a_stopped_run_reports_a_model_that_is_worse_than_its_start(trainer, job):
    run = trainer.add("worse", [FRAMES], replace(job, steps=100_000))
    until(lambda: len(run.reports) > 2, trainer.poll)
    run.pause()
    assert trainer.wait(run, 30) and run.state == "stopped" and run.stoppable
    path = run.folder / "model.safetensors"
    model, network, card = checkpoint.load(path)
    card |= {"figures_at_start": {"structure": 0.99}, "figures": {"structure": 0.9}}
    checkpoint.save(path, model, network, card)
    run.stop()
    assert (run.state, run.worse) == ("done", "structure 0.9900 -> 0.9000")


def test_a_run_that_was_ended_before_it_had_a_model_can_be_resumed_and_paused(trainer, job):
    run = trainer.add("early", [FRAMES], replace(job, steps=100_000, simulated=4000))
    until(lambda: run.simulated, trainer.poll)
    run.stop()
    assert trainer.wait(run, 30) and run.state == "stopped" and run.resumable
    run.job = replace(run.job, simulated=2)
    trainer.resume(run)
    until(lambda: len(run.reports) > 2, trainer.poll)
    run.pause()
    assert trainer.wait(run, 30) and run.state == "stopped" and run.resumable, "paused, not ended"


def test_a_run_that_waits_can_be_stopped_and_put_back(trainer, job):
    first = trainer.add("first", [FRAMES], replace(job, steps=100_000))
    second = trainer.add("second", [FRAMES], job)
    assert not second.stoppable
    second.pause()
    assert second.state == "stopped" and second.resumable and not second.stoppable
    trainer.resume(second)
    assert (first.state, second.state) == ("running", "waiting")


def test_a_run_that_was_killed_before_it_reported_can_be_removed(tmp_path, job):
    complete(job_in_steps(made(tmp_path / "early"), [FRAMES], job))
    (tmp_path / "early" / "name.txt").write_text("early")
    trainer = Trainer(tmp_path)
    assert [left.name for left in trainer.unfinished_runs()] == [left.name for left in trainer.jobs] == ["early"]
    with pytest.raises(InputError, match="unfinished run 'early'"):
        trainer.add("early", [FRAMES], job)
    trainer.jobs[0].cancel()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["start.model"]


def test_the_region_to_train_on_is_found_in_the_recorded_colors(tmp_path):
    grey = FRAMES[..., None].repeat(3, -1)
    colour = grey.copy()
    colour[:, 20:40, 20:40, 0] = 255
    complete(write_recordings(tmp_path, "recording", [grey, np.concatenate([colour, colour[..., :1]], -1)]))
    assert np.array_equal(np.load(tmp_path / "recording-1.npy"), FRAMES)
    assert np.array_equal(np.load(tmp_path / "recording-2.npy"), colour)
    assert np.array_equal(files.read(tmp_path / "recording-2.npy").frames, colour)


def children_of_this_thread():
    return set(Path("/proc/thread-self/children").read_text().split())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_run_whose_files_are_being_read_is_exported_or_leaves_nothing(trainer, job, tmp_path):
    np.save(tmp_path / "file.npy", FRAMES)
    heard, job = [], replace(job, inputs=[tmp_path / "file.npy"])
    trainer.export(tmp_path / "run", [FRAMES[:3]], job, (), heard.append)
    until(lambda: heard, trainer.poll)
    assert heard == [tmp_path / "run"]
    assert json.loads((tmp_path / "run" / "job.json").read_text())["inputs"] == ["recording-1.npy", "recording-2.npy"]
    assert np.array_equal(np.load(tmp_path / "run" / "recording-1.npy"), FRAMES[:3])
    assert np.array_equal(np.load(tmp_path / "run" / "recording-2.npy"), FRAMES)
    os.mkfifo(tmp_path / "never.npy")  # a reader of it waits
    before = children_of_this_thread()  # of other tests
    waiting = trainer.export(tmp_path / "other", [FRAMES], replace(job, inputs=[tmp_path / "never.npy"]), (), print)
    assert children_of_this_thread() - before
    trainer.poll()
    waiting.close()
    until(lambda: not children_of_this_thread() - before, trainer.poll)
    assert len(heard) == 1 and not [path for path in tmp_path.iterdir() if "other" in path.name]


@pytest.mark.parametrize(("content", "words"), [(b"no array", "file.npy"), (None, "file.npy")])
def test_files_that_cannot_be_exported_are_reported(trainer, job, tmp_path, content, words):
    heard = []
    if content is not None:
        (tmp_path / "file.npy").write_bytes(content)
    trainer.export(tmp_path / "run", [], replace(job, inputs=[tmp_path / "file.npy"]), (), heard.append)
    until(lambda: heard, trainer.poll)
    assert isinstance(heard[0], InputError) and words in str(heard[0]) and "\n" not in str(heard[0])
    assert not [path for path in tmp_path.iterdir() if "run" in path.name]


def test_half_written_folders_of_a_killed_application_are_not_listed_and_are_removed(tmp_path, job):
    old, new = made(tmp_path / ".old.x.part"), made(tmp_path / ".new.x.part")
    for folder in (old, new):
        complete(job_in_steps(folder, [FRAMES], job))
        (folder / "name.txt").write_text("half")
    os.utime(old, (0, 0))
    trainer = Trainer(tmp_path)
    trainer.unfinished_runs()
    assert trainer.jobs == [] and not old.exists()
    assert new.exists(), "another application may be at work on it"


def made(folder):
    folder.mkdir()
    return folder


def test_bad_input_is_reported_in_the_words_of_the_core(trainer, job):
    run = trainer.add("flat", [np.zeros((4, 64, 64), np.uint8)], job)
    assert trainer.wait(run, 60) and run.state == "failed"
    assert run.message.startswith("No ultrasound region was found"), run.message
    run.cancel()
    again = trainer.add("flat", [FRAMES], job)
    with pytest.raises(InputError, match="unfinished run 'flat'"):
        trainer.add("flat", [FRAMES], job)
    again.cancel()


def test_an_unwritable_folder_is_refused_at_once(tmp_path, job):
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(InputError, match="cannot be written"):
        Trainer(tmp_path / "runs").add("x", [FRAMES], job)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_a_run_that_the_system_ends_for_its_memory_reports_it(trainer, job):
    run = trainer.add("large", [FRAMES], replace(job, steps=100_000))
    until(lambda: run.reports, trainer.poll)
    os.kill(run._child.process.pid, signal.SIGKILL)
    assert trainer.wait(run, 30) and run.state == "failed"
    assert "ended unexpectedly" in run.message and "for lack of memory" in run.message, run.message


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_behind_slicers_launcher_a_run_that_the_system_ends_reports_it(trainer, job, tmp_path):
    """CTK's launcher remains the parent, and returns 1 where a signal ended the program."""
    launcher = tmp_path / "PythonSlicer"
    launcher.write_text(f"""#!/bin/sh
exec 3<&0
{sys.executable} "$@" <&3 &
wait $!
code=$?
if [ $code -gt 128 ]; then echo "python-real exit abnormally - Report the problem." >&2; exit 1; fi
exit $code
""")
    launcher.chmod(0o755)
    behind = Trainer(python=str(launcher))
    run = behind.add("large", [FRAMES], replace(job, steps=100_000))
    until(lambda: run.reports or run.ended, behind.poll)
    assert run.state == "running", run.message
    pid = run._child.process.pid
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    assert behind.wait(run, 30) and run.state == "failed"
    assert "for lack of memory" in run.message and "Report the problem" not in run.message, run.message
    run.cancel()


def test_messages_of_the_panel_name_no_option_of_the_command_line(trainer, job):
    run = trainer.add("words", [FRAMES], replace(job, steps=100_000))
    until(lambda: len(run.reports) > 2, trainer.poll)
    run.pause()
    assert trainer.wait(run, 30) and run.message.startswith("Stopped at step ") and "--" not in run.message
    run.stop()
    assert run.state == "done" and "--" not in run.message


def test_messages_of_a_run_name_no_option_of_the_command_line(project):
    """The message states the fact; the command line adds its options, and the panel has buttons."""
    for name in ("runs", "training", "dataset", "system", "checkpoint", "library"):
        text = (project / "Speckle2Self" / "Speckle2SelfLib" / f"{name}.py").read_text()
        assert not re.findall(r'"[^"\n]*--[a-z][^"\n]*"', text), name


def test_the_end_of_a_run_does_not_keep_the_application_waiting(job, tmp_path):
    """Nothing blocks the main thread for 0.1 s; torch, whose import needs a second, is not imported by the
    application."""
    code = """
import sys, time, numpy as np
from Speckle2SelfLib.config import Job
from Speckle2SelfSlicer.trainer import Trainer
trainer, longest = Trainer(), 0.0
frames = np.random.default_rng(0).rayleigh(40, (16, 64, 64)).clip(0, 255).astype(np.uint8)
run = trainer.add("run", [frames], Job("", preset="adapt", init=sys.argv[1], steps=10**6,
                  simulated=2, batch=2,
                                       interval=2, device="cpu", report=1))
stopped = False
while not run.ended:
    if not stopped and len(run.reports) > 4:
        stopped = not run.stop()
    began = time.process_time()
    trainer.poll()
    longest = max(longest, time.process_time() - began)
    time.sleep(0.01)
assert run.state == "done", run.message
assert not {"torch", "imageio", "scipy"} & set(sys.modules)
print(longest)
"""
    environment = {**os.environ, "SPECKLE2SELF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, job.init], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.1


def test_files_that_the_system_is_slow_to_remove_do_not_keep_the_application_waiting(trainer, job, monkeypatch):
    import shutil

    removed, rmtree = [], shutil.rmtree

    def slow(folder, *arguments, **options):
        time.sleep(0.5)
        rmtree(folder, *arguments, **options)
        removed.append(folder)

    run = trainer.add("large", [FRAMES], replace(job, steps=10**6, interval=2))
    until(lambda: len(run.reports) > 4, trainer.poll)
    monkeypatch.setattr(shutil, "rmtree", slow)
    run.stop()
    longest = 0.0
    while not run.ended:
        began = time.monotonic()
        trainer.poll()
        longest = max(longest, time.monotonic() - began)
        time.sleep(0.01)
    assert run.state == "done" and longest < 0.3 and not run.folder.exists(), (run.message, longest)
    until(lambda: removed, trainer.poll)
    assert not list(trainer.folder.iterdir())


def test_a_run_ends_with_the_application_that_started_it(tmp_path, job):
    """Whichever way that ends: here it is killed."""
    code = """
import sys, time, numpy as np
from Speckle2SelfLib.config import Job
from Speckle2SelfSlicer.run_files import complete, job_in_steps
from Speckle2SelfSlicer.trainer import Trainer
trainer = Trainer()
run = trainer.add("orphan", [np.random.default_rng(0).rayleigh(40, (16, 64, 64)).clip(0, 255).astype(np.uint8)],
                  Job("", preset="adapt", init=sys.argv[1], steps=10**6,
                  simulated=2, batch=2, device="cpu", report=1))
while len(run.reports) < 3:
    trainer.poll()
    time.sleep(0.02)
print(run._child.process.pid, flush=True)
time.sleep(600)
"""
    environment = {**os.environ, "SPECKLE2SELF_HOME": str(tmp_path / "home")}
    parent = subprocess.Popen([sys.executable, "-c", code, job.init], stdout=subprocess.PIPE, env=environment)
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    end = time.monotonic() + 20
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(pid)
    state = tmp_path / "home" / "runs" / "orphan" / "model.safetensors.state"
    assert checkpoint.load_state(state)[1]["step"] >= 1, "it saved the run before it left"


def test_a_full_disk_ends_the_run_with_a_clear_message(trainer, job, tmp_path):
    """The process may write files of 8 kB at most, less than a checkpoint needs."""
    if os.name == "nt":
        pytest.skip("needs POSIX limits")
    limited = tmp_path / "python"
    limited.write_text(f"#!/bin/sh\ntrap '' XFSZ\nulimit -f 16\nexec {sys.executable} \"$@\"\n")
    limited.chmod(0o755)
    full = Trainer(python=str(limited))
    run = full.add("full", [FRAMES], job)
    assert full.wait(run, 60) and run.state == "failed"
    assert "cannot be written" in run.message, run.message
    assert not list(run.folder.glob("*.part")) and not (run.folder / "model.safetensors").exists()
    assert json.loads((run.folder / "job.json").read_text())["steps"] == 3
    run.cancel()


SMALL_DISK = """
import os, sys, time, numpy as np
from pathlib import Path
from Speckle2SelfLib import checkpoint
from Speckle2SelfLib.config import Job
from Speckle2SelfSlicer.trainer import Trainer
disk, trainer = Path.cwd(), Trainer(Path.cwd() / "runs")
frames = np.random.default_rng(0).rayleigh(40, (16, 64, 64)).clip(0, 255).astype(np.uint8)
run = trainer.add("small", [frames], Job("", preset="adapt", init=sys.argv[1], steps=10**6,
                  simulated=2, interval=2,
                                         batch=2, device="cpu", report=1))
model = run.folder / "model.safetensors"
state = Path(f"{model}.state")  # is written before
while not run.ended and not model.exists():
    trainer.poll()
    time.sleep(0.01)
with open(disk / "ballast", "wb", buffering=0) as ballast:
    try:
        while ballast.write(b"0" * 1024):
            pass
    except OSError:
        pass
assert trainer.wait(run, 60)
print(run.state, run.message, sep=": ")
saved = checkpoint.load_state(state)[1]["step"]
checkpoint.load(model)
print([path.name for path in run.folder.iterdir() if path.name.endswith(".part")])
(disk / "ballast").unlink()
trainer.resume(run)
while not run.ended and not (run.reports and run.reports[-1]["step"] > saved and run.settings["from_step"] == saved):
    trainer.poll()
    time.sleep(0.01)
print(run.state)
trainer.close()
"""


def test_a_small_disk_that_fills_ends_the_run_which_resumes_once_there_is_space(tmp_path, job, project):
    """The disk is one of 24 MB in memory, in its own namespace; a run's state has 10 MB, at times twice that."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["unshare", "--map-root-user", "--mount", "sh", "-c",
             'mount -t tmpfs -o size=24m none "$1" && cd "$1" && shift && exec "$@"', "sh", disk]  # fmt: skip
    try:
        if (tried := subprocess.run([*mount, "true"], capture_output=True, text=True)).returncode:
            pytest.skip(f"no disk can be mounted here: {tried.stderr.strip()}")
    except FileNotFoundError:
        pytest.skip("no disk can be mounted here: unshare is missing")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(project / "Speckle2Self")}
    command = [*mount, sys.executable, "-c", SMALL_DISK, job.init]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    message, parts, resumed = done.stdout.splitlines()
    assert message.startswith("failed: ") and message.endswith("cannot be written: No space left on device."), message
    assert (parts, resumed) == ("[]", "running")


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_sigterm_saves_and_leaves_cleanly(tmp_path, job):
    folder = write_folder(tmp_path, job)
    command = [sys.executable, "-m", "Speckle2SelfLib", "train", "--job", "job.json"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        step = reached(process)
        process.terminate()
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors.splitlines() == ["speckle2self: stopped; add --resume to continue."]
    told = json.loads(said.splitlines()[-1])["message"]
    saved = checkpoint.load_state(folder / "model.safetensors.state")[1]["step"]
    assert saved >= step and told == f"Stopped at step {saved}."
    checkpoint.load(folder / "model.safetensors")
    assert not list(folder.glob(".*.part"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes as Linux lists them")
@pytest.mark.parametrize("whom", ["a rank", "the launcher"])
def test_sigterm_under_torchrun_loses_no_step(tmp_path, job, whom):
    """Sent to the one of two processes that does not write, both save and are restarted from there. Sent to torchrun,
    as a cluster does when the time is up, both save and end."""
    folder = export(tmp_path / "job", [FRAMES], replace(job, steps=10**6, interval=10**6))
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "DEVICES": "2", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([folder / "run.sh"], env=environment, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True) as run:  # fmt: skip
        step = reached(run)
        ranks = subprocess.run(["ps", "-o", "pid=", "--ppid", str(run.pid)], capture_output=True, text=True)
        ranks = [int(pid) for pid in ranks.stdout.split()]
        os.kill(max(ranks) if whom == "a rank" else run.pid, signal.SIGTERM)
        told = next(line["message"] for line in map(json.loads, run.stdout) if "message" in line)
        saved = int(told.split("Stopped at step ")[1].split(".")[0])
        assert saved >= step
        if whom == "a rank":
            again = next(line for line in map(json.loads, run.stdout) if "from_step" in line)
            assert again["from_step"] == saved
            reached(run)
            run.terminate()
        run.communicate(timeout=60)
    assert run.returncode != 0 and not any(alive(pid) for pid in ranks)
    assert checkpoint.load_state(folder / "model.safetensors.state")[1]["step"] >= saved


def write_folder(tmp_path, job):
    """Return a folder with the frames and the job file of a long run."""
    folder = made(tmp_path / "run")
    complete(job_in_steps(folder, [FRAMES], replace(job, steps=10**6, interval=10**6)))
    return folder


def reached(process) -> int:
    """Return a step that a training process has reported, after some steps."""
    return next(line["step"] for line in map(json.loads, process.stdout) if "rate" in line and line["step"] > 2)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes as Linux lists them")
def test_a_killed_rank_of_an_exported_run_restarts_it_from_its_last_checkpoint(tmp_path, job):
    """The killed process is the one that writes. At most the ten steps between two checkpoints are lost."""
    folder = export(tmp_path / "job", [FRAMES], replace(job, steps=120, interval=10))
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "DEVICES": "2", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([folder / "run.sh"], env=environment, stdout=subprocess.PIPE, text=True) as run:
        lines, killed = [], None
        for line in map(json.loads, run.stdout):
            lines.append(line)
            if killed is None and line.get("step", 0) > 20:
                found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(run.pid)], capture_output=True, text=True)
                killed = line["step"]
                os.kill(int(found.stdout.split()[0]), signal.SIGKILL)
    assert run.returncode == 0
    starts = [line["from_step"] for line in lines if "from_step" in line]
    assert len(starts) == 2 and starts[1] >= killed - 10
    assert [line["step"] for line in lines if "step" in line][-1] == 120 and lines[-1]["model"] == "model.safetensors"
