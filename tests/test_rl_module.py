"""The RLModule: carrying its state step by step, it computes what the learner computes at once."""

import numpy as np
import pytest
import torch
from answering import PeekTask
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from toolagent.envs import env_id, register_task, register_with_rllib
from toolagent.envs.spaces import action_space, observation_space
from toolagent.models.encoder_decoder import EncoderDecoderNetwork, EncoderDecoderOptions
from toolagent.models.network import StageGRUNetwork
from toolagent.models.rl_module import NetworkModule, build_network
from toolagent.tasks import get_task
from toolagent.tasks.registry import reference_of_task

register_task(PeekTask)
WIDTH = 16
STAGE_GRU = {"network": "stage_gru", "embedding_size": WIDTH}
ENCODER_DECODER = {
    "network": "encoder_decoder",
    **{"embedding_size": WIDTH, "num_heads": 3, "num_counters": 2},
}
ANSWER_ATTENTION = {
    "network": "answer_attention",
    **{"embedding_size": WIDTH, "context_size": 6, "num_heads": 2, "num_answers": 2},
}
RECURRENT = {"network": "recurrent", "embedding_size": WIDTH, "context_size": 6, "num_heads": 2}
TRANSFORMER = {"network": "toolagent.examples.own_network:Transformer", "embedding_size": WIDTH}
# The task, the model config, and how wide its hidden state is.
CASES = {
    "stage_gru": (get_task("calculator"), STAGE_GRU, WIDTH),
    "encoder_decoder": (get_task("expression"), ENCODER_DECODER, WIDTH + 3 + 2),
    "stage_gru_answered": (PeekTask(), STAGE_GRU, WIDTH),
    "encoder_decoder_answered": (PeekTask(), ENCODER_DECODER, WIDTH + 3 + 2),
    "answer_attention": (get_task("expression"), ANSWER_ATTENTION, WIDTH),
    "answer_attention_answered": (PeekTask(), ANSWER_ATTENTION, WIDTH + 2 * 2 + 1),
    "recurrent_answered": (PeekTask(), RECURRENT, WIDTH),
    "outside": (get_task("calculator"), TRANSFORMER, 7),
    "outside_answered": (PeekTask(), TRANSFORMER, 7 * 3),
}


@pytest.fixture(params=CASES)
def kind(request):
    """The name of a task and a network."""
    return request.param


pytestmark = pytest.mark.usefixtures("one_thread")


def make_module(kind, seed=0):
    torch.manual_seed(seed)
    module = RLModuleSpec(
        module_class=NetworkModule,
        observation_space=observation_space(CASES[kind][0]),
        action_space=action_space(CASES[kind][0]),
        model_config=model_config(kind, 8),
    ).build()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def model_config(kind, max_seq_len):
    task, options, _ = CASES[kind]
    return {"task": reference_of_task(task), "max_seq_len": max_seq_len, **options}


def tokens_of(kind, rng, size, steps):
    """(B, T) actions, and (B, T, R) what they were answered with."""
    task = CASES[kind][0]
    actions = rng.integers(0, task.vocabulary.num_actions, (size, steps))
    responses = rng.integers(0, len(task.vocabulary), (size, steps, task.response_length))
    return torch.tensor(actions), torch.tensor(responses)


def problems_of(kind, rng, size):
    task = CASES[kind][0]
    stages = rng.integers(task.stages.start, task.stages.stop, size)
    return task.sample(rng, stages.astype(np.int8))


def observations(kind, seed, size, steps):
    """Observations (B, T, ...) of B episodes: the context and stage stay, the tokens vary."""
    rng = np.random.default_rng(seed)
    problems, task = problems_of(kind, rng, size), CASES[kind][0]
    actions, responses = tokens_of(kind, rng, size, steps)
    start, pad = task.vocabulary.start_token, task.vocabulary.pad_token
    result = {
        "context": torch.tensor(problems.context)[:, None].repeat(1, steps, 1),
        "stage": torch.tensor(problems.stage.astype(np.int64))[:, None].repeat(1, steps),
        "previous_token": torch.cat([torch.full((size, 1), start), actions[:, :-1]], 1),
    }
    if task.response_length:
        none = torch.full_like(responses[:, :1], pad)
        result["response"] = torch.cat([none, responses[:, :-1]], 1)
    return result


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
def test_step_by_step_is_what_the_learner_computes_at_once(kind, forward):
    module, obs = make_module(kind), observations(kind, 0, 11, 7)
    logits, state = stepped(module, obs, forward)
    at_once, values, final = trained_on(module, obs, initial_state(module, 11))
    assert logits.shape == at_once.shape == (11, 7, CASES[kind][0].vocabulary.num_actions)
    assert values.shape == (11, 7)
    torch.testing.assert_close(logits, at_once, atol=1e-5, rtol=0)
    for key in state:
        torch.testing.assert_close(state[key], final[key], atol=1e-5, rtol=0)


