"""Text files: every line is a row or accounted for, in every dialect, encoding and compression."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alphafuse_ext.data import Layout, _text, read_embeddings, read_interactions, read_items
from alphafuse_ext.data._text import first_beyond_depth


def titles(path, **options):
    """{item: title} of a catalog."""
    items = read_items(path, **options)
    return dict(zip(items.tokens.tolist(), items.titles, strict=True))


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


# Quotation marks ------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".tsv", ".item"])
def test_a_lone_quotation_mark_joins_no_lines_where_values_are_not_quoted(tmp_path, suffix):
    layout = Layout(quotes=False) if suffix == ".tsv" else None
    names = ['"Heroes" and more', '"Lone', "plain", 'five" nail', '"', '"both"', 'end"']
    names = [names[k % len(names)] for k in range(12)]
    lines = "".join(f"{k}\t{name}\n" for k, name in enumerate(names))
    path = write(tmp_path / f"items{suffix}", "item_id\ttitle\n" + lines)
    assert titles(path, layout=layout) == dict(enumerate(names))
    if suffix == ".tsv":
        with pytest.raises(ValueError, match=r"items: got .*line 2 opens.*--no-quotes"):
            read_items(path)


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_proper_quotes_are_read(tmp_path, suffix, quoting, line_end):
    names = ['The "red" hat', "a, b\tc", "two\nlines", "a\n\n\nparagraph", 'five" nail', '"', "x"]
    delimiter = "," if suffix == ".csv" else "\t"
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=line_end)
    writer.writerows([("item_id", "title"), *enumerate(names)])
    said = []
    path = write(tmp_path / f"items{suffix}", text.getvalue())
    assert titles(path, log=said.append) == dict(enumerate(names))
    assert f"items: 2 lines of {path} belong to quoted values" in said


def test_marks_inside_an_unquoted_value_are_part_of_it(tmp_path):
    path = write(tmp_path / "items.csv", 'item_id,title\n1,five" nail\n2,3" to 5"\n3,"a ""b"""\n')
    assert titles(path) == {1: 'five" nail', 2: '3" to 5"', 3: 'a "b"'}


def large_csv(rows):
    """About 5 MB; every tenth title is quoted."""
    lines = (
        f'{k},"A title, quoted",{k % 7}.5'
        if k % 10 == 0
        else f"{k},A title that is plain,{k % 7}.5"
        for k in range(rows)
    )
    return "item_id,title,price\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize("line", [2, 87_654, 150_001])
def test_an_unclosed_mark_in_a_large_csv_is_named(tmp_path, line):
    lines = large_csv(150_000).split("\n")
    lines[line - 1] = f'{line - 2},"A lone mark,1.5'
    path = write(tmp_path / "items.csv", "\n".join(lines))
    with pytest.raises(ValueError, match=rf"items: got .*where line {line} opens.*--no-quotes"):
        read_items(path)


def test_two_lone_quotation_marks_around_rows_are_named(tmp_path):
    lines = [line.replace('"', "") for line in large_csv(2_000).split("\n")]
    lines = [line.replace("A title, quoted", "A title") for line in lines]
    lines[99] = '98,"A lone mark,1.5'
    lines[299] = '298,A lone mark",1.5'
    path = write(tmp_path / "items.csv", "\n".join(lines))
    with pytest.raises(ValueError, match="the quoted value that line 100 opens holds whole rows"):
        read_items(path)
    said = titles(path, layout=Layout(quotes=False))
    assert (len(said), said[98], said[298]) == (2_000, '"A lone mark', 'A lone mark"')
    assert len(titles(path, layout=Layout(quotes=True))) == 2_000 - 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('1,"a\n2,b\n', "line 2 opens a value with a quotation mark that nothing closes"),
        ('1,a\n2,"b"c\n', "line 3 opens .* the next one, in line 3, cannot close"),
        ('1,"a\n2,b\n3,"c, d"\n', "line 2 opens .* the next one, in line 4, cannot close"),
        ('1,"say \\"hi\\""\n', "line 2 opens .* the next one, in line 2, cannot close"),
        ('1,"a\n\nb"\n2,"c\n', "line 5 opens a value"),
    ],
)
def test_marks_that_do_not_pair_up(tmp_path, text, message):
    for source in (tmp_path / "items.csv", tmp_path / "items.tsv"):
        delimiter = "," if source.suffix == ".csv" else "\t"
        write(source, ("item_id,title\n" + text).replace(",", delimiter))
        with pytest.raises(ValueError, match=f"items: got .*{message}"):
            read_items(source, layout=Layout(quotes=True))
    with pytest.raises(ValueError, match=f"items: got .*{message}"):
        read_items(tmp_path / "items.csv")


