"""The first stage at many points: against plain formulas, and compiled as not compiled."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from landscape.evaluation import stage

compiled = pytest.mark.skipif(not stage.available(), reason="numba, the extra `fast`, is not installed")


def responses_of(places=4, k=2, shape=(3, 5, 7, 7), dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    responses = torch.randn(places, k + 1, *shape, generator=generator, dtype=torch.float64).to(dtype)
    coordinates = torch.randn(6, k, generator=generator, dtype=torch.float64).tolist()
    return responses, coordinates


def added(responses, coordinates, relu, by_numba):
    out = torch.full((len(coordinates), *responses.shape[2:]), 7.0, dtype=responses.dtype)
    stage.add_up(responses, coordinates, out, relu, by_numba)
    return out


@pytest.mark.parametrize("by_numba", [False, pytest.param(True, marks=compiled)])
@settings(deadline=None, max_examples=40)
@given(
    places=st.sampled_from([1, 4, 9]),
    k=st.integers(1, 3),
    n=st.integers(1, 1100),
    relu=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_responses_add_up_to_the_largest_of_affine_functions(by_numba, places, k, n, relu, dtype):
    responses, coordinates = responses_of(places, k, (n,), dtype)
    found = added(responses, coordinates, relu, by_numba)
    for i, point in enumerate(coordinates):
        weights = torch.tensor([1.0, *point], dtype=torch.float64)
        expected = torch.einsum("j,qjn->qn", weights, responses.double()).amax(dim=0)
        expected = expected.clamp(min=0) if relu else expected
        torch.testing.assert_close(found[i].double(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-13)


@compiled
@pytest.mark.parametrize("places", [1, 4])
@pytest.mark.parametrize("relu", [False, True])
def test_nan_and_infinity_go_through_as_in_torch(places, relu):
    responses, coordinates = responses_of(places)
    flat = responses.view(-1)
    where = torch.randperm(len(flat), generator=torch.Generator().manual_seed(1))
    flat[where[:40]], flat[where[40:80]], flat[where[80:120]] = torch.nan, torch.inf, -torch.inf
    plain, by_numba = (added(responses, coordinates, relu, numba) for numba in (False, True))
    assert plain.isnan().any()
    assert plain.isinf().any()
    torch.testing.assert_close(by_numba, plain, equal_nan=True, rtol=0, atol=1e-5)


@compiled
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(3, 4, 10, 10), (2, 16, 7, 9), (1, 1, 2, 3), (5, 3, 3, 8)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pooling_equals_torchs_in_every_digit_and_layout(relu, shape, layout, dtype):
    x = torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    x.view(-1)[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    x = x.contiguous(memory_format=layout)
    assert stage.can_pool(x)
    found, expected = stage.pool(x, relu), F.max_pool2d(x, 2)
    torch.testing.assert_close(found, expected.relu() if relu else expected, equal_nan=True, rtol=0, atol=0)
    assert found.is_contiguous(memory_format=layout)


def test_what_cannot_be_pooled_by_numba():
    x = torch.zeros(2, 4, 6, 6)
    assert not stage.can_pool(x[:, :, 1:])
    assert not stage.can_pool(x.bfloat16())
    assert not stage.can_pool(x.flatten(1))


@compiled
def test_the_number_of_threads_does_not_change_a_digit(monkeypatch):
    responses, coordinates = responses_of(shape=(5, 700))
    x = torch.randn(7, 4, 8, 8)
    before = torch.get_num_threads()
    monkeypatch.setattr(stage, "_FOR_A_THREAD", 1)
    called = []
    team = stage._team
    monkeypatch.setattr(stage, "_team", lambda *arguments: called.append(arguments) or team(*arguments))
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append((added(responses, coordinates, True, True), stage.pool(x, False)))
    finally:
        torch.set_num_threads(before)
    assert [threads for threads, _ in called] == [3] * len(called) != []
    for one, three in zip(*found, strict=True):
        assert torch.equal(one, three)


@compiled
def test_where_no_folder_can_be_written_it_is_compiled_all_the_same(monkeypatch):
    import numba

    njit = numba.njit

    def nowhere(function, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(function, **options)

    monkeypatch.setattr(numba, "njit", nowhere)
    x = np.arange(16.0).reshape(1, 4, 4)
    out = np.empty((1, 2, 2))
    stage.kernel.__wrapped__(stage._pool_planes)(x, False, out, 0, 1)
    np.testing.assert_array_equal(out, [[[5, 7], [13, 15]]])


def test_without_numba(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    assert not stage.available()