def test_the_first_step_reads_the_context_although_the_initial_state_is_empty(kind):
    module, obs = make_module(kind), observations(kind, 0, 1, 1)
    other = {key: value.clone() for key, value in obs.items()}
    other["context"][0, 0, 0] = (other["context"][0, 0, 0] + 1) % 10
    assert (stepped(module, obs)[0] - stepped(module, other)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("padding", [1, 13])
def test_padding_at_the_end_changes_nothing_before_it(kind, padding):
    module, obs = make_module(kind), observations(kind, 1, 6, 5)
    # RLlib pads with zeros: also the contexts, which are then no sound contexts.
    padded = {
        key: torch.cat([value, torch.zeros_like(value[:, :1]).repeat_interleave(padding, 1)], 1)
        for key, value in obs.items()
    }
    logits, values, _ = trained_on(module, obs, initial_state(module, 6))
    padded_logits, padded_values, _ = trained_on(module, padded, initial_state(module, 6))
    torch.testing.assert_close(logits, padded_logits[:, :5], atol=1e-5, rtol=0)
    torch.testing.assert_close(values, padded_values[:, :5], atol=1e-5, rtol=0)


@pytest.mark.parametrize("cut", [1, 3, 6])
def test_an_episode_may_be_cut_in_the_middle_and_go_on_from_its_state(kind, cut):
    module, obs = make_module(kind), observations(kind, 3, 8, 7)
    whole, values, final = trained_on(module, obs, initial_state(module, 8))
    head, head_values, state = trained_on(
        module, part(obs, steps=slice(cut)), initial_state(module, 8)
    )
    tail, tail_values, end = trained_on(module, part(obs, steps=slice(cut, None)), state)
    torch.testing.assert_close(torch.cat([head, tail], 1), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat([head_values, tail_values], 1), values)
    torch.testing.assert_close(end["hidden"], final["hidden"], atol=1e-5, rtol=0)


def test_new_and_running_episodes_stand_in_one_batch(kind):
    """In a vector env some rows begin while others go on: each starts from its own state."""
    module, obs = make_module(kind), observations(kind, 4, 2, 4)
    whole, _, _ = trained_on(module, obs, initial_state(module, 2))
    _, _, state = trained_on(module, part(obs, steps=slice(2)), initial_state(module, 2))
    fresh = initial_state(module, 2)
    mixed = {key: torch.stack([state[key][0], fresh[key][1]]) for key in state}
    batch = {key: torch.stack([value[0, 2:4], value[1, 0:2]]) for key, value in obs.items()}
    logits, _, _ = trained_on(module, batch, mixed)
    torch.testing.assert_close(logits[0], whole[0, 2:4], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits[1], whole[1, 0:2], atol=1e-5, rtol=0)


def test_values_are_the_same_with_and_without_the_embeddings(kind):
    module, obs = make_module(kind), observations(kind, 5, 4, 7)
    batch = {Columns.OBS: obs, Columns.STATE_IN: initial_state(module, 4)}
    with torch.no_grad():
        embeddings = module.forward_train(batch)[Columns.EMBEDDINGS]
        torch.testing.assert_close(
            module.compute_values(batch), module.compute_values(batch, embeddings)
        )


def test_the_columns_of_whole_episodes_give_what_the_padded_observations_give(kind):
    """The batched pipeline sends no observations: they follow from the actions."""
    module, rng = make_module(kind), np.random.default_rng(6)
    problems, lengths = problems_of(kind, rng, 9), torch.tensor([7, 1, 3, 7, 2, 5, 5, 6, 4])
    alive = torch.arange(7) < lengths[:, None]
    actions, responses = tokens_of(kind, rng, 9, 7)
    episodes = {
        "context": torch.from_numpy(problems.context),
        "stage": torch.from_numpy(problems.stage),
        "actions": actions.to(torch.int8),
        "lengths": lengths,
        "response": responses.to(torch.int8),
    }
    with torch.no_grad():
        out = module.forward_train(episodes)
    vocabulary = CASES[kind][0].vocabulary
    start = torch.full((9, 1), vocabulary.start_token)
    obs = {
        "context": episodes["context"][:, None].repeat(1, 7, 1),
        "stage": episodes["stage"].long()[:, None].repeat(1, 7),
        "previous_token": torch.cat([start, actions[:, :-1]], 1),
    }
    if responses.shape[2]:
        none = torch.full_like(responses[:, :1], vocabulary.pad_token)
        obs["response"] = torch.cat([none, responses[:, :-1]], 1)
    logits, values, _ = trained_on(module, obs, initial_state(module, 9))
    expected = logits * alive.unsqueeze(-1), values * alive
    actual = out[Columns.ACTION_DIST_INPUTS], out[Columns.VF_PREDS]
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_the_initial_state_is_as_wide_as_the_network_s_hidden_state(kind):
    module = make_module(kind)
    state = module.get_initial_state()
    assert {key: value.shape for key, value in state.items()} == {
        "hidden": (CASES[kind][2],),
        "started": (1,),
    }
    assert all(value.dtype == np.float32 and not value.any() for value in state.values())
    _, after = stepped(module, observations(kind, 0, 2, 1))
    assert after["hidden"].shape == (2, CASES[kind][2])


def test_a_model_config_says_the_task_the_network_and_its_options():
    network = build_network({"task": "calculator"})
    assert type(network) is StageGRUNetwork and network.options == (96,)
    assert network.interface == get_task("calculator").interface
    given = {"task": "tutorial", "embedding_size": 8, "max_seq_len": 9, "network": "stage_gru"}
    assert build_network(given).options == (8,)
    given = {"task": "expression", "network": "encoder_decoder", "reading": "operands"}
    network = build_network(given | {"sees_digits": True})
    assert type(network) is EncoderDecoderNetwork
    assert network.options == EncoderDecoderOptions(reading="operands", sees_digits=True)
    # Stage numbers 1..8: the table of a network that looks at them has a row 8.
    assert build_network({"task": "expression"}).stage_embedding.num_embeddings == 9
    with pytest.raises(ValueError, match="names no task"):
        build_network({})


# Through RLlib itself --------------------------------------------------------------------------


def tiny_ppo(kind, max_seq_len, vectorize_mode):
    register_with_rllib()
    task = CASES[kind][0]
    name = reference_of_task(task)
    return (
        PPOConfig()
        .environment(
            env_id(name), env_config={"task": name, "stage": task.stages[:3][-1], "seed": 0}
        )
        .env_runners(
            num_env_runners=0, num_envs_per_env_runner=5, gym_env_vectorize_mode=vectorize_mode
        )
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=NetworkModule,
                model_config=model_config(kind, max_seq_len),
            )
        )
        .debugging(seed=3)
    )


