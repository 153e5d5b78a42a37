"""The learner's update against a plain step-by-step loop, and against RLlib's own path."""

import copy
import math

import numpy as np
import pytest
import torch
from answering import PeekTask
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

from toolagent.envs.registration import env_id, register_task, register_with_rllib
from toolagent.envs.spaces import action_space, observation_space
from toolagent.learning.algorithm import ToolAgentConfig
from toolagent.learning.learner import EpisodeColumnsLearner
from toolagent.models.rl_module import NetworkModule
from toolagent.rollouts.play import play
from toolagent.tasks import get_task
from toolagent.tasks.registry import reference_of_task
from toolagent.tasks.tokens import ANS, CTX

TASK = get_task("calculator")
PEEK = register_task(PeekTask)()  # its tools answer
COLUMNS = (
    "stage",
    "context",
    "actions",
    "lengths",
    "rewards",
    "log_probabilities",
    "baseline",
    "response",
)
WIDTH = 12


def config_of(kind=ToolAgentConfig, task=TASK, **training):
    register_with_rllib()
    name = reference_of_task(task)
    config = (
        kind()
        .environment(env_id(name), env_config={"task": name})
        .framework("torch")
        .debugging(seed=0)
        .learners(num_learners=0)
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=NetworkModule,
                model_config={"task": name, "embedding_size": WIDTH, "max_seq_len": 8},
            )
        )
    )
    # Learning rate 0: the gradients of an update can be looked at, and stay those of its weights.
    return config.training(**({"lr": 0.0, "grad_clip": None} | training))


def group_of(config, seed=0):
    """A learner group with one local learner, and its network, with weights away from 0."""
    task = get_task(config.env_config["task"])
    spaces = {DEFAULT_MODULE_ID: (observation_space(task), action_space(task))}
    group = config.build_learner_group(spaces=spaces)
    network = group._learner.module[DEFAULT_MODULE_ID].network
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return group, network


def played(network, size=40, seed=0, task=TASK):
    rng = np.random.default_rng(seed)
    problems = task.sample(rng, rng.integers(0, task.num_stages, size).astype(np.int8))
    return play(network, task, problems, torch.Generator().manual_seed(seed))


def learner_columns(batch, **changed):
    """What the learner is given where nothing is explored, shaped or replayed."""
    columns = {name: getattr(batch, name).copy() for name in COLUMNS}
    columns["entropy_weight"] = np.ones(len(batch), np.float32)
    columns["replayed"] = np.zeros(len(batch), bool)
    return columns | changed


def update(group, columns, **kwargs):
    """One call of `LearnerGroup.update`, and RLlib's results of it, plain numbers."""
    data = MultiAgentBatch(
        {DEFAULT_MODULE_ID: SampleBatch(columns)}, env_steps=int(columns["lengths"].sum())
    )
    results = group.update(training_data=TrainingData(batch=data), timesteps={}, **kwargs)
    return plain(results[0])


def plain(results):
    return {
        key: plain(value) if isinstance(value, dict) else float(value.peek())
        for key, value in results.items()
    }


def gradients_of(network):
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


# The slow path: one episode after the other, one step after the other, every formula spelt out.


def slow_steps(network, context, stage, actions, responses=()):
    """Log-probabilities of all tokens and values at each step of one episode."""
    weight = dict(network.named_parameters())
    embedding, answers = weight["token_embedding.weight"], weight.get("response_input.vectors")
    pad = network.interface.vocabulary.pad_token
    shown = [int(token) for token in context if token != pad]
    mean = sum(embedding[token] for token in shown) / len(shown)
    hidden = torch.tanh(mean + weight["stage_embedding.weight"][int(stage)])
    previous, answer, steps = network.interface.vocabulary.start_token, (), []
    for step, action in enumerate(actions):
        inputs = weight["gru.weight_ih_l0"] @ embedding[previous] + weight["gru.bias_ih_l0"]
        for place, token in enumerate(answer):
            inputs = inputs + (answers[place, int(token)] if token != pad else 0.0)
        recurrent = weight["gru.weight_hh_l0"] @ hidden + weight["gru.bias_hh_l0"]
        (i_r, i_z, i_n), (h_r, h_z, h_n) = inputs.chunk(3), recurrent.chunk(3)
        reset, keep = torch.sigmoid(i_r + h_r), torch.sigmoid(i_z + h_z)
        hidden = (1 - keep) * torch.tanh(i_n + reset * h_n) + keep * hidden
        logits = weight["policy_head.weight"] @ hidden + weight["policy_head.bias"]
        value = (weight["value_head.weight"] @ hidden + weight["value_head.bias"]).squeeze()
        steps.append((logits - torch.logsumexp(logits, 0), value))
        previous, answer = int(action), responses[step] if len(responses) else ()
    return steps


