"""The task `toolcall`: its machine, its problems and what is held out of training."""

import csv
import dataclasses
import itertools
import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st
from toolcall_reference import ACTIONS, LIMITS, Episode, can_begin, value_of

import toolagent
from toolagent.checkpoints.policy import Policy
from toolagent.errors import UserError
from toolagent.models.network import StageGRUNetwork
from toolagent.rollouts import play as rollouts
from toolagent.rollouts.play import GivenTokens
from toolagent.rollouts.trajectory import trajectory
from toolagent.serve.problems import Refused, keys_of, question_of
from toolagent.serve.schemas import requests_of
from toolagent.tasks import get_task

TASK = get_task("toolcall")
VOCABULARY = TASK.vocabulary
CASES = Path(__file__).parent / "golden" / "toolcall_cases.csv"


def tokens(text):
    return [VOCABULARY.token(name) for name in text.split()]


def told(response):
    """A response as the cases have it: '2 4', '' where nothing was answered."""
    return VOCABULARY.text(token for token in response if token != VOCABULARY.pad_token)


def play(problems, programs):
    """Every program on its problem at once: (steps, 'step:answer; ...', reward, how it ended)."""
    registers, live = TASK.start(problems), np.arange(len(problems))
    answers, ends = [[] for _ in programs], [None] * len(programs)
    for step in range(TASK.max_actions):
        going = np.array([len(programs[row]) > step for row in live], bool)
        live, problems, registers = live[going], problems.take(going), registers.take(going)
        if not len(live):
            break
        actions = np.array([programs[row][step] for row in live])
        transition = TASK.step(problems, registers, actions)
        for place, row in enumerate(live):
            if text := told(transition.response[place]):
                answers[row].append(f"{step + 1}:{text}")
            if transition.done[place]:
                how = "answered" if transition.terminated[place] else "truncated"
                ends[row] = (step + 1, transition.rewards[place], how)
        going = ~transition.done
        live, problems = live[going], problems.take(going)
        registers = transition.registers.take(going)
    return [(end, "; ".join(given)) for end, given in zip(ends, answers, strict=True)]


