"""The server, as its users meet it: in a process of its own, by HTTP and in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from chromium import Page, needs_browser

import alphafuse_ext as af
from alphafuse_ext.cli import main

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from fastapi.testclient import TestClient  # noqa: E402

from alphafuse_ext.serving.http import make_app  # noqa: E402

AS_JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def runs(trained_run, tmp_path_factory) -> Path:
    """A folder of two runs with item columns, and a link to the first."""
    folder = tmp_path_factory.mktemp("served")
    recommender = af.Recommender.load(trained_run)
    count = len(recommender.items)
    columns = pd.DataFrame(
        {
            "kind": pd.Categorical([f"kind {number % 4}" for number in range(count)]),
            "price": np.arange(count) / 2,
        }
    )
    items = type(recommender.items)(**{**vars(recommender.items), "columns": columns})
    recommender.changed("columns", items=items).save(folder / "first")
    gone = recommender.items.tokens[:3].tolist()
    recommender.retire_items(gone).save(folder / "second")
    (folder / "current").symlink_to("first")
    return folder


@contextmanager
def serving(run: Path, *flags: str) -> Iterator[Any]:
    """A client of a server, in a process of its own."""
    command = [sys.executable, "-m", "alphafuse_ext", "serve", str(run), "--port", "0", *flags]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        url = server.stdout.readline().partition(": ")[0]
        assert url.startswith("http://127.0.0.1:")
        with httpx.Client(base_url=url, timeout=60) as client:
            yield client
    finally:
        server.terminate()
        assert server.wait(60) == 143


@pytest.fixture(scope="module")
def client(runs):
    with serving(runs / "current", "--changes") as client:
        yield client


@pytest.fixture(scope="module")
def served(runs):
    return af.Recommender.load(runs / "first")


@pytest.fixture
def reloaded(client):
    """After a test that changes the catalog."""
    yield
    client.post("/reload", json={"run": "current"}).raise_for_status()


def ask(client, **question):
    return client.post("/recommend", json=question).raise_for_status().json()["recommendations"]


@pytest.mark.usefixtures("reloaded")
def test_serve(client, served):
    users = served.interactions.users[:24].tolist()
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda user: ask(client, user=user, k=4), users))
    expected = served.recommend(users, k=4)
    for user, answer in zip(users, answers, strict=True):
        mine = expected[expected["user"] == user]
        assert [one["item"] for one in answer] == mine["item"].tolist()
        assert [one["title"] for one in answer] == mine["title"].tolist()
        scores = [one["score"] for one in answer]
        np.testing.assert_allclose(scores, mine["score"], rtol=1e-5)  # of batches of other sizes
        assert [one["rank"] for one in answer] == [1, 2, 3, 4]
        assert set(answer[0]) == {"rank", "item", "title", "score", "from"}
        assert {one["from"] for one in answer} == {"model"}

    gone = answers[0][0]["item"]
    state = client.post("/retire", json={"items": [gone]}).raise_for_status().json()
    assert (state["retired"], state["changes"]) == (1, ["1 items retired"])
    assert gone not in [one["item"] for one in ask(client, user=users[0], k=4)]
    some = served.items.tokens[:6].tolist()
    answer = ask(client, history=[gone], only=some, k=3)
    assert {one["item"] for one in answer} <= set(some) - {gone}
    client.post("/restore", json={"items": [gone]}).raise_for_status()
    assert ask(client, user=users[0], k=4) == answers[0]


@pytest.mark.parametrize(
    "options",
    [
        {"exclude": [3, 8, 9]},
        {"where": {"kind": "kind 1", "price": {"min": 3, "max": 30.5}}},
        {"where": {"kind": ["kind 1", "kind 3"]}},
        {"at_most": 1, "by": "kind"},
        {"keep_seen": True},
    ],
    ids=str,
)
def test_serve_takes_what_python_takes(client, served, options):
    if "exclude" in options:
        options = {"exclude": served.items.tokens[options["exclude"]].tolist()}
    user = served.interactions.users[7]
    found = ask(client, user=user, k=5, **options)
    wanted = served.recommend([user], k=5, **options)
    assert [one["item"] for one in found] == wanted["item"].tolist()
    # Another thread may add products up in another order.
    assert [one["score"] for one in found] == pytest.approx(wanted["score"].tolist(), rel=1e-5)


def test_serve_someone_unknown(client, served):
    """By a user, a history, or neither; and says what it did not know."""
    wanted = served.recommend(histories=[[]], k=3)
    for question, notes in (
        ({}, 0),
        ({"history": []}, 0),
        ({"history": ["nothing", -5]}, 2),
        ({"user": "nobody"}, 1),
        ({"user": 10**300}, 1),
        ({"user": -1}, 1),
        ({"user": ""}, 1),
        ({"user": "\x00"}, 1),
    ):
        answer = client.post(
            "/recommend", content=json.dumps({**question, "k": 3}), headers=AS_JSON
        )
        said = answer.raise_for_status().json()
        assert [one["item"] for one in said["recommendations"]] == wanted["item"].tolist()
        assert {one["from"] for one in said["recommendations"]} == {"popular now"}
        assert len(said["notes"]) == notes, question


def test_serve_similar_items(client, served):
    item = served.items.tokens[4]
    for part in ("fused", "semantic"):
        said = client.get("/similar", params={"item": item, "k": 4, "part": part}).json()
        wanted = served.recommend_to_items([item], 4, part)
        found = said["recommendations"]
        assert [one["item"] for one in found] == wanted["item"].tolist()
        assert [one["title"] for one in found] == wanted["title"].tolist()
    answer = client.get("/similar", params={"item": "nothing"})
    assert answer.status_code == 404
    assert answer.json()["detail"] == "item: got 'nothing', which is unknown"


def test_serve_searches_titles(client, served):
    titles, tokens = served.items.titles, served.items.tokens
    counts = served.interactions.item_counts()
    first, second = titles[10].split()[:2]
    for query, fits in (
        (f"{second.upper()} {first}", lambda n: {first, second} <= set(titles[n].split())),
        (str(tokens[10]), lambda n: str(tokens[10]) in f"{titles[n]} {tokens[n]}"),
        ("", lambda n: True),
        ("nothing at all", lambda n: False),
    ):
        found = client.get("/items", params={"q": query, "k": 90}).raise_for_status().json()
        wanted = [n for n in range(len(tokens)) if fits(n)]
        assert sorted(one["item"] for one in found) == sorted(tokens[wanted].tolist())
    best = client.get("/items", params={"k": 3}).json()
    order = np.argsort(-counts, kind="stable")[:3]
    assert [one["item"] for one in best] == tokens[order].tolist()
    assert [one["title"] for one in best] == [titles[n] for n in order]
    begins = client.get("/items", params={"q": first}).json()
    starting = [one["title"].lower().startswith(first.lower()) for one in begins]
    assert starting == sorted(starting, reverse=True)


@pytest.mark.usefixtures("reloaded")
def test_serve_adds_items(client, served):
    """With its columns; it can be recommended and found at once."""
    new = {"item_id": "999999", "title": served.items.titles[3], "kind": "kind 9", "price": 1}
    state = client.post("/add", json={"items": [new]}).raise_for_status().json()
    assert (state["items"], state["changes"]) == (91, ["1 items added"])
    found = client.get("/items", params={"q": "999999"}).json()
    assert [one["item"] for one in found] == ["999999"]
    user = served.interactions.users[3]
    assert [one["item"] for one in ask(client, user=user, where={"kind": "kind 9"})] == ["999999"]
    for body, message in (
        ({"items": []}, "items: expected"),
        ({"items": [new]}, "items: got 1 that the catalog has already"),
        ({"items": [{"name": "x"}]}, "item_column: got"),
        ({"items": [{**new, "item_id": None}]}, "item_column: got"),
        ({"items": [{**new, "item_id": 5}], "embeddings": [[1], [2, 3]]}, "embeddings: got rows"),
        ({"items": [{**new, "item_id": 5}], "embeddings": [[1.0, 2.0]]}, "embeddings: got"),
    ):
        answer = client.post("/add", json=body)
        assert answer.status_code == 422
        assert message in answer.json()["detail"]


@pytest.mark.usefixtures("reloaded")
def test_serve_loads_another_run(client, runs):
    """By name, or the same link again, which leads elsewhere; and says what it forgets."""
    gone = af.Recommender.load(runs / "first").items.tokens[8]
    client.post("/retire", json={"items": [gone]}).raise_for_status()
    state = client.post("/reload", json={"run": "second"}).raise_for_status().json()
    assert (state["run"], state["retired"]) == ("second", 3)
    assert state["forgotten"] == ["1 items retired"]
    assert client.get("/health").json()["run"] == "second"
    state = client.post("/reload").raise_for_status().json()
    assert (state["run"], state["retired"], state["forgotten"]) == ("first", 0, [])
    (runs / "current").unlink()
    (runs / "current").symlink_to("second")
    try:
        assert client.post("/reload").raise_for_status().json()["run"] == "second"
    finally:
        (runs / "current").unlink()
        (runs / "current").symlink_to("first")
    (runs / "broken").mkdir()
    for name in (
        "nothing",
        "..",
        ".",
        "",
        "../served/first",
        str(runs / "first"),
        "broken",
        "\x00",
    ):
        answer = client.post("/reload", json={"run": name})
        assert answer.status_code == 422, name
        assert answer.json()["detail"].startswith("run: got ")
        assert client.get("/health").json()["run"] == "second"


@pytest.mark.slow
def test_a_load_of_clients_while_runs_are_loaded(client, served, runs):
    """Each answer is one of the two runs', whole; none is dropped."""
    other = af.Recommender.load(runs / "second")
    users = served.interactions.users[:64].tolist()
    wanted = [
        {user: rows["item"].tolist() for user, rows in one.recommend(users, k=5).groupby("user")}
        for one in (served, other)
    ]
    assert wanted[0] != wanted[1]
    ended = threading.Event()

    def load():
        for turn in range(4):
            name = ("second", "first")[turn % 2]
            client.post("/reload", json={"run": name}).raise_for_status()
        ended.set()

    def clicks(user):
        count = 0
        with httpx.Client(base_url=client.base_url, timeout=60) as own:
            while not ended.is_set() or not count:
                answer = own.post("/recommend", json={"user": user, "k": 5})
                assert answer.status_code == 200, answer.text
                found = [one["item"] for one in answer.json()["recommendations"]]
                assert found in (wanted[0][user], wanted[1][user])
                count += 1
        return count

    with ThreadPoolExecutor(65) as threads:
        loading = threads.submit(load)
        counts = list(threads.map(clicks, users))
        loading.result()
    assert len(counts) == 64
    assert client.get("/health").json()["run"] == "first"