def slow_loss(network, columns, config):
    """The loss as `EpisodeColumnsLearner` documents it, for lambda = 1 and the value head's
    advantages, and its three parts."""
    episodes, everything = [], []
    for row, length in enumerate(columns["lengths"].tolist()):
        steps = slow_steps(
            network,
            columns["context"][row],
            columns["stage"][row],
            columns["actions"][row, :length],
            columns["response"][row] if columns["response"].shape[2] else (),
        )
        to_go, returns = 0.0, []
        for step in reversed(range(length)):
            to_go = float(columns["rewards"][row, step]) + config.gamma * to_go
            returns.insert(0, to_go)
        episodes.append((row, steps, returns))
        everything += [
            to_go - float(value) for (_, value), to_go in zip(steps, returns, strict=True)
        ]
    mean, deviation = np.mean(everything), np.std(everything)
    count = len(everything)
    policy = value_loss = entropy = bonus = 0.0
    for row, steps, returns in episodes:
        for step, ((logs, value), to_go) in enumerate(zip(steps, returns, strict=True)):
            advantage = to_go - float(value)
            if config.normalize_advantages:
                advantage = (advantage - mean) / (deviation + 1e-6)
            log = logs[int(columns["actions"][row, step])]
            objective = log * advantage
            if config.clip_param is not None:
                ratio = torch.exp(log - float(columns["log_probabilities"][row, step]))
                near = ratio.clamp(1 - config.clip_param, 1 + config.clip_param)
                objective = torch.min(ratio * advantage, near * advantage)
            policy = policy - objective / count
            value_loss = value_loss + (value - to_go) ** 2 / count
            of_step = -(logs.exp() * logs).sum() / count
            entropy = entropy + of_step
            bonus = bonus + float(columns["entropy_weight"][row]) * of_step
    total = policy + config.vf_loss_coeff * value_loss - config.entropy_coeff * bonus
    return total, policy, value_loss, entropy


@pytest.mark.parametrize("task", [TASK, PEEK], ids=lambda task: task.name)
@pytest.mark.parametrize(
    "training",
    [
        {},
        {"clip_param": None, "max_staleness": 0},
        {"normalize_advantages": False, "gamma": 0.9},
        {"entropy_coeff": 0.5},
    ],
    ids=["default", "plain A2C", "discounted, raw advantages", "mostly entropy"],
)
def test_loss_and_gradients_are_those_of_a_plain_loop(training, task):
    config = config_of(task=task, **training)
    group, network = group_of(config)
    columns = learner_columns(played(network, task=task))
    columns["entropy_weight"] = np.random.default_rng(1).random(40).astype(np.float32)
    # Weights that moved on since the episodes were played, so that the ratio is not 1.
    columns["log_probabilities"] += (
        np.random.default_rng(0)
        .normal(0, 0.2, columns["log_probabilities"].shape)
        .astype(np.float32)
    )
    slow = copy.deepcopy(network)
    total, policy, value_loss, entropy = slow_loss(slow, columns, config)
    total.backward()
    results = update(group, columns)[DEFAULT_MODULE_ID]
    assert results["policy_loss"] == pytest.approx(float(policy), abs=1e-5)
    assert results["vf_loss"] == pytest.approx(float(value_loss), rel=1e-4)
    assert results["entropy"] == pytest.approx(float(entropy), rel=1e-4)
    assert results["total_loss"] == pytest.approx(float(total), abs=1e-5)
    expected = gradients_of(slow)
    for name, gradient in gradients_of(network).items():
        torch.testing.assert_close(gradient, expected[name], atol=2e-5, rtol=1e-3, msg=name)
        assert gradient.abs().max() > 0, name


def played_in_groups(network, groups=5, size=4, seed=0):
    """Episodes of `groups` problems, `size` times each, with the others' mean return by a loop."""
    rng = np.random.default_rng(seed)
    problems = TASK.sample(rng, np.zeros(groups, np.int8)).take(np.repeat(np.arange(groups), size))
    batch = play(network, TASK, problems, torch.Generator().manual_seed(seed))
    # Untrained as it is the policy earns nothing: rewards of its own for whatever it did.
    ends = (np.arange(len(batch)), batch.lengths - 1)
    batch.rewards[ends] = rng.integers(0, 3, len(batch)) / 2
    for row in range(len(batch)):
        first = row // size * size
        others = [other for other in range(first, first + size) if other != row]
        batch.baseline[row] = sum(float(batch.returns[other]) for other in others) / len(others)
    return batch


