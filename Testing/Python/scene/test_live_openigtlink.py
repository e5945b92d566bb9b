"""Live images from a real OpenIGTLink connection: pyigtl sends images, which are put into the scene as Slicer does."""

import signal
import threading
import time

import numpy as np
import pytest
from helpers import until

slicer = pytest.importorskip("slicer")
pyigtl = pytest.importorskip("pyigtl")

COUNT, RATE = 90, 30  # messages, and messages a second
SIZE = (1, 48, 56)


@pytest.fixture
def client():
    """Return a client that is connected to a server which, once `client.begin()` is called, sends images that move."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    server = pyigtl.OpenIGTLinkServer(port=0, local_server=True)
    client = pyigtl.OpenIGTLinkClient("127.0.0.1", server.server_address[1])
    until(client.is_connected)
    sending = threading.Thread(target=send, args=(server,), daemon=True)
    client.begin, client.sending = sending.start, sending
    yield client
    client.stop()
    server.stop()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def send(server):
    """Send images whose grey value and place are the number of the message."""
    began = time.monotonic()
    for number in range(1, COUNT + 1):
        matrix = np.eye(4)
        matrix[:3, 3] = number, 2 * number, -number
        image = np.full(SIZE, number, np.uint8)
        image[:, ::2] += 100  # not constant
        server.send_message(pyigtl.ImageMessage(image, matrix, "ras", device_name="US"), wait=True)
        time.sleep(max(0.0, began + number / RATE - time.monotonic()))


def receive(volume, message):
    """Receive as OpenIGTLinkIO does: the same voxels are overwritten and reported, and the volume is placed after
    that."""
    slicer.util.arrayFromVolume(volume)[:] = message.image
    volume.GetImageData().Modified()
    volume.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(np.asarray(message.ijk_to_world_matrix, float)))
    volume.Modified()


def test_image_and_position_of_a_message_are_kept_together_at_30_a_second(client, worker, slicer_app):
    from Speckle2SelfSlicer.live import Live

    volume = slicer.util.addVolumeFromArray(np.zeros(SIZE, np.uint8), name="US")
    live = Live(worker, volume, model="median", region="none", strength=0.0)  # identifies the image
    try:
        end = time.monotonic() + 60
        while live.output is None:
            assert time.monotonic() < end
            worker.poll()
            live.step()
            time.sleep(0.005)
        before, received, shown = live._stream.push_count, 0, []
        client.begin()
        end = time.monotonic() + COUNT / RATE + 30
        while (client.sending.is_alive() or live.waiting) and time.monotonic() < end:
            for message in client.get_latest_messages():
                received += 1
                receive(volume, message)
            worker.poll()
            if live.step():
                number = int(slicer.util.arrayFromVolume(live.output).min())
                if number:
                    assert live.output.GetOrigin() == (number, 2 * number, -number), "another message's place"
                    shown.append(number)
            time.sleep(0.004)
    finally:
        live.stop()
    assert received > COUNT / 2 and live._stream.push_count - before == received, "each image once"
    assert shown == sorted(set(shown)) and shown[-1] >= COUNT - 1 and len(shown) > received / 3
    print(f"{received} of {COUNT} messages received, each pushed once; {len(shown)} shown, each in its own place.")
