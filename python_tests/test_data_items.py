"""Reading the catalog and its embeddings."""

import numpy as np
import pandas as pd
import pytest

from alphafuse_ext.data import Items, read_items


@pytest.fixture
def frame():
    return pd.DataFrame(
        {
            "item_id": [30, 10, 20, 40],
            "description": ["Warm.", "", "Heavy", ""],
            "title": ['The "red" hat', "Blue hat", "", ""],
            "price": [1.5, 2.5, 3.5, 4.5],
        }
    )


def write(frame, path):
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".item":
        lines = ["item_id:token\tdescription:token_seq\ttitle:token_seq\tprice:float"]
        lines += ["\t".join(map(str, row)) for row in frame.itertuples(index=False)]
        path.write_text("\n".join(lines) + "\n")
    else:
        frame.to_csv(path, sep="," if path.suffix == ".csv" else "\t", index=False)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".item", ".parquet", "frame"])
def test_every_format_gives_the_same(frame, tmp_path, suffix):
    said = []
    source = frame if suffix == "frame" else write(frame, tmp_path / f"items{suffix}")
    items = read_items(source, log=said.append)
    assert items.tokens.tolist() == [30, 10, 20, 40]
    assert items.texts == ['The "red" hat. Warm.', "Blue hat", "Heavy", ""]
    assert items.titles == ['The "red" hat', "Blue hat", "", ""]
    assert len(items) == 4
    assert "item column 'item_id' (guessed)" in said[0]
    assert "text columns 'title', 'description' (guessed)" in said[0]


def test_text_columns_given(frame):
    items = read_items(frame, text_columns=["description", "price"])
    assert items.texts == ["Warm.. 1.5", "2.5", "Heavy. 3.5", "4.5"]
    assert items.titles is None
    assert read_items(frame, text_columns="title").texts == ['The "red" hat', "Blue hat", "", ""]
    assert read_items(frame, text_columns=[]).texts is None


def test_no_text_columns(frame):
    items = read_items(frame[["item_id", "price"]])
    assert items.texts is None
    assert items.titles is None


@pytest.mark.parametrize("suffix", [".csv", ".item", "frame"])
def test_codes_are_no_text(tmp_path, suffix):
    frame = pd.DataFrame({"item_id": ["a", "b"], "category": [3, 17], "name": ["hat", "7"]})
    source = frame
    if suffix != "frame":
        source = tmp_path / f"items{suffix}"
        frame.to_csv(source, sep="," if suffix == ".csv" else "\t", index=False)
    assert read_items(source).texts == ["hat", "7"]


def test_lists_and_missing_texts(tmp_path):
    frame = pd.DataFrame(
        {
            "asin": ["a", "b", "c"],
            "title": ["hat", None, "pan"],
            "categories": [["Clothing", "Hats"], [], None],
        }
    )
    path = tmp_path / "items.parquet"
    frame.to_parquet(path)
    for source in (frame, path):
        items = read_items(source)
        assert items.texts == ["hat. Clothing Hats", "", "pan"]
        assert items.titles == ["hat", "", "pan"]


def test_words_for_missing_are_texts_but_no_tokens(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text("item_id,title\na,None\nb,NA\n")
    assert read_items(path).titles == ["None", "NA"]
    path.write_text("item_id,title\na,hat\nNaN,pan\n")
    with pytest.raises(ValueError, match="item_column: got no value in row 2 of 2"):
        read_items(path)


def test_bad_catalogs(frame, tmp_path):
    with pytest.raises(ValueError, match="tokens: got given twice: '30'; expected every item once"):
        read_items(pd.concat([frame, frame[:1]]))
    with pytest.raises(ValueError, match=r"which has no rows; expected at least one item"):
        read_items(frame[:0])
    with pytest.raises(
        ValueError, match="text_columns: got 'summary'; expected one of the columns"
    ):
        read_items(frame, text_columns=["summary"])
    with pytest.raises(ValueError, match="distinct columns other than 'item_id'"):
        read_items(frame, text_columns=["title", "title"])
    with pytest.raises(ValueError, match="item_column: got None, and no column"):
        read_items(frame.drop(columns="item_id"))
    path = write(frame, tmp_path / "items.item")
    path.write_text(path.read_text() + "50")
    with pytest.raises(
        ValueError, match=r"items: got .*line 6 splits into 1; expected 4 values in every line"
    ):
        read_items(path)
    with pytest.raises(ValueError, match="texts: got 1 strings; expected one for each of 2 items"):
        Items(np.array(["a", "b"], dtype=object), ["x"], ["", ""])