def test_every_recorded_case_is_repeated():
    with open(CASES, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3000
    problems = TASK.pose(
        np.array([int(row["stage"]) for row in rows]),
        expression=[row["expression"] for row in rows],
        database=[row["database"] for row in rows],
    )
    played = play(problems, [tokens(row["actions"]) for row in rows])
    for row, result in zip(rows, played, strict=True):
        end = (int(row["steps"]), float(row["reward"]), row["ended"])
        assert result == (end, row["responses"]), row


# The machine --------------------------------------------------------------------------------

NUMBERS = st.one_of(st.integers(-12, 99), st.integers(-9999, 9999)).map(
    lambda number: [*(["NEG"] if number < 0 else []), *str(abs(number))]
)
CALLS = st.one_of(
    st.sampled_from("ABCDEFGH").map(lambda key: ["GET", key, "="]),
    st.tuples(st.sampled_from(["ADD", "SUB", "MUL"]), NUMBERS, NUMBERS).map(
        lambda parts: [parts[0], *parts[1], ",", *parts[2], "="]
    ),
    NUMBERS.map(lambda number: ["ANS", *number, "="]),
)
TOKENS = st.sampled_from(ACTIONS)


@st.composite
def nearly_calls(draw):
    """A call in which one token is another, missing or too many."""
    call = draw(CALLS)
    place = draw(st.integers(0, len(call) - 1))
    return [*call[:place], *draw(st.lists(TOKENS, max_size=2)), *call[place + 1 :]]


PROGRAMS = st.lists(
    st.one_of(CALLS, CALLS, nearly_calls(), st.lists(TOKENS, min_size=1, max_size=6)), max_size=20
).map(lambda parts: [token for part in parts for token in part])


@given(st.integers(0, 8), st.integers(0, 2**32), PROGRAMS, st.booleans())
def test_the_machine_does_what_the_scalar_reference_does(stage, seed, program, ends_right):
    problem = TASK.sample(np.random.default_rng(seed), np.array([stage]))
    expression = TASK.read(problem.context)["expression"][0]
    episode = Episode(stage, expression, problem.database[0].tolist())
    assert TASK.target(problem)[0] == episode.value
    if ends_right:
        number = [*(["NEG"] if episode.value < 0 else []), *str(abs(episode.value))]
        program = [*program, "ANS", *number, "="]
    registers = TASK.start(problem)
    for token in program:
        transition = TASK.step(problem, registers, np.array([VOCABULARY.token(token)]))
        registers = transition.registers
        assert told(transition.response[0]) == " ".join(episode.step(token))
        assert transition.rewards[0] == transition.solved[0] == episode.reward
        assert bool(transition.terminated[0]) == (episode.ended == "answered")
        assert bool(transition.truncated[0]) == (episode.ended == "truncated")
        assert (TASK.status(registers)[0] == 0) == (not episode.call and not episode.reward) or (
            episode.ended == "answered"
        )
        assert TASK.show(registers, 0)["answers"] == episode.answered
        if episode.ended:
            break


def test_the_status_alone_tells_which_tokens_are_refused():
    """Every call that can be begun, with one digit in place of ten, one key and one operation."""
    problem, waiting, accepted = TASK.example(), [()], {}
    while waiting:
        call = waiting.pop()
        registers = TASK.start(problem)
        for token in call:
            registers = TASK.step(problem, registers, np.array([VOCABULARY.token(token)])).registers
        going_on = frozenset(token for token in ACTIONS if can_begin([*call, token]))
        assert accepted.setdefault(int(TASK.status(registers)[0]), going_on) == going_on
        few = going_on - set("023456789BCDEFGH=") - {"SUB", "MUL"}
        waiting += [(*call, token) for token in sorted(few)]
    assert sorted(accepted) == list(range(TASK.num_statuses - 1))  # the last: it was answered


def test_what_is_written_and_answered_is_shown():
    problem = TASK.pose(None, expression="3*B+C-7", database=[92, 19, 3, 86, 8, 1, 48, 2])
    registers = TASK.start(problem)
    seen = []
    for token in tokens("GET B = MUL 9 , NEG 1 2 = MUL 9 9 9 , 9 9 = ANS 5 3 ="):
        registers = TASK.step(problem, registers, np.array([token])).registers
        shown = TASK.show(registers, 0)
        seen.append((shown["call"], shown["last"]))
    assert seen[:4] == [("GET", None), ("GET B", None), (None, "19"), ("MUL", "19")]
    assert seen[8:11] == [("MUL 9 , -12", "19"), (None, "-108"), ("MUL", "-108")]
    assert seen[-5] == (None, "ERR") and shown["answers"] == 2
    assert [column.tolist() for column in TASK.accumulator(registers)] == [[53], [True]]
    assert TASK.describe(problem, 0) == "3*B+C-7 = 3*19+3-7 = 53"


# Problems -----------------------------------------------------------------------------------

STAGES = list(TASK.stages)
DIGITS, KEYS = "0123456789", "ABCDEFGH"


def texts(problems):
    return [str(text) for text in TASK.read(problems.context)["expression"]]


def drawn(stage, count=800):
    """By name: what training may be given."""
    rng, stages = np.random.default_rng(stage), np.full(count, stage, np.int8)
    practised = TASK.practice(rng, stages)
    return {
        "sample": TASK.sample(rng, stages),
        "practice": practised,
        "variants": TASK.variants(practised, rng),
        "siblings": TASK.siblings(practised, rng),
    }


def held_out(split, stage, count=1000):
    stages = np.full(count, stage, np.int8)
    problems = TASK.sample(np.random.default_rng(1), stages, split)
    assert set(TASK.split_of(problems)) == {TASK.splits.index(split)}
    return problems


def operators(text):
    return "".join(character for character in text if character in "+-*")


def values_in(problems):
    """(key, value) of the keys that the prompts ask for."""
    return {
        (key, int(database[KEYS.index(key)]))
        for text, database in zip(texts(problems), problems.database, strict=True)
        for key in KEYS
        if key in text
    }


@pytest.mark.parametrize("stage", STAGES)
def test_problems_are_of_their_stage_and_can_be_solved(stage):
    counts = [(1, 0, 0), (1, 1, 1), (2, 0, 0), (2, 1, 1), (2, 0, 2), (3, 0, 0)]
    counts += [(operands, 0, operands) for operands in (3, 4, 5)]
    operands, least, most = counts[stage]
    for name, problems in drawn(stage, 500).items():
        found = set()
        for text, database, target in zip(
            texts(problems), problems.database.tolist(), TASK.target(problems), strict=True
        ):
            assert len(text) == 2 * operands - 1
            found.add(sum(character in KEYS for character in text))
            assert value_of(text, database) == target and abs(target) <= 9999
            if name != "sample" and operands > 1:
                assert not set("01") & set(text) and min(database) >= 2
        assert found == set(range(least, most + 1))
        assert (problems.stage == stage).all() and not TASK.split_of(problems).any()
        plans = [TASK.plan(problems, row) for row in range(len(problems))]
        limit = int(TASK.action_limit(problems.stage)[0])
        assert None not in plans and max(map(len, plans)) <= limit == LIMITS[stage]


def test_variants_and_siblings_keep_what_they_should():
    for stage in STAGES:
        problems = drawn(stage)
        for other, kept in (("variants", r"[+*-]"), ("siblings", r".")):
            pairs = zip(texts(problems["practice"]), texts(problems[other]), strict=True)
            for text, new in pairs:
                assert re.findall(kept, text) == re.findall(kept, new)
                assert [c in KEYS for c in text] == [c in KEYS for c in new]
            same = (problems["practice"].database == problems[other].database).all(1)
            # Of a long product few databases are small enough; then it keeps its own.
            assert same.mean() < 0.01


def test_nothing_that_is_held_out_is_drawn_for_training():
    pairs = {text[0] + text[2] for text in texts(held_out("held_out_pairs", 2))}
    # Always the same: what an older checkpoint was not trained on.
    assert sorted(pairs) == ["06", "17", "26", "28", "29", "41", "53", "71", "79", "94"]
    assert {text[0] + text[2] for text in texts(held_out("held_out_pairs", 4))} == pairs
    values = values_in(held_out("held_out_values", 1, 4000))
    assert len(values) == 80 and all(sum(k == key for k, _ in values) == 10 for key in KEYS)
    skeletons = {
        stage: {operators(text) for text in texts(held_out("held_out_skeletons", stage))}
        for stage in (7, 8)
    }
    assert (len(skeletons[7]), len(skeletons[8])) == (3, 9)
    for stage in STAGES:
        for problems in drawn(stage).values():
            shown = texts(problems)
            if stage in (2, 4):
                assert not {text[0] + text[2] for text in shown} & pairs
            every = {
                (key, value)
                for row in problems.database.tolist()
                for key, value in zip(KEYS, row, strict=True)
            }
            assert not every & values and len(every) > 680
            if stage >= 7:
                skeleton = {operators(text) for text in shown}
                assert not skeleton & skeletons[stage]
                assert len(skeleton | skeletons[stage]) == 3 ** (stage - 4)
    for stage in (3, 4, 6, 7, 8):
        problems = held_out("held_out_values", stage)
        assert all(
            any((key, int(row[KEYS.index(key)])) in values for key in KEYS if key in text)
            for text, row in zip(texts(problems), problems.database, strict=True)
        )
    assert [len(TASK.splits_of(stage)) for stage in STAGES] == [1, 2, 2, 2, 3, 1, 2, 3, 3]
    with pytest.raises(ValueError, match="stage 2 has no problems of the split 'held_out_values'"):
        TASK.sample(np.random.default_rng(0), np.array([2]), "held_out_values")


def every_listed():
    yield 0, [(digit, None, None) for digit in DIGITS]
    yield 1, [(key, key, value) for key in KEYS for value in range(100)]
    both = itertools.product(DIGITS, "+-*", DIGITS)
    yield 2, [("".join(parts), None, None) for parts in both]
    parts = list(itertools.product(KEYS, "+-*", DIGITS, range(100)))
    first = [(f"{key}{sign}{digit}", key, value) for key, sign, digit, value in parts]
    yield 3, first + [(f"{digit}{sign}{key}", key, value) for key, sign, digit, value in parts]


@pytest.mark.parametrize(
    ("stage", "expected"), every_listed(), ids=["digit", "key", "2 digits", "digit and key"]
)
def test_a_listed_stage_has_each_problem_exactly_once(stage, expected):
    total = TASK.num_problems(stage)
    parts = [TASK.problems(stage, start, start + 7777) for start in range(0, total, 7777)]
    problems = type(parts[0]).concatenate(parts)
    found = []
    for text, database in zip(texts(problems), problems.database.tolist(), strict=True):
        key = next((character for character in text if character in KEYS), None)
        found.append((text, key, None if key is None else database[KEYS.index(key)]))
    assert total == len(found) == len(expected) and set(found) == set(expected)
    assert (problems.stage == stage).all()
    shares = np.bincount(TASK.split_of(problems), minlength=4) / total
    held = 0 if stage == 0 else 0.1
    assert shares.tolist() == [1 - held, *((held, 0) if stage == 2 else (0, held)), 0]
    rows = np.arange(0, total, max(1, total // 200))
    some = problems.take(rows)
    played = play(some, [TASK.plan(some, row) for row in range(len(some))])
    assert all((reward, end) == (1, "answered") for (_, reward, end), _ in played)
    assert TASK.num_problems(4) is None


@pytest.mark.parametrize("stage", STAGES[4:])
def test_a_plan_solves_every_problem_of_a_stage_that_is_not_listed(stage):
    for split in TASK.splits_of(stage):
        problems = held_out(split, stage, 100)
        played = play(problems, [TASK.plan(problems, row) for row in range(100)])
        assert all((reward, end) == (1, "answered") for (_, reward, end), _ in played)


def test_a_plan_asks_once_for_each_key_and_multiplies_first():
    problem = TASK.pose(None, expression="B-A*B", database=[3, 10, 0, 0, 0, 0, 0, 0])
    plan = "GET B = GET A = MUL 3 , 1 0 = SUB 1 0 , 3 0 = ANS NEG 2 0 ="
    assert VOCABULARY.text(TASK.plan(problem, 0)) == plan
    large = TASK.pose(None, expression="A*A*A*H", database=[99, *[0] * 7])
    assert TASK.target(large) == 0 and TASK.plan(large, 0) is None  # no tool answers with 99^3


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"expression": "3*X"}, r"'3\*X': 'X' \(character 3\) is not understood"),
        ({"expression": "(3+4)"}, "is not understood"),
        ({"expression": "3*"}, "expected a digit or a key at the end"),
        ({"expression": ""}, "expected a digit or a key at the end"),
        ({"expression": "34"}, "expected an operator before '4'; operands are single"),
        ({"expression": "1+1+1+1+1+1"}, "6 operands; at most 5"),
        ({"expression": "1" * 1000}, "1,000 characters"),
        ({"expression": 3}, "an expression is a text"),
        ({"expression": "3*B"}, "'database' is missing"),
        ({"expression": "3*B", "database": [1] * 7}, "a database is 8 whole numbers"),
        ({"expression": "3*B", "database": [1.5] * 8}, "a database is 8 whole numbers"),
        ({"expression": "3*B", "database": [100] * 8}, "100 is none"),
        ({"expression": "3*B", "database": "1 2 3"}, "got '1 2 3'"),
        ({"expression": "3*B", "database": "1 2 3 4 5 6 7 x"}, "a database is 8 whole numbers"),
        ({"expression": ["3", "4"], "database": [[1] * 8] * 3}, "one or 2 of them"),
        ({"expression": ["3", "4"], "database": [[1] * 8, [1]]}, "a database is 8"),
        ({"expression": "A*A*A", "database": [99] * 8}, "is 970299; no answer can be beyond 9999"),
        ({"expression": "3*4", "stage": 3}, "is of stage 2 or 4, by its operands"),
        ({"expression": "3", "stage": [0, 0]}, "2 stages for 1 expressions"),
        ({"expression": "3", "stage": 9}, r"stages are 0\.\.8"),
        ({"database": [1] * 8}, "posed by 'expression'"),
        ({"expression": "3", "digits": 3}, "not by 'digits'"),
    ],
)
def test_a_problem_that_cannot_be_posed_is_refused(given, reason):
    stage = given.get("stage")
    rest = {name: value for name, value in given.items() if name != "stage"}
    with pytest.raises(ValueError, match=reason):
        TASK.pose(None if stage is None else np.array(stage), **rest)


