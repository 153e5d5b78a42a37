"""Networks of other modules, with `begin` and `unroll` only: tried out, trained, saved, loaded."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import own_networks
import pytest
import torch
from answering import PeekTask
from own_networks import GRU
from torch import nn
from trained import ROOT, is_refusal, run_modules

from toolagent.checkpoints.policy import load_policy, save_policy
from toolagent.config import build_algorithm_config, load_settings
from toolagent.envs import register_task
from toolagent.errors import UserError
from toolagent.models import AgentNetwork, InitialState
from toolagent.models.registry import network_class
from toolagent.tasks import get_task

pytestmark = pytest.mark.usefixtures("one_thread")

register_task(PeekTask)
TRANSFORMER = "toolagent.examples.own_network:Transformer"
OUTSIDE = ("own_networks:GRU", "own_networks:LSTM", TRANSFORMER)
OWN = ("stage_gru", "encoder_decoder")
PEEK = "answering:PeekTask"


def make_network(name, task, seed=0):
    torch.manual_seed(seed)
    network = network_class(name)(get_task(task).interface)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return network


# The same in every form --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "task"),
    [(name, task) for name in OUTSIDE for task in ("calculator", "expression", PEEK)]
    + [(name, PEEK) for name in OWN],
)
def test_every_form_computes_the_same_and_learns_the_same(name, task):
    """Whole episodes, unrolled, in pieces, step by step; values and gradients."""
    task = get_task(task)
    vocabulary, steps = task.vocabulary, task.max_actions
    size, actions_there = 12, vocabulary.num_actions
    rng = np.random.default_rng(0)
    problems = task.sample(rng, rng.choice(task.stages, size))
    context, stage = torch.from_numpy(problems.context), torch.from_numpy(problems.stage)
    actions = torch.from_numpy(rng.integers(0, actions_there, (size, steps)))
    lengths = torch.from_numpy(rng.integers(1, steps + 1, size))
    alive = torch.arange(steps) < lengths.unsqueeze(1)
    previous = torch.cat([torch.full((size, 1), vocabulary.start_token), actions[:, :-1]], 1)
    responses = seen = None
    if task.response_length:
        shape = (size, steps, task.response_length)
        responses = torch.from_numpy(rng.integers(0, len(vocabulary), shape))
        none = torch.full_like(responses[:, :1], vocabulary.pad_token)
        seen = torch.cat([none, responses[:, :-1]], 1)
    generator = torch.Generator().manual_seed(0)
    upstream = torch.randn(size, steps, actions_there + 1, generator=generator)

    def answered(part):
        return () if seen is None else (seen[:, part],)

    def whole(network):
        columns = [part.to(torch.int8) for part in (actions, lengths)]
        columns += [] if responses is None else [responses.to(torch.int8)]
        return network.unroll_episodes(context, stage, *columns)

    def pieces(network, cuts):
        encoding, hidden = network.read(context, stage)
        found = []
        for start, stop in cuts:
            part = slice(start, stop)
            *outputs, hidden = network.unroll(previous[:, part], encoding, hidden, *answered(part))
            found.append(outputs)
        return [torch.cat(parts, 1) for parts in zip(*found, strict=True)]

    forms = {
        "whole": whole,
        "at once": lambda network: pieces(network, [(0, steps)]),
        "in pieces": lambda network: pieces(network, [(0, 2), (2, 5), (5, steps)]),
    }
    results = {}
    for form, forward in forms.items():
        network = make_network(name, task.name)
        logits, values = forward(network)
        if form == "whole":
            assert not logits[~alive].any() and not values[~alive].any()
        heads = torch.cat([logits, values.unsqueeze(-1)], -1) * alive.unsqueeze(-1)
        (heads * upstream).sum().backward()
        gradients = {key: weight.grad for key, weight in network.named_parameters()}
        results[form] = heads.detach(), gradients
    network = make_network(name, task.name)
    table, heads = network.step_table(), []
    encoding, hidden = network.read(context, stage)
    for step in range(steps):
        response = None if seen is None else seen[:, step].to(torch.int8)
        token = previous[:, step].int()
        logits, values, hidden = network.step(table, token, encoding, hidden, response)
        assert not logits.requires_grad
        heads.append(torch.cat([logits, values.unsqueeze(-1)], -1))
    results["step by step"] = torch.stack(heads, 1) * alive.unsqueeze(-1), {}
    expected_heads, expected = results["at once"]
    for form, (heads, gradients) in results.items():
        torch.testing.assert_close(heads, expected_heads, atol=1e-4, rtol=1e-4, msg=form)
        for key, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[key], atol=2e-4, rtol=1e-3, msg=key)
    assert all(gradient is not None for gradient in expected.values())
    given = [] if responses is None else [responses.numpy()]
    states = network.hidden_states(problems.context, problems.stage, actions.numpy(), *given)
    np.testing.assert_allclose(states[:, -1], hidden.detach().numpy(), atol=1e-4)


def test_a_transformer_s_past_is_in_its_state_to_the_last_step():
    """The first action of an episode still counts at its last step."""
    task = get_task("calculator")
    network = make_network(TRANSFORMER, "calculator")
    problems = task.sample(np.random.default_rng(0), np.zeros(1, np.int8))
    encoding, hidden = network.read(*map(torch.from_numpy, (problems.context, problems.stage)))
    found = []
    for first in (3, 4):
        state = hidden
        for token in (task.vocabulary.start_token, first, *range(5, 5 + task.max_actions - 2)):
            logits, _, state = network.step(None, torch.tensor([token]), encoding, state)
        found.append(logits)
    assert (found[0] - found[1]).abs().max() > 1e-3


# Saved and loaded ------------------------------------------------------------------------------


class Keeping(GRU):
    """Weights that are one, numbers that are no weights, and a tensor that is saved nowhere."""

    def __init__(self, interface, options=None):
        super().__init__(interface, options)
        self.second = self.token
        self.register_buffer("places", torch.arange(3))
        self.register_buffer("mask", torch.ones(2, 2).tril(), persistent=False)
        self.scale = torch.tensor([2.0])

    def inputs(self, previous_tokens, responses):
        embedded = super().inputs(previous_tokens, responses) + self.second(previous_tokens)
        return embedded * self.scale * self.mask[1, 0] * self.places[2]


@pytest.mark.parametrize("name", [*OUTSIDE, "test_outside_networks:Keeping"])
def test_a_loaded_network_computes_what_the_saved_one_did(name, tmp_path):
    network = make_network(name, "calculator")
    save_policy(tmp_path, network, "calculator")
    rng_state = torch.get_rng_state()
    loaded = load_policy(tmp_path, network=name).network
    assert torch.equal(torch.get_rng_state(), rng_state)
    assert type(loaded) is type(network) and loaded.options == network.options
    context, stage = torch.tensor([[3, 4, 5, 10, 17, 17]]), torch.tensor([0])
    actions = torch.tensor([[11, 12, 14]])
    for one, other in zip(
        *(n.unroll_episodes(context, stage, actions, torch.tensor([3])) for n in (network, loaded)),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_a_checkpoint_s_network_is_not_imported_unless_it_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "theirs.py").write_text(Path(own_networks.__file__).read_text())
    save_policy(tmp_path / "saved", make_network("theirs:LSTM", "calculator"), "calculator")
    card = tmp_path / "saved" / "policy.json"
    record = json.loads(card.read_text())
    record["network"]["class"] = "never_imported:LSTM"
    card.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"'never_imported:LSTM', which is not part of toolagent"):
        load_policy(tmp_path / "saved")


# Wrong -----------------------------------------------------------------------------------------


class NoUnroll(AgentNetwork):
    def begin(self, context, stage):
        return InitialState((), torch.zeros(len(context), 1))


class PlainModule(nn.Module):
    pass


class DictOptions(GRU):
    Options = (("width", 3),)


class TakenOption(GRU):
    class Options(NamedTuple):
        task: str = "calculator"


class ListOption(GRU):
    class Options(NamedTuple):
        widths: tuple = (1, 2)


class NoPair(GRU):
    def begin(self, context, stage):
        return self.read_context(context, stage)


class Transposed(GRU):
    def unroll(self, previous_tokens, encoding, hidden, responses=None):
        logits, values, hidden = super().unroll(previous_tokens, encoding, hidden, responses)
        return logits.transpose(0, 1), values, hidden


class ValueColumn(GRU):
    def unroll(self, previous_tokens, encoding, hidden, responses=None):
        logits, values, hidden = super().unroll(previous_tokens, encoding, hidden, responses)
        return logits, values.unsqueeze(-1), hidden


class TwoResults(GRU):
    def unroll(self, previous_tokens, encoding, hidden, responses=None):
        return super().unroll(previous_tokens, encoding, hidden, responses)[:2]


class Forgetful(GRU):
    def unroll(self, previous_tokens, encoding, hidden, responses=None):
        logits, values, _ = super().unroll(previous_tokens, encoding, hidden, responses)
        return logits, values, hidden


class Random(GRU):
    def inputs(self, previous_tokens, responses):
        return nn.functional.dropout(super().inputs(previous_tokens, responses))


class Mixing(GRU):
    def read_context(self, context, stage):
        read = super().read_context(context, stage)
        return read - read.mean(0)


class Crashing(GRU):
    def unroll(self, previous_tokens, encoding, hidden, responses=None):
        return self.nowhere(previous_tokens)


class LooksAtValues(GRU):
    def __init__(self, interface, options=None):
        super().__init__(interface, options)
        self.scale = float(torch.ones(1))


class TakesNoOptions(GRU):
    def __init__(self, interface):
        super().__init__(interface)


class NoNumbers(GRU):
    def unroll(self, previous_tokens, encoding, hidden, responses=None):
        logits, *others = super().unroll(previous_tokens, encoding, hidden, responses)
        return logits / 0, *others


HERE = "test_outside_networks"
WRONG = [
    (f"{HERE}:NoUnroll", {}, "network NoUnroll has no unroll"),
    (f"{HERE}:PlainModule", {}, "'PlainModule' is no AgentNetwork"),
    (f"{HERE}:Missing", {}, "there is no 'Missing' in it"),
    ("no_such_module:GRU", {}, "there is no module 'no_such_module'"),
    ("own network:GRU", {}, "is no class; expected its module and its name"),
    (f"{HERE}:DictOptions", {}, "network DictOptions: Options is (('width', 3),)"),
    (f"{HERE}:TakenOption", {}, "no option can be called task"),
    (f"{HERE}:ListOption", {}, "its option widths has no default that is a number"),
    (f"{HERE}:NoPair", {}, "network NoPair: begin returns no InitialState"),
    (f"{HERE}:Transposed", {}, "unroll returns logits of float32, shape (3, 4, 18)"),
    (f"{HERE}:ValueColumn", {}, "unroll returns values of float32, shape (4, 3, 1)"),
    (f"{HERE}:TwoResults", {}, "unroll returns no (logits, values, hidden)"),
    (f"{HERE}:Forgetful", {}, "all that it remembers must be in `hidden`"),
    (f"{HERE}:Random", {}, "and nothing in it random"),
    (f"{HERE}:Mixing", {}, "depend on the episodes beside it"),
    (f"{HERE}:Crashing", {}, "unroll raised AttributeError"),
    (f"{HERE}:LooksAtValues", {}, "its constructor, run on torch's device 'meta', raised"),
    (f"{HERE}:TakesNoOptions", {}, "raised TypeError"),
    (f"{HERE}:NoNumbers", {}, "unroll returns logits not finite"),
    ("own_networks:GRU", {"widht": 3}, "widht: unknown; did you mean 'width'?"),
    ("own_networks:GRU", {"width": "3"}, "model_config.width: "),
    ("own_networks:GRU", {"width": 3.5}, "model_config.width: "),
    ("own_networks:GRU", {"width": 0}, "model_config.width: width is 0; it must be at least 1"),
    ("own_networks:GRU", {"width": 50_000}, "model_config: makes"),
    ("own_networks:GRU", {"width": 10**18}, "network GRU: its constructor"),
]


@pytest.mark.parametrize(("network", "options", "message"), WRONG, ids=lambda value: str(value))
def test_a_wrong_network_is_refused_in_one_line_before_ray_starts(network, options, message):
    given = json.dumps({"network": network} | options)
    settings = load_settings("default", [f"rl_module.model_config={given}"])
    with pytest.raises(UserError) as refusal:
        build_algorithm_config(settings)
    text = str(refusal.value)
    assert message in text and "rl_module.model_config" in text and "\n" not in text


# Through the commands --------------------------------------------------------------------------

CONFIG = """\
curriculum:
  levels: [{{stage: 0}}]
