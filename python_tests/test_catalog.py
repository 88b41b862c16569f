"""A catalog that changes under a trained model: items added and retired, embeddings replaced."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import fresh_generator

import alphafuse_ext as af
from alphafuse_ext.data import read_items, synthetic_catalog
from alphafuse_ext.items.likeness import bound_of, check_model, check_norms, distances_of
from alphafuse_ext.items.projection import SemanticProjection

WIDTH = 24
FOLDER = os.environ.get("ALPHAFUSE_DATA")


def language(num_items: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    spread = np.linspace(2.0, 0.2, WIDTH)
    turned, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(WIDTH, WIDTH)))
    return ((generator.normal(size=(num_items, WIDTH)) * spread) @ turned + 0.3).astype(np.float32)


@pytest.fixture(scope="module")
def data() -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    clicks, items = synthetic_catalog(num_users=150, num_items=80, seed=2)
    return clicks, items, language(len(items))


def trained(folder, data, **options) -> af.Recommender:
    clicks, items, rows = data
    settings = {"dim": 16, "epochs": 2, "history": 6, **options}
    return af.fit(clicks, items, rows, output=folder / "run", log=lambda _: None, **settings)


@pytest.fixture(scope="module")
def recommender(tmp_path_factory, data) -> af.Recommender:
    return trained(tmp_path_factory.mktemp("runs"), data)


NEW = ["new-1", "new-2", "new-3"]


def new_items() -> tuple[pd.DataFrame, np.ndarray]:
    return pd.DataFrame({"item_id": NEW, "title": ["one", "two", "three"]}), language(3, seed=7)


KINDS = [
    {},
    {"fusion": "concat", "standardize": False},
    {"space_split": "soft"},
    {"space_split": "learned"},
    {"coordinates": "original", "weights": "frequency"},
    {"coordinates": "projected"},
    {"item_embedding": "llminit"},
    {"item_embedding": "frozen"},
    {"item_embedding": "morec"},
    {"item_embedding": "gated"},
]


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_added_items_lie_where_their_texts_are(options, tmp_path, data):
    """An item that is added with the text of an item whose ID embedding is zero is that item."""
    run = trained(tmp_path, data, **options)
    table = run.model.table
    if options.get("item_embedding") != "llminit" and table.id_embeddings is not None:
        with torch.no_grad():
            table.id_embeddings[5] = 0.0
    changed = run.add_items(pd.DataFrame({"item_id": ["twin"]}), data[2][5:6])
    ids = torch.tensor([5, 80])
    with torch.inference_mode():
        twin, old = changed.model.table.eval()(ids), table.eval()(torch.arange(80))
        new = changed.model.table(torch.arange(80))
    assert torch.equal(new, old)
    if options.get("item_embedding") == "llminit":
        start = af.RunFolder(run.run.path).model("start")[0]["table.id_embeddings"][5]
        torch.testing.assert_close(twin[1], start, rtol=1e-4, atol=1e-5)
    else:
        torch.testing.assert_close(twin[1], twin[0], rtol=1e-4, atol=1e-5)
    assert len(run.items) == 80
    assert changed.items.tokens[80] == "twin"


def test_added_items_are_recommended_at_once(recommender, data):
    items, rows = new_items()
    changed = recommender.add_items(items, rows)
    user = recommender.interactions.users[3]
    frame = changed.recommend([user], k=83, keep_seen=True)
    assert set(NEW) < set(frame["item"])
    assert frame.set_index("item").loc["new-2", "title"] == "two"
    alone = changed.recommend([user], k=2, only=NEW)
    best = frame[frame["item"].isin(NEW)]["item"].tolist()
    assert alone["item"].tolist() == best[:2]
    # A new item may stand in a history, and the old recommender knows nothing of it.
    assert len(changed.recommend(histories=[["new-1"]], k=3)) == 3
    with pytest.raises(ValueError, match="unknown 'new-1'"):
        recommender.recommend(histories=[["new-1"]], k=3, strict=True)
    again = changed.add_items(embeddings={"new-4": language(1, seed=9)[0]})
    assert again.items.tokens[-4:].tolist() == [*NEW, "new-4"]
    assert again.items.titles[-1] == ""


def test_saved_and_loaded(recommender, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in recommender.run.path.iterdir()}
    items, rows = new_items()
    old = recommender.interactions.items[4]
    changed = recommender.add_items(items, rows).retire_items([old, "new-3"])
    saved = changed.save(tmp_path / "changed")
    assert {p: p.stat().st_mtime_ns for p in recommender.run.path.iterdir()} == before
    loaded = af.Recommender.load(tmp_path / "changed")
    for other in (saved, loaded):
        pd.testing.assert_frame_equal(other.recommend(k=5), changed.recommend(k=5))
        assert other.evaluate_in_detail().metrics == changed.evaluate_in_detail().metrics
    source = loaded.source()
    assert source["changed_from"] == str(recommender.run.path)
    assert source["changes"] == ["3 items added", "2 items retired"]
    # New items of a folder of changed items lie where they would have lain.
    rows = language(2, seed=11)
    twins = pd.DataFrame({"item_id": ["a", "b"]})
    for one in (changed, loaded):
        with torch.inference_mode():
            found = one.add_items(twins, rows).model.table(torch.tensor([83, 84]))
            expected = recommender.add_items(twins, rows).model.table(torch.tensor([80, 81]))
        assert torch.equal(found, expected)
    with pytest.raises(ValueError, match=r"resume: got .*a trained run that was changed"):
        af.resume(tmp_path / "changed", log=lambda _: None)


def test_a_folder_without_a_record_of_its_projection(recommender, tmp_path):
    """Folders of earlier versions: found back from the rows themselves."""
    run = shutil.copytree(recommender.run.path, tmp_path / "run")
    path = run / "config.json"
    described = json.loads(path.read_text())
    record = described["source"].pop("projection")
    path.write_text(json.dumps(described))
    found = af.Recommender.load(run).projection
    assert found.record() == pytest.approx(record, rel=1e-6)


@pytest.mark.parametrize("weights", [None, np.arange(40)])
@pytest.mark.parametrize("standardize", [False, True])
def test_projection_of_rows(weights, standardize):
    rows = language(40)
    rows[3] = 0.0
    space = af.SemanticSpace.from_embeddings(rows, weights=weights)
    made = af.ItemTable.frozen(space, rows, 7, standardize, semantic_rms=0.15).semantic_rows
    found = SemanticProjection.of_rows(space, made, standardize, weights)
    torch.testing.assert_close(found.rows(rows), made, rtol=1e-5, atol=1e-7)


def test_retired_items(recommender):
    users = recommender.interactions.users
    popular = recommender.recommend(k=3)["item"].value_counts().index[:5].tolist()
    changed = recommender.retire_items(popular)
    for keep_seen in (False, True):
        before = recommender.recommend(k=80, keep_seen=keep_seen)
        after = changed.recommend(k=80, keep_seen=keep_seen)
        kept = before[~before["item"].isin(popular)].reset_index(drop=True)
        columns = ["user", "item", "score"]
        pd.testing.assert_frame_equal(after[columns], kept[columns])
    assert changed.items.tokens.tolist() == recommender.items.tokens.tolist()
    # Histories still hold them.
    one = changed.recommend(histories=[popular], k=4)
    assert not set(one["item"]) & set(popular)
    other = [i for i in recommender.items.tokens if i not in popular][:2]
    with pytest.warns(UserWarning, match="retired items are left out"):
        chosen = changed.recommend(users[:1], only=[popular[0], *other], k=3, keep_seen=True)
    assert set(chosen["item"]) == set(other)
    with pytest.raises(ValueError, match="only: got retired"):
        changed.recommend(users[:1], only=popular, strict=True)
    with pytest.raises(ValueError, match="items: got all 80 items"):
        recommender.retire_items(recommender.items.tokens)


def test_restored_items(recommender):
    """What retiring did is undone, for some or for all."""
    gone = recommender.items.tokens[[3, 8, 20]].tolist()
    retired = recommender.retire_items(gone)
    some = retired.restore_items(gone[:2])
    assert some.changes == ("3 items retired", "2 items restored")
    pd.testing.assert_frame_equal(
        some.recommend(k=5), recommender.retire_items(gone[2:]).recommend(k=5)
    )
    every = some.restore_items(gone)
    assert every.changes[-1] == "1 items restored"
    assert every.items.retired is None
    pd.testing.assert_frame_equal(every.recommend(k=5), recommender.recommend(k=5))
    for wrong, message in (([], "no items"), (["x"], "unknown 'x'"), ("x", "'x'")):
        with pytest.raises((ValueError, TypeError), match=f"^items: got {message}"):
            retired.restore_items(wrong)


def test_a_retired_target_is_a_miss(recommender):
    examples = recommender.split.test
    targets = recommender.items.tokens[np.unique(examples.targets)[:6]]
    changed = recommender.retire_items(targets)
    for ties, of in itertools.product(("id", "mean"), ("evaluate_in_detail", "popularity")):
        hit = {}
        for name, one in (("before", recommender), ("after", changed)):
            found = getattr(one, of)(ties=ties)
            hit[name] = found.ranks_by_seen_items["ranked"]
        gone = np.isin(examples.targets, recommender.interactions.item_index(targets))
        assert (hit["after"][gone] == np.iinfo(np.int64).max).all()
        assert (hit["after"][~gone] <= hit["before"][~gone]).all()
    frame = changed.recommend(k=10)
    assert not frame["item"].isin(targets).any()


def test_lists_of_their_own(recommender):
    users = recommender.interactions.users[:3].tolist()
    tokens = recommender.items.tokens
    lists = [tokens[:9].tolist(), tokens[40:44].tolist(), tokens[70:].tolist()]
    frame = recommender.recommend(users, only=lists, k=4, keep_seen=True)
    for user, allowed in zip(users, lists, strict=True):
        one = recommender.recommend([user], only=allowed, k=4, keep_seen=True)
        mine = frame[frame["user"] == user].reset_index(drop=True)
        pd.testing.assert_frame_equal(mine, one)
    with pytest.warns(UserWarning, match="unknown users"):
        moved = recommender.recommend([users[0], "no one", users[2]], only=lists, k=4)
    for user, allowed in ((users[0], lists[0]), (users[2], lists[2])):
        assert set(moved[moved["user"] == user]["item"]) <= set(allowed)
    with pytest.raises(ValueError, match="only: got 2 lists"):
        recommender.recommend(users, only=lists[:2])
    with pytest.raises(TypeError, match="only: got 'abc'"):
        recommender.recommend(users, only="abc")


@pytest.mark.parametrize("part", ["fused", "semantic", "id"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_similar_items(recommender, part, similarity):
    table = recommender.model.table
    weight = {
        "fused": table.weight.detach(),
        "semantic": table.semantic_rows,
        "id": table.id_embeddings.detach(),
    }[part].double()
    if similarity == "cosine":
        weight = weight / weight.norm(dim=1, keepdim=True)
    asked = recommender.items.tokens[[4, 70]].tolist()
    frame = recommender.recommend_to_items(asked, k=5, part=part, similarity=similarity)
    assert list(frame.columns) == ["target_item", "rank", "item", "title", "score"]
    for token, item in zip(asked, (4, 70), strict=True):
        scores = (weight @ weight[item]).masked_fill(torch.arange(80) == item, -torch.inf)
        best = scores.topk(5)
        rows = frame[frame["target_item"] == token]
        assert rows["item"].tolist() == recommender.items.tokens[best.indices].tolist()
        np.testing.assert_allclose(rows["score"], best.values, rtol=1e-4)
    some = recommender.items.tokens[10:14].tolist()
    only = recommender.recommend_to_items(asked, k=3, only=some)
    assert set(only["item"]) <= set(some)


def test_similar_items_refuses(recommender, tmp_path, data):
    with pytest.raises(ValueError, match="part: got 'text'"):
        recommender.recommend_to_items(recommender.items.tokens[:1], part="text")
    with pytest.warns(UserWarning, match="unknown items are left out"):
        none = recommender.recommend_to_items(["nothing"])
    assert len(none) == 0
    with pytest.raises(ValueError, match="unknown 'nothing'"):
        recommender.recommend_to_items(["nothing"], strict=True)
    gone = recommender.items.tokens[7]
    asked = recommender.retire_items([gone]).recommend_to_items([gone], k=79)
    assert gone not in set(asked["item"])
    ids = trained(tmp_path, data, item_embedding="id")
    with pytest.raises(ValueError, match="part: got 'semantic', in a run of item_embedding=id"):
        ids.recommend_to_items(ids.items.tokens[:1], part="semantic")
    with pytest.raises(ValueError, match="items: got new items, in a run of item_embedding=id"):
        ids.add_items(*new_items())


def test_wrong_new_items(recommender, tmp_path, data):
    items, rows = new_items()
    old = recommender.items.tokens[:1].tolist()
    with pytest.raises(ValueError, match="items, embeddings: got None for both"):
        recommender.add_items()
    with pytest.raises(ValueError, match="1 that the catalog has already"):
        recommender.add_items(embeddings={old[0]: rows[0]})
    with pytest.raises(ValueError, match="with 2 rows"):
        recommender.add_items(items, rows[:2])
    with pytest.raises(ValueError, match=r"language_embeddings: got shape \(3, 12\)"):
        recommender.add_items(items, rows[:, :12].copy())
    other = 3 * np.random.default_rng(1).normal(size=(3, WIDTH)).astype(np.float32)
    with pytest.raises(ValueError, match="of another model, or scaled otherwise"):
        recommender.add_items(items, other)
    assert len(recommender.add_items(items, other, any_embeddings=True).items) == 83
    with pytest.raises(ValueError, match="embeddings: got None, of a run whose language"):
        recommender.add_items(items)
    rows[1] = 0.0
    with pytest.warns(UserWarning, match="1 of 3 new items have no text"):
        recommender.add_items(items, rows)
    rows[1, 3] = np.nan
    with pytest.raises(ValueError, match="nan in row 1, column 3"):
        recommender.add_items(items, rows)
    whitened = trained(tmp_path, data, item_embedding="whitenrec")
    with pytest.raises(NotImplementedError, match="its whitening is not kept"):
        whitened.add_items(*new_items())


def test_integer_ids(tmp_path, data):
    clicks, items, rows = data
    numbers = {token: number for number, token in enumerate(items["item_id"])}
    clicks = clicks.assign(item_id=clicks["item_id"].map(numbers))
    items = items.assign(item_id=items["item_id"].map(numbers))
    run = trained(tmp_path, (clicks, items, rows))
    assert run.items.tokens.dtype == np.int64
    changed = run.add_items(embeddings={200: language(1)[0]})
    assert changed.items.tokens[-1] == 200
    with pytest.raises(TypeError, match="items: got ids such as 'x'"):
        run.add_items(embeddings={"x": language(1)[0]})


@pytest.mark.parametrize("options", KINDS[:5] + KINDS[7:8], ids=str)
def test_upgraded_to_the_same_embeddings_turned(options, tmp_path, data):
    """Of an encoder whose embeddings are the old ones turned, nothing has changed."""
    run = trained(tmp_path, data, **options)
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(WIDTH, WIDTH)))
    changed, report = run.upgrade_embeddings((data[2].astype(np.float64) @ turn).astype(np.float32))
    assert report["semantic_fit"] > 0.9999
    assert report["id_kept"] > 0.999
    assert report["overlap@10"] > 0.99
    assert report["after"] == pytest.approx(report["before"], abs=0.01)
    ids = torch.arange(80)
    with torch.inference_mode():
        torch.testing.assert_close(
            changed.model.table(ids), run.model.table.eval()(ids), rtol=1e-2, atol=1e-3
        )
    # New items come in by the new embeddings, also after a way over the disk.
    saved = changed.save(tmp_path / "upgraded")
    twin = (data[2][5:6].astype(np.float64) @ turn).astype(np.float32)
    for one in (changed, saved):
        added = one.add_items(pd.DataFrame({"item_id": ["twin"]}), twin)
        with torch.inference_mode():
            semantic, _ = added.model.table.parts()
        torch.testing.assert_close(semantic[80], semantic[5], rtol=1e-4, atol=1e-5)
    assert saved.source()["embeddings"]["from"] == "ndarray"


def test_upgraded_to_others(recommender, tmp_path, data):
    other = np.random.default_rng(8).normal(size=(80, 40)).astype(np.float32)
    changed, report = recommender.upgrade_embeddings(other)
    assert report["semantic_fit"] < 0.9
    assert report["overlap@10"] < 0.9
    assert report["users"] == recommender.interactions.num_users
    assert changed.recommend(k=3)["score"].notna().all()
    with pytest.raises(ValueError, match="embeddings: got 8 columns"):
        recommender.upgrade_embeddings(other[:, :8].copy())
    with pytest.raises(ValueError, match="with 79 rows"):
        recommender.upgrade_embeddings(other[:79])
    mixed = trained(tmp_path, data, item_embedding="llminit")
    with pytest.raises(NotImplementedError, match="others mix the two"):
        mixed.upgrade_embeddings(other)


def test_batches_are_frames(recommender):
    frames = list(recommender.recommend_in_batches(k=3, batch_size=40))
    assert len(frames) == 4
    whole = recommender.recommend(k=3)
    pd.testing.assert_frame_equal(pd.concat(frames, ignore_index=True), whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="batch_size"):
            recommender.recommend_in_batches(batch_size=0)


def test_threads_share_a_recommender(recommender):
    """What is made at its first use is made by several at once here."""
    gone = recommender.items.tokens[3:5]
    changed = recommender.retire_items(gone)
    users = recommender.interactions.users[:40].tolist()
    expected = [recommender.retire_items(gone).recommend([user], k=5) for user in users]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda user: changed.recommend([user], k=5), users))
    for one, other in zip(found, expected, strict=True):
        pd.testing.assert_frame_equal(one, other)


# Of the run's own model, or of another ---------------------------------------------------------

REAL = [
    pytest.mark.data,
    pytest.mark.skipif(not FOLDER, reason="ALPHAFUSE_DATA does not name the folder of real data"),
]


def steep(num_rows: int, width: int) -> np.ndarray:
    """Rows of norm 1 about a mean, of variances that fall as a sentence encoder's do."""
    random = np.random.default_rng(11)
    turn, _ = np.linalg.qr(random.normal(size=(width, width)))
    spread = np.arange(1, width + 1) ** -0.5
    tails = np.sqrt(random.chisquare(6, size=(num_rows, 1)) / 6)
    mean = random.normal(size=width)
    rows = random.normal(size=(num_rows, width)) * (spread / np.linalg.norm(spread)) / tails
    rows = rows @ turn + 0.6 * mean / np.linalg.norm(mean)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def minilm(name: str) -> np.ndarray:
    """Of the items that have a text: the others' rows are all the same."""
    rows = np.load(Path(str(FOLDER)) / name / "minilm-l6.npy").astype(np.float32)
    items = read_items(Path(str(FOLDER)) / name / f"{name}.item")
    return rows[np.array([bool(text.strip()) for text in items.texts])]


