"""The curriculum's rule: when a level is left, in which direction, and what can't be declared."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from toolagent.curriculum.rule import (
    CurriculumSettings,
    CurriculumState,
    Decision,
    LevelSettings,
    decide,
    lower_bound,
    upper_bound,
)


def settings_of(*levels, **others):
    return CurriculumSettings(levels=tuple(LevelSettings(**level) for level in levels), **others)


THREE = settings_of(
    {"stage": 0, "advance_at_accuracy": 0.95},
    {"stage": 1, "advance_at_accuracy": 0.95, "demote_below_accuracy": 0.5},
    {"stage": 2, "demote_below_accuracy": 0.5},
)


def level_after(settings, level, measured=None, *, env_steps=1000, iteration=10, **entered):
    state = CurriculumState(level=level, **entered)
    decision = decide(settings, state, env_steps=env_steps, iteration=iteration, measured=measured)
    return decision.state.level


# The bounds --------------------------------------------------------------------------------
# One-sided 95%: z = 1.6448536, z^2 = 2.7055435. With p = 1 the Wilson bound is n / (n + z^2), with
# p = 0 the upper one is z^2 / (n + z^2); the values for 50 of 100 were worked out by hand.


@pytest.mark.parametrize(
    ("solved", "problems", "lower", "upper"),
    [
        (20, 20, 20 / 22.7055435, 1.0),
        (500, 500, 500 / 502.7055435, 1.0),
        (0, 20, 0.0, 2.7055435 / 22.7055435),
        (1, 1, 1 / 3.7055435, 1.0),
        (50, 100, 0.4188477, 0.5811523),
    ],
)
def test_bounds_are_wilsons(solved, problems, lower, upper):
    assert lower_bound(solved, problems, 0.95) == pytest.approx(lower, abs=1e-6)
    assert upper_bound(solved, problems, 0.95) == pytest.approx(upper, abs=1e-6)


counts = st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
confidences = st.floats(0.51, 0.9999)


@given(counts, confidences)
def test_the_bounds_enclose_the_share_and_stay_probabilities(count, confidence):
    solved, problems = count
    low, high = (bound(solved, problems, confidence) for bound in (lower_bound, upper_bound))
    assert -1e-12 <= low <= solved / problems + 1e-12
    assert solved / problems - 1e-12 <= high <= 1 + 1e-12


@given(counts, confidences)
def test_the_bounds_mirror_each_other(count, confidence):
    solved, problems = count
    mirrored = 1 - upper_bound(problems - solved, problems, confidence)
    assert lower_bound(solved, problems, confidence) == pytest.approx(mirrored, abs=1e-9)


@pytest.mark.parametrize(("solved", "problems"), [(3, 2), (-1, 2), (0, 0)])
def test_impossible_counts_raise(solved, problems):
    with pytest.raises(ValueError, match="no count of solved problems"):
        lower_bound(solved, problems, 0.95)


# Advancing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solved", "problems", "level"),
    [
        (20, 20, 0),  # a lucky batch: all right proves 88%
        (51, 51, 0),  # 94.96%
        (52, 52, 1),  # 95.05%
        (500, 500, 1),
        (483, 500, 0),  # 96.6% right, proves 94.97%
        (484, 500, 1),  # 96.8% right, proves 95.21%
        (0, 500, 0),
    ],
)
def test_a_stage_is_left_when_its_accuracy_is_proved(solved, problems, level):
    assert level_after(THREE, 0, {0: (solved, problems)}) == level


def test_only_the_accuracy_of_the_levels_own_stage_counts():
    assert level_after(THREE, 0, {1: (500, 500), 2: (500, 500)}) == 0
    assert level_after(THREE, 0, {}) == 0
    assert level_after(THREE, 0, None) == 0


def test_the_last_level_is_never_left_upwards():
    measured = {0: (500, 500), 1: (500, 500), 2: (500, 500)}
    assert level_after(THREE, 2, measured) == 2


def test_env_steps_are_counted_from_when_the_level_was_entered():
    settings = settings_of({"stage": 0, "advance_after_env_steps": 100}, {"stage": 1})
    assert level_after(settings, 0, env_steps=99) == 0
    assert level_after(settings, 0, env_steps=100) == 1
    assert level_after(settings, 0, env_steps=1099, entered_env_steps=1000) == 0
    assert level_after(settings, 0, env_steps=1100, entered_env_steps=1000) == 1


def test_iterations_are_counted_from_when_the_level_was_entered():
    settings = settings_of({"stage": 0, "advance_after_iterations": 30}, {"stage": 1})
    assert level_after(settings, 0, iteration=29) == 0
    assert level_after(settings, 0, iteration=30) == 1
    assert level_after(settings, 0, iteration=49, entered_iteration=20) == 0
    assert level_after(settings, 0, iteration=50, entered_iteration=20) == 1


def test_of_several_endings_the_first_to_hold_counts():
    settings = settings_of(
        {"stage": 0, "advance_at_accuracy": 0.9, "advance_after_env_steps": 100},
        {"stage": 1},
    )
    assert level_after(settings, 0, {0: (500, 500)}, env_steps=1) == 1
    assert level_after(settings, 0, {0: (0, 500)}, env_steps=100) == 1
    assert level_after(settings, 0, {0: (0, 500)}, env_steps=99) == 0


def test_nothing_changes_before_the_dwell_is_over():
    settings = settings_of(
        {"stage": 0, "advance_at_accuracy": 0.9, "min_env_steps": 100},
        {"stage": 1, "demote_below_accuracy": 0.5, "min_env_steps": 100},
    )
    solved, failed = {0: (500, 500)}, {0: (0, 500)}
    assert level_after(settings, 0, solved, env_steps=99) == 0
    assert level_after(settings, 0, solved, env_steps=100) == 1
    assert level_after(settings, 1, failed, env_steps=199, entered_env_steps=100) == 1
    assert level_after(settings, 1, failed, env_steps=200, entered_env_steps=100) == 0


def test_a_network_that_does_not_pass_in_time_is_followed_by_another_at_the_first_level():
    settings = settings_of(
        {"stage": 0, "advance_at_accuracy": 0.9},
        {"stage": 1, "advance_at_accuracy": 0.9, "begin_anew_after_env_steps": 100},
        {"stage": 2},
    )
    state = CurriculumState(1, 1000, 5, networks=2)

    def after(env_steps, solved):
        measured = {1: (solved, 500)}
        return decide(settings, state, env_steps=env_steps, iteration=9, measured=measured)

    assert after(1099, 0) == Decision(state)
    assert after(1100, 500).state == CurriculumState(2, 1100, 9, networks=2)
    anew = after(1100, 0)
    assert anew.state == CurriculumState(0, 1100, 9, networks=3) and anew.reason


def test_a_change_says_why_and_starts_the_counts_anew():
    decision = decide(
        THREE, CurriculumState(), env_steps=1234, iteration=7, measured={0: (500, 500)}
    )
    assert decision.state == CurriculumState(1, entered_env_steps=1234, entered_iteration=7)
    assert decision.reason == "stage 0 is right on at least 0.995"


# Demotion ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solved", "level"),
    [
        (0, 0),
        (231, 0),  # at most 49.9%
        (232, 1),  # at most 50.1%
        (300, 1),  # below what was needed to come here: no reason to go back
        (500, 1),
    ],
)
def test_the_level_before_is_taken_up_again_when_its_stage_is_provably_lost(solved, level):
    assert level_after(THREE, 1, {0: (solved, 500), 1: (0, 500)}) == level


def test_demotion_looks_at_the_stage_before_only():
    assert level_after(THREE, 2, {0: (0, 500), 1: (500, 500), 2: (0, 500)}) == 2
    assert level_after(THREE, 2, {0: (500, 500), 1: (0, 500), 2: (500, 500)}) == 1


def test_a_lost_stage_comes_before_a_learned_one():
    assert level_after(THREE, 1, {0: (0, 500), 1: (500, 500)}) == 0


@given(st.integers(0, 500))
def test_no_accuracy_both_advances_and_demotes(solved):
    """Hysteresis: the measurement that ended level 0 does not bring it back from level 1."""
    measured = {0: (solved, 500), 1: (0, 500)}
    if level_after(THREE, 0, measured) == 1:
        assert level_after(THREE, 1, measured) == 1


# Settings that can't work --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "others", "message"),
    [
        ([], {}, "needs at least one level"),
        ([{"stage": 0}, {"stage": 1}], {}, "levels.0: can never end"),
        ([{"stage": 0, "demote_below_accuracy": 0.5}], {}, "there is no level before it"),
        (
            [
                {"stage": 0, "advance_at_accuracy": 0.9},
                {"stage": 1, "demote_below_accuracy": 0.9},
            ],
            {},
            "must be below 0.9",
        ),
        (
            [{"stage": 0, "advance_at_accuracy": 0.95}, {"stage": 1}],
            {"measure_problems": 20},
            "can't be proved by 20 problems",
        ),
        ([{"stage": -1}], {}, "greater than or equal to 0"),
        ([{"stage": 0, "unknown": 1}], {}, "Extra inputs are not permitted"),
        ([{"stage": 0}], {"earlier_stage_share": 1.1}, "less than or equal to 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(levels, others, message):
    with pytest.raises(ValidationError, match=message):
        settings_of(*levels, **others)


def test_a_stage_that_the_task_has_not_is_refused():
    THREE.check_stages(range(3))
    with pytest.raises(ValueError, match=r"levels\.2\.stage: 2 is not in the task; .* 0\.\.1"):
        THREE.check_stages(range(2))
    with pytest.raises(ValueError, match=r"levels\.0\.stage: 0 is not in the task; .* 1\.\.8"):
        THREE.check_stages(range(1, 9))


def test_trained_are_the_levels_stages_and_where_a_share_is_drawn_from_them_the_earlier():
    levels = [{"stage": 4, "advance_after_iterations": 1}, {"stage": 2}]
    assert settings_of(*levels).trained_stages(range(1, 9)) == [2, 4]
    assert settings_of(*levels, earlier_stage_share=0.1).trained_stages(range(1, 9)) == [1, 2, 3, 4]
    assert THREE.trained_stages(range(3)) == [0, 1, 2]


# Whatever is declared and measured -------------------------------------------------------------


@st.composite
def curricula(draw):
    """Settings that are accepted, of 1 to 4 levels."""
    count = draw(st.integers(1, 4))
    levels = []
    for index in range(count):
        level = {"stage": draw(st.integers(0, 2)), "min_env_steps": draw(st.integers(0, 200))}
        if draw(st.booleans()):
            level["advance_at_accuracy"] = draw(st.floats(0.5, 0.95))
        if draw(st.booleans()):
            level["advance_after_env_steps"] = draw(st.integers(1, 500))
        if "advance_at_accuracy" not in level and "advance_after_env_steps" not in level:
            level["advance_after_iterations"] = draw(st.integers(1, 5))
        if index and draw(st.booleans()):
            level["demote_below_accuracy"] = draw(st.floats(0, 0.49))
        levels.append(level)
    return settings_of(*levels)


measurements = st.dictionaries(
    st.integers(0, 2), st.integers(0, 500).map(lambda solved: (solved, 500))
)
steps = st.lists(st.tuples(st.integers(0, 300), measurements), min_size=1, max_size=30)


@given(curricula(), steps)
def test_the_level_stays_in_range_moves_by_one_and_the_rule_is_pure(settings, history):
    state, env_steps = CurriculumState(), 0
    before = settings.model_dump()
    for iteration, (more, measured) in enumerate(history, start=1):
        env_steps += more
        given_measured = copy.deepcopy(measured)
        decisions = [
            decide(settings, state, env_steps=env_steps, iteration=iteration, measured=measured)
            for _ in range(2)
        ]
        assert decisions[0] == decisions[1]
        assert measured == given_measured
        decision = decisions[0]
        assert 0 <= decision.state.level < len(settings.levels)
        moved = decision.state.level - state.level
        assert moved in (-1, 0, 1)
        if moved:
            assert decision.reason
            assert decision.state.entered_env_steps == env_steps
            assert decision.state.entered_iteration == iteration
            dwell = settings.levels[state.level].min_env_steps
            assert env_steps - state.entered_env_steps >= dwell
        else:
            assert decision == Decision(state, passed=decision.passed)
            assert not decision.passed or state.level + 1 == len(settings.levels)
        state = decision.state
    assert settings.model_dump() == before


@given(st.integers(0, 9), st.integers(0, 10**12), st.integers(0, 10**6))
def test_the_state_survives_a_checkpoint(level, env_steps, iteration):
    state = CurriculumState(level, env_steps, iteration)
    assert CurriculumState.from_dict(state.to_dict()) == state
