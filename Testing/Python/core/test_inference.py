"""Fast networks match the networks as written; CUDA graphs are tested with a stand-in for the device.

The device itself is in `test_cuda.py`.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from Speckle2SelfLib import inference
from Speckle2SelfLib.checkpoint import Model
from Speckle2SelfLib.config import ModelConfig
from Speckle2SelfLib.despeckling import despeckle
from Speckle2SelfLib.inference import accelerate, fast_network, through_network
from Speckle2SelfLib.library import load_model
from Speckle2SelfLib.network import (
    UNSURE,
    FastNetwork,
    NormalisedConvolution,
    SpeckleReductionNetwork,
    build,
    equal_neighbors,
)

CPU = torch.device("cpu")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def cine(rng):
    return rng.integers(20, 220, (4, 40, 48)).astype(np.uint8)


@pytest.mark.parametrize("architecture", ["fast", "published"])
def test_the_fast_form_matches_the_network_as_written(network, architecture):
    torch.manual_seed(1)
    network = network if architecture == "fast" else SpeckleReductionNetwork(1).eval()
    frames = torch.rand(2, 1, 96, 64)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.inference_mode():
        written = network(frames)
        fast = fast_network(Model(ModelConfig(architecture, width=8, scales=1), network), CPU, torch.float32)(frames)
    assert fast.shape == written.shape == (2, 1, 96, 64) and fast.dtype == torch.float32
    assert (fast - written).abs().max() < 1e-4 * written.std() and written.std() > 0.005
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def with_heads(deep, equality=False, blocks=1):
    """Return a model of random weights with a deeper level and a head for the uncertainty."""
    torch.manual_seed(3)
    config = ModelConfig(width=8, deep=deep, blocks=blocks, uncertainty=True, equality=equality)
    network = build(config).eval()
    for name, parameter in network.named_parameters():
        torch.nn.init.normal_(parameter, std=0.5 if name.startswith("uncertainty") else 0.1)
    return Model(config, network)


@pytest.mark.parametrize("precision, close", [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize(
    "deep, equality, blocks", [(0, False, 1), (1, False, 1), (2, False, 1), (1, True, 1), (1, False, 2)]
)
def test_one_fast_pass_returns_the_grey_value_and_its_uncertainty(deep, equality, blocks, precision, close):
    model, frames = with_heads(deep, equality, blocks), torch.randint(0, 4, (2, 1, 96, 64)) / 3
    with torch.inference_mode():
        grey, log_deviation = model.network.maps(frames)
        both = fast_network(model, CPU, precision, uncertainty=True)(frames)
        only = fast_network(model, CPU, precision)(frames)
    assert both.shape == (2, 2, 96, 64) and log_deviation.std() > 0.01
    assert (both[:, :1] - grey).abs().max() < close
    assert (both[:, 1:].log() - log_deviation).abs().max() < 10 * close
    assert torch.equal(only, both[:, :1]), "the grey value does not depend on whether the uncertainty is asked for"


def test_only_exactly_equal_neighbors_count():
    x = torch.tensor([[5.0, 5.0, 5.0, 5.0], [1.0, 2.0, 3.0, 5.0], [1.0, 5.000001, 4.0, 6.0]])[None, None]
    expected = torch.tensor([[1, 2, 3, 2], [1, 0, 0, 2], [1, 0, 0, 0]])
    assert torch.equal(equal_neighbors(x)[0, 0] * 8, expected.float())


def test_the_deepest_level_and_further_blocks_have_no_effect_at_first():
    torch.manual_seed(0)
    deep, frames = FastNetwork(8, deep=1, uncertainty=True, blocks=3), torch.rand(1, 1, 64, 64)
    shallow = FastNetwork(8)
    shallow.load_state_dict(
        {name: tensor for name, tensor in deep.state_dict().items() if name in shallow.state_dict()}
    )
    with torch.inference_mode():
        grey, log_deviation = deep.maps(frames)
        assert torch.equal(grey, shallow(frames))
    assert torch.allclose(log_deviation.exp(), torch.tensor(UNSURE)), "and the head with one value everywhere"


@pytest.mark.parametrize("deep", [0, 1, 2])
def test_tiles_of_several_maps_match_the_whole_frame(deep):
    network = fast_network(with_heads(deep), CPU, torch.float32, uncertainty=True)
    x = torch.rand(1, 1, 300, 331, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole, tiles = through_network(network, x, tile=4096), through_network(network, x, tile=64)
    assert whole.shape == (1, 2, 300, 331)
    assert ((whole - tiles).abs().amax((0, 2, 3)) < whole.std((0, 2, 3)) / 20).all()


@pytest.mark.parametrize("deep, blocks", [(0, 1), (1, 1), (0, 2), (1, 2)])
def test_no_pixel_beyond_the_margin_matters_to_any_map(deep, blocks):
    network = with_heads(deep, blocks=blocks).network
    size = 2 * network.margin + 64
    x = torch.rand(1, 1, size, 32, generator=torch.Generator().manual_seed(1))
    for changed in (size // 2 - network.margin - 2, size // 2 + network.margin + 2):
        y = x.clone()
        y[:, :, changed] += 1
        with torch.inference_mode():
            for one, other in zip(network.maps(x), network.maps(y), strict=True):
                assert torch.equal(one[:, :, size // 2], other[:, :, size // 2])
                assert not torch.equal(one[:, :, changed], other[:, :, changed])


@pytest.mark.parametrize("sixteen", [False, True])
def test_the_fast_normalization_is_instance_normalization_also_in_training(sixteen):
    torch.manual_seed(0)
    frames, slopes, found = torch.randn(3, 4, 20, 24), torch.randn(3, 8, 20, 24), []
    frames[1] *= 7
    layer = NormalisedConvolution(torch.nn.Conv2d(4, 8, 3, padding=1))
    for fast in (False, True):
        layer = accelerate(layer) if fast else layer
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=sixteen and fast):
            output = layer(frames)
        (output.float() * slopes).mean().backward()
        with torch.inference_mode():
            found.append((output.detach().float(), layer.conv.weight.grad.clone(), layer(frames)))
    (exact, slope, plain), (near, slope_near, grouped) = found
    assert (near - exact).square().mean().sqrt() < (0.01 if sixteen else 1e-5)
    assert (slope_near - slope).norm() < (0.1 if sixteen else 1e-4) * slope.norm()
    assert (grouped - plain).abs().max() < 1e-4


@pytest.mark.parametrize("fast", [True, False])
def test_tiles_match_the_whole_frame(network, fast):
    network = fast_network(Model(ModelConfig(width=8), network), CPU, torch.float32) if fast else network
    x = torch.rand(1, 1, 300, 331, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole, tiles = through_network(network, x, tile=4096), through_network(network, x, tile=64)
    assert (whole - tiles).abs().max() < whole.std() / 20


def test_no_pixel_beyond_the_margin_matters(network):
    size = 2 * network.margin + 64
    x = torch.rand(1, 1, size, size, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    middle = size // 2
    network(x)[0, 0, middle, middle].backward()
    rows = torch.nonzero(x.grad[0, 0].abs().sum(1))
    assert middle - network.margin <= rows.min() and rows.max() <= middle + network.margin
    assert rows.max() - rows.min() > network.margin


def _without_instructions_for_16_bits(monkeypatch):
    convolve, pack = inference._CONVOLVE, torch.ops.mkldnn._reorder_convolution_weight

    def refusing(operation):
        def refuse(x, *rest):
            assert x.dtype != torch.bfloat16, "oneDNN refuses this on such a processor"
            return operation(x, *rest)

        return refuse

    monkeypatch.setattr(inference, "_IN_16_BITS", False)
    monkeypatch.setattr(inference, "_CONVOLVE", refusing(convolve))
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_convolution_weight", refusing(pack))


@pytest.mark.parametrize("instructions", ["this processor's", "none for 16 bits"])
def test_bfloat16_and_float32_agree(rng, network, monkeypatch, instructions):
    if instructions != "this processor's":
        _without_instructions_for_16_bits(monkeypatch)
    frames = rng.uniform(0, 255, (1, 64, 64)).astype(np.float32)
    model = Model(ModelConfig(width=8), network)
    one, two = (despeckle(frames, model, region=None, precision=p) for p in (torch.float32, torch.bfloat16))
    assert np.abs(one - two).max() < 0.02 * 255


def test_weights_that_training_has_changed_are_used_at_once(cine):
    model, options = Model(ModelConfig(width=8), FastNetwork(8)), {"region": None, "precision": torch.float32}
    before = despeckle(cine, model, **options)
    optimizer = torch.optim.Adam(model.network.parameters(), lr=0.1)
    model.network(torch.rand(1, 1, 32, 32)).sum().backward()
    optimizer.step()
    after = despeckle(cine, model, **options)
    assert np.array_equal(after, despeckle(cine, Model(model.config, model.network), **options))
    assert not np.array_equal(after, before)


def test_half_precision_is_used_only_where_its_results_agree(network, monkeypatch, caplog):
    sixteen, cpu = torch.bfloat16, torch.device("cpu")
    monkeypatch.setattr(inference, "choose_precision", lambda device: sixteen)
    assert inference.precision_of(load_model("default"), cpu) == sixteen
    weights = {name: weight * 3e38 for name, weight in network.state_dict().items()}  # makes its output NaN
    broken = FastNetwork(8).eval()
    broken.load_state_dict(weights)
    assert inference.precision_of(Model(ModelConfig(width=8), broken), cpu) == torch.float32
    assert "single precision is used" in caplog.text


class Recorded:
    """A stand-in for CUDA graphs that keeps what was recorded and when streams waited for each other."""

    def __init__(self, monkeypatch):
        self.shapes, self.events, self.error = [], [], None
        self.stream = self.of("first")
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.stream)

    def of(self, name):
        return SimpleNamespace(
            name=name,
            wait_stream=lambda other: self.events.append(f"{name} waits for {other.name}"),
            synchronize=lambda: self.events.append(f"{name} is waited for"),
        )

    def record(self, replayed):
        def record(inputs):
            if self.error:
                raise self.error
            self.shapes.append(tuple(inputs[0].shape))
            given = [x.clone() for x in inputs]
            made = torch.empty_like(inputs[0])
            graph = SimpleNamespace(replay=lambda: made.copy_(given[0] * 2))
            return graph, given, made, [torch.ones(1) for _ in replayed.parameters]

        return record


@pytest.fixture
def gpu(monkeypatch):
    return Recorded(monkeypatch)


def replayed(gpu, **options):
    calls = []

    def double(x):
        calls.append(tuple(x.shape))
        return x * 2

    made = inference.Replayed(double, **options)
    made._record = gpu.record(made)
    return made, calls


def test_a_shape_is_recorded_the_second_time_it_occurs(gpu):
    run, calls = replayed(gpu)
    for number in range(4):
        x = torch.full((1, 3), float(number))
        assert torch.equal(run(x), 2 * x)
    assert calls == [(1, 3)] and gpu.shapes == [(1, 3)]


def test_only_the_allowed_number_of_the_latest_graphs_is_kept(gpu):
    run, calls = replayed(gpu, limit=10)
    for size in (4, 4, 5, 5, 4, 3, 3, 5, 5, 12, 12):
        assert torch.equal(run(torch.ones(size)), torch.full((size,), 2.0))
    assert gpu.shapes == [(4,), (5,), (3,), (5,)], "3 replaced 5, the least recent one; 12 is too large"
    assert calls.count((12,)) == 2 and "first is waited for" in gpu.events


def test_without_a_limit_training_may_record_any_number_of_shapes(gpu):
    run, _ = replayed(gpu)
    for size in [*range(1, inference.SHAPES + 2)] * 2:
        run(torch.ones(size))
    assert not gpu.shapes, "each was gone when it came again"
    run(torch.ones(inference.SHAPES + 1))
    assert gpu.shapes == [(inference.SHAPES + 1,)]


def test_a_stream_waits_for_the_previous_user_of_the_inputs(gpu):
    run, _ = replayed(gpu)
    for _ in range(3):
        run(torch.ones(2))
    assert not gpu.events
    gpu.stream = gpu.of("second")
    run(torch.ones(2))
    run(torch.ones(2))
    assert gpu.events == ["second waits for first"]


@pytest.mark.parametrize("parameters", [(), (torch.nn.Parameter(torch.zeros(1)),)])
def test_operations_that_cannot_be_recorded_are_run(gpu, parameters):
    run, calls = replayed(gpu, parameters=parameters)
    gpu.error = RuntimeError("no graphs here")
    run(torch.ones(2))
    with pytest.warns(UserWarning, match="no graphs here"):
        assert torch.equal(run(torch.ones(2)), torch.full((2,), 2.0))
    run(torch.ones(2))
    assert len(calls) == 3 and not gpu.shapes, "it is not tried again"


def test_without_memory_for_a_recording_the_operations_run_and_it_is_tried_again(gpu):
    run, calls = replayed(gpu)
    gpu.error = RuntimeError("CUDA out of memory")
    for _ in range(2):
        run(torch.ones(2))
    gpu.error = None
    for _ in range(3):
        run(torch.ones(2))
    assert len(calls) == 3 and gpu.shapes == [(2,)]


def test_gradients_equal_those_of_the_recording(gpu):
    weight = torch.nn.Parameter(torch.zeros(1))
    run, _ = replayed(gpu, parameters=[weight])
    for _ in range(2):
        run(torch.ones(2))
    assert torch.equal(weight.grad, torch.ones(1))
