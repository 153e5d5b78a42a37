"""The batched rollout against one episode at a time, and what is counted from it."""

import numpy as np
import pytest
import torch
from trained import scripted_network

from toolagent.envs.single import ToolEnv
from toolagent.models.network import StageGRUNetwork
from toolagent.rollouts.certification import certify, certify_stage, measure
from toolagent.rollouts.episode_batch import EpisodeBatch
from toolagent.rollouts.play import play, sample_tokens
from toolagent.tasks import get_task
from toolagent.tasks.tokens import ADD, ANS, MUL, NUM_TOKENS, SUB

NAMES = ["tutorial", "calculator"]


pytestmark = pytest.mark.usefixtures("one_thread")


def random_network(seed=0, prefer=()):
    """An untrained network, with a liking for the tools so that something happens."""
    torch.manual_seed(seed)
    network = StageGRUNetwork(get_task("calculator").interface, (16,))
    with torch.no_grad():
        network.policy_head.weight.mul_(6)  # decisive enough that episodes differ
        network.policy_head.bias[list(prefer)] += 2.5
    return network


def problems_of_all_stages(task, seed, size):
    rng = np.random.default_rng(seed)
    return task.sample(rng, rng.integers(0, 3, size).astype(np.int8))


def one_at_a_time(network, task, problems, choose):
    """Plays each problem alone in `ToolEnv`; `choose(row, step, logits)` gives the token."""
    episodes = []
    for row in range(len(problems)):
        env = ToolEnv(task.name)
        observation, _ = env.reset(
            options={"stage": int(problems.stage[row]), "digits": problems.digits[row]}
        )
        actions, rewards, log_probabilities, done = [], [], [], False
        encoding, hidden = network.begin(
            torch.tensor(observation["context"])[None], torch.tensor([observation["stage"]])
        )
        while not done:
            previous = torch.tensor([[int(observation["previous_token"])]])
            with torch.no_grad():
                logits, _, hidden = network.unroll(previous, encoding, hidden)
                logits = logits[0, 0]
            action = choose(row, len(actions), logits)
            log_probabilities.append(float(torch.log_softmax(logits, 0)[action]))
            observation, reward, terminated, truncated, info = env.step(action)
            actions.append(action)
            rewards.append(reward)
            done = terminated or truncated
        episodes.append((actions, rewards, log_probabilities, info["solved"]))
    return episodes


