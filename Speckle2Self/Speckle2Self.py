"""The module Speckle2Self: removes the speckle of ultrasound volumes and recordings in the scene."""

import logging
import time
from typing import Annotated, Union

import numpy as np
import slicer
import vtk
from slicer import (
    vtkMRMLMarkupsROINode,
    vtkMRMLScalarVolumeNode,
    vtkMRMLSegmentationNode,
    vtkMRMLSequenceNode,
    vtkMRMLStreamingVolumeNode,
    vtkMRMLVectorVolumeNode,
)
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import Choice, WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

from Speckle2SelfLib.config import Cancelled, InputError
from Speckle2SelfSlicer import comparison, dependencies, scene

# Slicer binds node selectors to typing.Union alone (not to A | B), and stores "no node" only where None is
# one of them.
UltrasoundNode = Union[  # noqa: UP007
    vtkMRMLScalarVolumeNode, vtkMRMLVectorVolumeNode, vtkMRMLStreamingVolumeNode, vtkMRMLSequenceNode, None
]
RegionNode = Union[vtkMRMLSegmentationNode, vtkMRMLMarkupsROINode, None]  # noqa: UP007


class Speckle2Self(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "Speckle2Self"
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Ultrasound")]
        self.parent.dependencies = []
        self.parent.contributors = ["Speckle2Self contributors"]
        self.parent.helpText = _(
            "<p>Reduces the speckle of B-mode ultrasound: of single images, of recordings (sequences) in "
            "grey or colour, and of reconstructed volumes, with a network that learned from speckled "
            "images alone. Only the imaged region is changed; text, scales and Doppler colours stay as "
            "they are, and the input is never overwritten.</p>"
            "<p>It cannot bring back what the scanner did not record, and fine texture may be taken for "
            "speckle: always compare with the input. It is not a medical device and not for "
            "diagnosis.</p>"
            "<p>The idea is that of Li, Navab, Jiang, <i>Speckle2Self: Self-Supervised Ultrasound Speckle "
            "Reduction Without Clean Data</i>, Medical Image Analysis 2025, 103755. Please cite it.</p>"
        )
        self.parent.acknowledgementText = _(
            "This is an independent implementation. The method that it starts from was published by "
            "Xuesong Li, Nassir Navab and Zhongliang Jiang; their code is under the MIT licence."
        )


@parameterNodeWrapper
class Speckle2SelfParameterNode:
    """The panel's settings, saved with the scene.

    inputNode - the volume, recording, or proxy of a recording to despeckle.
    outputNode - an earlier output to replace; None: a new one.
    model - a bundled model, a filter, or a model file.
    region - "auto": only the imaged region; "none": the whole frame; "given": what regionNode covers.
    regionNode - a segmentation or a box.
    showRegion - whether the region is outlined in the slice views.
    axis - of 3D volumes: the slices to despeckle; "average": those of all three orientations.
    device - what to compute on.
    strength - 0: the input, to 1: the despeckled image.
    gamma - exponent on the despeckled grey values; above 1 darkens.
    keepPartial - whether a cancelled run leaves the frames that were done.
    tissueNode, lumenNode - where figures of merit are measured.
    filter - a classical filter to compare with.
    """

    inputNode: UltrasoundNode
    outputNode: UltrasoundNode
    model: str = "default"
    region: Annotated[str, Choice(["auto", "none", "given"])] = "auto"
    regionNode: RegionNode
    showRegion: bool = False
    axis: Annotated[str, Choice(["auto", "k", "j", "i", "average"])] = "auto"
    device: Annotated[str, Choice(["auto", "cpu", "cuda", "mps"])] = "auto"
    strength: Annotated[float, WithinRange(0, 1)] = 1.0
    gamma: Annotated[float, WithinRange(0.2, 5)] = 1.0
    keepPartial: bool = False
    tissueNode: RegionNode
    lumenNode: RegionNode
    filter: Annotated[str, Choice(["none", "median", "lee", "srad", "nlm", "curvature"])] = "none"


class Speckle2SelfWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel: binds the widgets of Speckle2Self.ui to the parameter node, and Apply to the logic."""

    def __init__(self, parent=None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self._parameterNode = None
        self._parameterNodeGuiTag = None
        self._cancelRequested = False

    def setup(self) -> None:
        ScriptedLoadableModuleWidget.setup(self)
        widget = slicer.util.loadUI(self.resourcePath("UI/Speckle2Self.ui"))
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.logic = Speckle2SelfLogic()
        self.ui.modelSelector.addItems(self.logic.models())
        self.ui.progressBar.visible = False
        self.ui.cancelButton.visible = False
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.ui.modelSelector.connect("currentTextChanged(QString)", self.onModelSelected)
        self.ui.applyButton.connect("clicked(bool)", self.onApplyButton)
        self.ui.cancelButton.connect("clicked(bool)", self.onCancelButton)
        self.initializeParameterNode()

    def cleanup(self) -> None:
        self.setParameterNode(None)
        self.removeObservers()

    def enter(self) -> None:
        self.initializeParameterNode()

    def exit(self) -> None:
        self.setParameterNode(None)

    def onSceneStartClose(self, caller, event) -> None:
        self.setParameterNode(None)

    def onSceneEndClose(self, caller, event) -> None:
        if self.parent.isEntered:
            self.initializeParameterNode()

    def initializeParameterNode(self) -> None:
        """Binds the panel to the scene's parameter node, which is made if there is none."""
        self.setParameterNode(self.logic.getParameterNode())

    def setParameterNode(self, parameterNode) -> None:
        """Binds the panel to a parameter node, or to none."""
        if self._parameterNode:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self.updatePanel)
        self._parameterNode = parameterNode
        if self._parameterNode:
            self._parameterNodeGuiTag = self._parameterNode.connectGui(self.ui)
            self.addObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self.updatePanel)
            self.updatePanel()

    def updatePanel(self, caller=None, event=None) -> None:
        self.ui.modelSelector.currentText = self._parameterNode.model
        self.ui.applyButton.enabled = self._parameterNode.inputNode is not None

    def onModelSelected(self, name) -> None:
        if self._parameterNode:
            self._parameterNode.model = name

    def onCancelButton(self, checked=False) -> None:
        self._cancelRequested = True

    def onApplyButton(self, checked=False) -> None:
        self._cancelRequested = False
        self.setRunning(True)
        try:
            with slicer.util.tryWithErrorDisplay(_("Despeckling failed.")):
                self.despeckle(self._parameterNode)
        finally:
            self.setRunning(False)

    def despeckle(self, parameters) -> None:
        try:
            region = parameters.region
            if region == "given":
                volume = comparison.shown(parameters.inputNode)
                region = comparison.frameMask(volume, parameters.regionNode, comparison.axisOf(volume, parameters.axis))
            self.logic.process(
                parameters.inputNode,
                parameters.outputNode,
                model=parameters.model,
                region=region,
                axis=parameters.axis,
                device=parameters.device,
                strength=parameters.strength,
                gamma=parameters.gamma,
                progress=self.onProgress,
                cancelled=lambda: self._cancelRequested,
            )
        except Cancelled:
            slicer.util.showStatusMessage(_("Despeckling was cancelled; the scene is unchanged."), 5000)

    def setRunning(self, running: bool) -> None:
        self.ui.applyButton.visible = not running
        self.ui.cancelButton.visible = running
        self.ui.progressBar.visible = running
        self.ui.progressBar.value = 0

    def onProgress(self, done: int, total: int) -> None:
        self.ui.progressBar.maximum = total
        self.ui.progressBar.value = done
        slicer.app.processEvents()