MODELS = {
    "steep": lambda: steep(3000, 384),
    "amazon-industrial": lambda: minilm("amazon-industrial"),
    "amazon-beauty": lambda: minilm("amazon-beauty"),
}


def refused(space: af.SemanticSpace, rows: np.ndarray) -> bool:
    try:
        check_norms("embeddings", space, rows)
        check_model("embeddings", space, rows)
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("num_rows", [20, 50, 100, 300, 384, 500, 800, 2800])
@pytest.mark.parametrize(
    "model", ["steep", *(pytest.param(name, marks=REAL) for name in list(MODELS)[1:])]
)
def test_rows_of_the_model_itself_pass_and_others_do_not(model, num_rows):
    """Whatever the ratio of rows to columns; single and unusual rows as well."""
    rows = MODELS[model]()
    random = np.random.default_rng(num_rows)  # the margins are of most draws, not of all
    order = random.permutation(len(rows))
    space = af.SemanticSpace.from_embeddings(rows[order[:num_rows]])
    new = rows[order[num_rows:]]
    alone = distances_of(space, new.astype(np.float64))
    assert alone.max() <= bound_of(space, 1)
    for _ in range(20):
        assert not refused(space, new[random.permutation(len(new))[:20]])
    if num_rows < 50:
        return  # enough to know the model's own by, not always to tell others

    width = rows.shape[1]
    turn, _ = np.linalg.qr(random.normal(size=(width, width)))
    drawn = random.normal(size=(200, width))
    others = {
        "drawn": drawn / np.linalg.norm(drawn, axis=1, keepdims=True),
        "turned": new[:200] @ turn,
        "columns in another order": new[:200, random.permutation(width)],
    }
    margin = 1.0 if num_rows < 100 else 1.05
    for name, other in others.items():
        assert np.quantile(distances_of(space, other), 0.25) > margin * bound_of(space, 200), name
        assert refused(space, other[:20]), name
        assert num_rows < 800 or refused(space, other[:1]), name
    for scale in (0.02, 0.5, 2.0, 50.0):
        assert refused(space, new[:20] * np.float32(scale)), scale


