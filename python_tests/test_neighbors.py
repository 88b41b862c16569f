"""Neighbors in language: who they are, and what a loss makes of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
import torch.nn.functional as F
from conftest import fresh_generator

import alphafuse_ext as af
from alphafuse_ext import ItemTable
from alphafuse_ext.data import (
    Sequences,
    leave_one_out,
    read_embeddings,
    read_interactions,
    read_items,
    synthetic_catalog,
)
from alphafuse_ext.data.tfidf import TermWeights
from alphafuse_ext.files import UnreadableFileError, load_tensors, save_tensors
from alphafuse_ext.items import cooccurrence, language_neighbors
from alphafuse_ext.items import neighbors as item_neighbors
from alphafuse_ext.items.cooccurrence import Cooccurrence
from alphafuse_ext.items.language_neighbors import NEIGHBORS, TEMPERATURE, Language, Neighbors
from alphafuse_ext.items.neighbors import ItemNeighbors
from alphafuse_ext.items.sparse_lists import SparseLists
from alphafuse_ext.models import SASRec
from alphafuse_ext.models.losses import next_item_loss

FOLDER = os.environ.get("ALPHAFUSE_DATA")


def embeddings(num_items: int, width: int = 12) -> np.ndarray:
    rows = np.random.default_rng(0).standard_normal((num_items, width)) + 3.0
    rows[[4, 9]] = 0.0  # without text
    return rows.astype(np.float32)


@pytest.mark.parametrize("count", [1, 5, 60])
def test_they_are_the_nearest_by_cosine_about_the_mean(count, monkeypatch):
    monkeypatch.setattr(language_neighbors, "_CHUNK", 7)
    rows = embeddings(40)
    found = Neighbors.of(rows, count)
    known = rows.any(1)
    centered = torch.from_numpy(rows - rows[known].mean(0)).double()
    cosines = F.normalize(centered, dim=1) @ F.normalize(centered, dim=1).T
    cosines[:, ~known] = -torch.inf
    cosines.fill_diagonal_(-torch.inf)
    kept = min(count, int(known.sum()) - 1)
    for item in range(40):
        if not known[item]:
            assert not found.weights[item].any()
            continue
        values, ids = cosines[item].topk(kept)
        assert found.ids[item, :kept].tolist() == ids.tolist()
        expected = (values / TEMPERATURE).softmax(0).float()
        torch.testing.assert_close(found.weights[item, :kept], expected, rtol=1e-3, atol=1e-6)
        assert not found.weights[item, kept:].any()


def test_few_items():
    assert not Neighbors.of(np.ones((1, 4), np.float32)).weights.any()
    assert not Neighbors.of(np.zeros((5, 4), np.float32)).weights.any()
    two = Neighbors.of(np.eye(2, 4, dtype=np.float32))
    assert two.ids[:, 0].tolist() == [1, 0]
    assert two.weights.sum(1).tolist() == [1.0, 1.0]


def test_files(tmp_path):
    found = Neighbors.of(embeddings(20))
    found.save(tmp_path / "neighbors")
    for one, other in zip(found, Neighbors.load(tmp_path / "neighbors"), strict=True):
        assert torch.equal(one, other)
    grown = found.extended(23)
    assert torch.equal(grown.ids[:20], found.ids)
    assert not grown.weights[20:].any()
    assert len(grown.ids) == 23
    with pytest.raises(FileNotFoundError):
        Neighbors.load(tmp_path / "none")
    (tmp_path / "damaged.safetensors").write_bytes(b"no")
    with pytest.raises(UnreadableFileError):
        Neighbors.load(tmp_path / "damaged")


@pytest.mark.parametrize("temperature", [1.0, 0.4])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_the_loss_is_cross_entropy_with_shared_targets(temperature, label_smoothing):
    """Against torch's own, of targets that are probabilities."""
    num_items, share = 30, 0.3
    found = Neighbors.of(embeddings(num_items))
    table = ItemTable.id_only(num_items, 6, init="normal")
    hidden = torch.randn(4, 5, 6, requires_grad=True)
    targets = torch.randint(num_items + 1, (4, 5))
    targets[0, :2] = torch.tensor([4, num_items])  # one without text, and no target
    value = next_item_loss(
        table,
        hidden,
        targets,
        temperature=temperature,
        label_smoothing=label_smoothing,
        language_smoothing=share,
        neighbors=found,
    )
    has_target = targets != num_items
    wanted = targets[has_target]
    own = F.one_hot(wanted, num_items).double()
    shared = torch.zeros_like(own).scatter_add_(
        1, found.ids[wanted], found.weights[wanted].double()
    )
    kept = 1 - share * shared.sum(1, keepdim=True) - label_smoothing
    probabilities = kept * own + share * shared + label_smoothing / num_items
    logits = hidden[has_target].double() @ table.id_embeddings.double().T / temperature
    expected = F.cross_entropy(logits, probabilities, reduction="sum")
    torch.testing.assert_close(value.double(), expected, rtol=2e-5, atol=1e-4)
    inputs = (hidden, table.id_embeddings)
    gradients = torch.autograd.grad(value, inputs)
    for gradient, reference in zip(gradients, torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(gradient, reference, rtol=2e-4, atol=2e-4)


def test_a_model_without_them_ranks_and_does_not_train():
    model = SASRec(ItemTable.id_only(10, 4), history=3, language_smoothing=0.2)
    ids = torch.tensor([[1, 2, 3]])
    assert model.encode(ids).shape == (1, 4)
    with pytest.raises(ValueError, match=r"^neighbors: got None; expected the items'"):
        model.loss(ids, ids)


@pytest.mark.parametrize("item_embedding", ["alphafuse", "id", "llminit"])
def test_runs(item_embedding, tmp_path):
    """They train by their language, go on, and leave it to others that do not ask for it."""
    clicks, items = synthetic_catalog(num_users=80, num_items=48, seed=3)
    options = {"item_embedding": item_embedding, "dim": 8, "epochs": 2, "seed": 1}
    losses, lines = {}, []
    for share in (0.0, 0.3):
        run = af.fit(
            clicks,
            items,
            embeddings(48),
            tmp_path / str(share),
            language_smoothing=share,
            log=lines.append,
            **options,
        ).run
        losses[share] = [line["loss"] for line in run.epochs()]
        assert run.has("neighbors.safetensors") == (share > 0)
    assert losses[0.0] != losses[0.3]
    unused = "item embedding id: language embeddings and encoder are not used"
    assert lines.count(unused) == (item_embedding == "id")
    kept = af.RunFolder(tmp_path / "0.3").neighbors()
    assert kept.ids.shape == (48, NEIGHBORS)

    new = clicks.assign(user_id=clicks["user_id"] + "-new")
    extended = af.extend(tmp_path / "0.3", new, output=tmp_path / "on", log=lines.append)
    assert torch.equal(extended.run.neighbors().ids, kept.ids)
    (tmp_path / "0.3" / "neighbors.safetensors").unlink()
    with pytest.raises(ValueError, match=r"language_smoothing: got 0\.3; expected 0 for"):
        af.extend(tmp_path / "0.3", new, output=tmp_path / "none", log=lines.append)
    off = {"output": tmp_path / "off", "log": lines.append, "language_smoothing": 0.0}
    assert not af.extend(tmp_path / "0.3", new, **off).run.has("neighbors.safetensors")


def test_without_language(tmp_path):
    clicks, _ = synthetic_catalog(num_users=60, num_items=48, seed=3)
    options = {"item_embedding": "id", "dim": 8, "language_smoothing": 0.2}
    with pytest.raises(ValueError, match=r"^embeddings: got None"):
        af.fit(clicks, None, None, tmp_path / "run", log=lambda line: None, **options)
    assert not (tmp_path / "run").exists()


# --- item-to-item neighbors


def histories_of(generator, users=60, num_items=30) -> Sequences:
    """Some empty, some of one item, with repeated items."""
    lengths = generator.integers(0, 14, users)
    return Sequences.from_lists([generator.integers(0, num_items, n) for n in lengths])


def sparse_texts(generator, num_items: int, terms: int = 25) -> scipy.sparse.csr_matrix:
    dense = generator.random((num_items, terms)) * (generator.random((num_items, terms)) < 0.2)
    dense[[2, 11]] = 0.0  # without text
    return scipy.sparse.csr_matrix(dense)


def dense_cooccurrence(histories: Sequences, num_items: int, how: Cooccurrence) -> np.ndarray:
    """By loops, in float64."""
    counts = np.zeros((num_items, num_items))
    for history in (histories[i] for i in range(len(histories))):
        for i, first in enumerate(history):
            for j in range(i + 1, min(i + how.window, len(history) - 1) + 1):
                if first != history[j]:
                    counts[first, history[j]] += how.decay ** (j - i - 1)
    if how.direction == "both":
        counts = counts + counts.T
    rows, columns = (np.sqrt(counts.sum(axis) + how.shrinkage) for axis in (1, 0))
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(counts / np.outer(rows, columns))


def dense_language(rows: np.ndarray, language: Language, mean: np.ndarray | None) -> np.ndarray:
    """By all cosines, in float64."""
    known = rows.any(1)
    if mean is not None:
        rows = np.where(known[:, None], rows - mean, 0.0)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    cosines = np.maximum(unit @ unit.T, 0.0)
    np.fill_diagonal(cosines, 0.0)
    for row in cosines:
        row[np.argsort(-row, kind="stable")[language.neighbors :]] = 0.0
    raised = cosines**language.power
    sums = raised.sum(1, keepdims=True)
    return language.share * np.divide(raised, sums, out=np.zeros_like(raised), where=sums > 0)


def as_dense(lists: SparseLists, columns: int) -> np.ndarray:
    dense = np.zeros((len(lists), columns))
    dense[lists.rows, lists.ids] = lists.values
    return dense


def kept_best(dense: np.ndarray, most: int) -> np.ndarray:
    dense = dense.copy()
    for row in dense:
        row[np.argsort(-row, kind="stable")[most:]] = 0.0
    return dense


@pytest.mark.parametrize(
    "how",
    [
        Cooccurrence(),
        Cooccurrence(window=1, decay=1.0, shrinkage=0.0),
        Cooccurrence(window=20, decay=0.5, direction="after"),
        Cooccurrence(shrinkage=1.0, direction="after", max_neighbors=None),
    ],
)
@pytest.mark.parametrize("entries", [40, 1 << 22])
def test_cooccurrence_is_what_loops_count(how, entries, monkeypatch):
    """However many blocks of items there are."""
    monkeypatch.setattr(cooccurrence, "ENTRIES", entries)
    histories = histories_of(fresh_generator())
    found = ItemNeighbors.from_histories(histories, 32, cooccurrence=how).together
    expected = dense_cooccurrence(histories, 32, how)
    np.testing.assert_allclose(as_dense(found, 32), expected, rtol=1e-6)
    assert (np.diff(found.ids)[np.diff(found.rows) == 0] > 0).all()
    assert np.diff(found.offsets)[30:].tolist() == [0, 0]  # of items that nobody took


def test_the_longest_lists_keep_the_best():
    histories = histories_of(fresh_generator())
    how = Cooccurrence(shrinkage=0.5)
    whole = ItemNeighbors.from_histories(histories, 30, cooccurrence=how).together
    how = Cooccurrence(shrinkage=0.5, max_neighbors=3)
    few = ItemNeighbors.from_histories(histories, 30, cooccurrence=how).together
    assert np.array_equal(as_dense(few, 30), kept_best(as_dense(whole, 30), 3))
    ties = SparseLists(np.array([0, 0, 5]), np.arange(5), np.array([2, 1, 2, 1, 1], np.float32))
    assert [ties.best(k).ids.tolist() for k in (1, 2, 3, 4, 9)] == [
        [0], [0, 2], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]
    ]  # fmt: skip
    ids, values = ties[1]
    assert ids.tolist() == [0, 2, 1, 3, 4]
    assert values.tolist() == [2, 2, 1, 1, 1]


