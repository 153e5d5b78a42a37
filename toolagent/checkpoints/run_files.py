"""The JSON files of a run, a search and a checkpoint: one model each, to write and to read.

A file may come from anywhere. Reading one never takes more than a limit of bytes and of depth, and
what cannot be (a negative count, more solved than there are, a number without end) is refused with
the names of the file and the field. Other versions may write more fields; those are kept as they
are and not looked at.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)

from toolagent.errors import UserError, labelled
from toolagent.figures import FIGURES

LARGEST_FILE = 64 << 20  # bytes; of a file that is read as a whole
LARGEST_ROW = 1 << 20  # bytes; of a line of `progress.jsonl`
_LONGEST_FAULT = 160  # characters

Count = Annotated[int, Field(ge=0, lt=2**63)]
Stage = Annotated[int, Field(ge=0, lt=1000)]
Seconds = Annotated[float, Field(ge=0, lt=1e12)]
Rate = Annotated[float, Field(ge=0, lt=1e15)]  # a second
Share = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(gt=-1e39, lt=1e39)]  # any float32
_Found = Annotated[float | None, Field(gt=-1e39, lt=1e39)]
_Text = Annotated[str, Field(max_length=100_000)]
_Seed = Annotated[int, Field(gt=-(2**63), lt=2**63)]
_Sum = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class RunFile(BaseModel):
    """What one file holds, or a part of it."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow", allow_inf_nan=False)


Model = TypeVar("Model")
_reader = functools.cache(TypeAdapter)


# A run's folder ------------------------------------------------------------------------------


class Counts(RunFile):
    """How many problems are solved, of a stage or of a split of it."""

    problems: Annotated[int, Field(ge=1, lt=2**63)]
    solved: Count
    algebraically_valid: Share | None = None
    shortest: Share | None = None

    @model_validator(mode="after")
    def _not_more_than_there_are(self) -> Self:
        if self.solved > self.problems:
            raise ValueError(f"solved is {self.solved}, more than the {self.problems} problems")
        return self


class SummaryStage(Counts):
    """A stage in `summary.json`."""

    stage: Stage
    complete: bool = True  # these are all problems there are
    first_solved_env_steps: Count | None = None
    first_solved_s: Seconds | None = None
    mean_reward: Number | None = None
    other_splits: dict[str, Counts] = {}  # by name; in the file beside the fields above

    @model_validator(mode="before")
    @classmethod
    def _splits_apart(cls, values: Any) -> Any:
        """A field that is no other and holds counts, such as `held_out`, is of a split."""
        if not isinstance(values, dict):
            return values
        splits = {
            name: value
            for name, value in values.items()
            if name not in cls.model_fields and isinstance(value, dict) and "problems" in value
        }
        return {**values, "other_splits": splits}


class Summary(RunFile):
    """`summary.json`: what a run came to."""

    env_steps: Count
    wall_time_s: Seconds
    env_steps_per_s: Rate
    stopped_by: _Text
    stages: list[SummaryStage]


# `stopped_by`, in words.
STOPPED_BY = {
    "solved": "every stage of the curriculum is certified solved",
    "env_steps": "the limit of env steps is reached",
    "time": "the limit of training time is reached",
    "iterations": "the limit of iterations is reached",
    "taught": "the student has made all its updates",
    "interrupted": "interrupted",
}


class LastCheckpoint(RunFile):
    """Of `summary.json`, what is needed to find the run's checkpoint."""

    checkpoint: _Text | None = None


class ProgramRow(RunFile):
    """The greedy programs of one stage at one measurement (`rollouts.programs`)."""

    program: _Text
    share: Share
    distinct: Count = 0
    tools: dict[str, Share] = {}
    solved_length: Annotated[float, Field(ge=0, lt=1e6)] | None = None


# A field for each figure, so that it is checked; None where a row has none.
_fields: dict[str, Any] = {figure.name: (_Found, None) for figure in FIGURES}
_Figures: Any = create_model("_Figures", __base__=RunFile, **_fields)


class Row(_Figures):
    """A line of `progress.jsonl`: the figures, and what is no number of the iteration."""

    iteration: Count
    time_s: Seconds
    env_steps: Count
    env_steps_per_s: Rate
    stage: Stage
    next_stage: Stage
    curriculum_event: _Text | None = None
    measured: bool
    accuracy: dict[Stage, Share]
    accuracy_at_start: dict[Stage, Share] = Field(default_factory=dict)  # in the first row
    programs: dict[Stage, ProgramRow] = Field(default_factory=dict)


class BehaviourStage(RunFile):
    """How long the right programs of a stage are: `solved_in[n]` problems in n actions."""

    stage: Stage
    formula: _Text
    solved_in: Annotated[list[Count], Field(max_length=1000)]


