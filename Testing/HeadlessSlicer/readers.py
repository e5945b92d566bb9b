"""Readers of files: those of Slicer's own modules, over the wheel's logics, and those of scripted modules,
classes `<Name>FileReader`."""

from __future__ import annotations

import os
import re
import traceback
from fnmatch import fnmatch
from pathlib import Path

import slicer

from . import loaders
from .complaints import complain


class FileReader:
    """A reader: its name, its confidence for files, and the nodes it loaded last."""

    def __init__(self, description: str = "", fileType: str = "", extensions: tuple[str, ...] = (), load=None):
        self._description, self._fileType, self._extensions, self._load = description, fileType, extensions, load
        self._messages, self._nodes = slicer.vtkMRMLMessageCollection(), ()

    def description(self) -> str:
        return self._description

    def fileType(self) -> str:
        return self._fileType

    def extensions(self) -> tuple[str, ...]:
        return self._extensions

    def supportedNameFilters(self, path: str) -> tuple[str, ...]:
        """Return the filters that fit the name of an existing, readable file."""
        return tuple(dict.fromkeys(name for name, _ in self._matches(path)))

    def canLoadFile(self, path: str) -> bool:
        return bool(self.supportedNameFilters(path))

    def canLoadFileConfidence(self, path: str) -> float:
        """Return 0 if no filter fits; else 0.5, plus 0.01 for each letter of the suffix that fits."""
        if not self.canLoadFile(path):
            return 0.0
        return 0.5 + 0.01 * max((length for _, length in self._matches(path)), default=0)

    def load(self, properties: dict) -> bool:
        nodes = self._load(os.path.abspath(properties["fileName"]), properties, self._messages)
        self._nodes = tuple(node.GetID() for node in nodes or ())
        return nodes is not None

    def userMessages(self):
        return self._messages

    @property
    def loadedNodes(self) -> tuple[str, ...]:
        """Return the identifiers of the nodes loaded last; for Slicer's own readers this is a method, which Python code
        does not use."""
        return self._nodes

    def _matches(self, path: str) -> list[tuple[str, int]]:
        """Return the filters that fit, each with the number of letters in its pattern."""
        if not isinstance(path, str):
            raise ValueError(f"Called with wrong argument: QString is expected, not {type(path).__name__}")
        name = Path(path).name
        if not (os.path.isfile(path) and os.access(path, os.R_OK)) or "~" in name.rpartition(".")[2]:
            return []
        return [
            (one, len(pattern.replace("*", "")))
            for one in self.extensions()
            for pattern in patterns(one)
            if fnmatch(name.lower(), pattern.lower())
        ]


def patterns(nameFilter: str) -> list[str]:
    """Return the patterns of a filter of names: "Film (*.avi *.mp4)", or one pattern without a name."""
    found = re.search(r"\(([\w.*? +;#\-\[\]@{}/!<>$%&=^~:|]*)\)$", nameFilter)
    return found[1].split() if found else [nameFilter] if re.fullmatch(r"[\w.*?\-]+", nameFilter) else []


class SequencesReader(FileReader):
    """Reader of NRRD files with an axis of time or a list."""

    def canLoadFileConfidence(self, path: str) -> float:
        confidence = super().canLoadFileConfidence(path)
        if 0 < confidence < 0.56 and path.lower().endswith(("nrrd", "nhdr")):
            return 0.58 if _looksLikeSequence(path) else 0.4
        return confidence


def _looksLikeSequence(path: str) -> bool:
    """Return whether an NRRD header has four dimensions, one of them time (or list), or five."""
    with open(path, "rb") as file:
        header = file.read(800).decode("latin-1")
    dimension = re.search(r"^dimension:\s*(\d+)", header, re.MULTILINE)
    kinds = re.search(r"^kinds:(.*)$", header, re.MULTILINE)
    if dimension and dimension[1] == "4":
        return bool(kinds and re.search("list|time", kinds[1]))
    return bool(dimension and dimension[1] == "5")


class TransformsReader(FileReader):
    """Reader of transforms; of images, only displacement fields by default, which are not modeled."""

    def canLoadFileConfidence(self, path: str) -> float:
        confidence = super().canLoadFileConfidence(path)
        return min(confidence, 0.4) if path.lower().endswith((".nii", ".nii.gz", "nrrd", "nhdr")) else confidence


