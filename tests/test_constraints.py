"""What `make test-oldest` installs are the oldest versions that pyproject.toml allows."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOOLS = {"ruff", "mypy", "build"}  # they judge the source, whatever it runs with
EXTRAS = ("images", "export", "fast", "graph", "cluster", "xarray", "lecture", "test")


def floors(project):
    extras = project["optional-dependencies"]
    required = [*project["dependencies"], *(name for extra in EXTRAS for name in extras[extra])]
    found = [re.fullmatch(r"([\w.-]+)>=([\d.]+)", name) for name in required if not name.startswith("landscape[")]
    return {match[1]: numbers(match[2]) for match in found if match[1] not in TOOLS}


def pinned(text):
    return {name: numbers(version) for name, version in re.findall(r"^([\w.-]+)==([\d.]+)", text, re.MULTILINE)}


def numbers(version):
    """1.26 is 1.26.0."""
    parts = tuple(map(int, version.split(".")))
    return (*parts, 0, 0)[:3]


def test_the_constraints_are_the_floors():
    allowed = floors(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"])
    held = pinned((ROOT / "constraints-oldest.txt").read_text())
    assert len(allowed) > 25
    assert {name: held.get(name) for name in allowed} == allowed


def test_another_version_would_be_seen():
    project = {
        "dependencies": ["numpy>=1.26"],
        "optional-dependencies": {name: ["ruff>=0.9", "h5py>=3"] for name in EXTRAS},
    }
    assert floors(project) == {"numpy": (1, 26, 0), "h5py": (3, 0, 0)}
    assert pinned("numpy==1.26.1\nh5py==3.0  # why\n# scipy==1.0\n") == {"numpy": (1, 26, 1), "h5py": (3, 0, 0)}
