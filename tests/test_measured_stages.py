"""Stages whose problems are too many to be listed, and programs that are judged: `expression`."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from planner import Planner, empty_handed, shortcut, shortest, silent, sums_only, wasteful
from trained import untrained_network

from toolagent.config.settings import MAX_SEED
from toolagent.rollouts import certification
from toolagent.rollouts.certification import (
    SAMPLE_SIZE,
    certify,
    certify_if_solved,
    certify_stage,
    fixed_sample,
    measure,
)
from toolagent.rollouts.episode_batch import empty_batch
from toolagent.tasks import get_task
from toolagent.tasks.tokens import MUL

EXPRESSION = get_task("expression")


@pytest.fixture
def small_sample(monkeypatch):
    monkeypatch.setattr(certification, "SAMPLE_SIZE", 200)
    return 200


def texts(problems):
    return [str(text) for text in EXPRESSION.read(problems.context)["expression"]]


def sample(stage, split):
    return [text for part in fixed_sample(EXPRESSION, stage, split) for text in texts(part)]


# The sample --------------------------------------------------------------------------------


def test_the_sample_is_always_the_same_and_of_its_stage_and_split():
    for stage, split in ((4, "seen"), (4, "held_out"), (8, "held_out")):
        drawn = sample(stage, split)
        assert len(drawn) == SAMPLE_SIZE == 10_000
        np.random.seed(1)  # no global state takes part
        assert sample(stage, split) == drawn
        problems = EXPRESSION.pose(None, expression=drawn)
        assert set(problems.stage.tolist()) == {stage}
        assert set(problems.held_out.tolist()) == {split == "held_out"}


@pytest.mark.parametrize(
    ("stage", "split", "first", "sha256"),
    [
        (4, "seen", "9*8-2*9", "9d75e4eb18bcc5bd"),
        (8, "held_out", "(1*9+2)*(9-0*(7-1+4))", "685f48aa8c280ea2"),
    ],
)
def test_the_sample_is_the_one_recorded(stage, split, first, sha256):
    """Figures of different versions compare only if they are of the same problems."""
    drawn = sample(stage, split)
    assert drawn[0] == first
    assert hashlib.sha256("\n".join(drawn).encode()).hexdigest()[:16] == sha256


def test_no_seed_of_a_run_draws_the_samples_stream():
    """Streams of runs are `SeedSequence((seed, ...))`; the sample's first word is no seed."""
    assert certification._SAMPLE_SEED > MAX_SEED
    assert certification._SAMPLE_SEED < 2**32


# What is counted -----------------------------------------------------------------------------


def test_listed_stages_are_certified_on_every_problem():
    rows = certify(Planner(), EXPRESSION, (1, 2))
    assert [(row.stage, row.problems, row.solved) for row in rows] == [(1, 10, 10), (2, 300, 300)]
    for row in rows:
        assert row.complete and row.certified and row.split is None and row.other_splits == ()
        assert row.judged == {"algebraically_valid": row.problems, "shortest": row.problems}
        assert row.mean_return == 1.0
        assert row.solved_in[2 * row.stage] == row.problems


def test_other_stages_are_measured_split_by_split(small_sample):
    row = certify_stage(Planner(), EXPRESSION, 4)
    (held_out,) = row.other_splits
    for part, split in ((row, "seen"), (held_out, "held_out")):
        assert (part.stage, part.problems, part.solved) == (4, small_sample, small_sample)
        assert part.split == split
        assert part.faultless and not part.complete and not part.certified


@pytest.mark.parametrize(
    ("choose", "solved", "valid", "best"),
    [
        (shortest, 1, 1, 1),
        (wasteful, 1, 1, 0),
        (silent, 0, 0, 0),
        (empty_handed, 0, 0, 0),
    ],
)
@pytest.mark.parametrize("stage", [1, 2, 5])
def test_programs_are_judged_besides_being_right(choose, solved, valid, best, stage, small_sample):
    row = certify_stage(Planner(choose), EXPRESSION, stage)
    for part in (row, *row.other_splits):
        assert part.solved == solved * part.problems
        assert part.judged == {
            "algebraically_valid": valid * part.problems,
            "shortest": best * part.problems,
        }


def test_a_shortcut_is_right_and_not_valid():
    """Of the 300 problems `a op b`, those with a value of one digit are answered with it."""
    problems = EXPRESSION.problems(2, 0, 300)
    one_digit = int(((problems.target >= 0) & (problems.target < 10)).sum())
    row = certify_stage(Planner(shortcut), EXPRESSION, 2)
    assert row.solved == 300 and row.certified
    assert row.judged == {"algebraically_valid": 300 - one_digit, "shortest": 300 - one_digit}
    assert 100 < one_digit < 200
    # With one operand the value *is* the expression.
    assert certify_stage(Planner(shortcut), EXPRESSION, 1).judged["algebraically_valid"] == 10


