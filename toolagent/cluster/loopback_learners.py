"""Learners that stay on loopback where their cluster is."""

from __future__ import annotations

from typing import Any

from toolagent.cluster.ray_internals import learner_backend


class LoopbackLearnersMixin:
    """For an AlgorithmConfig: where the cluster is on loopback, so are its learners."""

    def build_learner_group(self, **kwargs: Any) -> Any:
        """RLlib's, with the process group of `cluster.process_group`."""
        with learner_backend(_config):
            return super().build_learner_group(**kwargs)  # type: ignore[misc]


def _config() -> Any:
    # Only where there are remote learners: Ray Train takes a twentieth of all that a run imports.
    from toolagent.cluster.process_group import LoopbackConfig

    return LoopbackConfig()
