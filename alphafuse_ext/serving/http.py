"""A recommender over HTTP, with FastAPI: ``alphafuse serve``, or :func:`make_app` in a server of
one's own.

Requests are answered by threads, which share the recommender: it is immutable, and replaced by one
assignment where its catalog changes or another run is loaded. A refusal is
``{"detail": "argument: got ...; expected ..."}`` with a status of 4xx.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from prometheus_client import (
    CollectorRegistry,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr
from starlette.exceptions import HTTPException as AnyHTTPException

from alphafuse_ext._version import __version__
from alphafuse_ext.checks import invalid
from alphafuse_ext.serving.recommender import Recommender

MOST_BYTES = 1 << 20
"""Of a request."""
MOST_HISTORY, MOST_K, MOST_IDS, MOST_NEW = 1000, 1000, 10_000, 1000
"""Of a history, of recommendations, of ids in one list, of items added at once."""

Id = StrictInt | Annotated[StrictStr, Field(max_length=256)]
Ids = Annotated[list[Id], Field(max_length=MOST_IDS)]
Count = Annotated[StrictInt, Field(ge=1, le=MOST_K)]
Name = Annotated[StrictStr, Field(max_length=256)]
Value = StrictBool | StrictInt | StrictFloat | Name


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Range(_Body):
    """Values of an item column from ``min`` to ``max``, or without one of the two."""

    min: Value | None = None
    max: Value | None = None


class Question(_Body):
    """Someone known by ``user``, anyone with a ``history`` (oldest item first), or, without either,
    someone unknown. The rest are arguments of ``Recommender.recommend``."""

    user: Id | None = None
    history: Annotated[list[Id], Field(max_length=MOST_HISTORY)] | None = None
    k: Count = 10
    only: Ids | None = None
    exclude: Ids | None = None
    where: (
        Annotated[
            dict[Name, Value | Annotated[list[Value], Field(max_length=MOST_K)] | Range],
            Field(max_length=20),
        ]
        | None
    ) = None
    at_most: Count | None = None
    by: Name | None = None
    keep_seen: StrictBool | None = None


class Changed(_Body):
    """Items whose state changes."""

    items: Ids


class New(_Body):
    """New items: an object for each, with the columns that the run's catalog has; and their
    language embeddings, where the run does not encode texts."""

    items: Annotated[
        list[Annotated[dict[Name, Value | None], Field(max_length=100)]],
        Field(min_length=1, max_length=MOST_NEW),
    ]
    embeddings: Annotated[list[list[float]], Field(max_length=MOST_NEW)] | None = None


class Another(_Body):
    """The name of a run folder beside the one that the server was started with; default: that one,
    read again."""

    run: Name | None = None


class Recommendation(BaseModel):
    """A recommended or a similar item, and where it comes from."""

    rank: int
    item: int | float | str
    title: str | None
    score: float
    reason: str = Field(serialization_alias="from")


class Answer(BaseModel):
    """Recommendations, best first; ``notes`` say what was unknown."""

    recommendations: list[Recommendation]
    notes: list[str]


class Found(BaseModel):
    """An item of the catalog."""

    item: int | float | str
    title: str | None
    retired: bool


class State(BaseModel):
    """What the server answers from."""

    status: Literal["ok"] = "ok"
    run: str
    items: int
    retired: int
    users: int
    columns: list[str]
    changes: list[str]
    forgotten: list[str] = []


class Refusal(BaseModel):
    """Why a request was refused."""

    detail: str


class Served:
    """A recommender, and what searching its catalog takes."""

    def __init__(self, recommender: Recommender) -> None:
        self.recommender = recommender
        items = recommender.items
        titles = items.titles if items.titles is not None else [""] * len(items)
        names = [f"{title} {token}" for title, token in zip(titles, items.tokens, strict=True)]
        self._names = pa.array([name.strip().casefold() for name in names], pa.large_string())
        self._counts = recommender.interactions.item_counts()
        # What the first request would wait for.
        recommender.recommend(histories=[items.tokens[:1].tolist(), []], k=1)

    def find(self, query: str, k: int) -> list[Found]:
        """The items with all words of a query in title or id: those that begin with it, then the
        most popular."""
        kept = np.ones(len(self._names), dtype=bool)
        for word in query.casefold().split():
            kept &= pc.match_substring(self._names, word).to_numpy(zero_copy_only=False)
        places = np.flatnonzero(kept)
        begins = pc.starts_with(self._names.take(pa.array(places)), query.strip().casefold())
        order = np.lexsort((-self._counts[places], ~begins.to_numpy(zero_copy_only=False)))
        items = self.recommender.items
        return [
            Found(
                item=_plain(items.tokens[place]),
                title=items.titles[place] if items.titles is not None else None,
                retired=bool(items.retired is not None and items.retired[place]),
            )
            for place in places[order[:k]].tolist()
        ]

    def state(self) -> State:
        items, columns = self.recommender.items, self.recommender.items.columns
        return State(
            run=self.recommender.run.path.name,
            items=len(items),
            retired=0 if items.retired is None else int(items.retired.sum()),
            users=self.recommender.interactions.num_users,
            columns=[] if columns is None else list(columns),
            changes=list(self.recommender.changes),
        )


class Service:
    """What answers now.

    Args:
        recommender, changes, run: as for :func:`make_app`.
    """

    def __init__(self, recommender: Recommender, changes: bool, run: Path | None) -> None:
        self.served = Served(recommender)
        self._allowed = changes
        self._folder = run or recommender.run.path
        self._device = str(recommender.model.device)
        self._changing = threading.Lock()

    def recommend(self, question: Question) -> Answer:
        """The best items for a user or after a history, and why."""
        if question.user is not None and question.history is not None:
            raise HTTPException(422, "user, history: got both; expected one of them, or none")
        known = question.user is not None
        users = [question.user] if known else None
        histories = None if known else [question.history or []]
        where = None
        if question.where is not None:
            where = question.model_dump(include={"where"}, exclude_none=True)["where"]
        options = question.model_dump(
            include={"k", "only", "exclude", "at_most", "by", "keep_seen"}
        )
        recommender = self.served.recommender
        frames, notes = _refusing(
            lambda: recommender.prepared(users, histories, **options, where=where)
        )
        rows = _rows(pd.concat(list(frames)), recommender.model.origin)
        return Answer(recommendations=rows, notes=notes)

    def similar(
        self,
        item: Annotated[str, Query(max_length=256)],
        k: Annotated[int, Query(ge=1, le=MOST_K)] = 10,
        part: Literal["fused", "semantic", "id"] = "fused",
    ) -> Answer:
        """The items most similar to one, by cosine of their embeddings."""
        recommender = self.served.recommender
        if recommender.interactions.find_items([item])[0] < 0:
            raise HTTPException(404, f"item: got {item!r}, which is unknown")
        frame = _refusing(lambda: recommender.recommend_to_items([item], k, part))
        return Answer(recommendations=_rows(frame, "similar"), notes=[])

    def items(
        self,
        q: Annotated[str, Query(max_length=200)] = "",
        k: Annotated[int, Query(ge=1, le=MOST_K)] = 20,
    ) -> list[Found]:
        """Items with all words of ``q`` in their title or id; without ``q`` the most popular."""
        return self.served.find(q, k)

    async def health(self) -> State:
        """What the server answers from."""
        return self.served.state()

    def count(self, name: str) -> float:
        """A number of the state, by name."""
        return float(getattr(self.served.state(), name))

    def add(self, new: New) -> State:
        """New items, which can be recommended at once."""
        embeddings = None
        if new.embeddings is not None:
            if len({len(row) for row in new.embeddings}) > 1 or len(new.embeddings) != len(
                new.items
            ):
                raise HTTPException(
                    422, "embeddings: got rows of other lengths or number; expected one an item"
                )
            embeddings = np.array(new.embeddings, dtype=np.float32)
        frame = pd.DataFrame(new.items)
        return self._change(lambda recommender: recommender.add_items(frame, embeddings))

    def retire(self, gone: Changed) -> State:
        """Items that are no longer recommended."""
        return self._change(lambda recommender: recommender.retire_items(gone.items))

    def restore(self, back: Changed) -> State:
        """Retired items that are recommended again."""
        return self._change(lambda recommender: recommender.restore_items(back.items))

    def reload(self, another: Another | None = None) -> State:
        """Load a run folder while the one before answers; changes made here are forgotten."""
        name = self._folder.name if another is None or another.run is None else another.run
        if name != Path(name).name or name == ".." or "\0" in name:
            raise HTTPException(422, f"run: got {name!r}; expected the name of a folder")
        path = self._folder.parent / name
        forgotten: list[str] = []

        def load(before: Recommender) -> Recommender:
            loaded = load_run(path, self._device)
            forgotten.extend(before.changes)
            return loaded

        return self._change(load).model_copy(update={"forgotten": forgotten})

    def _change(self, change: Callable[[Recommender], Recommender]) -> State:
        if not self._allowed:
            raise HTTPException(403, "changes: got one; expected none: alphafuse serve --changes")
        with self._changing:  # else one of two changes would be lost
            served: Served = _refusing(lambda: Served(change(self.served.recommender)))
            self.served = served
        return served.state()


def load_run(path: Path, device: str | None) -> Recommender:
    """A run, by the folder that a link leads to: if the link is changed, files of two runs do not
    mix."""
    return Recommender.load(path.resolve(), device)


def _refusing(call: Callable[[], Any]) -> Any:
    """What a call returns; a refusal of its arguments as one of the request."""
    try:
        return call()
    except (TypeError, ValueError, NotImplementedError, OSError) as error:
        raise HTTPException(422, " ".join(str(error).split("\n"))) from error


def _rows(frame: pd.DataFrame, otherwise: str) -> list[Recommendation]:
    titles = frame["title"] if "title" in frame else [None] * len(frame)
    sources = frame["from"] if "from" in frame else [otherwise] * len(frame)
    return [
        Recommendation(rank=rank, item=_plain(item), title=title, score=score, reason=source)
        for rank, item, title, score, source in zip(
            frame["rank"], frame["item"], titles, frame["score"], sources, strict=True
        )
    ]


def _plain(token: Any) -> int | float | str:
    """An id as JSON has it; as a string where other languages would round it."""
    token = token.item() if isinstance(token, np.generic) else token
    rounded = isinstance(token, int) and abs(token) >= 2**53
    return str(token) if rounded or isinstance(token, uuid.UUID) else token


def refusal(status: int, why: str) -> Response:
    """An answer to what cannot be answered, in ASCII: a question may hold half a character."""
    return Response(json.dumps({"detail": why}), status, media_type="application/json")


async def _say_why(_: Request, error: Any) -> Response:
    """The refusal of an exception; the value is not repeated, which JSON may not be able to say."""
    if not isinstance(error, RequestValidationError):
        return refusal(error.status_code, str(error.detail))
    refused: dict[str, list[str]] = {}
    for one in error.errors():
        place = one["loc"][1:2] + tuple(part for part in one["loc"][2:3] if isinstance(part, int))
        refused.setdefault(".".join(map(str, place)) or "body", []).append(_expectation(one))
    lines = [f"{name}: expected {' or '.join(said[:3])}" for name, said in refused.items()]
    return refusal(422, "; ".join(lines[:5]))


def _expectation(one: Any) -> str:
    """What one of pydantic's errors says that it should be."""
    if one["type"] in ("missing", "extra_forbidden"):
        return {"missing": "a value, got none", "extra_forbidden": "no such argument"}[one["type"]]
    whole = one["msg"]
    for begins, instead in (("Input should be ", ""), ("String should have", "a string of")):
        whole = whole.replace(begins, instead)
    return whole[:1].lower() + whole[1:]


