"""The RLModule: carrying its state step by step, it computes what the learner computes at once."""

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from toolagent.envs import env_id, register_with_rllib
from toolagent.envs.spaces import action_space, observation_space
from toolagent.models.rl_module import StageGRUModule
from toolagent.tasks import get_task
from toolagent.tokens import CTX, NUM_TOKENS

WIDTH = 16
TASK = get_task("calculator")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for each other on a busy machine take 100 times as long as none."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_module(seed=0):
    torch.manual_seed(seed)
    module = RLModuleSpec(
        module_class=StageGRUModule,
        observation_space=observation_space(TASK),
        action_space=action_space(),
        model_config={"embedding_size": WIDTH, "max_seq_len": 8},
    ).build()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def observations(seed, size, steps):
    """Observations (B, T, ...) of B episodes: the context and stage stay, the tokens vary."""
    rng = np.random.default_rng(seed)
    problems = TASK.sample(rng, rng.integers(0, 3, size).astype(np.int8))
    tokens = rng.integers(0, NUM_TOKENS, (size, steps))
    tokens[:, 0] = CTX
    return {
        "context": torch.tensor(problems.context)[:, None].repeat(1, steps, 1),
        "stage": torch.tensor(problems.stage.astype(np.int64))[:, None].repeat(1, steps),
        "previous_token": torch.tensor(tokens),
    }


def initial_state(module, size):
    state = module.get_initial_state()
    return {key: torch.tensor(value).repeat(size, 1) for key, value in state.items()}


def part(obs, rows=slice(None), steps=slice(None)):
    return {key: value[rows, steps] for key, value in obs.items()}


def trained_on(module, obs, state):
    """`forward_train` as the learner calls it: logits (B, T, 18), values (B, T), the state out."""
    batch = {Columns.OBS: obs, Columns.STATE_IN: state}
    with torch.no_grad():
        out = module.forward_train(batch)
        values = module.compute_values(batch, out.get(Columns.EMBEDDINGS))
    return out[Columns.ACTION_DIST_INPUTS], values, out[Columns.STATE_OUT]


def stepped(module, obs, forward="forward_exploration"):
    """The same one step at a time, the state carried on as the env runner carries it."""
    size, steps = obs["stage"].shape
    state = initial_state(module, size)
    logits = []
    for step in range(steps):
        out = getattr(module, forward)(
            {Columns.OBS: part(obs, steps=slice(step, step + 1)), Columns.STATE_IN: state}
        )
        state = out[Columns.STATE_OUT]
        logits.append(out[Columns.ACTION_DIST_INPUTS].detach())
    return torch.cat(logits, 1), state


@pytest.mark.parametrize("forward", ["forward_exploration", "forward_inference"])
def test_step_by_step_is_what_the_learner_computes_at_once(forward):
    module, obs = make_module(), observations(0, 11, 7)
    logits, state = stepped(module, obs, forward)
    at_once, values, final = trained_on(module, obs, initial_state(module, 11))
    assert logits.shape == at_once.shape == (11, 7, NUM_TOKENS)
    assert values.shape == (11, 7)
    torch.testing.assert_close(logits, at_once, atol=1e-5, rtol=0)
    for key in state:
        torch.testing.assert_close(state[key], final[key], atol=1e-5, rtol=0)


