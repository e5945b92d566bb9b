"""Run commands in copies of a process that has imported everything, because imports take seconds each time."""

import json
import os
import subprocess
import sys
import tempfile
import threading

import pytest
from helpers import FEW, until

PYTHON = sys.executable  # the stand-in for Slicer puts a launcher in its place

# When a command is done, it looks at what still runs: a thread of the processes' group that is not over before the
# interpreter is may abort the process as it ends, now and then.
COPIED = f"""
import json, os, sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
import torch
from Speckle2SelfLib import config, runs
from Speckle2SelfLib.__main__ import main

for name, value in {FEW}.items():
    module, name = name.split(".")
    setattr(import_module("Speckle2SelfLib." + module), name, value)
"""
COPIED += """

def run(arguments, **changes):
    config.PRESETS |= {name: replace(preset, crop=32, **changes) for name, preset in config.PRESETS.items()}
    code = main(arguments)
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").glob("*")]
    if left := [name for name in threads if "gloo" in name]:
        sys.exit(f"still running: {left}")
    sys.exit(code)


def run_rank(arguments, changes):
    try:
        run(arguments, **changes)
    except SystemExit as ended:  # torchrun's agent waits for what the function returns
        if ended.code:
            raise


def run_shared(processes, arguments, changes):
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    place = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": str(os.getpid())}
    agent = LaunchConfig(1, 1, processes, start_method="fork", max_restarts=0, **place)
    try:
        elastic_launch(agent, run_rank)(arguments, changes)
    except ChildFailedError as error:
        sys.exit(f"{error}")


torch.optim.Adam([torch.zeros(1)])  # the first one imports for seconds
for line in sys.stdin:
    order = json.loads(line)
    if "pid" in order:
        pid, status = os.waitpid(order["pid"], os.WNOHANG)
        print(os.waitstatus_to_exitcode(status) if pid else None, flush=True)
    elif child := os.fork():
        print(child, flush=True)
    else:
        os.setsid()
        for number, path in enumerate(order["streams"]):
            os.dup2(os.open(path, os.O_WRONLY if number else os.O_RDONLY), number)
        sys.stdin = open(0)
        os.chdir(order["folder"])
        os.environ |= order["environment"]
        if order["processes"] > 1:
            run_shared(order["processes"], order["arguments"], order["changes"])
        else:
            run(order["arguments"], **order["changes"])
        sys.exit()
"""


@pytest.fixture(scope="session")
def original():
    """The process whose copies run commands; a function that gives it an order, and returns its answer."""
    command = [PYTHON, "-c", COPIED]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        lock = threading.Lock()

        def ask(**order):
            with lock:
                print(json.dumps(order), file=process.stdin, flush=True)
                return json.loads(process.stdout.readline().replace("None", "null"))

        yield ask
        process.kill()


class Copy:
    """A command in a copy of `original`, with as much of `subprocess.Popen` as is needed.

    processes: how many share the command, under the agent of torchrun.
    """

    def __init__(self, original, arguments, environment=None, folder=None, binary=False, processes=1, **changes):
        place, mode = str(folder or os.getcwd()), "b" if binary else ""
        with tempfile.TemporaryDirectory() as folder:
            streams = [f"{folder}/{number}" for number in range(3)]
            for path in streams:
                os.mkfifo(path)
            order = {"streams": streams, "folder": place, "arguments": arguments, "changes": changes}
            order |= {"processes": processes, "environment": environment or {}}
            self.original, self.pid = original, original(**order)
            modes = ("w" + mode, "r" + mode, "r" + mode)
            self.stdin, self.stdout, self.stderr = map(open, streams, modes)
        self.returncode = None

    def poll(self):
        if self.returncode is None:
            self.returncode = self.original(pid=self.pid)
        return self.returncode

    def wait(self, timeout=60):
        until(lambda: self.poll() is not None, seconds=timeout)
        return self.returncode

    def communicate(self):
        self.stdin.close()
        self.wait()
        with self.stdout, self.stderr:
            return self.stdout.read(), self.stderr.read()

    def read_to(self, text):
        """Read lines up to one that contains this text, and return that line."""
        while text not in (line := self.stdout.readline()):
            assert self.poll() is None
        return line
