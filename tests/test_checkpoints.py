"""Checkpoints on the disk: what is written comes back, and what is torn is known and named."""

from __future__ import annotations

import collections
import contextlib
import errno
import json
import math
import os
import pickle
import resource
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from small_disk import mounted, remount
from trained import untrained_network

from toolagent.checkpoints.manifest import MANIFEST, TornCheckpoint, verify
from toolagent.checkpoints.run_files import RunState
from toolagent.checkpoints.run_folder import RunFolder, new_folder
from toolagent.checkpoints.state_files import encode_state, read_state
from toolagent.checkpoints.training_state import (
    best_checkpoint,
    finish_replacing,
    list_checkpoints,
    never_wrote_one,
    newest_checkpoint,
    restore_checkpoint,
    set_aside_later,
    write_checkpoint,
)
from toolagent.config import load_settings
from toolagent.errors import UserError
from toolagent.files import write_atomically
from toolagent.run.keeper import CheckpointKeeper
from toolagent.tasks import get_task


class Holder:
    """Stands where an algorithm would: something with a state."""

    def __init__(self, state=None):
        self.state = state or {"weights": np.arange(1000.0), "updates": 3}

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state


def write(checkpoints, iteration, keep=9, algorithm=None, accuracy=None):
    return write_checkpoint(
        checkpoints,
        algorithm or Holder(),
        untrained_network(embedding_size=4),
        RunState(iteration, 1000 * iteration),
        keep,
        accuracy,
        task_name="calculator",
    )


# What is written comes back -----------------------------------------------------------------


def same(one, two):
    """Equal to the last bit, and of the same types."""
    assert type(one) is type(two)
    if isinstance(one, dict):
        assert list(one) == list(two)
        return all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple | collections.deque):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and same(one.numpy(), two.numpy())
    if isinstance(one, float) and math.isnan(one):
        return math.isnan(two)
    return one == two


def back(state, folder):
    folder.mkdir(exist_ok=True)
    for name, content in encode_state(state).items():
        (folder / name).write_bytes(content)
    return read_state(folder)


