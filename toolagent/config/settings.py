"""The resolved settings: loaded from YAML and `--set`, checked, written back."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from toolagent.config import documents
from toolagent.config.algorithm import ALGORITHMS, algorithm_config_class, check_options
from toolagent.config.folder import find_config, read_config
from toolagent.config.options import check_section_names
from toolagent.config.overrides import Override, apply_overrides, parse_override
from toolagent.config.renamed import check_renamed
from toolagent.config.source import KeyPath, Source, one_name, shown
from toolagent.curriculum.rule import CurriculumSettings
from toolagent.errors import UserError, nearest
from toolagent.tasks import TASKS

DEFAULT_TASK = "calculator"
DEFAULT_ALGORITHM = "toolagent"
MAX_SEED = 2**31 - 1  # RLlib adds the runner's index, and NumPy takes 32 bits

_OWN_KEYS = ("task", "algorithm", "seed", "curriculum", "run", "recording")

Model = TypeVar("Model", bound=BaseModel)


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


def load_settings(
    path: Path | str | None, overrides: Sequence[str] = (), *, check_sections: bool = True
) -> Settings:
    """Loads a config and puts the overrides in place.

    Args:
        path: a file, the bare name of a shipped config, or None for the default config.
        overrides: 'section.key=value', the value in YAML; later ones win.
        check_sections: check the AlgorithmConfig sections too, which imports Ray. A command that
            needs only the task or the seed does without.

    Raises:
        UserError: anything that is wrong with the file or an override, in one line.
    """
    file = find_config(path)
    text = read_config(file)
    return settings_from_text(text, str(file), overrides, check_sections=check_sections)


def settings_from_text(
    text: str, name: str, overrides: Sequence[str] = (), *, check_sections: bool = True
) -> Settings:
    """As `load_settings`, from YAML text; `name` is what messages call it."""
    document = _parsed(text, name)
    source = Source(name)
    check_renamed(document, source)
    parsed = [parse_override(text) for text in overrides]
    document = apply_overrides(_expanded(document, parsed, source), parsed)
    source = Source(name, tuple(item.path for item in parsed))
    check_renamed(document, source)
    algorithm = document.get("algorithm", DEFAULT_ALGORITHM)
    algorithm = _name(algorithm, "algorithm", ALGORITHMS, source)
    if check_sections:
        config_class = algorithm_config_class(algorithm)
        check_section_names(config_class, document, _OWN_KEYS, source)
    settings = _resolve(document, algorithm, source)
    if check_sections:
        check_options(settings)
    return settings


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


def _parsed(text: str, name: str) -> dict[str, Any]:
    document = documents.parse(text, one_name(name))
    if isinstance(document, dict):
        return document
    got = "the file is empty" if document is None else f"got {shown(document)}"
    raise UserError(f"{one_name(name)}: expected a mapping such as 'task: {DEFAULT_TASK}'; {got}")


def _expanded(
    document: dict[str, Any], overrides: Sequence[Override], source: Source
) -> dict[str, Any]:
    """Writes out curriculum and run where an override reaches into them, so that
    `curriculum.levels.0` can be set also where the levels are the defaults."""
    result = dict(document)
    reached = {override.path[0] for override in overrides if len(override.path) > 1}
    if "curriculum" in reached:
        tasks = [override.value for override in overrides if override.path == ("task",)]
        task = [document.get("task"), *tasks][-1]
        if not isinstance(task, str) or task not in TASKS:
            task = DEFAULT_TASK  # a wrong one is refused where all is resolved
        resolved = _curriculum(result.get("curriculum"), task, source)
        result["curriculum"] = resolved.model_dump(mode="json")
    for name, model in (("run", RunSettings), ("recording", RecordingSettings)):
        if name in reached:
            result[name] = _model(model, name, result.get(name), source).model_dump(mode="json")
    return result


def _resolve(document: dict[str, Any], algorithm: str, source: Source) -> Settings:
    task = _name(document.get("task", DEFAULT_TASK), "task", TASKS, source)
    curriculum = _curriculum(document.get("curriculum"), task, source)
    try:
        curriculum.check_stages(TASKS[task]().stages)
    except ValueError as error:
        raise _relative(str(error), "curriculum", source) from None
    return Settings(
        task=task,
        algorithm=algorithm,
        seed=_seed(document.get("seed", 0), source),
        curriculum=curriculum,
        run=_model(RunSettings, "run", document.get("run"), source),
        recording=_model(RecordingSettings, "recording", document.get("recording"), source),
        sections={
            name: _mapping(value, name, source)
            for name, value in document.items()
            if name not in _OWN_KEYS
        },
        source=source,
    )


def _curriculum(value: Any, task: str, source: Source) -> CurriculumSettings:
    """The curriculum; where no levels are written, one level with the task's first stage."""
    levels = [{"stage": TASKS[task].first_stage}]
    given = {"levels": levels} | _mapping(value, "curriculum", source)
    return _model(CurriculumSettings, "curriculum", given, source)


def _name(value: Any, key: str, known: Mapping[str, Any], source: Source) -> str:
    if not isinstance(value, str):
        raise source.error((key,), f"expected one of {', '.join(known)}, got {shown(value)}")
    if value not in known:
        raise source.error((key,), f"no {key} {shown(value)}; {nearest(value, known)}")
    return value


def _seed(value: Any, source: Source) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_SEED:
        return value
    raise source.error(("seed",), f"expected an integer from 0 to {MAX_SEED}, got {shown(value)}")


def _mapping(value: Any, key: str, source: Source) -> dict[str, Any]:
    """A section; one without entries ('training:') is None in YAML."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise source.error((key,), f"expected a mapping of options, got {shown(value)}")
    return value


def _model(model: type[Model], key: str, value: Any, source: Source) -> Model:
    try:
        return model.model_validate(_mapping(value, key, source))
    except ValidationError as error:
        raise model_fault(error, model, key, source) from None


def model_fault(
    error: ValidationError, model: type[BaseModel], key: str, source: Source
) -> UserError:
    """The first of pydantic's errors, in one line; `key` is where the model lies, '' on top."""
    first = error.errors(include_url=False)[0]
    location, kind = first["loc"], first["type"]
    path: KeyPath = (*filter(None, (key,)), *(str(part) for part in location))
    if kind == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        return source.error(path, f"unknown; {nearest(path[-1], known)}")
    if kind == "missing":
        return source.error(path, "missing")
    if kind == "value_error":
        return _relative(
            str(first.get("ctx", {}).get("error", first["msg"])), ".".join(path), source
        )
    wanted = first["msg"].replace("Input should be a valid", "expected a valid")
    wanted = wanted.replace("Input should be", "must be")
    return source.error(path, f"{wanted}, got {shown(first['input'])}")


def _relative(message: str, key: str, source: Source) -> UserError:
    """A model's own message begins with the key, as seen from the model: 'levels.0: ...'."""
    inner, _, fault = message.partition(": ")
    return source.error((*key.split("."), *inner.split(".")), fault)


def _fields_at(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The fields of the model that lies at this place inside the model."""
    for part in location:
        if isinstance(part, str):
            inner = _inner_model(model.model_fields[part].annotation)
            model = inner or model
    return list(model.model_fields)


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_inner_model, get_args(annotation))), None)
