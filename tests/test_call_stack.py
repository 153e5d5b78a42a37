"""The network with a call stack: its equations by hand, its stack against a list, its noise."""

import itertools
import json

import numpy as np
import pytest
import torch
from network_forms import (
    CLOSE,
    FORMS,
    INTERFACE,
    OPEN,
    as_episodes,
    make_batch,
    perturbed,
    unrolled,
)

from toolagent import cli
from toolagent.checkpoints.policy import load_policy, save_policy
from toolagent.explain.__main__ import command as explain
from toolagent.export.check import load_player
from toolagent.export.player import source
from toolagent.models.base import as_responses
from toolagent.models.call_stack import CallStackNetwork, CallStackOptions, Restrained
from toolagent.models.network import StageGRUNetwork
from toolagent.models.state_stack import KEEP, POP, PUSH, SlotWeights
from toolagent.rollouts.reading import stack_rows
from toolagent.rollouts.trajectory import trajectory
from toolagent.serve.answers import play_answer_of
from toolagent.serve.player import Player, Question
from toolagent.serve.schemas import PlayAnswer
from toolagent.tasks import get_task
from toolagent.tasks.tokens import ANS, CTX, EOS, NUM_TOKENS

SMALL = CallStackOptions(5, 4, 6, 3, 2, 2)
VARIANTS = [SMALL, SMALL._replace(sees_digits=True), SMALL._replace(slots_per_token=1)]

pytestmark = pytest.mark.usefixtures("one_thread")


def make_network(seed=0, options=SMALL, interface=INTERFACE):
    torch.manual_seed(seed)
    return perturbed(CallStackNetwork(interface, options))


# The oracle: the equations of the docstring, one episode and one token at a time, in float64 -----


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_hand(network, context, tokens):
    """One episode: logits (T, 18) and values (T,)."""
    w = {name: value.detach().double().numpy() for name, value in network.state_dict().items()}
    options = network.options

    def looks_like(token):
        return 0 if token < 10 and not options.sees_digits else token

    def linear(name, x):
        return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", 0.0)

    hidden, stack, slots = w["call_state"], [], []
    for token in [token for token in context.tolist() if token != EOS]:
        x = w["context_embedding.weight"][looks_like(token)]
        written = linear("writer_state", hidden) + linear("writer_token", x)
        for slot in np.split(linear("slots", np.maximum(written, 0)), options.slots_per_token):
            copied = np.eye(NUM_TOKENS)[token] if token < NUM_TOKENS else np.zeros(NUM_TOKENS)
            slots.append((min(max(0.5 + slot[0] / 2, 0), 1), slot[1:], copied))
        gate = np.exp(linear("gates", x))
        push, pop, keep = gate / gate.sum()
        depth = options.stack_size
        full = [*stack, *[np.zeros_like(hidden)] * (depth + 1 - len(stack))]
        pushed, popped = [hidden, *full], full[1:]
        going_on = push * w["call_state"] + pop * full[0] + keep * hidden
        stack = [
            push * pushed[entry] + pop * popped[entry] + keep * full[entry]
            for entry in range(depth)
        ]
        i_r, i_z, i_n = np.split(w["reader.weight_ih"] @ x + w["reader.bias_ih"], 3)
        h_r, h_z, h_n = np.split(w["reader.weight_hh"] @ going_on + w["reader.bias_hh"], 3)
        reset, update = sigmoid(i_r + h_r), sigmoid(i_z + h_z)
        hidden = (1 - update) * np.tanh(i_n + reset * h_n) + update * going_on
    logits, values = [], []
    for step, token in enumerate(tokens.tolist()):
        content, copies, left = 0.0, 0.0, 1.0
        so_far = [1.0] + [0.0] * step  # that n slots are open before slot i
        for opened, what, copied in slots:
            weight = so_far[step] * opened
            content, copies, left = content + weight * what, copies + weight * copied, left - weight
            so_far = [
                so_far[n] * (1 - opened) + (so_far[n - 1] * opened if n else 0.0)
                for n in range(step + 1)
            ]
        content = content + left * w["end_content"]
        content = content + w["token_embedding.weight"][looks_like(token)]
        heads = linear("heads", np.tanh(linear("hidden_layer", np.maximum(content, 0))))
        logits.append(heads[:NUM_TOKENS] + 2 * heads[NUM_TOKENS + 1] * copies)
        values.append(heads[NUM_TOKENS])
    return np.array(logits), np.array(values)


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_equations_worked_out_by_hand(form, options):
    network, batch = make_network(1, options), make_batch(0, 12)
    logits, values, *_ = form(network, batch)
    for row in range(12):
        expected = by_hand(network, batch.context[row], batch.tokens[row])
        steps = int(batch.lengths[row]) if form is as_episodes else 6
        np.testing.assert_allclose(logits[row, :steps], expected[0][:steps], atol=5e-5)
        np.testing.assert_allclose(values[row, :steps], expected[1][:steps], atol=5e-5)


