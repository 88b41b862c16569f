"""Lines about what a call does, to its ``log`` and to Python's logger."""

from __future__ import annotations

import logging
import sys

import numpy as np
import pytest

import alphafuse_ext as af
from alphafuse_ext.data import encode_texts, read_interactions, read_items, synthetic_catalog
from alphafuse_ext.logs import LOGGER, Lines, logged
from alphafuse_ext.training.progress import shows_bars

SMALL = {"model": "sasrec", "dim": 8, "epochs": 1, "history": 5, "seed": 1}


@pytest.fixture(scope="module")
def catalog():
    clicks, items = synthetic_catalog(num_users=60, num_items=60, seed=0)
    return clicks, items, np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32)


def test_a_reader_logs_what_it_says(catalog, caplog):
    clicks, items, _ = catalog
    said = []
    with caplog.at_level(logging.INFO, "alphafuse_ext"):
        for log in (said.append, None):
            known = read_items(items, log=log)
            read_interactions(clicks, known, log=log)
            encode_texts(known.texts, "tfidf", log=log)
    assert len(said) >= 3
    assert caplog.messages == said * 2
    assert {(record.name, record.levelno) for record in caplog.records} == {
        ("alphafuse_ext", logging.INFO)
    }
    assert {"read_items", "_read"} <= {record.funcName for record in caplog.records}


def test_training_logs_each_line_once(catalog, caplog, capsys, tmp_path):
    """Those of readers within it too; nothing is printed without a ``log``."""
    said = []
    with caplog.at_level(logging.INFO, "alphafuse_ext"):
        af.fit(*catalog, tmp_path / "first", log=said.append, **SMALL)
        assert caplog.messages == said
        assert len(set(said)) == len(said) > 5
        caplog.clear()
        af.fit(*catalog, tmp_path / "second", log=None, **SMALL)
    assert len(caplog.messages) == len(said)
    assert any(line.startswith("run folder: ") for line in caplog.messages)
    assert capsys.readouterr().out == ""


def test_by_default_lines_are_printed_and_the_logger_is_quiet(catalog, capsys, tmp_path):
    af.fit(*catalog, tmp_path / "run", **SMALL)
    shown = capsys.readouterr()
    assert "run folder: " in shown.out
    assert shown.err == ""
    assert LOGGER.handlers == []
    assert LOGGER.level == logging.NOTSET


def test_bars_are_shown_where_lines_are_printed(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert shows_bars(logged(print))
    assert not shows_bars(logged(None))
    assert not shows_bars(logged([].append))
    once = logged(print)
    assert logged(once) is once
    assert once == Lines(print)
