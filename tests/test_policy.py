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
from trained import untrained_expression_network, untrained_network

from toolagent.checkpoints import policy as policy_module
from toolagent.checkpoints.policy import load_policy, save_policy, write_atomically
from toolagent.errors import UserError
from toolagent.models.encoder_decoder import EncoderDecoderNetwork
from toolagent.models.network import StageGRUNetwork
from toolagent.tasks import get_task


@pytest.fixture
def folder(tmp_path):
    """A sound policy folder."""
    path = tmp_path / "checkpoint_000001"
    save_policy(path, untrained_network(), "calculator", env_steps=5, iteration=1, seed=7)
    return path


@pytest.fixture
def expression_folder(tmp_path):
    """A sound policy folder of the other class of networks."""
    path = tmp_path / "checkpoint_000002"
    save_policy(path, untrained_expression_network(), "expression", trained_stages=[2, 3])
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
    assert (loaded.network.interface, loaded.network.options) == (
        network.interface,
        network.options,
    )
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, loaded.network.state_dict()[name])
    assert set(loaded.metadata) == {
        *("format", "task", "network", "env_steps", "iteration", "seed", "stages"),
        *("vocabulary", "context_vocabulary", "special_tokens"),
        *("trained_stages", "config_sha256", "weights_sha256", "toolagent_version", "created"),
    }
    assert loaded.metadata["env_steps"] == 9
    assert loaded.metadata["stages"] == stages
    assert loaded.metadata["trained_stages"] is None
    assert loaded.metadata["network"] == {**SIZES, "num_actions": 18}


def test_a_loaded_network_runs_both_ways(folder):
    """Rollouts step by table, the learner unrolls: both see the loaded weights."""
    original, loaded = untrained_network(), load_policy(folder).network
    run_both_ways(original, loaded, torch.tensor([[1, 2, 3, 10, 17, 17]]), torch.tensor([0]))


def run_both_ways(original, loaded, context, stage):
    begun, again = original.begin(context, stage), loaded.begin(context, stage)
    assert torch.equal(begun.hidden, again.hidden)
    tokens = torch.tensor([[10, 11]])
    expected, _, _ = original.unroll(tokens, *begun)
    assert torch.equal(loaded.unroll(tokens, *again)[0], expected)
    logits, _, _ = loaded.step(loaded.step_table(), tokens[:, 0], *again)
    torch.testing.assert_close(logits, expected[:, 0])


@pytest.mark.parametrize("reading", ["learned", "operands"])
@pytest.mark.parametrize("sees_digits", [False, True])
def test_an_encoder_decoder_comes_back_with_its_options(tmp_path, reading, sees_digits):
    options = {"reading": reading, "sees_digits": sees_digits, "num_counters": 0}
    original = untrained_expression_network(3, **options)
    save_policy(tmp_path, original, "expression", trained_stages=(1, 2, 5))
    policy = load_policy(tmp_path, expected_task="expression")
    assert policy.metadata["trained_stages"] == [1, 2, 5]
    assert policy.metadata["network"] == {
        **{"class": "EncoderDecoderNetwork", "context_vocabulary": 20, "num_stages": 9},
        "num_actions": 18,
        **{"embedding_size": 8, "num_heads": 2, **options},
    }
    loaded = policy.network
    assert type(loaded) is EncoderDecoderNetwork and loaded.options == original.options
    assert original.state_dict().keys() == loaded.state_dict().keys()
    for name, tensor in original.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    # What is not trained does not become trainable by loading.
    trained = [name for name, _ in original.named_parameters()]
    assert trained == [name for name, _ in loaded.named_parameters()]
    run_both_ways(original, loaded, torch.tensor([[1, 12, 3, 10, 17, 17]]), torch.tensor([2]))


def test_files_of_the_first_version_still_load(folder):
    """They have neither `trained_stages` nor options that came later."""
    file = folder / "policy.json"
    metadata = json.loads(file.read_text())
    del metadata["trained_stages"]
    metadata["network"] = SIZES  # all that there was
    file.write_text(json.dumps(metadata))
    assert load_policy(folder).network.options == (16,)


