"""One safe model file: round trips, the authors' files, and everything that is not a model."""

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from Speckle2SelfLib import checkpoint
from Speckle2SelfLib.config import ModelConfig
from Speckle2SelfLib.network import SpeckleReductionNetwork, build
from Speckle2SelfLib.system import InputError


def test_a_file_older_than_the_heads_loads_as_a_network_without_them(tmp_path):
    config = ModelConfig(width=8)
    known = {"architecture": "fast", "width": 8, "scales": 3, "normalisation": "cine", "grain": None}
    metadata = {"format": checkpoint.FORMAT, "config": json.dumps(known), "card": "{}"}
    save_file(build(config).state_dict(), tmp_path / "old", metadata)
    found, network, _ = checkpoint.load(tmp_path / "old")
    assert found == config and network.deep is None and network.uncertainty is None


def test_a_model_with_heads_is_loaded_with_its_fitted_values(tmp_path):
    config = ModelConfig(width=8, deep=1, uncertainty=True, uncertainty_scale=1.25)
    checkpoint.save(tmp_path / "model", config, build(config), {})
    found, network, _ = checkpoint.load(tmp_path / "model")
    assert found == config and network.uncertainty is not None and len(network.deep) == 1
    with pytest.raises(InputError, match="head for the uncertainty"):
        ModelConfig("published", uncertainty=True)


def test_a_saved_model_is_loaded_with_its_config_and_card(tmp_path):
    config = ModelConfig(width=8, grain=(0.8, 1.6))
    network = build(config)
    checkpoint.save(tmp_path / "model.any", config, network, {"description": "test"})
    found, loaded, card = checkpoint.load(tmp_path / "model.any")
    assert found == config
    assert card == {"description": "test"}
    assert not loaded.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])
    assert [path.name for path in tmp_path.iterdir()] == ["model.any"]


@pytest.mark.parametrize("scales", [3, 1])
def test_the_authors_state_dicts_are_imported_in_full_or_in_half(tmp_path, scales):
    network = SpeckleReductionNetwork(scales)
    torch.save(network.state_dict(), tmp_path / "authors.pth")
    config, loaded, _ = checkpoint.load(tmp_path / "authors.pth")
    assert (config.architecture, config.scales, config.normalisation) == ("published", scales, "frame")
    frame = torch.rand(1, 1, 32, 32)
    assert torch.equal(loaded(frame), network.eval()(frame))


class Malicious:
    def __reduce__(self):
        return (open, ("malicious", "w"))


class Cast:
    """A network whose weights are of a type that none has."""

    def __init__(self, config, kind):
        self.weights = {name: tensor.to(kind) for name, tensor in build(config).state_dict().items()}

    def state_dict(self):
        return self.weights


def write_wrong_file(kind, path):
    config = ModelConfig(width=8)
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is not a model, it only looks like one")
    elif kind == "truncated":
        checkpoint.save(path, config, build(config), {})
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "truncated pth":
        torch.save(SpeckleReductionNetwork(1).state_dict(), path)
        path.write_bytes(path.read_bytes()[:-1000])
    elif kind == "malicious":
        path.write_bytes(pickle.dumps(Malicious()))
    elif kind == "other network":
        torch.save({"conv.weight": torch.zeros(3, 3)}, path)
    elif kind == "other tensors":
        torch.save({"a": 1}, path)
    elif kind == "foreign safetensors":
        save_file({"weight": torch.zeros(2)}, path)
    elif kind == "wrong width":
        checkpoint.save(path, config, build(ModelConfig(width=16)), {})
    elif kind in ("sparse pth", "quantised pth", "meta pth", "complex pth", "huge pth"):
        weights = SpeckleReductionNetwork(1).state_dict()
        name, tensor = next(iter(weights.items()))
        weights[name] = {
            "sparse pth": tensor.to_sparse(),
            "quantised pth": torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
            "meta pth": tensor.to("meta"),
            "complex pth": tensor.to(torch.complex64),
            "huge pth": torch.zeros(1).as_strided((60000, 60000, 100), (0, 0, 0)),
        }[kind]
        torch.save(weights, path)
    elif kind in ("float8", "int8", "complex"):
        kinds = {"float8": torch.float8_e4m3fn, "int8": torch.int8, "complex": torch.complex64}
        checkpoint.save(path, config, Cast(config, kinds[kind]), {})
    elif kind == "not finite":
        network = build(config)
        network.head.bias.data[0] = float("nan")
        checkpoint.save(path, config, network, {})


@pytest.mark.parametrize(
    "kind",
    ["missing", "empty", "text", "truncated", "truncated pth", "malicious", "other network", "other tensors",
     "foreign safetensors", "wrong width", "not finite", "sparse pth", "quantised pth", "meta pth", "complex pth",
     "huge pth", "float8", "int8", "complex"],
)  # fmt: skip
def test_a_wrong_file_is_refused_in_one_sentence_and_runs_nothing(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    write_wrong_file(kind, tmp_path / "wrong.pth")
    with pytest.raises(InputError) as error:
        checkpoint.load(tmp_path / "wrong.pth")
    assert "\n" not in str(error.value)
    assert str(tmp_path / "wrong.pth") in str(error.value)
    assert not (tmp_path / "malicious").exists()


def test_a_model_is_not_written_into_a_missing_folder(tmp_path):
    config = ModelConfig(width=8)
    with pytest.raises(InputError, match="cannot be written"):
        checkpoint.save(tmp_path / "nowhere" / "model", config, build(config), {})
