"""`slicer.app.coreIOManager()`, which slicer.util.load*, saveScene and saveNode use."""

from __future__ import annotations

import os
import re
from pathlib import Path

import slicer
import vtk

from . import loaders


class CoreIOManager:
    """Choose the reader or writer of a file; each returns whether it worked, messages say why not."""

    def __init__(self, app):
        self._app = app
        self._readers = {
            "SceneFile": self._loadScene,
            "SequenceFile": self._loadSequence,
            "VolumeFile": self._loadVolume,
            "IGSIO Sequence": self._loadTracked,
        }

    def fileType(self, filename) -> str:
        """Return the kind of file that Slicer takes it for, by its name, for NRRD files also by their header."""
        name = str(filename).lower()
        if name.endswith((".mrml", ".mrb")):
            return "SceneFile"
        if name.endswith((".igs.mha", ".igs.mhd", ".igs.nrrd")):
            return "IGSIO Sequence"
        if name.endswith((".seq.nrrd", ".seq.nhdr")):
            return "SequenceFile"
        if name.endswith((".nrrd", ".nhdr")) and _looksLikeSequence(filename):
            return "SequenceFile"
        return "VolumeFile"

    def loadNodes(self, fileType, properties, loadedNodes=None, userMessages=None) -> bool:
        """Load a file into the scene; add the loaded nodes to the collection, the main node first."""
        messages = userMessages if userMessages is not None else slicer.vtkMRMLMessageCollection()
        if fileType not in self._readers:
            raise AttributeError(f"Files of type '{fileType}' are not modeled.")
        nodes = self._readers[fileType](os.path.abspath(properties["fileName"]), properties, messages)
        for node in nodes or []:
            if loadedNodes is not None:
                loadedNodes.AddItem(node)
        return nodes is not None

    def fileWriterFileType(self, node) -> str:
        """Return the kind of file that a node is saved as."""
        return "SceneFile" if node.IsA("vtkMRMLScene") else "NodeFile"

    def saveNodes(self, fileType, properties, userMessages=None) -> bool:
        """Save the scene (SceneFile: .mrb, .mrml), or one node through its own storage node (NodeFile)."""
        messages = userMessages if userMessages is not None else slicer.vtkMRMLMessageCollection()
        path = Path(os.path.abspath(properties["fileName"]))
        if not os.access(path.parent, os.W_OK):
            text = f"Failed to save {path} (path {path.parent} is not writeable)"
            messages.AddMessage(vtk.vtkCommand.ErrorEvent, text)
            return False
        if fileType == "SceneFile":
            return self._saveScene(path, messages)
        node = self._app.mrmlScene().GetNodeByID(properties["nodeID"])
        if not node.GetStorageNode():
            node.AddDefaultStorageNode()
        storage = node.GetStorageNode()
        storage.SetFileName(str(path))
        return bool(storage.WriteData(node))

    def _saveScene(self, path: Path, messages) -> bool:
        scene = self._app.mrmlScene()
        if path.suffix not in (".mrb", ".mrml"):
            raise AttributeError("Saving a scene into a folder is not modeled; save .mrb or .mrml.")
        scene.SetURL(str(path))
        scene.SetRootDirectory(str(path.parent))
        if path.suffix == ".mrml":
            return bool(scene.Commit())
        saved = scene.WriteToMRB(str(path), None, messages)
        if saved:
            scene.SetStorableNodesModifiedSinceRead()
        return bool(saved)

    def _loadScene(self, path, properties, messages):
        scene, clear = self._app.mrmlScene(), bool(properties.get("clear", False))
        if path.lower().endswith(".mrb"):
            done = scene.ReadFromMRB(path, clear, messages)
        else:
            scene.SetURL(path)
            done = scene.Connect(messages) if clear else scene.Import(messages)
        return [] if done else None  # the reader of scenes does not return the loaded nodes

    def _loadSequence(self, path, properties, messages):
        logic = slicer.modules.sequences.logic()
        node = logic.AddSequence(path, messages)
        if node is None:
            return None
        scene = self._app.mrmlScene()
        if "name" in properties:
            node.SetName(scene.GetUniqueNameByString(properties["name"]))
        if not properties.get("show", True):
            return [node]
        browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", f"{node.GetName()} browser")
        browser.SetAndObserveMasterSequenceNodeID(node.GetID())
        logic.UpdateProxyNodesFromSequences(browser)
        loaders.showVolume(browser.GetProxyNode(node))
        return [node, browser]

    def _loadVolume(self, path, properties, messages):
        options = 0
        for bit, name in enumerate(("labelmap", "center", "singleFile", "autoWindowLevel", "discardOrientation")):
            options |= bool(properties.get(name, False)) << bit
        name = properties.get("name", Path(path).name.split(".")[0])
        node = slicer.modules.volumes.logic().AddArchetypeVolume(path, name, options, None)
        if node is None:
            return None
        if properties.get("show", True):
            loaders.showVolume(node)
        return [node]

    def _loadTracked(self, path, properties, messages):
        return loaders.loadTracked(Path(path))


def _looksLikeSequence(path) -> bool:
    """Return whether an NRRD header has four dimensions, one of them time (or list), or five."""
    with open(path, "rb") as file:
        header = file.read(800).decode("latin-1")
    dimension = re.search(r"^dimension:\s*(\d+)", header, re.MULTILINE)
    kinds = re.search(r"^kinds:(.*)$", header, re.MULTILINE)
    if dimension and dimension[1] == "4":
        return bool(kinds and re.search("list|time", kinds[1]))
    return bool(dimension and dimension[1] == "5")
