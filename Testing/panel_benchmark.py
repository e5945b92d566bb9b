"""Benchmark of the panel: a long cine, a preview, a cancellation, and a real OpenIGTLink stream. `make bench-panel`.

Runs in the stand-in of the application: Testing/headless-slicer --main-window Testing/panel_benchmark.py.
The stream comes from a pyigtl server in a separate process, over loopback, and is put into a volume node like Slicer's
OpenIGTLink connector does: in place, on the main thread, whenever an image arrives.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["SPECKLE2SELF_HOME"] = tempfile.mkdtemp(prefix="speckle2self-")

import numpy as np
import pyigtl
import slicer

from Speckle2SelfLib.simulation import SimulationConfig, simulate

PORT = 18955
SERVER = """
import sys, time
import numpy as np, pyigtl
frames, rate, port = np.load(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
server = pyigtl.OpenIGTLinkServer(port=port, local_server=True)
number, due = 0, time.time()
while True:
    if server.is_connected():
        server.send_message(pyigtl.ImageMessage(frames[number % len(frames)][None], device_name="US"))
        number += 1
    due = max(due + 1 / rate, time.time() - 1)
    time.sleep(max(0, due - time.time()))
"""


def simulated(size, count):
    """Return frames (count, H, W) uint8 made of a few simulated ones, each moved a little."""
    few = simulate(SimulationConfig(size, 4, (1.3, 1.5), "vessel"), np.random.default_rng(0)).frames
    few = np.round(few * 255).astype(np.uint8)
    return np.stack([np.roll(few[number % 4], number // 4, 1) for number in range(count)])


def megabytes(name="VmRSS"):
    """Return the memory of this process: current (VmRSS), or peak (VmHWM)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(name))


def wait(condition, seconds=900):
    """Process events until `condition`; return the longest time in seconds that they were blocked."""
    end, last, longest = time.monotonic() + seconds, time.perf_counter(), 0.0
    while not condition():
        assert time.monotonic() < end, "this did not happen in time"
        slicer.app.processEvents()
        time.sleep(0.002)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    return longest


def children(pid=None):
    """Return the descendants of a process, by default of this one."""
    found = subprocess.run(
        ["ps", "-o", "pid=,comm=", "--ppid", str(pid or os.getpid())], capture_output=True, text=True
    )
    rows = [row.split() for row in found.stdout.splitlines()]
    below = [int(number) for number, name, *_ in rows if name != "ps"]
    return below + [deep for child in below for deep in children(child)]


def sequence(frames):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "Cine")
    volume = slicer.vtkMRMLScalarVolumeNode()
    for number, frame in enumerate(frames):
        slicer.util.updateVolumeFromArray(volume, frame[None])
        node.SetDataNodeAtValue(volume, str(number))
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "Browser")
    browser.SetAndObserveMasterSequenceNodeID(node.GetID())
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    return node


def network_alone(model, size, times=5, count=16):
    """Return milliseconds per frame of the network without anything else, for a cine in this process."""
    import torch

    from Speckle2SelfBench import speed
    from Speckle2SelfLib import inference, library

    device, model, frames = torch.device("cpu"), library.load_model(model), simulated(size, count)
    run = speed.network_alone(model, device, inference.precision_of(model, device))
    return 1000 / count * float(np.median([speed.seconds(lambda: run(frames), device) for _ in range(times)]))