def test_gradients_are_right_by_finite_differences():
    network = make_network(0, CallStackOptions(2, 2, 2, 2, 2, 3)).double()
    batch = make_batch(3, 3, 3, group=2)

    def forward(*_):  # the parameters themselves are moved
        torch.manual_seed(0)  # the same noise each time
        return network.unroll_episodes(*batch.columns)

    for network.noisy in (False, True):
        assert torch.autograd.gradcheck(forward, tuple(network.parameters()))


# What it is for ----------------------------------------------------------------------------------


def saturated(options):
    """'(' pushes, ')' pops, all else keeps, for certain."""
    network = make_network(0, options)
    with torch.no_grad():
        network.gates.weight.zero_()
        network.gates.bias.zero_()
        network.gates.bias[KEEP] = 200.0
        network.context_embedding.weight[:, 0] = 0.0
        network.context_embedding.weight[OPEN, 0] = 1.0
        network.context_embedding.weight[CLOSE, 0] = -1.0
        network.gates.weight[PUSH, 0], network.gates.weight[POP, 0] = 400.0, -400.0
    return network


def test_a_push_starts_anew_and_its_pop_goes_on_from_where_it_was():
    """What a state says of a nested part is what it says of that part alone, at any depth."""
    network = saturated(SMALL._replace(stack_size=12))
    inner, deep = [OPEN, 7, CTX, OPEN, 3, CLOSE, 4], 10
    context = torch.full((2, 40), EOS)
    context[0, : len(inner)] = torch.tensor(inner)
    nested = [*[OPEN] * (deep - 1), *inner, *[CLOSE] * deep, 5]
    context[1, : len(nested)] = torch.tensor(nested)
    states, gates = network.read_states(context, context != EOS)
    assert set(gates.flatten().tolist()) == {0.0, 1.0}
    first, last = deep - 1, deep - 1 + len(inner)
    torch.testing.assert_close(states[1, first + 1 : last], states[0, 1 : len(inner)])
    # Each pop goes on from the state that was put away, which was h_0 behind one '(' and more.
    returned = states[1, last + 1 :][:deep]
    step = network.reader(network.context_embedding.weight[[CLOSE]], network.call_state[None])
    opened = network.reader(network.context_embedding.weight[[OPEN]], network.call_state[None])
    once = network.reader(network.context_embedding.weight[[CLOSE]], opened)
    torch.testing.assert_close(returned[:-1], once.expand(deep - 1, -1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(returned[-1:], step, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stack_size", [2, 5])
def test_the_stack_is_a_list_that_forgets_its_bottom(stack_size):
    network = saturated(SMALL._replace(stack_size=stack_size))
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.choice([OPEN, OPEN, CLOSE, 7], (6, 30)))
    states, _ = network.read_states(tokens, torch.ones_like(tokens, dtype=torch.bool))
    with torch.no_grad():
        for row in range(6):
            stack, hidden = [], network.call_state
            for token, state in zip(tokens[row].tolist(), states[row], strict=True):
                torch.testing.assert_close(state, hidden, rtol=1e-4, atol=1e-6)
                going_on = hidden
                if token == OPEN:
                    stack = [*stack, hidden][-stack_size:]
                    going_on = network.call_state
                elif token == CLOSE:
                    going_on = stack.pop() if stack else torch.zeros_like(hidden)
                x = network.context_embedding.weight[0 if token < 10 else token]
                hidden = network.reader(x[None], going_on[None])[0]


def test_slots_that_are_open_are_written_in_order():
    opened = torch.tensor([[0, 1, 0, 0, 1, 1.0], [1, 1, 0, 0, 0, 0]])
    weights = SlotWeights.apply(opened, 4)
    assert weights[0].argmax(0).tolist()[:3] == [1, 4, 5]
    assert weights.sum(1).tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]


def test_a_slots_weight_is_the_chance_that_it_is_the_tth_open_one():
    opened = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(3, 5, 4)
    for choice in itertools.product([0, 1], repeat=5):
        chosen = torch.tensor(choice)
        chance = torch.where(chosen > 0, opened, 1 - opened).prod(1)
        for step, slot in enumerate(chosen.nonzero().flatten().tolist()[:4]):
            expected[:, slot, step] += chance
    torch.testing.assert_close(SlotWeights.apply(opened, 4), expected)


def test_digits_are_only_copied():
    network, batch = make_network(2), make_batch(3, 8)
    other = batch.context.clone()
    other[batch.context < 10] = (other[batch.context < 10] + 3) % 10
    context, stage, actions, lengths = batch.columns
    with torch.no_grad():
        network.heads.weight[NUM_TOKENS + 1 :] = 0.0
        network.heads.bias[NUM_TOKENS + 1 :] = 0.0
    one = network.unroll_episodes(context, stage, actions, lengths)
    two = network.unroll_episodes(other, stage, actions, lengths)
    for first, second in zip(one, two, strict=True):
        torch.testing.assert_close(first, second)


def test_noise_is_there_only_while_it_imitates():
    network, batch = make_network(3), make_batch(1, 8)
    quiet = unrolled(network, batch)[0]
    network.noisy = True
    noisy = unrolled(network, batch)[0]
    assert (noisy - quiet).abs().max() > 1e-3
    network.noisy = False
    assert torch.equal(unrolled(network, batch)[0], quiet)
    for name in ("state_noise", "slot_noise", "gate_noise"):
        none = dict.fromkeys(("state_noise", "slot_noise", "gate_noise"), 0.0)
        one = make_network(3, SMALL._replace(**{**none, name: 1.0}))
        one.noisy = True
        assert (unrolled(one, batch)[0] - quiet).abs().max() > 1e-3, name


def test_what_is_restrained_has_one_more_term_in_its_loss():
    values = torch.tensor([[-3.0, -1.0, 0.5], [1.2, 1.5, 4.0]], requires_grad=True)
    weights = torch.randn(2, 3)
    (gradient,) = torch.autograd.grad((Restrained.apply(values, 1.2, 3.0) * weights).sum(), values)
    excess = (values.abs() - 1.2).clamp(min=0)
    (expected,) = torch.autograd.grad(
        (values * weights).sum() + 3 / 2 * excess.square().mean(), values
    )
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    ("option", "value"), [("state_size", 0), ("stack_size", 0), ("gate_noise", -0.1)]
)
def test_options_that_can_not_be(option, value):
    with pytest.raises(ValueError, match=f"{option} is {value}; it must be at least"):
        CallStackNetwork(INTERFACE, SMALL._replace(**{option: value}))