LEAVE_ONE_OUT = {
    "group_size": 4,
    "advantage_estimator": "leave_one_out",
    "normalize_advantages": False,
    "vf_loss_coeff": 0.0,
    "entropy_coeff": 0.0,
}


@pytest.mark.parametrize("clip_param", [None, 0.2])
def test_leave_one_out_is_reinforce_with_the_other_episodes_as_the_baseline(clip_param):
    group, network = group_of(config_of(clip_param=clip_param, max_staleness=0, **LEAVE_ONE_OUT))
    batch = played_in_groups(network)
    slow = copy.deepcopy(network)
    loss, steps = 0.0, int(batch.lengths.sum())
    for first in range(0, 20, 4):
        returns = [float(batch.rewards[row].sum()) for row in range(first, first + 4)]
        for place, own in enumerate(returns):
            row = first + place
            baseline = (sum(returns) - own) / 3
            actions = batch.actions[row, : batch.lengths[row]]
            played_steps = slow_steps(slow, batch.context[row], batch.stage[row], actions)
            log_probability = sum(
                logs[int(action)] for action, (logs, _) in zip(actions, played_steps, strict=True)
            )
            loss = loss - (own - baseline) * log_probability / steps
    loss.backward()
    update(group, learner_columns(batch))
    expected = gradients_of_used(slow)
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-3
    for name, gradient in gradients_of(network).items():
        if name in expected:
            torch.testing.assert_close(gradient, expected[name], atol=2e-6, rtol=1e-3, msg=name)
        else:  # the value head has no part in it
            assert name.startswith("value_head") and not gradient.any()


def gradients_of_used(network):
    named = network.named_parameters()
    return {name: parameter.grad for name, parameter in named if parameter.grad is not None}


def test_a_group_that_goes_alike_moves_nothing():
    group, network = group_of(config_of(**LEAVE_ONE_OUT))
    batch = played_in_groups(network)
    batch.rewards[:] = 0
    batch.rewards[:8, 0] = 1.0
    batch.baseline[:] = batch.returns
    update(group, learner_columns(batch))
    assert not any(gradient.any() for gradient in gradients_of(network).values())


def test_replayed_episodes_are_imitated_and_have_no_leave_one_out_advantage():
    settings = LEAVE_ONE_OUT | {"replay_coeff": 0.5}
    group, network = group_of(config_of(**settings))
    batch = played_in_groups(network)
    replayed = np.arange(20) >= 12
    results = update(group, learner_columns(batch, replayed=replayed))[DEFAULT_MODULE_ID]
    played_only = update(group, learner_columns(batch.take(~replayed)))[DEFAULT_MODULE_ID]
    assert results["policy_loss"] == pytest.approx(played_only["policy_loss"], abs=1e-6)
    assert played_only["imitation_loss"] == 0
    total, count = 0.0, 0
    for row in range(12, 20):
        actions = batch.actions[row, : batch.lengths[row]]
        steps = slow_steps(network, batch.context[row], batch.stage[row], actions)
        for step, (logs, value) in enumerate(steps):
            surplus = max(0.0, float(batch.rewards[row, step:].sum()) - float(value))
            total -= float(logs[int(actions[step])]) * surplus
            count += 1
    assert results["imitation_loss"] == pytest.approx(total / count, rel=1e-4)


def test_what_stands_after_an_episode_s_end_teaches_nothing():
    group, network = group_of(config_of())
    columns = learner_columns(played(network))
    clean = update(group, columns)[DEFAULT_MODULE_ID]["total_loss"], gradients_of(network)
    after = np.arange(7) >= columns["lengths"][:, None]
    assert after.any()
    for name, garbage in (
        ("actions", 3),
        ("rewards", 1e3),
        ("log_probabilities", -50.0),
    ):
        columns[name][after] = garbage
    dirty = update(group, columns)[DEFAULT_MODULE_ID]["total_loss"], gradients_of(network)
    assert dirty[0] == clean[0]
    for name in clean[1]:
        torch.testing.assert_close(dirty[1][name], clean[1][name], msg=name)


def test_gradients_are_clipped_to_the_norm_that_was_set():
    norms = []
    for clip in (None, 0.01):
        group, network = group_of(config_of(grad_clip=clip))
        update(group, learner_columns(played(network)))
        norms.append(
            math.sqrt(sum(float(g.square().sum()) for g in gradients_of(network).values()))
        )
    assert norms[0] > 0.05
    assert norms[1] == pytest.approx(0.01, rel=1e-3)


