"""This project's code, and the user's, where the actors of a run are.

On an existing cluster nodes need not have it installed: Ray's runtime environment carries packages
to every node on which an actor of the run starts, and puts them before whatever is installed there,
so all play with the driver's code. The workers of a cluster that is started here look for modules
where the driver found them. The configuration needs no transport of its own: it is resolved on the
driver, and travels as what it was resolved to with each actor.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import toolagent
from toolagent.outside import name_of_main
from toolagent.phases import PROFILE

_NAMED_CODE = re.compile(r'"([A-Za-z_]\w*)(?:\.\w+)*:\w+(?:\.\w+)*"')  # a text in JSON
# Set by Ray for a submitted job's driver.
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_INSTALLED = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")]


def runtime_environment(document: dict[str, Any]) -> dict[str, Any]:
    """What `ray.init(runtime_env=...)` takes for a run on an existing cluster.

    Args:
        document: the configuration; the user's own modules are carried too: those that it names
            ('package.module:Name'), and what was imported from beside them.

    Returns:
        No modules in a job that was submitted with some of its own: Ray takes one list only.
    """
    submitted = _of_the_job()
    result: dict[str, Any] = {}
    if PROFILE in os.environ:
        result["env_vars"] = {PROFILE: os.environ[PROFILE]}
    if "py_modules" in submitted:
        return result
    result["py_modules"] = [str(Path(toolagent.__file__).parent), *map(str, _own_modules(document))]
    if "excludes" not in submitted:
        result["excludes"] = ["__pycache__"]
    return result


@contextlib.contextmanager
def python_path(document: dict[str, Any]) -> Iterator[None]:
    """Processes that are started in the block find the user's own modules, wherever the driver
    found them; Ray itself tells them of the working folder and of the script's.

    Args:
        document: the configuration, which names them.
    """
    before = os.environ.get("PYTHONPATH")
    known = before.split(os.pathsep) if before else []
    folders = {str(path.parent) for path in _own_modules(document)} - {os.getcwd(), *known}
    # A worker that imports before it has work is not told of the working folder yet.
    if Path(toolagent.__file__).parents[1] == Path.cwd():
        folders |= {os.getcwd()} - {*known}
    if folders:
        os.environ["PYTHONPATH"] = os.pathsep.join([*known, *sorted(folders)])
    try:
        yield
    finally:
        if before is not None:
            os.environ["PYTHONPATH"] = before
        elif folders:
            del os.environ["PYTHONPATH"]


def _of_the_job() -> dict[str, Any]:
    """The runtime environment that `ray job submit` was given; empty outside a job."""
    try:
        return json.loads(os.environ.get(_JOB, "{}")).get("runtime_env") or {}
    except (ValueError, AttributeError):
        return {}


def _own_modules(document: dict[str, Any]) -> list[Path]:
    """The files and packages of the user's own code. All are imported: building the configuration
    did that."""
    text = json.dumps(document, ensure_ascii=False, default=str)
    modules = sys.modules | {name_of_main(): sys.modules["__main__"]}
    places = {
        name: path
        for name, module in modules.items()
        if "." not in name and name not in ("toolagent", "__main__")
        for path in _paths_of(module)
        if not any(path.is_relative_to(folder) for folder in _INSTALLED)
    }
    folders = {places[name].parent for name in _NAMED_CODE.findall(text) if name in places}
    return sorted({path for path in places.values() if path.parent in folders})


def _paths_of(module: ModuleType) -> list[Path]:
    """The module's file, or its folder if it is a package; nothing for one that has none."""
    if hasattr(module, "__path__"):  # without an __init__.py a package has no file
        return [Path(folder).resolve() for folder in [*module.__path__][:1]]
    file = getattr(module, "__file__", None)
    return [Path(file).resolve()] if file else []
