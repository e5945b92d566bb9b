"""The despeckling process: same results, progress, cancel, crashes, nonsense, live streams; nothing left behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import alive, until

from Speckle2SelfLib.despeckling import despeckle
from Speckle2SelfLib.filters import FILTERS
from Speckle2SelfLib.protocol import Failed
from Speckle2SelfLib.system import InputError
from Speckle2SelfLib.worker_process import Server
from Speckle2SelfSlicer.worker import Worker, _Block

RNG = np.random.default_rng(0)
FRAMES = RNG.rayleigh(40, (6, 48, 64)).clip(1, 255).astype(np.uint8)
MANY = np.concatenate([FRAMES] * 100)  # needs long with "nlm", in blocks of some seconds
WIDE = RNG.rayleigh(40, (40, 512, 640)).clip(1, 255).astype(np.uint8)  # needs long in blocks of 3 frames


@pytest.fixture(scope="module")
def shared():
    """Return one process for the tests that do not end it."""
    worker = Worker()
    yield worker
    worker.close()


@pytest.fixture
def worker():
    worker = Worker()
    yield worker
    worker.close()


def finish(worker, job):
    until(lambda: job.ended, worker.poll)
    return job


def mapped(pid="self"):
    """Return the bytes of shared blocks that a process holds."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if "memfd:Speckle2Self" in line]
    return sum(int(end, 16) - int(start, 16) for start, end in spans)


def test_the_process_returns_the_same_as_a_direct_call(shared):
    job = finish(shared, shared.despeckle(FRAMES))
    assert (job.state, job.message, job.done, job.total) == ("done", "", 6, 6)
    assert job.rate > 0 and job.device and job.region.shape == (48, 64)
    assert np.array_equal(job.output, despeckle(FRAMES, precision=getattr(torch, job.precision)))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64"])
def test_filters_masks_colors_and_types_match_a_direct_call(shared, dtype):
    frames = FRAMES[..., None].repeat(3, -1).astype(dtype)
    region = np.zeros((48, 64), bool)
    region[8:40, 8:50] = True
    job = finish(shared, shared.despeckle(frames, model="median", region=region, strength=0.5, gamma=1.5))
    assert job.state == "done" and (job.region == region).all() and job.output.dtype == dtype
    expected = despeckle(frames, FILTERS["median"], region=region, strength=0.5, gamma=1.5)
    assert np.array_equal(job.output, expected)


def test_frames_are_filled_in_place_and_two_jobs_alternate(shared):
    first, second = shared.allocate(FRAMES.shape, np.uint8), shared.allocate(FRAMES.shape, np.uint8)
    for job in (first, second):
        for row, frame in zip(job.input, FRAMES, strict=True):
            row[...] = frame
        shared.start(job, {"model": "median"})
    assert (first.state, second.state) == ("running", "waiting")
    finish(shared, second)
    assert first.state == "done" and np.array_equal(first.output, second.output)


def test_an_error_is_one_sentence_and_the_process_continues(shared):
    pid = shared.pid
    job = finish(shared, shared.despeckle(np.full_like(FRAMES, 7)))
    assert job.state == "failed" and "constant" in job.message
    job = finish(shared, shared.despeckle(FRAMES, model="no such"))
    assert job.state == "failed" and "no model 'no such'" in job.message
    assert shared.pid == pid
    wrong = {"model": lambda frames: frames}, {"region": np.ones((3, 3))}, {"speed": 1}, {"strength": float("nan")}
    for request in wrong:
        with pytest.raises(InputError):
            shared.despeckle(FRAMES, **request)
    for frames in (FRAMES[0], FRAMES.astype(complex), FRAMES[:0]):
        with pytest.raises(InputError):
            shared.despeckle(frames)
    with pytest.raises(InputError, match="memory"):
        shared.allocate((10**7, 10**6, 10**5), np.float64)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), "There is not enough memory on this computer"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "not enough memory on the graphics card"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "memory on this computer"),
        (KeyError(), "Despeckling failed: KeyError: "),
    ],
)
def test_a_failure_in_the_process_becomes_a_sentence(error, sentence):
    def work():
        raise error

    said = []
    Server(None, said.append).attempt(SimpleNamespace(job=3), work)
    assert [(type(answer), answer.job) for answer in said] == [(Failed, 3)] and sentence in said[0].message


