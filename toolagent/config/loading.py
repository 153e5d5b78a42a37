"""YAML and `--set` to `Settings`, checked but for the sections of RLlib's options."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolagent.config import documents
from toolagent.config.folder import find_config, read_config
from toolagent.config.overrides import apply_overrides, parse_override
from toolagent.config.settings import (
    DEFAULT_ALGORITHM,
    DEFAULT_TASK,
    OWN_KEYS,
    RecordingSettings,
    RunSettings,
    Settings,
    own_places,
)
from toolagent.config.source import Source, one_name, shown
from toolagent.config.validation import relative_fault, validated
from toolagent.curriculum.rule import CurriculumSettings, LevelSettings
from toolagent.envs import register_task
from toolagent.errors import UserError
from toolagent.tasks import get_task, task_class
from toolagent.tasks.check import check_task
from toolagent.tasks.registry import reference_of_task


def load_settings(path: Path | str | None, overrides: Sequence[str] = ()) -> Settings:
    """Loads a config and puts the overrides in place.

    Sections of RLlib's options are checked by `build_algorithm_config`, which imports Ray.

    Args:
        path: a file, the bare name of a shipped config, or None for the default config.
        overrides: 'section.key=value', the value in YAML; later ones win.

    Raises:
        UserError: anything that is wrong with the file or an override, in one line.
    """
    file = find_config(path)
    return settings_from_text(read_config(file), str(file), overrides)


def settings_from_text(text: str, name: str, overrides: Sequence[str] = ()) -> Settings:
    """As `load_settings`, from YAML text; `name` is what messages call it."""
    document = documents.parse(text, one_name(name))
    if not isinstance(document, dict):
        got = "the file is empty" if document is None else f"got {shown(document)}"
        raise UserError(
            f"{one_name(name)}: expected a mapping such as 'task: {DEFAULT_TASK}'; {got}"
        )
    parsed = [parse_override(override) for override in overrides]
    task = document.get("task", DEFAULT_TASK)
    for override in parsed:
        task = override.value if override.path == ("task",) else task
    # An override can reach into defaults (`curriculum.levels.0`), or take the place of a section.
    document = _completed(apply_overrides(_completed(document, task), parsed), task)
    source = Source(name, tuple(override.path for override in parsed))
    document["task"] = _task(document["task"], source)
    own = {
        key: validated(kind, document.pop(key), (key,), source, own_places())
        for key, kind in OWN_KEYS.items()
    }
    try:
        own["curriculum"].check_stages(get_task(own["task"]).stages)
    except ValueError as error:
        raise relative_fault(str(error), ("curriculum",), source) from None
    _check_levels(own, source)
    if own["student"] is not None:
        _check_student(own, source)
    sections = {key: {} if value is None else value for key, value in document.items()}
    return Settings(**own, sections=sections, source=source)


def _completed(document: dict[str, Any], task: object) -> dict[str, Any]:
    """The document over the defaults of toolagent's own keys."""
    # A wrong task is refused where all is resolved.
    stage = 0
    with contextlib.suppress(UserError):
        stage = task_class(task).first_stage if isinstance(task, str) else 0
    models = {
        "curriculum": CurriculumSettings(levels=(LevelSettings(stage=stage),)),
        "run": RunSettings(),
        "recording": RecordingSettings(),
    }
    result = {"task": DEFAULT_TASK, "algorithm": DEFAULT_ALGORITHM, "seed": 0, "student": None}
    result |= document
    for key, model in models.items():
        given = {} if document.get(key) is None else document[key]
        result[key] = model.model_dump(mode="json") | given if isinstance(given, dict) else given
    return result


def _check_levels(own: dict[str, Any], source: Source) -> None:
    """Refuses levels that another algorithm can't train on."""
    name = "begin_anew_after_env_steps"
    for index, level in enumerate(own["curriculum"].levels):
        if getattr(level, name) is not None and own["algorithm"] != DEFAULT_ALGORITHM:
            raise source.error(
                ("curriculum", "levels", str(index), name),
                f"is for algorithm {DEFAULT_ALGORITHM}, not for {own['algorithm']}",
            )


def _check_student(own: dict[str, Any], source: Source) -> None:
    """Refuses a second phase that would never begin."""
    if own["algorithm"] != DEFAULT_ALGORITHM:
        raise source.error(
            ("student",), f"is for algorithm {DEFAULT_ALGORITHM}, not for {own['algorithm']}"
        )
    levels = own["curriculum"].levels
    if not levels[-1].can_end:
        raise source.error(
            ("curriculum", "levels", str(len(levels) - 1)),
            "can never end, so the student would never begin; give it advance_at_accuracy, "
            "advance_after_env_steps or advance_after_iterations",
        )


def _task(name: object, source: Source) -> str:
    """The reference of the configured task, which is registered; its module is imported."""
    if not isinstance(name, str):
        raise source.error(("task",), f"expected a name, got {shown(name)}")
    try:
        task = register_task(task_class(name))
        check_task(task())
    except UserError as error:
        raise source.error(("task",), str(error)) from error
    return reference_of_task(task)
