"""The command line as its users meet it: in a process of its own."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from alphafuse_ext.cli import main
from alphafuse_ext.commands.showing import show_some
from alphafuse_ext.data import synthetic_catalog
from alphafuse_ext.serving.recommender import Recommender
from alphafuse_ext.training.train import fit

SMALL = ["--dim", "16", "--negatives", "8", "--history", "6"]


def alphafuse(*arguments: object, expect: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "alphafuse_ext", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def run(trained_run) -> Path:
    return trained_run


@pytest.fixture(scope="module")
def files(trained_run) -> Path:
    return trained_run.parent


def test_train_prints_what_it_guesses(files):
    printed = (files / "printed.txt").read_text()
    assert "user_id" in printed  # the guessed columns
    assert "TF-IDF" in printed  # the encoder
    assert "popularity" in printed


def test_info():
    facts = json.loads(alphafuse("info").stdout)
    assert facts["alphafuse_ext"]
    assert facts["native"]


@pytest.mark.slow
def test_without_data_it_says_what_was_planted_and_found(tmp_path):
    """The first command of a newcomer; by texts alone one of the two cannot be found."""
    frozen = ("--item-embedding", "frozen", "--no-neighbors", "--epochs", 5)
    for name, options, found in (("run", (), "found"), ("frozen", frozen, "not found")):
        done = alphafuse("train", "--output", tmp_path / name, "--threads", 1, *options)
        lines = [line for line in done.stdout.splitlines() if line.startswith("planted: ")]
        assert len(lines) == 2, done.stdout
        assert "which no text tells" in lines[0]
        assert lines[0].endswith(f"%: {found}")
        assert "which texts tell" in lines[1]
        assert lines[1].endswith("%: found")


def test_evaluate_repeats_the_run_s_results(run):
    results = json.loads((run / "results.json").read_text())
    found = json.loads(alphafuse("evaluate", run, "--json").stdout)
    assert found["metrics"] == results["test"]
    assert found["metrics_by_seen_items"] == results["test_by_seen_items"]
    assert found["seen_items"] == "excluded"
    assert (found["ties"], found["tie_rule"]) == (results["ties"], "id")
    mean = json.loads(alphafuse("evaluate", run, "--json", "--ties", "mean").stdout)
    assert mean["tie_rule"] == "mean"
    assert mean["metrics"][mean["ties"]["metric"]] == mean["ties"]["mean"]
    validation = ("--json", "--keep-seen", "--split", "validation")
    kept = json.loads(alphafuse("evaluate", run, *validation).stdout)
    assert (kept["split"], kept["seen_items"]) == ("validation", "ranked")
    assert kept["metrics_by_seen_items"]["excluded"] == results["validation"]


def test_evaluate_by_groups(run):
    found = json.loads(alphafuse("evaluate", run, "--groups", "--json").stdout)
    results = json.loads((run / "results.json").read_text())
    assert found["groups"] == results["test_groups"]
    groups = found["groups"]["metrics_by_seen_items"]["excluded"]
    sizes = {name: group["examples"] for name, group in groups.items()}
    assert sizes["head users"] + sizes["tail users"] == found["examples"]
    assert sizes["head items"] + sizes["tail items"] + sizes["cold items"] == found["examples"]
    for pair in (("head users", "tail users"), ("head items", "tail items", "cold items")):
        parts = [(groups[name]["examples"], groups[name].get("hr@10", 0.0)) for name in pair]
        mean = sum(count * value for count, value in parts) / found["examples"]
        assert mean == pytest.approx(found["metrics_by_seen_items"]["excluded"]["hr@10"])


def test_evaluate_prints_a_table(run, capsys):
    """The run beside popularity, as the run recommends or as asked for, groups below."""
    results = json.loads((run / "results.json").read_text())

    def table(*options: str) -> list[str]:
        assert main(["evaluate", str(run), *options]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines[1:])) < 90
        return lines

    def values(metrics: dict[str, float]) -> list[str]:
        return [f"{metrics[name]:.4f}" for name in header]

    lines = table("--groups")
    assert lines[0].startswith(f"test, leave-one-out: {results['examples']:,} examples")
    assert lines[0].endswith("seen items excluded")
    header = lines[1].split()
    assert {"hr@10", "ndcg@10", "ndcg@20", "mrr@10"} < {*header}
    rows = [line.split() for line in lines if line.startswith("  ")][1:]
    assert rows[0] == ["this", "run", *values(results["test"])]
    assert rows[1] == ["popularity", *values(results["popularity"])]
    groups = {
        name: (group, results["popularity_groups"]["metrics_by_seen_items"]["excluded"][name])
        for name, group in results["test_groups"]["metrics_by_seen_items"]["excluded"].items()
    }
    for name, (ours, popularity) in groups.items():
        (place,) = (k for k, line in enumerate(lines) if line.startswith(f"{name}, "))
        assert lines[place].endswith(f": {ours['examples']:,} examples")
        if ours["examples"]:
            assert lines[place + 1].split()[2:] == values(ours)
            assert lines[place + 2].split()[1:] == values(popularity)
    assert any(line.startswith("hr@k: share of examples") for line in lines)
    kept = table("--keep-seen", "--ties", "mean")
    assert kept[0].endswith("seen items ranked, ties: mean over all orders")
    assert kept[4].split()[0] == "popularity"
    mean = Recommender.load(run).popularity(keep_seen=True, ties="mean").metrics
    assert kept[4].split()[1:] == values(mean) != values(results["popularity"])


def test_geometry(copied_run, tmp_path):
    """What a frozen table keeps of its language embeddings, and what random ID embeddings do."""
    run = copied_run
    said = alphafuse("geometry", run).stdout
    assert str(run / "geometry.png") in said
    assert (run / "geometry.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((run / "geometry.json").read_text())
    kept = report["rank_correlation"]
    assert set(kept) == {"fused rows", "semantic part", "ID part"}
    assert kept["semantic part"] > 0.2 > abs(kept["ID part"])
    source = json.loads((run / "config.json").read_text())["source"]["embeddings"]
    assert report["embeddings"] == source
    alphafuse("geometry", run)  # the same, again
    assert json.loads((run / "geometry.json").read_text()) == report
    np.save(tmp_path / "others.npy", np.random.default_rng(0).standard_normal((90, 24)))
    done = alphafuse("geometry", run, "--embeddings", tmp_path / "others.npy", expect=2)
    assert "embeddings: got others" in done.stderr
    assert json.loads((run / "geometry.json").read_text()) == report


def test_recommend_to_terminal_and_files(run, tmp_path):
    clicks = pd.read_parquet(run / "interactions.parquet")
    users = clicks["user"][:2].tolist()
    shown = alphafuse("recommend", run, "--users", *users, "-k", 3).stdout
    assert all(f"user {user}" in shown for user in users)
    assert "ranked for 2 users in " in shown
    alphafuse("recommend", run, "--output", tmp_path / "all.csv", "-k", 3)
    alphafuse("recommend", run, "--output", tmp_path / "all.parquet", "-k", 3)
    csv = pd.read_csv(tmp_path / "all.csv", dtype={"user": str, "item": str})
    parquet = pd.read_parquet(tmp_path / "all.parquet")
    assert len(csv) == 3 * len(clicks)
    pd.testing.assert_frame_equal(csv, parquet, check_dtype=False, rtol=1e-5)
    for item in csv[csv["user"] == users[0]]["item"]:
        assert item in shown
    rectools = tmp_path / "rectools.parquet"
    done = alphafuse("recommend", run, "--output", rectools, "-k", 3, "--columns", "rectools")
    assert f"ranked for {len(clicks)} users" in done.stdout
    found = pd.read_parquet(rectools)
    assert list(found.columns) == ["user_id", "item_id", "score", "rank", "title"]
    assert found["item_id"].tolist() == parquet["item"].tolist()


def test_recommend_for_a_history(run):
    items = pd.read_parquet(run / "items.parquet")["item"]
    shown = alphafuse("recommend", run, "--history", *items[:3], "-k", 2).stdout
    assert all(item in shown for item in items[:3])


def test_text_files_without_header_and_suffix(tmp_path):
    """Without a header, with another delimiter, in an old encoding, compressed."""
    clicks, items = synthetic_catalog(num_users=60, num_items=48, seed=3)
    rows = zip(clicks["user_id"], clicks["item_id"], clicks["timestamp"], strict=True)
    text = "".join(f"{user}|{item}|{time}\n" for user, item, time in rows)
    (tmp_path / "ratings.DAT.gz").write_bytes(gzip.compress(text.encode()))
    rows = zip(items["item_id"], items["title"], strict=True)
    text = "".join(f'{item}|"{title} caf\u00e9\n' for item, title in rows)
    (tmp_path / "movies.dat").write_bytes(text.encode("latin-1"))
    files = ["--interactions", tmp_path / "ratings.DAT.gz", "--items", tmp_path / "movies.dat"]
    headers = ["--interactions-header", "user", "movie", "time", "--items-header", "movie", "title"]
    layout = ["--delimiter", "|", "--no-quotes", "--encoding", "latin-1"]
    output = ["--output", tmp_path / "run", "--epochs", 1, *SMALL]
    done = alphafuse("train", *files, *headers, *layout, *output)
    assert "user column 'user' (guessed), item column 'movie' (guessed)" in done.stdout
    assert f"{len(clicks):,} of 60 users with 48 items" in done.stdout
    titles = pd.read_parquet(tmp_path / "run" / "items.parquet")["title"]
    assert titles.tolist() == [f'"{title} caf\u00e9' for title in items["title"]]
    done = alphafuse("train", *files, *headers, *layout[:3], *output[2:], expect=2)
    assert "movies.dat, which is not utf-8 in line 1" in done.stderr


def test_an_interrupted_command_prints_the_one_that_resumes(tmp_path, monkeypatch, capsys):
    """With the folder's name as a shell needs it, where it was given."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("alphafuse_ext.training.train.fit", interrupted)
    folder = tmp_path / "a run"
    for output, name in ((["--output", str(folder)], shlex.quote(str(folder))), ([], "RUN_FOLDER")):
        assert main(["train", *output]) == 130
        assert f"alphafuse train --resume {name}\n" in capsys.readouterr().err


