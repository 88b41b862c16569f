"""The real data sets, against the counts that their description gives."""

import os
from pathlib import Path

import numpy as np
import pytest

from alphafuse_ext.data import leave_one_out, read_embeddings, read_interactions, read_items

FOLDER = os.environ.get("ALPHAFUSE_DATA")

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not FOLDER, reason="ALPHAFUSE_DATA does not name the folder of real data"),
]

# name: users, items, interactions, items without interactions, items without text
COUNTS = {
    "amazon-beauty": (22_363, 12_101, 198_502, 0, 7),
    "amazon-industrial": (3_285, 3_686, 22_743, 145, 0),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
    folder = Path(str(FOLDER)) / name
    users, num_items, total, cold, without_text = COUNTS[name]
    items = read_items(folder / f"{name}.item")
    interactions = read_interactions(folder / f"{name}.inter", items)
    assert (interactions.num_users, interactions.num_items, len(interactions)) == (
        users,
        num_items,
        total,
    )
    assert (interactions.item_counts() == 0).sum() == cold
    assert items.texts is not None
    assert sum(not text for text in items.texts) == without_text

    # The file's timestamps are positions in a history.
    lengths = interactions.sequences.lengths
    positions = np.arange(total) - np.repeat(interactions.sequences.offsets[:-1], lengths)
    assert np.array_equal(interactions.timestamps, positions)

    split = leave_one_out(interactions)
    assert len(split.test) == len(split.validation) == len(split.train) == users
    assert len(split.train.values) == total - 2 * users

    embeddings = read_embeddings(folder / "minilm-l6.npy", items).rows
    assert embeddings.shape == (num_items, 384)
    assert embeddings.dtype == np.float16