def test_a_result_grows_block_by_block_and_is_cancelled_between_blocks(shared):
    job = shared.despeckle(WIDE, model="median", region=None)
    until(lambda: job.done, shared.poll)
    assert job.done < len(WIDE) and job.seconds_left > 0
    assert (job.output[: job.done] != WIDE[: job.done]).any(axis=(1, 2)).all()
    shared.cancel(job)
    started = time.monotonic()
    finish(shared, job)
    assert job.state == "cancelled" and time.monotonic() - started < 1
    assert finish(shared, shared.despeckle(FRAMES, model="median")).state == "done"


def test_cancel_ends_a_process_that_does_not_answer(worker):
    job = worker.despeckle(MANY, model="nlm")
    waiting = worker.despeckle(FRAMES, model="median")
    until(lambda: job.region is not None, worker.poll)
    time.sleep(0.1)
    pid = worker.pid
    worker.cancel(job)
    started = time.monotonic()
    until(lambda: job.ended and not alive(pid), worker.poll)
    assert job.state == "cancelled" and time.monotonic() - started < 1
    assert finish(worker, waiting).state == "done" and worker.pid != pid
    late = worker.despeckle(MANY, model="nlm")
    never = worker.despeckle(FRAMES)
    worker.cancel(never)
    assert never.state == "cancelled"
    worker.close()
    assert late.state == "cancelled" and worker.pid is None


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_the_process_ends_with_the_application(project, end):
    code = f"""
import os, sys, time
sys.path.insert(0, {str(project / "Speckle2Self")!r})
import numpy as np
from Speckle2SelfSlicer.worker import Worker
worker = Worker()
job = worker.despeckle(np.random.default_rng(0).integers(0, 255, (600, 48, 64)).astype(np.uint8), model="nlm")
while job.region is None:
    worker.poll()
    time.sleep(0.01)
print(worker.pid, flush=True)
{end}
"""
    before = set(os.listdir("/dev/shm"))
    parent = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    pid = int(parent.stdout)
    end = time.monotonic() + 2
    while alive(pid):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert set(os.listdir("/dev/shm")) <= before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_released_memory_is_freed(worker):
    assert mapped() == 0
    handles = len(os.listdir("/proc/self/fd"))
    jobs = [worker.despeckle(FRAMES, model="median") for _ in range(3)]
    finish(worker, jobs[-1])
    assert mapped() >= 6 * FRAMES.size
    until(lambda: mapped(worker.pid) == 0, worker.poll, 5)
    jobs[0].release()
    jobs[0].release()
    view = jobs[1].output
    worker.close()
    worker.close()
    assert mapped() > 0 and view.any()  # a view that the caller still holds remains valid
    del view
    assert mapped() == 0 and len(os.listdir("/proc/self/fd")) <= handles


def test_shared_memory_on_other_systems_is_a_file_that_is_removed(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    block = _Block(100)
    name = Path(block.name[0])
    assert name.stat().st_size == 100
    block.hide()
    assert not name.exists() and len(block.map) == 100


ANSWERS = {
    "garbage": b"hello\n",
    "binary": bytes(range(256)) + b"\n",
    "no dict": b"[1, 2]\n",
    "deep": b"[" * 50000 + b"\n",
    "endless": b"x" * 200000,
    "too far": b'{"event": "progress", "job": 1, "done": 7, "seconds": 1}\n',
    "no number": b'{"event": "progress", "job": 1, "done": "1", "seconds": 1}\n',
    "infinite": b'{"event": "progress", "job": 1, "done": 1, "seconds": 1e999}\n',
    "too early": b'{"event": "done", "job": 1}\n',
    "another job": b'{"event": "done", "job": 2}\n',
    "a stream": b'{"event": "frame", "stream": 8, "number": 1}\n',
    "no event": b'{"job": 1}\n',
    "no text": b'{"event": "failed", "job": 1, "message": [1]}\n',
    "unknown": b'{"event": {"a": 1}, "job": 1}\n',
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_nonsense_fails_the_job_and_ends_the_process(answer, tmp_path):
    script = tmp_path / "child.py"
    script.write_text(
        f"import sys, time\nsys.stdin.readline()\nsys.stdout.buffer.write({ANSWERS[answer]!r})\n"
        "sys.stdout.flush()\ntime.sleep(60)\n"
    )
    worker = Worker(command=[sys.executable, "-S", str(script)])
    try:
        job = worker.despeckle(FRAMES)
        pid = worker.pid
        finish(worker, job)
        assert job.state == "failed" and "sent an invalid answer" in job.message
        until(lambda: not alive(pid), worker.poll, 2)
    finally:
        worker.close()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ('import sys; sys.stdin.readline(); sys.stdout.write(\'{"event": "star\'); sys.exit(3)', "(exit code 3)"),
        ("import sys; sys.exit('no room')", "It said: no room"),
    ],
)
def test_a_process_that_ends_early_reports_its_last_output(code, said):
    worker = Worker(command=[sys.executable, "-S", "-c", code])
    job = finish(worker, worker.despeckle(FRAMES))
    assert job.state == "failed" and said in job.message
    worker.close()