@pytest.mark.slow
def test_interrupted_and_resumed(files, tmp_path):
    arguments = [
        "--interactions",
        str(files / "clicks.csv"),
        "--items",
        str(files / "items.parquet"),
        "--epochs",
        "60",
        "--patience",
        "60",
        *SMALL,
    ]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    alphafuse("train", *arguments, "--output", whole)
    command = [sys.executable, "-m", "alphafuse_ext", "train", *arguments, "--output", str(cut)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A job that a shell put into the background is deaf to SIGINT, and so would this one be.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    child = subprocess.Popen(command, **pipes)
    signal.signal(signal.SIGINT, previous)
    with child as p:
        deadline = time.monotonic() + 120
        while not (cut / "last.safetensors").exists():
            assert time.monotonic() < deadline
            assert p.poll() is None
            time.sleep(0.01)
        p.send_signal(signal.SIGINT)
        _, errors = p.communicate(timeout=60)
    assert p.returncode == 130, errors
    assert "--resume" in errors
    assert 1 <= len((cut / "metrics.jsonl").read_text().splitlines()) < 12
    alphafuse("recommend", cut, "--output", tmp_path / "early.csv")
    alphafuse("train", "--resume", cut)
    one, other = (json.loads((r / "results.json").read_text()) for r in (whole, cut))
    assert one["test"] == other["test"]
    assert one["best_epoch"] == other["best_epoch"]


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("interactions", ["train", "--interactions", "no-such-file.inter"]),
        ("--interactions", ["train", "--embeddings", "e.npy"]),
        ("--interactions", ["train", "--ids-are-rows"]),
        ("--interactions", ["train", "--text-columns", "title"]),
        ("--delimiter", ["train", "--delimiter", ";"]),
        ("--items-header", ["train", "--items-header", "item", "title"]),
        ("--encoding", ["train", "--interactions", "x.parquet", "--encoding", "latin-1"]),
        ("delimiter", ["train", "--interactions", "x.dat", "--delimiter", "::"]),
        ("null_dim", ["train", "--dim", "8", "--null-dim", "9"]),
        ("run", ["evaluate", "no-such-run"]),
        ("run", ["recommend", "no-such-run", "--users", "1"]),
        ("run", ["train", "--resume", "no-such-run"]),
        ("--dim", ["train", "--resume", "no-such-run", "--dim", "8"]),
        ("--output", ["recommend", "no-such-run", "--output", "x.xlsx"]),
        ("--columns", ["recommend", "no-such-run", "--users", "1", "--columns", "rectools"]),
    ],
)
def test_bad_input_is_one_line(message, arguments):
    done = alphafuse(*arguments, expect=2)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("alphafuse: error:")
    assert message in lines[0]


