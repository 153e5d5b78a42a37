"""Attention to answers: against a loop over single tokens, and what it is for."""

import pytest
import torch
from network_forms import (
    FORMS,
    INTERFACE,
    as_episodes,
    close,
    counted,
    make_batch,
    perturbed,
    stepped,
    unrolled,
)
from torch.nn import functional

from toolagent.models.answer_attention import AnswerAttentionNetwork, AnswerAttentionOptions
from toolagent.models.recurrent import RecurrentNetwork, RecurrentOptions
from toolagent.tasks import get_task
from toolagent.tasks.tokens import EOS, NUM_TOKENS

pytestmark = pytest.mark.usefixtures("one_thread")

ANSWERED = INTERFACE._replace(response_length=6)
SMALL = AnswerAttentionOptions(embedding_size=6, context_size=5, num_heads=3)
# With the last two, answers are forgotten.
NETWORKS = {
    "answers": (AnswerAttentionNetwork, SMALL),
    "the last two": (AnswerAttentionNetwork, SMALL._replace(num_answers=2, sees_digits=True)),
    "recurrent": (RecurrentNetwork, RecurrentOptions(6, 5, 2)),
}


def make_network(name="answers", seed=0):
    torch.manual_seed(seed)
    network, options = NETWORKS[name]
    return perturbed(network(ANSWERED, options))


# The oracle: the equations of the docstring, one episode and one token at a time -----------------


def is_kept(response):
    return any(token != EOS and token < NUM_TOKENS for token in response)


def by_hand(network, context, tokens, responses):
    """One episode, differentiable: logits (T, 18), values (T,), and [(step, answer), ...]."""
    heads, kept = network.options.num_heads, getattr(network.options, "num_answers", 0)
    shown = [token for token in context.tolist() if token != EOS]

    def look_of(token):  # all digits look like 0
        return 0 if token < 10 and not network.options.sees_digits else token

    size = network.query.out_features // heads

    def read(gru, sequence):
        hidden, states = network.context_embedding.weight.new_zeros(gru.hidden_size), []
        for token in sequence:
            hidden = gru(network.context_embedding.weight[look_of(token)], hidden)
            states.append(hidden)
        return states

    forward = read(network.forward_gru, shown)
    backward = read(network.backward_gru, shown[::-1])[::-1]
    prompt = []  # (token, the token before, key and value)
    for place, token in enumerate(shown):
        both = network.context_read(torch.cat([forward[place], backward[place]]))
        before = shown[place - 1] if place else None
        prompt.append((token, before, both + network.context_tokens[look_of(token)]))
    hidden = torch.tanh(network.summary(torch.cat([forward[-1], backward[0]])))
    gru, answers, logits, values = network.decoder_gru, [], [], []
    for step, token in enumerate(tokens.tolist()):
        response = responses[step].tolist()
        written = network.token_embedding.weight[look_of(token)]
        gates = gru.weight_ih @ written + gru.bias_ih
        for place, answer_token in enumerate(response):
            if answer_token != EOS:
                gates = gates + network.response_input.vectors[place, answer_token]
        if is_kept(response):
            answers.append((step, response))
        recurrent = gru.weight_hh @ hidden + gru.bias_hh
        (i_r, i_z, i_n), (h_r, h_z, h_n) = gates.chunk(3), recurrent.chunk(3)
        reset, update = torch.sigmoid(i_r + h_r), torch.sigmoid(i_z + h_z)
        hidden = (1 - update) * torch.tanh(i_n + reset * h_n) + update * hidden
        seen = []  # (token, the token before, key and value)
        for number, (_, answer) in enumerate(answers):
            newest = len(answers) - 1 - number
            for place, answer_token in enumerate(answer):
                if newest < kept and answer_token != EOS:
                    both = network.answer_tokens[answer_token] + network.answer_places[place]
                    key = network.from_newest[newest] + network.from_first[number % kept]
                    both = both + torch.cat([key, torch.zeros_like(key)])
                    seen.append((answer_token, answer[place - 1] if place else None, both))
        found, copies = [], []
        for head, query in enumerate((network.query(hidden) / 4).chunk(heads)):
            scores = []
            for entry, (_, before, both) in enumerate(prompt + seen):
                prior = network.follows_context
                if entry >= len(prompt):
                    prior = network.follows_answer
                scores.append(query @ both[:size] + (prior[head] if before == token else 0))
            weights = torch.softmax(torch.stack(scores), 0)
            entries = list(zip(weights, prompt + seen, strict=True))
            found.append(sum(weight * both[size:] for weight, (_, _, both) in entries))
            one_hot = functional.one_hot(torch.arange(20), 20)[:, :NUM_TOKENS].to(weights.dtype)
            copies.append(sum(weight * one_hot[shown] for weight, (shown, _, _) in entries))
        read_out = torch.tanh(network.read_out(torch.cat([hidden, *found])))
        out = network.heads(read_out)
        gate = torch.log1p(torch.exp(out[NUM_TOKENS + 1 :]))
        logits.append(out[:NUM_TOKENS] + 2 * sum(gate[h] * copies[h] for h in range(heads)))
        values.append(out[NUM_TOKENS])
    return torch.stack(logits), torch.stack(values), answers


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_equations_worked_out_by_hand(form, name):
    network, batch = make_network(name, 1), make_batch(0, 10, 9, answered=6)
    logits, values, *_ = form(network, batch)
    for row in range(10):
        with torch.no_grad():
            expected = by_hand(network, batch.context[row], batch.tokens[row], batch.responses[row])
        steps = int(batch.lengths[row]) if form is as_episodes else 9
        for ours, wanted in zip((logits[row], values[row]), expected[:2], strict=True):
            torch.testing.assert_close(ours[:steps], wanted[:steps], atol=5e-5, rtol=1e-4)
            assert (ours[steps:] == 0).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_learner_s_gradients_are_those_of_the_equations(name):
    network, batch = make_network(name).double(), make_batch(3, 4, 7, 2, answered=6)
    batch.responses[0, 1:4, 0] = torch.tensor([1, 2, 3])  # one has three answers at least
    batch.lengths[0] = 7
    weights = torch.randn(4, 7, NUM_TOKENS + 1, dtype=torch.float64)
    gradients = []
    for whole in (True, False):
        network.zero_grad()
        if whole:
            logits, values = network.unroll_episodes(*batch.columns)
            outputs = torch.cat([logits, values.unsqueeze(-1)], -1)
            (outputs * weights).sum().backward()
        else:
            for row, steps in enumerate(batch.lengths.tolist()):
                logits, values, _ = by_hand(
                    network, batch.context[row], batch.tokens[row][:steps], batch.responses[row]
                )
                outputs = torch.cat([logits, values.unsqueeze(1)], 1)
                (outputs * weights[row, :steps]).sum().backward()
        grads = {key: p.grad for key, p in network.named_parameters()}
        gradients.append({key: 0.0 if g is None else g.clone() for key, g in grads.items()})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradient * 0 + gradients[1][key], msg=key)


