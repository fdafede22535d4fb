import numpy as np
import pytest
import torch
from problems import EveryLayer, TwoParameters
from torch import nn

from landscape.parameters import filter_ids, is_weight, layout, tensor_ids


def filters_of(model: nn.Module, name: str, shape: tuple[int, ...]) -> list[list[tuple[int, ...]]]:
    """Written out by hand: for each filter of a parameter, the indices of its entries."""
    every = list(np.ndindex(shape))
    rows = {
        "linear.weight": 0,
        "one_output.weight": 0,
        "conv1d.weight": 0,
        "conv2d.weight": 0,
        "conv3d.weight": 0,
        "bilinear.weight": 0,
        "embedding.weight": 0,
        "attention.in_proj_weight": 0,
        "attention.out_proj.weight": 0,
        "lstm.weight_ih_l0": 0,
        "lstm.weight_hh_l0": 0,
        "positions": 1,
        "table": 0,
    }
    if name in rows:
        axis = rows[name]
        return [[i for i in every if i[axis] == row] for row in range(shape[axis])]
    if name.startswith("transposed") and name.endswith("weight"):
        module = model.get_submodule(name.split(".")[0])
        return filters_of_transposed(every, module)
    return []


def filters_of_transposed(every, module):
    """Output o of group g is fed by the input channels of g through column o - g * out/groups."""
    out_per_group = module.out_channels // module.groups
    in_per_group = module.in_channels // module.groups
    return [
        [i for i in every if i[0] // in_per_group == o // out_per_group and i[1] == o % out_per_group]
        for o in range(module.out_channels)
    ]


def test_filters_agree_with_lists_written_by_hand_for_every_layer():
    model = EveryLayer()
    chosen = layout(model)
    ids = filter_ids(model, chosen)
    start, seen = 0, set()
    for name, shape, size in zip(chosen.names, chosen.shapes, chosen.sizes, strict=True):
        found = ids[start : start + size].reshape(shape).numpy()
        start += size
        if name.startswith("weight_norm"):
            continue
        expected = filters_of(model, name, shape)
        if not expected:
            assert (found == -1).all(), name
            continue
        for entries in expected:
            (number,) = {int(found[i]) for i in entries}  # one number per filter
            assert number not in seen, f"{name}: two filters share a number"
            assert (found == number).sum() == len(entries), name
            seen.add(number)


def test_a_transposed_filter_is_what_changes_one_output_channel():
    layer = nn.ConvTranspose2d(6, 4, 2, groups=2, bias=False)
    ids = filter_ids(layer, layout(layer)).reshape(layer.weight.shape)
    x = torch.randn(1, 6, 3, 3)
    for o in range(4):
        changed = nn.ConvTranspose2d(6, 4, 2, groups=2, bias=False)
        changed.weight.data = layer.weight.data + (ids == ids.unique()[o])
        moved = (changed(x) - layer(x)).abs().sum(dim=(0, 2, 3)) > 1e-6
        assert moved.tolist() == [channel == o for channel in range(4)]


def test_weight_norm_is_looked_through():
    model = EveryLayer()
    chosen = layout(model)
    ids = dict(zip(chosen.names, torch.split(filter_ids(model, chosen), chosen.sizes), strict=True))
    direction = ids["weight_norm.parametrizations.weight.original1"].reshape(2, 3, 2)
    assert (direction == direction[:1, :, :1]).all()  # output channels lie along axis 1
    assert len(direction.unique()) == 3


def test_biases_and_norms_have_no_filters():
    model = EveryLayer()
    weight = is_weight(model, layout(model))
    without = {name for name, yes in weight.items() if not yes}
    assert {"norm.weight", "norm.bias", "batch_norm.weight", "scale", "linear.bias", "attention.bias_k"} <= without
    assert not {"linear.weight", "positions", "lstm.weight_hh_l0"} & without


def test_flatten_and_unflatten_are_inverse_in_named_parameters_order():
    model = EveryLayer()
    chosen = layout(model)
    theta = chosen.flatten(dict(model.named_parameters()))
    assert torch.equal(theta, nn.utils.parameters_to_vector(model.parameters()))
    for name, tensor in chosen.unflatten(theta).items():
        assert torch.equal(tensor, model.get_parameter(name))
    assert tensor_ids(chosen).bincount().tolist() == list(chosen.sizes)


def test_a_tied_parameter_counts_once():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    model[1].weight = model[0].weight
    assert layout(model).names == ("0.weight",)


def test_selection_by_pattern_and_by_gradient():
    model = EveryLayer()
    assert layout(model, "conv*.weight").names == ("conv1d.weight", "conv2d.weight", "conv3d.weight")
    assert layout(model, ["scale", "table"]).names == ("table", "scale")
    model.requires_grad_(False)
    model.linear.requires_grad_(True)
    assert layout(model, "trainable").names == ("linear.weight", "linear.bias")


def test_zero_and_one_dimensional_parameters():
    chosen = layout(TwoParameters(1.0, 2.0))
    assert chosen.shapes == ((), (1,))
    assert chosen.flatten(dict(TwoParameters(1.0, 2.0).named_parameters())).tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layout(nn.Linear(2, 2), "conv*"), "matches no parameter; the model has: weight, bias"),
        (lambda: layout(nn.Linear(2, 2)).unflatten(torch.zeros(5)), r"expected \(6,\)"),
        (lambda: layout(nn.Linear(2, 2)).flatten({"weight": torch.zeros(2, 2)}), "'bias' is missing"),
        (lambda: layout(nn.Linear(2, 2)).flatten({"weight": torch.zeros(3, 2)}), r"shape \(3, 2\), expected \(2, 2\)"),
    ],
)
def test_wrong_shapes_and_names_are_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_parameters_that_cannot_be_perturbed_are_refused():
    with pytest.raises(TypeError, match="not initialized"):
        layout(nn.LazyLinear(3))
    with pytest.raises(TypeError, match="real"):
        layout(nn.Linear(2, 2, dtype=torch.complex64))