numbers = arrays.arrays(
    arrays.boolean_dtypes()
    | arrays.integer_dtypes(endianness="=")
    | arrays.unsigned_integer_dtypes(endianness="=")
    | arrays.floating_dtypes(endianness="=", sizes=(16, 32, 64)),
    arrays.array_shapes(min_dims=0, min_side=0, max_side=3),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | numbers,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.lists(inner, max_size=3).map(lambda items: collections.deque(items, maxlen=5))
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.just("$"), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(values)
@settings(max_examples=150, deadline=None)
def test_any_state_comes_back_to_the_last_bit(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("state")
    assert same(back(value, folder), value)
    shutil.rmtree(folder)


def test_streams_tensors_problems_and_scalars_come_back(tmp_path):
    rng = np.random.default_rng(3)
    state = {
        "numpy": rng.bit_generator.state,
        "torch": torch.Generator().get_state(),
        "transposed": np.arange(6).reshape(2, 3).T,
        "scalar": np.float32(0.1),
        "set": {1, 2},
    }
    found = back(state, tmp_path)
    assert same(found, {**state, "transposed": np.array(state["transposed"], order="C")})
    found["transposed"][0, 0] = 5  # as what was saved, it can be changed
    problems = get_task("expression").sample(rng, np.full(9, 3, np.int8))
    again = back({"ring": problems}, tmp_path)["ring"]
    assert type(again) is type(problems)
    assert all(same(dict(again.columns())[name], column) for name, column in problems.columns())


@pytest.mark.parametrize(
    "odd", [object(), len, np.array(["a"]), np.array([None]), UserError("x"), 1j]
)
def test_what_is_no_data_is_refused_and_its_place_named(odd):
    with pytest.raises(TypeError, match=r"^state/learner/odd is a"):
        encode_state({"learner": {"odd": odd}})


def test_a_structure_can_t_name_code(tmp_path):
    back({}, tmp_path)
    for odd in ({"$": "columns", "class": "os.system", "columns": {}}, {"$": "call"}):
        (tmp_path / "state.json").write_text(json.dumps(odd))
        with pytest.raises(ValueError):
            read_state(tmp_path)


# Torn checkpoints -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Checkpoints 1 and 2, both whole."""
    checkpoints = tmp_path_factory.mktemp("sound")
    write(checkpoints, 1)
    write(checkpoints, 2)
    return checkpoints


FILES = ("manifest.json", "model.safetensors", "policy.json", "run.json")
FILES += ("rllib_checkpoint.json", "state.json", "state.safetensors")


def newest_and_notes(checkpoints):
    notes = []
    folder, state = newest_checkpoint(checkpoints, notes.append)
    assert state.iteration == int(folder.name[-6:])
    return folder.name, notes


def test_a_whole_checkpoint_has_these_files_and_is_taken(sound):
    assert {path.name for path in (sound / "checkpoint_000002").iterdir()} == set(FILES)
    assert newest_and_notes(sound) == ("checkpoint_000002", [])
    holder = Holder({"updates": 0})
    restore_checkpoint(holder, sound / "checkpoint_000002")
    assert same(holder.state, Holder().state)


def test_rllib_s_from_checkpoint_says_what_to_do_instead(sound):
    from ray.rllib.algorithms.algorithm import Algorithm

    with pytest.raises(ValueError) as refusal:
        Algorithm.from_checkpoint(str(sound / "checkpoint_000002"))
    for instead in ("--resume", "--init-from", "toolagent.checkpoints.policy.load_policy"):
        assert instead in str(refusal.value)


def flip(path, place, mask):
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= mask
    path.write_bytes(content)


def cut(path, place, mask):
    content = path.read_bytes()
    path.write_bytes(content[: place % len(content)])


def remove(path, place, mask):
    path.unlink()


def lengthen(path, place, mask):
    path.write_bytes(path.read_bytes() + bytes([mask]))


def link(path, place, mask):
    target = path.with_name("..") / f"elsewhere-{path.name}"
    path.rename(target)
    path.symlink_to(target)


@given(
    name=st.sampled_from(FILES),
    damage=st.sampled_from([flip, flip, flip, cut, remove, lengthen, link]),
    place=st.integers(0, 10**6),
    mask=st.integers(1, 255),
)
@settings(max_examples=250, deadline=None)
def test_any_byte_or_file_that_is_wrong_is_noticed_and_named(
    sound, tmp_path_factory, name, damage, place, mask
):
    checkpoints = tmp_path_factory.mktemp("torn")
    shutil.copytree(sound, checkpoints, dirs_exist_ok=True)
    damage(checkpoints / "checkpoint_000002" / name, place, mask)
    if damage is link and name == MANIFEST:
        return  # read through the link, its content is what was written
    folder, notes = newest_and_notes(checkpoints)
    assert folder == "checkpoint_000001"
    [note] = notes
    assert note.startswith(f"passed over checkpoint_000002: {'has no ' * (damage is remove)}") or (
        name in note
    )
    assert name in note
    shutil.rmtree(checkpoints)


@pytest.mark.slow
def test_every_single_byte_of_the_small_files_is_covered(sound, tmp_path):
    shutil.copytree(sound / "checkpoint_000002", tmp_path / "c")
    for name in ("manifest.json", "policy.json", "run.json", "state.json"):
        path = tmp_path / "c" / name
        content = path.read_bytes()
        for place in range(len(content)):
            flip(path, place, 1 + place % 255)
            with pytest.raises(TornCheckpoint, match=name):
                verify(tmp_path / "c")
            path.write_bytes(content)
    verify(tmp_path / "c")


def test_a_file_too_many_is_noticed_and_no_pickle_is_ever_opened(sound, tmp_path):
    trap = tmp_path / "executed"

    class Malice:
        def __reduce__(self):
            return os.mkdir, (str(trap),)

    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(sound, checkpoints)
    for name in ("algorithm_state.pkl", "class_and_ctor_args.pkl"):
        (checkpoints / "checkpoint_000002" / name).write_bytes(pickle.dumps(Malice()))
    (checkpoints / "checkpoint_000001" / "more").mkdir()
    with pytest.raises(UserError) as refusal:
        newest_checkpoint(checkpoints)
    assert "checkpoint_000002: algorithm_state.pkl does not belong to it" in str(refusal.value)
    assert "checkpoint_000001: more does not belong to it" in str(refusal.value)
    with pytest.raises(TornCheckpoint):
        restore_checkpoint(Holder(), checkpoints / "checkpoint_000002")
    assert not trap.exists()


def test_a_checkpoint_of_an_older_version_is_refused_in_words(sound, tmp_path):
    shutil.copytree(sound / "checkpoint_000001", tmp_path / "checkpoint_000001")
    (tmp_path / "checkpoint_000001" / MANIFEST).unlink()
    with pytest.raises(UserError, match="or was written by an older version of toolagent"):
        newest_checkpoint(tmp_path)


# What stays -----------------------------------------------------------------------------------


def names(checkpoints):
    return [int(folder.name[-6:]) for folder in list_checkpoints(checkpoints)]


def test_the_newest_and_the_best_stay(tmp_path):
    measured = [{"0": 1.0, "1": 0.2}, {"0": 0.9, "1": 0.8}, {"0": 1.0, "1": 0.8}]
    measured += [{"0": 1.0, "1": 0.8}, {"0": 1.0, "1": 0.5}, {"0": 1.0}, {"0": 1.0, "1": 0.7}]
    for iteration, accuracy in enumerate(measured, 1):
        write(tmp_path, iteration, keep=2, accuracy=accuracy)
    # The last stage counts first, then the one before, then fewer env steps.
    assert names(tmp_path) == [3, 6, 7]
    assert best_checkpoint(tmp_path).name == "checkpoint_000003"
    assert sorted(path.name for path in tmp_path.iterdir())[0] == "checkpoint_000003"


def test_one_checkpoint_can_take_the_place_of_another(tmp_path):
    write(tmp_path, 4, algorithm=Holder({"updates": 1}))
    write(tmp_path, 4, algorithm=Holder({"updates": 2}))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_000004"]
    holder = Holder()
    restore_checkpoint(holder, tmp_path / "checkpoint_000004")
    assert holder.state == {"updates": 2}


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    final = write(tmp_path, 4)
    shutil.copytree(final, tmp_path / ".checkpoint_000005.partial")
    os.replace(final, tmp_path / ".checkpoint_000004.replaced")
    finish_replacing(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_000004"]
    verify(final)


def test_later_checkpoints_are_set_aside_not_lost(tmp_path):
    for iteration in (2, 4, 6):
        write(tmp_path, iteration)
    (tmp_path / "checkpoint_000008").mkdir()  # torn
    aside = set_aside_later(tmp_path, 2)
    assert [path.name for path in sorted(aside)] == [f"abandoned_00000{i}" for i in (4, 6, 8)]
    assert names(tmp_path) == [2]
    write(tmp_path, 4)
    set_aside_later(tmp_path, 2)
    assert (tmp_path / "abandoned_000004-2" / MANIFEST).is_file()


# A disk that fails ------------------------------------------------------------------------------


@contextlib.contextmanager
def files_of_at_most(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def keeper_in(run, algorithm, warnings):
    (run / "checkpoints").mkdir(exist_ok=True)
    callback = SimpleNamespace(
        task=get_task("calculator"),
        measured=[],
        refresh_network=lambda algorithm: untrained_network(embedding_size=4),
    )
    settings = load_settings(None)
    return CheckpointKeeper(settings, algorithm, callback, RunFolder(run), warnings.append)


def check_goes_on(run, keeper, algorithm, warnings, word):
    """The last good checkpoint is there, whole, and nothing of the failed one."""
    assert keeper.write(RunState(2)) is None
    [warning] = warnings
    assert warning.startswith("warning: no checkpoint could be written (") and word in warning
    assert "the last good one is checkpoint_000001; tried again in 60 s" in warning
    assert keeper.fault and keeper.last.name == "checkpoint_000001"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["checkpoint_000001"]
    verify(run / "checkpoints" / "checkpoint_000001")


def test_a_full_disk_costs_a_warning_and_the_last_good_checkpoint_stays(tmp_path):
    algorithm, warnings = Holder(), []
    with mounted(tmp_path, "size=128k"):
        keeper = keeper_in(tmp_path, algorithm, warnings)
        assert keeper.write(RunState(1)) is not None
        algorithm.state = {"weights": np.zeros(100_000)}
        check_goes_on(tmp_path, keeper, algorithm, warnings, os.strerror(errno.ENOSPC))
        algorithm.state = {"weights": np.zeros(10)}  # there is room again
        assert keeper.write(RunState(3)).name == "checkpoint_000003"
        assert keeper.fault is None


def test_files_that_may_not_grow_cost_a_warning(tmp_path):
    algorithm, warnings = Holder(), []
    keeper = keeper_in(tmp_path, algorithm, warnings)
    assert keeper.write(RunState(1)) is not None
    algorithm.state = {"weights": np.zeros(100_000)}
    with files_of_at_most(100_000):
        check_goes_on(tmp_path, keeper, algorithm, warnings, os.strerror(errno.EFBIG))
    assert keeper.write(RunState(3)) is not None


def test_a_disk_that_became_read_only_costs_a_warning(tmp_path):
    algorithm, warnings = Holder(), []
    with mounted(tmp_path, "size=1m"):
        keeper = keeper_in(tmp_path, algorithm, warnings)
        assert keeper.write(RunState(1)) is not None
        remount(tmp_path, "ro")
        check_goes_on(tmp_path, keeper, algorithm, warnings, os.strerror(errno.EROFS))


def test_a_folder_that_is_gone_costs_a_warning(tmp_path):
    run, warnings = tmp_path / "run", []
    run.mkdir()
    keeper = keeper_in(run, Holder(), warnings)
    assert keeper.write(RunState(1)) is not None
    shutil.rmtree(run)
    assert keeper.write(RunState(2)) is None
    assert os.strerror(errno.ENOENT) in warnings[0]


def test_rows_that_could_not_be_written_are_written_later(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.append_progress({"iteration": 1}) is None
    with files_of_at_most(folder.progress.stat().st_size + 5):
        assert folder.append_progress({"iteration": 2}) == os.strerror(errno.ENOSPC)
        assert folder.append_progress({"iteration": 3}) == os.strerror(errno.ENOSPC)
        with pytest.raises(OSError):
            folder.sync_progress()  # so that no checkpoint is ahead of its rows
    assert [row["iteration"] for row in map(json.loads, folder.progress.open())] == [1]
    assert folder.append_progress({"iteration": 4}) is None
    assert [row["iteration"] for row in folder.cut_progress(9)] == [1, 2, 3, 4]


def test_two_runs_can_t_be_at_work_in_one_folder(tmp_path):
    first = RunFolder(tmp_path)
    first.lock("--resume")
    with pytest.raises(UserError, match="a run is at work in it; stop that first"):
        RunFolder(tmp_path).lock("--resume")
    del first
    RunFolder(tmp_path).lock("--resume")


def test_a_run_killed_at_its_very_beginning_begins_anew_or_is_as_good_as_new(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    assert new_folder(run.path, "calculator", "") == run.path  # killed before config.yaml
    run.config.write_text("task: calculator\n")
    assert never_wrote_one(run.checkpoints)  # killed right after it
    run.make("task: calculator\n", resumed=True)
    assert never_wrote_one(run.checkpoints)
    run.append_progress({"iteration": 1})
    run.checkpoints.rmdir()  # not by a kill
    assert not never_wrote_one(run.checkpoints)


# What is on the disk when -------------------------------------------------------------------


@pytest.fixture
def events(monkeypatch):
    """What is synced to the disk and renamed, in order: ('sync', path), ('rename', from, to)."""
    seen = []
    fsync, replace = os.fsync, os.replace

    def noting_fsync(descriptor):
        seen.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def noting_replace(source, target):
        seen.append(("rename", str(source), str(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "replace", noting_replace)
    return seen


def test_all_of_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, events):
    final = write(tmp_path, 1)
    (rename,) = [event for event in events if event[0] == "rename" and event[2] == str(final)]
    partial, before = rename[1], events[: events.index(rename)]
    # A file that is renamed within the folder was synced under its earlier name.
    earlier = {event[2]: event[1] for event in before if event[0] == "rename"}
    for file in final.iterdir():
        name = f"{partial}/{file.name}"
        assert ("sync", earlier.get(name, name)) in before, file.name
    assert ("sync", partial) in before  # the names in it
    assert ("sync", str(tmp_path)) in events[events.index(rename) :]  # its own name


def test_a_replaced_file_is_on_the_disk_before_it_has_its_name(tmp_path, events):
    path = tmp_path / "summary.json"
    write_atomically(path, b"1")
    kinds = [(event[0], event[-1]) for event in events]
    assert [kind for kind, _ in kinds] == ["sync", "rename", "sync"]
    assert kinds[0][1] == events[1][1] and kinds[1:] == [
        ("rename", str(path)),
        ("sync", str(tmp_path)),
    ]