@pytest.mark.parametrize("neighbors", [1, 6, 100])
def test_language_lists_are_the_nearest(neighbors, monkeypatch):
    """Of dense rows about the mean, and of sparse ones about zero."""
    monkeypatch.setattr(language_neighbors, "_CHUNK", 7)
    monkeypatch.setattr(language_neighbors, "ENTRIES", 100)
    generator = fresh_generator()
    dense, texts = embeddings(40).astype(np.float64), sparse_texts(generator, 40)
    mean = dense[dense.any(1)].mean(0)
    languages = [
        Language(dense, 0.4, 6.0, neighbors=neighbors),
        Language(texts, 0.6, 2.0, neighbors=neighbors),
        Language(dense, 0.1, 3.0, center=False, neighbors=neighbors),
    ]
    found = ItemNeighbors.from_histories(histories_of(generator), 40, languages)
    given = [(dense, mean), (texts.toarray(), None), (dense, None)]
    for lists, how, (rows, about) in zip(found.language, languages, given, strict=True):
        expected = dense_language(rows, how, about)
        np.testing.assert_allclose(as_dense(lists.weights(), 40), expected, rtol=1e-3, atol=1e-6)


def dense_probabilities(neighbors, together, language, histories, weight) -> np.ndarray:
    found = np.zeros((len(histories), neighbors.num_items))
    for i in range(len(histories)):
        recent = histories[i][-neighbors.last :]
        if not len(recent):
            continue
        ages = np.arange(len(recent))[::-1]
        for decay, lists, c in (
            (neighbors.decay, together, 1.0),
            (neighbors.language_decay, language, weight),
        ):
            weights = decay**ages / (decay**ages).sum()
            found[i] += c * (weights[:, None] * lists[recent]).sum(0)
    sums = found.sum(1, keepdims=True)
    return np.divide(found, sums, out=np.zeros_like(found), where=sums > 0)


