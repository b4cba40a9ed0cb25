"""Splits of the cells against what they promise."""

import numpy as np
import pytest

from bayesqid.errors import BadInput
from bayesqid.importers import sources
from bayesqid.inference import simulate, splits


def test_the_cut_of_the_atlas_leaves_two_trillion_tokens_and_less_to_train_on():
    cells = sources.read_cells("atlas")
    folds = splits.folds_of(cells, "future", {})
    tokens = cells["train_tokens"].to_numpy()
    held = np.any([fold.held for fold in folds], axis=0)
    assert tokens[folds[0].train].max() == 2e12
    assert tokens[held].min() == 9e12
    assert not np.any(folds[0].train & held)
    assert all(len(np.unique(cells["checkpoint"].to_numpy()[fold.held])) == 1 for fold in folds)


def test_of_equal_gaps_the_last_is_taken_and_undisclosed_values_are_on_neither_side():
    assert splits.widest_gap(np.repeat(2.0 ** np.arange(10), 3)) == 512.0
    cells = simulate.grid(families=2, tokens=4, sizes=1)
    tokens = cells["train_tokens"].to_numpy().copy()
    tokens[:5] = np.nan
    fold = splits.folds_of(cells.assign_coords(train_tokens=("cell", tokens)), "future", {})[0]
    assert not fold.train[:5].any()
    assert not fold.held[:5].any()


def test_a_cut_asked_for_is_used():
    cells = sources.read_cells("atlas")
    fold = splits.folds_of(cells, "future", {"future": 1e12})[0]
    assert cells["train_tokens"].to_numpy()[fold.train].max() < 1e12
    with pytest.raises(BadInput, match="--future-from"):
        splits.folds_of(cells, "future", {"future": 1e9})


@pytest.mark.parametrize("name", ["width", "family"])
def test_every_cell_is_predicted_once_from_all_cells_of_other_levels(name):
    folds = splits.folds_of(simulate.grid(families=3, tokens=2, sizes=1), name, {})
    assert np.all(np.sum([fold.held for fold in folds], axis=0) == 1)
    assert all(np.array_equal(fold.train, ~fold.held) for fold in folds)