class Speckle2SelfLogic(ScriptedLoadableModuleLogic):
    """Despeckles nodes of the scene; to be used from the console and from other modules as well.

        logic = slicer.util.getModuleLogic("Speckle2Self")
        output = logic.process(slicer.util.getNode("Carotid"))

    despeckle: what is called in place of `Speckle2SelfLib.despeckling.despeckle`, with the same arguments;
    for tests.
    """

    def __init__(self, despeckle=None) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        self._despeckle = despeckle

    def getParameterNode(self):
        return Speckle2SelfParameterNode(super().getParameterNode())

    def models(self) -> list[str]:
        """Names that `process` takes as `model`: the bundled models first, the user's, the classical filters."""
        from Speckle2SelfLib import library

        networks = [*library.bundled_models(), *(n for n in library.own_models() if n not in library.bundled_models())]
        if dependencies.missing():  # the filters need them; Apply installs them
            return networks
        from Speckle2SelfLib.filters import FILTERS

        return [*networks, *FILTERS]

    def process(
        self,
        inputNode,
        outputNode=None,
        model="default",
        strength: float = 1.0,
        gamma: float = 1.0,
        region="auto",
        axis: str = "auto",
        device: str = "auto",
        progress=None,
        cancelled=None,
    ):
        """Despeckles a node into a new node `<input> despeckled`, or into a given one.

        inputNode: a scalar, vector or streaming volume (2D or 3D), a sequence of these, or a browser's proxy,
            which stands for its whole sequence; or the id or name of one.
        outputNode: an earlier output to replace; None: a new one. For a sequence it is a sequence; for a proxy,
            a sequence, the proxy of an earlier output, or a volume that becomes the proxy. Never the input.
        model: one of `models()`, a model file, or a function of frames (N, H, W), float32 in [0, 1].
        strength: 0 (the input) to 1 (the despeckled image).
        gamma: exponent on the despeckled grey values, 0.2 to 5; above 1 darkens.
        region: "auto" (the imaged region is found), "none" (whole frames), or a bool array of a frame's size.
        axis: "K", "J" or "I": 3D volumes are despeckled slice by slice along this axis; "auto": along the axis
            of acquisition, the one with clearly the coarsest spacing, else K; "average": along all three, and
            the mean taken, for reconstructed volumes.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        progress: called with (frames done, frames).
        cancelled: asked now and then; once it returns True, Cancelled is raised.

        Returns `outputNode` if given; else the new volume for a volume, the new sequence for a sequence, and
        its proxy for a proxy. Raises InputError (a ValueError) with one sentence on what is wrong and what to
        do. On an error, or when cancelled, no node is left behind; the input never changes.
        """
        from Speckle2SelfLib import volumes

        inputNode, outputNode = scene.find(inputNode), scene.find(outputNode)
        source = scene.source(inputNode)
        scene.checkOutput(source, outputNode)
        stack = scene.read(source)
        axes = volumes.slicing_axes(stack.shape[1:4], source.spacing, axis)
        if len(axes) > 1 and not (region is None or isinstance(region, str)):
            raise InputError("axis='average' takes no region array: frames of three orientations differ in size.")
        started = time.perf_counter()
        despeckle = self._engine(model, strength, gamma, region, device, cancelled)
        result = volumes.process(stack, axes, despeckle, progress)
        del stack
        if cancelled and cancelled():
            raise Cancelled
        node = scene.write(source, result, outputNode)
        seconds = time.perf_counter() - started
        logging.info(f"Despeckled '{inputNode.GetName()}' into '{node.GetName()}' in {seconds:.1f} s.")
        return node

    def _engine(self, model, strength, gamma, region, device, cancelled):
        """The despeckling of frames with everything settled but its progress."""
        if isinstance(region, str) and region not in ("auto", "none"):
            raise InputError(f"There is no region '{region}'; known are auto, none, or a bool array.")
        despeckle = self._despeckle
        if despeckle is None:
            dependencies.ensure()
            from Speckle2SelfLib.despeckling import despeckle
            from Speckle2SelfLib.filters import FILTERS

            model = FILTERS.get(model, model) if isinstance(model, str) else model
        region = None if isinstance(region, str) and region == "none" else region

        def run(frames, progress):
            return despeckle(
                frames,
                model,
                region=region,
                strength=strength,
                gamma=gamma,
                device=device,
                progress=progress,
                cancelled=cancelled,
            )

        return run


