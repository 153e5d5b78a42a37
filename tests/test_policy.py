"""Policy folders: what is written is read again, and nothing else is."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil

import pytest
import safetensors.torch
import torch
from trained import untrained_network

from toolagent import policy as policy_module
from toolagent.errors import UserError
from toolagent.models.network import NetworkSizes, StageGRUNetwork
from toolagent.policy import load_policy, save_policy, write_atomically


@pytest.fixture
def folder(tmp_path):
    """A sound policy folder."""
    path = tmp_path / "checkpoint_000001"
    save_policy(path, untrained_network(), "calculator", env_steps=5, iteration=1, seed=7)
    return path


def edit_json(folder, **changes):
    file = folder / "policy.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_weights(folder, edit):
    """Changes the tensors and signs the changed file, so that only the change can be at fault."""
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    edit(tensors)
    data = safetensors.torch.save(tensors)
    file.write_bytes(data)
    edit_json(folder, weights_sha256=hashlib.sha256(data).hexdigest())


def refusal(path, **arguments):
    """The message of the UserError that loading raises."""
    with pytest.raises(UserError) as caught:
        load_policy(path, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Round trip --------------------------------------------------------------------------------


def test_weights_and_metadata_come_back(tmp_path):
    network = untrained_network(seed=3)
    stages = [{"stage": 0, "problems": 1000, "solved": 1000, "accuracy": 1.0}]
    save_policy(tmp_path, network, "tutorial", env_steps=9, iteration=2, seed=1, stages=stages)
    loaded = load_policy(tmp_path, expected_task="tutorial")
    assert loaded.task.name == "tutorial"
    assert loaded.folder == tmp_path
    assert loaded.network.sizes == network.sizes
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, loaded.network.state_dict()[name])
    assert set(loaded.metadata) == {
        *("format", "task", "network", "env_steps", "iteration", "seed", "stages"),
        *("config_sha256", "weights_sha256", "toolagent_version", "created"),
    }
    assert loaded.metadata["env_steps"] == 9
    assert loaded.metadata["stages"] == stages


def test_a_loaded_network_runs_both_ways(folder):
    """Rollouts step by table, the learner unrolls: both see the loaded weights."""
    original, loaded = untrained_network(), load_policy(folder).network
    context, stage = torch.tensor([[1, 2, 3, 10, 17, 17]]), torch.tensor([0])
    hidden = original.initial_hidden(context, stage)
    assert torch.equal(loaded.initial_hidden(context, stage), hidden)
    tokens = torch.tensor([[10, 11]])
    expected, _ = original.unroll(tokens, hidden)
    assert torch.equal(loaded.unroll(tokens, hidden)[0], expected)
    logits, _, _ = loaded.step(loaded.step_table(), tokens[:, 0], hidden)
    torch.testing.assert_close(logits, original.logits(expected[:, 0]))


def test_only_the_two_files_are_left(folder):
    save_policy(folder, untrained_network(seed=1), "calculator")
    assert sorted(file.name for file in folder.iterdir()) == ["model.safetensors", "policy.json"]


def test_a_network_of_other_sizes_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="needs NetworkSizes"):
        save_policy(tmp_path / "x", StageGRUNetwork(NetworkSizes(20, 3, 8)), "calculator")
    assert not (tmp_path / "x").exists()


def test_an_interrupted_write_leaves_what_was_there(tmp_path, monkeypatch):
    file = tmp_path / "file"
    write_atomically(file, b"before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(policy_module.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(file, b"after")
    assert file.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["file"]


# Finding the checkpoint of a run -----------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints 2, 10 and an unfinished 11."""
    for iteration in (2, 10):
        save_policy(
            tmp_path / f"run/checkpoints/checkpoint_{iteration}",
            untrained_network(),
            "calculator",
            iteration=iteration,
        )
    unfinished = tmp_path / "run/checkpoints/checkpoint_11"
    unfinished.mkdir()
    (unfinished / "model.safetensors").write_bytes(b"")
    return tmp_path / "run"


def test_without_a_summary_the_newest_complete_checkpoint_is_meant(run):
    assert load_policy(run).metadata["iteration"] == 10


@pytest.mark.parametrize("absolute", [False, True])
def test_a_summary_names_the_checkpoint(run, absolute):
    named = "checkpoints/checkpoint_2"
    summary = {"checkpoint": str(run / named) if absolute else named}
    (run / "summary.json").write_text(json.dumps(summary))
    assert load_policy(run).metadata["iteration"] == 2
    assert load_policy(str(run)).folder == run / named


def test_a_run_that_was_moved_is_still_found(run, tmp_path):
    summary = {"checkpoint": str(run / "checkpoints/checkpoint_2")}
    (run / "summary.json").write_text(json.dumps(summary))
    shutil.move(run, tmp_path / "moved")
    assert load_policy(tmp_path / "moved").metadata["iteration"] == 2


def test_a_summary_without_a_checkpoint_leaves_the_newest(run):
    (run / "summary.json").write_text('{"checkpoint": null}')
    assert load_policy(run).metadata["iteration"] == 10


