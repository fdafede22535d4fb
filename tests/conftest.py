"""What the tests share: two threads at most, and small problems with known answers."""

import os
import platform
import shutil
import signal
import sys
from importlib.metadata import version
from pathlib import Path

# two test processes with two threads each on two cores: those that wait must not keep the others from their work
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from hypothesis import settings

COSTLY = {
    "test_bad_files",
    "test_cluster",
    "test_full_disk",
    "test_kill",
    "test_lock",
    "test_report",
    "test_security",
    "test_study_page",
}
settings.register_profile("default", deadline=None)  # shared machines stall now and then
settings.load_profile("default")
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background jobs ignore Ctrl-C, which tests press


def pytest_terminal_summary(terminalreporter):
    """Say which versions were tested."""
    names = ("torch", "numpy", "scipy", "scikit-learn", "plotly", "h5py", "pytest")
    found = [f"{name} {version(name)}" for name in names]
    terminalreporter.write_line(", ".join([f"Python {platform.python_version()}", *found]))


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config, log):
    """Keep together what shares something costly: the tests of a file of `COSTLY`, and all those of the lecture.

    Not by xdist's marks of groups: pytest 9.2 passes over them without a word.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = Path(nodeid.partition("::")[0]).stem
            return "lecture" if file.startswith("test_lecture") else file if file in COSTLY else nodeid

    return Together(config, log)


@pytest.fixture(scope="session")
def real_data():
    """The folder with MNIST and CIFAR-10, or a skip that says how to get it."""
    folder = os.environ.get("LANDSCAPE_DATA")
    if not folder:
        pytest.skip("LANDSCAPE_DATA does not name a folder with MNIST and CIFAR-10")
    return folder


@pytest.fixture(scope="module")
def scripts():
    """Let the scripts be imported as they see each other when they are run: `lecture`, `lecture_figures`."""
    folder = str(Path(__file__).parents[1] / "scripts")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)


@pytest.fixture(scope="session")
def lecture_folder(tmp_path_factory):
    """A function from a lecture figure, such as `"L7"`, to the folder where `--quick --data digits` stores it.

    Tests of the lecture run in one process, so that each figure is computed once.
    """
    out = tmp_path_factory.mktemp("lecture", numbered=False)

    def folder(key):
        path = out / "_runs" / "quick_without_mnist_without_cifar10" / key
        path.mkdir(parents=True, exist_ok=True)
        return path

    return folder


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, or a skip that says how to get one."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium: apt install chromium")
    with playwright.sync_playwright() as tool:
        chromium = tool.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()