class Speckle2SelfTest(ScriptedLoadableModuleTest):
    """Self-test: a small simulated recording in the scene, by a filter and by the bundled model."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        self.setUp()
        self.test_Recording()
        self.setUp()
        self.test_EmptyVolume()

    def test_Recording(self):
        self.delayDisplay("A simulated recording is despeckled")
        dependencies.ensure()
        sequence, frames = self.simulatedRecording()
        logic = Speckle2SelfLogic()
        for model in [name for name in ("median", "default") if name in logic.models()]:
            output = logic.process(sequence, model=model, region="none")
            self.assertEqual(output.GetName().split("_")[0], "Simulated despeckled")
            self.assertEqual(output.GetNthIndexValue(1), "0.10")
            result = np.array([slicer.util.arrayFromVolume(output.GetNthDataNode(i))[0] for i in range(len(frames))])
            self.assertEqual(result.dtype, frames.dtype)
            roughness = [np.abs(np.diff(cine.astype(float), axis=2)).mean() for cine in (frames, result)]
            self.assertLess(roughness[1], 0.7 * roughness[0])
        self.delayDisplay("Test passed")

    def test_EmptyVolume(self):
        self.delayDisplay("A volume without image is refused")
        empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Empty")
        count = slicer.mrmlScene.GetNumberOfNodes()
        with self.assertRaises(InputError):
            Speckle2SelfLogic().process(empty)
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodes(), count)
        self.delayDisplay("Test passed")

    def simulatedRecording(self):
        """A sequence node of three simulated frames, and these as (3, 96, 96) uint8."""
        from Speckle2SelfLib.simulation import SimulationConfig, simulate

        simulated = simulate(SimulationConfig(size=(96, 96), frames=3), np.random.default_rng(0))
        frames = np.round(255 * simulated.frames).astype(np.uint8)
        sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "Simulated")
        volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Frame")
        for frame, value in zip(frames, ("0.05", "0.10", "0.15"), strict=True):
            slicer.util.updateVolumeFromArray(volume, frame[np.newaxis])
            sequence.SetDataNodeAtValue(volume, value)
        slicer.mrmlScene.RemoveNode(volume)
        return sequence, frames