@pytest.mark.parametrize("name", NETWORKS)
def test_many_episodes_of_many_lengths_are_what_their_steps_are(name):
    """As many as do not look together."""
    network, batch = make_network(name), make_batch(4, 300, 12, answered=6)
    for whole, single in zip(
        counted(as_episodes, network, batch), counted(stepped, network, batch), strict=True
    ):
        close(whole, single)


@pytest.mark.parametrize("form", [unrolled, stepped])
@pytest.mark.parametrize("name", ["answers", "the last two"])
def test_the_state_holds_the_newest_answers_and_how_many_there_were(form, name):
    network, batch = make_network(name), make_batch(1, 20, 9, answered=6)
    states, kept = form(network, batch)[2], network.options.num_answers
    for row, state in enumerate(states[:, network.state_parts["answers"]].int().tolist()):
        answers = [answer for answer in batch.responses[row].tolist() if is_kept(answer)]
        grid = [[EOS] * 6] * kept
        for number, answer in enumerate(answers):
            grid[number % kept] = answer
        assert state == [token for answer in grid for token in answer] + [len(answers)]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_weights_shown_are_those_that_are_copied_by(name):
    """And each answer's token is named by the step whose action got it, and its place."""
    network, batch = make_network(name), make_batch(2, 12, 9, answered=6)
    shown = network.attention_weights(*batch.columns)
    column = batch.columns[-1].tolist()  # by the actions that were answered
    kept = getattr(network.options, "num_answers", 0)
    for row in range(12):
        steps, places = shown.answer_steps[row].tolist(), shown.answer_places[row].tolist()
        answers = [step for step in range(8) if is_kept(column[row][step])] if kept else []
        origins = [
            (step, place, column[row][step][place])
            for step in answers
            for place in range(6)
            if column[row][step][place] != EOS
        ]
        found = list(zip(steps, places, shown.answer_tokens[row].tolist(), strict=True))
        assert found == origins + [(-1, -1, -1)] * (len(found) - len(origins))
        for step in range(9):
            weights = shown.answers[row, step]  # (H, M)
            newest = [answer for answer in answers if answer < step][-kept:] if kept else []
            there = torch.tensor([answer in newest for answer in steps], dtype=torch.bool)
            alive = bool(batch.alive[row, step])
            assert ((weights > 0) == (there & alive)).all()
            total = shown.context[row, step].sum(1) + weights.sum(1)
            torch.testing.assert_close(total, torch.full_like(total, float(alive)))
    logits, _ = as_episodes(network, batch)
    with torch.no_grad():
        network.heads.weight[NUM_TOKENS + 1 :] = 0.0
        network.heads.bias[NUM_TOKENS + 1 :] = -100.0  # nothing is copied
    written, _ = as_episodes(network, batch)
    one_hot = torch.eye(20)[:, :NUM_TOKENS]
    copied = shown.context @ one_hot[batch.context.long()].unsqueeze(1)
    answer_tokens = torch.where(shown.answer_tokens < 0, EOS, shown.answer_tokens)
    copied += shown.answers @ one_hot[answer_tokens].unsqueeze(1)
    expected = 2 * (shown.gates.unsqueeze(-1) * copied).sum(2)
    torch.testing.assert_close(logits - written, expected, atol=1e-4, rtol=1e-4)