@pytest.mark.parametrize("weight", [None, 0.0, 0.5])
@pytest.mark.parametrize("last", [3, 50])
def test_probabilities(last, weight, monkeypatch):
    """Of histories without neighbors, too; with items left out, and cut; in blocks."""
    monkeypatch.setattr(item_neighbors, "_QUERIES", 9)
    generator = fresh_generator()
    histories, texts = histories_of(generator), sparse_texts(generator, 32)
    languages = [Language(embeddings(32), 0.4, 6.0, neighbors=5), Language(texts, 0.6, 2.0)]
    options = {"decay": 0.9, "language_decay": 0.6, "language_weight": 2.0, "last": last}
    neighbors = ItemNeighbors.from_histories(histories, 32, languages, **options)
    together = as_dense(neighbors.together, 32)
    language = sum(as_dense(one.weights(), 32) for one in neighbors.language)
    used = 2.0 if weight is None else weight
    queries = histories_of(generator, 25, 32)
    expected = dense_probabilities(neighbors, together, language, queries, used)
    found = neighbors.probabilities(queries, most=None, language_weight=weight)
    np.testing.assert_allclose(as_dense(found, 32), expected, rtol=1e-5, atol=1e-9)
    assert found.ids.dtype == np.int64
    assert (np.diff(found.ids)[np.diff(found.rows) == 0] > 0).all()
    has = np.diff(found.offsets) > 0
    np.testing.assert_allclose(as_dense(found, 32).sum(1), has, atol=1e-6)
    assert np.array_equal(found.mass.any(1), has)

    left_out = histories_of(generator, 25, 32)
    for i in range(25):
        expected[i, left_out[i]] = 0.0
    found = neighbors.probabilities(queries, exclude=left_out, most=4, language_weight=weight)
    np.testing.assert_allclose(as_dense(found, 32), kept_best(expected, 4), rtol=1e-5, atol=1e-9)

    ids = np.tile(np.arange(-1, 32), (25, 1))
    shares = neighbors.language_share(queries, ids, weight)
    alone = dense_probabilities(neighbors, together * 0.0, language, queries, used)
    both = dense_probabilities(neighbors, together, language, queries, used)
    assert np.isnan(shares[:, 0]).all()
    assert np.array_equal(np.isnan(shares[:, 1:]), both == 0)
    if used == 0:
        assert not np.nansum(shares)
        return
    scale = found.mass[:, 1:] / np.maximum(found.mass.sum(1, keepdims=True), 1e-9)
    np.testing.assert_allclose(
        np.nan_to_num(shares[:, 1:]) * both, alone * scale, rtol=1e-4, atol=1e-6
    )


