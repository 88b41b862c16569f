"""What shops export: one file with a row for each line of an order, titles included."""

import csv

import numpy as np
import pandas as pd
import pytest

import alphafuse_ext as af
from alphafuse_ext.cli import main
from alphafuse_ext.data import read_interactions, read_items


def orders(seed=0, first=1000):
    """Orders as Shopify writes them: what is of the whole order is on its first line alone."""
    generator = np.random.default_rng(seed)
    rows = []
    for order in range(first, first + 120):
        day = f"2024-{1 + order % 12:02d}-{1 + order % 28:02d} 10:{order % 60:02d}:00 -0500"
        for line, item in enumerate(generator.choice(30, 3, replace=False)):
            rows.append(
                {
                    "Name": f"#{order}",
                    "Email": f"buyer{order % 25}@example.com",
                    "Financial Status": "" if line else "paid",
                    "Billing Name": "" if line else f"Ann {order}",
                    "Created at": day,
                    "Lineitem quantity": int(generator.integers(1, 4)),
                    "Lineitem name": f"{['Red', 'Blue'][item % 2]} mug number {item}",
                    "Lineitem price": 5.0 + item,
                    "Lineitem sku": f"SKU-{item:02d}",
                    "Vendor": ["Acme", "Bolt"][item % 2],
                }
            )
    return pd.DataFrame(rows)


def with_gaps(frame, column, seed=1):
    """With some cells of a column empty, and which they are."""
    missing = np.random.default_rng(seed).random(len(frame)) < 0.1
    return frame.assign(**{column: frame[column].mask(missing, "")}), missing


@pytest.mark.parametrize(
    ("written", "user", "item"),
    [
        ("Name,Email,Created at,Lineitem name,Lineitem sku", "Email", "Lineitem sku"),
        ("Email,Created at,Lineitem name", "Email", "Lineitem name"),
        ("InvoiceNo,StockCode,Description,InvoiceDate,CustomerID", "CustomerID", "StockCode"),
        ("order_date,billing_email,item_sku,product_name", "billing_email", "item_sku"),
        ("user_id,email,item_id,sku_name,product_name,time", "user_id", "item_id"),
    ],
)
def test_columns_are_guessed(written, user, item):
    frame = pd.DataFrame({name: ["2024-01-01", "2024-01-02"] for name in written.split(",")})
    said = []
    read_interactions(frame, log=said.append)
    assert f"user column '{user}' (guessed), item column '{item}' (guessed)" in said[-1]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", "frame"])
def test_items_of_the_rows(suffix, tmp_path):
    frame = orders()
    # A title that was changed, one that is missing at first, and one with a space.
    frame.loc[frame.index[frame["Lineitem sku"] == "SKU-03"][-1], "Lineitem name"] = "Other"
    of_four = frame.index[frame["Lineitem sku"] == "SKU-04"]
    frame.loc[of_four[0], "Lineitem name"] = ""
    frame.loc[of_four[1], "Lineitem name"] += " "
    source = frame
    if suffix != "frame":
        source = tmp_path / f"orders{suffix}"
        frame.to_csv(source, index=False) if suffix == ".csv" else frame.to_parquet(source)
    said = []
    data = af.Dataset.read(source, source, log=said.append)
    first = frame.drop_duplicates("Lineitem sku")
    assert data.items.tokens.tolist() == first["Lineitem sku"].tolist()
    numbers = first["Lineitem price"].astype(int) - 5
    titles = [f"{['Red', 'Blue'][number % 2]} mug number {number}" for number in numbers]
    assert data.items.titles == data.items.texts == titles
    # What differs among an item's rows is not the item's: order, buyer, time, quantity.
    assert list(data.items.columns) == ["Financial Status", "Lineitem price", "Vendor"]
    assert data.items.columns["Lineitem price"].tolist() == first["Lineitem price"].tolist()
    assert f"items: {len(first)} on {len(frame)} rows" in said[0]
    assert len(data) == len(frame)
    # Elsewhere an item twice is a mistake.
    with pytest.raises(ValueError, match="given twice"):
        af.Dataset.read(frame, frame.copy(), log=None)


def test_columns_that_are_named_are_kept():
    frame = orders()
    named = {"text_columns": ["Billing Name", "Vendor"], "title_column": "Name"}
    items = read_items(frame, of_rows=True, **named)
    first = frame.drop_duplicates("Lineitem sku")
    assert items.titles == first["Name"].tolist()
    buyers = frame[frame["Billing Name"] != ""].drop_duplicates("Lineitem sku")
    known = dict(zip(buyers["Lineitem sku"], buyers["Billing Name"], strict=True))
    vendors = zip(first["Lineitem sku"], first["Vendor"], strict=True)
    assert items.texts == [". ".join(filter(None, (known.get(s, ""), v))) for s, v in vendors]


def test_items_of_one_row_each():
    """Nothing else tells which columns are the item's: those that are called so."""
    items = read_items(orders().drop_duplicates("Lineitem sku"), of_rows=True)
    assert items.titles[0].startswith(("Red mug", "Blue mug"))
    assert list(items.columns) == ["Name"]