LAUNCHER = """#!/bin/sh
# Like CTK's launcher, it remains the parent, and returns 1 where a signal ended the program.
exec 3<&0
{python} "$@" <&3 &
child=$!
wait $child
code=$?
if [ $code -gt 128 ]; then echo "{python} exit abnormally - Report the problem." >&2; exit 1; fi
exit $code
"""


@pytest.fixture
def launcher(tmp_path):
    path = tmp_path / "PythonSlicer"
    path.write_text(LAUNCHER.format(python=sys.executable))
    path.chmod(0o755)
    return path


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_behind_slicers_launcher_a_killed_process_is_still_reported_as_killed(launcher):
    worker = Worker(python=str(launcher))
    job = worker.despeckle(MANY, model="nlm")
    until(lambda: job.region is not None or job.ended, worker.poll)
    assert job.state == "running", job.message
    (child,) = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    finish(worker, job)
    worker.close()
    assert job.state == "failed" and "the system stopped it, perhaps for lack of memory" in job.message, job.message
    assert "exit code" not in job.message and "Report the problem" not in job.message


def test_slicers_own_python_is_what_child_processes_run(launcher, monkeypatch):
    from Speckle2SelfSlicer.processes import python_executable

    assert python_executable() == (shutil.which("PythonSlicer") or sys.executable)
    monkeypatch.setenv("PATH", f"{launcher.parent}{os.pathsep}{os.environ['PATH']}")
    for executable in ("", str(launcher), "/opt/Slicer/bin/SlicerApp-real"):  # names in several versions of Slicer
        monkeypatch.setattr(sys, "executable", executable)
        assert python_executable() == str(launcher)


def test_on_apple_silicon_without_rosetta_the_reason_is_reported(monkeypatch):
    from Speckle2SelfSlicer import processes

    monkeypatch.setattr(sys, "platform", "darwin")
    error = OSError(86, "Bad CPU type in executable")
    monkeypatch.setattr(processes.subprocess, "Popen", lambda *_, **__: (_ for _ in ()).throw(error))
    worker = Worker()
    job = worker.despeckle(FRAMES)
    worker.close()
    assert job.state == "failed" and "could not be started" in job.message and "softwareupdate" in job.message


def test_a_process_that_cannot_be_started_is_reported():
    worker = Worker(python="/no/such/python")
    job = worker.despeckle(FRAMES)
    assert job.state == "failed" and "could not be started" in job.message
    worker.close()