def test_mixture_with_a_model():
    """As the dense formula has it: seen items are in the sum of the lists, not in the ranking."""
    generator = fresh_generator()
    histories = histories_of(generator)
    neighbors = ItemNeighbors.from_histories(histories, 30, [Language(embeddings(30))])
    table = ItemTable.id_only(30, 6, init="normal")
    queries, seen = torch.randn(60, 6), histories
    exclude = torch.tensor(seen.offsets), torch.tensor(seen.values)
    found = neighbors.probabilities(histories, most=None)
    dense = 0.75 * (table.score_all(queries).double() / 0.5).softmax(1).detach()
    dense += 0.25 * torch.from_numpy(as_dense(found, 30))
    for row, ids in enumerate(seen[i] for i in range(60)):
        dense[row, torch.tensor(ids)] = 0.0
    for options in ({}, {"exclude": histories}):
        mixture = neighbors.mixture(histories, 0.25, temperature=0.5, most=None, **options)
        values, ids = table.topk(queries, 5, exclude=exclude, mixture=mixture)
        expected = dense.topk(5)
        assert torch.equal(ids, expected.indices)
        torch.testing.assert_close(values.exp().double(), expected.values, rtol=1e-4, atol=1e-8)
        ranks = table.target_ranks(queries, ids[:, 3], exclude=exclude, mixture=mixture)
        assert (ranks == 3).all()


