"""Shipped configurations end by what they count, not by a clock that runs while others work."""

from __future__ import annotations

import pytest

from toolagent.config import load_settings, shipped_configs, shipped_searches
from toolagent.tune.search import load_search


def schedules(value, path=""):
    """Path -> the env steps at which each schedule in a section reaches its last value."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from schedules(inner, f"{path}.{name}")
    elif isinstance(value, list | tuple) and value and all(map(is_point, value)):
        yield path, value[-1][0]


def is_point(value):
    return isinstance(value, list | tuple) and len(value) == 2


@pytest.mark.parametrize("name", shipped_configs())
def test_a_config_ends_by_env_steps_or_iterations_and_after_its_schedules(name):
    settings = load_settings(name)
    run = settings.run
    assert run.stop_env_steps is not None or run.stop_iterations is not None
    for path, ends_at in schedules(settings.sections):
        assert run.stop_env_steps is not None and run.stop_env_steps >= ends_at, path


def test_the_learning_rate_of_expression_is_a_schedule():
    assert dict(schedules(load_settings("expression").sections)) == {".training.lr": 20_000_000}


@pytest.mark.parametrize("name", shipped_searches())
def test_a_search_ends_its_trials_by_env_steps(name):
    search = load_search(name)
    assert search.settings.trial.max_env_steps is not None
    assert search.settings.budget[0] == "env_steps"
