"""Despeckling nodes in the background: from the scene to the worker and back, in pieces that never block the panel."""

from __future__ import annotations

import time
from contextlib import suppress

import numpy as np
import slicer
import vtk

from Speckle2SelfLib import volumes
from Speckle2SelfLib.config import DespeckleOptions
from Speckle2SelfLib.look import look
from Speckle2SelfLib.system import Cancelled, InputError

from . import comparison, scene

PARTIAL = " (partial)"  # in the name of a result of which only the first frames are done
PIECE = 0.02  # seconds of work at most between two returns to the event loop


class Run:
    """One despeckling of a node. Call `step` from a timer until `ended`.

    state: "reading", "despeckling", "writing", "done", "cancelled", "failed" (message says why, for the user). done,
    total: frames; rate: per second; seconds: since the start; seconds_left: None where unknown. region: (H, W) bool of
    what is despeckled, None as long as it is unknown. result: a `Result`, once done.
    onlyRegion: it ends as soon as `region` is known, and writes nothing. Raises InputError where the nodes do not fit.
    """

    def __init__(
        self, worker, node, output=None, axis: str = "auto", keepPartial: bool = False, onlyRegion: bool = False,
        **request,
    ):  # fmt: skip
        self.source = scene.source(node)
        scene.checkOutput(self.source, output)
        self.output, self.keepPartial, self.request = output, keepPartial, request
        self.look = {name: float(request.pop(name, 1.0)) for name in ("strength", "gamma")}
        DespeckleOptions(**self.look)  # its checks
        self.state, self.message, self.result = "reading", "", None
        self.done, self.total, self.rate, self.seconds_left, self.device = 0, 0, 0.0, None, ""
        self.region, self._onlyRegion, self._started = None, onlyRegion, time.monotonic()
        self._worker, self._jobs, self._asked = worker, [], False
        first = next(scene.voxels(self.source))
        region = request.get("region", "auto")
        self._found = axis if isinstance(region, str) and region == "auto" else None
        self._shape, self._dtype = (len(self.source.volumes), *first.shape), first.dtype
        self.axes = volumes.slicing_axes(first.shape[:3], self.source.spacing, axis)
        self.source = scene.held(self.source)
        self.total = len(self.axes) * self._shape[0] * self._shape[1 + self.axes[0]]
        self._steps = self._work()

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ("done", "cancelled", "failed")

    def step(self, seconds: float = PIECE) -> None:
        """Works for a moment; returns at once while the worker works."""
        end = time.perf_counter() + seconds
        try:
            while not self.ended:
                if next(self._steps) == "wait" or time.perf_counter() > end:
                    return
        except StopIteration:
            pass
        except Cancelled:
            self._end("cancelled")
        except InputError as error:
            self._end("failed", str(error))
        except Exception as error:
            self._end("failed", f"Despeckling failed: {type(error).__name__}: {error}")
            raise

    def cancel(self) -> None:
        """Asks for an end; nothing is written, or with `keepPartial` the frames that are done."""
        self._asked = True
        for job in self._jobs:
            self._worker.cancel(job)

    def abandon(self) -> None:
        """Ends it at once, whatever it is at; nothing more is written, and its memory is free."""
        if not self.ended:
            self.cancel()
            self._end("cancelled")

    @property
    def seconds(self) -> float:
        """Since the start, until the end."""
        return (time.monotonic() if not self.ended else self._finished) - self._started

    def _end(self, state: str, message: str = "") -> None:
        self.state, self.message, self._finished = state, message, time.monotonic()
        if state != "done":
            self._steps.close()
            for job in self._jobs:
                job.release()

    def _work(self):
        """The whole run; yields between pieces, "wait" where only the worker can go on."""
        for axis in self.axes:
            yield from self._fill(axis)
        self.state = "despeckling"
        for number, job in enumerate(self._jobs):
            self._worker.start(job, self.request)
            while not job.ended:
                self.region = job.region if number == 0 and self.region is None else self.region
                if self._onlyRegion and self.region is not None:
                    self._worker.cancel(job)
                    raise Cancelled
                self.done = number * job.total + job.done
                self.rate, self.seconds_left, self.device = job.rate, job.seconds_left, job.device
                yield "wait"
            self.device = job.device
            self.region = job.region if number == 0 and self.region is None else self.region
            if self._onlyRegion:
                raise Cancelled
            if job.state == "failed":
                raise InputError(job.message)
            if job.state == "cancelled" and not (self.keepPartial and self._whole(job)):
                raise Cancelled
        cut = self._jobs[0].state == "cancelled"
        self.done = self._whole(self._jobs[0]) if cut else self.total
        self.state = "writing"
        self.result = Result(self.source, self._jobs, self.axes, self._shape, self._found)
        images = self.result.images(**self.look, count=self.done if cut else None)
        suffix = f"despeckled{PARTIAL}" if cut else "despeckled"
        node = None
        for node in scene.writing(self.source, images, None if cut else self.output, suffix):
            if self._asked and not self.keepPartial and node is None:
                raise Cancelled
            yield None
        self.result.node = node
        if not cut:
            scene.rename(node, lambda name: name.removesuffix(PARTIAL))
        message = f"Stopped: the first {self.done} frames are kept." if cut else ""
        changed = [job.region.any() for job in self._jobs]
        if not any(changed):
            message = "Nothing looks like ultrasound: choose the region 'none' or 'given'. The output is a copy."
        elif not all(changed):
            left_out = volumes.left_out(self.axes, changed)
            message = f"Nothing looks like ultrasound across {left_out}: the mean is that of the others."
        self._end("done", message)

    def _whole(self, job) -> int:
        """How many volumes of a stopped job are complete; partial results are kept of sequences of frames alone."""
        frames = len(self.axes) == 1 and self._shape[1 + self.axes[0]] == 1 and self.source.sequence is not None
        return job.done if frames else 0

    def _fill(self, axis: int):
        """The frames across one axis into the memory of a job."""
        sizes = np.moveaxis(np.empty(self._shape[:4], np.void), 1 + axis, 1).shape
        job = self._worker.allocate((sizes[0] * sizes[1], *sizes[2:], *self._shape[4:]), self._dtype)
        self._jobs.append(job)
        for time_point, image in enumerate(scene.voxels(self.source)):
            if (image.shape, image.dtype) != (self._shape[1:], self._dtype):
                raise InputError(scene.CHANGED.format(self.source.node.GetName()))
            for number, frame in enumerate(np.moveaxis(image, axis, 0)):
                job.input[time_point * sizes[1] + number] = frame
                if self._asked:
                    raise Cancelled
                yield None


