"""Text encoders: TF-IDF, and how a sentence encoder (here a stand-in) is chosen."""

import http.server
import socket
import sys
import threading
import types

import numpy as np
import pytest
from conftest import fresh_generator
from sklearn.feature_extraction.text import CountVectorizer

from alphafuse_ext.data import encode_texts, text
from alphafuse_ext.data.terms import terms_of
from alphafuse_ext.data.tfidf import TermWeights, Tfidf
from alphafuse_ext.files import UnreadableFileError

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
    embeddings = encode_texts(TEXTS, "tfidf").rows
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
    first = encode_texts(texts, "tfidf", dim=16, seed=1).rows
    assert first.shape == (300, 16)
    assert np.array_equal(first, encode_texts(texts, "tfidf", dim=16, seed=1).rows)
    assert not np.array_equal(first, encode_texts(texts, "tfidf", dim=16, seed=2).rows)


def test_tfidf_of_a_single_word():
    embeddings = encode_texts(["pan", "pan", ""], "tfidf").rows
    np.testing.assert_allclose(np.abs(embeddings[:, 0]), [1, 1, 0])


# Scripts without spaces -----------------------------------------------------------------------

# Two hats, two pans and a tent, each with a word of its own, as a shop would write them.
UNSPACED = {
    "Chinese": ["红色羊毛帽子", "蓝色羊毛帽", "不锈钢平底锅", "铸铁平底锅子", "双人帐篷"],
    "Japanese": [
        "赤いウールの帽子",
        "青いウール帽子",
        "鉄製フライパン",
        "銅のフライパン",
        "テント2人用",
    ],
    "Thai": ["หมวกไหมพรมสีแดง", "หมวกไหมพรมน้ำเงิน", "กระทะสแตนเลส", "กระทะเหล็กหล่อ", "เต็นท์คู่"],
    "Burmese": ["သိုးမွှေးဦးထုပ်အနီ", "သိုးမွှေးဦးထုပ်ပြာ", "သံဒယ်အိုး", "ကြေးဒယ်အိုး", "ရွက်ဖျင်တဲ"],
}


@pytest.mark.parametrize("language", UNSPACED)
def test_texts_without_spaces_are_alike_by_their_characters(language):
    said = []
    encoded = encode_texts(UNSPACED[language], "tfidf", log=said.append)
    similar = cosines(encoded.rows)
    across = [similar[one, other] for one in (0, 1) for other in (2, 3, 4)]
    assert min(similar[0, 1], similar[2, 3]) > max(0.15, 2 * max(across))
    assert "1 to 3 characters in 5 texts of scripts without spaces" in said[0]
    assert "1 to 3 characters" in encoded.source["terms"]


def test_a_catalog_of_spaced_and_unspaced_texts():
    said = []
    texts = [
        *TEXTS,
        "Sony 無線ヘッドホン WH-1000",
        "ソニー ヘッドホン",
        "Sony headphones",
        "wool 帽子",
    ]
    similar = cosines(encode_texts(texts, "tfidf", log=said.append).rows)
    assert similar[0, 1] > 0.2 > abs(similar[0, 2])
    sony, japanese, english, wool = range(7, 11)
    assert similar[sony, japanese] > 0.2  # by the characters
    assert similar[sony, english] > 0.1  # by the word
    assert similar[wool, 0] > 0.05 > abs(similar[wool, 2])
    assert "words and word pairs, and 1 to 3 characters in 3 texts" in said[0]


def test_terms():
    assert terms_of("A red-HAT 2") == ["a", "red", "a red", "hat", "red hat", "2", "hat 2"]
    # No pair across what is no word.
    assert terms_of("red 帽子 hat") == ["red", "帽", "子", "帽子", "hat"]
    assert terms_of("\uff21\uff22\uff23 ﾋﾟﾝ") == ["abc", "ピ", "ン", "ピン"]
    assert terms_of("cafe\u0301") == terms_of("CAFÉ") == ["café"]
    # Marks belong to their letters, in words and in characters.
    assert terms_of("हिन्दी में") == ["हिन्दी", "में", "हिन्दी में"]
    assert terms_of("ที่นี่") == ["ที่", "นี่", "ที่นี่"]
    assert terms_of("?! ❤️ 🔥") == []


def test_words_are_scikit_learn_s():
    generator = fresh_generator()
    words = np.array(["a", "red", "Hat", "x2", "pan", "7", "wool_hat", "Größe", "шапка", "모자"])
    texts = [", ".join(generator.choice(words, generator.integers(1, 9))) for _ in range(50)]
    words = CountVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b").fit(texts)
    assert set(words.get_feature_names_out()) == {term for text in texts for term in terms_of(text)}
    counts = words.transform(texts).sum(axis=1)
    assert [len(terms_of(text)) for text in texts] == np.asarray(counts).ravel().tolist()


def test_texts_without_terms_are_counted():
    said = []
    encode_texts(["red hat", "blue hat", "pan", ""], "tfidf", log=said.append)
    assert "3 of 4 encoded" in said[0]
    assert "1 share no term with another" in said[0]
    assert "without spaces" not in said[0]


