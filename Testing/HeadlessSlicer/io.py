"""`slicer.app.coreIOManager()`, which slicer.util.load*, saveScene and saveNode use."""

from __future__ import annotations

import os
from pathlib import Path

import slicer
import vtk

from . import readers
from .complaints import complain


class CoreIOManager:
    """Choose the reader or writer of a file; each returns whether it worked, messages say why not."""

    def __init__(self, app):
        self._app = app
        self._readers = readers.own()

    def registerIO(self, reader) -> None:
        """Add a reader; among equally confident readers, the first one added comes first."""
        self._readers.append(reader)

    def fileType(self, path: str) -> str:
        """Return the kind of file according to the most confident reader."""
        return next((reader.fileType() for reader in self._byConfidence(path)), "NoFile")

    def fileDescriptions(self, path: str) -> tuple[str, ...]:
        """Return the choices of the dialog *Add data* for a file, the most confident reader first."""
        return tuple(reader.description() for reader in self._byConfidence(path))

    def _byConfidence(self, path: str) -> list:
        rated = [(reader.canLoadFileConfidence(path), reader) for reader in self._readers]
        return [reader for rate, reader in sorted(rated, key=lambda one: -one[0]) if rate > 0]

    def loadNodes(self, fileType, properties, loadedNodes=None, userMessages=None) -> bool:
        """Load a file into the scene; add the loaded nodes to the collection, the main node first.

        All readers of the type are tried in turn. The file's name is prefixed to their messages.
        """
        path, before = properties["fileName"], userMessages.GetNumberOfMessages() if userMessages else 0
        candidates = [reader for reader in self._readers if reader.fileType() == fileType]
        if not candidates and fileType != "NoFile":
            raise AttributeError(f"Files of type '{fileType}' are not modeled.")
        success = False
        for reader in candidates:
            reader.userMessages().ClearMessages()
            if reader.canLoadFileConfidence(path) <= 0:
                continue
            success = reader.load(properties)
            if userMessages is not None:
                userMessages.AddMessages(reader.userMessages(), f"Loading {path} - ")
            if success:
                self._collect(reader.loadedNodes, loadedNodes)
                break
        if not success and userMessages is not None and userMessages.GetNumberOfMessages() == before:
            userMessages.AddMessage(vtk.vtkCommand.ErrorEvent, f"Loading {path} -  load failed.")
        return success

    def _collect(self, identifiers: tuple[str, ...], loadedNodes) -> None:
        for identifier in identifiers if loadedNodes is not None else ():
            node = self._app.mrmlScene().GetNodeByID(identifier)
            if node is None:
                complain(f"loadNodes error: cannot find node by ID {identifier}")
            else:
                loadedNodes.AddItem(node)

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