cells = st.text(alphabet='ab ",\n', max_size=6)


@settings(max_examples=300, deadline=None)
@given(rows=st.lists(st.tuples(cells, cells), min_size=1, max_size=9), quote_all=st.booleans())
def test_what_python_writes_is_read(tmp_path_factory, rows, quote_all):
    text = io.StringIO()
    quoting = csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL
    writer = csv.writer(text, quoting=quoting, lineterminator="\n")
    writer.writerow(("item_id", "title", "brand"))
    writer.writerows((f"i{k}", *row) for k, row in enumerate(rows))
    path = write(tmp_path_factory.getbasetemp() / "written.csv", text.getvalue())
    items = read_items(path, text_columns=["title", "brand"], layout=Layout(quotes=True))
    assert items.titles == [title.strip() for title, _ in rows]
    assert len(items) == len(rows)


@settings(max_examples=500, deadline=None)
@given(body=st.text(alphabet='ab",\n', max_size=40))
def test_any_text_is_read_as_python_reads_it_or_refused(tmp_path_factory, body):
    path = write(tmp_path_factory.getbasetemp() / "any.csv", "user,item,x\nu,i,1\n" + body)
    try:
        with path.open(newline="") as file:
            rows = [row for row in csv.reader(file, strict=True) if row]
        expected = [row[:2] for row in rows[1:]] if {len(row) for row in rows} == {3} else None
    except csv.Error:
        expected = None
    try:
        read = read_interactions(path)
    except ValueError as error:
        if "holds whole rows" not in str(error):
            assert expected is None or any("" in map(str.strip, row) for row in expected)
        return
    assert expected is not None
    pairs = [
        [user, read.items[item]]
        for user, sequence in zip(read.users, read.sequences, strict=True)
        for item in sequence
    ]
    assert sorted(pairs) == sorted([part.strip() for part in row] for row in expected)


# Lines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "text", "line", "count"),
    [
        (".csv", "user,item\na,p\n\nb,q,7\n", 4, 3),
        (".csv", "user,item\na,p\n   \n", 3, 1),
        (".csv", 'user,item,note\na,p,"x,\n\ny"\nb,q\n', 5, 2),
        (".csv", "user,item\n" + "a,p\n" * 300_000 + "b\n", 300_002, 1),
        (".tsv", 'user\titem\tnote\na\tp\t"x\n\ny"\nb\tq\n', 5, 2),
        (".inter", 'user:token\titem:token\n"a\tp\nb"\tq\tr\n', 3, 3),
    ],
)
def test_the_line_that_does_not_fit_is_named(tmp_path, suffix, text, line, count):
    path = write(tmp_path / f"data{suffix}", text)
    with pytest.raises(ValueError, match=f"interactions: got .*line {line} splits into {count};"):
        read_interactions(path)


def test_rows_are_counted_against_lines(tmp_path):
    """A carriage return within a line ends a row to the library that reads, and no line."""
    path = write(tmp_path / "data.csv", "user,item\na,p\rb,q\nc,r\n")
    with pytest.raises(ValueError, match=r"interactions: got .*of whose 2 rows 3 were read"):
        read_interactions(path)


def test_other_line_ends_and_blank_lines(tmp_path):
    text = "\n\r\n\nuser,item\n\na,p\n\n\na,q\n\n"
    interactions = read_interactions(write(tmp_path / "data.csv", text))
    assert interactions.items.tolist() == ["p", "q"]


def test_columns_without_a_name(tmp_path):
    path = write(tmp_path / "data.csv", ",user,item,,\n0,a,p,,\n1,a,q,,\n")
    assert read_interactions(path).items.tolist() == ["p", "q"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".item", ".jsonl"])