# Which encoder --------------------------------------------------------------------------------


def test_auto_without_the_library_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    said = []
    embeddings = encode_texts(TEXTS, log=said.append)
    assert np.array_equal(embeddings.rows, encode_texts(TEXTS, "tfidf").rows)
    assert embeddings.source["encoder"] == "tfidf"
    assert set(embeddings.source["versions"]) == {"scikit-learn"}
    assert len(said) == 1
    assert "TF-IDF" in said[0]
    assert "sentence-transformers cannot be imported" in said[0]


def test_by_name_without_the_library_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match="sentence-transformers cannot be imported"):
        encode_texts(TEXTS, "sentence-transformers")
    # A model that was named is not replaced.
    with pytest.raises(ImportError, match="sentence-transformers cannot be imported"):
        encode_texts(TEXTS, "auto", encoder_model="some/model")


@pytest.fixture
def sentence_transformers(monkeypatch):
    """A stand-in library that has the model 'local/model' on disk, and can fetch 'far/model'."""
    asked = []

    class SentenceTransformer:
        def __init__(self, name, local_files_only=False):
            asked.append((name, local_files_only))
            if name != "local/model" and (name != "far/model" or local_files_only):
                raise OSError(f"no connection to fetch {name}")

        def encode(self, texts, convert_to_numpy):
            assert convert_to_numpy
            return np.array([[3 * len(text), 4 * len(text)] for text in texts], dtype=np.float32)

    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = SentenceTransformer
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    return asked


@pytest.mark.usefixtures("sentence_transformers")
@pytest.mark.parametrize("encoder", ["auto", "sentence-transformers"])
def test_sentence_encoder(encoder):
    said = []
    encoded = encode_texts(TEXTS, encoder, encoder_model="local/model", log=said.append)
    embeddings = encoded.rows
    unit, zero = [0.6, 0.8], [0, 0]
    np.testing.assert_allclose(embeddings, [unit, unit, unit, unit, zero, unit, zero], atol=1e-6)
    assert embeddings.dtype == np.float32
    assert len(said) == 1
    assert "sentence-transformers (local/model), found on disk" in said[0]
    assert encoded.source["encoder"] == "sentence-transformers"
    assert encoded.source["model"] == "local/model"
    assert set(encoded.source["versions"]) == {"sentence-transformers", "transformers"}


@pytest.mark.usefixtures("sentence_transformers")
def test_model_that_cannot_be_loaded(monkeypatch):
    monkeypatch.setattr(text, "_answers", lambda url: True)
    said = []
    encoded = encode_texts(TEXTS, log=said.append)
    assert np.array_equal(encoded.rows, encode_texts(TEXTS, "tfidf").rows)
    assert encoded.source["encoder"] == "tfidf"
    assert "no connection to fetch" in said[0]
    for encoder, model in (("sentence-transformers", None), ("auto", "elsewhere/model")):
        with pytest.raises(ValueError, match=r"encoder_model: got .*no connection to fetch"):
            encode_texts(TEXTS, encoder, encoder_model=model)


def test_a_model_is_looked_up_on_disk_first(sentence_transformers, monkeypatch):
    """The network is asked once, whether it answers, and not at all for what is on disk."""
    hubs = []
    monkeypatch.setattr(text, "_answers", lambda url: hubs.append(url) or answers)
    encode_texts(TEXTS, encoder_model="local/model")
    assert sentence_transformers == [("local/model", True)]
    assert hubs == []
    answers, said = False, []
    sentence_transformers.clear()
    encode_texts(TEXTS, log=said.append)
    assert sentence_transformers == [("sentence-transformers/all-MiniLM-L6-v2", True)]
    assert hubs == ["https://huggingface.co"]
    assert len(said) == 1
    assert "TF-IDF of" in said[0]
    assert "not on disk; https://huggingface.co does not answer" in said[0]
    with pytest.raises(ValueError, match=r"^encoder_model: got far/model, which cannot be"):
        encode_texts(TEXTS, encoder_model="far/model")
    answers = True
    sentence_transformers.clear()
    encode_texts(TEXTS, encoder_model="far/model", log=said.append)
    assert sentence_transformers == [("far/model", True), ("far/model", False)]
    assert "sentence-transformers (far/model), fetched" in said[1]


@pytest.mark.usefixtures("sentence_transformers")
def test_a_damaged_folder_is_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "_answers", lambda url: pytest.fail("asked"))
    with pytest.raises(ValueError, match=r"encoder_model: got .*cannot be loaded"):
        encode_texts(TEXTS, encoder_model=tmp_path)


