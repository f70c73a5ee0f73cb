"""Lists what is missing in a virtual environment. ops/bootstrap.sh runs this script with the environment's Python.

    wheels.py alone SPEC...   prints one line for each SPEC that is absent, of another version, or incomplete
    wheels.py deep SPEC...    does the same for each SPEC and all of its dependencies
    wheels.py cuda            prints the CUDA requirements in the metadata of the installed torch
    wheels.py forget          removes what a killed pip left behind: records of distributions that it did not finish
                              (pip can neither use nor uninstall them), and folders that it set aside

Every file listed in a distribution's RECORD must exist with the recorded size.
"""

import os
import shutil
import sys
from importlib import metadata
from pathlib import Path

import pip

# pip contains the packaging library, the only parser of requirements in the environment.
from pip._vendor.packaging.requirements import Requirement


def is_complete(distribution):
    """Returns True if pip finished this distribution (RECORD is written last) and its files are complete."""
    if distribution.read_text("RECORD") is None or distribution.read_text("METADATA") is None:
        return False
    for file in distribution.files:
        if file.size is None:  # byte code and RECORD itself
            continue
        try:
            if os.stat(file.locate()).st_size != file.size:
                return False
        except OSError:
            return False
    return True


def find(name):
    """Returns the installed distribution of this name, or None."""
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def satisfies(requirement, distribution):
    """Returns True if the distribution is installed, complete, and of a version that the requirement allows."""
    if distribution is None or not is_complete(distribution):
        return False
    return requirement.specifier.contains(distribution.version, prereleases=True)


def requirements_of(distribution, extras):
    """Yields the requirements of a distribution with the given extras on this machine."""
    for text in distribution.requires or []:
        requirement = Requirement(text)
        environments = [{"extra": extra} for extra in extras | {""}]
        if requirement.marker is None or any(requirement.marker.evaluate(e) for e in environments):
            yield requirement


def broken(specs, follow):
    """Yields every unsatisfied requirement among the specs and, if `follow`, among their dependencies."""
    waiting = [Requirement(spec) for spec in specs]
    seen = set()
    while waiting:
        requirement = waiting.pop(0)
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        distribution = find(requirement.name)
        if not satisfies(requirement, distribution):
            yield f"{requirement.name}{requirement.specifier}"
        if follow and distribution is not None and distribution.read_text("METADATA") is not None:
            waiting.extend(requirements_of(distribution, requirement.extras))


def cuda_requirements():
    """Yields the requirements of the installed torch that are NVIDIA's libraries."""
    for requirement in requirements_of(metadata.distribution("torch"), set()):
        if requirement.name.startswith("nvidia-") or requirement.name == "cuda-toolkit":
            requirement.marker = None
            yield str(requirement)


def forget():
    """Deletes *.dist-info folders without a RECORD and the `~name` folders of an interrupted uninstall."""
    site = Path(pip.__file__).parent.parent
    for folder in site.iterdir():
        unfinished = folder.suffix == ".dist-info" and not all((folder / f).exists() for f in ("RECORD", "METADATA"))
        if unfinished or folder.name.startswith("~"):
            shutil.rmtree(folder)


def main(command, *specs):
    if command == "cuda":
        lines = cuda_requirements()
    elif command == "forget":
        forget()
        lines = []
    else:
        lines = broken(specs, follow=command == "deep")
    for line in lines:
        print(line)


if __name__ == "__main__":
    main(*sys.argv[1:])
