"""The examples, as their users run them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import alphafuse_ext as af
from alphafuse_ext.data import synthetic_catalog

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture(scope="module")
def recommender(tmp_path_factory) -> af.Recommender:
    clicks, items = synthetic_catalog(num_users=150, num_items=80, seed=2)
    return af.fit(
        *(clicks, items, None, tmp_path_factory.mktemp("runs") / "run"),
        **{"encoder": "tfidf", "dim": 16, "epochs": 1, "history": 6, "log": lambda _: None},
    )


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
        ("/retire", {"items": ["nothing"]}, "unknown 'nothing'"),
    ],
)
def test_serve_refuses(client, path, given, message):
    answer = client.post(path, json=given)
    assert answer.status_code == 422
    assert message in answer.json()["detail"]