@pytest.mark.parametrize("answered", [0, 3])
def test_the_player_computes_the_same(answered, tmp_path):
    interface = INTERFACE._replace(response_length=answered)
    network, batch = make_network(4, SMALL, interface), make_batch(5, 16, 6, answered=answered)
    text = source("call_stack", "toolcall" if answered else "expression", bool(answered))
    (tmp_path / "player.py").write_text(text)
    task = get_task("expression")
    card = {
        "network": SMALL._asdict(),
        "vocabulary": task.vocabulary.actions,
        "context_vocabulary": task.vocabulary.names,
        "special_tokens": {"pad": EOS, "start": CTX, "answer": ANS},
        "action_limits": {"8": INTERFACE.max_actions},
    }
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    player = load_player(tmp_path).Network(weights, card)
    state = player.begin(batch.context.numpy().astype(np.int64), batch.stage.numpy())
    expected, _, _ = unrolled(network, batch)
    responses = as_responses(batch.responses) if answered else None
    for step in range(6):
        heard = None if responses is None else responses[:, step].numpy().astype(np.int64)
        logits, state = player.step(batch.tokens[:, step].numpy(), state, heard)
        np.testing.assert_allclose(logits, expected[:, step], atol=5e-5)


def test_what_each_token_does_with_the_stack_is_explained():
    task = get_task("expression")
    network = saturated(SMALL._replace(stack_size=4))
    problems = task.pose(None, expression=["((3+4)*2)"])
    recorded = trajectory(network, task, problems)
    rows = stack_rows(network, task, problems, recorded.tokens)
    assert [row["token"] for row in rows] == [
        "(",
        "(",
        "3",
        "ADD",
        "4",
        ")",
        "MUL",
        "2",
        ")",
        "CTX",
    ]
    assert [row["depth"] for row in rows] == [1, 2, 2, 2, 2, 1, 1, 1, 0, 0]
    for row in rows:
        action = {"(": "push", ")": "pop"}.get(row["token"], "keep")
        assert {name: row[name] for name in ("push", "pop", "keep")} == {
            name: float(name == action) for name in ("push", "pop", "keep")
        }
    written = [name for row in rows for name in row["written"]]
    trace = network.stack_trace(torch.from_numpy(problems.context))
    assert len(written) <= int((trace.opened > 0.5).sum())
    tokens = [task.vocabulary.names[token] for token in recorded.tokens]
    assert written == [tokens[step - 1] for row in rows for step in row["steps"]]
    assert stack_rows(StageGRUNetwork(INTERFACE), task, problems, recorded.tokens) == []


