"""Where networks run: what is recorded on a GPU, told by a stand-in for one; the device itself is in `test_cuda.py`."""

from types import SimpleNamespace

import pytest
import torch

from Speckle2SelfLib import devices
from Speckle2SelfLib.system import InputError


class Recorded:
    """In place of CUDA graphs: what was recorded, and when streams waited for one another."""

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

    made = devices.Replayed(double, **options)
    made._record = gpu.record(made)
    return made, calls


def test_a_shape_is_recorded_when_it_comes_again(gpu):
    run, calls = replayed(gpu)
    for number in range(4):
        x = torch.full((1, 3), float(number))
        assert torch.equal(run(x), 2 * x)
    assert calls == [(1, 3)] and gpu.shapes == [(1, 3)]


def test_no_more_is_kept_than_was_allowed_and_the_latest_is(gpu):
    run, calls = replayed(gpu, most=10)
    for size in (4, 4, 5, 5, 4, 3, 3, 5, 5, 12, 12):
        assert torch.equal(run(torch.ones(size)), torch.full((size,), 2.0))
    assert gpu.shapes == [(4,), (5,), (3,), (5,)], "3 took the place of 5, the least recent one; 12 is too large"
    assert calls.count((12,)) == 2 and "first is waited for" in gpu.events


def test_without_a_limit_as_many_shapes_as_training_may_have(gpu):
    run, _ = replayed(gpu)
    for size in [*range(1, devices.SHAPES + 2)] * 2:
        run(torch.ones(size))
    assert not gpu.shapes, "each was gone when it came again"
    run(torch.ones(devices.SHAPES + 1))
    assert gpu.shapes == [(devices.SHAPES + 1,)]


def test_a_stream_waits_for_the_one_that_had_the_inputs_before(gpu):
    run, _ = replayed(gpu)
    for _ in range(3):
        run(torch.ones(2))
    assert not gpu.events
    gpu.stream = gpu.of("second")
    run(torch.ones(2))
    run(torch.ones(2))
    assert gpu.events == ["second waits for first"]


@pytest.mark.parametrize("parameters", [(), (torch.nn.Parameter(torch.zeros(1)),)])
def test_what_cannot_be_recorded_is_run(gpu, parameters):
    run, calls = replayed(gpu, parameters=parameters)
    gpu.error = RuntimeError("no graphs here")
    run(torch.ones(2))
    with pytest.warns(UserWarning, match="no graphs here"):
        assert torch.equal(run(torch.ones(2)), torch.full((2,), 2.0))
    run(torch.ones(2))
    assert len(calls) == 3 and not gpu.shapes, "it is not tried again"


def test_where_memory_is_short_for_a_recording_it_is_run_and_tried_again(gpu):
    run, calls = replayed(gpu)
    gpu.error = RuntimeError("CUDA out of memory")
    for _ in range(2):
        run(torch.ones(2))
    gpu.error = None
    for _ in range(3):
        run(torch.ones(2))
    assert len(calls) == 3 and gpu.shapes == [(2,)]


def test_gradients_are_those_of_the_recording(gpu):
    weight = torch.nn.Parameter(torch.zeros(1))
    run, _ = replayed(gpu, parameters=[weight])
    for _ in range(2):
        run(torch.ones(2))
    assert torch.equal(weight.grad, torch.ones(1))


def test_a_device_that_is_not_there_is_refused():
    assert devices.choose_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match=r"There is no device 'cuda:7' here; there is .*cpu"):
        devices.choose_device("cuda:7")