def test_an_option_younger_than_the_file_takes_its_default(expression_folder):
    record = json.loads((expression_folder / "policy.json").read_text())["network"]
    older = {key: value for key, value in record.items() if key != "sees_digits"}
    edit_json(expression_folder, network=older)
    assert load_policy(expression_folder).network.options.sees_digits is False
    # With a default that does not fit the weights, the shapes tell.
    del older["num_heads"]
    edit_json(expression_folder, network=older)
    assert "the sizes in policy.json need" in refusal(expression_folder)


def test_only_the_two_files_are_left(folder):
    save_policy(folder, untrained_network(seed=1), "calculator")
    assert sorted(file.name for file in folder.iterdir()) == ["model.safetensors", "policy.json"]


def test_a_network_of_other_sizes_is_not_saved(tmp_path):
    right = get_task("calculator").interface
    for interface in (get_task("expression").interface, right._replace(num_stages=4)):
        with pytest.raises(ValueError, match="task 'calculator' has"):
            save_policy(tmp_path / "x", StageGRUNetwork(interface, (8,)), "calculator")
    with pytest.raises(ValueError, match="no task 'calculater'"):
        save_policy(tmp_path / "x", untrained_network(), "calculater")
    assert not (tmp_path / "x").exists()


def test_a_network_that_could_not_be_loaded_again_is_not_saved(tmp_path):
    class Other(StageGRUNetwork):
        pass

    with pytest.raises(ValueError, match="can't be loaded again"):
        save_policy(tmp_path / "x", Other(get_task("calculator").interface, (8,)), "calculator")
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
        ("{", "is no JSON"),
        ("[]", "the whole"),
        ('{"checkpoint": 3}', "summary.json: checkpoint: "),
        ('{"checkpoint": "checkpoints/checkpoint_3"}', "does not exist"),
        ('{"checkpoint": "checkpoints/checkpoint_11"}', "has no policy.json"),
    ],
)
def test_a_summary_that_names_nothing_sound_is_refused(run, summary, words):
    (run / "summary.json").write_text(summary)
    assert words in refusal(run)


@pytest.mark.parametrize("named", ["../elsewhere", "checkpoints/../../elsewhere", "{}/elsewhere"])
def test_a_summary_leads_to_no_folder_outside_the_run(run, named):
    outside = run.parent / "elsewhere"
    shutil.copytree(run / "checkpoints/checkpoint_2", outside)
    summary = {"checkpoint": named.format(run.parent)}
    (run / "summary.json").write_text(json.dumps(summary))
    assert "does not exist" in refusal(run)
    assert load_policy(outside).metadata["iteration"] == 2  # sound, were it asked for


def test_the_folder_of_checkpoints_is_none(run):
    assert "such as '" in refusal(run / "checkpoints")
    assert "checkpoint_10" in refusal(run / "checkpoints")


# What is refused ---------------------------------------------------------------------------


def test_a_path_that_is_no_folder_is_refused(tmp_path, folder):
    assert "there is no such folder" in refusal(tmp_path / "nowhere")
    assert "is a file" in refusal(folder / "policy.json")
    (tmp_path / "empty").mkdir()
    assert "has no policy.json" in refusal(tmp_path / "empty")
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
    assert "policy.json: " in refusal(folder)


SIZES = {
    "class": "StageGRUNetwork",
    "context_vocabulary": 18,
    "num_stages": 3,
    "embedding_size": 16,
}


# A row for each check of `policy.json`: what is changed, and what must be named.
WRONG = [
    ({"format": 2}, "format 2"),
    ({"task": "calculater"}, "'calculator'"),
    ({"network": None}, "network: "),
    ({"network": {**SIZES, "class": "StageGRUNetwrk"}}, "'StageGRUNetwork'"),
    ({"network": {**SIZES, "num_stages": 4}}, "network.num_stages", "3"),
    ({"network": {**SIZES, "embeding_size": 4}}, "network.embeding_size", "'embedding_size'"),
    ({"network": {**SIZES, "embedding_size": 0}}, "embedding_size", "at least 1"),
    ({"trained_stages": [0, 3]}, "trained_stages", "0..2"),
    ({"trained_stages": [True]}, "trained_stages.0: "),
    ({"env_steps": -1}, "env_steps: "),
    ({"stages": [{"problems": 1, "solved": 2}]}, "stages.0", "solved"),
]


