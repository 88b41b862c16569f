"""Runs that rank by their model's softmax mixed with item-to-item neighbors."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import alphafuse_ext as af
from alphafuse_ext.cli import main
from alphafuse_ext.config import model as declared
from alphafuse_ext.config.presets import PRESETS, with_preset
from alphafuse_ext.data import Sequences, synthetic_catalog
from alphafuse_ext.evaluation.mixture_choice import LARGER_WEIGHTS, choose_weights
from alphafuse_ext.evaluation.run_neighbors import RunNeighbors
from alphafuse_ext.evaluation.tables import results_table
from alphafuse_ext.integrations.hub import HubRecommender
from alphafuse_ext.serving.offline import digests, write_recommendations
from alphafuse_ext.training import train as training

SMALL = {"dim": 16, "null_dim": 12, "epochs": 2, "history": 6, "log": lambda line: None}
ITEMS, NEW = 90, 6


@pytest.fixture(scope="module")
def shop():
    """Clicks, items and language embeddings, of which the last items are for later."""
    clicks, items = synthetic_catalog(num_users=201, num_items=ITEMS + NEW, seed=2)
    clicks = clicks[clicks["item_id"].isin(items["item_id"][:ITEMS])]
    rows = np.random.default_rng(1).standard_normal((len(items), 24), dtype=np.float32)
    return clicks, items, rows


def trained(shop, folder, **options):
    clicks, items, rows = shop
    given = {**SMALL, "neighbors": True, **options}
    return af.fit(clicks, items[:ITEMS], rows[:ITEMS], folder, **given)


@pytest.fixture(scope="module")
def run(shop, tmp_path_factory):
    """To read only."""
    lines = []
    folder = tmp_path_factory.mktemp("mixed") / "run"
    trained(shop, folder, log=lines.append)
    (folder.parent / "log.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture
def mixed(run):
    return af.Recommender.load(run)


def by_definition(recommender, histories):
    """Probabilities (B, N) of every item, in float64, and those of the model and of the lists."""
    model, beside = recommender.model, recommender.neighbors
    with torch.inference_mode():
        table = model.table(torch.arange(model.table.num_embeddings)).double()
        longest = model.history
        queries = [model.encode(torch.tensor(one[-longest:])[None])[0] for one in histories]
        scores = torch.stack(queries).double() @ table.T
    softmax = torch.softmax(scores / beside.temperature, 1).numpy()
    found = beside.neighbors.probabilities(Sequences.from_lists(histories), most=None)
    knn = np.zeros_like(softmax)
    for row in range(len(histories)):
        ids, values = found[row]
        knn[row, ids] = values
    parts = (1 - beside.weight) * softmax, beside.weight * knn
    return sum(parts), *parts


def users_of(recommender, count=25):
    users = recommender.interactions.users[:count]
    return users, [recommender.interactions.sequences[user].tolist() for user in range(count)]


def test_a_run_keeps_and_says_what_was_chosen(run, mixed):
    results = mixed.run.results()
    record, select = results["neighbors"], mixed.config.select
    best = max(line[select] for line in record["grid"])
    assert record["validation"][select] == pytest.approx(best, abs=0)
    chosen = {name: record[name] for name in ("weight", "language_weight", "temperature")}
    assert {**chosen, select: best} in record["grid"]
    assert len(record["grid"]) == 10 + {0.5: 1, 0.7: 2, 0.9: 2}.get(record["weight"], 0)
    assert chosen["temperature"] == mixed.config.temperature == 1.0
    assert json.loads((run / "mixture.json").read_text()) == chosen == mixed.neighbors.weights()
    epoch = mixed.run.epochs()[results["best_epoch"] - 1]
    assert record["validation_of_the_model"] == epoch["validation"]
    assert results["validation"] == record["validation"] == mixed.evaluate("validation")
    assert results["test"] == mixed.evaluate()
    assert results["model_alone"]["test"] == mixed.evaluate(neighbors=False)
    assert results["test"] != results["model_alone"]["test"]
    assert record["weight"] > 0
    printed = (run.parent / "log.txt").read_text()
    assert "neighbors: co-occurrence, language embeddings, TF-IDF of the texts" in printed
    assert f"neighbors: weight {chosen['weight']:g}, language weight" in printed
    assert "model alone" in printed


def test_training_is_the_same_with_and_without(shop, run, tmp_path):
    plain = trained(shop, tmp_path / "plain", neighbors=False)
    beside = af.Recommender.load(run)
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, beside.model.state_dict()[name])
    assert plain.neighbors is None
    assert not list((tmp_path / "plain").glob("*item-neighbors*"))
    assert "neighbors" not in plain.run.results()
    pd.testing.assert_frame_equal(plain.recommend(k=4), beside.recommend(k=4, neighbors=False))
    with pytest.raises(ValueError, match="neighbors: got True; expected None or False"):
        plain.recommend(k=4, neighbors=True)
    with pytest.raises(ValueError, match="neighbors: got True"):
        plain.evaluate(neighbors=True)


@pytest.mark.parametrize("which", ["all", "keep_seen", "only", "lists", "retired"])
def test_recommendations_are_those_of_the_definition(mixed, which):
    # A model of two epochs would be left a tenth, and name nothing.
    mixed = mixed.changed("weights", neighbors=mixed.neighbors.weighted(0.5, 1.0, 1.0))
    users, histories = users_of(mixed)
    whole, of_model, of_lists = by_definition(mixed, histories)
    generator, options, tokens = np.random.default_rng(3), {}, mixed.items.tokens
    ranked = np.ones_like(whole, dtype=bool)
    if which == "only":
        some = generator.choice(ITEMS, 30, replace=False)
        options["only"], ranked = tokens[some].tolist(), np.zeros_like(ranked)
        ranked[:, some] = True
    elif which == "lists":
        lists = [generator.choice(ITEMS, 20, replace=False) for _ in users]
        options["only"], ranked = [tokens[some].tolist() for some in lists], np.zeros_like(ranked)
        for row, some in enumerate(lists):
            ranked[row, some] = True
    elif which == "retired":
        gone = generator.choice(ITEMS, 40, replace=False)
        mixed, ranked[:, gone] = mixed.retire_items(tokens[gone].tolist()), False
    if which != "keep_seen":
        for row, history in enumerate(histories):
            ranked[row, history] = False
    frame = mixed.recommend(users, k=8, keep_seen=which == "keep_seen", batch_size=7, **options)
    assert list(frame.columns)[-2:] == ["score", "from"]
    names = set()
    for row, user in enumerate(users):
        mine = frame[frame["user"] == user]
        p = np.where(ranked[row], whole[row], -1)
        best = np.argsort(-p, kind="stable")[: min(8, ranked[row].sum())]
        np.testing.assert_allclose(mine["score"], np.log(p[best]), rtol=1e-4)
        assert mine["item"].tolist() == tokens[best].tolist()
        from_lists = of_lists[row, best] > of_model[row, best]
        assert (mine["from"] != "model").tolist() == from_lists.tolist()
        names |= set(mine["from"])
    assert {"model", "bought together"} <= names


def test_what_is_alike_by_text_is_named_so(mixed):
    users, histories = users_of(mixed)
    beside = mixed.neighbors.weighted(0.9, 50.0, 1.0)
    changed = mixed.changed("weights", neighbors=beside)
    frame = changed.recommend(users, k=5)
    ids = changed.interactions.item_index(frame["item"]).reshape(len(users), -1)
    shares = beside.neighbors.language_share(Sequences.from_lists(histories), ids).ravel()
    by_text = frame["from"].to_numpy() == "alike by text"
    assert by_text.any()
    assert (shares[by_text] > 0.5).all()


@pytest.mark.parametrize("count", [2, 12])
@pytest.mark.parametrize("options", [{"exclude": 7}, {"where": {"kind": ["a", "b"]}}], ids=str)
def test_filters_of_mixed_lists(mixed, count, options):
    """What is left of whole lists, and where it comes from."""
    tokens = mixed.items.tokens
    kinds = pd.Series([("a", "b", "c")[n % 3] for n in range(len(tokens))], index=tokens)
    columns = pd.DataFrame({"kind": pd.Categorical(kinds)})
    shop = mixed.changed("columns", items=dataclasses.replace(mixed.items, columns=columns))
    users = shop.interactions.users[:count].tolist()
    whole = shop.recommend(users, k=len(tokens))
    if "exclude" in options:
        options = {"exclude": tokens[:: options["exclude"]].tolist()}
        kept = whole[~whole["item"].isin(options["exclude"])]
    else:
        kept = whole[whole["item"].map(kinds).isin(["a", "b"])]
    wanted = kept[kept.groupby(["user", kept["item"].map(kinds)]).cumcount() < 2]
    found = shop.recommend(users, k=4, at_most=2, by="kind", **options)
    wanted = wanted.groupby("user", sort=False).head(4)
    for name in ("user", "item", "from"):
        assert found[name].tolist() == wanted[name].tolist()


@pytest.mark.parametrize("retired", [False, True])
def test_metrics_are_of_the_recommended_lists(mixed, retired):
    if retired:
        mixed = mixed.retire_items(mixed.items.tokens[:20].tolist())
    evaluation = mixed.evaluate_in_detail("test", progress=False)
    examples = mixed.split.test
    tokens = mixed.items.tokens
    histories = [tokens[examples.histories[row]].tolist() for row in range(len(examples))]
    frame = mixed.recommend(histories=histories, k=50)
    ranks = evaluation.ranks_by_seen_items["excluded"]
    targets = tokens[examples.targets]
    hits = frame[frame["item"].to_numpy() == targets[frame["user"]]]
    found = dict(zip(hits["user"], hits["rank"] - 1, strict=True))
    expected = {row: rank for row, rank in enumerate(ranks.tolist()) if rank < 50}
    assert found == expected
    assert len(found) > 20
    assert mixed.evaluate(ties="mean")["ndcg@10"] == pytest.approx(
        evaluation.metrics["ndcg@10"], abs=2e-3
    )


def test_a_metric_of_ones_own_is_given_the_mixed_lists(shop, tmp_path):
    recommender = trained(shop, tmp_path / "run", metric=hits, metric_k=10, epochs=1)
    assert recommender.own_metrics()["hits@10"] == recommender.evaluate_in_detail().metrics["hr@10"]
    alone = recommender.evaluate_in_detail(neighbors=False).metrics["hr@10"]
    assert recommender.own_metrics(neighbors=False)["hits@10"] == alone
    assert recommender.run.results()["own_metrics"] == recommender.own_metrics()


def hits(lists, targets, item_counts):
    return (lists == targets[:, None]).any(1).mean()


def test_new_items_have_neighbors_at_once(shop, mixed, tmp_path):
    _, items, rows = shop
    added = mixed.add_items(items[ITEMS:], rows[ITEMS:], any_embeddings=True)
    lists = added.neighbors.neighbors
    assert lists.num_items == ITEMS + NEW
    assert all(np.diff(kind.cosines.offsets)[ITEMS:].all() for kind in lists.language)
    whole = af.ItemNeighbors.from_histories(
        mixed.split.train,
        ITEMS + NEW,
        [af.items.language_neighbors.Language(rows, share=0.4)],
    )
    assert np.array_equal(lists.together.ids, whole.together.ids)
    saved = added.save(tmp_path / "saved")
    pd.testing.assert_frame_equal(saved.recommend(k=5), added.recommend(k=5))
    users, histories = users_of(saved, 9)
    p = by_definition(saved, histories)[0]
    for row, history in enumerate(histories):
        p[row, history] = -1
    best = saved.items.tokens[np.argsort(-p, 1, kind="stable")[:, :5]]
    assert saved.recommend(users, k=5)["item"].tolist() == best.ravel().tolist()
    again = saved.retire_items([items["item_id"].iloc[-1]]).save(tmp_path / "retired")
    assert again.neighbors.weights() == mixed.neighbors.weights()
    assert digests(again)["model"] == digests(saved)["model"]


def test_new_items_without_embeddings_are_refused(shop, mixed):
    with pytest.raises(ValueError, match="embeddings: got None"):
        mixed.neighbors.with_items(None, None, 2)
    with pytest.raises(ValueError, match="embeddings: got 3 columns; expected 24"):
        mixed.neighbors.with_items(np.ones((2, 3), np.float32), None, 2)


def test_an_extended_run_counts_anew_and_chooses_again(shop, run, tmp_path):
    _, items, rows = shop
    token, old = items["item_id"].iloc[ITEMS], items["item_id"].iloc[0]
    more = pd.DataFrame(
        {"user_id": ["x", "x", "x", "x"], "item_id": [old, token, old, token], "timestamp": 1}
    )
    more["timestamp"] += np.arange(4) + 2_000_000_000
    longer = af.extend(
        run, more, items[ITEMS:], rows[ITEMS:], tmp_path / "longer", epochs=1,
        any_embeddings=True, log=lambda line: None,
    )  # fmt: skip
    lists = longer.neighbors.neighbors
    expected = lists.with_histories(longer.split.train)
    assert np.array_equal(lists.together.ids, expected.together.ids)
    assert ITEMS in lists.together[0][0]
    assert all(np.diff(kind.cosines.offsets)[ITEMS:].all() for kind in lists.language)
    results = longer.run.results()
    assert results["test"] == longer.evaluate()
    assert results["neighbors"]["weight"] == longer.neighbors.weight


def test_new_items_of_a_run_on_ids_alone_need_what_its_neighbors_are_found_by(shop, tmp_path):
    clicks, items, rows = shop
    options = {**SMALL, "epochs": 1, "neighbors": True, "item_embedding": "id"}
    del options["null_dim"]
    af.fit(clicks, items[:ITEMS], rows[:ITEMS], tmp_path / "run", **options)
    tokens = items["item_id"].iloc[[0, ITEMS, 1, 2]].tolist()
    more = pd.DataFrame({"user_id": "x", "item_id": tokens})
    more["timestamp"] = np.arange(4) + 2_000_000_000
    how = {"log": lambda line: None, "epochs": 1}
    with pytest.raises(ValueError, match="embeddings: got None, of a run whose language"):
        af.extend(tmp_path / "run", more, items[ITEMS:], output=tmp_path / "no", **how)
    longer = af.extend(
        tmp_path / "run", more, items[ITEMS:], rows[ITEMS:], tmp_path / "longer", **how
    )
    lists = longer.neighbors.neighbors
    assert lists.num_items == ITEMS + NEW
    assert all(np.diff(kind.cosines.offsets)[ITEMS:].all() for kind in lists.language)
    assert ITEMS in lists.together[0][0]


def test_an_upgrade_finds_neighbors_by_the_new_embeddings(shop, mixed):
    other = np.random.default_rng(7).standard_normal((ITEMS, 30), dtype=np.float32)
    upgraded = mixed.upgrade_embeddings(other).recommender
    lists, before = upgraded.neighbors.neighbors, mixed.neighbors.neighbors
    expected = af.ItemNeighbors.from_histories(
        mixed.split.train, ITEMS, [af.items.language_neighbors.Language(other, share=0.4)]
    )
    assert np.array_equal(lists.language[0].cosines.ids, expected.language[0].cosines.ids)
    assert np.array_equal(lists.language[1].cosines.ids, before.language[1].cosines.ids)
    assert [kind.share for kind in lists.language] == [0.4, 0.6]
    assert upgraded.neighbors.weights() == mixed.neighbors.weights()


def test_an_interrupted_run_ranks_when_it_has_ended(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    for name in ("results.json", "mixture.json"):
        (copy / name).unlink()
    begun = af.Recommender.load(copy)
    with pytest.raises(ValueError, match="neighbors: got True; expected None or False: training"):
        begun.recommend(k=3, neighbors=True)
    with pytest.warns(UserWarning, match="neighbors: training has not ended"):
        found = begun.recommend(k=3)
    pd.testing.assert_frame_equal(found, begun.recommend(k=3, neighbors=False))
    resumed = af.resume(copy, log=lambda line: None)
    pd.testing.assert_frame_equal(resumed.recommend(k=3), af.Recommender.load(run).recommend(k=3))


@pytest.mark.parametrize(
    ("kind", "made_of"),
    [
        ("both", ["co-occurrence", "language embeddings", "TF-IDF of the texts"]),
        ("embeddings", ["co-occurrence", "language embeddings"]),
        ("texts", ["co-occurrence", "TF-IDF of the texts"]),
        ("none", ["co-occurrence"]),
    ],
)
def test_item_ids_alone_have_the_lists_that_there_are(shop, tmp_path, kind, made_of):
    clicks, items, rows = shop
    texts = items[:ITEMS] if kind in ("both", "texts") else items[["item_id"]][:ITEMS]
    rows = rows[:ITEMS] if kind in ("both", "embeddings") else None
    options = {**SMALL, "neighbors": True, "item_embedding": "id", "epochs": 1}
    del options["null_dim"]
    recommender = af.fit(clicks, texts, rows, tmp_path / "run", **options)
    assert recommender.neighbors.made_of == made_of
    assert recommender.run.results()["neighbors"]["made_of"] == made_of
    shares = [kind.share for kind in recommender.neighbors.neighbors.language]
    assert shares == [[], [1.0], [0.4, 0.6]][len(made_of) - 1]
    alone = recommender.run.results()["model_alone"]["test"]["ndcg@10"]
    assert recommender.evaluate()["ndcg@10"] > alone


@pytest.mark.parametrize(
    ("options", "searched"),
    [
        ({"loss": "infonce"}, False),
        ({"loss": "sampled_softmax", "negatives": 8, "temperature": 0.5}, False),
        ({"loss": "bce", "negatives": 8}, True),
        ({"loss": "cross_entropy", "ranking_similarity": "cosine"}, True),
        ({"model": "dreamrec", "timesteps": 8, "stride": 4}, True),
        ({"loss": "bce", "neighbors_temperature": 2.0}, False),
    ],
)
def test_the_temperature_is_the_losss_or_chosen(shop, tmp_path, options, searched):
    recommender = trained(shop, tmp_path / "run", epochs=1, **options)
    grid = recommender.run.results()["neighbors"]["grid"]
    tried = {line["temperature"] for line in grid}
    assert len(tried) == (4 if searched else 1)
    if not searched:
        own = recommender.config.neighbors_temperature or recommender.config.temperature
        assert tried == {own}
    best = max(line["ndcg@20"] for line in grid)
    assert recommender.evaluate("validation")["ndcg@20"] == best


def test_a_model_that_knows_nothing_leaves_most_to_the_lists(mixed):
    model = copy.deepcopy(mixed.model)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    given = (model, mixed.config, mixed.split.validation)
    _, record = choose_weights(mixed.neighbors, *given)
    assert record["weight"] in LARGER_WEIGHTS
    values = {line["weight"]: line["ndcg@20"] for line in record["grid"]}
    assert values[record["weight"]] == max(values.values()) > values[0.5]
    fixed = mixed.config.replace(neighbors_weight=0.5)
    assert choose_weights(mixed.neighbors, model, fixed, given[2])[1]["weight"] == 0.5


def test_weights_that_are_given_are_kept(shop, tmp_path):
    given = {"neighbors_weight": 0.35, "neighbors_language_weight": 0.7}
    recommender = trained(shop, tmp_path / "run", epochs=1, **given)
    record = recommender.run.results()["neighbors"]
    assert (record["weight"], record["language_weight"]) == (0.35, 0.7)
    assert len(record["grid"]) == 2  # with them and without
    everyone = trained(shop, tmp_path / "everyone", epochs=1, protocol="none", **given)
    assert everyone.neighbors.weights() == recommender.neighbors.weights()
    assert "from" in everyone.recommend(k=2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"neighbors": True, "protocol": "none"}, "neighbors_weight and neighbors_language_weight"),
        (
            {
                **{"neighbors": True, "protocol": "none", "loss": "bce"},
                **{"neighbors_weight": 0.1, "neighbors_language_weight": 1.0},
            },
            "expected neighbors_temperature beside it",
        ),
        ({"neighbors": False, "neighbors_weight": 0.1}, "neighbors=True"),
        ({"neighbors": True, "neighbors_weight": 1.0}, "neighbors_weight < 1"),
        ({"neighbors": True, "neighbors_language_weight": -1.0}, "neighbors_language_weight"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        af.Config(**settings)


def test_parts_are_of_one_ranking(mixed, tmp_path):
    write_recommendations(mixed, tmp_path / "parts", 3, k=4)
    frames = [pd.read_parquet(path) for path in sorted((tmp_path / "parts").glob("*.parquet"))]
    pd.testing.assert_frame_equal(pd.concat(frames, ignore_index=True), mixed.recommend(k=4))
    assert write_recommendations(mixed, tmp_path / "parts", 3, k=4) == (0, 0)
    for other, options in (
        (mixed, {"neighbors": False}),
        (mixed.changed("weights", neighbors=mixed.neighbors.weighted(0.1, 1.0, 1.0)), {}),
    ):
        with pytest.raises(ValueError, match="parts are of other model"):
            write_recommendations(other, tmp_path / "parts", 3, k=4, **options)


def test_an_export_has_the_lists_and_the_formula(mixed, tmp_path):
    folder = mixed.export(tmp_path / "export")
    described = json.loads((folder / "export.json").read_text())["neighbors"]
    tensors = {name: t.numpy() for name, t in load_file(folder / described["file"]).items()}
    history = mixed.interactions.sequences[3]
    ages = np.arange(len(history))[::-1]

    def mean(name, decay):
        total = np.zeros(ITEMS)
        offsets, ids = tensors[f"{name}.offsets"], tensors[f"{name}.ids"]
        for item, share in zip(history, decay**ages / (decay**ages).sum(), strict=True):
            where = slice(offsets[item], offsets[item + 1])
            total[ids[where]] += share * tensors[f"{name}.values"][where]
        return total

    assert len(history) <= described["last"]
    knn = mean("together", described["decay"])
    knn += described["language_weight"] * mean("language", described["language_decay"])
    found = mixed.neighbors.neighbors.probabilities(Sequences.from_lists([history]), most=None)
    ids, values = found[0]
    np.testing.assert_allclose(knn[ids] / knn.sum(), values, rtol=1e-4)
    assert set(np.flatnonzero(knn)) == set(ids)


def test_the_hub_keeps_them(mixed, tmp_path):
    HubRecommender(mixed).save_pretrained(tmp_path / "hub")
    again = HubRecommender.from_pretrained(str(tmp_path / "hub")).recommender
    history = mixed.items.tokens[:3].tolist()
    frames = [one.recommend(histories=[history], k=5) for one in (again, mixed)]
    pd.testing.assert_frame_equal(*frames)


def test_commands_rank_with_and_without(run, mixed, capsys, tmp_path):
    assert main(["evaluate", str(run), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["metrics"] == mixed.evaluate()
    assert report["neighbors"] == mixed.neighbors.weights()
    assert main(["evaluate", str(run), "--json", "--no-neighbors"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone["metrics"] == mixed.evaluate(neighbors=False)
    assert main(["evaluate", str(run)]) == 0
    assert "  model alone " in capsys.readouterr().out
    for flags in ([], ["--no-neighbors"]):
        output = tmp_path / f"{len(flags)}.parquet"
        assert main(["recommend", str(run), "--output", str(output), *flags]) == 0
        expected = mixed.recommend(neighbors=False if flags else None)
        pd.testing.assert_frame_equal(pd.read_parquet(output), expected)
    user = str(mixed.interactions.users[0])
    capsys.readouterr()
    assert main(["recommend", str(run), "--users", user]) == 0
    assert "(bought together)" in capsys.readouterr().out


@pytest.mark.parametrize("has_lists", [True, False])
def test_either_kind_of_lists_alone_is_a_baseline(has_lists, shop, mixed, tmp_path, monkeypatch):
    """By definition: nine tenths of the lists' probability, one tenth of popularity's."""
    recommender = mixed
    if not has_lists:
        monkeypatch.setattr(declared, "NEIGHBORS_UP_TO", ITEMS)
        recommender = trained(shop, tmp_path / "run", epochs=1, neighbors=False)
        assert not {"bought together", "alike by text"} & recommender.baselines().keys()
    found = recommender.run.results()["baselines"]
    if has_lists:
        assert recommender.baselines() == found
    split = recommender.split
    counts = split.train_item_counts(ITEMS)
    popular = np.log1p(counts)
    popular = np.exp(popular) / np.exp(popular).sum()
    texts = recommender.items.texts
    lists = mixed.neighbors if has_lists else RunNeighbors.fit(split.train, ITEMS, None, texts)
    for name, place in (("bought together", 0), ("alike by text", 1)):
        matrix = lists.neighbors.matrices()[place].toarray()
        decay = (0.85, 0.7)[place]
        ranks = {"excluded": [], "ranked": []}
        for row in range(len(split.test)):
            history, target = split.test.histories[row], split.test.targets[row]
            weights = decay ** np.arange(len(history))[::-1].astype(float)
            knn = (weights / weights.sum()) @ matrix[history]
            knn = knn / knn.sum() if knn.sum() else knn
            scores = 0.1 * popular + 0.9 * knn
            for seen, own in ranks.items():
                if seen == "excluded" and target in history:
                    own.append(10**9)
                    continue
                kept = np.ones(ITEMS, bool)
                kept[history if seen == "excluded" else []] = False
                own.append(int((scores[kept] > scores[target]).sum()))
        for seen, own in ranks.items():
            hits = np.mean(np.array(own) < 20)
            # Equal scores are ordered by id there, and rounding may part them here.
            assert found[name]["by_seen_items"][seen]["hr@20"] == pytest.approx(hits, abs=0.02)
    table = results_table(recommender.run.results())
    assert "alike by text: by the likeness" in table
    (line, *_) = [one for one in table.splitlines() if one.startswith("  bought together ")]
    assert len(line) == 80


def test_a_damaged_file_is_named(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "mixture.json").write_text('{"weight": 2, "language_weight": 1, "temperature": 1}')
    with pytest.raises(ValueError, match=r"mixture\.json"):
        af.Recommender.load(copy)
    (copy / "item-neighbors.safetensors").unlink()
    with pytest.raises(ValueError, match="neighbors without their lists"):
        af.Recommender.load(copy)


# --- the default


@pytest.fixture
def usual(monkeypatch):
    """The default as users have it, of which other tests leave out the neighbors."""
    for module in (declared, training):
        monkeypatch.setattr(module, "NEIGHBORS_UP_TO", 95)


def test_neighbors_are_the_default_where_weights_can_be_chosen(usual, shop, tmp_path):
    clicks, items, rows = shop
    lines = []

    def fitted(name, count=ITEMS, **options):
        lines.clear()
        some = items[:count], rows[:count]
        given = {**SMALL, "epochs": 1, "log": lines.append, **options}
        return af.fit(clicks, *some, tmp_path / name, **given)

    usual_run = fitted("usual")
    assert usual_run.config.neighbors is True
    assert usual_run.run.results()["neighbors"]["validation_of_the_model"]
    assert any("by the model alone, " in line for line in lines)
    assert fitted("off", neighbors=False).neighbors is None
    assert not any(line.startswith("neighbors") for line in lines)
    assert fitted("everything", protocol="none").neighbors is None
    assert any("neighbors: off, as nothing is held out" in line for line in lines)
    assert fitted("large", ITEMS + NEW).neighbors is None
    assert "neighbors: off, as the catalog has more than 95 items; on with neighbors=True (" \
        "--neighbors)" in lines  # fmt: skip
    assert fitted("asked", ITEMS + NEW, neighbors=True).config.neighbors
    of_ids = fitted("ids", item_embedding="id", null_dim=None)
    assert "language embeddings" in of_ids.neighbors.made_of
    assert fitted("weighed", ITEMS + NEW, neighbors_weight=0.1).neighbors.weight == 0.1


def test_records_from_before_the_default_are_without_neighbors(usual, shop, tmp_path):
    clicks, items, rows = shop
    config = af.Config(dim=8).resolve(24, ITEMS)
    assert config.neighbors is True
    for weight in ("neighbors_weight", "neighbors_language_weight", "neighbors_temperature"):
        assert weight in config.to_dict()
    recorded = {k: v for k, v in config.to_dict().items() if not k.startswith("neighbors")}
    assert af.Config.from_record(recorded).neighbors is False
    run = af.fit(clicks, items[:ITEMS], rows[:ITEMS], tmp_path / "run", **SMALL, neighbors=False)
    path = tmp_path / "run" / "config.json"
    described = json.loads(path.read_text())
    assert described["config"].pop("neighbors") is False
    path.write_text(json.dumps(described))
    again = af.Recommender.load(tmp_path / "run")
    assert again.config == run.config
    pd.testing.assert_frame_equal(again.recommend(k=3), run.recommend(k=3))
    assert af.Config.from_record(af.Config(model="neighbors").to_dict()).neighbors is True


@pytest.mark.parametrize("name", PRESETS)
def test_published_settings_are_without_neighbors(usual, name):
    assert af.Config(**with_preset(name, {})).neighbors is False
    assert af.Config(**with_preset(name, {"neighbors": True})).neighbors is True


# --- lists alone


@pytest.fixture(scope="module")
def lists_run(shop, tmp_path_factory):
    """Of lists alone, to read only."""
    clicks, items, rows = shop
    folder, lines = tmp_path_factory.mktemp("lists") / "run", []
    given = {"model": "neighbors", "neighbors_language_weight": 1.0, "log": lines.append}
    af.fit(clicks, items[:ITEMS], rows[:ITEMS], folder, **given)
    (folder.parent / "log.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture
def lists_alone(lists_run):
    return af.Recommender.load(lists_run)


def test_lists_alone_rank_by_lists_and_then_by_popularity(lists_run, lists_alone):
    users, histories = users_of(lists_alone)
    counts = lists_alone.split.train_item_counts(ITEMS)
    found = lists_alone.neighbors.neighbors.probabilities(Sequences.from_lists(histories))
    p = np.tile(0.1 * (counts + 1) / (counts + 1).sum(), (len(users), 1))
    for row, history in enumerate(histories):
        ids, values = found[row]
        p[row, ids] += 0.9 * values
        p[row, history] = -1
    best = np.argsort(-p, 1, kind="stable")[:, :40]
    frame = lists_alone.recommend(users, k=40)
    np.testing.assert_allclose(
        frame["score"].to_numpy().reshape(len(users), 40),
        np.log(np.take_along_axis(p, best, 1)),
        rtol=1e-4,
    )
    assert {"bought together", "alike by text"} <= set(frame["from"])
    results = lists_alone.run.results()
    assert results["test"] == lists_alone.evaluate()
    assert results["validation"] == lists_alone.evaluate("validation")
    assert results["test"]["ndcg@10"] > 2 * results["popularity"]["ndcg@10"]
    assert (results["epochs"], results["trainable_parameters"]) == (0, 0)
    assert "model_alone" not in results
    assert not lists_alone.run.has("metrics.jsonl")
    printed = (lists_run.parent / "log.txt").read_text()
    assert "lists of neighbors alone, nothing to train" in printed
    assert "by popularity alone" in printed
    with pytest.raises(ValueError, match="neighbors: got False; expected True or None"):
        lists_alone.recommend(users, neighbors=False)


def test_the_weight_of_language_is_chosen_for_lists_alone(shop, tmp_path):
    clicks, items, rows = shop
    folder = tmp_path / "run"
    chosen = af.fit(clicks, items[:ITEMS], rows[:ITEMS], folder, model="neighbors", log=None)
    record = chosen.run.results()["neighbors"]
    assert [line["language_weight"] for line in record["grid"]] == [0, 0.25, 0.5, 1, 2, 0]
    assert [line["weight"] for line in record["grid"]] == [*[0.9] * 5, 0]
    best = max(line["ndcg@20"] for line in record["grid"])
    assert record["validation"]["ndcg@20"] == chosen.evaluate("validation")["ndcg@20"] == best


def test_items_alike_by_lists_alone(lists_alone):
    tokens = lists_alone.items.tokens[[3, 7]].tolist()
    frame = lists_alone.recommend_to_items(tokens, k=ITEMS)
    for item, rows in frame.groupby("target_item"):
        place = lists_alone.interactions.item_index([item])[0]
        own = Sequences.from_lists([[place]])
        found = lists_alone.neighbors.neighbors.probabilities(own, exclude=own)
        ids, values = found[0]
        assert lists_alone.interactions.item_index(rows["item"]).tolist() == ids.tolist()
        np.testing.assert_allclose(rows["score"], np.log(values), rtol=1e-3)
        assert rows["rank"].tolist() == list(range(1, len(ids) + 1))
    assert set(frame["from"]) == {"bought together", "alike by text"}
    some = lists_alone.items.tokens[20:60].tolist()
    assert set(lists_alone.recommend_to_items(tokens, k=3, only=some)["item"]) <= set(some)
    for option in ({"part": "semantic"}, {"similarity": "dot"}):
        with pytest.raises(ValueError, match="without a model: of each item there are lists alone"):
            lists_alone.recommend_to_items(tokens, **option)


def test_lists_alone_take_new_items_and_new_clicks(shop, lists_alone, lists_run, tmp_path):
    clicks, items, rows = shop
    added = lists_alone.add_items(items[ITEMS:], rows[ITEMS:])
    saved = added.save(tmp_path / "added")
    pd.testing.assert_frame_equal(saved.recommend(k=4), added.recommend(k=4))
    kinds = saved.neighbors.neighbors.language
    assert all(np.diff(kind.cosines.offsets)[ITEMS:].all() for kind in kinds)
    tokens = items["item_id"].iloc[[0, ITEMS, 1, 2]].tolist()
    more = pd.DataFrame({"user_id": "x", "item_id": tokens})
    more["timestamp"] = np.arange(4) + 2_000_000_000
    folder = tmp_path / "longer"
    longer = af.extend(lists_run, more, items[ITEMS:], rows[ITEMS:], folder, log=None)
    every, whole = pd.concat([clicks, more]), tmp_path / "whole"
    given = longer.neighbors.weights()
    anew = af.fit(
        every, items, rows, whole, model="neighbors", log=None,
        neighbors_language_weight=given["language_weight"],
    )  # fmt: skip
    assert torch.equal(longer.model.table.semantic_rows, anew.model.table.semantic_rows)
    assert np.array_equal(
        longer.neighbors.neighbors.together.values, anew.neighbors.neighbors.together.values
    )
    assert longer.run.results()["test"] == longer.evaluate()
    for name, value in (("epochs", 2), ("dropout", 0.1)):
        with pytest.raises(ValueError, match=f"{name}: got {value}; expected none with model"):
            af.extend(lists_run, more, output=tmp_path / "no", **{name: value})


def test_lists_by_cooccurrence_alone_take_items_with_their_clicks(shop, tmp_path):
    clicks, items, _ = shop
    plain = items[["item_id"]]
    run = af.fit(clicks, plain[:ITEMS], None, tmp_path / "run", model="neighbors", log=None)
    assert run.neighbors.made_of == ["co-occurrence"]
    assert run.run.results()["neighbors"]["language_weight"] == 0
    users, histories = users_of(run)
    frame, counts = run.recommend(users, k=60), run.split.train_item_counts(ITEMS)
    found = run.neighbors.neighbors.probabilities(Sequences.from_lists(histories), most=None)
    unlisted = 0
    for row, user in enumerate(users):
        own = frame[frame["user"] == user]
        ids = run.interactions.item_index(own["item"])
        listed = np.isin(ids, found[row][0])
        unlisted += np.count_nonzero(~listed)
        assert set(own["from"][~listed]) <= {"popular"}
        assert (np.diff(counts[ids[~listed]]) <= 0).all()
    assert unlisted > 10
    with pytest.raises(ValueError, match="items: got new items, in a run of neighbors by co-occ"):
        run.add_items(plain[ITEMS:])
    tokens = items["item_id"].iloc[[0, ITEMS, 1, 2]].tolist()
    more = pd.DataFrame({"user_id": "x", "item_id": tokens})
    more["timestamp"] = np.arange(4) + 2_000_000_000
    longer = af.extend(run.run.path, more, plain[ITEMS:], output=tmp_path / "longer", log=None)
    assert ITEMS in longer.neighbors.neighbors.together[0][0]


def test_lists_of_everything_need_their_weight(shop, tmp_path):
    clicks, items, rows = shop
    options = {"model": "neighbors", "protocol": "none", "log": None}
    with pytest.raises(ValueError, match="expected neighbors_language_weight beside it"):
        af.fit(clicks, items[:ITEMS], rows[:ITEMS], tmp_path / "no", **options)
    run = af.fit(
        clicks, items[:ITEMS], rows[:ITEMS], tmp_path / "run",
        neighbors_language_weight=0.5, **options,
    )  # fmt: skip
    assert run.neighbors.weights() == {"weight": 0.9, "language_weight": 0.5, "temperature": 1.0}
    assert len(run.recommend(k=3)) == 3 * run.interactions.num_users


def test_an_interrupted_run_of_lists_alone_ends_when_it_is_resumed(lists_run, tmp_path):
    copy = shutil.copytree(lists_run, tmp_path / "copy")
    for name in ("results.json", "mixture.json"):
        (copy / name).unlink()
    with pytest.raises(ValueError, match="epochs: got 3; expected none with model=neighbors"):
        af.resume(copy, log=None, epochs=3)
    resumed = af.resume(copy, log=None)
    assert resumed.run.results()["test"] == af.Recommender.load(lists_run).evaluate()


def test_what_lists_alone_cannot_do_is_refused(lists_alone, lists_run, tmp_path, capsys):
    for name in ("faiss", "onnx"):
        pytest.importorskip(name)
        with pytest.raises(NotImplementedError, match=f"to: got {name}"):
            lists_alone.export(tmp_path / "no", [name])
    with pytest.raises(NotImplementedError, match="run: got a run without a model"):
        lists_alone.upgrade_embeddings(np.ones((ITEMS, 4), np.float32))
    assert main(["geometry", str(lists_run)]) == 2
    assert "run: got a run without a model" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_an_export_of_lists_alone_ranks_as_they_do(lists_alone, tmp_path):
    folder = lists_alone.export(tmp_path / "export")
    described = json.loads((folder / "export.json").read_text())["neighbors"]
    assert described["weight"] == 0.9
    assert "the same for every history" in described["scores"]
    scores = load_file(folder / "items.safetensors")["embeddings"].squeeze(1).exp()
    counts = lists_alone.split.train_item_counts(ITEMS)
    np.testing.assert_allclose(scores, counts + 1, rtol=1e-5)


def test_the_hub_keeps_lists_alone(lists_alone, tmp_path):
    HubRecommender(lists_alone).save_pretrained(tmp_path / "hub")
    again = HubRecommender.from_pretrained(str(tmp_path / "hub")).recommender
    history = lists_alone.items.tokens[:3].tolist()
    frames = [one.recommend(histories=[history], k=5) for one in (again, lists_alone)]
    pd.testing.assert_frame_equal(*frames)


def test_commands_of_lists_alone(capsys, tmp_path):
    run = str(tmp_path / "run")
    assert main(["train", "--model", "neighbors", "--output", run]) == 0
    printed = capsys.readouterr().out
    assert "planted: " in printed
    assert "(bought together)" in printed
    assert main(["evaluate", run]) == 0
    printed = capsys.readouterr().out
    assert "this run" in printed
    assert "model alone" not in printed
    item = af.Recommender.load(run).items.tokens[0]
    assert main(["similar", run, "--items", item]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 12
    assert main(["recommend", run, "--history", item]) == 0
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize(
    ("name", "value", "of"),
    [
        ("heads", 2, "it is of sasrec, dreamrec, llm-esr"),
        ("dropout", 0.1, "it is of sasrec, dreamrec, llm-esr"),
        ("loss", "bce", "it is of sasrec, llm-esr"),
        ("negatives", 8, "it is of sasrec, llm-esr"),
        ("neighbors", False, "it is of sasrec, dreamrec, llm-esr"),
        ("neighbors_temperature", 2.0, "it is of sasrec, dreamrec, llm-esr"),
        *((name, value, "which is not trained") for name, value in (
            ("epochs", 3), ("patience", 2), ("batch_size", 8), ("learning_rate", 0.1), ("dim", 8),
            ("item_embedding", "id"), ("space_split", "soft"), ("optimizer", "adamw"),
        )),
    ],
)  # fmt: skip
def test_settings_that_lists_alone_do_not_have_are_refused(name, value, of):
    with pytest.raises(
        ValueError, match=f"{name}: got .*; expected none with model=neighbors.*{of}"
    ):
        af.Config(model="neighbors", **{name: value})
    assert getattr(af.Config(model="neighbors"), name) in (None, True)