def test_the_stack_is_in_the_page_the_json_and_the_answers_of_the_api(tmp_path, capsys):
    task, text = get_task("expression"), "2*((3+4)-1)"
    agent, page, document = (tmp_path / name for name in ("agent", "page.html", "out.json"))
    save_policy(agent, make_network(interface=task.interface), "expression")
    files = ["--html", str(page), "--json", str(document)]
    assert cli.main(explain, [str(agent), "--expression", text, *files]) == 0
    assert "what reading each token does with the stack of states" in capsys.readouterr().out
    rows = json.loads(document.read_text())["stack"]
    written = page.read_text()
    for gate in ("push", "pop", "keep"):
        line = next(line for line in written.splitlines() if f">{gate}</th>" in line)
        assert line.count("<td") == len(rows) == len(text) + 1
        assert all(f">{row[gate]:.2f}</td>" in line for row in rows)

    policy = load_policy(agent)
    question = Question(task.pose(None, expression=[text]), explained=True)
    plain = Question(question.problem)
    asked, other = Player(policy).answer([question, plain])
    assert other.reading == [] and play_answer_of(task, "a", plain, other)["reading"] is None
    shown = PlayAnswer(**play_answer_of(task, "a", question, asked)).model_dump()["reading"]
    assert [row["token"] for row in shown] == [row["token"] for row in rows]
    for row, expected in zip(shown, rows, strict=True):
        assert row == {
            name: pytest.approx(value, abs=1e-6) if isinstance(value, float) else value
            for name, value in expected.items()
        }
