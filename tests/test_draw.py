"""Which problems are played, in which groups and by whom, against plain loops over the rows."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.reference_machines import skeleton_of, value_of
from toolagent.envs.vector import ToolVectorEnv
from toolagent.rollouts import failed_problems
from toolagent.rollouts.copying import CopyingExplorers
from toolagent.rollouts.detours import Detours
from toolagent.rollouts.draw import EXPLORER_KINDS, ProblemDraw
from toolagent.rollouts.episode_batch import empty_batch
from toolagent.rollouts.explorers import ExplorerTables, TrialExplorers
from toolagent.tasks.infix import texts_of

STAGE = 4
NO_TABLES = ExplorerTables(np.zeros((0, 18), np.float32), np.zeros(18, bool))


def environment(seed=0, stage=STAGE, share=0.3, task="expression"):
    env = ToolVectorEnv(1, task, stage=stage, earlier_stage_share=share)
    env.reset(seed=seed)
    return env


def texts(problems):
    return texts_of(problems.context).tolist()


def finished(env, problems, rng):
    """Episodes that ended in any way: the columns that `compare` looks at."""
    batch = empty_batch(env.task, problems.context, problems.stage)
    count = len(batch)
    batch.lengths[:] = rng.integers(1, env.task.max_actions + 1, count)
    batch.solved[:] = rng.random(count) < 0.5
    batch.rewards[np.arange(count), batch.lengths - 1] = batch.solved
    return batch


def fail_all(draw, env, rounds=10, count=80):
    """Lets everything that is drawn be failed, until there is enough to draw from."""
    for _ in range(rounds):
        drawn = draw.draw(env, count, 0.0, NO_TABLES)
        draw.compare(empty_batch(env.task, drawn.problems.context, drawn.problems.stage), drawn, 4)
    return draw.failed


# Groups --------------------------------------------------------------------------------------


def test_without_groups_and_explorers_it_is_the_environment_s_own_stream():
    env, same = environment(), environment()
    drawn = ProblemDraw().draw(env, 50, 0.0, NO_TABLES)
    assert texts(drawn.problems) == texts(same.fresh_problems(50))
    assert (drawn.group_size, drawn.explorers) == (1, None)
    assert drawn.fresh.tolist() == [True] * 50


def test_each_problem_of_the_stream_is_a_group_side_by_side():
    env, same = environment(), environment()
    drawn = ProblemDraw(group_size=4).draw(env, 48, 0.0, NO_TABLES)
    fresh = texts(same.fresh_problems(12))
    assert texts(drawn.problems) == [text for text in fresh for _ in range(4)]
    assert drawn.group_size == 4 and len(drawn.fresh) == 12


@pytest.mark.parametrize("kind", EXPLORER_KINDS)
@pytest.mark.parametrize(("count", "share"), [(80, 0.25), (80, 0.1), (80, 0.03), (80, 0.99)])
def test_explorers_take_whole_groups_and_leave_the_policy_one(kind, count, share):
    drawn = ProblemDraw(8, 0.0, kind).draw(environment(), count, share, NO_TABLES)
    exploring = 0 if drawn.explorers is None else len(drawn.explorers)
    assert len(drawn.problems) == count
    assert exploring % 8 == 0 and count - exploring == 8 * len(drawn.fresh)
    assert abs(exploring - share * count) <= 8 and exploring <= count - 8
    expected = {"trials": TrialExplorers, "detours": Detours, "copies": CopyingExplorers}
    assert isinstance(drawn.explorers, expected[kind]) or not exploring


@pytest.mark.parametrize("kind", EXPLORER_KINDS)
def test_a_single_group_is_the_policy_s(kind):
    drawn = ProblemDraw(8, 0.0, kind).draw(environment(), 8, 0.9, NO_TABLES)
    assert drawn.explorers is None and len(drawn.fresh) == 1


@pytest.mark.parametrize("kind", EXPLORER_KINDS)
def test_the_stage_mix_is_the_policy_s_and_explorers_play_the_stage(kind):
    """Explorers on detours have no problems of their own in the stream: none may be marked."""
    env, draw = environment(), ProblemDraw(4, 0.0, kind)
    policy, explorers = [], []
    for _ in range(60):
        drawn = draw.draw(env, 80, 0.5, NO_TABLES)
        policy += drawn.problems.stage[:40:4].tolist()
        explorers += drawn.problems.stage[40:].tolist()
    assert set(explorers) == {STAGE}
    assert abs(np.mean(np.array(policy) < STAGE) - 0.3) < 5 * np.sqrt(0.21 / 600)


@pytest.mark.parametrize("kind", EXPLORER_KINDS)
def test_a_count_that_is_no_multiple_is_played_without_groups(kind):
    env, draw = environment(), ProblemDraw(8, 0.5, kind)
    drawn = draw.draw(env, 83, 0.2, NO_TABLES)
    assert drawn.group_size == 1 and len(drawn.problems) == 83
    batch = finished(env, drawn.problems, np.random.default_rng(0))
    draw.compare(batch, drawn, STAGE)
    assert not batch.baseline.any()


# The others of a group -----------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("kind", [None, *EXPLORER_KINDS])
@pytest.mark.parametrize("size", [2, 5])
def test_the_peers_return_is_the_mean_of_a_plain_loop_over_the_others(size, kind, gamma):
    env, rng = environment(), np.random.default_rng(size)
    draw = ProblemDraw(size, 0.0, kind or "trials", gamma)
    drawn = draw.draw(env, 12 * size, 0.25 if kind else 0.0, NO_TABLES)
    batch = finished(env, drawn.problems, rng)
    before = batch.rewards.copy()
    draw.compare(batch, drawn, STAGE)
    grouped = 9 * size if kind in ("trials", "copies") else len(batch)
    assert batch.baseline.dtype == np.float32
    for row in range(len(batch)):
        returns = []
        for other in range(row // size * size, (row // size + 1) * size):
            steps = enumerate(batch.rewards[other, : batch.lengths[other]].tolist())
            if other != row and row < grouped:
                returns.append(sum(gamma**step * reward for step, reward in steps))
        expected = sum(returns) / len(returns) if returns else 0.0
        assert batch.baseline[row] == pytest.approx(expected, abs=1e-6)
    assert np.array_equal(batch.rewards, before)
    assert len(set(batch.baseline.tolist())) >= 2


# Explorers on detours ------------------------------------------------------------------------


@pytest.mark.parametrize("failed", [False, True])
def test_a_group_of_detours_is_one_detour_on_one_structure_with_other_digits(failed):
    env, draw = environment(), ProblemDraw(5, 0.5 if failed else 0.0, "detours")
    if failed:
        fail_all(draw, env)
    drawn = draw.draw(env, 200, 0.5, NO_TABLES)
    detours = drawn.explorers
    assert isinstance(detours, Detours) and len(detours) == 100
    problems = drawn.problems.take(np.arange(100, 200))
    written = texts(problems)
    assert (problems.stage == STAGE).all()
    for first in range(0, 100, 5):
        group = written[first : first + 5]
        assert len({re.sub(r"\d", "n", text) for text in group}) == 1  # parentheses and all
        assert len({skeleton_of(text) for text in group}) == 1
        assert len(set(problems.skeleton[first : first + 5].tolist())) == 1
        for column in (detours.start, detours.choices):
            assert (column[first : first + 5] == column[first]).all()
    assert len(set(written)) > 95  # not the same problem five times
    assert problems.target.tolist() == [value_of(text) for text in written]
    assert not problems.held_out.any()
    assert (detours.start < 2 * STAGE).all()  # before the last of 2k+1 actions


def test_detours_are_of_failed_structures_once_there_are_enough(monkeypatch):
    monkeypatch.setattr(failed_problems, "ENOUGH", 8)
    env, draw = environment(), ProblemDraw(2, 0.5, "detours")
    one = env.task.pose(None, expression=["(3+4)*(5-2)"])
    draw.failed.add(one.take(np.zeros(8, np.int64)), np.zeros(8), np.ones(8, bool), STAGE)
    drawn = draw.draw(env, 80, 0.5, NO_TABLES)
    shapes = [re.sub(r"\d", "n", text) for text in texts(drawn.problems)]
    assert set(shapes[40:]) == {"(n+n)*(n-n)"}
    assert len(set(shapes[:40])) > 5
    env.set_stage(3)
    later = draw.draw(env, 80, 0.5, NO_TABLES)
    assert set(later.problems.stage[40:].tolist()) == {3}


def test_tasks_with_one_program_a_stage_have_other_problems_of_the_stage():
    env = environment(stage=2, task="calculator")
    drawn = ProblemDraw(4, 0.0, "detours").draw(env, 80, 0.5, NO_TABLES)
    assert (drawn.problems.stage[40:] == 2).all()
    assert len(np.unique(drawn.problems.context[40:], axis=0)) > 35
    assert int(drawn.explorers.start.max()) == env.task.max_actions - 2


# Failed problems -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EXPLORER_KINDS)
def test_failed_problems_take_the_place_of_policy_groups_only(kind):
    env, draw = environment(), ProblemDraw(4, 1.0, kind)
    marked = env.task.pose(None, expression=["9-8-7-6"])
    for _ in range(100):  # as if all fresh problems were solved, and this one never
        draw.failed.add(marked, np.ones(1), np.ones(1, bool), STAGE)
    draw.failed.add(marked.take(np.zeros(300, np.int64)), np.zeros(300), np.zeros(300, bool), STAGE)
    replaced = fresh = 0
    for _ in range(20):
        drawn = draw.draw(env, 80, 0.4, NO_TABLES)
        written = texts(drawn.problems)
        assert len(drawn.fresh) == 12
        for group, is_fresh in enumerate(drawn.fresh):
            rows = written[4 * group : 4 * group + 4]
            assert len(set(rows)) == 1
            assert (rows[0] == "9-8-7-6") == (not is_fresh)
            replaced, fresh = replaced + (not is_fresh), fresh + is_fresh
        if kind == "trials":
            assert "9-8-7-6" not in written[48:]
            # What explorers play is nobody's failure.
            assert (drawn.problems.stage[48:] == STAGE).all()
    assert replaced > 100 and fresh > 50  # those of earlier stages stay as they are


def test_episodes_of_failed_problems_are_marked():
    env, draw = environment(), ProblemDraw(4, 1.0, "detours")
    marked = env.task.pose(None, expression=["9-8-7-6"])
    for _ in range(100):
        draw.failed.add(marked, np.ones(1), np.ones(1, bool), STAGE)
    draw.failed.add(marked.take(np.zeros(300, np.int64)), np.zeros(300), np.zeros(300, bool), STAGE)
    drawn = draw.draw(env, 160, 0.25, NO_TABLES)
    batch = finished(env, drawn.problems, np.random.default_rng(0))
    draw.compare(batch, drawn, STAGE)
    is_marked = [text == "9-8-7-6" for text in texts(drawn.problems)[:120]]
    assert batch.retried.tolist() == is_marked + [False] * 40
    assert 20 < sum(is_marked) < 120


def test_what_the_policy_mostly_failed_is_kept_with_the_share_of_the_fresh_ones(monkeypatch):
    env, rng = environment(), np.random.default_rng(0)
    draw = ProblemDraw(4, 1.0, "detours")
    calls = []
    monkeypatch.setattr(draw.failed, "add", lambda *arguments: calls.append(arguments))
    drawn = draw.draw(env, 80, 0.25, NO_TABLES)
    batch = finished(env, drawn.problems, rng)
    draw.compare(batch, drawn, STAGE)
    [(played, solved, fresh, stage)] = calls
    assert stage == STAGE and fresh is drawn.fresh
    assert texts(played) == texts(drawn.problems)[:60:4]
    assert solved.tolist() == [batch.solved[first : first + 4].mean() for first in range(0, 60, 4)]


def test_nothing_is_kept_where_nothing_is_tried_again():
    draw = ProblemDraw(4)
    assert len(fail_all(draw, environment())) == 0
    draw = ProblemDraw(4, 0.2)
    assert len(fail_all(draw, environment())) > 0


# Practice ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EXPLORER_KINDS)
def test_practice_problems_are_the_task_s(kind, monkeypatch):
    env, same = environment(), environment()
    for one in (env, same):  # practice that can be told from the ordinary
        monkeypatch.setattr(
            one.task,
            "practice",
            lambda rng, stage: env.task.pose(
                None, expression=["7" + "-8" * (k - 2) + "-9" * (k > 1) for k in stage.tolist()]
            ),
        )
    written = texts(ProblemDraw(4, 0.0, kind, practice=True).draw(env, 80, 0.5, NO_TABLES).problems)
    policy, explorers = written[:40:4], written[40:]
    assert set(policy) <= {"7", "7-9", "7-8-9", "7-8-8-9"} and len(set(policy)) > 1
    if kind != "detours":
        assert set(explorers) == {"7-8-8-9"}
    else:  # the same structure, with other digits
        assert all(re.fullmatch(r"\d-\d-\d-\d", text) for text in explorers)
        assert len(set(explorers)) > 30
    plain = texts(ProblemDraw(4, 0.0, kind).draw(same, 80, 0.5, NO_TABLES).problems)
    assert len({re.sub(r"\d", "n", text) for text in plain}) > 10