def test_a_posed_problem_is_of_the_smallest_stage_that_fits_or_the_one_asked_for():
    expressions = ["3", "B", " 3 * 4 ", "3*B", "A*B", "1+2+3", "1+2+C", "1+2+3+4", "1+2+3+4+5"]
    database = np.tile(np.arange(8), (9, 1))
    problems = TASK.pose(None, expression=expressions, database=database)
    assert problems.stage.tolist() == STAGES
    assert TASK.target(problems).tolist() == [3, 1, 12, 3, 0, 6, 5, 10, 15]
    again = TASK.pose(np.array(4), expression=["3*4", "3*B"], database="0 1 2 3 4 5 6 7")
    assert again.stage.tolist() == [4, 4] and TASK.target(again).tolist() == [12, 3]


# Environments, and who asks whether an episode was answered --------------------------------


def test_the_environments_show_what_is_answered_and_take_a_problem():
    env = gym.make("toolagent/ToolCall-v0").unwrapped
    check_env(env)
    observation, _ = env.reset(
        options={"expression": "3*B+C-7", "database": [19, 3, 86, 8, 1, 48, 2, 2]}
    )
    assert observation["context"].tolist() == [3, 13, 19, 11, 20, 12, 7, 27, 27]
    assert (observation["stage"], observation["previous_token"]) == (7, 27)
    for token in tokens("GET C ="):
        observation, *_ = env.step(token)
    assert told(observation["response"]) == "8 6"
    assert told(env.step(VOCABULARY.token("="))[0]["response"]) == "ERR"
    for token in tokens("ANS 8 8 ="):
        _, reward, terminated, truncated, info = env.step(token)
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert info == {"acc": 88, "solved": True}
    envs = gym.make_vec("toolagent/ToolCall-v0", num_envs=3, stage=1)
    observation, _ = envs.reset(seed=0)
    assert observation["response"].shape == (3, 6)


