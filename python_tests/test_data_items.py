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
    assert items.titles == ['The "red" hat', "Blue hat", "", ""]  # shown, and not encoded
    assert read_items(frame, text_columns="title").texts == ['The "red" hat', "Blue hat", "", ""]
    assert read_items(frame, text_columns=[]).texts is None


def test_titles(frame):
    """Of the column that is named; else of one with such a name, else of the first text."""
    said = []
    assert read_items(frame, title_column="description", log=said.append).titles[0] == "Warm."
    assert "title column 'description', to filter by" in said[0]
    assert read_items(frame, title_column="price").titles == ["1.5", "2.5", "3.5", "4.5"]
    without = frame.rename(columns={"title": "brand"})
    items = read_items(without, log=said.append)
    assert items.titles == ['The "red" hat', "Blue hat", "", ""]
    assert "title column 'brand' (guessed)" in said[1]
    assert read_items(without, text_columns="description").titles == ["Warm.", "", "Heavy", ""]
    for wrong, message in (("name", "one of the columns"), ("item_id", "another column than")):
        with pytest.raises(ValueError, match=f"^title_column: got '{wrong}'; expected {message}"):
            read_items(frame, title_column=wrong)


@pytest.mark.parametrize("suffix", [".csv", "frame"])
def test_names_that_begin_as_texts_do(tmp_path, suffix):
    frame = pd.DataFrame(
        {
            "item_id": ["a", "b"],
            "category_2": ["Hats", "Pans"],
            "category_id": ["c7", "c8"],
            "name_de": ["Hut", "Pfanne"],
            "titleOriginal": ["hat", "pan"],
            "name_length": [3, 6],
            "renamed": ["x", "y"],
        }
    )
    source = frame
    if suffix != "frame":
        source = tmp_path / "items.csv"
        frame.to_csv(source, index=False)
    items = read_items(source)
    assert items.texts == ["hat. Hut. Hats", "pan. Pfanne. Pans"]
    assert items.titles == ["hat", "pan"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".item", ".parquet", "frame"])
def test_columns_are_kept_to_filter_by(frame, tmp_path, suffix):
    """Numbers, and strings but long ones; not ids and titles. Missing ones are missing."""
    frame = frame.assign(
        brand=["x", "", "NA" if suffix in (".csv", ".tsv", ".item") else None, "y"],
        stock=[1, 0, 3, 3],
        blurb=["long " * 50, "", "", ""],
        **{"code": ["07", "8", "9", "x"]},
    )
    if suffix == ".item":
        frame = frame.rename(columns={"brand": "brand:token", "stock": "stock:float"})
        path = tmp_path / "items.item"
        named = {"item_id": "item_id:token", "title": "title:token_seq", "price": "price:float"}
        named |= {"description": "description:token_seq", "blurb": "blurb:token_seq"}
        frame.rename(columns={**named, "code": "code:token"}).to_csv(path, sep="\t", index=False)
        source = path
    else:
        source = frame if suffix == "frame" else write(frame, tmp_path / f"items{suffix}")
    columns = read_items(source).columns
    texts = [] if suffix == ".item" else ["description"]  # there it is one of words in a list
    assert sorted(columns) == ["brand", "code", *texts, "price", "stock"]
    assert columns["price"].tolist() == [1.5, 2.5, 3.5, 4.5]
    assert columns["stock"].tolist() == [1, 0, 3, 3]
    assert columns["brand"].isna().tolist() == [False, True, True, False]
    assert columns["code"].tolist() == ["07", "8", "9", "x"]
    if texts:
        assert read_items(source, text_columns=[]).columns["description"].tolist()[0] == "Warm."


def test_columns_of_a_larger_catalog(frame):
    """They go with their items; new ones have what they bring, in the types that are there."""
    items = read_items(frame.assign(brand=["x", "y", "x", None]))
    some = items.select(np.array([2, 0]))
    assert some.columns["brand"].tolist() == ["x", "x"]
    new = pd.DataFrame({"item_id": [50, 60], "title": ["a", "b"], "price": ["7", ""]})
    both = items.extended(read_items(new))
    assert both.columns["price"].tolist()[:5] == [1.5, 2.5, 3.5, 4.5, 7]
    assert both.columns["price"].isna().tolist() == [False] * 5 + [True]
    assert both.columns["brand"].isna().tolist() == [False, False, False, True, True, True]
    with pytest.raises(TypeError, match="items: got 'dear' in column 'price'; expected numbers"):
        items.extended(read_items(new.assign(price=["7", "dear"])))


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
