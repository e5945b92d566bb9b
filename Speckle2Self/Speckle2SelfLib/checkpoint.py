"""Read and write models: weights and config in one safe file (safetensors); the authors' .pth files can be read.
Nothing is unpickled."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from .config import ModelConfig, from_dict, to_dict
from .network import SpeckleReductionNetwork, build
from .system import FilePath, InputError, replace_file

FORMAT = "speckle2self-1"
STATE_FORMAT = "speckle2self-run-2"
PRECISIONS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # data types that weights in a file may have


@dataclass(frozen=True, eq=False)  # a copy is not equal to its original, because its weights may change
class Model:
    """A network with its config and card."""

    config: ModelConfig
    network: torch.nn.Module
    card: dict = field(default_factory=dict)

    @property
    def resamples(self) -> bool:
        """Return whether recordings are resampled to a speckle grain of the model, so that their own must be
        measured."""
        return self.config.grain is not None


def save(path: FilePath, config: ModelConfig, network: torch.nn.Module, card: dict) -> None:
    """Write weights, config and card (JSON types, numbers finite) to `path`, whole or not at all."""
    metadata = {"format": FORMAT, "config": json.dumps(to_dict(config)), "card": json.dumps(card, allow_nan=False)}
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    replace_file(path, to_bytes(weights, metadata))


def save_state(path: FilePath, tensors: dict[str, torch.Tensor], values: dict) -> None:
    """Write an unfinished training run, whole or not at all.

    See `training.Training.state`; `values` are JSON types, their numbers finite.
    """
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    replace_file(path, to_bytes(weights, {"format": STATE_FORMAT, "values": json.dumps(values, allow_nan=False)}))


def load_state(path: FilePath) -> tuple[dict[str, torch.Tensor], dict]:
    """Return the tensors and values that `save_state` wrote. Raises InputError for a damaged file or one of another
    kind."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != STATE_FORMAT:
                raise InputError(f"{path} is not an unfinished training run of this version.")
            values = json.loads(metadata["values"])
            if not isinstance(values, dict):
                raise InputError(f"{path} is damaged: its values have no names.")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except InputError:
        raise
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}.") from error
    if not all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in tensors.values()):
        raise InputError(f"{path} is damaged: it holds weights that are not finite or not in single precision.")
    return tensors, values


def load(path: FilePath) -> tuple[ModelConfig, torch.nn.Module, dict]:
    """Return config, network (evaluation mode, CPU) and card of a model file, ours or the authors'.

    The authors' state dicts may have all three encoders, or only the full-scale half. Raises InputError for anything
    else: other files, other networks, truncated or newer files.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file.")
    with path.open("rb") as file:
        head = file.read(10)
    ours = len(head) == 10 and head[8:9] == b"{"
    config, weights, card = _read_ours(path) if ours else _read_authors(path)
    network = build(config)
    own_weights = network.state_dict()
    wrong = set(weights) ^ set(own_weights) or {n for n in own_weights if weights[n].shape != own_weights[n].shape}
    if wrong:
        raise InputError(f"{path} does not hold the network it claims to: {len(wrong)} tensors differ.")
    if not all(_is_usable(tensor) and tensor.isfinite().all() for tensor in weights.values()):
        raise InputError(f"{path} holds weights that are not finite numbers.")
    network.load_state_dict(weights)
    return config, network.eval(), card


def _is_usable(tensor: torch.Tensor) -> bool:
    """Return whether a tensor from a file holds usable numbers: not sparse, quantized or empty."""
    return tensor.dtype in PRECISIONS and tensor.layout == torch.strided and tensor.device.type == "cpu"


def _check_card(card: Any) -> dict:
    """Return a model's card if all entries in use have the expected types. Raises ValueError."""
    if not isinstance(card, dict):
        raise ValueError("its card has no entries")
    kinds: dict[str, type] = {"description": str, "start": str, "curve": list}
    kinds |= dict.fromkeys(("training", "figures", "figures_at_start"), dict)
    for name in set(kinds) & set(card):
        if not isinstance(card[name], kinds[name]):
            raise ValueError(f"'{name}' in its card is not a {kinds[name].__name__}")
    for name in {"figures", "figures_at_start"} & set(card):
        card[name] = {figure: value for figure, value in card[name].items() if value is not None}  # was not a number
        if not all(type(value) in (int, float) for value in card[name].values()):
            raise ValueError(f"'{name}' in its card does not consist of numbers")
    json.dumps(card, allow_nan=False)  # 1e999 is read as infinite
    return card


def _read_ours(path: Path) -> tuple[ModelConfig, dict[str, torch.Tensor], dict]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                file_format = metadata.get("format", "no format at all")
                raise InputError(f"{path} is not a model of this version: expected {FORMAT}, found {file_format}.")
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
        config = from_dict(ModelConfig, json.loads(metadata["config"]))
        return config, weights, _check_card(json.loads(metadata["card"], parse_constant=lambda _: None))
    except InputError:
        raise
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}.") from error


def _read_authors(path: Path) -> tuple[ModelConfig, dict[str, torch.Tensor], dict]:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the parser raises errors of many kinds
        raise InputError(f"{path} is not a model file (.safetensors of ours, or the authors' .pth).") from error
    if isinstance(weights, dict) and "state_dict" in weights:
        weights = weights["state_dict"]
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise InputError(f"{path} is not a state dict of the published network.")
    for scales in (3, 1):
        if set(weights) == set(SpeckleReductionNetwork(scales).state_dict()):
            config = ModelConfig(architecture="published", scales=scales, normalisation="frame")
            return config, weights, {"description": "Imported"}
    raise InputError(f"{path} does not hold the published network: it has {len(weights)} tensors of other names.")