def test_weight_decay_is_part_of_the_gradient_that_adam_sees():
    rate, decay = 1e-3, 0.1
    group, network = group_of(config_of(lr=rate, weight_decay=decay))
    before = copy.deepcopy(dict(network.named_parameters()))
    update(group, learner_columns(played(network)))
    for name, parameter in network.named_parameters():
        gradient = parameter.grad + decay * before[name]
        # Adam's first step, with both moments corrected: the sign, nearly.
        expected = before[name] - rate * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(parameter, expected, atol=1e-7, rtol=1e-4, msg=name)


def test_steps_are_counted_not_episodes_and_replayed_ones_not_at_all():
    group, network = group_of(config_of())
    batch = played(network)
    replayed = np.arange(len(batch)) >= 30
    results = update(group, learner_columns(batch, replayed=replayed))
    steps = int(batch.lengths[:30].sum())
    assert steps != 30
    everything = results["__all_modules__"]
    for counter in ("num_env_steps_trained", "num_env_steps_trained_lifetime"):
        assert everything[counter] == steps
    for scope in (everything, results[DEFAULT_MODULE_ID]):
        assert scope["num_module_steps_trained"] == steps


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize(("minibatch_size", "steps"), [(10, 12), (None, 3)])
def test_three_epochs_are_that_many_steps_over_all_episodes(minibatch_size, steps, shuffled):
    group, network = group_of(config_of(lr=1e-3))
    before = copy.deepcopy(network.state_dict())
    batch = played(network)
    results = update(
        group,
        learner_columns(batch),
        num_epochs=3,
        minibatch_size=minibatch_size,
        shuffle_batch_per_epoch=shuffled,
    )
    assert results["__all_modules__"]["num_env_steps_trained"] == 3 * batch.env_steps
    optimizer = group._learner.get_optimizers_for_module(DEFAULT_MODULE_ID)[0][1]
    assert {int(state["step"]) for state in optimizer.state.values()} == {steps}
    assert any(not torch.equal(before[name], now) for name, now in network.state_dict().items())


# RLlib's own path ----------------------------------------------------------------------------


def as_rllib_episodes(batch, network):
    """The same episodes as a SingleAgentEnvRunner would have handed them over."""
    logits, _ = network.unroll_episodes(
        *(torch.from_numpy(getattr(batch, n)) for n in ("context", "stage", "actions", "lengths"))
    )
    episodes = []
    for row, length in enumerate(batch.lengths.tolist()):
        actions = batch.actions[row, :length]
        observations = [
            {
                "context": batch.context[row].astype(np.int64),
                "stage": int(batch.stage[row]),
                "previous_token": int(token),
            }
            for token in (CTX, *actions)
        ]
        episodes.append(
            SingleAgentEpisode(
                observation_space=observation_space(TASK),
                action_space=action_space(TASK),
                observations=observations,
                actions=[int(action) for action in actions],
                rewards=batch.rewards[row, :length].tolist(),
                extra_model_outputs={
                    Columns.ACTION_LOGP: list(batch.log_probabilities[row, :length]),
                    Columns.ACTION_DIST_INPUTS: list(logits[row, :length].detach().numpy()),
                    # An episode fits into one piece, so no state but the first is ever read.
                    Columns.STATE_OUT: [
                        {"hidden": np.zeros(WIDTH, np.float32), "started": np.ones(1, np.float32)}
                    ]
                    * length,
                },
                terminated=True,
                len_lookback_buffer=0,
            ).to_numpy()
        )
    return episodes


def standardise_over_real_steps(monkeypatch):
    """RLlib standardises advantages over an artificial step behind each episode as well. Doing it
    again over the steps that happened takes these out: standardising undoes any scale and shift."""
    original = PPOTorchLearner.compute_loss_for_module
    seen = []

    def compute(self, *, batch, **kwargs):
        mask, advantages = batch[Columns.LOSS_MASK], batch[Postprocessing.ADVANTAGES]
        real = advantages[mask]
        batch[Postprocessing.ADVANTAGES] = (advantages - real.mean()) / real.std(unbiased=False)
        seen.append((mask, batch[Postprocessing.VALUE_TARGETS]))
        return original(self, batch=batch, **kwargs)

    monkeypatch.setattr(PPOTorchLearner, "compute_loss_for_module", compute)
    return seen