@pytest.mark.full
@pytest.mark.parametrize(
    ("max_seq_len", "vectorize_mode"),
    [(8, "vector_entry_point"), (3, "vector_entry_point"), (8, "sync")],
)
def test_rllibs_learner_sees_the_logits_that_its_env_runner_acted_on(
    kind, max_seq_len, vectorize_mode
):
    config = tiny_ppo(kind, max_seq_len, vectorize_mode)
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


@pytest.mark.full
def test_an_update_of_rllibs_ppo_learner_changes_every_parameter(kind):
    config = tiny_ppo(kind, 8, "vector_entry_point").training(
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


def test_the_target_network_computes_what_the_network_did_when_it_was_made(kind):
    """APPO's learner asserts this API in a thread, and goes on without learning where it lacks."""
    from ray.rllib.core.rl_module.apis import TARGET_NETWORK_ACTION_DIST_INPUTS, TargetNetworkAPI

    module = make_module(kind)
    assert isinstance(module, TargetNetworkAPI)
    batch = {
        Columns.OBS: observations(kind, 1, size=5, steps=6),
        Columns.STATE_IN: initial_state(module, 5),
    }
    with torch.no_grad():
        before = module.forward_train(batch)[Columns.ACTION_DIST_INPUTS]
        module.make_target_networks()
        [(network, target)] = module.get_target_network_pairs()
        for parameter in network.parameters():
            parameter.add_(1.0)
        assert network is module.network and not any(p.requires_grad for p in target.parameters())
        assert torch.equal(module.forward_target(batch)[TARGET_NETWORK_ACTION_DIST_INPUTS], before)
        assert not torch.equal(module.forward_train(batch)[Columns.ACTION_DIST_INPUTS], before)