def test_whether_a_server_answers(monkeypatch):
    """An error is an answer; silence is none, nor is a closed door."""
    monkeypatch.setattr(text, "_ANSWERS_WITHIN", 0.5)
    for name in ("HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert text._answers(url)  # 501: it knows no HEAD
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert not text._answers(url)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        server.shutdown()
    assert not text._answers(url)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not text._answers(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert not text._answers("no address")


def test_bad_arguments():
    with pytest.raises(ValueError, match="encoder: got 'bert'"):
        encode_texts(TEXTS, "bert")
    with pytest.raises(ValueError, match="dim: got 0"):
        encode_texts(TEXTS, "tfidf", dim=0)
    with pytest.raises(ValueError, match="encoder_model: got"):
        encode_texts(TEXTS, "tfidf", encoder_model="local/model")
    for texts in ([], ["", " "]):
        with pytest.raises(ValueError, match="all of them empty"):
            encode_texts(texts, "tfidf")
    for texts in (["?!", "..."], ["🔥", "❤️ ", ""], ["・", "、。"]):
        with pytest.raises(ValueError, match=r"^texts: got \d texts without a single word"):
            encode_texts(texts, "tfidf")


# TF-IDF that is kept ---------------------------------------------------------------------------


def many_texts(count, words):
    generator = fresh_generator()
    vocabulary = np.array([f"word{number}" for number in range(words)])
    return [" ".join(generator.choice(vocabulary, 6)) for _ in range(count)]


@pytest.mark.parametrize(("count", "words"), [(60, 200), (1500, 12)])
def test_kept_tfidf_encodes_what_it_was_fitted_to(tmp_path, count, words):
    """Of few texts and many terms, and the other way round; from a file without pickles."""
    texts = many_texts(count, words)
    fitted = encode_texts(texts, "tfidf", dim=20)
    fitted.tfidf.save(tmp_path / "encoder")
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.safetensors"]
    kept = Tfidf.load(tmp_path / "encoder")
    assert (kept.texts is None) == (count == 1500)
    said = []
    again = encode_texts([*texts[:9], "", "unheard"], "tfidf", fitted=kept, log=said.append)
    np.testing.assert_allclose(again.rows[:9], fitted.rows[:9], atol=1e-6)
    assert not again.rows[9:].any()
    assert "encoded by the TF-IDF of the run" in said[0]
    alone = encode_texts(texts[3:4], "tfidf", fitted=kept).rows
    np.testing.assert_allclose(alone[0], again.rows[3], atol=1e-6)
    with pytest.raises(ValueError, match="fitted: got one"):
        encode_texts(texts, "auto", fitted=kept)


def test_a_damaged_file_of_tfidf(tmp_path):
    encode_texts(TEXTS, "tfidf").tfidf.save(tmp_path / "encoder")
    whole = (tmp_path / "encoder.safetensors").read_bytes()
    (tmp_path / "encoder.safetensors").write_bytes(whole[:-20])
    with pytest.raises(UnreadableFileError):
        Tfidf.load(tmp_path / "encoder")


def test_a_sentence_encoder_is_remembered_by_its_commit(monkeypatch):
    """The commit that was loaded is recorded, and loaded again where it is asked for."""
    loaded = []

    class SentenceTransformer:
        def __init__(self, name, revision=None, local_files_only=False):
            assert local_files_only
            loaded.append((name, revision))
            config = types.SimpleNamespace(_commit_hash="c0ffee")
            self.first = types.SimpleNamespace(auto_model=types.SimpleNamespace(config=config))

        def __getitem__(self, place):
            return [self.first][place]

        def encode(self, texts, convert_to_numpy):
            return np.ones((len(texts), 3), dtype=np.float32)

    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = SentenceTransformer
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    source = encode_texts(TEXTS, encoder_model="some/model").source
    assert source["revision"] == "c0ffee"
    encode_texts(TEXTS, source["encoder"], source["model"], encoder_revision=source["revision"])
    assert loaded == [("some/model", None), ("some/model", "c0ffee")]


def test_term_weights(tmp_path):
    """Of terms that two texts have, for any texts, also after a file."""
    texts = ["red hat", "blue hat", "red shoe", "", "hat"]
    weights, rows = TermWeights.from_texts(texts)
    assert weights.terms == ["hat", "red"]
    dense = rows.toarray()
    assert dense.dtype == np.float32
    assert np.allclose(np.linalg.norm(dense, axis=1), [1, 1, 1, 0, 1])
    assert dense[1].tolist() == dense[4].tolist() == [1, 0]
    idf = np.log(6 / np.array([4, 3])) + 1
    assert np.allclose(dense[0], idf / np.linalg.norm(idf))
    assert np.array_equal(weights.rows([*texts, "red cup"]).toarray()[:5], dense)
    weights.save(tmp_path / "terms")
    loaded = TermWeights.load(tmp_path / "terms")
    assert np.array_equal(loaded.rows(texts).toarray(), dense)
    assert "red hat" in TermWeights.from_texts(texts, min_texts=1)[0].terms
    with pytest.raises(ValueError, match="texts: got 2 texts without a single word that 2 of them"):
        TermWeights.from_texts(["one", "two"])
    with pytest.raises(UnreadableFileError):
        Tfidf.load(tmp_path / "terms")
