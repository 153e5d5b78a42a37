"""Configuration: a YAML file plus `--set section.key=value`, resolved into an `AlgorithmConfig`.

A section is named after a method of RLlib's `AlgorithmConfig`, and its entries are that method's
keyword arguments, so every RLlib option is within reach under its own name. Ray is imported only
when sections are checked or a config is built.
"""

from toolagent.config.algorithm import algorithm_config_class, build_algorithm_config
from toolagent.config.callbacks import add_callbacks
from toolagent.config.folder import (
    config_folder,
    find_config,
    find_search,
    shipped_configs,
    shipped_searches,
)
from toolagent.config.loading import load_settings, settings_from_text
from toolagent.config.placement import check_placement, share_cpus, with_auto_runners
from toolagent.config.settings import ALGORITHMS, RunSettings, Settings, config_sha256, to_yaml

__all__ = [
    "ALGORITHMS",
    "RunSettings",
    "Settings",
    "add_callbacks",
    "algorithm_config_class",
    "build_algorithm_config",
    "check_placement",
    "config_folder",
    "config_sha256",
    "find_config",
    "find_search",
    "load_settings",
    "settings_from_text",
    "share_cpus",
    "shipped_configs",
    "shipped_searches",
    "to_yaml",
    "with_auto_runners",
]