def test_poll_and_push_never_wait_for_a_silent_process(tmp_path):
    worker = Worker(command=[sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    stream = worker.live((48, 64), np.uint8)
    job = worker.despeckle(FRAMES)
    longest = 0
    for _ in range(300):
        started = time.perf_counter()
        stream.push(FRAMES[0])
        stream.take()
        longest = max(longest, time.perf_counter() - started)
    assert longest < 0.2 and job.state == "running" and stream.push_count == 300
    worker.cancel(job)
    finish(worker, job)
    worker.close()
    assert (job.state, stream.state) == ("cancelled", "stopped")


def test_a_stream_despeckles_every_frame_when_there_is_time(shared):
    stream = shared.live((48, 64), np.uint8, {"model": "median", "region": None})
    for number, frame in enumerate(FRAMES, 1):
        assert stream.push(frame) == number
        results = []
        until(lambda results=results: results.append(stream.take()) or results[-1], shared.poll)
        image, took, latency, told = results[-1]
        assert took == number and 0 < latency < 30 and image.shape == (48, 64) and (image != frame).any()
        assert told is None and stream.take() is None
    assert (stream.push_count, stream.result_count, stream.drop_count) == (6, 6, 0)
    assert stream.latency(50) <= stream.latency(95) and stream.region.all()
    stream.stop()
    stream.stop()
    assert stream.state == "stopped" and stream.push(FRAMES[0]) == 6 and stream.take() is None


def test_under_overload_older_frames_are_dropped_and_the_newest_is_despeckled(shared):
    stream = shared.live((48, 64), np.uint8, {"model": "nlm"})
    numbers = []
    for count in range(200):
        stream.push(FRAMES[count % 6])
        result = stream.take()
        numbers += [result.number] if result else []
        time.sleep(0.002)
    until(lambda: stream._last_done == 200, shared.poll)
    assert stream.take().number == 200
    assert numbers == sorted(set(numbers)) and stream.drop_count > 20
    assert stream.push_count == stream.result_count + stream.drop_count
    stream.stop()


def test_a_stream_does_not_flicker(shared):
    """The result for a frame does not depend on darker or brighter frames around it."""

    def despeckled(frame):
        stream.push(frame)
        results = []
        until(lambda: results.append(stream.take()) or results[-1], shared.poll)
        return results[-1].image

    stream = shared.live((48, 64), np.uint8)
    assert not despeckled(np.zeros_like(FRAMES[0])).any()  # a black start determines nothing
    first = despeckled(FRAMES[0])
    assert (first != FRAMES[0]).any()
    despeckled(FRAMES[1] // 3)
    half = FRAMES[0].copy()
    half[:, 32:] //= 4  # one half darker: the other half is unchanged, away from the border
    assert np.abs(despeckled(half)[:, :8].astype(int) - first[:, :8]).max() <= 1
    assert np.array_equal(despeckled(FRAMES[0]), first)
    wide = FRAMES[0].repeat(2, 1)
    assert despeckled(wide).shape == wide.shape
    stream.stop()


@pytest.mark.parametrize("region", ["auto", None])
@pytest.mark.parametrize("first", ["only the near field", "an eighth as bright"])
def test_a_stream_that_begins_before_the_probe_touches_detects_its_region_again(shared, first, region):
    """Else the region, the grain or the grey mapping of that first frame would serve all that follow."""
    wide = FRAMES[0].repeat(2, 0).repeat(2, 1)
    start = wide // 8
    if first == "only the near field":
        start = wide.copy()
        start[40:] = 0
        if region is None:
            start[:40] = np.linspace(255, 5, 40)[:, None]  # echoes within the probe
    stream, results = shared.live(wide.shape, np.uint8, {"region": region}), []
    for frame in (start, wide):
        stream.push(frame)
        until(lambda: results.append(stream.take()) or results[-1], shared.poll)
    alone = despeckle(wide, region=region)
    assert stream.region[60:].mean() > 0.9
    assert np.abs(results[-1].image.astype(int) - alone).mean() < 1 < np.abs(wide.astype(int) - alone).mean()
    stream.stop()


def test_a_menu_across_a_stream_is_preserved_and_the_region_is_kept(shared):
    wide = FRAMES[0].repeat(2, 0).repeat(2, 1)
    menu = np.full_like(wide, 250)
    menu[20:22, 10:-10] = menu[50:60, 30:34] = 0
    stream, results, regions = shared.live(wide.shape, np.uint8), [], []
    for frame in (wide, menu, wide):
        stream.push(frame)
        until(lambda: results.append(stream.take()) or results[-1], shared.poll)
        regions.append(stream.region.copy())
    first, shown, last = (result.image for result in results if result)
    assert np.array_equal(shown, menu)
    assert np.array_equal(first, last) and not np.array_equal(first, wide)
    assert regions[0].any() and all(np.array_equal(region, regions[0]) for region in regions)
    stream.stop()


def test_a_stream_continues_during_a_job_and_after_its_process_was_ended(worker):
    stream = worker.live((48, 64), np.uint8, {"model": "median"})
    stream.push(FRAMES[0])
    until(lambda: stream.result_count == 1, worker.poll)
    job = worker.despeckle(WIDE, model="median", region=None)
    until(lambda: job.done, worker.poll)
    stream.push(FRAMES[1])
    until(lambda: stream.result_count == 2, worker.poll)
    assert job.state == "running"
    pid = worker.pid
    os.killpg(pid, signal.SIGSTOP)  # the launcher and Python below it
    worker.cancel(job)
    finish(worker, job)
    stream.push(FRAMES[2])
    until(lambda: stream.result_count == 3, worker.poll)
    assert worker.pid != pid and stream.state == "running"
    os.kill(worker.pid, signal.SIGKILL)
    until(lambda: stream.state == "failed", worker.poll)
    assert "signal 9" in stream.message and stream.push(FRAMES[0]) == 3
    stream.stop()