def long_cine(panel, count=500):
    frames = simulated((480, 640), count)
    panel.ui.inputSelector.setCurrentNode(sequence(frames))
    size = frames.nbytes / 2**20
    del frames
    panel.logic.worker.warm_up()
    wait(lambda: panel.logic.worker.poll() or panel.logic.worker.devices, 60)
    before = megabytes()
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    panel.ui.applyButton.click()
    started = time.perf_counter()
    gap = wait(lambda: panel.run is None)
    whole = 1000 * (time.perf_counter() - started) / count
    peak = megabytes("VmHWM")
    print(f"{count} frames of 640 x 480, {size:.0f} MB: {panel.ui.statusLabel.text}")
    network = network_alone(panel.ui.modelSelector.currentText, (480, 640))
    print(f"  {whole:.1f} ms a frame, only the network {network:.1f} ms: {100 * network / whole:.0f} % (60 wanted)")
    print(f"  longest gap of the event loop {1000 * gap:.0f} ms (allowed 100)")
    print(f"  memory {before:.0f} MB with the input, {peak:.0f} MB at most: {peak - before:.0f} MB more "
          f"(allowed: output {size:.0f} + 300)")  # fmt: skip
    panel.ui.strengthSlider.value = 0.7
    started = time.perf_counter()
    gap = wait(lambda: panel._relook is None)
    print(f"  strength on all frames in {time.perf_counter() - started:.1f} s, longest gap {1000 * gap:.0f} ms")
    panel.ui.applyButton.click()
    wait(lambda: panel.run.done > 5)
    started = time.perf_counter()
    panel.ui.cancelButton.click()
    wait(lambda: panel.run is None)
    print(f"  cancelled in {1000 * (time.perf_counter() - started):.0f} ms")
    panel.ui.applyButton.click()
    wait(lambda: panel.run.done > 5)
    started = time.perf_counter()
    slicer.mrmlScene.Clear()
    gone = not children()
    print(f"  scene closed in {1000 * (time.perf_counter() - started):.0f} ms, all processes gone: {gone}")


def preview(panel):
    frames = simulated((512, 512), 8)
    volume = slicer.util.addVolumeFromArray(frames[:1], name="US")
    panel.ui.inputSelector.setCurrentNode(volume)
    times = []
    for number in range(8):
        slicer.util.updateVolumeFromArray(volume, frames[number : number + 1])
        started = time.perf_counter()
        panel.ui.previewButton.click()
        wait(lambda: not panel.live.waiting)
        times.append(1000 * (time.perf_counter() - started))
    print(f"preview of 512 x 512: {np.median(times[1:]):.0f} ms (allowed 100), the first {times[0]:.0f} ms")
    return volume, frames


def live(panel, volume, frames, rate, seconds=15):
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        np.save(file, frames)
        file.flush()
        command = [sys.executable, "-c", SERVER, file.name, str(rate), str(PORT + int(rate))]
        server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            time.sleep(2)
            client = pyigtl.OpenIGTLinkClient("127.0.0.1", PORT + int(rate))
            received = []

            def receive():
                for message in client.get_latest_messages():
                    slicer.util.updateVolumeFromArray(volume, message.image)
                    received.append(time.monotonic())

            panel.ui.liveCheckBox.click()
            end, shown, gap = time.monotonic() + seconds + 3, [], 0.0
            warm = end - seconds
            former = 0
            while time.monotonic() < end:
                started = time.perf_counter()
                receive()
                slicer.app.processEvents()
                if panel.live._stream.result_count != former:
                    former = panel.live._stream.result_count
                    shown.append(time.monotonic())
                if time.monotonic() > warm:
                    gap = max(gap, time.perf_counter() - started)
                time.sleep(0.002)
            stream = panel.live._stream
            came, went = (sum(moment > warm for moment in moments) / seconds for moments in (received, shown))
            print(f"live, {rate:.0f} images per second sent, {came:.1f} received: {went:.1f} per second out, latency "
                  f"{1000 * stream.latency():.0f} ms median, {1000 * stream.latency(95):.0f} ms p95, "
                  f"{panel.live.dropCount} dropped, longest gap {1000 * gap:.0f} ms")  # fmt: skip
            panel.ui.liveCheckBox.click()
            client.stop()
        finally:
            server.send_signal(signal.SIGKILL)
            server.wait()


slicer.util.selectModule("Speckle2Self")
widget = slicer.modules.Speckle2SelfWidget
print(f"model {widget.ui.modelSelector.currentText}")
long_cine(widget)
node, images = preview(widget)
live(widget, node, images, 30)
live(widget, node, images, 90)
print(f"load of the machine: {os.getloadavg()[0]:.1f}")
slicer.app.moduleManager().unloadModules()
os._exit(0)  # pyigtl's threads do not end
