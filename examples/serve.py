"""An HTTP server for a recommender, with FastAPI; its catalog can change while it runs.

    pip install '.[serve]'
    RUN=runs/first uvicorn --app-dir examples --factory serve:app

    curl localhost:8000/recommend --json '{"history": ["B0001", "B0002"], "k": 5}'
    curl localhost:8000/retire --json '{"items": ["B0003"]}'

FastAPI runs plain functions in threads. Threads may share a recommender, which is immutable and
replaced by one assignment. Unknown ids in histories are skipped and logged. Errors are
{"detail": "reason"}: 404 for an unknown user, 413 for a body that is too large, 422 and 400 for
invalid requests.
"""

from __future__ import annotations

import json
import os
import threading
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr
from starlette.exceptions import HTTPException as AnyHTTPException

import alphafuse_ext as af

MOST_BYTES = 1 << 20
"""Of a request."""

Id = StrictInt | Annotated[StrictStr, Field(max_length=256)]


class Question(BaseModel):
    """A user of the training data, or anyone with a history, oldest item first."""

    model_config = ConfigDict(extra="forbid")

    user: Id | None = None
    history: Annotated[list[Id], Field(min_length=1, max_length=1000)] | None = None
    k: Annotated[StrictInt, Field(ge=1, le=1000)] = 10
    only: Annotated[list[Id], Field(max_length=10_000)] | None = None


class Gone(BaseModel):
    """Items that are no longer to be recommended."""

    model_config = ConfigDict(extra="forbid")

    items: Annotated[list[Id], Field(max_length=10_000)]


class Service:
    """The recommender that answers now."""

    def __init__(self, recommender: af.Recommender) -> None:
        self.recommender = recommender
        self._changing = threading.Lock()

    def recommend(self, question: Question) -> list[dict[str, Any]]:
        """The best items, best first: rank, item, title where there are titles, score, and
        where it comes from in a run with neighbors."""
        if (question.user is None) == (question.history is None):
            raise HTTPException(422, "user, history: got both or neither; expected one of them")
        recommender = self.recommender
        users = None if question.user is None else [question.user]
        histories = None if question.history is None else [question.history]
        try:
            frame = recommender.recommend(users, histories, k=question.k, only=question.only)
        except (TypeError, ValueError) as error:
            raise HTTPException(422, str(error)) from error
        clicks = recommender.interactions
        if users is not None and clicks.find_users(users)[0] < 0:
            raise HTTPException(404, f"user: got {question.user!r}, which is unknown")
        if histories is not None and (clicks.find_items(histories[0]) < 0).all():
            raise HTTPException(422, "history: got no known item; expected one or more")
        return frame.drop(columns="user").to_dict("records")

    def retire(self, gone: Gone) -> dict[str, int]:
        """How many items are retired now."""
        with self._changing:  # else one of two changes would be lost
            try:
                self.recommender = self.recommender.retire_items(gone.items)
            except (TypeError, ValueError) as error:
                raise HTTPException(422, str(error)) from error
            retired = self.recommender.items.retired
        return {"retired": 0 if retired is None else int(retired.sum())}


def refusal(status: int, why: str) -> Response:
    """An answer to what cannot be answered, in ASCII: a question may hold half a character."""
    return Response(json.dumps({"detail": why}), status, media_type="application/json")


async def say_why(_: Request, error: Any) -> Response:
    """The refusal of an exception; the value is not repeated, which JSON may not be able to say."""
    if isinstance(error, RequestValidationError):
        said = (f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors())
        return refusal(422, "; ".join(list(said)[:5]))
    return refusal(error.status_code, str(error.detail))


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


def make_app(recommender: af.Recommender) -> FastAPI:
    """The service of a recommender."""
    service = Service(recommender)
    made = FastAPI(title="alphafuse_ext")
    made.post("/recommend")(service.recommend)
    made.post("/retire")(service.retire)
    made.add_middleware(LimitedBodies)
    made.add_exception_handler(RequestValidationError, say_why)
    made.add_exception_handler(AnyHTTPException, say_why)
    return made


def app() -> FastAPI:
    """The service of the run folder that ``RUN`` names."""
    return make_app(af.Recommender.load(os.environ["RUN"]))
