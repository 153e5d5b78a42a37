"""Explorers and success replay: each against hand-made episodes and slow loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolagent.learning.algorithm import ToolAgentConfig
from toolagent.learning.exploration import Exploration
from toolagent.learning.success_replay import SuccessReplay, program_keys
from toolagent.learning.trials import TrialTable
from toolagent.models.network import StageGRUNetwork
from toolagent.rollouts.episode_batch import EpisodeBatch, empty_batch
from toolagent.rollouts.explorers import ExplorerTables, TrialExplorers
from toolagent.rollouts.play import play
from toolagent.tasks import get_task
from toolagent.tasks.tokens import ADD, ANS, MUL, RCL, STO, SUB

TASK = get_task("calculator")
PLAN = (MUL, ADD, STO, MUL, RCL, SUB, ANS)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def episodes(programs, digits, stage=2) -> EpisodeBatch:
    """Plays the given programs through the machine, one episode each."""
    problems = TASK.pose(np.full(len(programs), stage), digits=np.asarray(digits))
    batch = empty_batch(TASK, problems.context, problems.stage)
    for row, program in enumerate(programs):
        problem = problems.take(np.array([row]))
        registers = TASK.start(problem)
        for step, token in enumerate(program):
            transition = TASK.step(problem, registers, np.array([token]))
            registers = transition.registers
            batch.actions[row, step] = token
            batch.rewards[row, step] = transition.rewards[0]
            batch.status[row, step] = TASK.status(registers)[0]
            batch.lengths[row] = step + 1
            batch.solved[row] = transition.solved[0]
            if transition.done[0]:
                break
    return batch


def random_play(count=400, seed=0, explorers=None, stage=2) -> EpisodeBatch:
    torch.manual_seed(seed)
    network = StageGRUNetwork(get_task("calculator").interface, (16,))
    problems = TASK.sample(np.random.default_rng(seed), np.full(count, stage, np.int8))
    generator = torch.Generator().manual_seed(seed)
    return play(
        network,
        TASK,
        problems,
        generator,
        random_actions=explorers is None,
        explorers=explorers,
    )


# Statuses ------------------------------------------------------------------------------------


def test_the_calculator_s_status_tells_apart_what_is_filled_and_read():
    seen = [tuple(episodes([PLAN[:n]], [[3, 4, 5, 6, 7]]).status[0, :n]) for n in range(1, 7)]
    assert seen[-1] == tuple(np.array([1, 1, 2, 3, 5, 1]) + 8 * np.array([2, 3, 3, 5, 5, 5]))


# Replay --------------------------------------------------------------------------------------


def test_spellings_with_useless_tokens_are_one_program():
    digits = [[3, 4, 5, 6, 7]] * 4
    batch = episodes(
        [(MUL, ADD, ANS), (7, MUL, 0, ADD, RCL, ANS), (MUL, SUB, ANS), (MUL, ADD)], digits
    )
    keys = program_keys(batch, TASK)
    assert keys[0] == keys[1]
    assert len(set(keys.tolist())) == 3


@st.composite
def spelt_programs(draw):
    """Two programs of up to 17 actions as lists of (token, did something), often the same."""
    token = st.integers(0, 17)
    one = draw(st.lists(token, max_size=17))
    kind = draw(st.sampled_from(["same", "changed", "shorter", "swapped", "other"]))
    other = list(one)
    if kind == "changed" and one:
        other[draw(st.integers(0, len(one) - 1))] = draw(token)
    elif kind == "shorter":
        other = one[: draw(st.integers(0, len(one)))]
    elif kind == "swapped":
        other = draw(st.permutations(one))
    elif kind == "other":
        other = draw(st.lists(token, max_size=17))
    # Tokens that do nothing, anywhere; ANS always does something.
    nothing = st.integers(0, 17).filter(lambda token: token != ANS)
    spelt = []
    for program in (one, other):
        actions = [(token, True) for token in program]
        for _ in range(draw(st.integers(0, 17 - len(actions)))):
            actions.insert(draw(st.integers(0, len(actions))), (draw(nothing), False))
        spelt.append(actions)
    return spelt


def keys_of(spelt):
    """The keys of programs of (token, did something), on a machine that did just that."""
    task = get_task("expression")
    problems = task.sample(np.random.default_rng(0), np.full(len(spelt), 8, np.int8))
    batch = empty_batch(task, problems.context, problems.stage)
    for row, program in enumerate(spelt):
        status = 0
        batch.lengths[row] = len(program)
        for step, (token, did) in enumerate(program):
            status = (status + did) % 7
            batch.actions[row, step], batch.status[row, step] = token, status
    return program_keys(batch, TASK)


@settings(max_examples=300, deadline=None)
@given(spelt=spelt_programs())
def test_keys_are_equal_if_and_only_if_what_did_something_is(spelt):
    keys = keys_of(spelt)
    one, other = ([token for token, did in program if did] for program in spelt)
    assert (keys >= 0).all()  # -1 marks an empty slot
    assert (keys[0] == keys[1]) == (one == other)


@pytest.mark.parametrize("token", [0, 1, 17])
def test_programs_of_one_token_repeated_differ_by_their_length(token):
    keys = keys_of([[(token, True)] * length for length in range(18)])
    assert len(set(keys.tolist())) == 18


def test_weights_count_successes_against_all_attempts():
    store = SuccessReplay(slots=8, examples=4, task=TASK, rng=np.random.default_rng(0))
    lucky = (MUL, ADD, ANS)
    # d*e = 0 makes a*b+c the right answer: once in four here.
    digits = [[3, 4, 5, 0, 7]] + [[3, 4, 5, 6, 7]] * 4
    store.add(episodes([lucky] * 4 + [PLAN], digits))
    weights = {
        tuple(store.store.actions[slot * 4][: store.store.lengths[slot * 4]]): store.weights[slot]
        for slot in np.flatnonzero(store.keys >= 0)
    }
    assert weights == pytest.approx({lucky: (1 / 6) ** 2, PLAN: (1 / 3) ** 2})
    store.add(episodes([lucky] * 4, [[3, 4, 5, 6, 7]] * 4))  # attempts count without success
    assert store.weights.max() == pytest.approx((1 / 3) ** 2)
    assert sorted(store.weights[store.keys >= 0])[0] == pytest.approx((1 / 10) ** 2)


def test_samples_are_solved_episodes_by_weight_and_examples_rotate():
    store = SuccessReplay(slots=4, examples=3, task=TASK, rng=np.random.default_rng(0))
    assert store.sample(5) is None
    rng = np.random.default_rng(1)
    batches = [episodes([PLAN], rng.integers(0, 10, (1, 5))) for _ in range(10)]
    for batch in batches:
        store.add(batch)
    sample = store.sample(200)
    assert sample.solved.all() and len(sample) == 200
    latest = np.concatenate([batch.context for batch in batches[-3:]])
    assert np.array_equal(np.unique(sample.context, axis=0), np.unique(latest, axis=0))
    assert store.sample(0) is None


def test_a_full_store_lets_the_least_weight_go():
    store = SuccessReplay(slots=2, examples=2, task=TASK, rng=np.random.default_rng(0))
    zeros = [[0, 0, 0, 0, 0]]
    store.add(episodes([PLAN] * 6, [[3, 4, 5, 6, 7]] * 6))
    store.add(episodes([(MUL, ADD, ANS)], zeros))
    store.add(episodes([(MUL, SUB, ANS)], zeros))
    keys = set(store.keys.tolist())
    assert program_keys(episodes([PLAN], zeros), TASK)[0] in keys
    assert program_keys(episodes([(MUL, SUB, ANS)], zeros), TASK)[0] in keys


# Explorers -----------------------------------------------------------------------------------


def explore(rounds: int, count: int) -> tuple[TrialTable, list[EpisodeBatch]]:
    """Explorers alone, round by round, each by the table of all rounds before."""
    table, played = TrialTable(TASK, min_tries=20), []
    for seed in range(rounds):
        weights = table.for_explorers()
        played.append(random_play(count, seed=seed, explorers=TrialExplorers(count, weights)))
        table.add(played[-1])
    return table, played


def test_the_table_learns_what_does_something():
    table, _ = explore(rounds=60, count=500)
    weights = np.exp(table.for_explorers().log_weights)
    np.testing.assert_allclose(weights.sum(1), 1.0, rtol=1e-5)
    # At the beginning only MUL (two digits) and ANS (the end) do anything.
    assert set(np.flatnonzero(weights[0])) == {MUL, ANS}
    # With acc filled and no digit left (stage 2, cursor 5): only storing and answering.
    assert set(np.flatnonzero(weights[1 + 8 * 5])) == {STO, ANS}
    # A status that can't be reached (mem filled before a digit was read): anything is worth a try.
    assert (weights[2] > 0).all()


def test_explorers_play_by_the_table_and_policy_rows_are_untouched():
    weights = np.full((TASK.num_statuses, 18), -np.inf, np.float32)
    weights[:, ANS] = 0.0
    torch.manual_seed(0)
    tables = ExplorerTables(weights, np.zeros(18, bool))
    explored = random_play(50, explorers=TrialExplorers(20, tables))
    assert explored.explored.sum() == 20 and explored.explored[-20:].all()
    assert (explored.lengths[-20:] == 1).all() and (explored.actions[-20:, 0] == ANS).all()
    # What the policy thinks of the token, not the certainty with which it was drawn.
    assert (explored.log_probabilities[-20:, 0] < -1).all()
    assert (explored.lengths[:30] > 1).any()


def test_explorers_find_the_only_plan_of_stage_two():
    """By chance alone the seven tokens come up once in 18^7, 612 million, episodes."""
    _, played = explore(rounds=60, count=500)
    found = EpisodeBatch.concatenate(played)
    plan = program_keys(episodes([PLAN], [[3, 4, 5, 6, 7]]), TASK)[0]
    hits = program_keys(found, TASK) == plan
    assert hits.sum() >= 2
    assert found.solved[hits].all()


def test_what_explorers_played_is_not_learned_from_but_replayed_if_right():
    config = ToolAgentConfig().training(explorer_share=0.5, replay_coeff=0.5, replay_episodes=16)
    exploration = Exploration(config, TASK)
    by_policy = random_play(30)
    found = episodes([PLAN] * 2, [[3, 4, 5, 6, 7]] * 2)
    found.explored[:] = True
    columns = exploration.learner_columns(EpisodeBatch.concatenate([by_policy, found]))
    assert len(columns["lengths"]) == 30 + 16
    assert columns["replayed"].sum() == 16
    share, _ = exploration.for_runners()
    assert 0 < share <= 0.5
    for _ in range(200):  # the policy solves everything: exploring ends
        solved = episodes([PLAN] * 4, [[3, 4, 5, 6, 7]] * 4)
        columns = exploration.learner_columns(solved)
    assert exploration.for_runners()[0] == 0.0
    assert not columns["replayed"].any()


def on_detours(programs, digits, peers, stage=2) -> EpisodeBatch:
    """Explorers' episodes, and how well the others of each one's group did."""
    batch = episodes(programs, digits, stage)
    batch.explored[:] = True
    batch.baseline[:] = peers
    return batch


def test_explorers_on_detours_feed_the_replay_with_what_was_verified_and_nothing_else():
    config = ToolAgentConfig().training(
        explorer_kind="detours", explorer_share=0.4, replay_coeff=0.5, replay_episodes=16
    )
    exploration = Exploration(config, TASK)
    by_policy = random_play(30)
    by_policy.baseline[:] = np.random.default_rng(0).random(30)
    lucky = (MUL, ADD, ANS)  # right, since d*e = 0, and wrong for the rest of its group
    found = on_detours([lucky, lucky], [[3, 4, 5, 0, 7]] * 2, 0.0)
    columns = exploration.learner_columns(EpisodeBatch.concatenate([by_policy, found]))
    # Nothing is replayed yet: not the coincidence, and nothing that the policy solved.
    assert not columns["replayed"].any()
    for name in ("stage", "context", "actions", "lengths", "rewards", "baseline"):
        np.testing.assert_array_equal(columns[name], getattr(by_policy, name), err_msg=name)
    solved_by_policy = episodes([PLAN] * 4, [[3, 4, 5, 6, 7]] * 4)
    solved_by_policy.baseline[:] = 1.2
    exploration.learner_columns(EpisodeBatch.concatenate([by_policy, solved_by_policy]))
    plans = on_detours([PLAN, lucky, PLAN], [[3, 4, 5, 6, 7], [3, 4, 5, 0, 7], [1] * 5], 1.2)
    plans.baseline[1] = 0.0
    columns = exploration.learner_columns(EpisodeBatch.concatenate([by_policy, plans]))
    assert columns["replayed"].tolist() == [False] * 30 + [True] * 16
    replayed = columns["actions"][30:]
    assert (replayed == PLAN).all()
    assert {tuple(context[:5]) for context in columns["context"][30:].tolist()} == {
        (3, 4, 5, 6, 7),
        (1, 1, 1, 1, 1),
    }


def test_explorers_on_detours_and_their_replay_end_when_the_policy_is_good_enough():
    config = ToolAgentConfig().training(
        explorer_kind="detours",
        explorer_share=0.4,
        explore_until_solved=0.7,
        replay_coeff=0.5,
        replay_episodes=5,
    )
    exploration = Exploration(config, TASK)
    found = on_detours([PLAN], [[3, 4, 5, 6, 7]], 1.2)
    failed = on_detours([(ANS,)] * 9, [[3, 4, 5, 6, 7]] * 9, 0.0)
    solved = episodes([PLAN] * 4, [[3, 4, 5, 6, 7]] * 4)
    share = 0.0
    for _ in range(60):
        columns = exploration.learner_columns(EpisodeBatch.concatenate([solved, found, failed]))
        share += 0.05 * (1 - share)  # explorers' failures are not the policy's
        explorer_share, _ = exploration.for_runners()
        over = share >= 0.7
        assert explorer_share == (0.0 if over else 0.4)  # as many to the end: the rarest are left
        assert columns["replayed"].sum() == (0 if over else 5)
        assert len(columns["lengths"]) == 4 + (0 if over else 5)
    assert over
    # Another stage begins anew.
    columns = exploration.learner_columns(
        on_detours([(MUL, ADD, ANS)] * 2, [[3, 4, 5, 0, 0]] * 2, 1.2, stage=0)
    )
    assert exploration.for_runners()[0] == 0.4
    assert columns["replayed"].all() and len(columns["lengths"]) == 5


def test_explorers_that_try_tokens_get_fewer_until_the_policy_is_good_enough():
    config = ToolAgentConfig().training(
        explorer_share=0.4, explore_until_solved=0.7, replay_coeff=0.5
    )
    exploration = Exploration(config, TASK)
    solved, share = episodes([PLAN] * 4, [[3, 4, 5, 6, 7]] * 4), 0.0
    for _ in range(30):
        exploration.learner_columns(solved)
        share += 0.05 * (1 - share)
        expected = 0.0 if share >= 0.7 else 0.4 * (1 - share)
        assert exploration.for_runners()[0] == pytest.approx(expected)
    assert share > 0.7


def test_problems_that_were_failed_before_are_no_measure_of_a_stage():
    config = ToolAgentConfig().training(explorer_share=0.4, replay_coeff=0.5)
    exploration = Exploration(config, TASK)
    batch = episodes([PLAN, PLAN, (ANS,), (ANS,)], [[3, 4, 5, 6, 7]] * 4)
    batch.retried[2:] = True
    exploration.learner_columns(batch)
    assert exploration.solved_share.tolist() == [0, 0, pytest.approx(0.05)]
    batch.retried[:] = True
    assert len(exploration.learner_columns(batch)["lengths"]) >= 4  # they are learned from
    assert exploration.solved_share[2] == pytest.approx(0.05)


def test_the_entropy_bonus_follows_the_others_of_the_group_once_a_stage_is_half_solved():
    config = ToolAgentConfig().training(group_size=2, entropy_follows_return=True, replay_coeff=0.5)
    exploration = Exploration(config, TASK)
    plain = Exploration(ToolAgentConfig(), TASK)
    batch = episodes([PLAN, (ANS,), PLAN, PLAN], [[3, 4, 5, 6, 7]] * 4)
    batch.baseline[:] = [0.0, 1.2, 0.5, 0.25]
    share = 0.0
    for _ in range(40):
        weight = exploration.learner_columns(batch)["entropy_weight"]
        share += 0.05 * (0.75 - share)
        expected = [max(peers, 1 - 2 * share, 0.0) for peers in batch.baseline.tolist()]
        np.testing.assert_allclose(weight[:4], expected, rtol=1e-5)
        assert weight.dtype == np.float32
        assert (plain.learner_columns(batch)["entropy_weight"] == 1).all()
    assert share > 0.5 and weight[0] == 0


def test_only_the_curriculum_s_stage_is_replayed_from_detours():
    config = ToolAgentConfig().training(
        explorer_kind="detours", explorer_share=0.4, replay_coeff=0.5
    )
    exploration = Exploration(config, TASK)
    early = on_detours([(MUL, ADD, ANS)] * 2, [[3, 4, 5, 0, 0]] * 2, 1.2, stage=0)
    late = episodes([(ANS,)], [[3, 4, 5, 6, 7]])
    columns = exploration.learner_columns(EpisodeBatch.concatenate([early, late]))
    assert len(columns["lengths"]) == 1 and not columns["replayed"].any()


@pytest.mark.parametrize("kind", ["trials", "detours"])
def test_state_round_trip(kind):
    config = ToolAgentConfig().training(explorer_kind=kind, explorer_share=0.5, replay_coeff=0.5)
    first, second = (Exploration(config, TASK) for _ in range(2))
    found = episodes([PLAN] * 3, [[3, 4, 5, 6, 7], [1] * 5, [2] * 5])
    found.explored[:], found.baseline[:] = True, 1.2
    warm = EpisodeBatch.concatenate([random_play(), found])
    first.learner_columns(warm)
    state = first.get_state()
    outcomes = []
    for side in (first, second):
        if side is second:
            side.set_state(state)  # the first has gone on meanwhile
        outcomes.append([side.learner_columns(warm) for _ in range(3)])
        share, tables = side.for_runners()
        outcomes[-1].append({"share": share, **tables._asdict()})
    for one, two in zip(*outcomes, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
    assert outcomes[0][0]["replayed"].any()
