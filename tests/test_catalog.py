"""What a catalog of minima says about runs is what a plain count says."""

import numpy as np
import pytest

from landscape.catalog import KIND, Catalog
from landscape.rows import RowsWriter

LABELS = [1, 0, -1, 0, 2, 1]


def write(path, identified=True, n=6):
    found = {
        **{"labels": LABELS, "relation": "the same up to signs", "tolerance": 1e-2, "notes": []},
        "heights": [1e-4, 5e-3, 0.3],
    }
    writer = RowsWriter(
        path,
        KIND,
        {"settings": ["adam", "gd"], "provenance": {}, "identification": found if identified else None},
    )
    numbers = np.arange(n, dtype=float)
    rows = {
        **{"run": np.arange(n), "setting": np.arange(n) % 2, "seed": np.arange(n) // 2},
        "kind": np.array(["minimum", "minimum", "saddle", "minimum", "flat minimum", "minimum"][:n], dtype=object),
        **{"loss": np.array([2.0, 1.1, 0.5, 1.0, 3.0, 2.1])[:n], "n_flat": np.zeros(n, dtype=int)},
        **{name: numbers for name in ("gradient_norm", "smallest", "largest", "tol", "trace")},
        **{"metric/loss": numbers / 10, "metric/test_loss": numbers, "theta": np.tile(numbers[:, None], (1, 2))},
        "buffers": np.zeros((n, 0)),
    }
    writer.add(rows, 0)
    writer.finish()
    return path


@pytest.fixture
def catalog(tmp_path):
    return Catalog.load(write(tmp_path / "minima.h5"))


def test_hits_and_representatives(catalog):
    assert catalog.n_minima == 3
    assert catalog.hits().tolist() == [2, 2, 1]
    assert catalog.hits("adam").tolist() == [0, 1, 1]
    assert (catalog.hits("adam") + catalog.hits("gd")).tolist() == catalog.hits().tolist()
    assert catalog.representatives().tolist() == [3, 0, 4]


def test_kinds(catalog):
    assert catalog.kinds() == {"minimum": 4, "flat minimum": 1, "saddle": 1}
    assert catalog.kinds("gd") == {"minimum": 3}
    assert list(catalog.kinds()) == ["minimum", "flat minimum", "saddle"]


def test_count_at_other_tolerances(catalog):
    assert catalog.count_at(np.array([1e-5, 1e-4, 1e-2, 1.0])).tolist() == [5, 4, 3, 2]


def test_table(catalog):
    rows = catalog.table()
    assert [row["objective"] for row in rows] == [1.0, 2.0, 3.0]
    assert [row["loss"] for row in rows] == [0.3, 0.0, 0.4]
    assert [row["hits of gd"] for row in rows] == [2, 1, 0]
    assert rows[0]["test loss"] == 3


def test_describe(catalog):
    assert catalog.describe() == (
        "6 runs: 4 minimum, 1 flat minimum, 1 saddle\n3 distinct minima among 5; the same up to signs"
    )


def test_thetas(catalog):
    assert catalog.thetas([1, 4]).tolist() == [[1, 1], [4, 4]]
    assert catalog.thetas().shape == (6, 2)


def test_not_finished(tmp_path):
    with pytest.raises(ValueError, match=r"not finished: run the same command again"):
        Catalog.load(write(tmp_path / "part.h5", identified=False))
    with pytest.raises(ValueError, match=r"not finished"):
        Catalog.load(write(tmp_path / "shorter.h5", n=5))
    with pytest.raises(FileNotFoundError, match="no file"):
        Catalog.load(tmp_path / "none.h5")
