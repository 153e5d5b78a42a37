"""Exports of agents whose tools answer: the same tokens over whole conversations."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch

from toolagent import cli
from toolagent.checkpoints.policy import WEIGHTS_FILE, Policy, load_policy, save_policy
from toolagent.export import check
from toolagent.export.__main__ import command
from toolagent.export.card import model_card
from toolagent.export.check import Machine, compare, load_player
from toolagent.export.graphs import BEGIN, EPISODE, STEP, write_graphs
from toolagent.export.player import source
from toolagent.models.registry import NETWORKS
from toolagent.rollouts import certification
from toolagent.rollouts.play import GivenTokens, play
from toolagent.tasks import get_task

PEEK = "answering:PeekTask"
# Few answers are kept, so that a conversation has more of them.
OPTIONS = {
    "stage_gru": {"embedding_size": 16},
    "encoder_decoder": {"embedding_size": 16, "num_heads": 2},
    "answer_attention": {
        **{"embedding_size": 16, "context_size": 8, "num_heads": 2},
        **{"sees_digits": True, "num_answers": 2},
    },
    "recurrent": {"embedding_size": 16, "context_size": 8, "num_heads": 2},
}


def save_network(folder, name, reference):
    """A checkpoint with weights so large that its tokens differ from problem to problem."""
    chosen, task = NETWORKS[name], get_task(reference)
    torch.manual_seed(3)
    network = chosen(task.interface, tuple(chosen.Options(**OPTIONS[name])))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2.0)
    save_policy(folder, network, reference, env_steps=1, stages=())
    return load_policy(folder, task=reference)


def write_player(folder, policy: Policy, name, reference):
    (folder / "player.py").write_text(source(name, reference, tools_answer=True))
    card = model_card(policy, [], folder)
    (folder / "policy.json").write_text(json.dumps(card))
    player = load_player(folder)
    card, weights = player.load(folder)
    return player, card, player.Network(weights, card)


def conversations(task, network, count, seed=0):
    """Plans of all stages with a tenth of the tokens replaced, then what the network writes."""
    rng = np.random.default_rng(seed)
    problems = task.sample(rng, np.arange(count) % task.num_stages)
    given = np.full((count, task.max_actions), GivenTokens.FREE)
    for row in range(count):
        plan = task.plan(problems, row)[:-1]  # without the token that ends it
        given[row, : len(plan)] = plan
    noise = rng.random(given.shape) < 0.1
    noise &= (given != GivenTokens.FREE) & (rng.random((count, 1)) < 0.5)
    given[noise] = rng.integers(0, task.vocabulary.num_actions, noise.sum())
    return problems, play(network, task, problems, chooser=GivenTokens(given))


def happened(batch):
    return np.arange(batch.actions.shape[1]) < batch.lengths[:, None]


def check_same(logits, expected, batch):
    """The same most probable token at each step, and about the same logits."""
    assert np.abs(logits - expected)[happened(batch)].max() < 1e-3
    assert (logits.argmax(2) == expected.argmax(2))[happened(batch)].all()


@pytest.mark.parametrize("name", OPTIONS)
def test_conversations_of_toolcall_are_the_same_in_the_player(name, tmp_path):
    policy = save_network(tmp_path, name, "toolcall")
    network, task = policy.network, policy.task
    _, _, numpy_network = write_player(tmp_path, policy, name, "toolcall")
    problems, batch = conversations(task, network, 200)
    valued = (batch.response[:, :, 0] < task.vocabulary.num_actions).sum(1)
    assert (valued > 2).sum() > 40 and (batch.response == task.refusal_token).sum() > 40
    expected = check._logits(network, problems, batch)
    state, logits = numpy_network.begin(problems.context.astype(int), problems.stage), []
    token, response = np.full(200, task.vocabulary.start_token), task.no_response(200)
    for step in range(batch.actions.shape[1]):
        written, state = numpy_network.step(token, state, response)
        logits.append(written)
        token, response = batch.actions[:, step], batch.response[:, step]
    check_same(np.stack(logits, 1), expected, batch)
    # With other answers they would be others.
    told = batch.response
    batch.response = np.roll(told, 1, 0)
    others = check._logits(network, problems, batch)
    assert (others.argmax(2) != expected.argmax(2))[happened(batch)].any()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("answer_attention", marks=pytest.mark.full),
        pytest.param("recurrent", marks=pytest.mark.full),
        "stage_gru",
    ],
)
def test_conversations_of_toolcall_are_the_same_in_onnx(name, tmp_path, monkeypatch):
    policy = save_network(tmp_path, name, "toolcall")
    network, task = policy.network, policy.task
    write_graphs(network, task, tmp_path)
    _, card, _ = write_player(tmp_path, policy, name, "toolcall")
    assert card["graphs"][STEP]["inputs"]["response"] == {"shape": ["batch", 6], "dtype": "int64"}
    assert not (tmp_path / EPISODE).exists()

    # What the agent writes by itself.
    sample = task.sample(np.random.default_rng(1), np.arange(200) % task.num_stages)
    monkeypatch.setattr(check, "checked_problems", lambda task: [sample])
    compared = compare(network, task, tmp_path)
    assert set(compared.identical.values()) == {compared.answers_identical} == {200}
    assert set(compared.identical) == {WEIGHTS_FILE, STEP, "player.py"}

    # What it would write at each step of conversations that have more answers.
    problems, batch = conversations(task, network, 200)
    asked = {"context": problems.context.astype(int), "stage": problems.stage.astype(int)}
    sessions = (onnxruntime.InferenceSession(tmp_path / graph) for graph in (BEGIN, STEP))
    logits = check._onnx_logits(*sessions, asked, batch, task)
    check_same(logits, check._logits(network, problems, batch), batch)


def test_the_players_tools_answer_as_the_tasks(tmp_path):
    """Plans with wrong tokens among them, which end, run out, or are answered too often."""
    policy = save_network(tmp_path, "stage_gru", "toolcall")
    player, *_ = write_player(tmp_path, policy, "stage_gru", "toolcall")
    task = policy.task
    problems, batch = conversations(task, policy.network, 900)
    written = check._programs(batch)
    assert check._same_answers(player, task, problems, batch, written) == 900
    ended = [name_of(task, row[-1]) == "=" for row in written]
    assert 50 < sum(ended) < 800


def name_of(task, token):
    return task.vocabulary.names[token]


@pytest.mark.parametrize(
    ("text", "length"),
    [("GET B = ", 24), ("MUL 9 9 9 , NEG 9 = MUL 9 9 9 9 , 2 = ADD 0 0 0 0 7 , ", 40)],
)
def test_the_players_tools_end_an_episode_as_the_tasks_do(text, length, tmp_path):
    """By too many answers, or by too many actions, which are counted elsewhere."""
    policy = save_network(tmp_path, "stage_gru", "toolcall")
    player, card, _ = write_player(tmp_path, policy, "stage_gru", "toolcall")
    task, names = policy.task, (text * 40).split()[: card["action_limits"]["6"]]
    typed = {"expression": "3*B+C", "database": "0 99 3 0 0 0 0 0"}
    given = np.array([[task.vocabulary.token(name) for name in names]])
    problems = task.pose(None, **typed)
    batch = play(policy.network, task, problems, chooser=GivenTokens(given))
    assert batch.lengths[0] == length
    context, stage, tools = player.read({f"--{key}": value for key, value in typed.items()}, {})
    assert stage == 6 and context == ["3", "MUL", "B", "ADD", "C"]
    for name, response in zip(names[:length], batch.response[0].tolist(), strict=False):
        told, over = tools(name)
        assert told == [name_of(task, n) for n in response if n != task.vocabulary.pad_token]
    assert over == (length < len(names))


@pytest.mark.parametrize("name", OPTIONS)
def test_the_player_plays_any_task_with_tools_behind_it(name, tmp_path):
    policy = save_network(tmp_path, name, PEEK)
    player, card, network = write_player(tmp_path, policy, name, PEEK)
    problems = policy.task.sample(np.random.default_rng(0), np.arange(200) % 2)
    batch = play(policy.network, policy.task, problems)
    tools = Machine(policy.task, problems)
    written = player.play(network, card, problems.context.astype(int), problems.stage, tools)
    assert written == check._programs(batch)
    assert player.Tools is None


@pytest.mark.full
@pytest.mark.parametrize(
    "name", ["answer_attention", pytest.param("encoder_decoder", marks=pytest.mark.slow)]
)
def test_an_outside_task_whose_tools_answer_is_exported(name, tmp_path, monkeypatch):
    """The command, the card's example, and the player, whose user answers for the tools."""
    monkeypatch.setattr(check, "SAMPLE_SIZE", 200)
    monkeypatch.setattr(certification, "SAMPLE_SIZE", 200)
    policy = save_network(tmp_path / "checkpoint", name, PEEK)
    folder = tmp_path / "exported"
    asked = [tmp_path / "checkpoint", "--task", PEEK, "--output-dir", folder]
    assert cli.main(command, [str(argument) for argument in asked]) == 0
    card = json.loads((folder / "policy.json").read_text())
    assert set(card["compared"]["identical"].values()) == {200}
    assert card["compared"]["answers_identical"] is None

    task = policy.task
    problems = task.sample(np.random.default_rng(4), np.ones(1, np.int8))
    batch = play(policy.network, task, problems)
    program, names = check._programs(batch)[0], task.vocabulary.names
    machine, done = Machine(task, problems), []

    def tool(token):
        done.append(names.index(token))
        response, over = machine(np.array([done[-1]]))
        return [names[n] for n in response[0] if n != task.vocabulary.pad_token], over[0]

    monkeypatch.chdir(folder)
    scope = {}
    exec("\n".join(card["example"]), scope)
    shown = [names[token] for token in problems.context[0]]
    scope["run"](shown, 1, tool)
    assert done == program

    told = [" ".join(names[n] for n in row if n != task.vocabulary.pad_token)
            for row in batch.response[0, : len(program)]]  # fmt: skip
    spoken = subprocess.run(
        [sys.executable, "-I", folder / "player.py", "--context", " ".join(["1", *shown])],
        input="".join(f"{line}\n" for line in told[:-1]),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (spoken.returncode, spoken.stderr) == (0, "")
    words = [word for line in spoken.stdout.splitlines() for word in line.split(" ->")[0].split()]
    assert words == [names[token] for token in program]
    wrong = subprocess.run(
        [sys.executable, "-I", folder / "player.py", "--context", " ".join(["1", *shown])],
        input="0 1 2\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert wrong.returncode == 2 and "expected up to 2 of" in wrong.stderr