def test_serve_counts_for_prometheus(client):
    def count(path, status):
        text = client.get("/metrics").raise_for_status().text
        label = f'alphafuse_request_seconds_count{{path="{path}",status="{status}"}}'
        found = re.search(rf"^{re.escape(label)} (\S+)$", text, re.MULTILINE)
        return 0 if found is None else float(found[1])

    before = {key: count(*key) for key in (("/items", 200), ("/recommend", 422), ("other", 404))}
    client.get("/items", params={"q": "x"})
    client.post("/recommend", json={"k": 0})
    client.get("/nowhere/at/all")
    for key, number in before.items():
        assert count(*key) == number + 1
    assert "\nalphafuse_items 90.0\n" in client.get("/metrics").text
    assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")


def test_nothing_changes_where_it_may_not(runs):
    client = TestClient(make_app(af.Recommender.load(runs / "first")))
    for path, body in (("/retire", {"items": [1]}), ("/reload", {}), ("/restore", {"items": []})):
        answer = client.post(path, json=body)
        assert answer.status_code == 403
        said = answer.json()["detail"]
        assert said == "changes: got one; expected none: alphafuse serve --changes"
    assert client.get("/health").json()["changes"] == []


def test_an_address_that_is_taken(runs, client, capsys):
    for flags, message in (
        (["--port", str(client.base_url.port)], "--host, --port: got 127.0.0.1"),
        (["--port", "99999"], "--port: got 99999; expected 0 <= port <= 65535"),
        (["--host", "no.such.host.invalid"], "--host, --port: got no.such.host.invalid, 8000"),
    ):
        assert main(["serve", str(runs / "first"), *flags]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"alphafuse: error: {message}")
    assert main(["serve", str(runs / "nothing"), "--port", "0"]) == 2