class SampleStep(RunFile):
    """One action of a sample trajectory."""

    token: _Text
    probability: Share | None
    runner_up: _Text
    runner_up_probability: Share | None
    value: Number | None
    registers: dict[str, int | _Text | None]
    changed: list[_Text]
    reward: Number


class Sample(RunFile):
    """A sample trajectory."""

    stage: Stage
    problem: _Text
    target: int
    answer: int | None
    answered: bool
    solved: bool
    steps: list[SampleStep]


class Behaviour(RunFile):
    """`behaviour.json`: what the final greedy agent does."""

    stages: list[BehaviourStage]
    trajectories: list[Sample]


class Session(RunFile):
    """A session of a run in `environment.json`: what it ran on."""

    started: _Text
    command: list[_Text]
    commit: _Text | None
    python: _Text
    platform: _Text
    processor: _Text
    cores: Count
    memory_gib: Rate
    gpus: list[_Text]
    packages: dict[str, _Text]
    cluster: dict[str, Rate] = {}


class Environment(RunFile):
    """`environment.json`."""

    sessions: list[Session] = []


TrackerRecords = dict[str, _Text]  # `trackers.json`: which record is this run's, by tracker


# A checkpoint --------------------------------------------------------------------------------


_StageKey = Annotated[str, Field(pattern=r"^[0-9]{1,3}$")]
_EXACT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@dataclass
class FirstSolved:
    """When a stage was solved for the first time."""

    __pydantic_config__ = _EXACT

    env_steps: Count
    time_s: Seconds


@dataclass
class RunState:
    """Where a run stands: `run.json`. A version that knows other fields can't go on from it."""

    __pydantic_config__ = _EXACT

    iteration: Count = 0  # the latest, which may be under way
    env_steps: Count = 0
    time_s: Seconds = 0.0  # of training, over all sessions of a resumed run
    first_solved: dict[_StageKey, FirstSolved] = field(default_factory=dict)  # by stage
    faults: dict[str, Count] = field(default_factory=dict)  # name in `run.faults` -> count
    stopped_by: _Text | None = None  # as in `Outcome`, in the last checkpoint of a session
    under_way: bool = False  # the iteration is not finished
    phase: Count = 0  # 1: a student imitates what the agent solved
    uncertified: bool = False  # a signal ended certifying what the iteration had measured
    accuracy_at_start: dict[_StageKey, Share] = field(default_factory=dict)  # before any update

    def __post_init__(self) -> None:
        if self.finished_iterations < 0:
            raise ValueError("iteration 0 can't be under way")

    @property
    def finished_iterations(self) -> int:
        """Those that have a row in a progress that is continued."""
        return self.iteration - self.under_way


class ListedFile(RunFile):
    """A file of a checkpoint, as the manifest lists it."""

    bytes: Count
    sha256: _Sum


class Manifest(RunFile):
    """`manifest.json`, without its own sum."""

    format: int
    files: dict[str, ListedFile] = {}
    iteration: Count | None = None
    env_steps: Count | None = None
    accuracy: dict[Stage, Share] = {}
    phase: Count = 0  # as in `RunState`
    config_sha256: _Text | None = None


class Format(RunFile):
    """The version of a `policy.json`'s format, which is looked at first."""

    format: Any = None


class PolicyCard(RunFile):
    """`policy.json`; its `network` depends on the network's class, see `checkpoints.policy`."""

    task: _Text
    network: dict[str, Any]
    vocabulary: list[_Text] | None = None
    context_vocabulary: list[_Text] | None = None
    special_tokens: dict[str, int] | None = None
    env_steps: Count | None = None
    iteration: Count | None = None
    seed: _Seed | None = None
    stages: list[Counts] = []
    trained_stages: list[int] | None = None
    config_sha256: _Text | None = None
    weights_sha256: _Text | None = None
    toolagent_version: _Text | None = None
    created: _Text | None = None
    training_record: dict[str, Any] = {}


# Several runs --------------------------------------------------------------------------------


class SeedGroup(RunFile):
    """`seeds.json`: runs of one configuration (`base.yaml`), a folder a seed."""

    seeds: Annotated[list[_Seed], Field(min_length=1)]
    init_from: _Text | None = None

    def folders(self, group: Path) -> dict[int, Path]:
        """Where each seed's run is, or will be, in the group's folder."""
        return {seed: group / f"seed_{seed}" for seed in self.seeds}


# A search ------------------------------------------------------------------------------------


class SearchTrial(RunFile):
    """A trial in `summary.json` of a search, as far as a report shows it."""

    number: Count
    status: _Text
    settings: dict[str, Any]
    seed: _Seed | None = None  # where trials differ in it
    folder: _Text