def test_the_update_is_that_of_rllib_s_own_ppo_on_the_same_episodes(monkeypatch):
    seen = standardise_over_real_steps(monkeypatch)
    ours, network = group_of(config_of(entropy_coeff=0.02, vf_loss_coeff=0.7))
    stock, stock_network = group_of(
        config_of(
            PPOConfig,
            gamma=1.0,
            lambda_=1.0,
            clip_param=0.2,
            vf_clip_param=float("inf"),
            vf_loss_coeff=0.7,
            entropy_coeff=0.02,
            use_kl_loss=False,
            num_epochs=1,
            minibatch_size=None,
        )
    )
    batch = played(network, size=60)
    # Both see the episodes of slightly other weights.
    shift = np.random.default_rng(1).normal(0, 0.15, batch.log_probabilities.shape)
    happened = np.arange(7) < batch.lengths[:, None]
    batch.log_probabilities += (shift * happened).astype(np.float32)
    our_results = update(ours, learner_columns(batch))[DEFAULT_MODULE_ID]
    theirs = plain(
        stock.update(
            training_data=TrainingData(episodes=as_rllib_episodes(batch, stock_network)),
            timesteps={"num_env_steps_sampled_lifetime": 0},
            num_epochs=1,
            minibatch_size=None,
        )[0]
    )[DEFAULT_MODULE_ID]
    [(mask, targets)] = seen
    for row, length in enumerate(batch.lengths.tolist()):
        assert mask[row].sum() == length
        to_go = np.cumsum(batch.rewards[row, :length][::-1])[::-1]
        np.testing.assert_allclose(targets[row, :length], to_go, atol=1e-5)
    for name in ("policy_loss", "vf_loss", "entropy", "total_loss"):
        assert our_results[name] == pytest.approx(theirs[name], abs=1e-5), name
    expected = gradients_of(stock_network)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in gradients_of(network).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-4 * largest, rtol=0, msg=name)


def test_the_action_limit_ends_an_episode_for_the_learner_too():
    group, network = group_of(config_of(normalize_advantages=False, gamma=0.9))
    batch = played(network)
    late = batch.lengths == 7
    cut = batch.take(late & (batch.actions[:, -1] != ANS))
    assert len(cut) and not cut.rewards.any()
    results = update(group, learner_columns(cut))[DEFAULT_MODULE_ID]
    _, values = network.unroll_episodes(
        *(torch.from_numpy(getattr(cut, n)) for n in ("context", "stage", "actions", "lengths"))
    )
    # Nothing was earned and nothing is expected behind the end: every value is a target of 0.
    assert results["vf_loss"] == pytest.approx(float(values.square().mean()), rel=1e-4)


def test_batches_for_a_gpu_go_through_pinned_memory(monkeypatch):
    """The path a GPU takes, up to the device itself, which this machine need not have."""
    asked = {}

    def convert(self, batch, to_device=True, pin_memory=False, use_stream=False):
        asked.update(pin_memory=pin_memory, use_stream=use_stream)
        return batch

    monkeypatch.setattr(TorchLearner, "_convert_batch_type", convert)
    learner = EpisodeColumnsLearner.__new__(EpisodeColumnsLearner)
    learner._device = torch.device("cuda")
    learner._convert_batch_type(None)
    assert asked == {"pin_memory": True, "use_stream": False}


# Gradients that are no numbers -------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_a_gradient_that_is_no_number_changes_nothing_and_is_counted(value):
    group, network = group_of(config_of(lr=1e-2))
    columns = learner_columns(played(network))
    update(group, columns)
    learner = group._learner
    [(_, optimizer)] = learner.get_optimizers_for_module(DEFAULT_MODULE_ID)
    weights = copy.deepcopy(network.state_dict())
    moments = copy.deepcopy(optimizer.state_dict()["state"])
    spoilt = learner_columns(played(network), rewards=columns["rewards"] * np.float32(value))
    for _ in range(2):
        results = update(group, spoilt)
    assert results[DEFAULT_MODULE_ID]["skipped_updates"] == 1  # in this call
    assert results[DEFAULT_MODULE_ID]["skipped_in_a_row"] == 2
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    for number, state in optimizer.state_dict()["state"].items():
        for name, tensor in state.items():
            assert torch.equal(torch.as_tensor(tensor), torch.as_tensor(moments[number][name]))
    results = update(group, columns)
    assert results[DEFAULT_MODULE_ID]["skipped_in_a_row"] == 0
    changed = network.state_dict()
    assert any(not torch.equal(tensor, weights[name]) for name, tensor in changed.items())
    assert all(torch.isfinite(tensor).all() for tensor in changed.values())