@pytest.mark.slow
def test_existing_output_is_refused(run, tmp_path):
    done = alphafuse("train", "--output", run, expect=2)
    assert "output: got" in done.stderr
    (tmp_path / "old.csv").write_text("mine")
    done = alphafuse("recommend", run, "--output", tmp_path / "old.csv", expect=2)
    assert "--output: got" in done.stderr
    assert (tmp_path / "old.csv").read_text() == "mine"


@pytest.fixture(scope="module")
def odd_run(tmp_path_factory) -> Path:
    """A run whose ids need care on a command line."""
    clicks, _ = synthetic_catalog(num_users=30, num_items=48, seed=2)
    clicks["user_id"] = "u, " + clicks["user_id"].astype(str)
    clicks["item_id"] = "-i," + clicks["item_id"].astype(str)
    run = tmp_path_factory.mktemp("runs") / "a run"
    options = {"item_embedding": "id", "dim": 8, "epochs": 1, "negatives": 8, "keep_seen": True}
    fit(clicks, output=run, **options, log=lambda _: None)
    return run


def test_ids_with_commas_and_spaces(odd_run, tmp_path, capsys):
    recommender = Recommender.load(odd_run)
    users = recommender.interactions.users[:3].tolist()
    wanted = recommender.recommend(users, k=3)
    assert main(["recommend", str(odd_run), "--users", *users, "-k", "3"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert all(f"\nuser {user}\n" in shown.out for user in users)
    assert [item for item in wanted["item"] if item not in shown.out] == []
    (tmp_path / "users.txt").write_text("\ufeff" + "\r\n".join(users) + "\r\n\r\n")
    arguments = ["--users-file", str(tmp_path / "users.txt"), "-k", "3"]
    output = tmp_path / "out.parquet"
    assert main(["recommend", str(odd_run), *arguments, "--output", str(output)]) == 0
    pd.testing.assert_frame_equal(pd.read_parquet(output), wanted)
    capsys.readouterr()
    # An id that begins like a flag stands behind an equals sign.
    history = recommender.items.tokens[0]
    assert main(["recommend", str(odd_run), f"--history={history}", "-k", "2"]) == 0
    shown = capsys.readouterr().out
    for item in recommender.recommend(histories=[[history]], k=2)["item"]:
        assert item in shown


def test_the_line_that_says_how_to_go_on_can_be_pasted(odd_run, capsys):
    show_some(Recommender.load(odd_run))
    more = capsys.readouterr().out.splitlines()[-1].removeprefix("more: alphafuse ")
    recommend, evaluate = more.split("; alphafuse ")
    assert main(shlex.split(recommend)) == 0
    assert main(shlex.split(evaluate)) == 0
    shown = capsys.readouterr()
    assert "\nuser u, " in shown.out
    assert shown.err == ""


def test_a_run_recommends_as_it_was_trained(odd_run, tmp_path):
    """This one with keep_seen."""
    recommender = Recommender.load(odd_run)
    for flags, keep_seen in ([], True), (["--keep-seen"], True), (["--no-keep-seen"], False):
        output = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        assert main(["recommend", str(odd_run), *flags, "--output", str(output)]) == 0
        wanted = recommender.recommend(keep_seen=keep_seen)
        pd.testing.assert_frame_equal(pd.read_parquet(output), wanted)


def test_which_items(tmp_path, capsys):
    """Flags are Python's arguments, also where parts are written."""
    clicks, items = synthetic_catalog(num_users=30, num_items=48, seed=2)
    items["category"] = [f"kind {number % 5}" for number in range(len(items))]
    items["price"] = np.arange(len(items)) / 2
    options = {"encoder": "tfidf", "dim": 8, "null_dim": 4, "epochs": 1, "negatives": 8}
    run = fit(clicks, items, output=tmp_path / "run", **options, log=lambda _: None)
    gone = items["item_id"][3:9].tolist()
    (tmp_path / "gone.txt").write_text("\n".join(map(str, gone)))
    conditions = ["category=kind 1", "category = kind 3", "price>=2", "price<=18"]
    where = {"category": ["kind 1", "kind 3"], "price": {"min": 2, "max": 18}}
    for number, (flags, arguments) in enumerate(
        (
            (["--exclude", *gone], {"exclude": gone}),
            (["--exclude-file", tmp_path / "gone.txt"], {"exclude": gone}),
            (["--where", *conditions], {"where": where}),
            (["--at-most", 1, "--by", "category"], {"at_most": 1, "by": "category"}),
            (
                ["--at-most", 2, "--by", "category", "--exclude", *gone, "--where", *conditions],
                {"at_most": 2, "by": "category", "exclude": gone, "where": where},
            ),
        )
    ):
        wanted = run.recommend(k=5, **arguments)
        command = ["recommend", tmp_path / "run", "--k", 5, *flags, "--output"]
        assert main([*map(str, command), str(tmp_path / f"{number}.parquet")]) == 0
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / f"{number}.parquet"), wanted)
        folder = tmp_path / f"parts-{number}"
        assert main([*map(str, command), str(folder), "--parts", "2"]) == 0
        parts = [pd.read_parquet(path) for path in sorted(folder.glob("part-*"))]
        pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), wanted)
    capsys.readouterr()
    other = [*map(str, command), str(folder), "--parts", "2", "--at-most", "1"]
    assert main(other) == 2
    assert "whose parts are of at_most 2; expected a new folder" in capsys.readouterr().err
    for flags, message in (
        (["--where", "category"], "--where: got 'category'; expected COLUMN=VALUE"),
        (["--where", "price=2", "price>=1"], "--where: got ['price=2', 'price>=1']; expected val"),
        (["--where", "price>=2", "price>=1"], "--where: got ['price>=2', 'price>=1']; expected"),
        (["--where", "colour=red"], "--where: got 'colour'; expected one of the item columns"),
        (["--where", "price=dear"], "--where: got price 'dear'; expected a number"),
        (["--at-most", "2"], "--by: got None; expected an item column, with at_most"),
        (["--exclude-file", str(tmp_path / "none.txt")], "--exclude-file: got"),
    ):
        assert main(["recommend", str(tmp_path / "run"), "--users", "1", *flags]) == 2
        assert message in capsys.readouterr().err


