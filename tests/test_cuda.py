"""What differs on a GPU; everything else runs there by the same code. Skipped where there is none."""

import numpy as np
import pytest
import torch

from landscape.curvature import extreme_eigenpairs
from landscape.directions import random_directions
from landscape.ensemble import train_many
from landscape.evaluation import evaluate, make_plan
from landscape.models import build
from landscape.objective import Objective
from landscape.program import whole_float32

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
FAMILIES = {"mlp": {}, "lenet": {}, "resnet": {"depth": 8}, "vgg": {}, "transformer": {}, "recurrent": {}}


def problem(name, device="cuda", n=300, **settings):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 1, 8, 8, generator=generator), torch.randint(0, 4, (n,), generator=generator)
    model = build(name, input_shape=[1, 8, 8], classes=4, seed=1, **FAMILIES[name])
    return Objective(model, (x, y), device=device, **settings)


@needs_gpu
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_a_surface_agrees_with_the_processor(name, engine):
    there, here = problem(name), problem(name, "cpu", dtype=torch.float64)
    plane = random_directions(here)
    options = {"resolution": (6, 5), "progress": False}
    expected = evaluate(here, plane, engine="reference", **options)
    found = evaluate(there, plane.to("cuda", torch.float32), engine=engine, **options)
    np.testing.assert_allclose(found.values["loss"], expected.values["loss"], rtol=1e-4)


@needs_gpu
def test_the_fast_plans_are_chosen_and_tuned_there():
    for name, plan in (("mlp", "dense"), ("lenet", "layered")):
        objective = problem(name, n=5000)
        assert make_plan(objective, random_directions(objective)).name == plan


@needs_gpu
def test_memory_is_that_of_the_card():
    objective = problem("mlp")
    plan = make_plan(objective, random_directions(objective), memory=10**15)
    allowed = float(next(note for note in plan.notes if note.startswith("memory")).split("way, ")[1].split()[0])
    assert allowed * 1e6 < torch.cuda.mem_get_info()[1]


@needs_gpu
def test_curvature_and_training():
    pairs = extreme_eigenpairs(problem("mlp"), k=2)
    expected = extreme_eigenpairs(problem("mlp", "cpu", dtype=torch.float64), k=2)
    np.testing.assert_allclose(pairs.values.cpu(), expected.values, rtol=1e-3)
    data = (torch.randn(64, 1, 8, 8), torch.arange(64) % 4)

    def on_gpu(seed):
        return build("mlp", input_shape=[1, 8, 8], classes=4, seed=seed).to("cuda")

    ensemble = train_many(on_gpu, data, seeds=range(3), epochs=3, progress=False)
    assert ensemble.thetas.is_cuda
    assert (ensemble.history["loss"][:, -1] < ensemble.history["loss"][:, 0]).all()


def test_products_are_whole_float32_whatever_torch_was_told():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")  # bf16 where the processor has it
    try:
        with whole_float32():
            assert (a @ b - exact).abs().max() < 1e-4
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
