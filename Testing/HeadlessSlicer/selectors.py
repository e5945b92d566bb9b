"""The selectors of nodes, as in Slicer (`qMRMLNodeComboBox` and its checkable form)."""

from __future__ import annotations

from typing import ClassVar

import slicer
import vtk
from PySide6 import QtWidgets
from PySide6.QtCore import Property, Qt, Signal

from . import dialogs
from .complaints import complain


class qMRMLNodeComboBox(QtWidgets.QWidget):
    """Choose one of the nodes of some classes; grey without scene. Below the nodes are rows that do something."""

    currentNodeChanged = Signal(object)
    currentNodeChangedBool = Signal(bool)
    currentNodeIDChanged = Signal(str)
    nodeAddedByUser = Signal(object)
    currentNodeRenamed = Signal(str)
    nodeActivated = Signal(object)
    declared: ClassVar = {
        "currentNodeChanged(vtkMRMLNode*)": "currentNodeChanged",
        "currentNodeChanged(bool)": "currentNodeChangedBool",
        "nodeAddedByUser(vtkMRMLNode*)": "nodeAddedByUser",
        "nodeActivated(vtkMRMLNode*)": "nodeActivated",
    }
    _events = ("NodeAddedEvent", "NodeRemovedEvent")

    def __init__(self, parent=None):
        super().__init__(parent)
        self._scene, self._tags, self._current, self._watched, self._leaving = None, [], None, {}, None
        self._requested = None  # the choice before there is a scene
        self._baseNames: dict[str, str] = {}
        self._box = QtWidgets.QComboBox(self)
        self._box.setSizeAdjustPolicy(QtWidgets.QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._box)
        self._box.activated.connect(self._chosen)
        self.setEnabled(False)
        self._settings = {
            "nodeTypes": [], "noneEnabled": False, "addEnabled": True, "removeEnabled": True, "renameEnabled": False,
            "editEnabled": False, "showHidden": False, "showChildNodeTypes": True, "selectNodeUponCreation": True,
            "noneDisplay": "None",
        }  # fmt: skip

    def _setting(name, kind):
        def set_(self, value):
            self._settings[name] = value
            self._fill()

        return Property(kind, lambda self: self._settings[name], set_)

    nodeTypes = _setting("nodeTypes", "QStringList")
    noneEnabled, addEnabled = _setting("noneEnabled", bool), _setting("addEnabled", bool)
    removeEnabled = _setting("removeEnabled", bool)
    renameEnabled, editEnabled = _setting("renameEnabled", bool), _setting("editEnabled", bool)
    showHidden, showChildNodeTypes = _setting("showHidden", bool), _setting("showChildNodeTypes", bool)
    selectNodeUponCreation = _setting("selectNodeUponCreation", bool)
    noneDisplay = _setting("noneDisplay", str)

    def _baseName(self) -> str:
        kinds = self._settings["nodeTypes"]
        return self._baseNames.get(kinds[0], "") if kinds else ""

    def setBaseName(self, name: str, nodeType: str = "") -> None:
        """Set the name of new nodes of a type, or of the types that are set."""
        kinds = [nodeType] if nodeType else self._settings["nodeTypes"]
        if not kinds:
            complain("qMRMLNodeComboBox::setBaseName failed: no node types have been set yet")
        self._baseNames.update(dict.fromkeys(kinds, name))

    baseName = Property(str, _baseName, setBaseName)

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene) -> None:
        if scene is self._scene:
            return
        for tag in self._tags:
            self._scene.RemoveObserver(tag)
        self._scene, self._tags = scene, []
        if scene is not None:
            self._tags = [scene.AddObserver(getattr(scene, event), self._onScene) for event in self._events]
            self._tags.append(scene.AddObserver(scene.NodeAboutToBeRemovedEvent, self._onLeaving, -10.0))
            for event in (scene.EndImportEvent, scene.EndCloseEvent):
                self._tags.append(scene.AddObserver(event, self._onReset))
        self.setEnabled(scene is not None)
        self._fill()
        if scene is not None and self._requested is not None:
            self.setCurrentNode(self._requested)
            self._requested = None

    def _onScene(self, caller, event) -> None:
        """Follow the scene, in batch processing as well; not while it is imported or closed, but then afterwards."""
        self._leaving = None
        if not caller.IsImporting() and not caller.IsClosing():
            self._fill()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onLeaving(self, caller, event, node) -> None:
        """Remove the chosen node's row before the node is removed; the row that then has its place is chosen."""
        if caller.IsClosing() or node not in self._nodes():
            return
        row, self._leaving = self._nodes().index(node), node
        if node is self._current:
            rest = self._nodes()
            self._select(rest[min(row, len(rest) - 1)] if rest else None)

    def _onReset(self, caller, event) -> None:
        """Rebuild all rows after an import or a close."""
        self._leaving = None
        if self._settings["noneEnabled"]:
            self._select(None)
        self._fill()

    def _accepts(self, node) -> bool:
        if node.GetHideFromEditors() and not self._settings["showHidden"]:
            return False
        kinds = self._settings["nodeTypes"]
        if self._settings["showChildNodeTypes"]:
            return any(node.IsA(kind) for kind in kinds)
        return node.GetClassName() in kinds

    def _nodes(self) -> list:
        if self._scene is None or not any(map(self._scene.GetNumberOfNodesByClass, self._settings["nodeTypes"])):
            return []
        nodes = (self._scene.GetNthNode(number) for number in range(self._scene.GetNumberOfNodes()))
        return [node for node in nodes if node is not self._leaving and self._accepts(node)]

    def _fill(self) -> None:
        nodes = self._nodes()
        for node in list(self._watched):
            if node not in nodes:
                node.RemoveObserver(self._watched.pop(node))
        for node in nodes:
            if node not in self._watched:
                self._watched[node] = node.AddObserver("ModifiedEvent", lambda *_: self._onModified())
        if self._current is not None and self._current not in nodes:
            self._select(None if self._settings["noneEnabled"] or not nodes else nodes[0])
        elif self._current is None and nodes and not self._settings["noneEnabled"]:
            self._select(nodes[0])
        self._list()

    def _onModified(self) -> None:
        self._list()

    def _list(self) -> None:
        self._box.blockSignals(True)
        self._box.clear()
        if self._settings["noneEnabled"]:
            self._box.addItem(self._settings["noneDisplay"], None)
        for node in self._nodes():
            self._box.addItem(node.GetName(), node.GetID())
        current = self._box.findData(self.currentNodeID) if self._current else 0
        if actions := self._actions():
            self._box.insertSeparator(self._box.count())
        for text, action in actions:
            self._box.addItem(text, action)
        self._box.setCurrentIndex(current)
        self._box.blockSignals(False)

    def _label(self, kinds: list) -> str:
        """Return the name of a type; "node" if there are several or none."""
        scene = self._scene
        return (scene.GetTypeDisplayNameByClassName(kinds[0]) or "node") if len(kinds) == 1 else "node"

    def _actions(self) -> list:
        """Return (text, (action, type)) of the rows below the nodes."""
        if self._scene is None:
            return []
        may, kinds = self._settings, list(self._settings["nodeTypes"])
        rows, label = [], self._label(kinds)
        if may["renameEnabled"]:
            rows.append((f"Rename current {label}", ("rename", None)))
        if may["editEnabled"]:
            rows.append((f"Edit current {label}", ("edit", None)))
        for kind in kinds if may["addEnabled"] else ():
            rows.append((f"Create new {self._label([kind])}", ("create", kind)))
            if may["renameEnabled"]:
                rows.append((f"Create new {self._label([kind])} as...", ("create as", kind)))
        if may["removeEnabled"]:
            rows.append((f"Delete current {label}", ("delete", None)))
        return rows

    def _chosen(self, index: int) -> None:
        """React to the user's click on a row."""
        data = self._box.itemData(index)
        if isinstance(data, tuple):
            self._list()  # the choice is unchanged
            self._act(*data)
        else:
            self.setCurrentNodeID(data or "")
            self.nodeActivated.emit(self._current)

    def _act(self, action: str, kind) -> None:
        if action == "rename" and self._current is not None:
            if name := dialogs.QInputDialog.getText(self, "Rename", "New name:", text=self._current.GetName()):
                self._current.SetName(name)
                self.currentNodeRenamed.emit(name)
        elif action == "delete":
            self._scene.RemoveNode(self._current)
        elif action == "edit":
            self._scene.GetFirstNodeByClass("vtkMRMLInteractionNode").EditNode(self._current)
        elif action == "create as":
            if name := dialogs.QInputDialog.getText(self, "Create", "New name:"):
                node = self.addNode(kind)
                node.SetName(name)
                self._select(node)
        elif action == "create":
            node = self.addNode(kind)
            self._select(node)
            if slicer.app.minorVersion <= 10:  # there it comes twice
                self.nodeAddedByUser.emit(node)

    def _select(self, node) -> None:
        if node is self._current:
            return
        self._current = node
        self._list()
        self.currentNodeChanged.emit(node)
        self.currentNodeChangedBool.emit(node is not None)
        self.currentNodeIDChanged.emit(self.currentNodeID)

    def currentNode(self):
        return self._current

    def setCurrentNode(self, node) -> None:
        if self._scene is None:
            self._requested = node
        elif isinstance(node, str):
            self.setCurrentNodeID(node)
        else:
            self._select(node if node is not None and self._accepts(node) else None)

    def setCurrentNodeID(self, identifier: str) -> None:
        self.setCurrentNode(self._scene.GetNodeByID(identifier) if self._scene and identifier else None)

    def addNode(self, nodeClass: str = ""):
        """Create a node, as the user does with "Create new"; return it."""
        if not self._settings["addEnabled"]:
            raise RuntimeError("Nodes cannot be made here.")
        kind = nodeClass or self._settings["nodeTypes"][0]
        if kind not in self._settings["nodeTypes"]:
            raise ValueError(f"{kind} is not among the allowed node types")
        node = self._scene.AddNewNodeByClass(kind, self._baseNames.get(kind, ""))
        if self._settings["selectNodeUponCreation"]:
            self._select(node)
        self.nodeAddedByUser.emit(node)
        return node

    def nodeCount(self) -> int:
        return len(self._nodes())

    def _currentID(self) -> str:
        return self._current.GetID() or "" if self._current is not None else ""

    currentNodeID = Property(str, _currentID, setCurrentNodeID, notify=currentNodeIDChanged)