@pytest.mark.data
@pytest.mark.skipif(not FOLDER, reason="ALPHAFUSE_DATA does not name the folder of real data")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("amazon-beauty", (0.0593, 0.1010), marks=pytest.mark.slow),
        ("amazon-industrial", (0.0909, 0.1321)),
    ],
)
def test_alone_on_real_data(name, expected):
    """Test NDCG@10 and Recall@10, all items ranked, seen ones left out."""
    folder = Path(str(FOLDER)) / name
    items = read_items(folder / f"{name}.item")
    split = leave_one_out(read_interactions(folder / f"{name}.inter", items))
    _, terms = TermWeights.from_texts([str(text or "") for text in items.texts])
    language = [
        Language(read_embeddings(folder / "minilm-l6.npy", items).rows, 0.4, 6.0),
        Language(terms, 0.6, 2.0),
    ]
    neighbors = ItemNeighbors.from_histories(split.train, len(items), language, language_weight=0.5)
    test = split.test
    found = neighbors.probabilities(test.histories, exclude=test.seen)
    rows, targets = found.rows, np.zeros(len(test))
    is_target = found.ids == test.targets[found.rows]
    targets[rows[is_target]] = found.values[is_target]
    # Ties are misses, and so is what is not listed.
    places = np.bincount(rows, found.values >= targets[rows], minlength=len(test)) - 1
    hit = (targets > 0) & (places < 10)
    ndcg, recall = (hit / np.log2(places + 2).clip(1)).mean(), hit.mean()
    assert (ndcg, recall) == (
        pytest.approx(expected[0], abs=1e-4),
        pytest.approx(expected[1], abs=1e-4),
    )


