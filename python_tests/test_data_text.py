"""Text encoders: TF-IDF, and how a sentence encoder (here a stand-in) is chosen."""

import sys
import types

import numpy as np
import pytest

from alphafuse_ext.data import encode_texts

TEXTS = [
    "red wool hat",
    "blue wool hat",
    "steel pan",
    "cast iron pan",
    "",
    "a red hat of wool",
    "  ",
]


def cosines(embeddings):
    return embeddings @ embeddings.T


def test_tfidf_unit_rows_and_zero_rows():
    embeddings = encode_texts(TEXTS, "tfidf")
    assert embeddings.dtype == np.float32
    # No more columns than there are texts.
    assert embeddings.shape == (7, 5)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), [1, 1, 1, 1, 0, 1, 0], atol=1e-5)
    similar = cosines(embeddings)
    assert similar[0, 1] > 0.2 > similar[0, 2]
    assert similar[2, 3] > 0.05 > similar[2, 0]


def test_tfidf_columns_and_seed():
    generator = np.random.default_rng(6)
    vocabulary = np.array([f"word{i}" for i in range(200)])
    texts = [" ".join(generator.choice(vocabulary, 6)) for _ in range(300)]
    first = encode_texts(texts, "tfidf", dim=16, seed=1)
    assert first.shape == (300, 16)
    assert np.array_equal(first, encode_texts(texts, "tfidf", dim=16, seed=1))
    assert not np.array_equal(first, encode_texts(texts, "tfidf", dim=16, seed=2))


def test_tfidf_of_a_single_word():
    np.testing.assert_allclose(np.abs(encode_texts(["pan", "pan", ""], "tfidf")[:, 0]), [1, 1, 0])


def test_auto_without_the_library_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    said = []
    embeddings = encode_texts(TEXTS, log=said.append)
    assert np.array_equal(embeddings, encode_texts(TEXTS, "tfidf"))
    assert len(said) == 1
    assert "TF-IDF" in said[0]
    assert "sentence-transformers cannot be imported" in said[0]


def test_by_name_without_the_library_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match="sentence-transformers cannot be imported"):
        encode_texts(TEXTS, "sentence-transformers")
    # A model that was named is not replaced.
    with pytest.raises(ImportError, match="sentence-transformers cannot be imported"):
        encode_texts(TEXTS, "auto", model="some/model")


@pytest.fixture
def sentence_transformers(monkeypatch):
    """A stand-in library that knows the model 'local/model' alone."""

    class SentenceTransformer:
        def __init__(self, name):
            if name != "local/model":
                raise OSError(f"no connection to fetch {name}")

        def encode(self, texts, convert_to_numpy):
            assert convert_to_numpy
            return np.array([[3 * len(text), 4 * len(text)] for text in texts], dtype=np.float32)

    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = SentenceTransformer
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)


@pytest.mark.usefixtures("sentence_transformers")
@pytest.mark.parametrize("encoder", ["auto", "sentence-transformers"])
def test_sentence_encoder(encoder):
    said = []
    embeddings = encode_texts(TEXTS, encoder, model="local/model", log=said.append)
    unit, zero = [0.6, 0.8], [0, 0]
    np.testing.assert_allclose(embeddings, [unit, unit, unit, unit, zero, unit, zero], atol=1e-6)
    assert embeddings.dtype == np.float32
    assert len(said) == 1
    assert "sentence-transformers (local/model)" in said[0]


@pytest.mark.usefixtures("sentence_transformers")
def test_model_that_cannot_be_loaded():
    said = []
    assert np.array_equal(encode_texts(TEXTS, log=said.append), encode_texts(TEXTS, "tfidf"))
    assert "no connection to fetch" in said[0]
    for encoder, model in (("sentence-transformers", None), ("auto", "elsewhere/model")):
        with pytest.raises(ValueError, match=r"model: got .*no connection to fetch"):
            encode_texts(TEXTS, encoder, model=model)


def test_bad_arguments():
    with pytest.raises(ValueError, match="encoder: got 'bert'"):
        encode_texts(TEXTS, "bert")
    with pytest.raises(ValueError, match="dim: got 0"):
        encode_texts(TEXTS, "tfidf", dim=0)
    with pytest.raises(ValueError, match="model: got"):
        encode_texts(TEXTS, "tfidf", model="local/model")
    for texts in ([], ["", " "]):
        with pytest.raises(ValueError, match="all of them empty"):
            encode_texts(texts, "tfidf")
    with pytest.raises(ValueError, match="without a single word"):
        encode_texts(["?!", "..."], "tfidf")
