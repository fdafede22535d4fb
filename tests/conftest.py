"""What the tests share: two threads at most, and small problems with known answers."""

import os

import pytest
import torch
from hypothesis import settings

settings.register_profile("default", deadline=None)  # shared machines stall now and then
settings.load_profile("default")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data():
    """The folder with MNIST and CIFAR-10, or a skip that says how to get it."""
    folder = os.environ.get("LANDSCAPE_DATA")
    if not folder:
        pytest.skip("LANDSCAPE_DATA does not name a folder with MNIST and CIFAR-10")
    return folder
