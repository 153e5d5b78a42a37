"""The settings of a run, every value resolved, and how they are written."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from toolagent.config import documents
from toolagent.config.source import Source
from toolagent.curriculum.rule import CurriculumSettings

DEFAULT_TASK = "calculator"
DEFAULT_ALGORITHM = "toolagent"
MAX_SEED = 2**31 - 1  # RLlib adds the runner's index, and NumPy takes 32 bits

# In the place of a number of env runners: it follows from the cluster.
AUTO = "auto"
AUTO_KEY = ("env_runners", "num_env_runners")


class RunSettings(BaseModel):
    """When a run ends, and what it writes on the way."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    stop_env_steps: int | None = Field(default=None, ge=1, description="env steps to end after")
    stop_time_s: float | None = Field(default=None, gt=0, description="seconds to end after")
    stop_iterations: int | None = Field(default=None, ge=1, description="iterations to end after")
    stop_when_solved: bool = Field(
        default=True, description="end when every stage is certified solved"
    )
    checkpoint_every_s: float = Field(default=60.0, gt=0, description="seconds between checkpoints")
    keep_checkpoints: int = Field(default=3, ge=1, description="the newest are kept")
    max_learner_restarts: int = Field(
        default=3, ge=0, description="restarts from the last checkpoint after learners died"
    )
    learner_timeout_s: float = Field(
        default=300.0, gt=0, description="seconds without an answer until remote learners are ended"
    )
    stall_warning_s: float = Field(
        default=60.0, gt=0, description="seconds without an update until a warning"
    )
    sample_trajectories: int = Field(default=5, ge=0, description="printed at the end, per stage")
    dashboard: bool = Field(default=True, description="start Ray's dashboard, on loopback")
    metrics: bool = Field(default=True, description="publish Ray metrics, for Prometheus")
    record_episodes: str | None = Field(
        default=None, min_length=1, description="folder to record training episodes in"
    )
    trackers: list[Literal["tensorboard", "mlflow", "wandb"]] = Field(
        default=["tensorboard"], description="where figures go besides progress.jsonl"
    )

    @field_validator("record_episodes")
    @classmethod
    def _at_home(cls, folder: str | None) -> str | None:
        return folder and os.path.expanduser(folder)

    @model_validator(mode="after")
    def _each_tracker_once(self) -> RunSettings:
        for name in self.trackers:
            if self.trackers.count(name) > 1:
                raise ValueError(f"trackers: {name} is named twice")
        return self


class RecordingSettings(BaseModel):
    """How much of what is played is recorded (`run.record_episodes`), and in what files."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    share: float = Field(
        default=1.0, gt=0, le=1, description="share of the episodes, drawn at random"
    )
    max_episodes: int | None = Field(default=None, ge=1, description="in total")
    max_bytes: int | None = Field(default=None, ge=1, description="of all files together")
    episodes_per_file: int = Field(default=50_000, ge=1, description="of each env runner")
    episodes_per_row_group: int = Field(default=50_000, ge=1, description="in a file")
    seconds_per_file: float = Field(default=10.0, gt=0, description="a file is written no later")


@dataclass(frozen=True)
class Settings:
    """A configuration with every value resolved. Equal if the values are, whatever the source."""

    task: str = DEFAULT_TASK
    algorithm: str = DEFAULT_ALGORITHM
    seed: int = 0
    curriculum: CurriculumSettings = field(default_factory=CurriculumSettings)
    run: RunSettings = field(default_factory=RunSettings)
    recording: RecordingSettings = field(default_factory=RecordingSettings)
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)  # not to be changed
    source: Source = field(default_factory=Source, compare=False, repr=False)

    def written(self, *path: str) -> Any:
        """A copy of what the user wrote at this place in the sections; {} for nothing."""
        value: Any = self.sections
        for key in path:
            value = value.get(key) or {}
        return copy.deepcopy(value)

    @property
    def auto_runners(self) -> bool:
        """Whether the number of env runners follows from the cluster."""
        return self.written(*AUTO_KEY) == AUTO


def to_yaml(settings: Settings) -> str:
    """Every value, defaults of curriculum and run included; loads back to equal settings."""
    return documents.dump(_document(settings))


def config_sha256(settings: Settings) -> str:
    """A fingerprint of the values: independent of where they were written, and in what order."""
    canonical = json.dumps(_document(settings), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _document(settings: Settings) -> dict[str, Any]:
    return {
        "task": settings.task,
        "algorithm": settings.algorithm,
        "seed": settings.seed,
        "curriculum": settings.curriculum.model_dump(mode="json"),
        "run": settings.run.model_dump(mode="json"),
        "recording": settings.recording.model_dump(mode="json"),
        **settings.sections,
    }
