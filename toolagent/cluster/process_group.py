"""The learners' process group; in a cluster on loopback it stays there too.

RLlib's remote learners, a single one included, form a torch process group, which Ray Train sets up.
The store by which its members find each other (`torch.distributed.TCPStore`) listens on all
interfaces, whatever its address, unless it is handed a socket of our own; gloo and NCCL listen on
the interface of the machine's name, unless another one is named.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from datetime import timedelta
from typing import Any

import ray
from ray.train.torch.config import TorchConfig
from torch import distributed

_LOOPBACK = "127.0.0.1"
_LOOPBACK_INTERFACE = "lo"
_store: Any = None  # in a learner's process: it ends with it


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    share_cuda_visible_devices = False  # as RLlib has it: a learner sees its own GPUs only

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Joins the learners; runs in the driver."""
        if not ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback:
            super().on_start(worker_group, backend_config)
            return
        size = len(worker_group)
        backend = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) > 0 else "gloo"
        port = worker_group.execute_single(0, _open_store, size)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, _join, backend, rank, size, port, backend_config.timeout_s
                )
                for rank in range(size)
            ]
        )


class LoopbackConfig(TorchConfig):
    """What Ray Train sets the group up by."""

    @property
    def backend_cls(self) -> type[_Backend]:
        """Joins the learners."""
        return _Backend


def _open_store(size: int) -> int:
    """In the first learner: a store that listens on loopback; its port."""
    global _store
    listener = socket.create_server((_LOOPBACK, 0))
    port = listener.getsockname()[1]
    _store = distributed.TCPStore(
        _LOOPBACK,
        port,
        size,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),  # the store's from now on
    )
    return port


def _join(backend: str, rank: int, size: int, port: int, timeout_s: int) -> None:
    """In each learner: becomes a member of the group, once all have come."""
    global _store
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, _LOOPBACK_INTERFACE)
    timeout = timedelta(seconds=timeout_s)
    if _store is None:
        _store = distributed.TCPStore(_LOOPBACK, port, size, is_master=False, timeout=timeout)
    distributed.init_process_group(
        backend, store=_store, rank=rank, world_size=size, timeout=timeout
    )
