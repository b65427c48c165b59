"""The errors that are addressed to the user.

Each error is also the standard library's error of its kind, so that `except ValueError` works, and
each can be pickled, because errors cross Ray's process boundaries. To add one: inherit from the
category and from the error of the standard library, and keep a single message argument.

A message states what is wrong, why it cannot work, and what to do.
"""

import os
from pathlib import Path


class SirtError(Exception):
    """Base of all errors that are addressed to the user. `exit_code` is that of the command."""

    exit_code = 1


class InputError(SirtError, ValueError):
    """The job file, the arguments or the input data are wrong; nothing has been started."""

    exit_code = 2


class ConfigError(InputError):
    """The job file cannot be run as it is."""


class DataError(InputError):
    """Benchmark rows are missing, malformed or contradict themselves."""


class ModelError(InputError):
    """A model or tokenizer cannot be used as the job requires."""


class UncheckedError(InputError):
    """Something outside this machine could not be checked: a plan reports it and continues, a run
    stops."""


class ArtifactError(InputError):
    """The run folder contains something that this job would make stale, or is in use."""


class ResourceError(SirtError, RuntimeError):
    """The machine or the cluster does not have the resources that the job needs."""


class StorageError(SirtError, RuntimeError):
    """Object storage cannot be reached, refuses, or does not contain what it should."""


class StageError(SirtError, RuntimeError):
    """A stage failed while running. The artifacts that were finished before are kept."""


class BudgetSpentError(SirtError, RuntimeError):
    """The job's budget is spent: it stops, and can be resumed with a larger budget."""


def named(error: OSError, file: Path) -> OSError:
    """Return the error with the file's name, which is missing where a write fails and not an
    open."""
    why = str(error) if error.errno is None else os.strerror(error.errno)
    return OSError(error.errno, why, str(file))
