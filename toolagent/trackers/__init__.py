"""Where figures go besides the run's own files: TensorBoard, MLflow, Weights & Biases."""

from toolagent.trackers.group import Trackers

__all__ = ["Trackers"]
