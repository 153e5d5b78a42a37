"""Exports of tasks of other modules (`strangers.py`), and what can't be exported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import strangers
from refusals import refusal

from toolagent import cli
from toolagent.checkpoints.policy import WEIGHTS_FILE, load_policy
from toolagent.export import player
from toolagent.export.__main__ import command
from toolagent.export.card import model_card
from toolagent.export.check import load_player
from toolagent.models.encoder_decoder import EncoderDecoderNetwork
from toolagent.models.network import StageGRUNetwork
from toolagent.models.registry import network_name
from toolagent.rollouts.play import play

NETWORKS = (StageGRUNetwork, EncoderDecoderNetwork)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("task", ["Bells", "Lifts", "Digits"])
def test_the_player_writes_the_agents_tokens_with_any_vocabulary(network, task, tmp_path):
    strangers.save_untrained(tmp_path / "checkpoint", task, network)
    policy = load_policy(tmp_path / "checkpoint", task=f"strangers:{task}")
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "player.py").write_text(player.source(network_name(network), f"strangers:{task}"))
    shutil.copy(tmp_path / "checkpoint" / WEIGHTS_FILE, folder)
    (folder / "policy.json").write_text(json.dumps(model_card(policy, [], folder)))
    exported = load_player(folder)
    card, weights = exported.load(folder)
    problems = policy.task.sample(np.random.default_rng(0), np.arange(40) % 2)
    batch = play(policy.network, policy.task, problems)
    written = exported.play(
        exported.Network(weights, card), card, problems.context.astype(int), problems.stage
    )
    lengths = batch.lengths.tolist()
    assert written == [row[:n] for row, n in zip(batch.actions.tolist(), lengths, strict=True)]
    assert len(set(map(tuple, written))) > 2


@pytest.mark.full
def test_an_outside_task_is_exported_and_played_by_its_tokens(tmp_path, capfd):
    strangers.save_untrained(tmp_path / "checkpoint", "Lifts")
    folder = tmp_path / "exported"
    asked = [tmp_path / "checkpoint", "--task", "strangers:Lifts", "--output-dir", folder]
    assert cli.main(command, [str(argument) for argument in asked]) == 0
    compared = json.loads((folder / "policy.json").read_text())["compared"]
    assert set(compared["identical"].values()) == {compared["problems"]} == {14}
    assert compared["answers_identical"] is None and "its answers" not in capfd.readouterr().out
    policy = load_policy(folder, task="strangers:Lifts")
    problems = policy.task.pose(1, goal_floor=[7])
    batch = play(policy.network, policy.task, problems)
    exported = load_player(folder)
    card, _ = exported.load(folder)
    for text in ("1 F77", "1 F7 F7 F7", "2 F7", "F7", ""):
        with pytest.raises(ValueError, match="expected a stage, 0 or 1, and then up to 2 of UP"):
            exported.read(text, card)
    told = subprocess.run(
        [sys.executable, "-I", folder / "player.py", "--context", "1 F7"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert told.stdout == policy.task.vocabulary.text(batch.actions[0, : batch.lengths[0]]) + "\n"


def test_a_network_of_another_module_cannot_be_exported(tmp_path, capfd):
    place = strangers.save_untrained(tmp_path / "checkpoint", "Bells", strangers.Recurrent)
    code = ["--task", "strangers:Bells", "--network", "strangers:Recurrent"]
    words = ["those that can be are stage_gru, encoder_decoder, answer_attention, recurrent"]
    refusal(capfd, "export", [place, "--output-dir", tmp_path / "new", *code], words, tmp_path)
