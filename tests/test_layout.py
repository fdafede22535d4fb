"""The architecture, enforced: a module imports only from modules above it, and half of the package is torch-free."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import landscape

PACKAGE = Path(landscape.__file__).parent

# From top to bottom: each may import those before it. Lines are the stages of the data's way through the package.
ORDER = [
    *("arguments", "contents", "output", "storage", "lock", "interruption", "rows", "parameters", "workers", "cluster"),
    *("data.trees", "data.formats", "data.files", "data.sets", "data.batches", "data"),
    *("losses", "program", "objective", "gradients", "differences", "checkpoint", "shards", "trajectory", "recorder"),
    *("optimizers", "session", "training", "stack", "group", "ensemble"),
    *("computation", "backpropagation"),
    *("slice", "directions"),
    *("surface", "sanity", "study"),
    *("topology.tree", "topology.noise", "topology.result", "topology.analysis", "topology.descents", "topology"),
    *("evaluation.grid", "evaluation.graph", "evaluation.kernel", "evaluation.narrow", "evaluation.stage"),
    *(
        "evaluation.layers",
        "evaluation.passes",
        "evaluation.reference",
        "evaluation.memory",
        "evaluation.dense",
        "evaluation.layered",
    ),
    *("evaluation.preview", "evaluation.tuning", "evaluation.plan", "evaluation.question", "evaluation.audit"),
    *("evaluation.spread", "evaluation.run", "evaluation"),
    *("hessian", "lanczos", "curvature", "critical", "restarts"),
    *("symmetry.units", "symmetry.layers", "symmetry.follow", "symmetry.group", "symmetry.alignment", "symmetry"),
    *("barriers", "connectivity", "minima.identify", "minima.newton", "minima.polish", "minima.certify"),
    *("catalog", "minima.survey"),
    "minima",
    *("interchange", "mesh"),
    *("statistics.tables", "statistics.volumes", "statistics.hits", "statistics.samples", "statistics.comparison"),
    *("statistics.overlap", "statistics.variation", "statistics"),
    *("figures.style", "figures.page", "figures.image", "figures.grid", "figures.marks", "figures.contour"),
    *("figures.line", "figures.surface3d", "figures.volume", "figures.basins", "figures.minima"),
    *("figures.persistence", "figures.merge_tree", "figures.minima_count", "figures.topology"),
    "figures.*",
    *("figures", "comparison.finding", "comparison.runs", "comparison.training", "comparison.minima", "comparison"),
    *("report", "demo"),
    *("cli.texts", "cli.networks", "cli.studies", "cli.files", "cli.topology", "cli", "__main__"),
]
TORCH_FREE = [
    *(
        "contents",
        "storage",
        "lock",
        "rows",
        "computation",
        "surface",
        "sanity",
        "study",
        "catalog",
        "topology",
        "barriers",
        "statistics",
    ),
    *("interchange", "mesh", "figures", "comparison", "report"),
]
USE_MODELS = {"demo", "cli.networks"}


def place(module: str) -> int:
    if module in ORDER:
        return ORDER.index(module)
    return ORDER.index(f"{module.split('.')[0]}.*")


def imports(source: str) -> set[str]:
    """The modules of the package that a source imports, `figures.style` for `landscape.figures.style`."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    inside = {name.removeprefix("landscape.") for name in names if name.startswith("landscape.")}
    return {name for name in inside if is_module(name)}


def is_module(name: str) -> bool:
    path = PACKAGE / name.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def violations(module: str, source: str) -> list[str]:
    found = []
    for name in imports(source):
        if name == "models" or name.startswith("models."):
            if module not in USE_MODELS:
                found.append(f"{module} imports {name}")
        elif name != module and not module.startswith(f"{name}.") and place(name) >= place(module):
            found.append(f"{module} imports {name}, which comes after it")
    return found


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] != "models" and parts != ("__init__",):
            yield ".".join(parts).removesuffix(".__init__"), path


@pytest.mark.parametrize(("module", "path"), list(modules()))
def test_a_module_imports_only_from_modules_above_it(module, path):
    assert violations(module, path.read_text()) == []


def test_every_module_has_a_place_and_every_place_a_module():
    names = {module for module, _ in modules()}
    assert {name for name in ORDER if not name.endswith("*")} <= names
    for name in names:
        place(name)


def test_the_check_can_fail():
    assert violations("storage", "from landscape.surface import Surface")
    assert violations("surface", "import landscape.figures")
    assert violations("objective", "from landscape import directions")
    assert violations("objective", "def f():\n    from landscape.models import build")
    assert not violations("directions", "from landscape.objective import Objective\nimport numpy")


def loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


@pytest.mark.parametrize("module", TORCH_FREE)
def test_stored_results_are_read_and_drawn_without_torch(module):
    assert "torch" not in loaded_after(f"import landscape.{module}")


def test_importing_the_package_is_light():
    heavy = {"torch", "numpy", "scipy", "sklearn", "plotly", "h5py"}
    assert not heavy & loaded_after("import landscape")
    assert "torch" in loaded_after("import landscape\nlandscape.Objective")  # this check can fail, too


def test_everything_offered_exists():
    for name in landscape.__all__:
        assert getattr(landscape, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        landscape.nothing  # noqa: B018


def test_models_import_torch_only():
    for path in (PACKAGE / "models").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in names:
                assert name.split(".")[0] in {*sys.stdlib_module_names, "torch"}, f"{path.name} imports {name}"
