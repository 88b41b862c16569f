"""The examples, as their users run them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

AS_JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def client(recommender):
    """A client of the server, in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--app-dir", EXAMPLES, "--factory", "serve:app"]
    where = {"RUN": str(recommender.run.path)}
    server = subprocess.Popen(
        [*command, "--port", str(port), "--log-level", "warning"], env={**os.environ, **where}
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            deadline = time.monotonic() + 120
            while True:
                try:
                    client.get("/openapi.json")
                    break
                except httpx.TransportError:
                    assert server.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
            yield client
    finally:
        server.terminate()
        server.wait(30)


def test_serve(client, recommender):
    users = recommender.interactions.users[:24].tolist()

    def ask(user):
        return client.post("/recommend", json={"user": user, "k": 4}).raise_for_status().json()

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, users))
    expected = recommender.recommend(users, k=4)
    for user, answer in zip(users, answers, strict=True):
        mine = expected[expected["user"] == user]
        assert [one["item"] for one in answer] == mine["item"].tolist()
        assert [one["rank"] for one in answer] == [1, 2, 3, 4]
        assert set(answer[0]) == {"rank", "item", "title", "score"}

    gone = answers[0][0]["item"]
    assert client.post("/retire", json={"items": [gone]}).json() == {"retired": 1}
    assert gone not in [one["item"] for one in ask(users[0])]
    some = recommender.items.tokens[:6].tolist()
    history = {"history": [gone], "only": some, "k": 3}
    answer = client.post("/recommend", json=history).raise_for_status().json()
    assert {one["item"] for one in answer} <= set(some) - {gone}


@pytest.mark.parametrize(
    ("path", "given", "message"),
    [
        ("/recommend", {}, "got both or neither"),
        ("/recommend", {"user": 1, "history": [2]}, "got both or neither"),
        ("/recommend", {"user": 1, "k": 1000}, "k: got 1000"),
        ("/recommend", {"user": 1, "only": ["nothing"]}, "only: got no item"),
        ("/recommend", {"history": ["nothing", -5]}, "history: got no known item"),
        ("/recommend", {"history": []}, "history: "),
        ("/recommend", {"user": 1, "K": 5}, "K: "),
        ("/retire", {"items": ["nothing"]}, "unknown 'nothing'"),
    ],
)
def test_serve_refuses(client, path, given, message):
    answer = client.post(path, json=given)
    assert answer.status_code == 422
    assert message in answer.json()["detail"]


def test_serve_says_that_a_user_is_unknown(client):
    for user in ("nobody", 10**300, -1, "", "\x00"):
        answer = client.post("/recommend", content=json.dumps({"user": user}), headers=AS_JSON)
        assert answer.status_code == 404, user
        assert answer.json()["detail"] == f"user: got {user!r}, which is unknown"


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


@pytest.mark.parametrize("path", ["/recommend", "/retire"])
def test_serve_refuses_invalid_requests(client, path):
    """With a message in JSON, and never with an error of the server."""
    for content in ODD:
        for headers in ({}, AS_JSON, {"content-type": "text/plain"}):
            answer = client.post(path, content=content, headers=headers)
            assert 400 <= answer.status_code < 500, (content[:60], answer.text)
            assert isinstance(answer.json()["detail"], str), content[:60]
            assert len(answer.text) < 2000, content[:60]


def test_serve_reads_no_more_than_it_must(client, recommender):
    """Whether a body says how large it is, or comes in chunks."""
    parts = [b'{"user": "', *[b"x" * (1 << 18)] * 12, b'"}']
    for content in (b"".join(parts), iter(parts)):
        answer = client.post("/recommend", content=content, headers=AS_JSON)
        assert answer.status_code == 413
        assert answer.json()["detail"].startswith("body: got 3145")
    parts = [b'{"user"', b": ", json.dumps(recommender.interactions.users[0]).encode(), b"}", b""]
    answer = client.post("/recommend", content=iter(parts), headers=AS_JSON)
    assert answer.status_code == 200
    for path in ("/", "/recommend"):
        answer = client.get(path)
        assert answer.status_code in (404, 405)
        assert isinstance(answer.json()["detail"], str)