@pytest.mark.parametrize(("width", "num_rows"), [(768, 700), (768, 200), (64, 3000), (8, 500)])
def test_rows_of_other_widths(width, num_rows):
    rows = steep(num_rows + 300, width)
    space = af.SemanticSpace.from_embeddings(rows[:num_rows])
    assert not refused(space, rows[num_rows : num_rows + 20])
    turn, _ = np.linalg.qr(fresh_generator().normal(size=(width, width)))
    assert refused(space, rows[num_rows:] @ turn)


@pytest.mark.parametrize("num_rows", [20, 384, 800, 2500])
def test_rows_of_a_model_without_directions_pass(num_rows):
    """Whitened embeddings are alike in all directions, and nothing tells them from others."""
    rows = fresh_generator().normal(size=(num_rows + 100, 384)).astype(np.float32)
    space = af.SemanticSpace.from_embeddings(rows[:num_rows])
    assert not refused(space, rows[num_rows:])
    assert not any(refused(space, rows[[place]]) for place in range(num_rows, num_rows + 20))


def test_rows_that_repeat_or_weigh_little_count_for_less():
    rows = steep(2000, 384)
    repeated = af.SemanticSpace.from_embeddings(np.repeat(rows[:200], 8, axis=0))
    weighted = af.SemanticSpace.from_embeddings(rows[:1600], weights=1.0 / np.arange(1, 1601) ** 2)
    assert weighted.effective_items == pytest.approx(2.5, rel=0.01)
    for space in (repeated, weighted):
        assert not any(refused(space, rows[[place]]) for place in range(1600, 2000))


@pytest.mark.parametrize("kind", ["alphafuse", "morec"])
def test_a_switch_leaves_the_other_checks(kind, tmp_path, data):
    run = trained(tmp_path, data, item_embedding=kind)
    items, rows = new_items()
    turn, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(WIDTH, WIDTH)))
    other = ((language(3, 7) - language(3, 7).mean(0)) @ turn * 4).astype(np.float32)
    with pytest.raises(ValueError, match=r"embeddings: got .* of another model.*any_embeddings"):
        run.add_items(items, other)
    assert len(run.add_items(items, other, any_embeddings=True).items) == 83
    broken = rows.copy()
    broken[1, 3] = np.inf
    for wrong, message in (
        (rows[:, :12].copy(), "embeddings: got"),
        (broken, "inf in row 1, column 3"),
        (rows * np.float32(100), "rows of norm"),
        (rows * np.float32(0.01), "rows of norm"),
    ):
        with pytest.raises(ValueError, match=message):
            run.add_items(items, wrong, any_embeddings=True)
    with pytest.raises(TypeError, match="of dtype int64"):
        run.add_items(items, rows.astype(np.int64), any_embeddings=True)
