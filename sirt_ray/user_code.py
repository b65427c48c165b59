"""User code that a job names: `path.py:function`, a function of a local Python file.

It is executed with the rights of the user who runs the job, so nothing is executed unless the user
has allowed it, with `--allow-code` or SIRT_ALLOW_CODE=1. Planning only reads the file. A function
is sent to other processes as source text, so the nodes of a cluster need no copy of the file; what
the file imports must be installed there, and it cannot import a neighbouring file.
"""

import ast
import hashlib
import linecache
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from sirt_ray.errors import ConfigError, StageError
from sirt_ray.storage import object_store
from sirt_ray.storage.uri import user_path
from sirt_ray.storage.writing import write

ALLOW = "SIRT_ALLOW_CODE"
"""Environment variable: `1` allows the execution of user code."""
KEPT = "code"
"""Folder of a run with copies of the files that it has executed."""

_REFERENCE = re.compile(r"(?P<file>[^:]+\.py):(?P<function>[A-Za-z_]\w*)")
_DIGEST_CHARACTERS = 16
_lock = threading.Lock()
_modules: dict[str, ModuleType] = {}


def is_reference(text: str) -> bool:
    """Return whether the text has the form `path.py:function`."""
    return _REFERENCE.fullmatch(text) is not None


def checked(text: str) -> str:
    """Return the reference unchanged. Raises ValueError if it is none; a URL is never one."""
    if not is_reference(text):
        raise ValueError(
            f"{text!r} names no function of a local Python file. Write path.py:function, with the"
            " path as seen from the job file"
        )
    return text


def resolve_in_run(reference: str, folder: Path) -> str:
    """Return a reference that is relative to `folder`, relative to the working directory."""
    file, _, function = reference.rpartition(":")
    return f"{folder / user_path(file)}:{function}"


def file_of(reference: str) -> Path:
    return Path(reference.rpartition(":")[0])


def allow() -> None:
    """Allow this process, and those that it starts, to execute the user code of jobs."""
    os.environ[ALLOW] = "1"


def allowed() -> bool:
    return os.environ.get(ALLOW) == "1"


@dataclass(frozen=True, slots=True)
class UserFunction:
    """A function of user code, with the source of its file.

    Example::

        UserFunction("jobs/own_task.py", "coins", "def coins(split): ...", allowed=True)
    """

    file: str
    function: str
    source: str
    allowed: bool
    """Whether the user had allowed its execution where the file was read."""

    @property
    def reference(self) -> str:
        return f"{self.file}:{self.function}"

    def load(self) -> Callable[..., Any]:
        """Return the function; the first call executes its file. Raises ConfigError if the user has
        not allowed it, StageError if the file fails."""
        if not self.allowed:
            raise ConfigError(_not_allowed([self.reference]))
        with _lock:
            module = _modules.get(self.source)
            if module is None:
                module = _modules[self.source] = self._executed()
        return getattr(module, self.function)

    def call(self, *arguments: Any, about: str, listed: bool = False) -> Any:
        """Call the function and return its result; `listed`: the items of an iterable result as a
        list. Raises StageError with file, line, function and what the call is `about` if it
        fails."""
        function = self.load()
        try:
            returned = function(*arguments)
            return list(returned) if listed else returned
        except Exception as error:  # user code may raise anything
            raise self.failed(error, about) from error

    def failed(self, error: Exception, about: str) -> StageError:
        """Return the error for a call that failed, with the line of the user's file."""
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == self._shown_as]
        where = f"{self.file}:{lines[-1]}" if lines else self.file
        return StageError(
            f"{where}: {self.function} failed for {about}: {type(error).__name__}: {error}. Fix"
            " the function; what is finished is kept unless it depends on this file"
        )

    def wrong(self, returned: object, about: str, wanted: str) -> StageError:
        """Return the error for a result that is not what the function has to return."""
        text = repr(returned)
        shown = text if len(text) <= 80 else f"{text[:77]}..."
        return StageError(
            f"{self.file}: {self.function} returned {shown} for {about}, and not {wanted}. Fix the"
            " function"
        )

    @property
    def _shown_as(self) -> str:
        """The file's name in stack traces; no real file has such a name and could be shown
        instead."""
        return f"<{self.file}>"

    def _executed(self) -> ModuleType:
        module = ModuleType(f"sirt_user_code_{_digest(self.source)}")
        module.__file__ = self.file
        name = self._shown_as
        linecache.cache[name] = (len(self.source), None, self.source.splitlines(True), name)
        # Dataclasses look up their module in sys.modules.
        sys.modules[module.__name__] = module
        try:
            exec(compile(self.source, name, "exec"), module.__dict__)
        except Exception as error:
            del sys.modules[module.__name__]
            raise StageError(
                f"{self.file} cannot be executed: {type(error).__name__}: {error}. It can import"
                " what is installed on every node, and no neighbouring file"
            ) from error
        return module


