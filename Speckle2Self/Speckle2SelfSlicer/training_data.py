"""Turn nodes and files into the recordings, masks and settings of a training run."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from slicer import vtkMRMLNode
from slicer.i18n import tr as _

from Speckle2SelfLib import library
from Speckle2SelfLib.config import Job
from Speckle2SelfLib.system import InputError

from . import regions, scene
from .run_files import all_equal
from .session import Session


@dataclass(frozen=True)
class TrainingData:
    """The data of a run. recordings, heldOut: frames (N, H, W[, C]) each, not read yet; regions: a mask (H, W) bool of
    each recording and then of each one held out, or none; name: the model's name, or None; title: the name of the
    first recording; nodes: the nodes in the scene, held-out ones first."""

    job: Job
    recordings: list[scene.Frames]
    heldOut: list[scene.Frames]
    regions: list[np.ndarray]
    name: str | None
    title: str
    nodes: list[vtkMRMLNode]


def gather(
    session: Session, nodes: Any, *, preset: str = "adapt", name: str | None = None, heldOut: Any = (),
    recipe: str | None = None, init: str | Path | None = None, steps: int | None = None, minutes: float | None = None,
    region: Any = "auto", device: str = "auto", seed: int = 0, **unknown: Any,
) -> TrainingData:  # fmt: skip
    """Return the data and settings of a run; for the arguments see `SpeckleTrainLogic.start`. Raises InputError."""
    if unknown:
        known = [each.name for each in inspect.signature(gather).parameters.values() if each.kind is each.KEYWORD_ONLY]
        words = _("'{name}' is not an argument here; use {known}.")
        raise InputError(words.format(name=next(iter(unknown)), known=", ".join(known)))
    steps, minutes, seed = _number("steps", steps, int), _number("minutes", minutes, float), _number("seed", seed, int)
    nodes = _listed(nodes)
    files = [node for node in nodes if isinstance(node, Path)]
    nodes = _recordingNodes(node for node in nodes if not isinstance(node, Path))
    heldOut = _recordingNodes(_listed(heldOut))
    if not nodes and not files:
        raise InputError(_("There is nothing to train on: choose at least one volume or recording."))
    for path in files:
        if not path.exists():
            raise InputError(_("There is no file or folder {path}.").format(path=path))
    for node in nodes:
        if node in heldOut:
            raise InputError(_("'{node}' cannot be both trained on and held out.").format(node=node.GetName()))
    regions = _regions(session, [*nodes, *heldOut], region, files)
    if init is not None and str(init) not in library.models():
        if not Path(init).is_file():
            raise InputError(
                _("There is no model '{init}': neither a file nor one of the available models.").format(init=init)
            )
        init = str(Path(init).resolve())  # the run starts in its own folder
    job = Job("", inputs=[path.resolve() for path in files], preset=preset, recipe=recipe, init=init, steps=steps,
              minutes=minutes, region="auto" if regions else region, device=device, seed=seed,
              report=2 if preset == "adapt" else 10)  # fmt: skip
    recordings, heldOutFrames = ([scene.Recording.of(node).eachFrame() for node in some] for some in (nodes, heldOut))
    title = nodes[0].GetName() if nodes else files[0].stem
    return TrainingData(job, recordings, heldOutFrames, regions, name, title, [*heldOut, *nodes])


def _listed(nodes: Any) -> list:
    """Return nodes as a list, also if a single node is given."""
    return list(nodes) if isinstance(nodes, Iterable) and not isinstance(nodes, str) else [nodes]


def _number(name: str, value: Any, kind: type) -> Any:
    """Return an argument as a number, or None. Raises InputError."""
    try:
        return None if value is None else kind(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(_("{name} cannot be {value!r:.100}.").format(name=name, value=value)) from error


def _recordingNodes(nodes) -> list[vtkMRMLNode]:
    """Return the nodes, each once; a proxy stands for its sequence."""
    found = [scene.find(node) for node in nodes]
    if any(node is None or node.GetScene() is None for node in found):
        raise InputError(_("A chosen recording is no longer in the scene. Choose another."))
    return list(dict.fromkeys(scene.sequenceBehind(node) or node for node in found))


def _regions(session: Session, nodes: list[vtkMRMLNode], region: Any, files: list[Path]) -> list[np.ndarray]:
    """Return the pixels (H, W) bool of each node that a region covers; none for "auto" and "none"."""
    if isinstance(region, str) and region in ("auto", "none"):
        return []
    if not nodes:
        raise InputError(_("A region needs a recording in the scene. For files, choose 'auto' or 'none'."))
    regionNode = None if isinstance(region, str) and region == "given" else regions.find(region)
    masks = [session.region(node, regionNode) for node in nodes]
    if files and not all_equal(masks):
        raise InputError(_("The region is not the same in all recordings of the scene: train on the files separately."))
    return masks


def references(node: vtkMRMLNode, role: str) -> list[vtkMRMLNode]:
    """Return the nodes that a node refers to in a role."""
    found = (node.GetNthNodeReference(role, number) for number in range(node.GetNumberOfNodeReferences(role)))
    return [one for one in found if one is not None]
