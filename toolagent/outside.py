"""Classes from outside of this package, named as 'my_package.my_module:MyClass'."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from typing import Any

from toolagent.errors import UserError


def is_outside(reference: str) -> bool:
    """Whether this names a class of a module, not something of this package by its short name."""
    return ":" in reference


def is_reference(text: str) -> bool:
    """Whether this could name a class: 'my_package.my_module:MyClass'."""
    module_name, _, name = text.partition(":")
    return all(part.isidentifier() for part in (*module_name.split("."), *name.split(".")))


def reference_of(given: type) -> str:
    """The name under which `load_class` finds a class: 'my_package.my_module:MyClass', also if it
    is of the program's main file. '__main__:MyClass' if that is no file (a notebook, a prompt)."""
    module = given.__module__
    return f"{name_of_main() if module == '__main__' else module}:{given.__qualname__}"


def name_of_main() -> str:
    """What other processes import the main module as."""
    main = sys.modules["__main__"]
    specification = getattr(main, "__spec__", None)
    if specification is not None:  # python -m my_package.my_module
        return specification.name
    # python my_folder/my_module.py: the folder is on the path
    name, ending = os.path.splitext(os.path.basename(getattr(main, "__file__", None) or ""))
    return name if ending == ".py" and name.isidentifier() else "__main__"


def file_of(given: type) -> str:
    """The file that a class is written in, as messages name it."""
    try:
        return _shown(inspect.getfile(given))
    except (TypeError, OSError):  # typed into an interpreter
        return given.__module__


def load_class(reference: str, base: type) -> Any:
    """Imports a class; modules are found on the Python path and in the working folder.

    This runs the module's code: it is called only with what the user names, never with what a
    checkpoint does.

    Raises:
        UserError: the module can't be imported, or there is no such subclass of `base` in it.
    """
    module_name, _, name = reference.partition(":")
    if not is_reference(reference):
        raise UserError(
            f"'{reference}' is no class; expected its module and its name, such as "
            f"my_module:My{base.__name__}"
        )
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    # Whatever the module's own code raises; a program may end itself (SystemExit) on import.
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise UserError(
                f"{reference}: there is no module '{missing}'; it is looked for in the working "
                "folder and on the Python path"
            ) from error
        raise UserError(
            f"{_place_of(error, module_name)}: {reference} can't be imported: "
            f"{type(error).__name__}: {_condensed(error)}"
        ) from error
    file = _shown(getattr(found, "__file__", None) or module_name)
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


def _place_of(error: BaseException, module_name: str) -> str:
    """The file and line at which the import of a module ended, as far as they are known."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_shown(error.filename)}, line {error.lineno}"
    place, package = module_name, module_name.partition(".")[0]
    for frame, line in traceback.walk_tb(error.__traceback__):
        if str(frame.f_globals.get("__name__")).partition(".")[0] == package:
            place = f"{_shown(frame.f_code.co_filename)}, line {line}"
    return place


def _shown(file: str) -> str:
    """A file as messages name it."""
    try:
        return os.path.relpath(file)
    except ValueError:  # on another drive
        return file


def _condensed(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


# Trying out what such a class does ------------------------------------------------------------


def called(where: str, method: Any, *arguments: Any) -> Any:
    """What a method of somebody else's class returns.

    Raises:
        UserError: whatever it raised, as one line.
    """
    try:
        return method(*arguments)
    except Exception as error:  # whatever that code raises
        raise raised(where, method.__name__, error) from error


def raised(where: str, what: str, error: Exception) -> UserError:
    """What somebody else's code raised, as one line."""
    text = " ".join(str(error).split())[:200]
    return UserError(f"{where}: {what} raised {type(error).__name__}: {text}")


def require(holds: bool, where: str, fault: str) -> None:
    """Raises UserError unless something holds."""
    if not holds:
        raise UserError(f"{where}: {fault}")