def same_lists(one: ItemNeighbors, other: ItemNeighbors) -> None:
    """Bit for bit."""
    pairs = [(one.together, other.together)]
    pairs += [(a.cosines, b.cosines) for a, b in zip(one.language, other.language, strict=True)]
    for found, expected in pairs:
        assert np.array_equal(found.offsets, expected.offsets)
        assert np.array_equal(found.ids, expected.ids)
        assert np.array_equal(found.values, expected.values)
    assert one.num_items == other.num_items


def test_extended_is_as_built_at_once(monkeypatch):
    """By items, of which some have no text, and by interactions; also after a file."""
    monkeypatch.setattr(language_neighbors, "_CHUNK", 7)
    generator = fresh_generator()
    histories, more = histories_of(generator), histories_of(generator, 90, 40)
    dense, texts = embeddings(40), sparse_texts(generator, 40)
    dense[[31, 38]] = 0.0
    first = [Language(dense[:30], 0.4, neighbors=4), Language(texts[:30], 0.6, neighbors=4)]
    neighbors = ItemNeighbors.from_histories(histories, 30, first)
    grown = neighbors.with_items([dense, texts])
    mean = neighbors.language[0].mean
    about = np.where(dense.any(1, keepdims=True), dense - mean.numpy(), 0.0).astype(np.float32)
    at_once = [
        Language(about, 0.4, center=False, neighbors=4),
        Language(texts, 0.6, neighbors=4),
    ]
    same_lists(grown, ItemNeighbors.from_histories(histories, 40, at_once))
    assert (np.diff(grown.language[0].cosines.offsets)[[30, 32]] == 4).all()
    assert (grown.language[0].cosines.ids[: grown.language[0].cosines.offsets[30]] >= 30).any()
    # New items, which nobody took yet, are shown after old ones and after themselves.
    new = grown.probabilities(Sequences.from_lists([[30], [0, 1, 2]]), most=None)
    assert len(new[0][0])
    assert (new.ids >= 30).any()
    same_lists(grown.with_histories(more), ItemNeighbors.from_histories(more, 40, at_once))
    same_lists(neighbors.with_items([dense[:30], texts[:30]]), neighbors)


def test_files_of_item_neighbors(tmp_path):
    generator = fresh_generator()
    histories = histories_of(generator)
    languages = [Language(embeddings(30), 0.4), Language(sparse_texts(generator, 30), 0.6, 2.0)]
    how = Cooccurrence(window=3, direction="after", max_neighbors=None)
    neighbors = ItemNeighbors.from_histories(histories, 30, languages, how, decay=0.5, last=7)
    neighbors.save(tmp_path / "item-neighbors")
    loaded = ItemNeighbors.load(tmp_path / "item-neighbors")
    same_lists(loaded, neighbors)
    assert (loaded.cooccurrence, loaded.decay, loaded.last) == (how, 0.5, 7)
    one, other = (n.probabilities(histories) for n in (loaded, neighbors))
    assert np.array_equal(one.ids, other.ids)
    assert np.array_equal(one.values, other.values)
    with pytest.raises(UnreadableFileError, match="does not hold a neighbors"):
        Neighbors.load(tmp_path / "item-neighbors")
    tensors, facts = load_tensors(tmp_path / "item-neighbors", "item neighbors")
    for name, value in {
        "together.ids": torch.full_like(tensors["together.ids"], 30),
        "together.offsets": torch.zeros(31, dtype=torch.int64),
        "language.1.values": -tensors["language.1.values"],
        "language.0.ids": tensors["language.0.ids"].long(),
    }.items():
        save_tensors(tmp_path / "bad", "item neighbors", {**tensors, name: value}, facts)
        with pytest.raises(UnreadableFileError, match=name.rpartition(".")[0]):
            ItemNeighbors.load(tmp_path / "bad")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cooccurrence": {"window": 0}}, "window: got 0; expected window >= 1"),
        ({"cooccurrence": {"decay": 0.0}}, "decay: got 0.0; expected 0 < decay <= 1"),
        ({"cooccurrence": {"shrinkage": -1}}, "shrinkage: got -1"),
        ({"cooccurrence": {"direction": "up"}}, "direction: got 'up'; expected 'both' or 'after'"),
        ({"cooccurrence": {"max_neighbors": 0}}, "max_neighbors: got 0"),
        ({"decay": 1.5}, "decay: got 1.5"),
        ({"language_decay": 0}, "language_decay: got 0"),
        ({"language_weight": float("nan")}, "language_weight: got nan"),
        ({"last": 0}, "last: got 0"),
        ({"language": Language(np.eye(4))}, "language: got one"),
        ({"language": [Language(np.eye(3))]}, r"language\[0\].rows: got 3 rows; expected 4"),
        ({"language": [Language(np.eye(4), share=-1)]}, r"language\[0\].share: got -1"),
        ({"language": [Language(np.eye(4), power=0)]}, r"language\[0\].power: got 0"),
        ({"language": [Language(np.eye(4), neighbors=0)]}, r"language\[0\].neighbors: got 0"),
        ({"language": [Language(np.full((4, 2), np.inf))]}, r"language\[0\]: got inf in row 0"),
        ({"language": [Language(scipy.sparse.eye(4), center=True)]}, r"language\[0\].center"),
        ({"num_items": 3}, "histories: got ids from 0 to 3; expected 0 <= id < 3"),
    ],
)
def test_refusals(options, message):
    histories = Sequences.from_lists([[0, 1], [2, 3]])
    if "cooccurrence" in options:
        with pytest.raises(ValueError, match=message):
            Cooccurrence(**options["cooccurrence"])
        return
    with pytest.raises((ValueError, TypeError, IndexError), match=message):
        ItemNeighbors.from_histories(histories, **{"num_items": 4, **options})