async def _unexpected(_: Request, error: Exception) -> Response:
    return refusal(500, f"unexpected {type(error).__name__}, a bug in alphafuse")


class LimitedBodies:
    """Answers 413 to a request that is too large, whether or not it says how large it is."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, size, more = bytearray(), 0, True
        while more:  # to its end: a client that is cut off while it sends reads no answer
            message = await receive()
            if message["type"] != "http.request":
                return  # it has gone
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if size <= MOST_BYTES:
                body += part
        if size > MOST_BYTES:
            why = f"body: got {size} bytes; expected {MOST_BYTES} at most"
            await refusal(413, why)(scope, receive, send)
            return

        async def whole() -> dict[str, Any]:
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self.app(scope, whole, send)


class Measured:
    """Counts requests and their seconds, for Prometheus, by path of the API and status."""

    def __init__(self, app: Any, registry: CollectorRegistry) -> None:
        self.app = app
        labels = ("path", "status")
        self._seconds = Histogram(
            "alphafuse_request_seconds", "Time to answer", labels, registry=registry
        )
        self._running = Gauge("alphafuse_requests_running", "Not answered yet", registry=registry)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def noted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            with self._running.track_inprogress():
                await self.app(scope, receive, noted)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self._seconds.labels(path, status).observe(time.perf_counter() - started)


def make_app(recommender: Recommender, changes: bool = False, run: Path | None = None) -> FastAPI:
    """The service of a recommender, to run or to mount in another.

    Args:
        recommender: what answers at first.
        changes: whether requests may add, retire and restore items, and load other runs.
        run: the folder that ``/reload`` reads again, and beside which others are; it may be a link.
            Default: the recommender's.
    """
    service = Service(recommender, changes, run)
    refused: dict[int | str, dict[str, Any]] = {
        status: {"model": Refusal, "description": what}
        for status, what in (
            *((400, "No JSON"), (413, "Too large"), (422, "Arguments that cannot be answered")),
        )
    }
    made = FastAPI(
        title="alphafuse", version=__version__, docs_url=None, redoc_url=None, responses=refused
    )
    unknown: dict[int | str, dict[str, Any]] = {404: {"model": Refusal}}
    forbidden: dict[int | str, dict[str, Any]] = {403: {"model": Refusal}}
    made.post("/recommend", response_model=Answer)(service.recommend)
    made.get("/similar", response_model=Answer, responses=unknown)(service.similar)
    made.get("/items", response_model=list[Found])(service.items)
    made.get("/health", response_model=State)(service.health)
    for change in (service.add, service.retire, service.restore, service.reload):
        made.post(f"/{change.__name__}", response_model=State, responses=forbidden)(change)

    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    for name in ("items", "retired", "users"):
        gauge = Gauge(f"alphafuse_{name}", f"Number of {name}", registry=registry)
        gauge.set_function(partial(service.count, name))

    @made.get("/metrics", response_class=Response, include_in_schema=False)
    async def metrics() -> Response:
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(generate_latest(registry), media_type=kind)

    page = files("alphafuse_ext.serving").joinpath("page.html").read_text(encoding="utf-8")
    only_here = {"content-security-policy": "default-src 'self' 'unsafe-inline'; img-src data:"}

    @made.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def try_it() -> Response:
        return HTMLResponse(page, headers=only_here)

    made.add_middleware(LimitedBodies)
    made.add_middleware(Measured, registry=registry)
    made.add_exception_handler(RequestValidationError, _say_why)
    made.add_exception_handler(AnyHTTPException, _say_why)
    made.add_exception_handler(Exception, _unexpected)
    return made


def serve(run: Path, host: str, port: int, changes: bool, device: str | None) -> None:
    """Answer requests until the process is interrupted.

    Args:
        run: the run folder, or a link to it.
        host, port: the address; port 0: any free one.
        changes: as for :func:`make_app`.
        device: as for :meth:`Recommender.load`.

    Raises:
        OSError: an address that cannot be listened at.
    """
    import socket

    import uvicorn

    if not 0 <= port < 1 << 16:
        raise invalid("port", port, "0 <= port <= 65535")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        # Of this protocol by name, or asyncio leaves answers waiting for those of the client's TCP.
        listening = socket.socket(*found[0][:3])
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(found[0][4])
        listening.listen(2048)
    except OSError as error:
        what = f"{host}, {port}: {error}"
        raise invalid("host, port", what, "an address of this machine", OSError) from error
    app = make_app(load_run(run, device), changes, run.absolute())
    host, port = listening.getsockname()[:2]
    print(f"http://{host}:{port}: a page to try it, /openapi.json, /metrics", flush=True)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=30)
    uvicorn.Server(config).run([listening])
