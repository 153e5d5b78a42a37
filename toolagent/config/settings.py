"""The settings of a run, every value resolved, and how they are written."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from toolagent.config import documents
from toolagent.config.source import Source
from toolagent.curriculum.rule import CurriculumSettings

DEFAULT_TASK = "calculator"
DEFAULT_ALGORITHM = "toolagent"
MAX_SEED = 2**31 - 1  # RLlib adds the runner's index, and NumPy takes 32 bits

# Name in the YAML -> 'module:class' of the AlgorithmConfig; imported when it is needed.
ALGORITHMS: dict[str, str] = {
    "toolagent": "toolagent.learning.algorithm:ToolAgentConfig",
    "PPO": "toolagent.learning.stock:StockPPOConfig",
    "tutorial": "toolagent.learning.tutorial:TutorialConfig",
    "BC": "toolagent.learning.offline:OfflineBCConfig",
    "MARWIL": "toolagent.learning.offline:OfflineMARWILConfig",
}

# What `student` holds the sections of; it goes on from another algorithm's agent.
STUDENT_ALGORITHM = "distillation"
_STUDENT = {STUDENT_ALGORITHM: "toolagent.learning.distillation:DistillationConfig"}
_NOT_STUDENTS = ("env_runners", "training", "rl_module", "callbacks", "evaluation")

# In the place of a number of env runners: it follows from the cluster.
AUTO = "auto"
AUTO_KEY = ("env_runners", "num_env_runners")


Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class RunSettings(BaseModel):
    """When a run ends, and what it writes on the way."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    stop_env_steps: Positive | None = None
    """Env steps to end after."""
    stop_time_s: Seconds | None = None
    """Seconds to end after."""
    stop_iterations: Positive | None = None
    """Iterations to end after."""
    stop_when_solved: bool = True
    """End when every stage is certified solved."""
    checkpoint_every_s: Seconds = 60.0
    """Seconds between checkpoints."""
    keep_checkpoints: Positive = 3
    """The newest are kept."""
    max_learner_restarts: Count = 3
    """Restarts from the last checkpoint after learners died."""
    learner_timeout_s: Seconds = 300.0
    """Seconds without an answer until remote learners are ended."""
    stall_warning_s: Seconds = 60.0
    """Seconds without an update until a warning."""
    sample_trajectories: Count = 1
    """Printed at the end, per stage."""
    dashboard: bool = True
    """Start Ray's dashboard, on loopback."""
    metrics: bool = True
    """Publish Ray metrics, for Prometheus."""
    record_episodes: Annotated[str, Field(min_length=1)] | None = None
    """Folder to record training episodes in."""
    trackers: list[Literal["tensorboard", "mlflow", "wandb"]] = ["tensorboard"]
    """Where figures go besides progress.jsonl."""
    rllib_figures: bool = False
    """Also all that RLlib reports in TensorBoard, under ray/tune/."""

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

    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the episodes, drawn at random."""
    max_episodes: Positive | None = None
    """In total."""
    max_bytes: Positive | None = None
    """Of all files together."""
    episodes_per_file: Positive = 50_000
    """Of each env runner."""
    episodes_per_row_group: Positive = 50_000
    """In a file."""
    seconds_per_file: Seconds = 10.0
    """A file is written no later."""


# Top-level keys that are toolagent's own, with their types; all others are sections.
OWN_KEYS: dict[str, Any] = {
    "task": str,  # resolved by then: `loading` imports it
    "algorithm": Literal[tuple(ALGORITHMS)],
    "seed": Annotated[int, Field(strict=True, ge=0, le=MAX_SEED)],
    "curriculum": CurriculumSettings,
    "run": RunSettings,
    "recording": RecordingSettings,
    "student": dict[str, dict[str, Any]] | None,
}


def own_places() -> dict[str, str]:
    """Every key of toolagent's own -> its place: 'trackers' -> 'run.trackers'."""
    below = {
        name: f"{key}.{name}"
        for key, kind in OWN_KEYS.items()
        for name in getattr(kind, "model_fields", ())
    }
    return below | {key: key for key in OWN_KEYS}


@dataclass(frozen=True)
class Settings:
    """A configuration with every value resolved. Equal if the values are, whatever the source."""

    task: str = DEFAULT_TASK
    algorithm: str = DEFAULT_ALGORITHM
    seed: int = 0
    curriculum: CurriculumSettings = field(default_factory=CurriculumSettings)
    run: RunSettings = field(default_factory=RunSettings)
    recording: RecordingSettings = field(default_factory=RecordingSettings)
    sections: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # as written; not to be changed
    student: dict[str, dict[str, Any]] | None = None  # the sections of a second phase
    source: Source = field(default_factory=Source, compare=False, repr=False)

    def written(self, *path: str) -> Any:
        """A copy of what the user wrote at this place in the sections; {} for nothing."""
        value: Any = self.sections
        for key in path:
            value = value.get(key) or {}
        return copy.deepcopy(value)

    def document(self) -> dict[str, Any]:
        """Every value, as a configuration file has them."""
        return {
            "task": self.task,
            "algorithm": self.algorithm,
            "seed": self.seed,
            "curriculum": self.curriculum.model_dump(mode="json"),
            "run": self.run.model_dump(mode="json"),
            "recording": self.recording.model_dump(mode="json"),
            **({} if self.student is None else {"student": self.student}),
            **self.sections,
        }

    @property
    def student_settings(self) -> Settings:
        """Of the second phase: what `student` says, and of the other sections what concerns it."""
        assert self.student is not None
        sections = {name: of for name, of in self.sections.items() if name not in _NOT_STUDENTS}
        return replace(
            self,
            algorithm=STUDENT_ALGORITHM,
            student=None,
            sections=sections | self.student,
            source=replace(self.source, prefix=("student",)),
        )

    @property
    def auto_runners(self) -> bool:
        """Whether the number of env runners follows from the cluster."""
        return self.written(*AUTO_KEY) == AUTO


def algorithm_place(name: str) -> str:
    """'module:class' of the AlgorithmConfig of that name."""
    return (ALGORITHMS | _STUDENT)[name]


def to_yaml(settings: Settings) -> str:
    """Every value, defaults of curriculum and run included; loads back to equal settings."""
    return documents.dump(settings.document())


def config_sha256(settings: Settings) -> str:
    """A fingerprint of the values: independent of where they were written, and in what order."""
    canonical = json.dumps(settings.document(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
