import copy
import json
import os
import pickle
import stat
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from landscape import checkpoint
from landscape.checkpoint import Checkpoint, load_state, match_state, read, save


def small_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2, bias=False))
    model(torch.randn(8, 3))  # running statistics that are not the initial ones
    return model


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.norm = nn.LayerNorm(3)
        self.decoder = nn.Linear(3, 5, bias=False)
        self.decoder.weight = self.embedding.weight


def assert_same_state(a, b):
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name]), name


def assert_filled(model, source):
    """Loading `source` into a differently initialized copy of `model` makes it equal to `model`."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.fill_(7)
    load_state(other, source)
    assert_same_state(model.state_dict(), other.state_dict())


def test_round_trip_keeps_values_types_order_and_record(tmp_path):
    model = small_net()
    model.half_matrix = nn.Parameter(torch.randn(3, 5).half().t())  # another type, not contiguous
    path = tmp_path / "new" / "a.safetensors"
    save(path, model, name="mlp", arguments={"widths": (4,)}, info={"loss": 0.25, "note": "é"})
    stored = read(path)
    assert_same_state(model.state_dict(), stored.state)
    assert (stored.name, stored.arguments, stored.info) == ("mlp", {"widths": [4]}, {"loss": 0.25, "note": "é"})
    assert_filled(model, path)
    assert_filled(model, stored)


def test_tied_parameters_are_stored_once_and_stay_tied(tmp_path):
    model, path = Tied(), tmp_path / "tied.safetensors"
    save(path, model)
    with safe_open(path, "pt") as file:
        assert sorted(file.keys()) == ["embedding.weight", "norm.bias", "norm.weight"]
    stored = read(path)
    assert list(stored.state) == list(model.state_dict())
    other = Tied()
    load_state(other, path)
    assert torch.equal(other.embedding.weight, model.embedding.weight)
    assert other.decoder.weight is other.embedding.weight
    # Safetensors' own loader follows the same aliases.
    third = Tied()
    safetensors.torch.load_model(third, path)
    assert torch.equal(third.decoder.weight, model.embedding.weight)


def test_tied_parameters_from_files_of_others(tmp_path):
    model = Tied()
    torch.save(model.state_dict(), tmp_path / "both.pt")
    safetensors.torch.save_model(model, str(tmp_path / "alias.safetensors"))
    without = {name: t for name, t in model.state_dict().items() if name != "embedding.weight"}
    torch.save(without, tmp_path / "one.pt")
    for name in ("both.pt", "alias.safetensors"):
        state = read(tmp_path / name).state
        assert state["embedding.weight"].data_ptr() == state["decoder.weight"].data_ptr()
    for name in ("both.pt", "alias.safetensors", "one.pt"):
        assert_filled(model, tmp_path / name)


def test_an_untied_checkpoint_does_not_fit_a_tied_network():
    state = {name: tensor.clone() for name, tensor in Tied().state_dict().items()}
    for name in ("embedding.weight", "decoder.weight"):
        state[name][0, 0] = torch.nan  # of a run that diverged
    load_state(Tied(), state)
    state["decoder.weight"] += 1
    with pytest.raises(ValueError, match=r"embedding.weight and decoder.weight are one tensor"):
        load_state(Tied(), state)


def test_views_of_one_storage_are_not_taken_for_tied(tmp_path):
    model, memory = nn.Module(), torch.arange(6.0)
    model.a, model.b = nn.Parameter(memory[:4]), nn.Parameter(memory[2:])
    save(tmp_path / "views.safetensors", model)
    assert_same_state(model.state_dict(), read(tmp_path / "views.safetensors").state)


def test_save_replaces_whole_files_only(tmp_path):
    path = tmp_path / "a.safetensors"
    save(path, small_net(0))
    before = path.read_bytes()
    with pytest.raises(TypeError, match="JSON"):
        save(path, small_net(1), info={"values": torch.ones(2)})
    with pytest.raises(ValueError, match=r"\.safetensors"):
        save(tmp_path / "a.pt", small_net(1))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert stat.S_ISREG(path.stat().st_mode)


def test_save_refuses_what_it_cannot_store(tmp_path):
    with pytest.raises(TypeError, match="not initialized"):
        save(tmp_path / "a.safetensors", nn.LazyLinear(2))
    with pytest.raises(TypeError, match="meta"):
        save(tmp_path / "a.safetensors", nn.Linear(2, 2, device="meta"))

    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"scale": 1}

        def set_extra_state(self, state):
            pass

    with pytest.raises(TypeError, match="_extra_state"):
        save(tmp_path / "a.safetensors", Extra(2, 2))


@pytest.mark.parametrize(
    ("file", "wrap"),
    [
        ("plain.pt", lambda state: state),
        ("plain.pth", dict),
        ("nested.pt", lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"state": {0: torch.ones(3)}}}),
        ("nested.bin", lambda state: {"model_state_dict": state, "epoch": 3}),
        ("nested.ckpt", lambda state: {"model": state, "epoch": 3}),
    ],
)
def test_reads_what_torch_saved(tmp_path, file, wrap):
    model = small_net()
    torch.save(wrap(model.state_dict()), tmp_path / file)
    stored = read(tmp_path / file)
    assert_same_state(model.state_dict(), stored.state)
    assert stored.info == ({"epoch": 3} if "nested" in file else {})
    assert stored.name is None
    assert_filled(model, tmp_path / file)


def test_reads_old_torch_files_and_safetensors_of_any_suffix(tmp_path):
    model = small_net()
    torch.save(model.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "weights.bin")
    assert_filled(model, tmp_path / "old.pt")
    assert_filled(model, tmp_path / "weights.bin")
    assert read(tmp_path / "weights.bin").info == {}


@pytest.mark.filterwarnings("ignore")  # Lightning's own
def test_reads_a_lightning_checkpoint(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self, width):
            super().__init__()
            self.save_hyperparameters()
            self.net = small_net()
            self.loss = nn.CrossEntropyLoss(weight=torch.ones(2))

        def training_step(self, batch, index):
            return self.loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    module = Module(width=4)
    trainer = lightning.Trainer(
        max_steps=2,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    data = torch.utils.data.TensorDataset(torch.randn(8, 3), torch.zeros(8, dtype=torch.long))
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=4))
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    assert_filled(module.net, tmp_path / "run.ckpt")
    assert_filled(module, tmp_path / "run.ckpt")
    assert read(tmp_path / "run.ckpt").info["global_step"] == 2


def test_nothing_depends_on_the_file_after_reading(tmp_path):
    model, path = small_net(), tmp_path / "a.pt"
    for write in (torch.save, safetensors.torch.save_file):
        write(model.state_dict(), path)
        stored = read(path)
        with open(path, "rb+") as file:
            file.write(bytes(os.path.getsize(path)))
        assert_same_state(model.state_dict(), {name: stored.state[name] for name in model.state_dict()})


class Evil:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, new_format):
    trace = tmp_path / "trace"
    for content in (Evil(trace), {"state_dict": {"0.weight": torch.ones(2)}, "callbacks": Evil(trace)}):
        torch.save(content, tmp_path / "evil.pt", _use_new_zipfile_serialization=new_format)
        with pytest.raises(ValueError, match=r"could run code.*torch\.save\(model\.state_dict\(\)"):
            read(tmp_path / "evil.pt")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil(trace)))
    with pytest.raises(ValueError, match="evil"):
        read(tmp_path / "evil.pt")
    assert not trace.exists()
    pickle.loads(pickle.dumps(Evil(trace)))  # the trap works
    assert trace.exists()


def test_whole_models_are_refused(tmp_path):
    torch.save(small_net(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"torch\.save\(model\.state_dict\(\)"):
        read(tmp_path / "model.pt")


def test_files_without_a_state_dict(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(torch.ones(3), path)
    with pytest.raises(ValueError, match="holds a Tensor, expected a state dict"):
        read(path)
    torch.save({"weights": {"a": torch.ones(3)}, "epoch": 1}, path)
    with pytest.raises(ValueError, match=r"a\.pt: no tensors found; it holds 'weights', 'epoch'"):
        read(path)
    torch.save({}, path)
    with pytest.raises(ValueError, match="no tensors found"):
        read(path)


def test_missing_empty_and_foreign_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.pt"):
        read(tmp_path / "a.pt")
    with pytest.raises(ValueError, match="folder"):
        read(tmp_path)
    (tmp_path / "empty.pt").touch()
    with pytest.raises(ValueError, match="empty"):
        read(tmp_path / "empty.pt")
    (tmp_path / "text.pt").write_text("not a network")
    with pytest.raises(ValueError, match="no checkpoint"):
        read(tmp_path / "text.pt")
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors", metadata={"landscape": "[1]"})
    with pytest.raises(ValueError, match="metadata"):
        read(tmp_path / "a.safetensors")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files(tmp_path, kind):
    whole, path = tmp_path / "whole", tmp_path / "cut.pt"
    if kind == "safetensors":
        safetensors.torch.save_file(small_net().state_dict(), whole)
    else:
        torch.save(small_net().state_dict(), whole, _use_new_zipfile_serialization=kind == "zip")
    content = whole.read_bytes()
    for length in sorted({1, 2, 8, 9, 10, *range(20, len(content), 61), len(content) - 1}):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.pt"):
            read(path)


@given(head=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04}", b"\x10\0\0\0\0\0\0\0{"]), tail=st.binary())
def test_garbage_is_a_value_error(tmp_path_factory, head, tail):
    path = tmp_path_factory.getbasetemp() / "garbage.pt"
    path.write_bytes(head + tail)
    with pytest.raises(ValueError, match=r"garbage\.pt"):
        read(path)


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.compile,
        lambda model: nn.DataParallel(torch.compile(model)),
        lambda model: nn.ModuleDict({"net": model, "teacher": nn.Linear(3, 4), "loss": nn.BatchNorm1d(4)}),
        lambda model: nn.ModuleDict({"a": nn.ModuleDict({"b": model})}),
    ],
)
def test_prefixes_are_found(wrap):
    model = small_net()
    wrapped = wrap(model)
    assert next(iter(wrapped.state_dict())) != "0.weight"
    assert_filled(model, wrapped.state_dict())


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda m: nn.DataParallel(torch.compile(m))])
def test_a_wrapped_network_takes_bare_and_wrapped_entries(wrap):
    state = small_net(1).state_dict()
    for entries in (state, nn.DataParallel(small_net(1)).state_dict(), torch.compile(small_net(1)).state_dict()):
        model = small_net(0)
        load_state(wrap(model), entries)
        assert_same_state(model.state_dict(), state)


names = st.lists(st.sampled_from(["a", "b", "model", "net", "module"]), min_size=1, max_size=3).map(".".join)


@given(
    own=st.sets(names, min_size=1, max_size=5),
    prefix=st.lists(st.sampled_from(["model", "net", "module", "_orig_mod", "x"]), max_size=3),
    foreign=st.sets(names, max_size=3),
)
def test_matching_undoes_any_prefix(own, prefix, foreign):
    own, prefix = sorted(own), "".join(f"{part}." for part in prefix)
    state = {prefix + name: torch.full((i + 1,), float(i)) for i, name in enumerate(own)}
    if prefix:  # entries that do not lie under the prefix, of shapes that fit nowhere
        state |= {f"y.{name}": torch.ones(99) for name in foreign}
    expected = {name: (i + 1,) for i, name in enumerate(own)}
    found = match_state(state, expected)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        name: [float(i)] * (i + 1) for i, name in enumerate(own)
    }


@pytest.mark.parametrize("shared", [False, True])
def test_counters_of_batch_norm_may_be_missing(shared):
    model, other = small_net(0), small_net(1)
    if shared:  # a module that is used twice: its counter is tied
        model.append(model[1])
        other.append(other[1])
    state = {name: t for name, t in model.state_dict().items() if "num_batches" not in name}
    load_state(other, state)
    assert_same_state(model.state_dict(), other.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "3.weight"}, r"missing: 3\.weight\. Build"),
        (lambda s: {f"net.{k}": v for k, v in s.items() if k != "3.weight"}, r"missing: net\.3\.weight\. Build"),
        (lambda s: s | {"0.weight": torch.ones(9, 3)}, r"of another shape: 0\.weight \(9, 3\) for \(4, 3\)"),
        (lambda s: s | {"4.weight": torch.ones(1)}, r"not in the network: 4\.weight"),
        (lambda s: s | {f"ema.{k}": v + 1 for k, v in s.items()}, r"not in the network: ema\.0\.weight, .* and 3 more"),
        (
            lambda s: {f"{part}.{k}": v for part in ("student", "teacher") for k, v in s.items()},
            r"more than once, under 'student\.', 'teacher\.'",
        ),
        (
            lambda s: {"x": torch.ones(2)},
            r"missing: 0\.weight, (\S+, ){3}\S+ and 2 more; not in the network: x\. Build",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_changed(change, message):
    model = small_net(0)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        load_state(model, change(small_net(1).state_dict()))
    assert_same_state(before, model.state_dict())


def test_shapes_decide_between_two_prefixes():
    state = {
        "a.weight": torch.zeros(2, 3),
        "a.bias": torch.zeros(2),
        "b.weight": torch.ones(4, 3),
        "b.bias": torch.ones(4),
    }
    layer = nn.Linear(3, 4)
    load_state(layer, state)
    assert torch.equal(layer.weight, torch.ones(4, 3))


def test_loading_casts_to_the_network_and_keeps_gradients_off(tmp_path):
    model, source = small_net(0).double(), small_net(1)
    load_state(model, source.state_dict())
    assert model[0].weight.dtype == torch.float64
    assert torch.equal(model[0].weight, source[0].weight.double())
    assert model[0].weight.requires_grad
    assert model[0].weight.grad_fn is None


def test_the_record_is_plain_json_in_the_metadata(tmp_path):
    save(tmp_path / "a.safetensors", small_net(), name="mlp", info={"seed": 1})
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        record = json.loads(file.metadata()["landscape"])
    assert (record["name"], record["info"]) == ("mlp", {"seed": 1})
    assert isinstance(read(tmp_path / "a.safetensors"), Checkpoint)
    assert checkpoint.first_names({"a": torch.empty(0), "b": torch.empty(0)}) == {"a": "a", "b": "b"}