# What it is for ----------------------------------------------------------------------------------

TASK = get_task("toolcall")
TOKENS = {name: TASK.vocabulary.token(name) for name in ("ERR", "PAD", "GET", "=")}
ERR, PAD, GET, EQUALS = TOKENS.values()


def copies_the_first_answer():
    """Head 0 looks at the first answer's first place, or behind the token written last."""
    torch.manual_seed(0)
    network = AnswerAttentionNetwork(TASK.interface, SMALL)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.query.bias[0] = 1.0
        network.from_first[0, 0] = 40.0
        network.answer_places[0, 0] = 15.0
        network.follows_answer[0] = 30.0
        network.heads.bias[TASK.interface.num_actions + 1] = 5.0
    return network


def episode_of(*answers):
    """Answers in steps 1, 3, 5, ...; from step 10 on a first answer '4 7 2' is written."""
    actions = torch.full((1, 14), GET)
    actions[0, 10:13] = torch.tensor([4, 7, 2])
    responses = torch.full((1, 14, 6), PAD)
    for number, answer in enumerate(answers):
        responses[0, 1 + 2 * number, : len(answer)] = torch.tensor(answer)
    context = torch.full((1, TASK.context_length), PAD)
    context[0, 0] = 9
    return context, torch.zeros(1), actions, torch.tensor([14]), responses


def played(network, columns, exchange_at=None):
    """(B, T, A) logits, step by step; the answers in rows 0 and 1 exchanged before a step."""
    context, stage, actions, _, responses = columns
    table, (encoding, hidden) = network.step_table(), network.read(context, stage)
    tokens, observed = network.shifted(actions, responses)
    logits = []
    for step in range(actions.shape[1]):
        if step == exchange_at:
            part = network.state_parts["answers"]
            hidden = hidden.clone()
            hidden[:, part] = hidden[:, part].flip(0)
        out, _, hidden = network.step(table, tokens[:, step], encoding, hidden, observed[:, step])
        logits.append(out)
    return torch.stack(logits, 1)


@pytest.mark.parametrize(
    "answers",
    [([4, 7, 2], [1, 8]), ([ERR], [4, 7, 2], [ERR], [1, 8])],
    ids=["answers", "refusals between"],
)
def test_an_answer_of_long_ago_is_copied_and_refusals_take_no_place(answers):
    network, columns = copies_the_first_answer(), episode_of(*answers)
    whole = network.unroll_episodes(*columns)[0]
    for logits in (whole, played(network, columns)):
        assert logits[0, 10:13].argmax(-1).tolist() == [4, 7, 2]
        assert logits[0, 10:13].amax(-1).min() > 9.9  # 2 * 5 * weight


def test_exchanged_answers_are_what_is_copied_then():
    network = copies_the_first_answer()
    one, other = episode_of([4, 7, 2]), episode_of([6, 3, 5])
    columns = [torch.cat(pair) for pair in zip(one, other, strict=True)]
    columns[2][1, 10:13] = torch.tensor([6, 3, 5])
    assert played(network, columns)[:, 10].argmax(-1).tolist() == [4, 6]
    columns[2][:, 10:13] = columns[2][:, 10:13].flip(0)  # what each goes on with, exchanged
    written = played(network, columns, exchange_at=6)[:, 10:13].argmax(-1)
    assert written.tolist() == [[6, 3, 5], [4, 7, 2]]


@pytest.mark.parametrize("network", [AnswerAttentionNetwork, RecurrentNetwork])
def test_at_first_any_token_may_be_written(network):
    torch.manual_seed(0)
    columns = episode_of([4, 7, 2], [1, 8])
    logits, _ = network(TASK.interface).unroll_episodes(*columns)
    assert torch.softmax(logits, -1).min() > 0.1 / TASK.interface.num_actions