class qSlicerScriptedFileReader(FileReader):
    """The reader of a scripted module; `parent` of its class. Unknown attributes raise.

    Answers of the class must have the type that the application expects (a list of texts, a bool, a float); others are
    logged and ignored. An exception is printed, and treated as if the method did not exist.
    """

    def __init__(self, path: str, kind: type):
        super().__init__()
        self._source = path
        self._self = kind(self)
        known = ("description", "fileType", "extensions", "canLoadFile", "canLoadFileConfidence", "load")
        self._load = {name: getattr(self._self, name) for name in known if hasattr(self._self, name)}

    def __setattr__(self, name: str, value) -> None:
        if name != "loadedNodes" and not name.startswith("_"):
            raise AttributeError(f"Attribute '{name}' does not exist and creation of new attributes is not allowed")
        object.__setattr__(self, name, value)

    @FileReader.loadedNodes.setter
    def loadedNodes(self, nodes) -> None:
        if not isinstance(nodes, list | tuple) or not all(isinstance(node, str) for node in nodes):
            raise TypeError(f"Property 'loadedNodes' of type 'QStringList' does not accept {nodes!r}")
        self._nodes = tuple(nodes)

    def self(self):
        return self._self

    def description(self) -> str:
        return self._answer("description", str, "", "a string")

    def fileType(self) -> str:
        return self._answer("fileType", str, "", "a string")

    def extensions(self) -> tuple[str, ...]:
        return tuple(self._answer("extensions", list, [], "a string list"))

    def canLoadFile(self, path: str) -> bool:
        return self._answer("canLoadFile", bool, False, "a boolean", super().canLoadFile, path)

    def canLoadFileConfidence(self, path: str) -> float:
        default = super().canLoadFileConfidence
        return self._answer("canLoadFileConfidence", float, 0.0, "a float", default, path)

    def load(self, properties: dict) -> bool:
        return self._answer("load", bool, False, "a boolean", lambda _: False, dict(properties))

    def _answer(self, name: str, kind: type, nothing, words: str, default=None, *arguments):
        """Return the answer of a method of the class; `default` if there is no method, or it raises or returns None."""
        result = failed = object()
        if name in self._load:
            try:
                result = self._load[name](*arguments)
            except Exception:
                complain(traceback.format_exc())
        if result is failed:
            return default(*arguments) if default else nothing
        if not isinstance(result, kind):
            complain(f"{self._source} - function '{name}' is expected to return {words} !")
            return nothing
        return result


def scripted(path: str, module, name: str) -> qSlicerScriptedFileReader | None:
    """Return the reader in a module file, or None."""
    kind = getattr(module, name if name.endswith("FileReader") else f"{name}FileReader", None)
    return None if kind is None else qSlicerScriptedFileReader(path, kind)


#
# Slicer's own
#


def own() -> list[FileReader]:
    """Return the readers of the other modules, in their order, whose files could be mistaken for ours."""
    volumes = "*.hdr *.nhdr *.nrrd *.mhd *.mha *.mnc *.nii *.nii.gz *.mgh *.mgz *.mgh.gz *.img *.img.gz *.pic"
    return [
        FileReader("MRML Scene", "SceneFile", ("*.mrml",), _loadScene),
        FileReader("MRB Slicer Data Bundle", "SceneFile", ("*.mrb", "*.zip", "*.xar"), _loadScene),
        FileReader(
            "Volume",
            "VolumeFile",
            (f"Volume ({volumes})", "Dicom (*.dcm *.ima)", "Image (*.png *.tif *.tiff *.jpg *.jpeg)", "All Files (*)"),
            _loadVolume,
        ),
        TransformsReader(
            "Transform",
            "TransformFile",
            ("Transform (*.h5 *.tfm *.mat *.nrrd *.nhdr *.mha *.mhd *.nii *.nii.gz *.txt *.hdf5 *.he5)",),
            _loadTransform,
        ),
        SequencesReader(
            "Sequence",
            "SequenceFile",
            (
                "Sequence (*.seq.mrb *.mrb)",
                "Volume Sequence (*.seq.nrrd *.seq.nhdr)",
                "Volume Sequence (*.nrrd *.nhdr)",
            ),
            _loadSequence,
        ),
        FileReader(
            "IGSIO Sequence",
            "IGSIO Sequence",
            tuple(f"IGSIO sequence (*.igs.{suffix})" for suffix in ("mha", "mhd", "nrrd")),
            lambda path, properties, messages: loaders.loadTracked(Path(path)),
        ),
    ]


def _loadScene(path, properties, messages):
    scene, clear = slicer.app.mrmlScene(), bool(properties.get("clear", False))
    if path.lower().endswith(".mrb"):
        done = scene.ReadFromMRB(path, clear, messages)
    else:
        scene.SetURL(path)
        done = scene.Connect(messages) if clear else scene.Import(messages)
    return [] if done else None  # the reader of scenes does not return the loaded nodes


def _loadTransform(path, properties, messages):
    node = slicer.modules.transforms.logic().AddTransform(path, slicer.app.mrmlScene(), messages)
    return None if node is None else [node]


def _loadSequence(path, properties, messages):
    logic = slicer.modules.sequences.logic()
    node = logic.AddSequence(path, messages)
    if node is None:
        return None
    scene = slicer.app.mrmlScene()
    if "name" in properties:
        node.SetName(scene.GetUniqueNameByString(properties["name"]))
    if not properties.get("show", True):
        return [node]
    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", f"{node.GetName()} browser")
    browser.SetAndObserveMasterSequenceNodeID(node.GetID())
    logic.UpdateProxyNodesFromSequences(browser)
    loaders.showVolume(browser.GetProxyNode(node))
    return [node, browser]


def _loadVolume(path, properties, messages):
    options = 0
    for bit, name in enumerate(("labelmap", "center", "singleFile", "autoWindowLevel", "discardOrientation")):
        options |= bool(properties.get(name, False)) << bit
    name = properties.get("name", Path(path).name.split(".")[0])
    if path.lower().endswith((".png", ".tif", ".tiff", ".jpg", ".jpeg")):
        node = loaders.loadPictures(Path(path), name, bool(properties.get("singleFile", False)))
    else:
        node = slicer.modules.volumes.logic().AddArchetypeVolume(path, name, options, None)
    if node is None:
        return None
    if properties.get("show", True):
        loaders.showVolume(node)
    return [node]