@pytest.mark.parametrize(
    ("summary", "words"),
    [
        ("{", "not JSON"),
        ("[]", "expected a JSON object"),
        ('{"checkpoint": 3}', "'checkpoint' is no path but 3"),
        ('{"checkpoint": "checkpoints/checkpoint_3"}', "does not exist"),
        ('{"checkpoint": "checkpoints/checkpoint_11"}', "has no policy.json"),
    ],
)
def test_a_summary_that_names_nothing_sound_is_refused(run, summary, words):
    (run / "summary.json").write_text(summary)
    assert words in refusal(run)


def test_the_folder_of_checkpoints_is_none(run):
    assert "such as '" in refusal(run / "checkpoints")
    assert "checkpoint_10" in refusal(run / "checkpoints")


# What is refused ---------------------------------------------------------------------------


def test_a_path_that_is_no_folder_is_refused(tmp_path, folder):
    assert "there is no such folder" in refusal(tmp_path / "nowhere")
    assert "is a file" in refusal(folder / "policy.json")
    (tmp_path / "empty").mkdir()
    assert "has no policy.json" in refusal(tmp_path / "empty")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert "link to nothing" in refusal(tmp_path / "link")
    assert "too long" in refusal("x" * 5000)


def test_a_folder_of_dangling_links_or_pickles_is_refused(tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links/policy.json").symlink_to(tmp_path / "nowhere")
    assert "has no policy.json" in refusal(tmp_path / "links")
    (tmp_path / "pickles").mkdir()
    (tmp_path / "pickles/algorithm_state.pkl").write_bytes(pickle.dumps({}))
    assert "only pickles, which are never opened" in refusal(tmp_path / "pickles")


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, 2_000, -1])
def test_torn_weights_are_refused(folder, kept):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    assert "damaged" in refusal(folder)
    # Also where the sum fits: the parser itself finds it out.
    edit_json(folder, weights_sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    assert "no safetensors file" in refusal(folder)


def test_one_flipped_bit_is_noticed(folder):
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-10] ^= 1
    file.write_bytes(data)
    assert "SHA-256" in refusal(folder)


def test_missing_weights_are_refused(folder):
    (folder / "model.safetensors").unlink()
    assert "model.safetensors is missing" in refusal(folder)
    (folder / "model.safetensors").mkdir()
    assert "no regular file" in refusal(folder)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'"text"', b'{"format": 1' + b"9" * 5000]
)
def test_a_torn_policy_json_is_refused(folder, content):
    (folder / "policy.json").write_bytes(content)
    assert "policy.json is damaged" in refusal(folder)


SIZES = {
    "class": "StageGRUNetwork",
    "context_vocabulary": 18,
    "num_stages": 3,
    "embedding_size": 16,
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, "has format 2"),
        ({"format": None}, "has format None"),
        ({"task": "calculater"}, "no task 'calculater'; did you mean 'calculator'?"),
        ({"task": ["calculator"]}, "no task ['calculator']"),
        ({"network": None}, "'network' is None"),
        ({"network": {**SIZES, "class": "Transformer"}}, "network.class is 'Transformer'"),
        ({"network": {**SIZES, "num_stages": 4}}, "network.num_stages is 4"),
        ({"network": {**SIZES, "embedding_size": 0}}, "embedding_size is 0"),
        ({"network": {**SIZES, "embedding_size": "16"}}, "embedding_size is '16'"),
        ({"network": {**SIZES, "embedding_size": True}}, "embedding_size is True"),
        ({"network": {**SIZES, "embedding_size": 32}}, "embeddings are 16 wide"),
        ({"network": {**SIZES, "embedding_size": 10**12}}, "embeddings are 16 wide"),
        ({"weights_sha256": None}, "SHA-256"),
    ],
)
def test_a_policy_json_that_says_something_else_is_refused(folder, changes, words):
    edit_json(folder, **changes)
    assert words in refusal(folder)


def test_the_task_must_be_the_expected_one(folder):
    assert refusal(folder, expected_task="tutorial").endswith(
        "is a checkpoint of task 'calculator', not 'tutorial'"
    )


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.pop("gru.bias_hh_l0"), "'gru.bias_hh_l0' are missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "'extra' do not belong"),
        (lambda t: t.update({"value_head.bias": torch.zeros(2)}), "torch.float32 (2,); expected"),
        (lambda t: t.update({"value_head.bias": torch.zeros(1).double()}), "torch.float64 (1,)"),
        (lambda t: t["policy_head.bias"].fill_(float("nan")), "not finite"),
        (lambda t: t["policy_head.bias"].fill_(float("inf")), "not finite"),
        (lambda t: t.clear(), "embeddings are 0 wide"),
        (lambda t: t.update({"token_embedding.weight": torch.tensor(1.0)}), "are 0 wide"),
    ],
)
def test_other_weights_are_refused(folder, edit, words):
    edit_weights(folder, edit)
    assert words in refusal(folder)