def test_titles_are_texts_where_they_are_the_ids():
    frame = orders().drop(columns="Lineitem sku")
    data = af.Dataset.read(frame, frame, log=None)
    assert data.items.texts == data.items.tokens.tolist()
    assert data.items.titles is None


@pytest.mark.parametrize("column", ["Email", "Lineitem sku"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet", "frame"])
def test_rows_without_an_id(column, suffix, tmp_path):
    frame, missing = with_gaps(orders(), column)
    if suffix != ".csv":
        frame[column] = frame[column].replace("", None)
    source = frame
    if suffix != "frame":
        source = tmp_path / f"orders{suffix}"
        frame.to_csv(source, index=False) if suffix == ".csv" else frame.to_parquet(source)
    with pytest.raises(ValueError, match=r"no value in row .* or missing_ids=drop"):
        af.Dataset.read(source, source, log=None)
    said = []
    options = {"weight_column": "Lineitem quantity", "basket_column": "Name"}
    data = af.Dataset.read(source, source, missing_ids="drop", log=said.append, **options)
    of = f"dropped {missing.sum()} of {len(frame)} rows without a user or an item"
    assert f"interactions: {of}" in said
    # As if they had never been there; but an item that only guests have ordered is in the catalog.
    without = frame[~missing]
    left = af.Dataset.read(without, without, log=None, **options)
    assert set(left.items.tokens) <= set(data.items.tokens)
    read, expected = data.interactions, left.interactions
    assert read.users.tolist() == expected.users.tolist()
    for name in ("timestamps", "weights"):
        assert np.array_equal(getattr(read, name), getattr(expected, name))
    names = (one.items[one.sequences.values].tolist() for one in (read, expected))
    assert next(names) == next(names)


def test_missing_ids_that_cannot_be_dropped(tmp_path):
    frame = orders()
    for wrong, message in (
        ({"missing_ids": "keep"}, "missing_ids: got 'keep'; expected one of raise, drop"),
        ({"missing_ids": True}, "missing_ids: got True; expected one of raise, drop"),
    ):
        with pytest.raises(ValueError, match=message):
            af.Dataset.read(frame, log=None, **wrong)
    with pytest.raises(ValueError, match="360 rows, each without a user or an item; expected some"):
        af.Dataset.read(frame.assign(Email=None), missing_ids="drop", log=None)
    histories = pd.DataFrame({"user_id": ["a", "b"], "item_id_list": [["x", "y"], ["x"]]})
    with pytest.raises(ValueError, match="missing_ids: got 'drop'; expected None, or a row for"):
        af.Dataset.read(histories, missing_ids="drop", log=None)
    # Of a catalog of its own an item without an id is refused, for its row is an embedding's.
    items = pd.DataFrame({"item_id": ["x", None], "title": ["a", "b"]})
    with pytest.raises(
        ValueError, match=r"item_column: got no value in row 2 of 2; expected an id in every row$"
    ):
        af.Dataset.read(histories, items, log=None)


def test_a_shop_trains_and_goes_on(tmp_path, capsys):
    """With the file of orders as both, and every day's after it."""
    first, missing = with_gaps(orders(), "Email")
    first.to_csv(tmp_path / "orders.csv", index=False)
    command = ["train", f"--interactions={tmp_path / 'orders.csv'}", "--item-embedding=id"]
    assert main([*command, "--output", str(tmp_path / "no")]) == 2
    assert "--missing-ids" in capsys.readouterr().err
    command = [
        *command[:2],
        f"--items={tmp_path / 'orders.csv'}",
        "--missing-ids=drop",
        "--baskets",
    ]
    sizes = ["--dim=8", "--null-dim=4", "--epochs=1", "--encoder=tfidf", "--history=8"]
    assert main([*command, *sizes, f"--output={tmp_path / 'run'}"]) == 0
    run = af.Recommender.load(tmp_path / "run")
    assert run.run.source()["reading"] == {"missing_ids": "drop", "items_of_rows": True}
    assert len(run.interactions) == len(first) - missing.sum()
    assert run.recommend(k=2)["title"].str.contains("mug number").all()
    # Others' orders, of guests as well.
    histories = [f"--histories={tmp_path / 'orders.csv'}", f"--output={tmp_path / 'found.csv'}"]
    recommend = ["recommend", str(tmp_path / "run"), *histories]
    assert main([*recommend, "--missing-ids=raise"]) == 2
    assert "--missing-ids" in capsys.readouterr().err
    assert main(recommend) == 0  # as the run was read
    # The next day brings a new item.
    day = orders(seed=5, first=2000)
    new = {"Lineitem sku": "SKU-77", "Lineitem name": "Green mug number 77", "Vendor": "Acme"}
    day = pd.concat([day, day.iloc[:1].assign(**new)], ignore_index=True)
    day["Created at"] = day["Created at"].str.replace("2024", "2025")
    day, _ = with_gaps(day, "Email", seed=6)
    day.to_csv(tmp_path / "day.csv", index=False, quoting=csv.QUOTE_ALL)
    for name, made in (("next", af.extend), ("refitted", af.refit)):
        later = made(
            tmp_path / "run",
            tmp_path / "day.csv",
            tmp_path / "day.csv",
            output=tmp_path / name,
            log=None,
        )
        assert later.items.titles[-1] == "Green mug number 77"
        assert len(later.items) == len(run.items) + 1