def test_a_text_of_ten_megabytes(tmp_path, suffix):
    long = "long " * 2_000_000
    frame = pd.DataFrame({"item_id": [1, 2, 3], "title": ["a", long, "c"]})
    path = tmp_path / f"items{suffix}"
    if suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, sep="," if suffix == ".csv" else "\t", index=False)
    assert titles(path) == {1: "a", 2: long.strip(), 3: "c"}
    write(path, path.read_text() + ('{"item_id": 4, "title": 5}' if suffix == ".jsonl" else "4"))
    with pytest.raises(ValueError, match=r"items: got .*(line 5|unreadable)"):
        read_items(path)


# Layouts --------------------------------------------------------------------------------------


def test_a_delimiter_and_a_header(tmp_path):
    path = write(tmp_path / "ratings.dat", '1|"Heat|5|978300760\n1|Fargo"|3|978300750\n2|"|1|2\n')
    layout = Layout(delimiter="|", header=["user", "item", "rating", "time"], quotes=False)
    interactions = read_interactions(path, layout=layout)
    assert interactions.users.tolist() == [1, 2]
    assert interactions.items[interactions.sequences[0]].tolist() == ['Fargo"', '"Heat']
    assert interactions.timestamps.tolist() == [978300750, 978300760, 2]
    write(path, path.read_text() + "3|a|b|4|5\n")
    with pytest.raises(ValueError, match=r"line 4 splits into 5; expected 4"):
        read_interactions(path, layout=layout)


@pytest.mark.parametrize("delimiter", [";", "|", " ", "\t", "\x01"])
def test_delimiters(tmp_path, delimiter):
    text = "user_id,item_id\na,p\na,q\n".replace(",", delimiter)
    path = write(tmp_path / "data.csv", text)
    interactions = read_interactions(path, layout=Layout(delimiter=delimiter))
    assert interactions.items.tolist() == ["p", "q"]


def test_headers_that_do_not_fit(tmp_path):
    path = write(tmp_path / "data.csv", "User_ID,item\na,p\n")
    for header, message in (
        (["user", "item", "time"], "header: got 3 names for the 2 values"),
        (["user_id", "thing"], "begins with.*expected None for a file that begins with its header"),
        (["user", "user"], "header: got .*distinct column names"),
        ("user,item", "header: got .*a list of distinct column names"),
    ):
        with pytest.raises(ValueError, match=message):
            read_interactions(path, layout=Layout(header=header))


def test_a_missing_header_and_a_wrong_delimiter_are_guessed_at(tmp_path):
    path = write(tmp_path / "data.csv", "1,1193,5\n1,661,3\n")
    with pytest.raises(ValueError, match=r"user_column: got None.*or a header for a file"):
        read_interactions(path)
    write(path, "user_id;item_id\na;p\n")
    with pytest.raises(ValueError, match=r"user_column: got None.*or another delimiter"):
        read_interactions(path)


def test_bad_layouts(tmp_path):
    for options, message in (
        ({"delimiter": ""}, "delimiter: got ''"),
        ({"delimiter": "\n"}, "delimiter: got"),
        ({"delimiter": '"'}, "delimiter: got"),
        ({"delimiter": "::"}, "delimiter: got '::'; expected one ASCII character"),
        ({"delimiter": "\u00a7"}, "delimiter: got"),
    ):
        with pytest.raises(ValueError, match=message):
            Layout(**options)
    frame = pd.DataFrame({"user_id": ["a"], "item_id": ["p"]})
    frame.to_parquet(tmp_path / "data.parquet")
    frame.to_json(tmp_path / "data.jsonl", orient="records", lines=True)
    for source in (frame, tmp_path / "data.parquet", tmp_path / "data.jsonl"):
        with pytest.raises(ValueError, match=r"layout: got .*expected None, or a delimited text"):
            read_interactions(source, layout=Layout(delimiter=";"))


# Encodings ------------------------------------------------------------------------------------

