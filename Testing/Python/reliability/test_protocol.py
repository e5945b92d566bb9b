"""Messages between the processes: valid ones arrive unchanged, and no others are accepted."""

import json
from dataclasses import asdict, fields

import pytest

from Speckle2SelfLib import protocol
from Speckle2SelfLib.config import DespeckleOptions
from Speckle2SelfLib.system import InputError

OPTIONS = asdict(DespeckleOptions(strength=0.5, region="given"))
REQUESTS = [
    protocol.Despeckle(1, (3, 24, 32), "|u1", "/proc/1/fd/3", 7, OPTIONS),
    protocol.OpenStream(2, (24, 32), "|u1", "name", 0, OPTIONS, 0),
    protocol.Look(2, 0.5, 1.0), protocol.Cancel(1), protocol.Stop(2), protocol.Wake(),
]  # fmt: skip
ANSWERS = [
    protocol.Ready(5), protocol.Devices(("cuda", "cpu")), protocol.Started(1, "cpu", "float32", (0.0, 255.0)),
    protocol.Progress(1, 2, 0.5), protocol.Done(1), protocol.Cancelled(1), protocol.Opened(2, "cpu", "float32"),
    protocol.Frame(2, 3, 0.1), protocol.Failed("It broke.", job=1), protocol.Failed("It broke.", stream=2),
]  # fmt: skip


def through_json(message):
    return json.dumps(protocol.encode(message))


def normalized(message):
    """Tuples become lists in JSON, and compare unequal to them."""
    return json.loads(json.dumps(asdict(message)))


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda message: type(message).__name__)
def test_a_request_arrives_unchanged(request_):
    received = protocol.decode_request(through_json(request_))
    assert type(received) is type(request_) and normalized(received) == normalized(request_)


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda message: type(message).__name__)
def test_an_answer_arrives_unchanged(answer):
    received = protocol.decode_answer(through_json(answer))
    assert type(received) is type(answer) and normalized(received) == normalized(answer)


def test_every_message_is_tested_here():
    assert {type(message) for message in REQUESTS} == set(protocol.REQUESTS.values())
    assert {type(message) for message in ANSWERS} == set(protocol.ANSWERS.values())


def test_a_request_carries_every_option_of_despeckling():
    received = protocol.decode_request(through_json(REQUESTS[0]))
    assert set(received.options) == {each.name for each in fields(DespeckleOptions)}


@pytest.mark.parametrize(
    "line",
    [
        "", "null", "[]", "{}", "[" * 100_000, "hello", '{"event": null}', '{"event": ["done"]}', '{"event": "Done"}',
        '{"event": "done"}', '{"event": "done", "job": "1"}', '{"event": "done", "job": true}',
        '{"event": "done", "job": 1, "extra": 2}', '{"event": "progress", "job": 1, "done": 1, "seconds": 1e999}',
        '{"event": "progress", "job": 1, "done": 1, "seconds": -1}', '{"event": "cancel", "job": 1}',
        '{"event": "started", "job": 1, "device": "cpu", "precision": "", "mapping": [1]}',
        '{"event": "started", "job": 1, "device": "cpu", "precision": "", "mapping": [1, NaN]}',
        '{"event": "failed", "job": 1, "message": [1]}', '{"event": "devices", "devices": "cpu"}',
    ],
)  # fmt: skip
def test_a_message_that_is_not_an_answer_is_refused(line):
    with pytest.raises(InputError):
        protocol.decode_answer(line)


def test_a_long_message_for_the_user_is_cut():
    assert len(protocol.decode_answer({"event": "failed", "job": 1, "message": "x" * 10_000}).message) == 500


@pytest.mark.parametrize(
    "values", [{"step": "?"}, {"from_step": 1.5}, {"message": 3}, {"anatomies": 4}, {"estimate": []}, {"step": True}]
)
def test_a_training_line_with_an_entry_of_the_wrong_type_is_refused(values):
    with pytest.raises(InputError):
        protocol.training_line(values)


def test_a_training_line_has_its_kind_and_keeps_its_other_entries():
    report = protocol.training_line({"step": 3, "steps": 9, "truth": 0.5, "simulated": 0.25})
    assert (report.step, report.simulated, report.values["simulated"]) == (3, None, 0.25), "a term of the loss"
    assert protocol.training_line({"simulated": 3, "anatomies": 9}).anatomies == 9
