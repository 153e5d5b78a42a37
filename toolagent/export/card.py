"""The model card: `policy.json` of a checkpoint, with what a user of the export alone needs.

Its folder is a checkpoint too: `evaluate`, `explain` and `--init-from` read it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from toolagent.checkpoints.policy import POLICY_FILE, WEIGHTS_FILE, Policy, vocabulary_record
from toolagent.checkpoints.run_files import Summary, as_document, read_file
from toolagent.errors import UserError
from toolagent.rollouts.certification import StageAccuracy
from toolagent.tasks import Task

# In the card of an agent whose tools answer: tools of the user's own behind it.
EXAMPLE = """\
import json

import numpy as np
import onnxruntime

card = json.load(open("policy.json"))
begin, step = (onnxruntime.InferenceSession(name) for name in ("begin.onnx", "step.onnx"))
names, pad = card["context_vocabulary"], card["special_tokens"]["pad"]


def run(problem, stage, tool):
    # tool(name of a token) does what the token says, and returns the names of the tokens that it
    # is answered with, [] for nothing, and whether the episode is over.
    context = np.full((1, card["context_length"]), pad)
    context[0, : len(problem)] = [names.index(name) for name in problem]
    asked = {"context": context, "stage": np.array([stage])}
    known = {value.name for value in begin.get_inputs()}
    values = begin.run(None, {name: asked[name] for name in known})
    state = dict(zip([value.name for value in begin.get_outputs()], values))
    token = np.array([card["special_tokens"]["start"]])
    response = np.full((1, card["response_length"]), pad)
    for _ in range(card["action_limits"][str(stage)]):
        observed = {"previous_token": token, "response": response}
        logits, value, state["hidden"] = step.run(None, {**state, **observed})
        token = logits.argmax(1)  # what the agent does
        answer, over = tool(names[token[0]])  # your own tool does it, and answers
        response[:] = pad  # and the agent is told the answer at its next step
        response[0, : len(answer)] = [names.index(name) for name in answer]
        if over:
            break
"""


def model_card(policy: Policy, stages: Iterable[StageAccuracy], folder: Path) -> dict[str, Any]:
    """The card without the comparison of the artefacts.

    Args:
        policy: the exported agent.
        stages: its accuracy, counted now.
        folder: with all files of the export but the card.
    """
    tensors = policy.network.state_dict()
    task = policy.task
    return {
        **policy.metadata,
        **vocabulary_record(task.vocabulary),  # an old checkpoint does not tell it
        "stages": [row.record() for row in stages],
        "formulas": {str(stage): task.formula(stage) for stage in task.stages},
        "context_length": task.context_length,
        "response_length": task.response_length,
        "action_limits": action_limits(task),
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "tensors": {
            name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
            for name, tensor in tensors.items()
        },
        "training_record": training_record(policy),
        "graphs": graphs(folder),
        "example": EXAMPLE.splitlines() if task.response_length else [],
        "files_sha256": {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(folder.iterdir())
            if file.name not in (POLICY_FILE, WEIGHTS_FILE)
        },
    }


def graphs(folder: Path) -> dict[str, Any]:
    """What each ONNX graph of a folder takes and returns; 'batch' is any number of rows."""
    import onnx  # is not needed to look at a checkpoint

    def told(values: Any) -> dict[str, Any]:
        return {
            value.name: {
                "shape": [size.dim_param or size.dim_value for size in kind.shape.dim],
                "dtype": onnx.TensorProto.DataType.Name(kind.elem_type).lower(),
            }
            for value in values
            for kind in [value.type.tensor_type]
        }

    found = {file.name: onnx.load(file).graph for file in sorted(folder.glob("*.onnx"))}
    return {
        name: {"inputs": told(graph.input), "outputs": told(graph.output)}
        for name, graph in found.items()
    }


def action_limits(task: Task) -> dict[str, int]:
    """The most actions of an episode, by stage."""
    limits = task.action_limit(task.check_stage([*task.stages]))
    return {str(stage): int(limit) for stage, limit in zip(task.stages, limits, strict=True)}


def training_record(policy: Policy) -> dict[str, Any]:
    """How the weights were trained: the records of the checkpoint and of its run."""
    keys = ("env_steps", "iteration", "seed", "trained_stages", "config_sha256", "created")
    record: dict[str, Any] = {key: policy.metadata.get(key) for key in keys}
    summary = policy.folder.resolve().parent.parent / "summary.json"
    try:
        run = as_document(read_file(summary, Summary))
        named = Path(str(run.get("checkpoint"))).name == policy.folder.resolve().name
    except UserError:  # a checkpoint needs no run around it
        return record | policy.metadata.get("training_record", {})
    if named:
        kept = ("wall_time_s", "env_steps_per_s", "stopped_by", "stages")
        record["run"] = {key: run[key] for key in kept if key in run}
    return record
