"""What can go wrong, as the user sees it.

Each error is also the standard library's error of its kind, so `except ValueError` still works, and
each can be pickled, because errors cross Ray's process boundaries. To add one: inherit the
category and the stdlib error, and keep a single message argument.

A message says what is wrong, why it cannot work, and what to do.
"""

import os
from pathlib import Path


class SirtError(Exception):
    """Base of all errors that are addressed to the user. `exit_code` is the process's."""

    exit_code = 1


class InputError(SirtError, ValueError):
    """The job file, the arguments or the input data are wrong: nothing has been started."""

    exit_code = 2


class ConfigError(InputError):
    """The job file cannot be run as it stands."""


class DataError(InputError):
    """Benchmark rows are missing, malformed or contradict themselves."""


class ModelError(InputError):
    """A model or tokenizer cannot be used as the job asks."""


class UnseenError(InputError):
    """What lies elsewhere has not been looked at: planning says so and goes on, a run does not."""


class ArtifactError(InputError):
    """The run folder holds something that this job would make untrue."""


class ResourceError(SirtError, RuntimeError):
    """The machine or the cluster cannot give what the job needs."""


class StorageError(SirtError, RuntimeError):
    """Object storage cannot be reached, refuses, or does not hold what it should."""


class StageError(SirtError, RuntimeError):
    """A stage failed while running. What was finished before it is kept."""


class BudgetSpentError(SirtError, RuntimeError):
    """What the job may spend is spent: it stops, and can be continued with a larger budget."""


def named(error: OSError, file: Path) -> OSError:
    """The error with the file's name, which nobody tells where a write fails and not an opening."""
    why = str(error) if error.errno is None else os.strerror(error.errno)
    return OSError(error.errno, why, str(file))