def assert_same(batch, episodes, with_log_probabilities):
    assert len(batch) == len(episodes)
    for row, (actions, rewards, log_probabilities, solved) in enumerate(episodes):
        length = len(actions)
        assert batch.lengths[row] == length
        assert batch.actions[row].tolist() == actions + [ANS] * (7 - length)
        np.testing.assert_allclose(batch.rewards[row, :length], rewards, atol=1e-6)
        assert (batch.rewards[row, length:] == 0).all()
        assert batch.solved[row] == solved
        if with_log_probabilities:
            np.testing.assert_allclose(
                batch.log_probabilities[row, :length], log_probabilities, atol=1e-4
            )
        assert (batch.log_probabilities[row, length:] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_sampled_episodes_are_those_of_one_env_at_a_time(name):
    task, network = get_task(name), random_network(prefer=(MUL, ADD, SUB, ANS))
    problems = problems_of_all_stages(task, 0, 150)
    batch = play(network, task, problems, torch.Generator().manual_seed(3))
    episodes = one_at_a_time(
        network, task, problems, lambda row, step, logits: int(batch.actions[row, step])
    )
    assert_same(batch, episodes, with_log_probabilities=True)
    # The sample has early answers, late ones and none.
    assert len(set(batch.lengths.tolist())) >= 5
    assert (batch.actions[np.arange(150), batch.lengths - 1] != ANS).any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_greedy_episodes_are_those_of_one_env_at_a_time(name, seed):
    task, network = get_task(name), random_network(seed)
    problems = problems_of_all_stages(task, seed, 40)
    batch = play(network, task, problems)
    episodes = one_at_a_time(
        network, task, problems, lambda row, step, logits: int(logits.argmax())
    )
    assert_same(batch, episodes, with_log_probabilities=False)


def test_rewards_of_right_answers_arrive():
    task = get_task("calculator")
    problems = task.problems(0, 0, 1000)
    batch = play(scripted_network((MUL, ADD, ANS)), task, problems)
    assert batch.solved.all() and (batch.lengths == 3).all()
    assert (batch.rewards[:, :2] == 0).all() and (batch.rewards[:, 2] >= 1.1 - 1e-6).all()
    assert batch.env_steps == 3000


def test_greedy_play_is_the_same_every_time_and_in_any_company():
    task, network = get_task("calculator"), random_network(1)
    problems = problems_of_all_stages(task, 5, 300)
    torch.manual_seed(0)
    first = play(network, task, problems)
    torch.manual_seed(1)
    second = play(network, task, problems)
    for (name, one), (_, other) in zip(first.columns(), second.columns(), strict=True):
        assert np.array_equal(one, other), name
    order = np.random.default_rng(0).permutation(300)
    shuffled = play(network, task, problems.take(order))
    assert np.array_equal(shuffled.actions, first.actions[order])


def test_sampled_play_depends_on_its_generator_alone():
    task, network = get_task("calculator"), random_network()
    problems = problems_of_all_stages(task, 6, 200)
    one, same, other = (
        play(network, task, problems, torch.Generator().manual_seed(seed)).actions
        for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_play_leaves_its_problems_and_the_global_random_state_alone():
    task, network = get_task("calculator"), random_network()
    problems = problems_of_all_stages(task, 7, 50)
    before = [column.copy() for _, column in problems.columns()]
    state = torch.get_rng_state()
    play(network, task, problems, torch.Generator().manual_seed(1))
    assert torch.equal(state, torch.get_rng_state())
    for (_, column), old in zip(problems.columns(), before, strict=True):
        assert np.array_equal(column, old)


def test_random_actions_are_even_and_carry_their_own_log_probability():
    task = get_task("calculator")
    problems = problems_of_all_stages(task, 8, 20_000)
    batch = play(
        random_network(), task, problems, torch.Generator().manual_seed(1), random_actions=True
    )
    counts = np.bincount(batch.actions[:, 0], minlength=NUM_TOKENS)
    assert np.abs(counts - 20_000 / 18).max() < 5 * np.sqrt(20_000 / 18)
    np.testing.assert_allclose(batch.log_probabilities[:, 0], -np.log(18), atol=1e-6)


def test_tokens_are_sampled_with_the_probabilities_of_the_policy():
    torch.manual_seed(0)
    log_probabilities = torch.log_softmax(torch.randn(NUM_TOKENS) * 2, 0)
    draws = 200_000
    tokens = sample_tokens(
        log_probabilities.expand(draws, -1).contiguous(), torch.Generator().manual_seed(0)
    )
    frequencies = np.bincount(tokens.numpy(), minlength=NUM_TOKENS) / draws
    expected = log_probabilities.exp().numpy()
    # 5 standard deviations of each frequency.
    tolerance = 5 * np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(frequencies - expected) < tolerance).all()
    assert expected.min() < 0.002 < 0.2 < expected.max()  # rare tokens and frequent ones


def test_each_row_is_sampled_from_its_own_probabilities():
    impossible = torch.full((NUM_TOKENS, NUM_TOKENS), -torch.inf)
    impossible.fill_diagonal_(0.0)
    tokens = sample_tokens(impossible, torch.Generator().manual_seed(0))
    assert tokens.tolist() == list(range(NUM_TOKENS))


# Columns -------------------------------------------------------------------------------------


def played(seed, size=60):
    task = get_task("calculator")
    generator = torch.Generator().manual_seed(seed)
    network = random_network(prefer=(MUL, ADD, ANS))
    return play(network, task, problems_of_all_stages(task, seed, size), generator)


def compared(seed, size=60):
    """With the one column that `play` leaves at 0, see `ProblemDraw.compare`."""
    batch = played(seed, size)
    assert batch.baseline.dtype == np.float32 and not batch.baseline.any()
    batch.baseline[:] = np.random.default_rng(seed).random(size)
    batch.explored[::3], batch.retried[1::3] = True, True
    return batch


def test_batches_are_joined_in_order():
    first, second = compared(3), compared(4, size=10)
    joined = EpisodeBatch.concatenate([first, second])
    assert len(joined) == 70
    assert joined.env_steps == first.env_steps + second.env_steps
    assert np.array_equal(joined.actions[60:], second.actions)
    assert np.array_equal(joined.returns[:60], first.returns)
    assert np.array_equal(joined.baseline[60:], second.baseline)
    with pytest.raises(ValueError, match="no batches"):
        EpisodeBatch.concatenate([])


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
def test_discounted_returns_are_those_of_a_loop(gamma):
    batch = played(6)
    batch.rewards[:] = np.random.default_rng(0).normal(size=batch.rewards.shape)
    for row, value in enumerate(batch.discounted_returns(gamma)):
        rewards = batch.rewards[row].tolist()
        expected = sum(gamma**step * reward for step, reward in enumerate(rewards))
        assert value == pytest.approx(expected, abs=1e-5)


def test_an_episode_costs_about_90_bytes():
    batch = played(5)
    assert batch.nbytes / len(batch) < 100


# Certification ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("program", [(MUL, ANS), (MUL, ADD, ANS), (ANS,), (MUL, ADD, SUB, ANS)])
def test_certified_counts_are_those_of_every_problem_one_by_one(name, program):
    task, network = get_task(name), scripted_network(program)
    solved = 0
    env = ToolEnv(name)
    for a in range(10):
        for b in range(10):
            for c in range(10):
                env.reset(options={"stage": 0, "digits": [a, b, c, 0, 0]})
                *_, (*_, info) = [env.step(token) for token in program]
                solved += info["solved"]
    result = certify_stage(network, task, 0)
    assert (result.stage, result.problems, result.solved) == (0, 1000, solved)
    assert result.accuracy == solved / 1000
    assert result.certified == (solved == 1000)
    expected = {(MUL, ANS): 100, (MUL, ADD, ANS): 1000, (ANS,): 0}
    assert solved == expected.get(program, solved)


def test_all_stages_are_certified_on_all_their_problems():
    results = certify(scripted_network((MUL, ADD, SUB, ANS)), get_task("calculator"))
    # Stage 0 has no fourth digit: SUB finds none left and changes nothing, so it is right too.
    assert [(r.stage, r.problems, r.solved) for r in results] == [
        (0, 1_000, 1_000),
        (1, 10_000, 10_000),
        (2, 100_000, 19_000),
    ]
    assert [r.certified for r in results] == [True, True, False]


def test_a_measurement_is_a_sample_of_each_stage_from_its_own_stream():
    task, network = get_task("calculator"), scripted_network((MUL, ADD, ANS))
    one, same = (measure(network, task, (0, 1, 2), np.random.default_rng(1), 2000) for _ in "ab")
    assert one == same
    assert [(r.stage, r.problems) for r in one] == [(0, 2000), (1, 2000), (2, 2000)]
    assert one[0].solved == 2000
    # a*b+c-d is a*b+c where d = 0, a*b+c-d*e where d*e = 0: 10% and 19%.
    for result, share in zip(one[1:], (0.1, 0.19), strict=True):
        assert abs(result.accuracy - share) < 5 * np.sqrt(share * (1 - share) / 2000)
