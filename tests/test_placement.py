"""How many env runners `auto` means, and what the nodes have room for."""

from __future__ import annotations

import pytest

from toolagent.config import build_algorithm_config, load_settings, settings_from_text, to_yaml
from toolagent.config.placement import (
    check_placement,
    room_for,
    with_auto_runners,
)
from toolagent.errors import UserError

LAPTOP = {"CPU": 2.0}
HEAD, GPU_HEAD = {"CPU": 0.0}, {"CPU": 0.0, "GPU": 1.0}
NODE = {"CPU": 8.0, "memory": 1e9, "node:10.0.0.1": 1.0}
ON_GPU = ("learners.num_learners=1", "learners.num_gpus_per_learner=1")
ONE_RUNNER = "env_runners.num_env_runners=1"
WIDE = ("training.episodes_per_update=6400",)  # ten fragments an update, two updates under way


def config_of(*overrides, base=None):
    settings = load_settings(base, ["env_runners.num_env_runners=auto", *overrides])
    return build_algorithm_config(settings)


@pytest.mark.parametrize(
    ("overrides", "offers", "driver", "joined", "count", "reason"),
    [
        ((), [LAPTOP], LAPTOP, False, 1, "1 CPU learner can use no more"),
        ((), [{"CPU": 1.0}], {"CPU": 1.0}, False, 1, "no CPU is free; it shares"),
        ((), [HEAD, NODE, NODE], HEAD, True, 2, "1 CPU learner can use no more"),
        (WIDE, [HEAD, NODE, NODE], HEAD, True, 2, "1 CPU learner can use no more"),
        (ON_GPU, [GPU_HEAD, NODE, NODE], GPU_HEAD, True, 2, "training.episodes_per_update"),
        ((*ON_GPU, *WIDE), [GPU_HEAD, NODE, NODE], GPU_HEAD, True, 16, "GPU learner can use"),
        ((*ON_GPU, *WIDE), [GPU_HEAD, NODE], GPU_HEAD, True, 8, "one for each free CPU"),
        # The driver's node has CPUs: one of them is the driver's.
        ((*ON_GPU, *WIDE), [NODE | {"GPU": 1.0}], NODE, True, 7, "one for each free CPU"),
        (
            (*ON_GPU, *WIDE, "env_runners.custom_resources_per_env_runner={play: 1}"),
            [GPU_HEAD, NODE | {"play": 3.0}, NODE],
            GPU_HEAD,
            True,
            3,
            "one for each free CPU",
        ),
    ],
)
def test_auto(overrides, offers, driver, joined, count, reason):
    config, note = with_auto_runners(config_of(*overrides), offers, driver, joined)
    assert config.num_env_runners == count
    assert reason in note and note.startswith(f"auto: {count} env runner")
    check_placement(config, [*offers, {"GPU": 1.0}], driver | {"GPU": 1.0})


def test_stock_rllib_takes_every_free_cpu():
    settings = load_settings("ppo", ["env_runners.num_env_runners=auto"])
    config = build_algorithm_config(settings)
    changed, _ = with_auto_runners(config, [HEAD, NODE, NODE], HEAD, True)
    assert changed.num_env_runners == 16


def test_auto_stays_auto_in_the_written_configuration():
    settings = load_settings(None, ["env_runners.num_env_runners=auto"])
    assert settings.auto_runners
    again = settings_from_text("# Here: auto: 7 env runners\n" + to_yaml(settings), "config.yaml")
    assert again == settings and again.auto_runners


@pytest.mark.parametrize("value", ["automatic", "-1", "1.5", "[auto]"])
def test_other_words_are_refused(value):
    with pytest.raises(UserError, match="num_env_runners"):
        config = load_settings(None, [f"env_runners.num_env_runners={value}"])
        build_algorithm_config(config)


def test_room():
    assert room_for({"CPU": 1.0}, [HEAD, NODE]) == 8
    assert room_for({"CPU": 0.1}, [{"CPU": 1.0}]) == 10
    assert room_for({"CPU": 3.0}, [NODE, NODE]) == 4
    assert room_for({"CPU": 0.0, "GPU": 1.0}, [GPU_HEAD, NODE]) == 1


def test_a_learner_that_fits_on_no_single_node():
    config = config_of("learners.num_learners=1", "learners.num_gpus_per_learner=2")
    with pytest.raises(UserError, match=r"1 learner ask for GPU 2 each; .* room for 0"):
        check_placement(config, [GPU_HEAD, GPU_HEAD, NODE], GPU_HEAD)


def test_a_resource_that_no_node_has():
    config = config_of("env_runners.custom_resources_per_env_runner={swim: 1}", ONE_RUNNER)
    with pytest.raises(UserError, match=r"asks for 1 of 'swim' in all, .* they declare play"):
        check_placement(config, [NODE | {"play": 3.0}], NODE)


def test_more_gpus_than_the_cluster_has():
    config = config_of("learners.num_learners=1", "learners.num_gpus_per_learner=4", ONE_RUNNER)
    with pytest.raises(UserError, match="asks for 4 GPUs in all, there are 0"):
        check_placement(config, [NODE, NODE], NODE)


def test_a_driver_without_the_gpu_that_it_would_learn_on():
    config = config_of("learners.num_gpus_per_learner=1")
    with pytest.raises(UserError, match="its node has no GPU; add --num-learners 1"):
        check_placement(config, [HEAD, GPU_HEAD | {"CPU": 8.0}], HEAD)
