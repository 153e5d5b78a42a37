"""`python -m toolagent.export`: every form of an agent writes the same tokens."""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from trained import (
    is_refusal,
    noisy_network,
    trained_network,
    untrained_expression_network,
    untrained_network,
)

from toolagent import cli
from toolagent.checkpoints.policy import load_policy, save_policy
from toolagent.export import check
from toolagent.export.__main__ import command
from toolagent.export.check import checked_problems, compare, load_player
from toolagent.export.graphs import BEGIN, EPISODE, STEP
from toolagent.export.player import has_part, source
from toolagent.models.call_stack import CallStackNetwork
from toolagent.models.encoder_decoder import EncoderDecoderNetwork, EncoderDecoderOptions
from toolagent.models.network import StageGRUNetwork
from toolagent.models.registry import NETWORKS
from toolagent.rollouts import certification
from toolagent.rollouts.certification import SAMPLE_SIZE
from toolagent.rollouts.play import play
from toolagent.rollouts.trajectory import answers
from toolagent.tasks import get_task
from toolagent.tasks.tokens import ANS, CTX, NUM_TOKENS, VOCABULARY

MACHINES = ("calculator", "tutorial", "expression")  # that the player has a part for

# Runs a script as with `python -S -I` in an environment that has nothing but NumPy.
NUMPY_ONLY = """
import runpy, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "ray", "toolagent", "safetensors", "onnxruntime"}:
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Blocked())
script, *sys.argv = sys.argv[1], *sys.argv[1:]
runpy.run_path(script, run_name="__main__")
"""


def export(checkpoint, folder):
    return cli.main(command, [str(checkpoint), "--output-dir", str(folder)])


def run_player(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-B", "-c", NUMPY_ONLY, str(folder / "player.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder.parent,
        env={},
    )


