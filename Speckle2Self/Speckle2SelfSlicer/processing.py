"""Despeckle nodes in the background: from the scene to the worker and back, in short steps that never block the
panel."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict

import numpy as np
import slicer
from slicer import vtkMRMLNode, vtkMRMLVolumeNode
from slicer.i18n import tr as _

from Speckle2SelfLib import volumes
from Speckle2SelfLib.look import look, uncertainty_of_look
from Speckle2SelfLib.system import Cancelled, InputError

from . import results, uncertainty
from .scene import CHANGED, Recording, browsers, sequenceOf, voxelsOf
from .words import translate_sentence
from .worker import DespeckleJob, Worker, checked_options

PARTIAL = " (partial)"  # suffix of a result with only the first frames
PIECE = 0.02  # seconds of work at most between two returns to the event loop
PAUSE = 0.005  # seconds between two polls of the worker while a caller waits
OWN_OPTIONS = ("axis", "strength", "gamma", "cautious")  # applied by `Run` and `Result`; the worker has the others


class Run:
    """One despeckling of a node. Call `step` from a timer until `ended`, or `wait`.

    state: "reading", "despeckling", "writing", "done", "cancelled", "failed" (message says why, for the user). done,
    total: frames; rate: per second; seconds: since the start; seconds_left: None if unknown. region: (H, W) bool, the
    pixels to despeckle, None until it is known. result: a `Result`, once done.
    onlyRegion: end as soon as `region` is known, and write nothing. uncertainty: write one standard deviation of the
    output's error, in its grey values, to a second node, `<input> uncertainty`. options: those of
    `config.DespeckleOptions`; region may also be pixels (H, W).
    Raises InputError if the nodes or the options do not fit.
    """

    def __init__(
        self, worker: Worker, node: vtkMRMLNode, output: vtkMRMLNode | None = None, keepPartial: bool = False,
        onlyRegion: bool = False, uncertainty: bool = False, **options,
    ):  # fmt: skip
        self.recording = Recording.of(node)
        results.checkOutput(self.recording, output)
        options["axis"] = str(options.get("axis", "auto")).lower()
        self.axes, self._shape, self._dtype = self.recording.axes(options["axis"]), *self.recording.kind
        self.options, mask = checked_options(options, np.delete(self._shape[1:4], self.axes[0]))
        self._region = self.options.region if mask is None else options["region"]
        self.output, self.keepPartial, self.uncertainty = output, keepPartial, uncertainty
        self.state, self.message, self.result = "reading", "", None
        self.done, self.total, self.rate, self.seconds_left, self.device = 0, 0, 0.0, None, ""
        self.region, self._onlyRegion, self._startTime = None, onlyRegion, time.monotonic()
        self._worker, self._jobs, self._cancelRequested = worker, [], False
        self.recording = self.recording.snapshot()
        self.total = sum(self._shape[0] * self._shape[1 + axis] for axis in self.axes)
        self._steps = self._work()

    @property
    def ended(self) -> bool:
        """Return whether the run has ended."""
        return self.state in ("done", "cancelled", "failed")

    def step(self, seconds: float = PIECE) -> None:
        """Work for one time slice; return at once while the worker works."""
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
            self._end("failed", translate_sentence(str(error)))
        except Exception as error:
            self._end("failed", _("Despeckling failed: {error}").format(error=f"{type(error).__name__}: {error}"))
            raise

    def wait(
        self, progress: Callable[[int, int], None] | None = None, cancelled: Callable[[], bool] | None = None
    ) -> vtkMRMLNode:
        """Work until the end, without an event loop; return the node of the output.

        progress: called with (frames done, frames) whenever there are more. cancelled: called now and then; once it
        returns True, the run is canceled. Raises InputError if it failed, Cancelled if it was canceled.
        """
        reported = 0
        try:
            while not self.ended:
                if cancelled is not None and cancelled():
                    self.cancel()
                self._worker.poll()
                self.step(0)
                if progress is not None and self.done > reported:
                    reported = self.done
                    progress(reported, self.total)
                if self.state == "despeckling":
                    time.sleep(PAUSE)
        finally:
            self.abandon()  # in case of an error
        if self.state == "failed":
            raise InputError(self.message)
        if self.state == "cancelled":
            raise Cancelled
        return self.result.node

    def cancel(self) -> None:
        """Request the end; nothing is written, or with `keepPartial` the frames that are done."""
        self._cancelRequested = True
        for job in self._jobs:
            self._worker.cancel(job)

    def abandon(self) -> None:
        """End at once, in any state; nothing more is written, and its memory is freed."""
        if not self.ended:
            self.cancel()
            self._end("cancelled")

    @property
    def seconds(self) -> float:
        """Return the seconds since the start, until the end."""
        return (time.monotonic() if not self.ended else self._endTime) - self._startTime

    def _end(self, state: str, message: str = "") -> None:
        self.state, self.message, self._endTime = state, message, time.monotonic()
        if state != "done":
            self._steps.close()
            for job in self._jobs:
                job.release()

    def _work(self) -> Iterator[str | None]:
        """Do the whole run; yield between time slices, "wait" while only the worker can continue."""
        for axis in self.axes:
            yield from self._fill(axis)
        self.state = "despeckling"
        for number, job in enumerate(self._jobs):
            yield from self._despeckle(number, job)
        cut = self._jobs[0].state == "cancelled"
        self.done = self._wholeVolumes(self._jobs[0]) if cut else self.total
        self.state = "writing"
        yield None  # a caller can still stop here
        yield from self._write(cut)
        self._end("done", self._remark(cut))

    def _fill(self, axis: int) -> Iterator[None]:
        """Copy the frames across one axis into the memory of a job; yield between pieces."""
        sizes = np.moveaxis(np.empty(self._shape[:4], np.void), 1 + axis, 1).shape
        needs = {"uncertainty": True} if self.uncertainty or self.options.cautious else {}
        job = self._worker.allocate((sizes[0] * sizes[1], *sizes[2:], *self._shape[4:]), self._dtype, **needs)
        self._jobs.append(job)
        for time_point, image in enumerate(self.recording.voxels()):
            if (image.shape, image.dtype) != (self._shape[1:], self._dtype):
                raise InputError(CHANGED.format(self.recording.name))
            for number, frame in enumerate(np.moveaxis(image, axis, 0)):
                job.input[time_point * sizes[1] + number] = frame
                if self._cancelRequested:
                    raise Cancelled
                yield None

    def _despeckle(self, number: int, job: DespeckleJob) -> Iterator[str]:
        """Run job `number` in the worker; yield while it runs. The look is applied to its output, by `Result`."""
        request = {name: value for name, value in asdict(self.options).items() if name not in OWN_OPTIONS}
        request["region"] = self._region
        self._worker.start(job, request)
        while not job.ended:
            self._readRegion(number, job)
            if self._onlyRegion and self.region is not None:
                self._worker.cancel(job)
                raise Cancelled
            self.done = sum(each.total for each in self._jobs[:number]) + job.done
            self.rate, self.seconds_left, self.device = job.rate, job.seconds_left, job.device
            yield "wait"
        self.device = job.device
        self._readRegion(number, job)
        if self._onlyRegion:
            raise Cancelled
        if job.state == "failed":
            raise InputError(job.message)
        if job.state == "cancelled" and not (self.keepPartial and self._wholeVolumes(job)):
            raise Cancelled

    def _readRegion(self, number: int, job: DespeckleJob) -> None:
        if number == 0 and self.region is None:
            self.region = job.region

    def _wholeVolumes(self, job: DespeckleJob) -> int:
        """Return how many volumes of a stopped job are complete; partial results are kept only for frame sequences."""
        frames = len(self.axes) == 1 and self._shape[1 + self.axes[0]] == 1 and self.recording.sequence is not None
        return job.done if frames else 0

    def _write(self, cut: bool) -> Iterator[None]:
        """Write the result into the scene; yield between volumes. cut: only the first frames are done."""
        automatic = self.options.axis if self.options.region == "auto" else None
        self.result = Result(self.recording, self._jobs, self.axes, self._shape, automatic)
        options, count, partial = self.options, self.done if cut else None, PARTIAL if cut else ""
        images = self.result.images(options.strength, options.gamma, count, options.cautious)
        node = None
        for node in results.writeInSteps(self.recording, images, None if cut else self.output, f"despeckled{partial}"):
            if self._cancelRequested and not self.keepPartial and node is None:
                raise Cancelled
            yield None
        self.result.node, uncertaintyNode = node, None
        if self.uncertainty:
            maps = self.result.uncertainties(options.strength, options.gamma, count)
            former = self._previousUncertainty()
            for uncertaintyNode in results.writeInSteps(self.recording, maps, former, f"uncertainty{partial}"):  # noqa: B007
                yield None
            results.showOwnWindow(uncertaintyNode)
            self.result.uncertaintyNode = uncertaintyNode
        uncertainty.relate(node, uncertaintyNode, self.result.span)
        if not cut:
            results.rename(node, lambda name: name.removesuffix(PARTIAL))

    def _previousUncertainty(self) -> vtkMRMLNode | None:
        """Return the uncertainty node of the previous output, to be replaced as well; None if none fits."""
        former = uncertainty.mapOf(self.output)
        try:
            results.checkOutput(self.recording, former)
        except InputError:
            return None
        return former

    def _remark(self, cut: bool) -> str:
        """Return a remark for the user about a finished run."""
        changed = [job.region.any() for job in self._jobs]
        if not any(changed):
            return _("No ultrasound region was found; the output is a copy. Choose the region 'none' or 'given'.")
        if not all(changed):
            left_out = volumes.unchanged_axes(self.axes, changed)
            words = _("No ultrasound region was found along {left_out}; the result averages the other orientations.")
            return words.format(left_out=left_out)
        return _("Stopped: the first {done} frames are kept.").format(done=self.done) if cut else ""


class Result:
    """The network's output for a recording, kept so that the look changes the output without running it again.

    node: the output; uncertaintyNode: that of its uncertainty, if requested. The input is read from its nodes again
    when it is blended in. region: (H, W) bool, the despeckled pixels, across the first of `axes`; automaticAxis: the
    requested axis, if the region was detected; else None.
    """

    def __init__(
        self, recording: Recording, jobs: list[DespeckleJob], axes: list[int], shape: tuple, automaticAxis: str | None
    ):
        self.recording, self.node, self.automaticAxis = recording, None, automaticAxis
        self.uncertaintyNode = None
        self._jobs, self._shape = jobs, shape
        self.region, self.axes = jobs[0].region, axes
        # Among several orientations, those without ultrasound are copies of the input.
        self._orientations = [number for number, job in enumerate(jobs) if job.region.any()] or [0]
        for job in jobs:
            job.release_input()

    @property
    def hasUncertainty(self) -> bool:
        """Return whether the uncertainty is known, which caution needs."""
        return bool(self._jobs) and all(job.uncertainty is not None for job in self._jobs)

    @property
    def span(self) -> float:
        """Return the difference of the grey values that the model saw as 0 and 1."""
        low, high = self._jobs[self._orientations[0]].mapping
        return high - low

    def images(
        self, strength: float, gamma: float, count: int | None = None, cautious: float = 0.0
    ) -> Iterator[np.ndarray]:
        """Yield the output's volumes (K, J, I[, C]), one after the other; count: only the first of them."""
        for number in range(self._shape[0] if count is None else count):
            yield self.image(number, strength, gamma, cautious)

    def uncertainties(self, strength: float, gamma: float, count: int | None = None) -> Iterator[np.ndarray]:
        """Yield the uncertainty of each of `images`, (K, J, I) float32, in the output's grey values."""
        for number in range(self._shape[0] if count is None else count):
            yield self._uncertainty(number, strength, gamma)

    def _uncertainty(self, number: int, strength: float, gamma: float) -> np.ndarray:
        parts = []
        for job, axis, place in self._parts(number):
            deviation = uncertainty_of_look(job.uncertainty[place], job.output[place], job.mapping, strength, gamma)
            parts.append(np.moveaxis(deviation, 0, axis))
        return _mean(parts)

    def _parts(self, number: int) -> Iterator[tuple[DespeckleJob, int, slice]]:
        """Yield the jobs of one volume, the axis across which each cuts it, and its frames there."""
        for job, axis in ((self._jobs[orientation], self.axes[orientation]) for orientation in self._orientations):
            count = self._shape[1 + axis]
            yield job, axis, slice(number * count, (number + 1) * count)

    def image(self, number: int, strength: float, gamma: float, cautious: float = 0.0) -> np.ndarray:
        """Return one volume of the output (K, J, I[, C]). Raises InputError if the input has changed its size.

        cautious: only for a run with caution or uncertainty.
        """
        parts, before = [], None
        if strength != 1 or gamma != 1 or cautious:  # the jobs' own copy of the input is freed
            before = voxelsOf(self.recording.volumes[number])
            if before.shape != self._shape[1:]:
                raise InputError(CHANGED.format(self.recording.name))
        for job, axis, place in self._parts(number):
            after = job.output[place]
            if before is not None:
                deviation = job.uncertainty[place] if cautious else None
                frames = np.moveaxis(before, axis, 0)
                after = look(frames, after, job.region, job.mapping, strength, gamma, cautious, deviation)
            parts.append(np.moveaxis(after, 0, axis))
        return _mean(parts)

    def relook(self, strength: float, gamma: float, cautious: float = 0.0) -> Iterator[None]:
        """Update the output and its uncertainty, starting with the volume that is shown; yield between pieces. Items
        that were added to the output, or whose size was changed, are left unchanged."""
        yield from self._updateNode(self.node, lambda number: self.image(number, strength, gamma, cautious))
        yield from self._updateNode(self.uncertaintyNode, lambda number: self._uncertainty(number, strength, gamma))

    def _updateNode(self, node: vtkMRMLNode | None, imageOf: Callable[[int], np.ndarray]) -> Iterator[None]:
        if node is None or node.GetScene() is None:
            return
        if self.recording.sequence is None:
            slicer.util.updateVolumeFromArray(node, imageOf(0))
            return
        sequence = sequenceOf(node)
        if sequence is None:  # the browser was removed
            return
        proxies = _proxiesByItem(sequence)
        numbers = {value: number for number, value in enumerate(self.recording.indexValues)}
        for item in (*proxies, *(n for n in range(sequence.GetNumberOfDataNodes()) if n not in proxies)):
            number = numbers.get(sequence.GetNthIndexValue(item))
            volume = sequence.GetNthDataNode(item)
            if number is None or volume.GetImageData() is None:
                continue
            image, target = imageOf(number), slicer.util.arrayFromVolume(volume)
            if image.size != target.size:
                continue
            target[...] = image.reshape(target.shape)
            if item in proxies:
                slicer.util.updateVolumeFromArray(proxies[item], image)
            yield None
        sequence.StorableModified()  # else it would not be saved again

    def release(self) -> None:
        """Free the memory; then only a new run can change the output."""
        for job in self._jobs:
            job.release()
        self._jobs = []


def _mean(orientations: list[np.ndarray]) -> np.ndarray:
    """Return the mean of the same volume (K, J, I[, C]), despeckled in several orientations."""
    if len(orientations) == 1:
        return orientations[0]
    return volumes.average([volume[None] for volume in orientations])[0]


def _proxiesByItem(sequence: vtkMRMLNode) -> dict[int, vtkMRMLVolumeNode]:
    """Return the proxies that browsers show of a sequence, by the numbers of their items."""
    proxies = {}
    for browser in browsers(sequence.GetScene(), sequence):
        proxy, value = browser.GetProxyNode(sequence), results.selectedValue(browser)
        if proxy is not None:
            proxies[max(0, sequence.GetItemNumberFromIndexValue(value, False))] = proxy
    return proxies