TEXT = "item_id,title\n1,Caf\u00e9 \u201equoted\u201c\n2,\u017duli\n"
EXPECTED = {1: "Caf\u00e9 \u201equoted\u201c", 2: "\u017duli"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1250"])
def test_encodings(tmp_path, encoding):
    path = write(tmp_path / "items.csv", TEXT, encoding)
    assert titles(path, layout=Layout(encoding=encoding)) == EXPECTED
    if encoding == "utf-8-sig":
        assert titles(path, layout=Layout(encoding="utf-8")) == EXPECTED
    if encoding == "cp1250":
        with pytest.raises(ValueError, match=r"is not utf-8 in line 2; .*such as latin-1"):
            read_items(path)
    elif encoding.startswith("utf-8"):
        assert titles(path) == EXPECTED


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le", "utf-16-be"])
def test_utf_16_has_to_be_named(tmp_path, encoding):
    path = write(tmp_path / "items.csv", TEXT, encoding)
    with pytest.raises(ValueError, match=r"items: got .*zero bytes; expected UTF-8.*utf-16-le"):
        read_items(path)
    assert titles(path, layout=Layout(encoding=encoding)) == EXPECTED


def test_bytes_of_another_encoding_are_named_by_their_line(tmp_path):
    path = tmp_path / "items.csv"
    path.write_bytes(b"item_id,title\n" + b"1,plain\n" * 9 + b"2,Caf\xe9\n")
    with pytest.raises(ValueError, match=r"items: got .*is not utf-8 in line 11; .*latin-1"):
        read_items(path)
    path.write_bytes(b"item_id,Caf\xe9\n1,a\n")
    with pytest.raises(ValueError, match=r"is not utf-8 in line 1"):
        read_items(path)
    path.write_bytes(b"item_id,title\n1,\x81\n")
    with pytest.raises(ValueError, match=r"is not charmap in line 2; expected another encoding"):
        read_items(path, layout=Layout(encoding="cp1252"))
    with pytest.raises(ValueError, match="encoding: got 'latin-one'; expected an encoding that"):
        read_items(path, layout=Layout(encoding="latin-one"))


# Compression ----------------------------------------------------------------------------------


def zstandard(data):
    return pa.compress(data, codec="zstd", asbytes=True)


COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstandard, ".xz": lzma.compress}


@pytest.fixture
def clicks():
    generator = np.random.default_rng(6)
    return pd.DataFrame(
        {
            "user_id": generator.integers(0, 30, 400),
            "item_id": generator.integers(0, 80, 400) + 1000,
            "timestamp": generator.integers(0, 40, 400),
        }
    )


def as_bytes(frame, suffix):
    if suffix == ".parquet":
        file = io.BytesIO()
        frame.to_parquet(file)
        return file.getvalue()
    if suffix in (".jsonl", ".ndjson", ".json"):
        return frame.to_json(orient="records", lines=True).encode()
    return frame.to_csv(sep="," if suffix == ".csv" else "\t", index=False).encode()


@pytest.mark.parametrize(
    "suffix", [".csv", ".tsv", ".inter", ".jsonl", ".ndjson", ".json", ".parquet"]
)
@pytest.mark.parametrize("compression", ["", *COMPRESS])
def test_every_format_compressed_or_not(tmp_path, clicks, suffix, compression):
    expected = read_interactions(clicks)
    data = as_bytes(clicks, suffix)
    for name in (f"data{suffix}{compression}", f"DATA{suffix.upper()}{compression.upper()}"):
        path = tmp_path / name
        path.write_bytes(COMPRESS[compression](data) if compression else data)
        read = read_interactions(path)
        for one, other in (
            (read.users, expected.users),
            (read.items, expected.items),
            (read.sequences.values, expected.sequences.values),
            (read.timestamps, expected.timestamps),
        ):
            assert one.dtype == other.dtype
            assert np.array_equal(one, other)


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("kept", [0.5, 0.98])
def test_truncated_compressed_files(tmp_path, clicks, compression, kept):
    data = COMPRESS[compression](as_bytes(clicks, ".csv"))
    path = tmp_path / f"data.csv{compression}"
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ValueError, match=r"interactions: got .*which is unreadable"):
        read_interactions(path)
    path.write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"interactions: got .*which is unreadable"):
        read_interactions(path)
    (tmp_path / "data.csv").write_bytes(data)
    with pytest.raises(ValueError, match=f"data.csv, which begins as a {compression} file does"):
        read_interactions(tmp_path / "data.csv")
    path.write_bytes(COMPRESS[compression](b""))
    with pytest.raises(ValueError, match=r"interactions: got .*which is empty"):
        read_interactions(path)


# JSON lines -----------------------------------------------------------------------------------