@pytest.mark.parametrize("row", WRONG, ids=lambda row: str(row[0])[:60])
def test_a_policy_json_that_says_something_else_is_refused(folder, row):
    changes, *named = row
    edit_json(folder, **changes)
    said = refusal(folder)
    assert [part for part in ("policy.json", *named) if part not in said] == [], said


# Sizes that are sound, and not those of the weights; and weights whose sum is another.
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"network": {**SIZES, "class": "EncoderDecoderNetwork"}}, "weights '"),
        ({"network": {**SIZES, "embedding_size": 32}}, "(18, 16)"),
        ({"network": {**SIZES, "embedding_size": 10**12}}, "2291 numbers"),
        ({"weights_sha256": None}, "SHA-256"),
    ],
)
def test_weights_that_do_not_fit_policy_json_are_refused(folder, changes, named):
    edit_json(folder, **changes)
    said = refusal(folder)
    assert "model.safetensors" in said and named in said


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_heads": 0}, "network.num_heads"),
        ({"num_heads": 3}, "the sizes in policy.json"),
        ({"num_counters": 10**9}, "numbers"),
        ({"reading": "foo"}, "one of learned, operands"),
        ({"sees_digit": True}, "'sees_digits'"),
    ],
)
def test_an_encoder_decoder_of_other_sizes_is_refused(expression_folder, changes, named):
    record = json.loads((expression_folder / "policy.json").read_text())["network"]
    edit_json(expression_folder, network=record | changes)
    assert named in refusal(expression_folder)


@pytest.mark.parametrize("kind", ["folder", "expression_folder"])
def test_no_option_of_a_network_is_of_another_type(request, kind):
    """Each value that `policy.json` records, as a value of every other type JSON has."""
    path = request.getfixturevalue(kind)
    sound = json.loads((path / "policy.json").read_text())["network"]
    for key, right in sound.items():
        for wrong in (None, True, 1, 1.0, "1", [right], {}):
            if type(wrong) is not type(right):
                edit_json(path, network=sound | {key: wrong})
                assert f"policy.json: network.{key}" in refusal(path)
    edit_json(path, network=sound)
    load_policy(path)


def test_no_size_that_is_smaller_than_the_file_costs_memory_or_time(folder):
    """The largest sizes that pass the first check: their weights are never allocated."""
    edit_weights(folder, lambda t: t.update(extra=torch.zeros(3_000_000)))
    edit_json(folder, network={**SIZES, "embedding_size": 3_000_000})  # 54 terabytes
    assert "weights 'extra' do not belong" in refusal(folder)
    edit_json(folder, network={**SIZES, "embedding_size": 2**31})
    assert "has only 3002291 numbers" in refusal(folder)


def test_the_task_must_be_the_expected_one(folder):
    assert refusal(folder, expected_task="tutorial").endswith(
        "is a checkpoint of task 'calculator', not 'tutorial'"
    )


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.pop("gru.bias_hh_l0"), "'gru.bias_hh_l0' are missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "'extra' do not belong"),
        (lambda t: t.update({"value_head.bias": torch.zeros(2)}), "torch.float32 (2,); the sizes"),
        (lambda t: t["policy_head.bias"].fill_(float("nan")), "not finite"),
        (lambda t: t.clear(), "embedding_size is 16; model.safetensors has only 0 numbers"),
        (lambda t: t.update({"token_embedding.weight": torch.tensor(1.0)}), "torch.float32 ()"),
    ],
)
def test_other_weights_are_refused(folder, edit, words):
    edit_weights(folder, edit)
    assert words in refusal(folder)
