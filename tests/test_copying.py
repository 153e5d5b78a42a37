"""Exploration by copying: explorers, what their programs computed, and what is replayed of it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from toolagent.learning.algorithm import ToolAgentConfig
from toolagent.learning.dataflow_replay import DataflowReplay
from toolagent.learning.exploration import Exploration
from toolagent.learning.trials import TrialTable
from toolagent.models.answer_attention import AnswerAttentionNetwork
from toolagent.rollouts.copying import MOST_CALLS, CopyingExplorers
from toolagent.rollouts.episode_batch import EpisodeBatch, empty_batch
from toolagent.rollouts.explorers import ExplorersStep
from toolagent.rollouts.play import play
from toolagent.tasks import get_task

TASK = get_task("toolcall")
NAMES = TASK.vocabulary.names
STRUCTURE = {"GET", "ANS", ",", "="}


def tokens(text):
    """'ADD 12 , NEG 3 =' as tokens."""
    written = [[*word] if word.isdigit() else [word] for word in text.split()]
    return [TASK.vocabulary.token(name) for name in itertools.chain(*written)]


def played(programs, problems) -> EpisodeBatch:
    """The given programs through the machine, one episode each; `ANS` where one has ended."""
    batch = empty_batch(TASK, problems.context, problems.stage)
    registers, live = TASK.start(problems), np.ones(len(problems), bool)
    for step in range(TASK.max_actions):
        actions = np.array([p[step] if step < len(p) else tokens("ANS")[0] for p in programs])
        transition = TASK.step(problems, registers, actions)
        registers = transition.registers
        batch.actions[live, step] = actions[live]
        batch.response[live, step] = transition.response[live]
        batch.rewards[live, step] = transition.rewards[live]
        batch.status[live, step] = TASK.status(registers)[live]
        batch.lengths[live] = step + 1
        batch.solved[live] = transition.solved[live]
        live &= ~transition.done
        if not live.any():
            break
    return batch


def posed(expression, databases):
    databases = np.atleast_2d(databases)
    return TASK.pose(None, expression=[expression] * len(databases), database=databases)


@pytest.fixture(scope="module")
def random_batch():
    """Episodes of a network that knows nothing."""
    torch.manual_seed(0)
    network = AnswerAttentionNetwork(TASK.interface)
    stage = np.random.default_rng(0).integers(0, 6, 3000).astype(np.int8)
    problems = TASK.practice(np.random.default_rng(1), stage)
    generator = torch.Generator().manual_seed(0)
    return network, play(network, TASK, problems, generator, random_actions=True)


# Explorers -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def explored(random_batch):
    """The tables, after some rounds of explorers, and the last round's explorers and episodes."""
    network, batch = random_batch
    table = TrialTable(TASK, min_tries=20, least_share=0.5)
    table.add(batch)
    for seed in range(6):
        problems = TASK.practice(np.random.default_rng(seed), np.full(400, 4, np.int8))
        explorers = CopyingExplorers(
            np.random.default_rng(seed), TASK, problems.context, table.for_explorers()
        )
        generator = torch.Generator().manual_seed(seed)
        batch = play(network, TASK, problems, generator, explorers=explorers)
        table.add(batch)
    return table, explorers, batch


def calls_of(batch, row):
    """[(tokens, response)] of one episode: whatever ends with a response."""
    calls, written = [], []
    for step in range(batch.lengths[row]):
        written.append(NAMES[batch.actions[row, step]])
        response = [NAMES[token] for token in batch.response[row, step] if NAMES[token] != "PAD"]
        if response:
            calls.append((written, response))
            written = []
    return calls, written


def first_refused(batch, rows):
    """The share of episodes whose first call is refused."""
    calls = [calls_of(batch, row)[0] for row in rows]
    return np.mean([call[0][1] == ["ERR"] for call in calls if call])


def test_what_is_copied_is_a_token_of_the_prompt_or_a_whole_answer(explored):
    _, explorers, batch = explored
    seen = 0
    for row in np.flatnonzero(explorers.first_call == 0):
        spans, number = {(NAMES[token],) for token in batch.context[row]}, 0
        for written, response in calls_of(batch, row)[0]:
            if response == ["ERR"]:
                continue
            if number <= explorers.last_call[row]:
                runs = itertools.groupby(written[1:], key=lambda name: name in STRUCTURE)
                for run in (tuple(run) for structure, run in runs if not structure):
                    # Where there is nothing of the sort to copy, what is accepted is written.
                    alike = [s for s in spans if s[-1].isdigit() == run[-1].isdigit()]
                    if any(span[0] in "0123456789NEGABCDFH" for span in alike):
                        assert run in spans, (written, spans)
                        seen += 1
            spans.add(tuple(response))
            number += 1
    assert seen > 200