class Result:
    """What the network made of a recording, kept so that strength and gamma change the output without running it again.

    node: the output. The input is read from its nodes again where it is blended in. region: (H, W) bool of what was
    despeckled, across the first of `axes`; found: the axis that was asked for, where the region was found by itself.
    """

    def __init__(self, source, jobs, axes, shape, found: str | None):
        self.source, self.node, self.found = source, None, found
        self._jobs, self._shape = jobs, shape
        self.region, self.axes = jobs[0].region, axes
        # Of several orientations, those without ultrasound are copies of the input.
        self._averaged = [number for number, job in enumerate(jobs) if job.region.any()] or [0]
        for job in jobs:
            job.release_input()

    def images(self, strength: float, gamma: float, count: int | None = None):
        """The output's volumes (K, J, I[, C]), one after the other."""
        for number in range(self._shape[0] if count is None else count):
            yield self.image(number, strength, gamma)

    def image(self, number: int, strength: float, gamma: float) -> np.ndarray:
        """One volume of the output (K, J, I[, C])."""
        results, source = [], None
        if strength != 1 or gamma != 1:  # the jobs' own copy of the input is gone
            volume = self.source.volumes[number]
            source = next(scene.voxels(scene.Source(volume, [volume])))
            if source.shape != self._shape[1:]:
                raise InputError(scene.CHANGED.format(self.source.node.GetName()))
        for job, axis in ((self._jobs[number], self.axes[number]) for number in self._averaged):
            count = self._shape[1 + axis]
            after = job.output[number * count : (number + 1) * count]
            if source is not None:
                after = look(np.moveaxis(source, axis, 0), after, job.region, job.mapping, strength, gamma)
            results.append(np.moveaxis(after, 0, axis))
        return results[0] if len(results) == 1 else volumes.average([result[None] for result in results])[0]

    def relook(self, strength: float, gamma: float):
        """Brings the output up to date, the volume that is shown first; a generator that yields between pieces. Items
        that were added to the output, or whose size was changed, stay as they are."""
        node = self.node
        if node is None or node.GetScene() is None:
            return
        if self.source.sequence is None:
            slicer.util.updateVolumeFromArray(node, self.image(0, strength, gamma))
            return
        sequence = node if node.IsA("vtkMRMLSequenceNode") else scene.sequenceBehind(node)
        if sequence is None:  # its browser has gone
            return
        shown = {}
        for browser in scene.browsers(node.GetScene(), sequence):
            proxy, value = browser.GetProxyNode(sequence), scene.selectedValue(browser)
            if proxy is not None:
                shown[max(0, sequence.GetItemNumberFromIndexValue(value, False))] = proxy
        numbers = {value: number for number, value in enumerate(self.source.indexValues)}
        for item in (*shown, *(n for n in range(sequence.GetNumberOfDataNodes()) if n not in shown)):
            number = numbers.get(sequence.GetNthIndexValue(item))
            volume = sequence.GetNthDataNode(item)
            if number is None or volume.GetImageData() is None:
                continue
            image, target = self.image(number, strength, gamma), slicer.util.arrayFromVolume(volume)
            if image.size != target.size:
                continue
            target[...] = image.reshape(target.shape)
            if item in shown:
                slicer.util.updateVolumeFromArray(shown[item], image)
            yield None
        sequence.StorableModified()  # else it would not be saved again

    def release(self) -> None:
        """Frees the memory; the output can then be changed by a new run alone."""
        for job in self._jobs:
            job.release()
        self._jobs = []


