"""Classes from outside of this package, named as 'my_package.my_module:MyClass'."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from typing import Any

from toolagent.errors import UserError


def is_outside(reference: str) -> bool:
    """Whether this names a class of a module, not something of this package by its short name."""
    return ":" in reference


def reference_of(given: type) -> str:
    """The name under which `load_class` finds a class: 'my_package.my_module:MyClass'."""
    return f"{given.__module__}:{given.__qualname__}"


def file_of(given: type) -> str:
    """The file that a class is written in, as messages name it."""
    try:
        return os.path.relpath(inspect.getfile(given))
    except (TypeError, OSError, ValueError):  # typed into an interpreter; on another drive
        return given.__module__


def load_class(reference: str, base: type) -> Any:
    """Imports a class; modules are found on the Python path and in the working folder.

    This runs the module's code: it is called only with what the user names, never with what a
    checkpoint does.

    Raises:
        UserError: the module can't be imported, or there is no such subclass of `base` in it.
    """
    module_name, _, name = reference.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *name.split("."))):
        raise UserError(
            f"'{reference}' is no class; expected its module and its name, such as "
            f"my_module:My{base.__name__}"
        )
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and module_name.startswith(error.name or "\0"):
            raise UserError(
                f"{reference}: there is no module '{error.name}'; it is looked for in the working "
                "folder and on the Python path"
            ) from error
        raise UserError(f"{reference}: can't be imported: {_condensed(error)}") from error
    except Exception as error:  # whatever the module's own code raises
        raise UserError(
            f"{reference}: can't be imported: {type(error).__name__}: {_condensed(error)}"
        ) from error
    file = os.path.relpath(getattr(found, "__file__", None) or module_name)
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None:
        raise UserError(f"{file}: there is no '{name}' in it")
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(
            f"{file}: '{name}' is no {base.__name__}; expected a class derived from "
            f"{base.__module__.rpartition('.')[0] or base.__module__}.{base.__name__}"
        )
    return found


def _condensed(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
