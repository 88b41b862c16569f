"""The commands of the command line, a file for each group of them.

What the list of commands shows stands here, so that no command is imported for it.
"""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """A command in words.

    Attributes:
        module: of this package, which has it.
        help: one line, for the list of commands.
        example: how it is called.
        more: what else to know, in a sentence or two.
    """

    module: str
    help: str
    example: str
    more: str = ""


COMMANDS = {
    "train": Command(
        "train",
        "train a recommender on clicks and item texts or embeddings",
        "alphafuse train --interactions clicks.csv --items items.csv --output runs/first",
        "Without --interactions, on a small built-in catalog.",
    ),
    "evaluate": Command(
        "serve", "compute the metrics of a run again", "alphafuse evaluate runs/first --groups"
    ),
    "recommend": Command(
        "serve",
        "recommend items to users, or to histories of people not trained on",
        "alphafuse recommend runs/first --k 20 --output recommendations.parquet",
    ),
    "similar": Command(
        "serve", "find items like given ones", "alphafuse similar runs/first --items B0001 B0002"
    ),
    "export": Command(
        "serve",
        "write item embeddings and encoder for other software: FAISS, USearch, ONNX, safetensors",
        "alphafuse export runs/first --to onnx --output exported",
    ),
    "report": Command(
        "inspect",
        "write the page that shows a run",
        "alphafuse report runs/first --output run.html",
    ),
    "describe": Command(
        "data",
        "describe a data set: sizes, lengths, popularity, repeats, times",
        "alphafuse describe --interactions clicks.csv --items items.csv --output data.html",
    ),
    "prepare": Command(
        "data",
        "make a published data set (Amazon, MovieLens, Steam, Yelp) ready to train on",
        "alphafuse prepare amazon-2014 --interactions reviews_Beauty.json.gz --output beauty",
    ),
    "add-items": Command(
        "catalog",
        "add new items to a run's catalog, recommended at once, without training",
        "alphafuse add-items runs/first --items new.csv --output runs/second",
        "Files are read as for the run, unless an option says otherwise.",
    ),
    "retire-items": Command(
        "catalog",
        "recommend some items no longer",
        "alphafuse retire-items runs/first --items B0001 --output runs/second",
    ),
    "upgrade-embeddings": Command(
        "catalog",
        "replace the language embeddings of a run by another text encoder's",
        "alphafuse upgrade-embeddings runs/first --embeddings better.npy --output runs/second",
        "Files are read as for the run, unless an option says otherwise.",
    ),
    "compare": Command(
        "experiments",
        "compare methods over data sets and seeds",
        "alphafuse compare --interactions clicks.csv --items items.csv "
        "--methods alphafuse llminit id --seeds 0 1 2 --output comparison",
        "What has ended is not run again: the same command goes on.",
    ),
    "tune": Command(
        "experiments",
        "search for the best settings of methods, by validation",
        "alphafuse tune search.toml --trials 20 --output tuned",
        "What has ended is not run again: the same command goes on.",
    ),
    "geometry": Command(
        "inspect",
        "measure how much of the distances among language embeddings a run keeps",
        "alphafuse geometry runs/first",
    ),
    "info": Command(
        "inspect",
        "show the version, what was built, and the devices",
        "alphafuse info",
    ),
}
