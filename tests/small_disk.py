"""Disks that are full or read-only, for those who may mount one."""

from __future__ import annotations

import contextlib
import os
import subprocess

import pytest


@contextlib.contextmanager
def mounted(folder, options):
    """A disk of its own at the folder; skips the test where mounting is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder, options):
    """Changes the disk at the folder: 'ro', or another 'size=...'."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