@needs_browser
def test_a_page_to_try_it(client, served, tmp_path):
    """As a person would: search, click a history together, look at similar items, remove one."""
    page = Page(tmp_path / "profile")
    try:
        page.open(str(client.base_url))
        first, second = served.items.titles[10], served.items.titles[20]
        tokens = served.items.tokens[[10, 20]].tolist()
        page.wait("document.querySelectorAll('#found li').length === 20")
        page.wait("document.querySelector('#best .about')?.textContent.includes('popular now')")
        for title, token in ((first, tokens[0]), (second, tokens[1])):
            page.value("document.getElementById('q').value = ''")
            page.click("#q")
            page.type(title)
            page.click(f"#found li[data-item='{token}'] button")
        page.wait("document.querySelectorAll('#history li').length === 2")
        texts = "[...document.querySelectorAll('#{} li')].map(e => [e.dataset.item, e.innerText])"

        def shows(history, **options):
            wanted = served.recommend(histories=[history], **options)
            items = json.dumps(list(map(str, wanted["item"])))
            listed = texts.format("best").replace("[e.dataset.item, e.innerText]", "e.dataset.item")
            page.wait(f"JSON.stringify({listed}) === JSON.stringify({items})")
            return wanted

        wanted = shows(tokens, k=10)
        for (_, text), row in zip(
            page.value(texts.format("best")), wanted.itertuples(), strict=True
        ):
            assert row.title in text
            assert f"{row.score:.4g}"[:4] in text
            assert "model" in text
        near = served.recommend_to_items([tokens[1]], 10)["item"].astype(str).tolist()
        assert [item for item, _ in page.value(texts.format("similar"))] == near
        assert second in page.value("document.getElementById('of').textContent")

        page.click("#best li button:nth-of-type(2)")
        title = json.dumps(f"to {wanted['title'][0]}")
        page.wait(f"document.getElementById('of').textContent === {title}")
        page.click("#best li button")
        shows([*tokens, wanted["item"][0]], k=10)
        page.click("#history li button")
        shows([tokens[1], wanted["item"][0]], k=10)
        page.click("#n")
        page.type("2")
        page.click("#k")
        shows([tokens[1], wanted["item"][0]], k=10, at_most=2, by="kind")
        page.picture(tmp_path / "page.png")
        assert page.complaints == []
        assert {url.startswith(str(client.base_url)) for url in page.requested} == {True}
    finally:
        page.close()