def test_explorers_learn_which_tokens_are_refused(explored, random_batch):
    _, explorers, batch = explored
    # The first call of those that explore from the start is their own.
    mine = np.flatnonzero(explorers.first_call == 0)
    assert first_refused(random_batch[1], range(400)) > 0.95
    assert first_refused(batch, mine) < 0.3


def test_explorers_follow_the_policy_but_for_their_calls():
    problems = TASK.practice(np.random.default_rng(0), np.full(300, 4, np.int8))
    table = TrialTable(TASK, min_tries=20)
    explorers = CopyingExplorers(
        np.random.default_rng(0), TASK, problems.context, table.for_explorers()
    )
    assert set((explorers.last_call - explorers.first_call).tolist()) == set(range(MOST_CALLS))
    assert set(explorers.first_call.tolist()) >= {0, 1, 2}
    logits = torch.randn(300, 26, generator=torch.Generator().manual_seed(0))
    response = np.full((300, 6), TASK.vocabulary.pad_token, np.int8)
    drawn_by = explorers.log_probabilities(
        ExplorersStep(TASK, 0, np.arange(300), logits, TASK.start(problems), response)
    )
    exploring = torch.from_numpy(explorers.first_call == 0)
    assert torch.equal(drawn_by[~exploring], torch.log_softmax(logits, 1)[~exploring])
    assert (drawn_by[exploring].exp().max(1).values == 1).all()


# What programs compute -----------------------------------------------------------------------


def slow_dataflow(batch, row):
    """The calls of one episode with their arguments' sources, by a plain loop; and how many of its
    tokens they have. Nothing if it is not known."""
    calls, rest = calls_of(batch, row)
    kept = [call for call in calls if call[1] != ["ERR"]]
    if rest and rest[-1] == "=":
        kept.append((rest, None))
    context, answers, found = [NAMES[token] for token in batch.context[row]], [], []

    def source(text):
        value = int(text.replace("NEG", "-"))
        places = [("answer", place) for place, answer in enumerate(answers) if answer == value]
        places += [("place", place) for place, name in enumerate(context) if name == str(value)]
        return places[0] if len(places) == 1 else "unknown" if places else "other"

    for written, response in kept:
        text = "".join(written[1:-1])
        if written[0] == "GET":
            places = [("place", place) for place, name in enumerate(context) if name == text]
            sources = [places[0] if len(places) == 1 else "unknown" if places else "other"]
        else:
            sources = [source(part) for part in text.split(",")]
        found.append((written[0], *sources))
        if response is not None:
            answers.append(int("".join(response).replace("NEG", "-")))
    unknown = any("unknown" in call for call in found)
    if unknown or not kept or kept[-1][1] is not None:  # the last: nothing was answered in the end
        return (), 0
    # From the last call on, those that another one needs.
    needed, left = [], {len(found) - 1}
    while left:
        number = max(left)
        left = left - {number} | {part[1] for part in found[number] if part[0] == "answer"}
        needed.append(number)
    names = {number: place for place, number in enumerate(sorted(needed))}
    program = tuple(
        tuple(("answer", names[part[1]]) if part[0] == "answer" else part for part in found[number])
        for number in sorted(needed)
    )
    return program, sum(len(kept[number][0]) for number in needed)


def test_programs_are_told_apart_as_by_a_plain_loop(explored, random_batch):
    _, _, explored_batch = explored
    stages = np.arange(300) % 6
    problems = TASK.sample(np.random.default_rng(2), stages.astype(np.int8))
    plans = played([TASK.plan(problems, row) for row in range(300)], problems)
    batch = EpisodeBatch.concatenate([plans, explored_batch, random_batch[1]])
    keys, needed = TASK.dataflow(batch.context, batch.actions, batch.lengths, batch.response)
    slow = [slow_dataflow(batch, row) for row in range(len(batch))]
    by_key, by_program = {}, {}
    for key, (program, _) in zip(keys.tolist(), slow, strict=True):
        assert by_key.setdefault(key, program) == program
        assert by_program.setdefault(program, key) == key
    assert len(by_key) > 30
    assert needed.sum(1).tolist() == [length for _, length in slow]