def test_a_right_value_by_coincidence_is_not_valid():
    """Sums in place of products: right where 2*2 or 0*0 is asked, or no product at all."""
    row = certify_stage(Planner(sums_only), EXPRESSION, 2)
    assert (row.solved, row.judged["algebraically_valid"]) == (202, 200)
    products = (EXPRESSION.problems(2, 0, 300).context == MUL).any(axis=1)
    assert products.sum() == 100


def test_all_problems_of_the_sample_right_is_solved_and_no_certificate(small_sample):
    assert certify_if_solved(Planner(), EXPRESSION, 2)
    assert certify_if_solved(Planner(), EXPRESSION, 5)
    assert not certify_stage(Planner(), EXPRESSION, 5).certified
    assert not certify_if_solved(Planner(sums_only), EXPRESSION, 2)
    assert not certify_if_solved(Planner(sums_only), EXPRESSION, 5)


@pytest.mark.parametrize(("stage", "played_again"), [(2, 0), (5, SAMPLE_SIZE)])
def test_what_is_known_to_be_solved_is_not_played_again(stage, played_again, monkeypatch):
    """Of a sample the second split is, of which nothing is known."""
    network, expected = Planner(), certify_stage(Planner(), EXPRESSION, stage)
    known = {stage: certify_if_solved(network, EXPRESSION, stage)}
    played, play = [], certification.play

    def noted(network, task, problems):
        played.append(len(problems))
        return play(network, task, problems)

    monkeypatch.setattr(certification, "play", noted)
    assert certify(network, EXPRESSION, [stage], known) == [expected]
    assert sum(played) == played_again


def test_what_is_solved_is_judged_by_what_training_draws_from(small_sample):
    def poor_on_held_out(task, problems, row):
        return (
            silent(task, problems, row) if problems.held_out[row] else shortest(task, problems, row)
        )

    network = Planner(poor_on_held_out)
    assert certify_if_solved(network, EXPRESSION, 5)
    row = certify_stage(network, EXPRESSION, 5)
    assert (row.accuracy, row.other_splits[0].accuracy) == (1.0, 0.0)


def test_a_measurement_is_of_the_given_stages_and_of_what_training_draws_from():
    drawn = []

    def note(task, problems, row):
        drawn.append((int(problems.stage[row]), bool(problems.held_out[row])))
        return shortest(task, problems, row)

    rows = measure(Planner(note), EXPRESSION, (2, 5), np.random.default_rng(0), 100)
    assert [(row.stage, row.problems, row.solved, row.mean_return) for row in rows] == [
        (2, 100, 100, 1.0),
        (5, 100, 100, 1.0),
    ]
    assert drawn == [(2, False)] * 100 + [(5, False)] * 100
    assert all(row.faultless and not row.certified for row in rows)


# As JSON -----------------------------------------------------------------------------------------


def test_a_record_has_shares_and_a_record_of_each_other_split(small_sample):
    assert certify_stage(Planner(), EXPRESSION, 2).record() == {
        "stage": 2,
        "problems": 300,
        "solved": 300,
        "accuracy": 1.0,
        "algebraically_valid": 1.0,
        "shortest": 1.0,
        "complete": True,
    }
    assert certify_stage(Planner(wasteful), EXPRESSION, 4).record() == {
        "stage": 4,
        "problems": 200,
        "solved": 200,
        "accuracy": 1.0,
        "algebraically_valid": 1.0,
        "shortest": 0.0,
        "complete": False,
        "held_out": {
            "problems": 200,
            "solved": 200,
            "accuracy": 1.0,
            "algebraically_valid": 1.0,
            "shortest": 0.0,
        },
    }


def test_a_record_of_a_task_that_judges_nothing_has_the_four_figures():
    row = certify_stage(untrained_network(), get_task("calculator"), 0)
    assert list(row.record()) == ["stage", "problems", "solved", "accuracy"]
    assert row.complete


def test_of_a_listed_stage_all_problems_count_and_what_is_held_out_is_told_apart(monkeypatch):
    task = get_task("toolcall")

    def play_right(network, task, problems):
        """As if all were solved but one problem that is held out."""
        batch = empty_batch(task, problems.context, problems.stage)
        batch.lengths[:] = 3
        first_held_out = np.cumsum(task.split_of(problems) > 0) == 1
        batch.solved[:] = ~(first_held_out & (task.split_of(problems) > 0))
        return batch

    monkeypatch.setattr(certification, "play", play_right)
    row = certify_stage(Planner(), task, 1)
    assert (row.problems, row.solved, row.complete, row.certified) == (800, 799, True, False)
    (apart,) = row.other_splits
    assert (apart.split, apart.problems, apart.solved) == ("held_out_values", 80, 79)
    assert row.record() == {
        **{"stage": 1, "problems": 800, "solved": 799, "accuracy": 799 / 800},
        "held_out_values": {"problems": 80, "solved": 79, "accuracy": 79 / 80},
    }
    assert certify_stage(Planner(), task, 0).other_splits == ()
