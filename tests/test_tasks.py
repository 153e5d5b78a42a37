"""The batched machines against slow scalar ones, and the problems they are posed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_machines import REFERENCES

from toolagent.tasks import TASKS, Task, get_task
from toolagent.tasks.tokens import ANS, CTX, EOS, MUL

NAMES = ["tutorial", "calculator"]
TOOL_HEAVY = st.sampled_from([*range(18), *[11, 12, 13, 15, 16] * 8, 14, 14])
PROGRAM = st.lists(TOOL_HEAVY, min_size=7, max_size=7)
DIGITS = st.lists(st.integers(0, 9), min_size=5, max_size=5)


def assert_like_the_reference(name, stages, digits, programs):
    """Runs B episodes of both machines side by side; `programs` (B, 7)."""
    task = get_task(name)
    problems = task.pose(np.asarray(stages), digits=np.asarray(digits))
    registers = task.start(problems)
    references = [REFERENCES[name](stage, row) for stage, row in zip(stages, digits, strict=True)]
    live = np.arange(len(references))
    for step in range(task.max_actions):
        actions = np.asarray(programs)[live, step]
        transition = task.step(problems, registers, actions)
        value, filled = task.accumulator(transition.registers)
        for row, episode in enumerate(live):
            reference = references[episode]
            reward, terminated, truncated, solved = reference.step(int(actions[row]))
            where = (name, stages[episode], digits[episode], programs[episode], step)
            assert transition.rewards[row] == pytest.approx(reward, abs=1e-12), where
            assert transition.terminated[row] == terminated, where
            assert transition.truncated[row] == truncated, where
            assert transition.solved[row] == solved, where
            assert (int(value[row]) if filled[row] else None) == reference.acc, where
            assert transition.registers.steps[row] == reference.steps == step + 1, where
        going = ~transition.done
        live, problems = live[going], problems.take(going)
        registers = transition.registers.take(going)
    assert not len(live)  # the last action truncates whatever has not answered


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(episodes=st.lists(st.tuples(st.integers(0, 2), DIGITS, PROGRAM), min_size=1, max_size=8))
def test_the_batched_machine_does_what_the_scalar_one_does(name, episodes):
    stages, digits, programs = zip(*episodes, strict=True)
    assert_like_the_reference(name, stages, digits, programs)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_on_thousands_of_random_programs_of_tools(name):
    rng = np.random.default_rng(1)
    size = 4000
    # Seldom ANS, so that episodes get far enough to use memory and latch.
    programs = rng.choice([MUL, 12, 13, 15, 16, ANS, 5], (size, 7), p=[*[0.18] * 5, 0.07, 0.03])
    stages, digits = rng.integers(0, 3, size), rng.integers(0, 10, (size, 5))
    assert_like_the_reference(name, stages.tolist(), digits.tolist(), programs.tolist())


@pytest.mark.parametrize("name", TASKS)
def test_a_step_changes_none_of_its_arguments(name):
    task, rng = get_task(name), np.random.default_rng(2)
    problems = task.sample(rng, rng.choice(task.stages, 500).astype(np.int8))
    registers = task.start(problems)
    for _ in range(task.max_actions):
        actions = rng.choice([MUL, 12, 13, ANS, 15, 16, *range(8)], 500)
        # A write to a frozen array raises.
        columns = [column for _, column in (*problems.columns(), *registers.columns())]
        for array in (*columns, actions):
            array.flags.writeable = False
        before = [column.copy() for column in columns]
        after = task.step(problems, registers, actions).registers
        for column, old in zip(columns, before, strict=True):
            assert np.array_equal(column, old)
        # Nor does it hand its arguments on: the vector env writes into what it gets back.
        for _, column in after.columns():
            assert not any(np.shares_memory(column, old) for old in columns)
        registers = after


@pytest.mark.parametrize("name", TASKS)
def test_a_status_is_small_and_0_is_the_first(name):
    task, rng = get_task(name), np.random.default_rng(4)
    problems = task.sample(rng, rng.choice(task.stages, 2000).astype(np.int8))
    registers = task.start(problems)
    assert not task.status(registers).any()
    for _ in range(task.max_actions - 1):
        registers = task.step(problems, registers, rng.choice([11, 12, 15, 16, 3], 2000)).registers
        status = task.status(registers)
        assert status.dtype == np.int8
        assert status.min() >= 0 and status.max() < task.num_statuses


# Problems ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_enumeration_holds_each_problem_exactly_once(stage):
    task = get_task("calculator")
    total = task.num_problems(stage)
    assert total == 10 ** (3 + stage)
    seen = []
    for start in range(0, total, 777):  # ends in a chunk that is not full
        problems = task.problems(stage, start, start + 777)
        assert (problems.stage == stage).all()
        seen.append(problems.context)
    contexts = np.concatenate(seen)
    assert contexts.shape == (total, 6)
    assert len(np.unique(contexts, axis=0)) == total
    assert contexts[:, : 3 + stage].min() == 0 and contexts[:, : 3 + stage].max() == 9


@pytest.mark.parametrize("name", NAMES)
@given(stage=st.integers(0, 2), digits=DIGITS)
def test_a_posed_problem_is_shown_and_scored_as_stated(name, stage, digits):
    task = get_task(name)
    problems = task.pose(np.array([stage]), digits=digits)
    shown = digits[: 3 + stage]
    assert problems.context[0].tolist() == (shown + [CTX] + [EOS] * 3)[:6]
    assert task.target(problems)[0] == REFERENCES[name](stage, digits).target
    formula, numbers, target = task.describe(problems, 0).split(" = ")
    # The formula with its letters replaced is the arithmetic itself.
    assert eval(numbers) == int(target) == task.target(problems)[0]
    assert formula == task.formulas[stage] == ["a*b+c", "a*b+c-d", "a*b+c-d*e"][stage]
    # What the agent reads is the whole problem.
    again = task.pose(problems.stage, **task.read(problems.context))
    assert np.array_equal(again.context, problems.context)
    assert task.target(again) == task.target(problems)


@pytest.mark.parametrize("name", TASKS)
def test_what_each_task_tells_about_its_stages(name):
    task = get_task(name)
    assert list(task.stages) == list(range(task.first_stage, task.first_stage + task.num_stages))
    assert len(task.formulas) == task.num_stages
    for stage in task.stages:
        assert task.splits_of(stage)[0] == task.splits[0]
        assert task.formula(stage) == task.formulas[stage - task.first_stage]
        assert set(task.shown_columns(stage)) <= set(task.problem_columns)
        problems = task.sample(np.random.default_rng(0), np.full(100, stage, np.int8))
        assert not task.split_of(problems).any()  # by default of the first split
        posed_again = task.pose(problems.stage, **task.posing(problems))
        assert np.array_equal(posed_again.context, problems.context)
        assert np.array_equal(task.target(posed_again), task.target(problems))
        assert len(task.vocabulary) > problems.context.max()
        assert problems.context.shape == (100, task.context_length)
        assert task.example(stage).stage.tolist() == [stage]
    assert len(task.example()) == 1
    for wrong in (task.first_stage - 1, task.stages[-1] + 1):
        for question in (task.splits_of, task.num_problems, task.shown_columns):
            with pytest.raises(ValueError, match=f"stage {wrong} is not in task '{name}'"):
                question(wrong)


def test_arithmetic_problems_do_not_tell_their_stage():
    for name in NAMES:
        with pytest.raises(ValueError, match="posed with a stage"):
            get_task(name).pose(None, digits=[1, 2, 3, 4, 5])
        assert not get_task(name).problem_tells_stage


def test_the_parts_of_a_problem_are_made_of_what_its_stage_shows():
    task, digits = get_task("calculator"), [3, 4, 5, 6, 7]
    problems = task.pose(np.array([0, 1, 2]), digits=[digits] * 3)
    first = {"a*b": 12, "a*b+c": 17}
    assert task.terms(problems, 0) == first
    assert task.terms(problems, 1) == first | {"a*b+c-d": 11}
    assert task.terms(problems, 2) == first | {"a*b+c-d": 11, "d*e": 42, "a*b+c-d*e": -25}
    assert [task.shown_columns(stage) for stage in task.stages] == [
        ("a", "b", "c"),
        ("a", "b", "c", "d"),
        ("a", "b", "c", "d", "e"),
    ]


@pytest.mark.parametrize("name", [name for name in TASKS if TASKS[name].plan is not Task.plan])
def test_a_plan_solves_its_problem(name):
    task, rng = get_task(name), np.random.default_rng(5)
    problems = task.sample(rng, rng.choice(task.stages, 100).astype(np.int8))
    unplanned = []
    for row, stage in enumerate(problems.stage):
        plan = task.plan(problems, row)
        if plan is None:
            unplanned.append((name, int(stage)))
            continue
        one = problems.take(np.array([row]))
        registers = task.start(one)
        for token in plan:
            transition = task.step(one, registers, np.array([token]))
            registers = transition.registers
        assert transition.solved[0] and len(plan) <= task.max_actions
    # No program solves the tutorial's last stage.
    assert set(unplanned) == ({("tutorial", 2)} if name == "tutorial" else set())


@pytest.mark.parametrize("name", NAMES)
def test_arithmetic_programs_are_not_judged_and_compute_no_formula_of_their_own(name):
    task = get_task(name)
    problems = task.example()
    assert (
        task.judge(problems, np.array([[MUL, ANS]]), np.array([2]))
        == {}
        == dict(zip(task.judgements, [], strict=True))
    )
    assert task.computes([MUL, ANS]) is None


def test_samples_are_even_over_the_digits_and_keep_their_stages():
    task, rng = get_task("calculator"), np.random.default_rng(4)
    stages = rng.integers(0, 3, 100_000).astype(np.int8)
    problems = task.sample(rng, stages)
    assert np.array_equal(problems.stage, stages)
    for position in range(5):
        counts = np.bincount(problems.digits[:, position], minlength=10)
        assert counts.shape == (10,)
        # 5 standard deviations of a binomial count with n = 100,000 and p = 0.1.
        assert np.abs(counts - 10_000).max() < 5 * np.sqrt(100_000 * 0.1 * 0.9)
    # The digits are independent: each of the 100 pairs of neighbours is as frequent.
    for position in range(4):
        pairs = problems.digits[:, position].astype(int) * 10 + problems.digits[:, position + 1]
        assert np.abs(np.bincount(pairs, minlength=100) - 1000).max() < 5 * np.sqrt(990)


def test_the_same_stream_gives_the_same_problems():
    task, stages = get_task("tutorial"), np.full(50, 2, np.int8)
    first, second, other = (
        task.sample(np.random.default_rng(seed), stages).digits for seed in (7, 7, 8)
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("stage", "given", "message"),
    [
        ([3], {"digits": [1, 2, 3, 4, 5]}, r"stages are 0\.\.2"),
        ([-1], {"digits": [1, 2, 3, 4, 5]}, r"stages are 0\.\.2"),
        ([0.5], {"digits": [1, 2, 3, 4, 5]}, r"stages are 0\.\.2"),
        ([0], {"digits": [1, 2, 3, 4, 10]}, r"integers 0\.\.9"),
        ([0], {"digits": [1, 2, 3, 4, -1]}, r"integers 0\.\.9"),
        ([0], {"digits": [1.0, 2.0, 3.0, 4.0, 5.0]}, r"integers 0\.\.9"),
        ([0], {"digits": [1, 2, 3]}, r"expected \(1, 5\)"),
        ([0, 1], {"digits": [1, 2, 3, 4, 5]}, r"expected \(2, 5\)"),
        ([0], {"digit": [1, 2, 3, 4, 5]}, r"posed by 'digits'.*not by 'digit'"),
        ([0], {"digits": [1, 2, 3, 4, 5], "seed": 1}, "not by 'seed'"),
        ([0], {}, "posed by 'digits'"),
    ],
)
def test_a_problem_that_cannot_be_posed_is_refused(stage, given, message):
    for name in NAMES:
        with pytest.raises(ValueError, match=message):
            get_task(name).pose(np.array(stage), **given)


def test_an_unknown_task_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'calculator'"):
        get_task("calculater")
    assert set(NAMES) <= set(TASKS)