def test_someone_without_a_history(odd_run, capsys):
    recommender = Recommender.load(odd_run)
    assert main(["recommend", str(odd_run), "--history", "-k", "2"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    for item in recommender.recommend(histories=[[]], k=2)["item"]:
        assert re.search(rf"{item}  \(popular now\)$", shown.out, re.MULTILINE)


def test_unknown_users_and_items(odd_run, capsys):
    recommender = Recommender.load(odd_run)
    user, item = recommender.interactions.users[0], recommender.items.tokens[0]
    for flags, warned, refused in (
        (
            ["--users", "nobody", user],
            ["unknown users get what is popular: 'nobody'"],
            "users: got",
        ),
        (["--users", "nobody"], ["unknown users get what is popular: 'nobody'"], "users: got"),
        (
            [f"--history={item}", "--history", "nothing"],
            [
                "unknown items are left out of 1 of 2 histories: 'nothing'",
                "1 of 2 histories have no known item and get what is popular: 1",
            ],
            "items: got",
        ),
    ):
        assert main(["recommend", str(odd_run), *flags]) == 0
        shown = capsys.readouterr()
        lines = shown.err.splitlines()
        assert all(line.startswith("alphafuse: warning: ") for line in lines)
        assert [line for line, said in zip(lines, warned, strict=True) if said not in line] == []
        served = user in flags or f"--history={item}" in flags
        assert (f"\nuser {user}\n" in shown.out or "\nhistory 0\n" in shown.out) == served
        assert main(["recommend", str(odd_run), *flags, "--strict"]) == 2
        assert refused in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xff\xfe\x00"])
def test_a_file_of_users_that_names_none(odd_run, tmp_path, capsys, content):
    path = tmp_path / "users.txt"
    if content is not None:
        path.write_bytes(content)
    assert main(["recommend", str(odd_run), "--users-file", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("alphafuse: error: --users-file: got ")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_recommendations_for_ids_that_are_uuids(tmp_path, suffix):
    clicks, _ = synthetic_catalog(num_users=30, num_items=48, seed=2)
    clicks["user_id"] = [uuid.UUID(int=int(user)) for user in clicks["user_id"].factorize()[0]]
    options = {"item_embedding": "id", "dim": 8, "epochs": 1, "negatives": 8}
    recommender = fit(clicks, output=tmp_path / "run", **options, log=lambda _: None)
    output = tmp_path / f"out.{suffix}"
    assert main(["recommend", str(tmp_path / "run"), "--output", str(output)]) == 0
    read = pd.read_csv(output) if suffix == "csv" else pd.read_parquet(output)
    assert read["user"].map(str).tolist() == recommender.recommend()["user"].map(str).tolist()


def test_a_catalog_that_changes(files, run, tmp_path, capsys):
    """Every command writes a folder of its own, which every other one reads."""
    clicks, items = pd.read_csv(files / "clicks.csv"), pd.read_parquet(files / "items.parquet")
    rows = np.random.default_rng(0).normal(size=(len(items), 24)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    new = pd.DataFrame({"item_id": ["new-1", "new-2"], "title": ["one", "two"]})
    new.to_csv(tmp_path / "new.csv", index=False)
    np.save(tmp_path / "new.npy", rows[:2])
    data = ["--interactions", files / "clicks.csv", "--items", files / "items.parquet"]
    first = tmp_path / "first"

    def call(*arguments: object, expect: int = 0) -> str:
        assert main(list(map(str, arguments))) == expect
        said = capsys.readouterr()
        return said.out + said.err

    embedded = ["--embeddings", tmp_path / "rows.npy"]
    call("train", *data, *embedded, "--output", first, "--epochs", 1, *SMALL)
    new_items = ["--items", tmp_path / "new.csv", "--embeddings", tmp_path / "new.npy"]
    said = call("add-items", first, *new_items, "--output", tmp_path / "added")
    assert "2 items added" in said
    assert "of 92 items" in said
    gone = items["item_id"].iloc[0]
    (tmp_path / "gone.txt").write_text(f"{gone}\n")
    gone_file = ["--items-file", tmp_path / "gone.txt"]
    call("retire-items", tmp_path / "added", *gone_file, "--output", tmp_path / "retired")
    said = call("recommend", tmp_path / "retired", "--history", "new-1", "--k", 91)
    assert "new-2" in said
    assert f"{gone} " not in said.split("new-1", 1)[1]
    said = call("recommend", tmp_path / "retired", "--history", "new-1", "--only", "new-2", gone)
    assert "retired items are left out" in said
    assert sum(line.strip().startswith("1.") for line in said.splitlines()) == 1
    assert "new-2" in call("similar", tmp_path / "retired", "--items", "new-1", "--k", 90)
    call("restore-items", tmp_path / "retired", *gone_file, "--output", tmp_path / "restored")
    for folder in ("added", "restored"):
        said = call("recommend", tmp_path / folder, "--history", "new-1", "--k", 91)
        assert f"{gone} " in said.split("new-1", 1)[1]
    said = call("upgrade-embeddings", first, *embedded, "--output", tmp_path / "upgraded")
    assert json.loads(said[: said.rindex("}") + 1])["overlap@10"] > 0.99

    later = clicks.iloc[:5].assign(item_id="new-1", timestamp=clicks["timestamp"].max() + 1)
    later.to_csv(tmp_path / "later.csv", index=False)
    extended = ["--continue", tmp_path / "retired", "--interactions", tmp_path / "later.csv"]
    said = call("train", *extended, "--output", tmp_path / "extended", "--epochs", 1)
    assert "5 new ones" in said
    assert main(["evaluate", str(tmp_path / "extended")]) == 0
    for wrong, message in (
        (["--dim", 8], "--dim: got 8; expected none with --continue"),
        (["--preset", "paper-toys"], "--preset: got paper-toys; expected none with --continue"),
    ):
        assert message in call("train", *extended, *wrong, expect=2)
    said = call("add-items", first, *new_items, "--output", first, expect=2)
    assert "which exists" in said


@pytest.mark.slow
def test_the_catalog_s_errors_name_flags(files, tmp_path, capsys):
    """One line each, and no folder; also of what a run cannot do."""
    rows = np.random.default_rng(0).normal(size=(90, 24)) * np.linspace(2, 0.1, 24)
    np.save(tmp_path / "rows.npy", rows.astype(np.float32))
    new = pd.DataFrame({"item_id": ["new-1", "new-2"], "title": ["one", "two"]})
    new.to_csv(tmp_path / "new.csv", index=False)
    np.save(tmp_path / "new.npy", np.flip(rows[:2], 1).astype(np.float32))
    data = ["--interactions", files / "clicks.csv", "--items", files / "items.parquet"]
    new_items = ["--items", tmp_path / "new.csv", "--embeddings", tmp_path / "new.npy"]
    embedded = ["--embeddings", tmp_path / "rows.npy"]
    for kind in ("alphafuse", "id", "llminit", "whitenrec"):
        asked = ["--item-embedding", kind, "--epochs", 1, "--dim", 8]
        source = [] if kind == "id" else embedded
        run = tmp_path / kind
        call = ["train", *data, *source, "--output", run, *asked]
        assert main(list(map(str, call))) == 0
    capsys.readouterr()

    def error(*arguments: object) -> str:
        assert main([*map(str, arguments), "--output", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1
        assert not (tmp_path / "out").exists()
        return said[0]

    said = error("add-items", tmp_path / "alphafuse", *new_items)
    assert "error: --embeddings: got " in said
    assert "or --any-embeddings, to take them as they are" in said
    more = ["--interactions", files / "clicks.csv", *new_items]
    said = error("train", "--continue", tmp_path / "alphafuse", *more)
    assert "error: --embeddings: got " in said
    assert "or --any-embeddings" in said
    assert "--any-embeddings: got no --continue" in error("train", *data, "--any-embeddings")
    said = error("add-items", tmp_path / "alphafuse")
    assert "--items, --embeddings: got None for both" in said
    for kind in ("id", "llminit", "whitenrec"):
        # Refused by the run alone: the file is not even there.
        gone = ["--embeddings", tmp_path / "gone.npy"]
        said = error("upgrade-embeddings", tmp_path / kind, *gone)
        assert f"run: got a run of item_embedding={kind}; expected alphafuse or frozen" in said
    assert "its whitening is not kept" in error("add-items", tmp_path / "whitenrec", *new_items)


def test_histories_in_a_file_and_recommendations_in_another(files, run, tmp_path):
    """Of users whom training has not seen, batch by batch."""
    clicks = pd.read_csv(files / "clicks.csv")
    new_users = clicks.assign(user_id="new-" + clicks["user_id"].astype(str))
    new_users.to_parquet(tmp_path / "new-users.parquet", index=False)
    recommender = Recommender.load(run)
    every_item = recommender.items.tokens.tolist()
    (tmp_path / "some.txt").write_text("\n".join(map(str, every_item[:40])))
    arguments = ["recommend", str(run), "--histories", str(tmp_path / "new-users.parquet")]
    arguments += ["--only-file", str(tmp_path / "some.txt"), "--k", "3"]
    for suffix in ("parquet", "csv"):
        output = tmp_path / f"found.{suffix}"
        assert main([*arguments, "--output", str(output)]) == 0
        found = pd.read_parquet(output) if suffix == "parquet" else pd.read_csv(output)
        users = [user.removeprefix("new-") for user in found["user"].unique()]
        expected = recommender.recommend(users, k=3, only=every_item[:40])
        assert found["item"].tolist() == expected["item"].tolist()
        assert found["rank"].tolist() == expected["rank"].tolist()
    assert main(arguments) == 2  # without a file to write


def started(*arguments: object, code: str = "", **options: Any) -> subprocess.Popen[str]:
    """A process whose end is waited for later."""
    command = [sys.executable, *(("-c", code) if code else ("-m", "alphafuse_ext"))]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *map(str, arguments)], **{**pipes, **options})


PRINTING = """
import os, sys
from alphafuse_ext.cli import main

full = os.open("/dev/full", os.O_WRONLY)
reader, unread = os.pipe()
os.close(reader)
commands = [["recommend", sys.argv[1], "--users", *sys.argv[2:]], ["info"], ["--help"]]
for output, some in ((unread, commands), (full, commands[:2])):
    for arguments in some:
        os.dup2(output, 1)
        try:
            status = main(arguments)
        except SystemExit as end:
            status = end.code
        print(status, file=sys.stderr)
"""


@pytest.mark.slow
def test_closed_standard_output(odd_run):
    """As `alphafuse recommend ... | head`: quiet, with the status that SIGPIPE gives a shell."""
    users = Recommender.load(odd_run).interactions.users.tolist()
    with started(odd_run, *users, code=PRINTING) as process:
        _, said = process.communicate(timeout=120)
    statuses, errors = said.splitlines()[:3], said.splitlines()[3:]
    assert statuses[:2] == ["141"] * 2, said
    assert statuses[2] in ("0", "141"), said  # argparse passes over a part that no one reads
    assert errors[1::2] == ["2"] * 2, said
    assert all(line.startswith("alphafuse: error: ") for line in errors[::2])
    assert all("No space left on device" in line for line in errors[::2])
    assert process.returncode == 0


INTERRUPTED = """
import os, signal, sys

class Interrupts:
    def find_spec(self, name, *_):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
from alphafuse_ext.cli import main
sys.exit(main(["info"]))
"""


def test_interrupted_while_importing():
    """Which takes seconds: no traceback."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    said = dict.fromkeys(("torch", "pandas"), "alphafuse: interrupted\n")
    said["alphafuse_ext.commands.inspect"] = ""  # before the command has begun
    children = {name: started(name, code=INTERRUPTED) for name in said}
    signal.signal(signal.SIGINT, previous)
    for name, child in children.items():
        assert child.communicate(timeout=60) == ("", said[name])
        assert child.returncode == 130


TERMINATED = """
import os, signal, sys
import alphafuse_ext as af
from alphafuse_ext.reports import page
from alphafuse_ext.cli import main

whole = af.Recommender.recommend_in_batches

def recommend_in_batches(self, *arguments, **options):
    for frame in whole(self, *arguments, batch_size=10, **options):
        yield frame
        os.kill(os.getpid(), signal.SIGTERM)

def write_text(self, text, **_):
    with open(self, "w") as file:
        file.write(text[:100])
    os.kill(os.getpid(), signal.SIGTERM)

folder = sys.argv[2]
af.Recommender.recommend_in_batches = recommend_in_batches
print(main(["recommend", sys.argv[1], "--output", f"{folder}/out.csv"]))
af.Recommender.recommend_in_batches = whole
page.Path.write_text = write_text
print(main(["report", sys.argv[1], "--output", f"{folder}/out.html"]))
print(os.listdir(folder))
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.slow
def test_terminated_commands_remove_temporary_files(odd_run, tmp_path):
    with started(odd_run, tmp_path, code=TERMINATED) as process:
        printed, errors = process.communicate(timeout=120)
    assert printed.splitlines()[-3:] == ["143", "143", "[]"], errors
    assert process.returncode == -signal.SIGTERM  # no handler of ours is left


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (NotImplementedError("to: got onnx,\nof\nDreamRec"), 2, "to: got onnx, of DreamRec"),
        (MemoryError(), 2, "MemoryError"),
        (torch.OutOfMemoryError("CUDA out of memory."), 2, "CUDA out of memory."),
        (KeyError("a bug"), 70, "unexpected error, a bug in alphafuse; please report it"),
        (RuntimeError("another"), 70, "unexpected error, a bug in alphafuse; please report it"),
    ],
)
def test_how_commands_fail(odd_run, monkeypatch, capsys, error, status, said):
    """In one line; what no one has foreseen shows where it comes from, and says what it is."""

    def fails(*_, **__):
        raise error

    monkeypatch.setattr(Recommender, "evaluate_in_detail", fails)
    assert main(["evaluate", str(odd_run)]) == status
    *above, line = capsys.readouterr().err.splitlines()
    assert line.startswith(f"alphafuse: error: {said}")
    assert bool(above) == (status == 70)


def _in_tensors(change):
    def damage(path):
        with safe_open(path, framework="pt") as file:
            facts, found = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        path.unlink()
        save_file({name: tensor.clone() for name, tensor in change(found).items()}, path, facts)

    return damage


def _renamed(found):
    return {f"{name}-" if "norm" in name else name: tensor for name, tensor in found.items()}


def _shortened(found):
    return {name: tensor[:-1] if tensor.ndim else tensor for name, tensor in found.items()}


def _rows_beyond(found):
    return {**found, "position.weight/rows": torch.tensor([999, 50])}


def _in_json(name, value):
    def damage(path):
        path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))

    return damage


def _in_frame(change):
    return lambda path: change(pd.read_parquet(path)).to_parquet(path, index=False)


def _folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "noise": lambda path: path.write_bytes(np.random.default_rng(0).bytes(500)),
    "a folder": _folder,
}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(
            (name, damage)
            for name in ("config.json", "items.parquet", "interactions.parquet")
            for damage in DAMAGES.values()
        ),
        *(("start.safetensors", damage) for damage in DAMAGES.values()),
        *(
            (f"{name}.safetensors", _in_tensors(change))
            for name in ("start", "best")
            for change in (_renamed, _shortened)
        ),
        ("best.safetensors", _in_tensors(_rows_beyond)),
        ("config.json", lambda path: path.write_text("[" * 100_000)),
        *(
            ("config.json", _in_json(name, 3))
            for name in ("config", "data", "source", "environment")
        ),
        ("items.parquet", _in_frame(lambda frame: frame[:-1])),
        ("items.parquet", _in_frame(lambda frame: frame.rename(columns={"item": "i"}))),
        ("interactions.parquet", _in_frame(lambda frame: frame.drop(columns="user"))),
        ("interactions.parquet", _in_frame(lambda frame: frame.assign(items=3))),
    ],
)
def test_a_damaged_run_is_one_line(odd_run, tmp_path, capsys, name, damage):
    run = shutil.copytree(odd_run, tmp_path / "run")
    whole = (run / name).read_bytes()
    (run / name).unlink()  # the best epoch's file is the last one's
    (run / name).write_bytes(whole)
    damage(run / name)
    for command in (
        ["evaluate", run],
        ["report", run, "--output", tmp_path / "page.html"],
        ["export", run, "--output", tmp_path / "exported"],
    ):
        assert main(list(map(str, command))) == 2, capsys.readouterr().err
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("alphafuse: error: ")
        assert str(run) in line
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_new_items_of_a_run_without_its_space(copied_run, tmp_path, capsys):
    (copied_run / "space.safetensors").unlink()
    (tmp_path / "new.csv").write_text("item_id,title\n9001,a new thing\n")
    given = ["--items", tmp_path / "new.csv", "--output", tmp_path / "second"]
    assert main(list(map(str, ["add-items", copied_run, *given]))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "space.safetensors" in line


def test_a_run_that_says_nothing_of_its_embeddings(odd_run, tmp_path, capsys):
    run = shutil.copytree(odd_run, tmp_path / "run")
    _in_json("source", {"embeddings": 3})(run / "config.json")
    assert main(["report", str(run)]) == 2
    assert f"{run}/config.json: cannot be read" in capsys.readouterr().err


def test_output_is_never_what_exists(files, odd_run, tmp_path, capsys):
    """The same rule for every command, whatever is there."""
    clicks = ["--interactions", str(files / "clicks.csv")]
    (tmp_path / "old.html").write_text("mine")
    (tmp_path / "dangling.html").symlink_to("nowhere")
    (tmp_path / "folder.html").mkdir()
    os.mkfifo(tmp_path / "pipe.html")
    (tmp_path / "pipe.csv").symlink_to("pipe.html")
    before = {path.name: path.lstat().st_mode for path in tmp_path.iterdir()}
    for name in [*before, "/dev/null", "/dev/stdout"]:
        for command in (["describe", *clicks], ["report", str(odd_run)], ["export", str(odd_run)]):
            assert main([*command, "--output", str(tmp_path / name)]) == 2
            said = capsys.readouterr().err
            assert re.fullmatch(
                rf"alphafuse: error: (--)?output: got .*{name}, which exists; .*\n", said
            )
    assert main(["recommend", str(odd_run), "--output", str(tmp_path / "pipe.csv")]) == 2
    assert {path.name: path.lstat().st_mode for path in tmp_path.iterdir()} == before
    assert (tmp_path / "old.html").read_text() == "mine"
    page = tmp_path / "page.html"
    assert [main(["describe", *clicks, "--output", str(page)]) for _ in range(2)] == [0, 2]
    assert f"--output: got {page}, which exists; expected a new file" in capsys.readouterr().err


@pytest.mark.slow
def test_later_commands_reuse_a_runs_reading_options(tmp_path, capsys):
    """A whole way on texts alone, of files that nothing but flags can tell, given once."""
    clicks, items = synthetic_catalog(num_users=60, num_items=48, seed=3)
    clicks = clicks.rename(columns={"user_id": "kunde", "item_id": "vare", "timestamp": "tid"})
    items = pd.DataFrame(
        {
            "vare": items["item_id"],
            "navn": items["title"] + " b\u00e5t",
            "title": [f"nonsense{number}" for number in range(len(items))],
        }
    )
    new, old = items[-6:], items[:-6]
    of_new = clicks["vare"].isin(new["vare"])
    later = clicks[of_new].assign(tid=clicks["tid"].max() + 1 + np.arange(of_new.sum()))
    written = {"sep": ";", "index": False, "encoding": "latin-1"}
    for name, frame in (("clicks", clicks[~of_new]), ("later", later)):
        frame.to_csv(tmp_path / f"{name}.csv", **written)
    old.to_csv(tmp_path / "items.csv", header=False, **written)
    new.to_csv(tmp_path / "new.csv", header=False, **written)
    columns = ["--user-column", "kunde", "--item-column", "vare", "--time-column", "tid"]
    layout = ["--items-header", "vare", "navn", "title", "--text-columns", "navn"]
    layout += ["--delimiter", ";", "--encoding", "latin-1"]

    def call(*arguments: object, expect: int = 0) -> str:
        assert main(list(map(str, arguments))) == expect
        said = capsys.readouterr()
        return said.out + said.err

    a, b, c = (tmp_path / name for name in "abc")
    data = ["--interactions", tmp_path / "clicks.csv", "--items", tmp_path / "items.csv"]
    call("train", *data, *columns, *layout, "--output", a, "--encoder", "tfidf", *SMALL)
    said = call("add-items", a, "--items", tmp_path / "new.csv", "--output", b)
    assert (
        "reading options of the run: item_column 'vare', text_columns ['navn'], delimiter ';'"
        in said
    )
    assert "6 of 6 encoded by the TF-IDF of the run" in said
    assert "6 items added" in said
    added = Recommender.load(b)
    assert added.items.texts[-1] == new["navn"].iloc[-1]
    # The text of an item that is there is encoded as that item was.
    twin = pd.DataFrame({"vare": ["twin"], "navn": old["navn"].iloc[:1]})
    semantic = added.add_items(twin).model.table.semantic_rows
    torch.testing.assert_close(semantic[-1], semantic[0], rtol=1e-3, atol=1e-4)
    said = call("train", "--continue", b, "--interactions", tmp_path / "later.csv", "--output", c)
    assert "time_column 'tid'" in said
    assert "(guessed)" not in said
    assert Recommender.load(c).interactions.num_users == 60
    found = tmp_path / "found.csv"
    said = call("recommend", c, "--histories", tmp_path / "later.csv", "--output", found)
    assert "reading options of the run: user_column 'kunde'" in said
    # So does a run on both at once, and one that follows a run that follows.
    both = ["--interactions", tmp_path / "later.csv", "--items", tmp_path / "new.csv"]
    said = call("train", "--continue", a, *both, "--output", tmp_path / "d")
    assert "items: 42 known, 6 new ones" in said
    assert "--items" in call(
        "add-items", c, "--items", tmp_path / "new.csv", "--output", tmp_path / "e", expect=2
    )
    # A flag comes first.
    other = new.assign(vare=[f"x{number}" for number in range(6)])
    other.to_csv(tmp_path / "other.csv", sep="|", index=False)
    flags = ["--delimiter", "|", "--encoding", "utf-8", "--text-columns", "title"]
    flags += ["--items-header", "vare", "navn", "title"]
    other.to_csv(tmp_path / "other.csv", sep="|", index=False, header=False)
    said = call(
        "add-items", c, "--items", tmp_path / "other.csv", *flags, "--output", tmp_path / "f"
    )
    assert "text columns 'title'" in said
    assert Recommender.load(tmp_path / "f").items.texts[-1] == other["title"].iloc[-1]
    # A folder of an earlier version has neither.
    described = json.loads((a / "config.json").read_text())
    described["source"].pop("reading")
    (a / "config.json").write_text(json.dumps(described))
    (a / "encoder.safetensors").unlink()
    Recommender.load(a).recommend(k=2)
    wanted = ["--items", tmp_path / "new.csv", *layout, "--item-column", "vare"]
    said = call("add-items", a, *wanted, "--output", tmp_path / "g", expect=2)
    assert "--embeddings: got None, of a run of an earlier version" in said
    assert not (tmp_path / "g").exists()
