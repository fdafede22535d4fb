"""The preview in bf16: how wrong it is, that it says so everywhere, and that it is never taken for the real thing."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from problems import class_data, randomize
from torch import Tensor, nn
from torch.nn import functional as F

from landscape import figures
from landscape.cli import main
from landscape.directions import random_directions
from landscape.evaluation import evaluate, make_plan
from landscape.evaluation import plan as plan_module
from landscape.evaluation.preview import preview_error
from landscape.models import build
from landscape.objective import Objective
from landscape.report import page, surface_sections
from landscape.sanity import findings, preview_note
from landscape.surface import ProjectedTrajectory, Surface, empty_surface

IMAGES = class_data(40, (1, 8, 8), 4)
ROWS = class_data(40, (12,), 4)
POINTS = np.array([[0.0, 0.0], [1.0, 1.0], [0.3, -0.4]])
FAMILIES = {"mlp": True, "lenet": True, "resnet": True, "recurrent": False, "transformer": True}  # traceable?


def small(dtype=None, **options):
    model = randomize(nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 4)))
    return Objective(model, ROWS, dtype=dtype, **options)


def subtitle(figure):
    return (figure.layout.title.subtitle.text or "").replace("<br>", " ")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_near_float64_and_states_its_measured_error(name):
    arguments = {"depth": 8} if name == "resnet" else {}
    model = build(name, input_shape=(1, 8, 8), classes=4, seed=0, **arguments)
    objective = Objective(model, IMAGES, test=tuple(part[:13] for part in IMAGES))
    plane = random_directions(objective)
    plan = make_plan(objective, plane, engine="preview", ranges=np.array([[-1, 1], [-1, 1]]))
    wide = make_plan(objective.to(dtype=torch.float64), plane.to(dtype=torch.float64), engine="reference")
    found, expected = plan.values(POINTS), wide.values(POINTS)
    assert found.keys() == expected.keys()
    for metric in ("loss", "test_loss"):
        np.testing.assert_allclose(found[metric], expected[metric], rtol=0.05)
    errors = np.abs(found["loss"] / expected["loss"] - 1)
    assert errors.max() > 1e-6  # float32 would be nearer
    assert list(plan.settings["preview_error"].values()) == pytest.approx(errors[:2], rel=1e-3, abs=1e-6)
    assert plan.name == "preview"
    assert not plan.rechecked
    assert f"relative error of the loss, measured: {plan.settings['preview_error']['center']:.1e}" in plan.describe()
    assert ("layers are not rewritten" not in plan.describe()) == FAMILIES[name]


def test_it_is_what_a_network_in_bf16_gives():
    objective = small()
    plan = make_plan(objective, random_directions(objective), engine="preview")
    narrow = randomize(nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 4))).bfloat16()
    with torch.no_grad():
        expected = F.cross_entropy(narrow(ROWS[0].bfloat16()).float(), ROWS[1]).item()
    found = plan.values(POINTS[:1])["loss"][0]
    assert found == pytest.approx(expected, rel=1e-3)
    exact = objective.evaluate(objective.origin)["loss"]
    assert abs(found - exact) > 1e-6 * exact


def test_a_float64_network_is_previewed_in_bf16_too():
    objective = small(torch.float64)
    plane = random_directions(objective)
    plan = make_plan(objective, plane, engine="preview")
    error = plan.settings["preview_error"]["corner"]
    assert 1e-5 < error < 0.05
    assert objective.dtype == plane.origin.dtype == torch.float64  # not changed


def test_losses_are_computed_in_float32():
    seen = set()

    def loss(output, target):
        product = output @ torch.eye(4)
        seen.update((output.dtype, product.dtype))
        return F.cross_entropy(product, target)

    objective = small(loss=loss)
    seen.clear()
    make_plan(objective, random_directions(objective), engine="preview").values(POINTS)
    assert seen == {torch.float32}


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@pytest.mark.parametrize("container", [lambda h: {"logits": h}, lambda h: Pair(h, h), lambda h: [h, h], lambda h: (h,)])
def test_outputs_in_containers(container):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(12, 4)

        def forward(self, x):
            return container(self.net(x))

    def loss(output, target):
        assert isinstance(output, type(container(target)))
        (logits, *_) = output.values() if isinstance(output, dict) else output
        assert logits.dtype == torch.float32
        return F.cross_entropy(logits, target)

    objective = Objective(randomize(Wrapped()), ROWS, loss=loss, metrics={})
    plan = make_plan(objective, random_directions(objective), engine="preview")
    assert 0 < plan.settings["preview_error"]["center"] < 0.05


def test_a_network_that_bf16_cannot_serve_is_refused_with_the_remedy():
    class ThroughNumpy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(12, 4)

        def forward(self, x):
            return torch.from_numpy(np.tanh(self.net(x).numpy()))

    objective = Objective(ThroughNumpy(), ROWS)
    plane = random_directions(objective)
    with pytest.raises(ValueError, match=r"cannot be evaluated in bf16 \(.*BFloat16.*engine='auto'"):
        make_plan(objective, plane, engine="preview")
    assert make_plan(objective, plane).name == "reference"


def test_rewrites_that_are_wrong_or_fail_are_not_previewed(monkeypatch):
    objective = Objective(build("lenet", input_shape=(1, 8, 8), classes=4, seed=0), IMAGES)
    plane = random_directions(objective)
    right = plan_module.Layered.values

    def wrong(self, coordinates):
        return {name: 1.1 * values for name, values in right(self, coordinates).items()}

    monkeypatch.setattr(plan_module.Layered, "values", wrong)
    plan = make_plan(objective, plane, engine="preview")
    assert "differ from the reference by" in plan.describe()
    assert plan.settings["preview_error"]["center"] < 0.05
    monkeypatch.setattr(plan_module.Layered, "values", None)
    assert "layers are not rewritten: 'NoneType'" in make_plan(objective, plane, engine="preview").describe()


@pytest.mark.parametrize("policy", ["recalibrated", "batch"])
def test_other_batch_norm_policies(policy):
    model = build("resnet", input_shape=(1, 8, 8), classes=4, seed=0, depth=8)
    objective = Objective(model, IMAGES, batch_norm=policy)
    plane = random_directions(objective)
    preview, exact = (make_plan(objective, plane, engine=engine).values(POINTS) for engine in ("preview", "reference"))
    np.testing.assert_allclose(preview["loss"], exact["loss"], rtol=0.05)
    assert (preview["loss"] != exact["loss"]).all()


def test_values_that_are_not_finite():
    places = {"loss": np.array([np.nan, 1.0])}, {"loss": np.array([np.nan, np.inf])}
    assert preview_error(*places) == {"center": 0.0, "corner": None}
    assert preview_error({"loss": np.array([1.1, 2.0])}, {"loss": np.array([1.0, 2.5])}) == pytest.approx(
        {"center": 0.1, "corner": 0.2}
    )
    surface = empty_surface({"x": np.linspace(-1, 1, 3)}, ["loss"])
    surface.provenance["plan"] = {"preview_error": {"center": 0.0123, "corner": None}}
    assert preview_note(surface).startswith("preview in bf16: relative error 1.2 % at the center, without limit")


class TestInASurface:
    def test_it_is_kept_in_the_file_and_continued_with_the_same_digits(self, tmp_path):
        objective = small()
        plane = random_directions(objective)
        path = tmp_path / "a.h5"
        whole = evaluate(objective, plane, resolution=(7, 5), path=path, progress=False, engine="preview")
        stored = Surface.load(path).provenance["plan"]
        assert stored["name"] == "preview"
        assert stored["preview_error"] == whole.provenance["plan"]["preview_error"]
        exact = evaluate(objective, plane, resolution=(7, 5), progress=False)
        error = np.abs(whole.values["loss"] / exact.values["loss"] - 1)
        assert 1e-5 < error.max() < 0.05  # beyond what other plans are allowed
        again = make_plan(objective, plane, engine="preview", stored=stored)
        assert again.settings == {key: stored[key] for key in again.settings}
        part = evaluate(objective, plane, axes=list(whole.axes.values()), path=path, progress=False, engine="preview")
        np.testing.assert_array_equal(part.values["loss"], whole.values["loss"])

    def test_it_is_never_mixed_with_a_real_surface(self, tmp_path):
        objective = small()
        plane = random_directions(objective)
        for engine, others in (("preview", ("auto", "reference")), ("auto", ("preview",))):
            path = tmp_path / f"{engine}.h5"
            evaluate(objective, plane, resolution=3, path=path, progress=False, engine=engine)
            before = path.read_bytes()
            for other in others:
                with pytest.raises(ValueError, match=r"begun as a preview in bf16.*another file name"):
                    evaluate(objective, plane, resolution=3, path=path, progress=False, engine=other)
            assert path.read_bytes() == before


def stored_surface(k, preview):
    axes = {name: np.linspace(-1, 1, n) for name, n in zip("xyz"[:k], (5, 7, 4), strict=False)}
    surface = empty_surface(axes, ["loss", "accuracy"])
    grid = np.meshgrid(*axes.values(), indexing="ij")
    surface.values["loss"][:] = 1 + sum((i + 1) * c**2 for i, c in enumerate(grid))
    surface.values["accuracy"][:] = 0.5 + 0.1 * grid[0]
    surface.done[:] = True
    surface.trajectories["adam"] = ProjectedTrajectory(
        np.arange(4), np.linspace(0.8, 0, 4)[:, None] * np.ones(k), np.ones(4), np.full(4, 2.0), np.full(4, 2.1)
    )
    surface.provenance = {"at_origin": {"loss": 1.01}, "checkpoint": {"loss": 1.02}}
    if preview:
        surface.provenance["plan"] = {
            "name": "preview", "chunk_size": 8, "notes": [], "preview_error": {"center": 0.012, "corner": 0.00104}
        }  # fmt: skip
    return surface


@pytest.mark.parametrize("k", [1, 2, 3])
def test_every_figure_is_marked(k):
    text = "preview in bf16: relative error 1.2 % at the center, 0.1 % at a corner"
    drawn = figures.figures_of(stored_surface(k, True))
    drawn["alone"] = figures.plot(stored_surface(k, True))
    if k == 1:
        drawn["together"] = figures.plot_line({"a": stored_surface(1, True), "b": stored_surface(1, False)})
    if k == 2:
        drawn["compared"] = figures.plot_comparison({"a": stored_surface(2, False), "b": stored_surface(2, True)})
        assert subtitle(drawn["compared"]).startswith("b: ")
        assert "descent" in drawn
    for name, figure in drawn.items():
        assert text in subtitle(figure), name
    for name, figure in figures.figures_of(stored_surface(k, False)).items():
        assert "preview" not in subtitle(figure), name


def test_the_sanity_report_and_the_page_say_so(tmp_path):
    rows = {row.label: row for row in findings(stored_surface(2, True))}
    assert rows["preview"].warning
    assert "1.2 % at the center, 0.1 % at a corner" in rows["preview"].text
    assert not rows["center"].warning  # its error is known
    assert not rows["checkpoint"].warning
    plain = {row.label: row for row in findings(stored_surface(2, False))}
    assert "preview" not in plain
    assert plain["center"].warning
    text = page("a page", surface_sections(stored_surface(2, True)), tmp_path / "page.html").read_text()
    assert "bf16: relative error 1.2 % at the center" in text


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = "train --model mlp --set widths=[8] --data digits --limit 100 --test none --epochs 1 --out run"
    assert main(command.split()) == 0
    command = "surface --checkpoint run/checkpoint.safetensors --resolution 3 --test none --out p.h5"
    surface = command.split()
    assert main([*surface, "--engine", "preview"]) == 0
    assert "! preview " in capsys.readouterr().out
    assert main(["info", "p.h5"]) == 0
    assert "bf16: relative error" in capsys.readouterr().out
    assert main(surface) == 2
    assert "begun as a preview" in capsys.readouterr().err
    assert main([*surface, "--engine", "preview", "--explain", "--memory", "50M"]) == 0
    shown = capsys.readouterr().out
    assert "plan preview" in shown
    assert "relative error of the loss, measured" in shown
    assert "memory budget 50 MB" in shown
