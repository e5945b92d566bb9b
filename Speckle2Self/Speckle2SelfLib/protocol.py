"""Messages between the application and its processes, as dataclasses; each message is one JSON line. No torch here.

The despeckling process reads `REQUESTS` and writes `ANSWERS`; the training process writes `TrainingLine`s. A line that
does not fit its dataclass is refused, so no other code has to check types.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TypeVar

from .config import from_dict
from .system import InputError

LONGEST = 500  # characters of a message; a longer one is cut


#
# Messages to the despeckling process
#


@dataclass(frozen=True)
class Despeckle:
    """Despeckle the frames of a job. block, inode: its shared memory; options: a `config.DespeckleOptions` as a dict,
    in which the region "given" is the mask in that memory; uncertainty: whether it also has an array for that."""

    job: int
    shape: tuple[int, ...]
    dtype: str
    block: str
    inode: int
    options: dict
    uncertainty: bool = False


@dataclass(frozen=True)
class OpenStream:
    """Despeckle live frames, those after frame number `last`. The other fields are those of `Despeckle`."""

    stream: int
    shape: tuple[int, ...]
    dtype: str
    block: str
    inode: int
    options: dict
    last: int
    uncertainty: bool = False


@dataclass(frozen=True)
class Look:
    """Change the strength, gamma and caution of a stream."""

    stream: int
    strength: float
    gamma: float
    cautious: float = 0.0


@dataclass(frozen=True)
class Cancel:
    """Stop a job between two blocks of frames."""

    job: int


@dataclass(frozen=True)
class Stop:
    """Close a stream."""

    stream: int


@dataclass(frozen=True)
class Wake:
    """Look for new frames in the streams."""


#
# Messages from the despeckling process
#


@dataclass(frozen=True)
class Ready:
    """The process is running and reads requests."""

    pid: int


@dataclass(frozen=True)
class Devices:
    """The devices that the process can compute on, the best one first."""

    devices: tuple[str, ...]


@dataclass(frozen=True)
class Started:
    """The region of a job is known and its first block is being despeckled. mapping: the grey values that the model
    sees as 0 and 1."""

    job: int
    device: str
    precision: str
    mapping: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mapping) != 2:
            raise InputError(f"{self.mapping!r} are not two grey values.")


@dataclass(frozen=True)
class Progress:
    """`done` frames of a job are despeckled, `seconds` after it started."""

    job: int
    done: int
    seconds: float

    def __post_init__(self) -> None:
        if self.seconds < 0:
            raise InputError(f"{self.seconds} seconds is not a possible time.")


@dataclass(frozen=True)
class Done:
    """All frames of a job are despeckled."""

    job: int


@dataclass(frozen=True)
class Cancelled:
    """A job was stopped as requested."""

    job: int


@dataclass(frozen=True)
class Opened:
    """A stream accepts frames."""

    stream: int
    device: str
    precision: str


@dataclass(frozen=True)
class Frame:
    """Frame `number` of a stream is despeckled; it took `seconds`."""

    stream: int
    number: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Failed:
    """A job or a stream ended; the message is one sentence for the user."""

    message: str
    job: int | None = None
    stream: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", self.message[:LONGEST])


Request = Despeckle | OpenStream | Look | Cancel | Stop | Wake
Answer = Ready | Devices | Started | Progress | Done | Cancelled | Opened | Frame | Failed
Message = TypeVar("Message", Request, Answer)
REQUESTS: dict[str, type[Request]] = {
    "despeckle": Despeckle, "stream": OpenStream, "look": Look, "cancel": Cancel, "stop": Stop, "wake": Wake,
}  # fmt: skip
ANSWERS: dict[str, type[Answer]] = {
    "ready": Ready, "devices": Devices, "started": Started, "progress": Progress, "done": Done, "cancelled": Cancelled,
    "open": Opened, "frame": Frame, "failed": Failed,
}  # fmt: skip
TYPE: dict[type, tuple[str, str]] = {kind: ("command", name) for name, kind in REQUESTS.items()}
TYPE |= {kind: ("event", name) for name, kind in ANSWERS.items()}


def encode(message: Request | Answer) -> dict:
    """Return a message as JSON types: its name, as `command` of a request or `event` of an answer, and its fields."""
    key, kind = TYPE[type(message)]
    return {key: kind, **{name: value for name, value in asdict(message).items() if value is not None}}


def decode_request(line: str | bytes | dict) -> Request:
    """Return the request in a JSON line, or in its dict. Raises InputError for anything else."""
    return _decode(REQUESTS, "command", line)


def decode_answer(line: str | bytes | dict) -> Answer:
    """Return the answer in a JSON line, or in its dict. Raises InputError for anything else."""
    return _decode(ANSWERS, "event", line)


def _decode(kinds: dict[str, type[Message]], key: str, line: str | bytes | dict) -> Message:
    values = dict(line) if isinstance(line, dict) else parse(line)
    name = values.pop(key, None)
    if not isinstance(name, str) or name not in kinds:
        raise InputError(f"There is no {key} {name!r:.100}.")
    return from_dict(kinds[name], values)


def parse(line: str | bytes) -> dict:
    """Return the JSON object in a line. Raises InputError if there is none."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"Not a message: {line[:80]!r}.") from error
    if not isinstance(values, dict):
        raise InputError(f"Not a message: {line[:80]!r}.")
    return values


#
# Messages from the training process
#


@dataclass(frozen=True)
class TrainingLine:
    """One line of `train --listen`; entries that the line does not have are None.

    from_step: the step at which the run begins or resumes; the line holds its settings. simulated: of `anatomies`, how
    many are simulated. step: the line is the report of this step. message: a sentence for the user. estimate: time and
    memory of the run.
    """

    values: dict  # the whole line
    from_step: int | None = None
    simulated: int | None = None
    anatomies: int | None = None
    step: int | None = None
    message: str | None = None
    estimate: dict | None = None

    def __post_init__(self) -> None:
        if (self.anatomies is None) != (self.simulated is None):
            raise InputError("A line counts anatomies without their total.")


def training_line(values: dict) -> TrainingLine:
    """Return a line of the training process. Raises InputError where one of its entries has the wrong type."""
    names = ["from_step", "step", "message", "estimate", *(("simulated", "anatomies") if "anatomies" in values else ())]
    return from_dict(TrainingLine, {"values": values, **{name: values[name] for name in names if name in values}})