def test_acting_goes_on_behind_the_token_that_begins_an_answer():
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(2)  # of the few that write `ANS` at all
        network = StageGRUNetwork(TASK.interface, (16,)).eval()
        for parameter in network.parameters():
            parameter.mul_(3)
    agent = toolagent.Agent(Policy(network, TASK, {}, Path()))
    envs = gym.make_vec("toolagent/ToolCall-v0", num_envs=30, stage=5)
    observation, _ = envs.reset(seed=0)
    problems = envs.unwrapped._problems
    expected, state, written = rollouts.play(network, TASK, problems), None, []
    for _ in range(int(expected.lengths.min())):
        actions, state = agent.act(observation, state)
        written.append(actions)
        observation = envs.step(actions)[0]
    assert np.array_equal(np.stack(written, 1), expected.actions[:, : len(written)])
    ans = np.stack(written, 1)[:, :-1] == VOCABULARY.answer_token
    assert ans.any() and len(written) > 5  # some went on behind it


def test_a_program_goes_on_behind_ans_and_ends_behind_its_number():
    asked = requests_of(TASK, keys_of(TASK)).problem
    begun = asked(expression="6*7", given=["ANS", "4", "2"])
    assert question_of(TASK, begun).given == (15, 4, 2)
    with pytest.raises(Refused, match=r"'1' comes after = \(token 4\)"):
        question_of(TASK, asked(expression="6*7", given=["ANS", "4", "2", "=", "1"]))


def test_a_task_whose_answer_ends_nothing_tells_how_episodes_begin():
    class Unclear(type(TASK)):
        name = "unclear"
        vocabulary = dataclasses.replace(VOCABULARY, start="ANS")

    with pytest.raises(UserError, match=r"start, ANS, must be no action"):
        toolagent.register_task(Unclear)


@pytest.mark.parametrize(
    ("program", "answer"),
    [("ADD 3 , 1 = = ANS", None), ("ANS 3 1 =", 31), ("ANS NEG 4 =", -4)],
)
def test_an_episode_was_answered_if_the_machine_says_so(program, answer, monkeypatch):
    """Not if its last token is the one that begins an answer."""
    play_greedily = rollouts.play

    def play_given(network, task, problems):
        given = GivenTokens(np.array([tokens(program)]))
        return play_greedily(network, task, problems, chooser=given)

    monkeypatch.setattr("toolagent.rollouts.trajectory.play", play_given)
    network = StageGRUNetwork(TASK.interface, (16,)).eval()
    recorded = trajectory(network, TASK, TASK.pose(None, expression="4"))
    assert (recorded.answered, recorded.answer) == (answer is not None, answer)