def test_refusals_of_what_exists():
    histories = Sequences.from_lists([[0, 1], [2, 3]])
    neighbors = ItemNeighbors.from_histories(histories, 4, [Language(np.eye(4))])
    with pytest.raises(ValueError, match=r"language\[0\]: got 3 rows"):
        neighbors.with_items([np.eye(3, 4)])
    with pytest.raises(ValueError, match=r"language\[0\]: got shape \(5, 3\); expected a dense"):
        neighbors.with_items([np.eye(5, 3)])
    with pytest.raises(ValueError, match="language: got 2 embeddings; expected 1"):
        neighbors.with_items([np.eye(5), np.eye(5)])
    with pytest.raises(ValueError, match="exclude: got 1 lists; expected 2"):
        neighbors.probabilities(histories, exclude=Sequences.from_lists([[0]]))
    with pytest.raises(ValueError, match="most: got 0"):
        neighbors.probabilities(histories, most=0)
    with pytest.raises(IndexError, match="histories: got ids from 4 to 4"):
        neighbors.probabilities(Sequences.from_lists([[4]]))
    with pytest.raises(IndexError, match="exclude: got ids from 9 to 9"):
        neighbors.probabilities(histories, exclude=Sequences.from_lists([[9], []]))
    with pytest.raises(ValueError, match=r"ids: got shape \(2,\); expected \(2, k\)"):
        neighbors.language_share(histories, [0, 1])


def test_no_share_of_histories_that_nothing_is_asked_of(monkeypatch):
    """Some at a time, as for many histories, of which some have no item to ask about."""
    monkeypatch.setattr(item_neighbors, "_QUERIES", 2)
    histories = Sequences.from_lists([[0, 1, 2], [1, 2, 3], [0, 2], [3, 1]])
    found = ItemNeighbors.from_histories(histories, 5)
    ids = np.array([[-1, -1], [-1, -1], [1, -1], [-1, 2]])
    shares = found.language_share(histories, ids)
    assert np.array_equal(shares == 0, ids >= 0)
    assert np.isnan(shares[ids < 0]).all()
    assert np.isnan(found.language_share(histories, np.full((4, 3), -1))).all()
