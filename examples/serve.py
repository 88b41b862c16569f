"""A recommender behind HTTP, with FastAPI, whose catalog changes while it answers.

    pip install '.[serve]'
    RUN=runs/first uvicorn --app-dir examples --factory serve:app

    curl localhost:8000/recommend --json '{"history": ["B0001", "B0002"], "k": 5}'
    curl localhost:8000/retire --json '{"items": ["B0003"]}'

FastAPI runs plain functions in threads, and threads may share a recommender: one never changes, and
the next takes its place by one assignment. Unknown ids are left out of a history, as the log says.
"""

from __future__ import annotations

import os
import threading
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

import alphafuse_ext as af

Id = int | str


class Question(BaseModel):
    """A user of the training data, or anyone with a history, oldest item first."""

    user: Id | None = None
    history: list[Id] | None = None
    k: Annotated[int, Field(ge=1)] = 10
    only: list[Id] | None = None


class Gone(BaseModel):
    """Items that are no longer to be recommended."""

    items: list[Id]


class Service:
    """The recommender that answers now."""

    def __init__(self, recommender: af.Recommender) -> None:
        self.recommender = recommender
        self._changing = threading.Lock()

    def recommend(self, question: Question) -> list[dict[str, Any]]:
        """The best items, best first: rank, item, title where there are titles, score."""
        if (question.user is None) == (question.history is None):
            raise HTTPException(422, "user, history: got both or neither; expected one of them")
        users = None if question.user is None else [question.user]
        histories = None if question.history is None else [question.history]
        try:
            frame = self.recommender.recommend(users, histories, k=question.k, only=question.only)
        except (TypeError, ValueError) as error:
            raise HTTPException(422, str(error)) from error
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


def make_app(recommender: af.Recommender) -> FastAPI:
    """The service of a recommender."""
    service = Service(recommender)
    made = FastAPI(title="alphafuse_ext")
    made.post("/recommend")(service.recommend)
    made.post("/retire")(service.retire)
    return made


def app() -> FastAPI:
    """The service of the run folder that ``RUN`` names."""
    return make_app(af.Recommender.load(os.environ["RUN"]))
