"""A checkpoint's author can't run code: what a checkpoint names is imported only if told."""

from __future__ import annotations

import json
import sys

import pytest
from refusals import refusal
from trained import untrained_network

from toolagent.checkpoints.policy import save_policy

COMMANDS = {
    "evaluate": [],
    "explain": [],
    "export": ["--output-dir", "new"],
    "serve": ["--port", "0"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("part", ["task", "network"])
def test_a_module_that_only_the_checkpoint_names_is_not_imported(
    command, part, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "trap.py").write_text("from pathlib import Path\nPath('mark').touch()\n")
    save_policy(tmp_path / "checkpoint", untrained_network(), "calculator")
    file = tmp_path / "checkpoint" / "policy.json"
    card = json.loads(file.read_text())
    if part == "task":
        card["task"] = "trap:Task"
    else:
        card["network"]["class"] = "trap:Network"
    file.write_text(json.dumps(card))
    told = refusal(capfd, command, ["checkpoint", *COMMANDS[command]], [f"--{part}", "trap"])
    assert "Traceback" not in told and "trap" not in sys.modules
    assert not (tmp_path / "mark").exists()