def test_the_first_step_reads_the_context_although_the_initial_state_is_empty():
    module, obs = make_module(), observations(0, 1, 1)
    other = {key: value.clone() for key, value in obs.items()}
    other["context"][0, 0, 0] = (other["context"][0, 0, 0] + 1) % 10
    assert (stepped(module, obs)[0] - stepped(module, other)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("padding", [1, 13])
def test_padding_at_the_end_changes_nothing_before_it(padding):
    module, obs = make_module(), observations(1, 6, 5)
    # RLlib pads with zeros: also the contexts, which are then no sound contexts.
    padded = {
        key: torch.cat([value, torch.zeros_like(value[:, :1]).repeat_interleave(padding, 1)], 1)
        for key, value in obs.items()
    }
    logits, values, _ = trained_on(module, obs, initial_state(module, 6))
    padded_logits, padded_values, _ = trained_on(module, padded, initial_state(module, 6))
    torch.testing.assert_close(logits, padded_logits[:, :5], atol=1e-5, rtol=0)
    torch.testing.assert_close(values, padded_values[:, :5], atol=1e-5, rtol=0)


def test_neighbours_change_nothing():
    module, obs = make_module(), observations(2, 9, 6)
    together, values, _ = trained_on(module, obs, initial_state(module, 9))
    step_by_step, _ = stepped(module, obs)
    for row in range(9):
        alone = part(obs, rows=slice(row, row + 1))
        logits, value, _ = trained_on(module, alone, initial_state(module, 1))
        torch.testing.assert_close(logits[0], together[row], atol=1e-5, rtol=0)
        torch.testing.assert_close(value[0], values[row], atol=1e-5, rtol=0)
        torch.testing.assert_close(stepped(module, alone)[0][0], step_by_step[row])


@pytest.mark.parametrize("cut", [1, 3, 6])
def test_an_episode_may_be_cut_in_the_middle_and_go_on_from_its_state(cut):
    module, obs = make_module(), observations(3, 8, 7)
    whole, values, final = trained_on(module, obs, initial_state(module, 8))
    head, head_values, state = trained_on(
        module, part(obs, steps=slice(cut)), initial_state(module, 8)
    )
    tail, tail_values, end = trained_on(module, part(obs, steps=slice(cut, None)), state)
    torch.testing.assert_close(torch.cat([head, tail], 1), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat([head_values, tail_values], 1), values)
    torch.testing.assert_close(end["hidden"], final["hidden"], atol=1e-5, rtol=0)


def test_new_and_running_episodes_stand_in_one_batch():
    """In a vector env some rows begin while others go on: each starts from its own state."""
    module, obs = make_module(), observations(4, 2, 4)
    whole, _, _ = trained_on(module, obs, initial_state(module, 2))
    _, _, state = trained_on(module, part(obs, steps=slice(2)), initial_state(module, 2))
    fresh = initial_state(module, 2)
    mixed = {key: torch.stack([state[key][0], fresh[key][1]]) for key in state}
    batch = {key: torch.stack([value[0, 2:4], value[1, 0:2]]) for key, value in obs.items()}
    logits, _, _ = trained_on(module, batch, mixed)
    torch.testing.assert_close(logits[0], whole[0, 2:4], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits[1], whole[1, 0:2], atol=1e-5, rtol=0)


def test_values_are_the_same_with_and_without_the_embeddings():
    module, obs = make_module(), observations(5, 4, 7)
    batch = {Columns.OBS: obs, Columns.STATE_IN: initial_state(module, 4)}
    with torch.no_grad():
        embeddings = module.forward_train(batch)[Columns.EMBEDDINGS]
        torch.testing.assert_close(
            module.compute_values(batch), module.compute_values(batch, embeddings)
        )


# Through RLlib itself --------------------------------------------------------------------------


def tiny_ppo(max_seq_len, vectorize_mode):
    register_with_rllib()
    return (
        PPOConfig()
        .environment(env_id("calculator"), env_config={"task": "calculator", "stage": 2, "seed": 0})
        .env_runners(
            num_env_runners=0, num_envs_per_env_runner=5, gym_env_vectorize_mode=vectorize_mode
        )
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=StageGRUModule,
                model_config={"embedding_size": WIDTH, "max_seq_len": max_seq_len},
            )
        )
        .debugging(seed=3)
    )


@pytest.mark.parametrize(
    ("max_seq_len", "vectorize_mode"),
    [(8, "vector_entry_point"), (3, "vector_entry_point"), (8, "sync")],
)
def test_rllibs_learner_sees_the_logits_that_its_env_runner_acted_on(max_seq_len, vectorize_mode):
    config = tiny_ppo(max_seq_len, vectorize_mode)
    runner = SingleAgentEnvRunner(config=config, worker_index=0)
    try:
        # In two parts: the second begins with episodes that the first has cut in the middle.
        episodes = [*runner.sample(num_timesteps=57), *runner.sample(num_timesteps=43)]
        learner = config.build_learner(spaces=runner.get_spaces())
        learner.module[DEFAULT_MODULE_ID].load_state_dict(runner.module.state_dict())
        assert any(not episode.is_done for episode in episodes)
        assert any(episode.t_started > 0 for episode in episodes)
        rows = {(episode.id_, episode.t_started): episode for episode in episodes}
        taken = sum(len(episode) for episode in rows.values())

        batch = learner._learner_connector(
            rl_module=learner.module, batch={}, episodes=episodes, shared_data={}, metrics=None
        )[DEFAULT_MODULE_ID]
        mask = batch[Columns.LOSS_MASK]
        assert mask.dim() == 2 and mask.shape[1] == max_seq_len
        assert int(mask.sum()) == taken >= 100
        with torch.no_grad():
            out = learner.module[DEFAULT_MODULE_ID].forward_train(batch)
        recorded = batch[Columns.ACTION_DIST_INPUTS]
        assert recorded.shape == out[Columns.ACTION_DIST_INPUTS].shape
        torch.testing.assert_close(
            out[Columns.ACTION_DIST_INPUTS][mask], recorded[mask], atol=1e-5, rtol=0
        )
        # Not vacuous: the logits differ from step to step and from problem to problem.
        assert recorded[mask].std(0).min() > 1e-3
    finally:
        runner.stop()


def test_an_update_of_rllibs_ppo_learner_changes_every_parameter():
    config = tiny_ppo(8, "vector_entry_point").training(
        train_batch_size=100, minibatch_size=50, num_epochs=1, lr=1e-2
    )
    runner = SingleAgentEnvRunner(config=config, worker_index=0)
    try:
        episodes = runner.sample(num_timesteps=100)
        learner = config.build_learner(spaces=runner.get_spaces())
        module = learner.module[DEFAULT_MODULE_ID]
        before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
        learner.update(
            training_data=TrainingData(episodes=episodes), num_epochs=1, minibatch_size=50
        )
        for name, weight in module.named_parameters():
            assert torch.isfinite(weight).all(), name
            assert not torch.equal(weight, before[name]), name
    finally:
        runner.stop()
