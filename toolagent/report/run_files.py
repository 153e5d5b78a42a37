"""What a run left in its folder, read and checked: plain JSON and YAML, no Ray and no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ConfigDict, ValidationError

from toolagent.checkpoints.run_files import (
    Behaviour,
    Environment,
    Model,
    Row,
    RunFile,
    Summary,
    ends_whole,
    fault_of,
    read_file,
    read_rows,
)
from toolagent.checkpoints.run_folder import BEHAVIOUR, CONFIG, ENVIRONMENT, PROGRESS, SUMMARY
from toolagent.config import documents
from toolagent.config.folder import read_config
from toolagent.errors import UserError


class Head(RunFile):
    """Of `config.yaml`, what every page says."""

    model_config = ConfigDict(extra="ignore")

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

    def optional(name: str, model: type[Model], without: str) -> Model | None:
        """The file's content; None, and a note, if there is no such file."""
        if (path / name).exists():
            return read_file(path / name, model)
        notes.append(f"no {name}: {without}")
        return None

    config = read_config(path / CONFIG)
    head = read_head(config, str(path / CONFIG))
    rows = list(read_rows(path / PROGRESS))
    if not ends_whole(path / PROGRESS):
        notes.append(f"the last line of {PROGRESS} is cut off; it is passed over")
    if not rows:
        raise UserError(f"{path / PROGRESS}: no iteration has ended yet; nothing to report")
    lost = "no sample trajectories, no lengths of programs"
    record = RunRecord(
        path,
        path.resolve().name,
        **head.model_dump(),
        config=config,
        rows=rows,
        summary=optional(
            SUMMARY,
            Summary,
            "the run has not ended, or it was killed: accuracies are those of its last "
            "measurement, not certified",
        ),
        behaviour=optional(BEHAVIOUR, Behaviour, lost),
        environment=optional(ENVIRONMENT, Environment, "no versions, no machine"),
        notes=notes,
    )
    if not any(row.programs for row in rows):
        notes.append(f"{PROGRESS} has no programs: nothing on tools and how programs evolved")
    return record


def read_head(config: str, where: str) -> Head:
    """Of the text of a configuration, what every page says.

    Raises:
        UserError: it is none; `where` begins the message.
    """
    try:
        return Head.model_validate(documents.parse(config, where))
    except ValidationError as error:
        raise UserError(f"{where}: {fault_of(error)}") from None