@pytest.mark.slow
def test_schemathesis_finds_nothing(runs, tmp_path):
    """Requests made up from the server's own description get an answer that it describes."""
    pytest.importorskip("schemathesis")
    checks = ("not_a_server_error", "status_code_conformance", "content_type_conformance")
    with serving(runs / "first", "--changes") as client:
        command = [shutil.which("schemathesis", path=str(Path(sys.executable).parent)), "run"]
        flags = ["--checks", ",".join((*checks, "response_schema_conformance")), "--seed", "1"]
        flags += ["--max-examples", "40", "--phases", "examples,coverage,fuzzing", "--no-color"]
        done = subprocess.run(
            [*command, f"{client.base_url}/openapi.json", *flags],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-6000:]
        assert client.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize(
    ("path", "given", "message"),
    [
        ("/recommend", {"user": 1, "history": [2]}, "user, history: got both"),
        ("/recommend", {"user": 1, "k": 1000}, "k: got 1000"),
        ("/recommend", {"user": 1, "k": 1001}, "k: expected less than or equal to 1000"),
        ("/recommend", {"user": 1, "only": ["nothing"]}, "only: got no item"),
        ("/recommend", {"user": 1, "K": 5}, "K: expected no such argument"),
        ("/recommend", {"user": [1]}, "user: expected a valid integer or a valid string"),
        ("/recommend", {"history": [1, None]}, "history.1: expected a valid integer or a valid"),
        ("/recommend", {"where": {"colour": "red"}}, "where: got 'colour'; expected one of"),
        ("/recommend", {"where": {"price": {}}}, "where: got price with []; expected min, max"),
        ("/recommend", {"where": {"price": {"least": 3}}}, "where: expected"),
        ("/recommend", {"at_most": 2}, "by: got None; expected an item column"),
        ("/retire", {"items": ["nothing"]}, "unknown 'nothing'"),
        ("/retire", {"items": []}, "items: got no items"),
        ("/retire", {}, "items: expected a value, got none"),
    ],
)
def test_serve_refuses(client, path, given, message):
    answer = client.post(path, json=given)
    assert answer.status_code == 422
    assert message in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/similar", "item: expected a value, got none"),
        ("/similar?item=1&k=0", "k: expected greater than or equal to 1"),
        ("/similar?item=1&k=x", "k: expected a valid integer"),
        ("/similar?item=item00001&k=500", "k: got 500"),
        ("/similar?item=1&part=whole", "part: expected 'fused', 'semantic' or 'id'"),
        ("/items?q=" + "x" * 201, "q: expected a string of at most 200 characters"),
        ("/items?k=1001", "k: expected less than or equal to 1000"),
    ],
)
def test_serve_refuses_what_is_asked_by_get(client, path, message):
    answer = client.get(path)
    assert answer.status_code == 422
    assert message in answer.json()["detail"]


