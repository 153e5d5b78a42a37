"""YAML and `--set` to `Settings`, checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from toolagent.config import documents
from toolagent.config.algorithm import ALGORITHMS, algorithm_config_class, check_options
from toolagent.config.folder import find_config, read_config
from toolagent.config.overrides import Override, apply_overrides, parse_override
from toolagent.config.renamed import check_renamed
from toolagent.config.schema import check_section_names
from toolagent.config.settings import (
    DEFAULT_ALGORITHM,
    DEFAULT_TASK,
    MAX_SEED,
    RecordingSettings,
    RunSettings,
    Settings,
)
from toolagent.config.source import Source, one_name, shown
from toolagent.config.validation import check_name, relative_fault, validated
from toolagent.curriculum.rule import CurriculumSettings
from toolagent.errors import UserError
from toolagent.tasks import TASKS

_MODELS = {"run": RunSettings, "recording": RecordingSettings}
_OWN_KEYS = ("task", "algorithm", "seed", "curriculum", *_MODELS)
_Seed = Annotated[int, Field(strict=True, ge=0, le=MAX_SEED)]


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
    algorithm = check_name(algorithm, ("algorithm",), ALGORITHMS, source)
    if check_sections:
        config_class = algorithm_config_class(algorithm)
        check_section_names(config_class, document, _OWN_KEYS, source)
    settings = _resolve(document, algorithm, source)
    if check_sections:
        check_options(settings)
    return settings


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
    for name, model in _MODELS.items():
        if name in reached:
            value = _mapping(result.get(name), name, source)
            result[name] = validated(model, value, (name,), source).model_dump(mode="json")
    return result


def _resolve(document: dict[str, Any], algorithm: str, source: Source) -> Settings:
    sections = {
        name: _mapping(document.get(name), name, source)
        for name in document | _MODELS
        if name not in ("task", "algorithm", "seed", "curriculum")
    }
    task = check_name(document.get("task", DEFAULT_TASK), ("task",), TASKS, source)
    curriculum = _curriculum(document.get("curriculum"), task, source)
    try:
        curriculum.check_stages(TASKS[task]().stages)
    except ValueError as error:
        raise relative_fault(str(error), ("curriculum",), source) from None
    return Settings(
        task=task,
        algorithm=algorithm,
        seed=validated(_Seed, document.get("seed", 0), ("seed",), source),
        curriculum=curriculum,
        **{
            name: validated(model, sections.pop(name), (name,), source)
            for name, model in _MODELS.items()
        },
        sections=sections,
        source=source,
    )


def _curriculum(value: Any, task: str, source: Source) -> CurriculumSettings:
    """The curriculum; where no levels are written, one level with the task's first stage."""
    levels = [{"stage": TASKS[task].first_stage}]
    given = {"levels": levels} | _mapping(value, "curriculum", source)
    return validated(CurriculumSettings, given, ("curriculum",), source)


def _mapping(value: Any, key: str, source: Source) -> dict[str, Any]:
    """A section; one without entries ('training:') is None in YAML."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise source.error((key,), f"expected a mapping of options, got {shown(value)}")
    return value