@pytest.fixture(scope="module", autouse=True)
def fewer_problems():
    """50 of each 1,000 problems, and few expressions to count accuracy on: to save time."""

    def first_of_each(task):
        for problems in checked_problems(task):
            yield problems.take(np.arange(min(len(problems), 50)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "checked_problems", first_of_each)
        patch.setattr(certification, "SAMPLE_SIZE", 200)
        yield


@pytest.fixture
def all_problems(monkeypatch):
    """The slow tests take all of them, as the command does."""
    monkeypatch.setattr(check, "checked_problems", checked_problems)
    monkeypatch.setattr(certification, "SAMPLE_SIZE", SAMPLE_SIZE)


@pytest.fixture(scope="module")
def calculator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calculator")
    save_policy(folder / "checkpoint", trained_network(), "calculator", env_steps=7, seed=3)
    assert export(folder / "checkpoint", folder / "exported") == 0
    return folder / "exported"


def check_identical(exported, problems, complete):
    """All forms write the checkpoint's tokens on so many problems; the card says so."""
    card = json.loads((exported / "policy.json").read_text())
    compared = card["compared"]
    assert compared["problems"] == problems and compared["complete"] == complete
    assert set(compared["identical"]) == {"model.safetensors", STEP, EPISODE, "player.py"}
    assert set(compared["identical"].values()) == {problems}
    assert compared["answers_identical"] == problems
    return card


def test_all_forms_write_the_checkpoints_tokens(calculator):
    card = check_identical(calculator, 111 * 50, complete=True)
    assert card["compared"]["largest_difference"] < card["compared"]["smallest_margin"]
    assert [stage["solved"] for stage in card["stages"]] == [1_000, 10_000, 100_000]


@pytest.mark.slow
def test_all_forms_write_the_checkpoints_tokens_on_all_111_000_problems(
    calculator, tmp_path, all_problems
):
    assert export(calculator.parent / "checkpoint", tmp_path / "exported") == 0
    check_identical(tmp_path / "exported", 111_000, complete=True)


def test_the_card_fits_the_weights_and_the_folder_is_a_checkpoint(calculator):
    card = json.loads((calculator / "policy.json").read_text())
    weights = (calculator / "model.safetensors").read_bytes()
    assert card["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    for name, digest in card["files_sha256"].items():
        assert hashlib.sha256((calculator / name).read_bytes()).hexdigest() == digest, name
    network = load_policy(calculator).network
    assert card["tensors"].keys() == network.state_dict().keys()
    assert card["tensors"]["gru.weight_hh_l0"] == {"shape": [96, 32], "dtype": "float32"}
    assert card["parameters"] == sum(p.numel() for p in network.parameters())
    assert card["vocabulary"][ANS] == "ANS" and len(card["vocabulary"]) == NUM_TOKENS
    assert card["training_record"]["env_steps"] == 7 and card["training_record"]["seed"] == 3
    assert not [file for file in calculator.parent.iterdir() if file.name.startswith(".")]


@pytest.mark.full
def test_a_fault_in_any_form_is_found(calculator, tmp_path):
    """Each file in turn is that of another agent; only this one is told apart."""
    other = noisy_network(0.3)
    save_policy(tmp_path / "other", other, "calculator")
    assert export(tmp_path / "other", tmp_path / "exported") == 0
    task, network = get_task("calculator"), load_policy(calculator).network
    for name in (EPISODE, STEP):
        shutil.copytree(calculator, tmp_path / name)
        shutil.copy(tmp_path / "exported" / name, tmp_path / name / name)
        compared = compare(network, task, tmp_path / name)
        assert {key for key, n in compared.identical.items() if n < compared.problems} == {name}
        assert not compared.all_identical


def test_onnx_graphs_by_hand(calculator):
    """The step graph, fed one problem token by token, without this project's loop around it."""
    sessions = {name: onnxruntime.InferenceSession(calculator / name) for name in (BEGIN, STEP)}
    asked = {"context": np.array([[3, 4, 5, 6, 7, CTX]]), "stage": np.array([2])}
    (hidden,) = sessions[BEGIN].run(None, asked)
    token, program = np.array([CTX]), []
    while not program or program[-1] != ANS:
        feed = {"previous_token": token, "hidden": hidden}
        logits, value, hidden = sessions[STEP].run(None, feed)
        assert logits.shape == (1, 18) and value.shape == (1,)
        token = logits.argmax(1)
        program.append(int(token[0]))
    assert VOCABULARY.text(program) == "MUL ADD STO MUL RCL SUB ANS"
    episode = onnxruntime.InferenceSession(calculator / EPISODE)
    tokens, lengths = episode.run(None, asked)
    assert tokens[0, : lengths[0]].tolist() == program


def test_the_player_needs_numpy_alone(calculator):
    done = run_player(calculator, "--digits", "3,4,5,6,7")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "MUL ADD STO MUL RCL SUB ANS\nanswer: -25\n"
    assert run_player(calculator, "--digits", "9,9,1").stdout == "MUL ADD ANS\nanswer: 82\n"


@pytest.mark.parametrize("network", filter(has_part, NETWORKS))
@pytest.mark.parametrize(
    ("task", "tools_answer"),
    [
        *((name, False) for name in (*MACHINES, "strangers:Bells")),
        ("toolcall", True),
        ("x:Y", True),
    ],
)
def test_every_player_is_short_and_imports_numpy_alone(network, task, tools_answer):
    text = source(network, task, tools_answer)
    assert len(text.splitlines()) < (250 if tools_answer else 200)
    assert max(map(len, text.splitlines())) <= 100
    imports = [line for line in text.splitlines() if line.startswith(("import", "from"))]
    standard = {"import hashlib", "import json", "import re", "import sys"}
    assert set(imports) - standard == {"from pathlib import Path", "import numpy as np"}


KINDS = ("planner", "gru", "planner that sees digits", "hinted", "call stack")


@pytest.mark.full
def test_expressions(tmp_path):
    export_of_expressions("planner", tmp_path)
    kinds = len(list(checked_problems(get_task("expression"))))
    check_identical(tmp_path / "exported", kinds * 50, complete=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_10_000_expressions_with_every_network(kind, tmp_path, all_problems):
    export_of_expressions(kind, tmp_path)
    check_identical(tmp_path / "exported", 10_000, complete=False)


def export_of_expressions(kind, tmp_path):
    """Untrained weights write long, odd programs, which use every part of the machine."""
    task = get_task("expression")
    if kind == "gru":
        torch.manual_seed(0)
        network = StageGRUNetwork(get_task("expression").interface, (16,))
    elif kind == "call stack":
        torch.manual_seed(0)
        network = CallStackNetwork(get_task("expression").interface)
        with torch.no_grad():  # more slots open, and contents that differ
            network.slots.weight.mul_(3.0)
    else:
        options = {"sees_digits": "digits" in kind, "num_heads": 2, "num_counters": 1}
        options["reading"] = "operands" if kind == "hinted" else "learned"
        torch.manual_seed(0)
        network = EncoderDecoderNetwork(
            get_task("expression").interface, EncoderDecoderOptions(16, **options)
        )
        with torch.no_grad():  # larger weights: programs that differ from problem to problem
            for parameter in network.parameters():
                parameter.mul_(3.0)
    save_policy(tmp_path / "checkpoint", network, "expression")
    assert export(tmp_path / "checkpoint", tmp_path / "exported") == 0
    shown = run_player(tmp_path / "exported", "--expression", "(3 + 4)*2")
    assert (shown.returncode, shown.stderr) == (0, "")
    problems = task.pose(None, expression=["(3+4)*2"])
    batch = play(network, task, problems)
    program = VOCABULARY.text(batch.actions[0, : batch.lengths[0]])
    assert shown.stdout == f"{program}\nanswer: {answers(task, problems, batch)[0]}\n"


@pytest.mark.parametrize("name", MACHINES)
def test_the_players_machines_are_the_tasks(name, tmp_path):
    """Random programs of tools and digits, on the players' machines and on the tasks' own."""
    (tmp_path / "player.py").write_text(source("stage_gru", name))
    player, task = load_player(tmp_path), get_task(name)
    rng = np.random.default_rng(0)
    stage = rng.choice(np.array(task.stages), 4000).astype(np.int8)
    problems = task.sample(rng, stage)
    batch = play(untrained_network_of(task), task, problems, generator())
    expected = answers(task, problems, batch)
    for row, context in enumerate(problems.context.tolist()):
        program = VOCABULARY.text(batch.actions[row, : batch.lengths[row]]).split()
        shown = [task.vocabulary.names[token] for token in context[: context.index(CTX) + 1]]
        assert player.answer(shown, int(stage[row]), program) == expected[row]
    assert sum(value is not None for value in expected) > 100


def untrained_network_of(task):
    """One that answers late and uses tools more often than digits."""
    network = StageGRUNetwork(task.interface, (8,))
    with torch.no_grad():
        network.policy_head.weight.zero_()
        network.policy_head.bias.copy_(torch.tensor([0.0] * 11 + [2.0, 2, 2, 1, 2, 2, 0]))
    return network


def generator():
    return torch.Generator().manual_seed(0)


def test_the_sample_of_expressions_is_fixed_and_has_all_stages_and_splits():
    task = get_task("expression")
    parts, again = list(checked_problems(task)), list(checked_problems(task))
    assert sum(map(len, parts)) == 10_000
    assert all((a.context == b.context).all() for a, b in zip(parts, again, strict=True))
    kinds = {(int(p.stage[0]), bool(p.held_out[0])) for p in parts}
    assert kinds == {(s, h) for s in range(1, 9) for h in (False, True) if s > 3 or not h}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--digits", "3,4"], "expected 3, 4 or 5 digits"),
        ([], "expected --digits and a problem"),
    ],
)
def test_the_player_refuses_what_is_wrong(arguments, words, calculator):
    done = run_player(calculator, *arguments)
    assert is_refusal(done), (done.stdout, done.stderr)
    assert words in done.stderr


@pytest.mark.parametrize(
    "text", ["(3+4", "3+4)", "12+3", "8/4", "", "-3", "3**4", "()", "1+" * 8 + "1", "(" * 10_000]
)
def test_the_expression_player_refuses_what_is_no_expression(text, tmp_path):
    (tmp_path / "player.py").write_text(source("encoder_decoder", "expression"))
    card = {"action_limits": {"1": 3, "8": 17}, "context_length": 30}
    with pytest.raises(ValueError, match="expected up to 8 single digits"):
        load_player(tmp_path).read(text, card)


def test_the_player_refuses_a_card_of_other_weights(calculator, tmp_path):
    shutil.copytree(calculator, tmp_path / "mixed")
    save_policy(tmp_path / "other", untrained_network(), "calculator")
    shutil.copy(tmp_path / "other" / "model.safetensors", tmp_path / "mixed")
    done = run_player(tmp_path / "mixed", "--digits", "3,4,5")
    assert is_refusal(done) and "does not fit model.safetensors" in done.stderr
    shutil.copy(tmp_path / "other" / "policy.json", tmp_path / "mixed")  # no card of an export
    done = run_player(tmp_path / "mixed", "--digits", "3,4,5")
    assert is_refusal(done) and "is no card of an exported agent" in done.stderr
    (tmp_path / "mixed" / "policy.json").unlink()
    assert is_refusal(run_player(tmp_path / "mixed", "--digits", "3,4,5"))


def test_wrong_command_lines(calculator, tmp_path, monkeypatch, capfd):
    shutil.copytree(calculator, tmp_path / "good")
    shutil.copytree(calculator, tmp_path / "mixed")
    save_policy(tmp_path / "other", untrained_expression_network(), "expression")
    shutil.copy(tmp_path / "other" / "model.safetensors", tmp_path / "mixed")
    shutil.copytree(calculator, tmp_path / "old")
    card = json.loads((tmp_path / "old" / "policy.json").read_text())
    (tmp_path / "old" / "policy.json").write_text(json.dumps(card | {"format": 99}))
    cases = {
        "export good/episode.onnx --output-dir new": "is an ONNX file",
        "evaluate good/episode.onnx": "is an ONNX file",
        "export mixed --output-dir new": "its SHA-256 is not the one in policy.json",
        "export old --output-dir new": "has format 99; this version",
    }
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    for line, words in cases.items():
        name, *arguments = line.split()
        code = cli.main(importlib.import_module(f"toolagent.{name}.__main__").command, arguments)
        captured = capfd.readouterr()
        assert (code, captured.out) == (2, ""), line
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
        assert words in captured.err, captured.err
    assert sorted(tmp_path.rglob("*")) == before
