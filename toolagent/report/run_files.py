"""What a run left in its folder, read and checked: plain JSON and YAML, no Ray and no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from toolagent.checkpoints.run_folder import BEHAVIOUR, CONFIG, ENVIRONMENT, PROGRESS, SUMMARY
from toolagent.cli import one_line
from toolagent.config import documents
from toolagent.errors import UserError


class _Model(BaseModel):
    """Other versions may write more; what they must have is named here."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class ProgramRow(_Model):
    """The greedy programs of one stage at one measurement (`rollouts.programs`)."""

    program: str
    share: float
    distinct: int = 0
    tools: dict[str, float] = {}
    solved_length: float | None = None


class Row(_Model):
    """One line of `progress.jsonl`."""

    iteration: int
    time_s: float
    env_steps: int
    env_steps_per_s: float
    stage: int
    next_stage: int
    curriculum_event: str | None = None
    measured: bool
    accuracy: dict[int, float]  # by stage
    programs: dict[int, ProgramRow] = {}
    episode_return_mean: float | None = None
    episode_len_mean: float | None = None
    policy_loss: float | None = None
    vf_loss: float | None = None
    entropy: float | None = None
    approximate_kl: float | None = None
    clipped_share: float | None = None
    explained_variance: float | None = None
    learner_idle_share: float | None = None
    sampler_idle_share: float | None = None
    policy_age_mean: float | None = None


class Counts(_Model):
    """How many problems are solved, of a stage or of a split of it."""

    problems: int = Field(ge=1)
    solved: int = Field(ge=0)
    algebraically_valid: float | None = None
    shortest: float | None = None


class SummaryStage(Counts):
    """A stage in `summary.json`."""

    stage: int
    complete: bool = True  # these are all problems there are
    first_solved_env_steps: int | None = None
    first_solved_s: float | None = None
    mean_reward: float | None = None
    held_out: Counts | None = None


class Summary(_Model):
    """`summary.json`."""

    env_steps: int
    wall_time_s: float
    env_steps_per_s: float
    stopped_by: str
    stages: list[SummaryStage]


class BehaviourStage(_Model):
    """How long the right programs of a stage are: `solved_in[n]` problems in n actions."""

    stage: int
    formula: str
    solved_in: list[int]


class SampleStep(_Model):
    """One action of a sample trajectory."""

    token: str
    probability: float | None
    runner_up: str
    runner_up_probability: float | None
    value: float | None
    registers: dict[str, int | str | None]
    changed: list[str]
    reward: float


class Sample(_Model):
    """A sample trajectory."""

    stage: int
    problem: str
    target: int
    answer: int | None
    answered: bool
    solved: bool
    steps: list[SampleStep]


class Behaviour(_Model):
    """`behaviour.json` (`session.report.behaviour`)."""

    stages: list[BehaviourStage]
    trajectories: list[Sample]


class Session(_Model):
    """An entry of `environment.json` (`session.environment`)."""

    started: str
    command: list[str]
    commit: str | None
    python: str
    platform: str
    processor: str
    cores: int
    memory_gib: float
    gpus: list[str]
    packages: dict[str, str]
    cluster: dict[str, float] = {}


class Environment(_Model):
    """`environment.json`."""

    sessions: list[Session]


class _Head(_Model):
    task: str
    algorithm: str
    seed: int


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder tells it."""

    path: Path
    name: str  # the folder's
    task: str
    algorithm: str
    seed: int
    config: str  # YAML, as it is
    rows: list[Row]  # at least one
    summary: Summary | None = None  # None: not ended, or killed
    behaviour: Behaviour | None = None
    environment: Environment | None = None
    notes: list[str] = field(default_factory=list)  # what is missing

    @property
    def measured(self) -> list[Row]:
        """The rows at which the accuracy was measured."""
        return [row for row in self.rows if row.measured]


Model = TypeVar("Model", bound=_Model)


def read_run(path: Path) -> RunRecord:
    """Reads the folder of a run, finished or not.

    Raises:
        UserError: it holds no run, nothing was trained yet, or a file is not what this version
            writes.
    """
    if not path.is_dir():
        fault = (
            "is a file; name the folder of a run" if path.exists() else "there is no such folder"
        )
        raise UserError(f"{path}: {fault}")
    for name in (CONFIG, PROGRESS):
        if not (path / name).is_file():
            raise UserError(f"{path}: holds no run (no {name})")
    notes: list[str] = []
    config = _text(path / CONFIG)
    head = _checked(_Head, documents.parse(config, str(path / CONFIG)), path / CONFIG)
    rows = _rows(path / PROGRESS, notes)
    summary = _optional(
        Summary,
        path / SUMMARY,
        notes,
        "the run has not ended, or it was killed: accuracies are "
        "those of its last measurement, not certified",
    )
    behaviour = _optional(
        Behaviour, path / BEHAVIOUR, notes, "no sample trajectories, no lengths of programs"
    )
    environment = _optional(Environment, path / ENVIRONMENT, notes, "no versions, no machine")
    if not any(row.programs for row in rows):
        notes.append(f"{PROGRESS} has no programs: nothing on tools and how programs evolved")
    name = path.resolve().name
    return RunRecord(
        path, name, **head.model_dump(), config=config, rows=rows, summary=summary,
        behaviour=behaviour, environment=environment, notes=notes,
    )  # fmt: skip


def _rows(file: Path, notes: list[str]) -> list[Row]:
    """The rows; a last line that was cut off is passed over, and that is noted."""
    rows = []
    lines = _text(file).split("\n")
    if lines[-1] == "":
        lines.pop()
    for number, line in enumerate(lines, start=1):
        try:
            document = json.loads(line)
        except ValueError:
            if number == len(lines):
                notes.append(f"the last line of {PROGRESS} is cut off; it is passed over")
                break
            raise UserError(f"{file}: line {number} is no JSON") from None
        rows.append(_checked(Row, document, file, f"line {number}: "))
    if not rows:
        raise UserError(f"{file}: no iteration has ended yet; nothing to report")
    return rows


def _optional(model: type[Model], file: Path, notes: list[str], without: str) -> Model | None:
    """The file's content; None, and a note, if there is no such file."""
    if not file.is_file():
        notes.append(f"no {file.name}: {without}")
        return None
    try:
        document = json.loads(_text(file))
    except ValueError:
        raise UserError(f"{file}: is no JSON") from None
    return _checked(model, document, file)


def _checked(model: type[Model], document: Any, file: Path, where: str = "") -> Model:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise UserError(
            f"{file}: {where}{one_line(key)[:80]}: {first['msg'][:80]}; "
            "written by another version of toolagent?"
        ) from None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{file}: is no UTF-8 text") from None