def test_json_lines(tmp_path):
    lines = [
        '{"asin": "a", "title": "1999-12-31", "categories": ["Hats", "Red"], "price": 1}',
        '{"title": "2001-01-01", "asin": "b", "price": 2.5, "extra": {"x": 1}}',
        "",
        '{"asin": "c", "title": null}',
    ]
    path = write(tmp_path / "items.jsonl", "\n".join(lines) + "\n")
    items = read_items(path)
    assert items.titles == ["1999-12-31", "2001-01-01", ""]
    assert items.texts == ["1999-12-31. Hats Red", "2001-01-01", ""]
    clicks = '{"user": 7, "item": "a", "time": "2024-01-02"}\n'
    clicks += '{"user": 7, "item": "b", "time": "2024-01-01"}'
    interactions = read_interactions(write(tmp_path / "clicks.json", clicks), items)
    assert interactions.users.tolist() == [7]
    assert interactions.sequences[0].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"user": 1, "item": 2}\n{"user": "x", "item": 2}\n', "changed from number to string"),
        ('[{"user": 1, "item": 2}]\n', "expected one JSON object a line"),
        ('{"user": 1,\n"item": 2}\n', "1 objects in 2 lines; expected one JSON object a line"),
        ('{"user": 1, "item": 2}{"user": 1, "item": 2}\n', "2 objects in 1 lines"),
        ('{"user": 1, "item": 2}\n{"user": 1, "it', "which is unreadable"),
        ("{'user': 1, 'item': 2}\n", "which is unreadable"),
    ],
)
def test_what_is_not_json_lines(tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"interactions: got .*{message}"):
        read_interactions(write(tmp_path / "data.jsonl", text))


ROW = '{"user": 1, "item": 2, "more": %s}\n'


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (ROW % "1" + ROW % ("[" * 20_000 + "]" * 20_000), 2),
        (ROW % ('{"a": ' * 100 + "1" + "}" * 100), 1),
        (ROW % r'"\\"' + ROW % r'"\"]]"' + ROW % ("[" * 100 + "]" * 100), 3),
        ("]" * 300 + "\n" + ROW % ("[" * 100 + "]" * 100), 2),
        ("[\n" * 20_000, 101),
        (ROW % ("[" * 99 + "]" * 99), None),
        ("".join(ROW % text for text in ('"[[[["', r'"\"[[[["', r'"\\"', r'"\\\"[["')) * 50, None),
    ],
)
def test_json_that_nests_too_deep(tmp_path, text, line):
    """pyarrow's parser, which calls itself for each level, ended the process."""
    path = write(tmp_path / "data.jsonl", text)
    if line is None:
        assert len(read_interactions(path)) == text.count("\n")
        return
    with pytest.raises(
        ValueError, match=f"interactions: got .*whose line {line} nests more than 10"
    ):
        read_interactions(path)


@given(st.lists(st.text('[]{}"\\a', max_size=9), max_size=5), st.integers(1, 60))
def test_how_deep_json_is(strings, chunk):
    lines = [json.dumps([text, {"[": [[text]]}]) for text in strings]
    text = "\n".join(lines).encode()
    deepest = 4 if lines else 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_text, "_DEPTH_CHUNK", chunk)
        assert first_beyond_depth(text, deepest) is None
        place = first_beyond_depth(text, deepest - 1)
    if lines:
        assert text[place : place + 1] == b"["
        assert b"\n" not in text[:place]


@pytest.mark.parametrize(
    "row", [b'{"user": "a\xff", "item": 2}', b'{"user": 1, "it\xffem": 2}', b'{"user": "a\xe2"}']
)
def test_json_that_is_not_utf_8(tmp_path, row):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"user": "b", "item": 2}\n\n' + row + b"\n")
    with pytest.raises(ValueError, match=r"interactions: got .*not utf-8 in line 3; expected"):
        read_interactions(path)


def test_strings_of_a_table_that_are_not_utf_8():
    broken = pa.array([b"a", b"\xff"]).view(pa.string())
    with pytest.raises(ValueError, match=r"interactions: got the Table, which .*UTF8"):
        read_interactions(pa.table({"user": broken, "item": [1, 2]}))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", "frame"])
