"""The benchmark's reference loop trains the product's network with the product's loss."""

import torch

from toolagent.benchmark.bare_loop import BareLoop
from toolagent.rollouts.play import play


def make_loop():
    return BareLoop("calculator", 2, 0.5, {"lr": 1e-2, "episodes_per_update": 24}, embedding_size=8)


def test_an_update_plays_a_batch_and_moves_every_parameter():
    loop = make_loop()
    before = {name: weight.detach().clone() for name, weight in loop.network.named_parameters()}
    env_steps, episodes = loop.update()
    assert episodes == 24 and 24 <= env_steps <= 24 * loop.task.max_actions
    for name, weight in loop.network.named_parameters():
        assert torch.isfinite(weight).all() and not torch.equal(weight, before[name]), name


def test_the_loss_of_a_fresh_batch_worked_out_from_the_learner_s_own_pass():
    loop = make_loop()
    problems = loop.task.sample(loop.rng, loop.rng.integers(0, 3, 24))
    batch = play(loop.network, loop.task, problems, loop.generator)
    with torch.no_grad():
        loss = loop.loss(batch)
        logits, values = loop.network.unroll_episodes(
            *map(torch.from_numpy, (batch.context, batch.stage, batch.actions, batch.lengths))
        )
    errors, entropies = [], []
    for row in range(24):
        for step in range(int(batch.lengths[row])):
            to_go = float(batch.rewards[row, step : batch.lengths[row]].sum())
            errors.append((values[row, step].item() - to_go) ** 2)
            entropies.append(torch.distributions.Categorical(logits=logits[row, step]).entropy())
    # The policy that played is the policy that learns, and normalized advantages have mean 0.
    expected = 0.5 * torch.tensor(errors).mean() - 0.01 * torch.stack(entropies).mean()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
