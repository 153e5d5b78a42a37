"""Folders of runs as a run leaves them, written without a run."""

from __future__ import annotations

import json
from dataclasses import asdict

from trained import untrained_network

from toolagent.checkpoints.manifest import write_manifest
from toolagent.checkpoints.policy import save_policy
from toolagent.checkpoints.run_files import RunState
from toolagent.checkpoints.state_files import encode_state


def write_run(folder, task="calculator", config="task: calculator\n"):
    """What a run leaves that could be resumed, as far as it is looked at before Ray starts."""
    checkpoint = folder / "checkpoints" / "checkpoint_000003"
    save_policy(checkpoint, untrained_network(embedding_size=96), task)
    for name, content in encode_state({}).items():
        (checkpoint / name).write_bytes(content)
    write_state(checkpoint, asdict(RunState(3, 1000, 1.0)))
    (folder / "config.yaml").write_text(config)
    return checkpoint


def write_state(checkpoint, state):
    (checkpoint / "run.json").write_text(json.dumps(state))
    list_files(checkpoint)


def list_files(checkpoint):
    """Writes the manifest of whatever is in the checkpoint now."""
    (checkpoint / "manifest.json").unlink(missing_ok=True)
    write_manifest(checkpoint, {"config_sha256": None})


def edit_json(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# A row of `progress.jsonl`, as far as a report needs it.
PROGRESS = json.dumps(
    {
        "iteration": 1, "time_s": 1.0, "env_steps": 10, "env_steps_per_s": 10.0, "stage": 0,
        "next_stage": 0, "measured": True, "accuracy": {"0": 0.5},
    }
) + "\n"  # fmt: skip