def read(reference: str) -> UserFunction:
    """Read the function that a job names, without executing anything. Raises ConfigError if there
    is no such file, or no such function in it."""
    file, _, function = reference.rpartition(":")
    try:
        source = Path(file).read_text(encoding="utf-8")
        tree = ast.parse(source, file)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{reference}: the file cannot be read: {error}. Correct the path, which is seen from"
            " the job file"
        ) from error
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ConfigError(f"{file}{line} is no valid Python: {error}. Fix it there") from error
    found = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    if function not in found:
        raise ConfigError(
            f"{reference}: {file} defines no function {function} (it defines"
            f" {', '.join(found) or 'none'}). Correct the name"
        )
    return UserFunction(file, function, source, allowed())


def identity(reference: str) -> str:
    """Return the function's name and a digest of the whole file, independent of the file's path. It
    is defined for a missing file, too."""
    file, _, function = reference.rpartition(":")
    try:
        return f"{function}@{_digest(Path(file).read_text(encoding='utf-8'))}"
    except (OSError, UnicodeDecodeError):
        return f"{function}@absent"


def check(references: Iterable[str]) -> None:
    """Check that all functions exist. Raises ConfigError with every problem."""
    problems: list[str] = []
    sources: dict[str, tuple[str, str]] = {}
    for reference in dict.fromkeys(references):
        try:
            code = read(reference)
        except ConfigError as error:
            problems.append(str(error))
            continue
        name = Path(code.file).name
        other, source = sources.setdefault(name, (code.file, code.source))
        if source != code.source:
            problems.append(
                f"{code.file} and {other} have the same name and would overwrite each other in the"
                " run folder. Rename one"
            )
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))


def refuse_unallowed(references: Iterable[str]) -> None:
    """Raise ConfigError if a job names user code and the user has not allowed it."""
    named = list(dict.fromkeys(references))
    if named and not allowed():
        raise ConfigError(_not_allowed(named))


def described(references: Iterable[str]) -> list[str]:
    """Return one line for each file that a run executes."""
    functions: dict[str, list[str]] = {}
    for reference in dict.fromkeys(references):
        file, _, function = reference.rpartition(":")
        functions.setdefault(file, []).append(function)
    return [
        f"User code, executed by the run: {file} ({', '.join(names)}), sha256"
        f" {identity(f'{file}:{names[0]}').rpartition('@')[2]}"
        for file, names in functions.items()
    ]


def copy_into_run(references: Iterable[str], run_dir: Path) -> None:
    """Copy the files into the run folder."""
    for reference in references:
        source = file_of(reference)
        copy = run_dir / KEPT / source.name
        if source.resolve() != copy.resolve():
            copy.parent.mkdir(parents=True, exist_ok=True)
            write(copy, source.read_bytes())
            object_store.push(copy)


def copied_reference(reference: str) -> str:
    """Return the reference relative to the run folder, which has a copy of the file."""
    return f"{KEPT}/{file_of(reference).name}:{reference.rpartition(':')[2]}"


def _digest(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:_DIGEST_CHARACTERS]


def _not_allowed(references: list[str]) -> str:
    files = ", ".join(dict.fromkeys(str(file_of(reference)) for reference in references))
    return (
        f"the job names Python code ({', '.join(references)}), which would be executed with all"
        f" that you may do. Read {files}; if you trust it, run the same command with --allow-code"
        f" (or {ALLOW}=1)"
    )