def test_kinds_are_prompts_without_digits_and_names_of_keys():
    prompts = ("3*B+C-7", "4*A+A-9", "3*B+C-D", "3+B+C-7", "3*B+C", "3*4+C-7")
    contexts = np.concatenate([posed(text, [range(2, 10)]).context for text in prompts])
    kinds = TASK.kinds(contexts).tolist()
    assert kinds[0] == kinds[1] and len(set(kinds)) == 5


# Replay --------------------------------------------------------------------------------------


def test_what_is_replayed_solves_its_problem_without_what_was_refused():
    problems = TASK.practice(np.random.default_rng(0), np.full(60, 4, np.int8))
    rng, programs = np.random.default_rng(1), []
    for row in range(60):
        plan = list(TASK.plan(problems, row))
        place = int(rng.choice([0, *[i + 1 for i, t in enumerate(plan[:-1]) if NAMES[t] == "="]]))
        # A call that is begun and given up, between two others.
        programs.append(plan[:place] + tokens("ADD 4 GET") + plan[place:])
        if row % 2:  # and one whose answer nothing needs
            programs[-1][:0] = tokens("GET H =")
    batch = played(programs, problems)
    store = DataflowReplay(64, 4, TASK, np.random.default_rng(0))
    batch.explored[:] = True  # else the policy would count as able
    store.add(batch)
    replayed = store.sample(200)
    assert replayed is not None and replayed.solved.all()
    cleaned = {
        (*context.tolist(), *response[: length - 1].ravel().tolist()): actions[:length].tolist()
        for context, response, actions, length in zip(
            replayed.context, replayed.response, replayed.actions, replayed.lengths, strict=True
        )
    }
    originals = [list(TASK.plan(problems, row)) for row in range(60)]
    assert all(program in originals for program in cleaned.values()) and len(cleaned) > 10
    steps = np.arange(replayed.actions.shape[1])
    last = replayed.lengths[:, None] - 1
    assert (replayed.rewards == (steps == last)).all()


def test_a_program_is_replayed_as_far_as_it_is_better_than_the_policy_on_its_kind():
    store = DataflowReplay(16, 4, TASK, np.random.default_rng(0))
    good, lucky = tokens("ADD 3 , 4 = ANS 7 ="), tokens("ANS 7 =")
    problems = posed("3+4", [range(2, 10)] * 10)
    batch = played([good] * 6 + [lucky] * 4, problems)
    batch.explored[:] = True
    batch.solved[7:] = False  # as on other numbers
    store.add(batch)
    known = store.attempts > 0
    assert sorted(store.attempts[known].tolist()) == [4, 6]
    # Only the better one of the two.
    np.testing.assert_allclose(sorted(store.weights[known].tolist()), [0, (6 / 10 - 0.02) ** 2])
    able = played([good] * 10, problems)
    for _ in range(60):  # the policy by itself
        store.add(able)
    assert store.sample(8) is None
    assert store.weights.max() == 0


def test_successes_of_all_stages_are_replayed():
    config = ToolAgentConfig().training(
        explorer_kind="copies", explorer_share=0.2, replay_coeff=0.5, replay_episodes=64
    )
    exploration = Exploration(config, TASK)
    problems = TASK.practice(np.random.default_rng(0), np.repeat(np.array([0, 2], np.int8), 20))
    batch = played([TASK.plan(problems, row) for row in range(40)], problems)
    batch.explored[:] = True
    batch = EpisodeBatch.concatenate([batch, played([tokens("ANS 0 =")], problems.take([0]))])
    columns = exploration.learner_columns(batch)
    assert set(columns["stage"][columns["replayed"]].tolist()) == {0, 2}


def test_a_restored_store_replays_the_same_and_goes_on_in_the_same_way():
    config = ToolAgentConfig().training(
        explorer_kind="copies", explorer_share=0.2, replay_coeff=0.5, replay_episodes=32
    )
    problems = TASK.practice(np.random.default_rng(0), np.full(60, 4, np.int8))
    batch = played([TASK.plan(problems, row) for row in range(60)], problems)
    batch.explored[::2] = True
    first, second = (Exploration(config, TASK) for _ in range(2))
    first.learner_columns(batch)
    second.set_state(first.get_state())
    for _ in range(3):
        one, two = (side.learner_columns(batch) for side in (first, second))
        assert one["replayed"].any()
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
    for one, two in zip(first.for_runners()[1], second.for_runners()[1], strict=True):
        np.testing.assert_array_equal(one, two)