run: {{dashboard: false, stop_time_s: 100}}
rl_module:
  model_config: {{network: {network}}}
"""


@pytest.mark.parametrize(
    ("network", "file"),
    [
        pytest.param(
            "own_network:Transformer",
            ROOT / "toolagent" / "examples" / "own_network.py",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "own_networks:LSTM", ROOT / "tests" / "own_networks.py", marks=pytest.mark.slow
        ),
        pytest.param(
            "own_networks:GRU", ROOT / "tests" / "own_networks.py", marks=pytest.mark.full
        ),
    ],
)
def test_a_network_beside_the_config_is_trained_resumed_and_evaluated(network, file, tmp_path):
    shutil.copy(file, tmp_path)
    (tmp_path / "mine.yaml").write_text(CONFIG.format(network=network))
    train = ["-m", "toolagent.run", "--num-env-runners", "2"]
    first = ["--config", "mine.yaml", "--output-dir", "run", "--stop-env-steps", "5000"]
    (started,) = run_modules([*train, *first], cwd=tmp_path)
    assert started.returncode == 0, started.stderr
    before = json.loads((tmp_path / "run" / "summary.json").read_text())
    more = ["--resume", "run", "--stop-env-steps", "2000000"]
    (resumed,) = run_modules([*train, *more], cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert before["stopped_by"] == "env_steps" and summary["stopped_by"] == "solved"
    assert summary["env_steps"] > before["env_steps"] >= 5000
    assert summary["stages"][0]["solved"] == summary["stages"][0]["problems"] == 1000
    evaluate = ["-m", "toolagent.evaluate", "run"]
    named, not_named = run_modules(
        [*evaluate, "--network", network, "--json", "result.json"], evaluate, cwd=tmp_path
    )
    assert named.returncode == 0, named.stderr
    assert json.loads((tmp_path / "result.json").read_text())["stages"][0]["solved"] == 1000
    assert is_refusal(not_named) and f"'{network}'" in not_named.stderr