def test_times_are_not_looked_for_among_thousands_of_columns(tmp_path, suffix):
    columns = {"user": [1, 1], "item": [1, 2], **{f"x{k}": [0.5, 1.5] for k in range(4000)}}
    frame, path = pd.DataFrame(columns), tmp_path / f"data{suffix}"
    if suffix == ".csv":
        frame.to_csv(path, index=False)
    elif suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif suffix == ".parquet":
        frame.to_parquet(path)
    source = frame if suffix == "frame" else path
    with pytest.raises(ValueError, match="time_column: got None, and 4,000 columns that could"):
        read_interactions(source)
    assert len(read_interactions(source, time_column="")) == 2
    with pytest.raises(ValueError, match=r"user_column: got 'who'; expected .*\(4002 in all"):
        read_interactions(source, user_column="who", time_column="")


# Pipes ----------------------------------------------------------------------------------------

CLICKS = pd.DataFrame({"user": [1, 1, 2], "item": ["a", "b", "a"], "time": [3, 1, 2]})


def text_of(kind):
    if kind == "parquet":
        buffer = io.BytesIO()
        CLICKS.to_parquet(buffer)
        return buffer.getvalue()
    if kind == "jsonl":
        return CLICKS.to_json(orient="records", lines=True).encode()
    return CLICKS.to_csv(index=False).encode()


def fed(path, data):
    """The path of a new pipe that all of `data` goes into, once someone reads."""
    os.mkfifo(path)
    threading.Thread(target=path.write_bytes, args=(data,), daemon=True).start()
    return path


def read_once(source, **options):
    found = read_interactions(source, **options)
    assert found.users.tolist() == [1, 2]
    assert [sequence.tolist() for sequence in found.sequences] == [[1, 0], [0]]


@pytest.mark.parametrize("name", ["c.csv", "c.csv.gz", "c.jsonl", "c.jsonl.xz", "c.parquet"])
def test_a_named_pipe_is_read_as_its_name_says(tmp_path, name):
    data = text_of(name.split(".")[1])
    if name.endswith((".gz", ".xz")):
        data = (gzip if name.endswith(".gz") else lzma).compress(data)
    read_once(fed(tmp_path / name, data))


def test_a_pipe_without_a_name(tmp_path):
    """As the shell makes one of <(zcat clicks.gz): /dev/fd/63."""
    read_once(fed(tmp_path / "63", text_of("csv")), layout=Layout(delimiter=","))
    os.mkfifo(tmp_path / "64")  # refused before anyone writes
    with pytest.raises(ValueError, match=r"interactions: got .*64; expected .* with a delimiter"):
        read_interactions(tmp_path / "64")


@pytest.mark.slow
def test_pipes_of_the_shell(tmp_path):
    (tmp_path / "clicks.gz").write_bytes(gzip.compress(text_of("csv")))
    command = f"{sys.executable} -m alphafuse_ext describe --delimiter , --interactions"
    for source in (f"<(zcat {tmp_path}/clicks.gz)", f"/dev/stdin < <(zcat {tmp_path}/clicks.gz)"):
        done = subprocess.run(
            ["bash", "-c", f"{command} {source}"], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert "3 of 2 users with 2 items" in done.stdout + done.stderr


def test_what_comes_out_of_no_pipe(tmp_path):
    with pytest.raises(ValueError, match=r"interactions: got .*, which is empty"):
        read_interactions(fed(tmp_path / "empty.csv", b""))
    with pytest.raises(ValueError, match="interactions: got /dev/zero, which is a device"):
        read_interactions("/dev/zero", layout=Layout(delimiter=","))
    items = read_items(pd.DataFrame({"item": ["a", "b"]}))
    for name in ("rows.npy", "63"):
        os.mkfifo(tmp_path / name)  # refused before anyone writes
        with pytest.raises(ValueError, match=r"embeddings: got .*, a pipe, which cannot be mapped"):
            read_embeddings(tmp_path / name, items)
    vectors = pd.DataFrame({"item": ["b", "a"], "e0": [1.0, 2.0], "e1": [3.0, 4.0]})
    data = vectors.to_csv(index=False).encode()
    found = read_embeddings(fed(tmp_path / "vectors.csv", data), items)
    assert found.rows.tolist() == [[2.0, 4.0], [1.0, 3.0]]