class SearchSummary(RunFile):
    """`summary.json` of a search, as far as a resumed one and a report go on from it."""

    wall_time_s: Seconds
    trials: list[SearchTrial] = []


class TrialResult(RunFile):
    """A line of a trial's `result.json`, which Tune writes, as far as a report shows it."""

    training_iteration: Count
    env_steps: Count
    seconds: Seconds
    stage: Stage
    certified: bool
    accuracies: dict[str, Share] = {}  # by stage; in the file a field each, 'accuracy_stage_0'

    @model_validator(mode="before")
    @classmethod
    def _stages_together(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        begin = "accuracy_stage_"
        found = {k.removeprefix(begin): v for k, v in values.items() if k.startswith(begin)}
        return {**values, "accuracies": found}


# Reading and writing -------------------------------------------------------------------------


def read_file(file: Path, model: type[Model]) -> Model:
    """What a file holds.

    Raises:
        UserError: it is missing, too large, no JSON, or not what the model says.
    """
    return parsed(read_bytes(file), model, str(file))


def read_rows(file: Path) -> Iterator[Row]:
    """The rows of `progress.jsonl`, one after the other; a last line that a kill cut off, which
    has no end, is left out.

    Raises:
        UserError: a line can't be read or is no row, or iterations or env steps go back.
    """
    before = None
    with _opened(file) as lines:
        number = 0
        while line := lines.readline(LARGEST_ROW + 1):
            number += 1
            if len(line) > LARGEST_ROW:
                raise UserError(f"{file}: line {number} has more than {LARGEST_ROW:,} bytes")
            if not line.endswith(b"\n"):
                return
            row = parsed(line, Row, f"{file}: line {number}")
            if before is not None and (
                row.iteration <= before.iteration or row.env_steps < before.env_steps
            ):
                raise UserError(
                    f"{file}: line {number}: iteration {row.iteration}, env_steps "
                    f"{row.env_steps} can't come after {before.iteration}, {before.env_steps}"
                )
            before = row
            yield row


def read_bytes(file: Path, limit: int = LARGEST_FILE) -> bytes:
    """The bytes of a regular file of a limited size.

    Raises:
        UserError: it is missing, no regular file, too large, or can't be read.
    """
    with _opened(file) as opened:
        data = opened.read(limit + 1)
    if len(data) > limit:
        raise UserError(f"{file}: has more than {limit:,} bytes")
    return data


def parsed(data: bytes, model: type[Model], where: str) -> Model:
    """What JSON text holds.

    Args:
        data: the text.
        model: of it.
        where: begins what is said of a fault.

    Raises:
        UserError: it is no JSON, or not what the model says.
    """
    try:
        return _reader(model).validate_json(data, strict=True)
    except ValidationError as error:
        raise UserError(f"{where}: {fault_of(error)}") from None


def fault_of(error: ValidationError) -> str:
    """The first of the faults that pydantic found, with the name of its field."""
    first = error.errors(include_url=False, include_input=False)[0]
    fault = first["msg"].removeprefix("Value error, ")[:_LONGEST_FAULT]
    if first["type"] == "json_invalid":
        return f"is no JSON ({fault.removeprefix('Invalid JSON: ')})"
    field = ascii(".".join(str(part) for part in first["loc"]) or "the whole")[1:-1]
    older = "; written by another version of toolagent?" if first["type"] == "missing" else ""
    return f"{field[:_LONGEST_FAULT]}: {fault}{older}"


def ends_whole(file: Path) -> bool:
    """Whether the last line of a file has its end; an empty file's has."""
    with open(file, "rb") as lines:
        size = lines.seek(0, os.SEEK_END)
        lines.seek(max(size - 1, 0))
        return lines.read(1) in (b"", b"\n")


def written(document: dict[str, Any], model: type, indent: int | None = 2) -> bytes:
    """The text of a file, which `read_file` will read.

    Raises:
        ValueError: the document is not what the model says: a bug.
    """
    text = (json.dumps(document, indent=indent, allow_nan=False) + "\n").encode()
    _reader(model).validate_json(text, strict=True)
    return text


def as_document(content: RunFile) -> dict[str, Any]:
    """What was read, as plain JSON values: the fields that the file has, and no others."""
    return content.model_dump(mode="json", exclude_unset=True)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    """A regular file, open to be read in the block."""
    with labelled(f"{file}: can't be read: ", OSError):
        if not stat.S_ISREG(file.stat().st_mode):
            raise UserError(f"{file}: is no regular file")
        with open(file, "rb") as opened:
            yield opened