class Live:
    """Despeckles what a volume shows, again whenever it changes: a live stream, a playing recording, a slice.

    Call `step` from a timer. The newest image comes first; what cannot be kept up with is dropped. output: a volume
    `<input> live` in the same place, or a given one. state: "running", "stopped", "failed" (message). latency, rate:
    measured. once: a preview, only what is shown now; `refresh` takes what is shown then. regionNode: the segmentation
    or box that `region` (H, W) was taken from; where it is changed, the images follow. Raises InputError.
    """

    def __init__(
        self, worker, node, axis: str = "auto", sliceNode=None, once: bool = False, output=None, regionNode=None,
        **request,
    ):  # fmt: skip
        if node is not None and node.IsA("vtkMRMLSequenceNode"):
            node = scene.proxy(node)
        self.source = scene.source(node)
        if output is not None and (output is node or scene.sequenceBehind(output) is not None):
            raise InputError(f"'{output.GetName()}' is a recording, which live images never change; choose another.")
        self.node, self.output, self.once, self.state, self.message = node, output, once, "running", ""
        self._sliceNode, self._axis, self._request, self._worker = sliceNode, axis, request, worker
        self._regionNode, self._region, self._followed = regionNode, request.get("region"), (None,)
        self._stream, self._observed, self._moments = None, [], []
        self._pushed, self._taken, self._places = 0, 0, {}
        self.refresh()
        if not once:
            events = [(node, slicer.vtkMRMLVolumeNode.ImageDataModifiedEvent), (sliceNode, "ModifiedEvent")]
            if node.IsA("vtkMRMLStreamingVolumeNode"):  # encoded images come without the first of these
                events.append((node, slicer.vtkMRMLStreamingVolumeNode.FrameModifiedEvent))
            self._observed = [(n, n.AddObserver(event, self._onModified)) for n, event in events if n is not None]

    def _onModified(self, caller=None, event=None) -> None:
        if self.state == "running" and self._whole():
            try:
                self.refresh()
            except InputError as error:
                self.stop("failed", str(error))

    def look(self, strength: float, gamma: float) -> None:
        """Strength and gamma from now on, and of what is shown now. Raises InputError."""
        if self.state == "running":
            self._stream.look(strength, gamma)
            if self._whole():
                self.refresh()

    def _whole(self) -> bool:
        """Whether the volume has an image now; not while its size changes, before its voxels do."""
        image = self.node.GetImageData()
        scalars = image.GetPointData().GetScalars() if image is not None else None
        return scalars is not None and 0 < scalars.GetNumberOfTuples() == image.GetNumberOfPoints()

    @property
    def hasOutput(self) -> bool:
        """Whether its output is in the scene."""
        return self.output is not None and self.output.GetScene() is not None

    def refresh(self) -> None:
        """Despeckles what the volume shows now. Raises InputError."""
        if self.node.GetScene() is None:
            self.stop()
            return
        image = next(scene.voxels(scene.Source(self.node, [self.node])))
        chosen = "auto" if self._axis == "average" else self._axis
        (axis,) = volumes.slicing_axes(image.shape[:3], self.source.spacing, chosen)
        number = self._sliceNumber(image.shape, axis)
        frame = np.moveaxis(image, axis, 0)[number]
        if self._stream is None:
            self._stream = self._worker.live(frame.shape, frame.dtype, self._request)
        self._follow(frame.shape[:2], axis)
        self._pushed = self._stream.push(frame)
        self._places[self._pushed] = axis, scene.slicePlace(self.node, axis, number)

    def _follow(self, size, axis: int) -> None:
        """Gives the stream what the segmentation or box covers now, where it or the frames' size has changed."""
        changed = self._regionChanged
        if changed is None or self._followed == (changed, size, axis):
            return
        try:
            region = comparison.frameMask(self.node, self._regionNode, axis)
        except InputError:  # moved off the image: nothing of it is to be despeckled
            region = np.zeros(size, bool)
        self._followed = self._regionChanged, size, axis  # after: reading a segmentation can touch it
        if not np.array_equal(region, self._region):  # as it is where both move with one transform
            self._region = region
            self._stream.give(region)

    @property
    def _regionChanged(self) -> int | None:
        """When the segmentation or box was changed last; None where there is none, or no longer."""
        node = self._regionNode
        return None if node is None or node.GetScene() is None else comparison.changed(node)

    @property
    def waiting(self) -> bool:
        """Whether a result is still to come."""
        return self.state == "running" and self._taken < self._pushed

    def _sliceNumber(self, shape, axis: int) -> int:
        """Of a 3D volume, the slice at which the slice view stands; else the middle one."""
        if shape[axis] == 1 or self._sliceNode is None:
            return shape[axis] // 2
        matrix, fromWorld = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
        self.node.GetRASToIJKMatrix(matrix)
        parent = self.node.GetParentTransformNode()
        slicer.vtkMRMLTransformNode.GetMatrixTransformBetweenNodes(None, parent, fromWorld)
        vtk.vtkMatrix4x4.Multiply4x4(matrix, fromWorld, matrix)
        toRAS = self._sliceNode.GetSliceToRAS()
        point = matrix.MultiplyPoint([toRAS.GetElement(i, 3) for i in range(3)] + [1])
        return int(np.clip(round(point[2 - axis]), 0, shape[axis] - 1))

    def step(self) -> bool:
        """Takes what is done into the scene; whether there was something new."""
        if self.state != "running":
            return False
        if self.node.GetScene() is None or (self.output is not None and self.output.GetScene() is None):
            self.stop()
            return False
        if self._stream.state == "failed":
            self.stop("failed", self._stream.message)
            return False
        if not self.once and self._regionChanged not in (None, self._followed[0]):
            self._onModified()
        frame = self._stream.take()
        if frame is None:
            return False
        self._taken = frame.number
        place = self._places[frame.number]
        self._places = {number: place for number, place in self._places.items() if number > frame.number}
        self._show(frame.image, *place)
        self._moments = [m for m in self._moments if m > time.monotonic() - 2] + [time.monotonic()]
        return True

    def _show(self, image: np.ndarray, axis: int, place) -> None:
        voxels = np.expand_dims(image, axis)  # (K, J, I[, C]) with one voxel along the axis
        if self.output is None:
            self.output = scene.liveOutput(self.node, voxels, place)
        else:
            scene.updateLive(self.output, self.node, voxels, place)

    @property
    def rate(self) -> float:
        """Images per second, over the last two."""
        if len(self._moments) < 2:
            return 0.0
        return (len(self._moments) - 1) / max(self._moments[-1] - self._moments[0], 1e-6)

    @property
    def dropped(self) -> int:
        """Images that could not be kept up with."""
        return self._stream.dropped if self._stream else 0

    @property
    def latency(self) -> float:
        """Milliseconds from the image's arrival to its result, median."""
        return 1000 * (self._stream.latency() or 0) if self._stream else 0.0

    @property
    def device(self) -> str:
        """What the worker runs on."""
        return self._stream.device if self._stream else ""

    def stop(self, state: str = "stopped", message: str = "") -> None:
        """Ends it; the output stays."""
        for node, tag in self._observed:
            node.RemoveObserver(tag)
        self._observed = []
        if self._region is not self._request.get("region") and self._region.any():
            with suppress(InputError):
                comparison.rememberRegion(self.node, self._region)  # not while it moves: that writes a file
        if self._stream is not None and self.state == "running":
            self._stream.stop()
        if self.state == "running":
            self.state, self.message = state, message