class qMRMLCheckableNodeComboBox(qMRMLNodeComboBox):
    """Choose any number of nodes. Changed checks are noticed when a row's data change, or a row is added: a
    checked node that is removed causes no signal until the next change of another one."""

    checkedNodesChanged = Signal()

    def __init__(self, parent=None):
        super().__init__(parent)
        self._checked: list = []
        self._told: list = []  # the checked nodes when changes were noticed last
        self._settings.update(addEnabled=False, removeEnabled=False, editEnabled=False, renameEnabled=False)

    def _notice(self) -> None:
        """React to `dataChanged` like ctkCheckableComboBox."""
        self._checked = [node for node in self._nodes() if node in self._checked]
        if self._checked != self._told:
            self._told = list(self._checked)
            self._list()
            self.checkedNodesChanged.emit()

    def _onReset(self, caller, event) -> None:
        self._checked = []
        super()._onReset(caller, event)
        self._notice()

    def _fill(self) -> None:
        known = set(self._watched)
        super()._fill()
        self._checked = [node for node in self._nodes() if node in self._checked]
        if set(self._watched) - known:
            self._notice()

    def _onModified(self) -> None:
        super()._onModified()
        self._notice()

    def _list(self) -> None:
        super()._list()
        names = ", ".join(node.GetName() for node in getattr(self, "_checked", ()))
        self._box.setPlaceholderText(names or "None")
        self._box.setCurrentIndex(-1)

    def checkedNodes(self) -> list:
        return list(self._checked)

    def uncheckedNodes(self) -> list:
        return [node for node in self._nodes() if node not in self._checked]

    def setCheckState(self, node, state) -> None:
        wanted = state == Qt.CheckState.Checked
        if node in self._nodes() and wanted != (node in self._checked):
            chosen = [*self._checked, node] if wanted else [n for n in self._checked if n is not node]
            self._checked = [n for n in self._nodes() if n in chosen]
            self._notice()

    def check(self, node) -> None:
        self.setCheckState(node, Qt.CheckState.Checked)

    def uncheck(self, node) -> None:
        self.setCheckState(node, Qt.CheckState.Unchecked)