ODD = [
    *(b"", b"null", b"[]", b"3", b'"x"', b"{", b"\x00", b"\xff\xfe", b'{"user": "\xff"}', b"NaN"),
    *(b"[" * 10_000, b'{"a":' * 10_000, b'{"user": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"),
    *(b'{"user": ' + value + b"}" for value in (b"NaN", b"1e400", b"-Infinity", b"1.5", b"true")),
    *(
        b'{"user": ' + value + b"}"
        for value in (b"9" * 5_000, b"{}", b"[1]", b'"' + b"x" * 999 + b'"')
    ),
    *(
        b'{"user": 1, "k": ' + value + b"}"
        for value in (b"NaN", b"Infinity", b"1e400", b"1e3", b"0", b"-1", b"2.5", b"null")
    ),
    *(
        b'{"user": 1, "k": ' + value + b"}"
        for value in (b"9" * 400, b"true", b'"5"', b"[5]", b"{}")
    ),
    *(b'{"history": ' + value + b"}" for value in (b"1", b'"abc"', b"[NaN]", b"[null]", b"[[1]]")),
    *(b'{"history": ' + value + b"}" for value in (b'["\\ud800"]', b"[true]", b"{}", b"[1e400]")),
    *(b'{"history": [' + b",".join([b"1"] * 1001) + b"]}",),
    *(b'{"user": 1, "only": ' + value + b"}" for value in (b"[]", b"[[1]]", b"3", b'["\\ud800"]')),
    *(b'{"items": ' + value + b"}" for value in (b"[]", b'["\\ud800"]', b"[NaN]", b'"x"', b"null")),
]


ANSWERED = [
    ("/reload", b""),
    ("/reload", b"null"),
]


@pytest.mark.usefixtures("reloaded")
def test_serve_answers_what_only_looks_odd(client):
    for path, content in ANSWERED:
        answer = client.post(path, content=content, headers=AS_JSON)
        assert answer.status_code == 200, content


@pytest.mark.parametrize("path", ["/recommend", "/retire", "/restore", "/add", "/reload"])
def test_serve_refuses_invalid_requests(client, path):
    """With a message in JSON, and never with an error of the server."""
    for content in ODD:
        if (path, content) in ANSWERED:
            continue
        for headers in ({}, AS_JSON, {"content-type": "text/plain"}):
            answer = client.post(path, content=content, headers=headers)
            assert 400 <= answer.status_code < 500, (content[:60], answer.text)
            assert isinstance(answer.json()["detail"], str), content[:60]
            assert len(answer.text) < 2000, content[:60]


def test_serve_reads_no_more_than_it_must(client, served):
    """Whether a body says how large it is, or comes in chunks."""
    parts = [b'{"user": "', *[b"x" * (1 << 18)] * 12, b'"}']
    for content in (b"".join(parts), iter(parts)):
        answer = client.post("/recommend", content=content, headers=AS_JSON)
        assert answer.status_code == 413
        assert answer.json()["detail"].startswith("body: got 3145")
    parts = [b'{"user"', b": ", json.dumps(served.interactions.users[0]).encode(), b"}", b""]
    answer = client.post("/recommend", content=iter(parts), headers=AS_JSON)
    assert answer.status_code == 200
    for path in ("/nowhere", "/recommend"):
        answer = client.get(path)
        assert answer.status_code in (404, 405)
        assert isinstance(answer.json()["detail"], str)
