"""Expressions of up to 16 operands: drawn without tables of skeletons, else as the shorter ones."""

import random
import re
from collections import Counter

import numpy as np
import pytest

from toolagent.examples import expressions
from toolagent.rollouts.certification import certify_stage
from toolagent.tasks import get_task
from toolagent.tasks.infix import parse
from toolagent.tasks.skeletons import random_shapes, shapes
from toolagent.tasks.tokens import ANS

TASK, SHORT = get_task("expression_long"), get_task("expression")


def read(problems):
    texts = TASK.read(problems.context)["expression"]
    return [parse(text, 16, 61) for text in texts.tolist()]


@pytest.mark.parametrize("kind", ["sample", "practice"])
def test_what_is_drawn_is_of_its_stage_and_worth_its_target(kind):
    rng = np.random.default_rng(0)
    drawn = getattr(TASK, kind)(rng, np.repeat(np.arange(1, 17), 25).astype(np.int8))
    others = TASK.variants(drawn, rng)
    for problems in (drawn, others):
        expressions = read(problems)
        assert [one.operands for one in expressions] == problems.stage.tolist()
        assert [one.value for one in expressions] == problems.target.tolist()
    differ = drawn.context != others.context
    assert differ.any(1)[100:].all() and (drawn.context[differ] < 10).all()
    if kind == "practice":
        assert drawn.context[drawn.stage > 2].min() >= 2
    posed = TASK.pose(None, expression=TASK.read(drawn.context)["expression"])
    for name, column in posed.columns():
        assert np.array_equal(column, getattr(drawn, name)), name


def test_rewritten_problems_mean_the_same_and_have_digits_in_parentheses():
    rng = np.random.default_rng(0)
    drawn = TASK.practice(rng, np.repeat(np.arange(1, 17), 100).astype(np.int8))
    rewritten = TASK.rewritten(drawn, rng)
    posed = TASK.pose(None, expression=TASK.read(rewritten.context)["expression"])
    for name, column in posed.columns():
        assert np.array_equal(column, getattr(rewritten, name)), name
    for name in ("stage", "target", "skeleton", "held_out"):
        assert np.array_equal(getattr(drawn, name), getattr(rewritten, name)), name
    texts = [TASK.read(problems.context)["expression"] for problems in (drawn, rewritten)]
    without = [re.sub(r"\((\d)\)", r"\1", text) for text in texts[1].tolist()]
    assert without == texts[0].tolist()
    assert 0.2 < (texts[0] != texts[1]).mean() < 0.6
    assert (texts[0] == texts[1])[drawn.stage == 16].mean() > 0.5  # where there is no room, too


@pytest.mark.parametrize("operands", [4, 6])
def test_trees_without_a_table_are_the_tables_and_equally_likely(operands):
    table, drawn = shapes(operands), random_shapes(np.random.default_rng(1), 6000, operands)
    index = {
        tuple(np.concatenate([table.first[tree], table.last[tree]]).tolist()): tree
        for tree in range(table.count)
    }
    trees = np.array(
        [index[tuple(spans)] for spans in np.concatenate([drawn.first, drawn.last], 1).tolist()]
    )
    for name in ("parent", "is_right", "postfix"):
        assert np.array_equal(getattr(drawn, name), getattr(table, name)[trees]), name
    expected = 6000 / table.count
    counts = np.bincount(trees, minlength=table.count)
    assert (((counts - expected) ** 2) / expected).sum() < 2.5 * table.count  # chi squared


def test_operators_and_digits_of_long_ones_are_equally_likely():
    problems = TASK.sample(np.random.default_rng(2), np.full(2000, 16, np.int8))
    counts = Counter(problems.context.flatten().tolist())
    for tokens, total in ((range(10), 16 * 2000), ((11, 12, 13), 15 * 2000)):
        for token in tokens:
            assert abs(counts[token] * len(tokens) / total - 1) < 0.08


def test_the_shorter_task_has_short_contexts_and_draws_the_same_problems():
    assert (SHORT.context_length, SHORT.max_actions) == (30, 17)
    assert (TASK.context_length, TASK.max_actions) == (62, 33)
    stage = np.repeat(np.arange(1, 9), 20).astype(np.int8)
    one, other = (task.sample(np.random.default_rng(3), stage) for task in (SHORT, TASK))
    assert np.array_equal(one.context, other.context[:, :30])
    assert np.array_equal(one.held_out, other.held_out)


def test_no_long_skeleton_is_held_out():
    assert TASK.splits_of(8) == ("seen", "held_out") and TASK.splits_of(9) == ("seen",)
    with pytest.raises(ValueError, match="of stage 9 are held out; those of 4 to 8 operands are"):
        TASK.sample(np.random.default_rng(0), np.array([9], np.int8), "held_out")


def test_long_programs_are_judged_as_short_ones():
    problems = TASK.sample(np.random.default_rng(4), np.full(40, 16, np.int8))
    programs = [TASK.plan(problems, row) for row in range(40)]
    actions, lengths = np.array(programs), np.full(40, 32)
    assert all(TASK.judge(problems, actions, lengths)["shortest"])
    wrong = actions.copy()
    wrong[:, -2] = np.where(wrong[:, -2] == 12, 11, 12)  # the last operation is another one
    assert not TASK.judge(problems, wrong, lengths)["algebraically_valid"].any()
    assert (actions[:, -1] == ANS).all()
    assert TASK.continuation(problems, 0, programs[0][:5]) == programs[0][5:]
    assert TASK.continuation(problems, 0, (11,)) is None  # too long to be searched


def test_a_stage_of_long_ones_is_counted_on_one_sample(monkeypatch):
    from test_call_stack import SMALL, make_network  # any network of that task

    monkeypatch.setattr("toolagent.rollouts.certification.SAMPLE_SIZE", 64)
    row = certify_stage(make_network(0, SMALL, TASK.interface), TASK, 16)
    assert (row.problems, row.split, row.other_splits) == (64, "seen", ())


@pytest.mark.parametrize("kind", expressions.KINDS)
def test_expressions_of_another_origin_are_what_they_are_said_to_be(kind):
    """Python's own arithmetic is the oracle: what is written is worth what its tree is."""

    def value(tree):
        if isinstance(tree, int):
            return tree
        operator, left, right = tree
        left, right = value(left), value(right)
        return {"+": left + right, "-": left - right, "*": left * right}[operator]

    rng = random.Random(1)
    for operands in range(1, 17):
        trees = [expressions.drawn(rng, operands, kind) for _ in range(20)]
        texts = [expressions.text_of(tree, all_written=kind == "nested") for tree in trees]
        assert [eval(text) for text in texts] == [value(tree) for tree in trees]
        problems = TASK.pose(None, expression=texts)
        assert (problems.stage == operands).all()
        deepest = [
            max(text[:end].count("(") - text[:end].count(")") for end in range(len(text)))
            for text in texts
        ]
        assert TASK.depth(problems).tolist() == deepest
        if kind == "nested":
            assert set(deepest) == {max(0, operands - 2)}
