"""The file formats of import and export; every bad line is reported by its number."""

from __future__ import annotations

import datetime as dt
import gzip
import io
import os
import sys
import uuid
from decimal import Decimal
from typing import Any

import msgpack
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dstash.cli.formats import BadRow, Columns, Format, Row, format_of, read_rows, rows, writer
from dstash.cli.formats.delimited import parse_delimiter
from dstash.errors import UsageError

NO_COLUMNS = Columns()


def read(form: Format, data: bytes, columns: Columns = NO_COLUMNS) -> list[Row | BadRow]:
    return list(read_rows(form, io.BytesIO(data), columns))


def good(found: list[Row | BadRow]) -> list[tuple[Any, Any]]:
    return [(row.key, row.value) for row in found if isinstance(row, Row)]


def bad(found: list[Row | BadRow]) -> dict[int, str]:
    return {row.line: row.text for row in found if isinstance(row, BadRow)}


def test_format_follows_the_suffix() -> None:
    assert format_of("a.JSONL", None) is Format.JSONL
    assert format_of("dir.csv/a.ndjson", None) is Format.JSONL
    assert format_of("a.csv", None) is Format.CSV
    assert format_of("-", None) is Format.JSONL
    assert format_of("a.csv", Format.MSGPACK) is Format.MSGPACK
    assert format_of("a.TSV", None) is Format.TSV
    assert format_of("a.csv.gz", None) is Format.CSV
    assert format_of("a.jsonl.ZST", None) is Format.JSONL
    for name in ("a.txt", "a.gz", "a.txt.gz"):
        with pytest.raises(UsageError, match="or give --format"):
            format_of(name, None)
    with pytest.raises(UsageError, match=r"compressed inside; name it without \.gz"):
        format_of("a.parquet.gz", None)


def test_read_jsonl_yields_records() -> None:
    text = '\ufeff{"key": "ä", "value": {"x": 1}, "ttl": 5}\n\n{"key": -7, "value": null}'
    first, second = read(Format.JSONL, text.encode())
    assert isinstance(first, Row)
    assert first[:4] == (1, "ä", {"x": 1}, 5)
    assert isinstance(second, Row)
    assert second[:4] == (3, -7, None, None)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"key": "a"', "not JSON"),
        (b"[1]", "list instead of an object with key and value"),
        (b'"text"', "str instead of an object"),
        (b'{"key": "a"}', "field 'value' is missing"),
        (b'{"value": 1}', "field 'key' is missing"),
        (b'{"key": "a", "value": 1, "tll": 5}', "unknown field 'tll'"),
        (b'{"key": "", "value": 1}', "key is empty"),
        (b'{"key": 1.5, "value": 1}', "key"),
        (b'{"key": true, "value": 1}', "key"),
        (b'{"key": null, "value": 1}', "key"),
        (b'{"key": ["a"], "value": 1}', "key"),
        (b'{"key": "' + b"k" * 401 + b'", "value": 1}', "401 bytes"),
        (b'{"key": "a", "value": 1, "ttl": -1}', "ttl is -1"),
        (b'{"key": "a", "value": 1, "ttl": "5"}', "ttl must be a number"),
        (b'{"key": "a", "value": 1, "ttl": NaN}', "NaN"),
        (b'{"key": "a", "value": 1e999}', "number 1e999 is beyond the range of floats"),
        (b'{"key": "a\\ud800", "value": 1}', "not valid Unicode"),
        (b'{"key": "a", "value": "\\ud800"}', "value cannot be stored"),
        (b'{"key": "a", "value": "' + b"v" * (8 << 20) + b'"}', "8388613 bytes"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_read_jsonl_reports_a_bad_line_and_reads_the_rest(line: bytes, words: str) -> None:
    before, after = b'{"key": "b", "value": 1}\n', b'\n{"key": "c", "value": 2}\n'
    found = read(Format.JSONL, before + line + after)
    assert good(found) == [("b", 1), ("c", 2)]
    assert list(bad(found)) == [2]
    assert words in bad(found)[2]


def test_read_jsonl_bounds_the_length_of_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dstash.cli.formats.jsonl.MAX_LINE_BYTES", 50)
    line = b'{"key": "a", "value": "%s"}\n'
    found = read(Format.JSONL, line % (b"v" * 500) + line % b"v")
    assert good(found) == [("a", "v")]
    assert "longer than 50 bytes" in bad(found)[1]


def test_int_option_reads_integer_keys() -> None:
    data = b'{"key": "12", "value": 1}\n{"key": "x", "value": 1}\n{"key": 5, "value": 1}\n'
    found = read(Format.JSONL, data, Columns(as_int=True))
    assert good(found) == [(12, 1), (5, 1)]
    assert bad(found) == {2: "key 'x' is not an integer"}


def test_read_csv_takes_other_columns_as_value() -> None:
    data = b'\xef\xbb\xbfname,char,note\r\nA,"1\n2","say ""hi"""\r\nB,,\r\n'
    found = read(Format.CSV, data)
    expected = [("A", {"char": "1\n2", "note": 'say "hi"'}), ("B", {"char": "", "note": ""})]
    assert good(found) == expected
    assert [row.line for row in found] == [2, 4]


@pytest.mark.parametrize(
    ("data", "columns", "expected"),
    [
        (b"k;v\n1;a\n", NO_COLUMNS, ("1", {"v": "a"})),
        (b"k\tv\n1\ta\n", NO_COLUMNS, ("1", {"v": "a"})),
        (b"k|v\n1|a\n", NO_COLUMNS, ("1", {"v": "a"})),
        (b'k,"a;b;c"\n1,x\n', NO_COLUMNS, ("1", {"a;b;c": "x"})),
        (b"k;price, EUR\n1;1,50\n", NO_COLUMNS, ("1", {"price, EUR": "1,50"})),
        (b"k,a;b;c\n1,x\n", NO_COLUMNS, ("1", {"a;b;c": "x"})),
        (b"k:v\n1:a,b\n", Columns(delimiter=":"), ("1", {"v": "a,b"})),
        (b"k,v;w\n1,a;b\n", Columns(delimiter=";", key="v,w"), None),
    ],
)
def test_read_csv_recognises_the_delimiter(data: bytes, columns: Columns, expected: Any) -> None:
    if expected is None:
        with pytest.raises(UsageError, match="no column"):
            read(Format.CSV, data, columns)
        return
    assert good(read(Format.CSV, data, columns)) == [expected]


@pytest.mark.parametrize("delimiter", [None, ";"])
def test_read_csv_refuses_a_single_column(delimiter: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        read(Format.CSV, b"k:v\n1:a\n", Columns(delimiter=delimiter))
    assert str(caught.value) == (
        f"line 1: only one column, 'k:v', with the delimiter {delimiter or ','!r}; "
        "give the one of the file with --delimiter"
    )


def test_read_tsv_takes_tabs_alone() -> None:
    assert good(read(Format.TSV, b"k\ta,b;c\n1\tx\n")) == [("1", {"a,b;c": "x"})]


@pytest.mark.parametrize(
    ("text", "delimiter"), [(";", ";"), ("tab", "\t"), ("\\t", "\t"), ("\t", "\t"), (":", ":")]
)
def test_delimiter_is_one_character(text: str, delimiter: str) -> None:
    assert parse_delimiter(text) == delimiter


@pytest.mark.parametrize("text", ["", ";;", '"', "\n", "\r"])
def test_delimiter_of_another_length_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="allowed are one character"):
        parse_delimiter(text)


def test_text_that_is_not_utf8_is_named() -> None:
    latin = "k,v\na,ä\nb,c\n".encode("latin-1")
    found = read(Format.CSV, latin)
    assert good(found) == [("b", {"v": "c"})]
    assert "byte 0xe4 in column 3); if it is Latin-1" in bad(found)[2]
    for data, suffix in ((gzip.compress(b"k,v\n"), ".gz"), (b"\x28\xb5\x2f\xfd\x04\x00", ".zst")):
        (line,) = read(Format.JSONL, data)
        assert isinstance(line, BadRow)
        assert line.text.startswith(f"not text but {suffix} data; decompress it, or give the file")
    (line,) = read(Format.JSONL, '{"key": "ä", "value": 1}'.encode("latin-1"))
    assert isinstance(line, BadRow)
    assert "if it is Latin-1" in line.text
    for header, words in (("ä,v\n".encode("latin-1"), "Latin-1"), ("k,v".encode("utf-16"), "16")):
        with pytest.raises(UsageError, match=f"line 1: not UTF-8.*{words}"):
            read(Format.CSV, header)


def test_carriage_return_outside_of_quotes_is_named() -> None:
    found = read(Format.CSV, b"k,v\na,b\rc\nd,e\n")
    assert good(found) == [("d", {"v": "e"})]
    assert bad(found) == {2: "not CSV: a carriage return outside of quotes"}


@pytest.mark.parametrize("form", [Format.CSV, Format.TSV])
@pytest.mark.parametrize(
    "value",
    [
        {"a": "x\ry", "b": "\r\n", "c": '"', "d": "tab\there", "e": " , ; "},
        {"key": "a field", "_key": "another"},
        {"value": "v", "ttl": "t"},
    ],
)
def test_delimited_text_is_read_back(form: Format, value: dict[str, str]) -> None:
    data = written(form, [("k\r1", value, None), ("k2", value, None)])
    assert good(read(form, data)) == [("k\r1", value), ("k2", value)]


def test_written_csv_ends_lines_with_a_newline_alone() -> None:
    assert written(Format.CSV, [("k", {"a": "x\ry"}, None)]) == b'key,a\nk,"x\ry"\n'


def test_write_csv_puts_an_empty_dict_in_one_cell() -> None:
    data = written(Format.CSV, [("k", {}, None), ("l", {"a": 1}, None)])
    assert good(read(Format.CSV, data)) == [("k", {"value": "{}"}), ("l", {"value": '{"a":1}'})]


def test_write_csv_keeps_fields_whose_names_are_integers() -> None:
    data = written(Format.CSV, [("k", {1: "a", 2: "b"}, None), ("l", {2: "c", 1: "d"}, None)])
    expected = [("k", {"1": "a", "2": "b"}), ("l", {"1": "d", "2": "c"})]
    assert good(read(Format.CSV, data)) == expected


@pytest.mark.parametrize(
    ("form", "value", "columns", "words"),
    [
        (Format.CSV, {"id": 1}, Columns(key="id"), "--key id: a column of the values has that"),
        (Format.CSV, 5, Columns(key="value"), "--key value: a column of the values has that"),
        (Format.CSV, 5, Columns(key="x", value="x"), "name the same column, 'x'"),
        (Format.CSV, {1: "a", "1": "b"}, NO_COLUMNS, "two fields of a value have the same name"),
        (Format.PARQUET, 5, Columns(key="value"), "two columns would be named 'value'"),
        (Format.JSONL, 5, Columns(delimiter=";"), "--delimiter applies to CSV and TSV"),
    ],
)
def test_columns_of_the_same_name_are_refused(
    form: Format, value: Any, columns: Columns, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        written(form, [("k", value, None)], columns)


def test_read_csv_uses_named_columns() -> None:
    data = b"id,name\n1,one\n"
    assert good(read(Format.CSV, data, Columns(key="name"))) == [("one", {"id": "1"})]
    assert good(read(Format.CSV, data, Columns(value="name"))) == [("1", "one")]
    assert good(read(Format.CSV, data, Columns("id", "name", as_int=True))) == [(1, "one")]


@pytest.mark.parametrize(
    ("data", "columns", "words"),
    [
        (b"", NO_COLUMNS, "line 1: no header"),
        (b"\n", NO_COLUMNS, "line 1: no header"),
        (b"a,a\n1,2\n", NO_COLUMNS, "column 'a' appears twice in the header"),
        (b"a,b\n", Columns(key="c"), "no column 'c'; the file has a, b"),
        (b"a,b\n", Columns(value="c"), "no column 'c'"),
        (b'"a,b\n', NO_COLUMNS, "line 1: not CSV"),
    ],
)
def test_read_csv_refuses_bad_headers(data: bytes, columns: Columns, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(Format.CSV, data, columns)
    assert words in str(caught.value)


def test_read_csv_reports_bad_rows_and_reads_the_rest() -> None:
    data = b'k,v\na,1\nb\n"c"x,1\nd,\xff\n,1\ne,5\n"f,1\n'
    found = read(Format.CSV, data)
    assert good(found) == [("a", {"v": "1"}), ("e", {"v": "5"})]
    problems = bad(found)
    assert list(problems) == [3, 4, 5, 6, 8]
    assert problems[3] == "1 cells, but the header has 2"
    assert "not CSV" in problems[4]
    assert problems[5] == (
        "not UTF-8 text (byte 0xff in column 3); if it is Latin-1, convert it: "
        "iconv -f LATIN1 -t UTF-8"
    )
    assert "key is empty" in problems[6]
    assert "not CSV: unexpected end of data" in problems[8]


def test_read_csv_bounds_an_unclosed_quote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dstash.cli.formats.delimited.MAX_VALUE_BYTES", 1000)
    found = read(Format.CSV, b'k,v\n"a,1\n' + b"b,2\n" * 1000)
    assert "field larger than field limit" in bad(found)[2]


RECORDS: list[tuple[Any, Any, float | None]] = [
    ("text", "v\n", None),
    (5, {"a": b"\xff", 1: (2,)}, 60.5),
    (b"\x00k", dt.datetime(2024, 1, 1, tzinfo=dt.UTC), None),
    ("none", None, None),
]


#: Every type of value; similar types are adjacent, as in a real index.
VALUES: list[Any] = [
    "text", 5, -(1 << 63), (1 << 64) - 1, -(1 << 70), 1.5, float("inf"), True, None, b"\x00\xff",
    [1, [2.5, "x"]], {"a": {1: 2}}, {"key": 1, "ttl": 2}, {}, (1, (2,)), {1, 2},
    frozenset({"x"}), dt.datetime(2024, 1, 1, tzinfo=dt.UTC), dt.datetime(2024, 1, 1, 5, 6, 7, 8),
    dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=2))), dt.date(2024, 1, 1),
    dt.time(5, 6, 7), dt.timedelta(1, 2, 3), Decimal("1.10"), uuid.UUID(int=5), 1 - 2j,
    msgpack.Timestamp(5, 6),
]  # fmt: skip
LOSSLESS = [Format.JSONL, Format.MSGPACK, Format.PARQUET]


def written(
    form: Format, records: list[tuple[Any, Any, float | None]], columns: Columns = NO_COLUMNS
) -> bytes:
    target = io.BytesIO()
    out = writer(form, target, columns)
    for record in records:
        out.write(*record)
    out.finish()
    return target.getvalue()


def read_back(form: Format, records: list[tuple[Any, Any, float | None]]) -> list[Any]:
    found = read(form, written(form, records))
    return [(row.key, row.value, row.ttl) for row in found if isinstance(row, Row)]


@pytest.mark.parametrize("form", LOSSLESS)
def test_writer_output_is_read_back(form: Format) -> None:
    assert read_back(form, RECORDS) == RECORDS
    assert read_back(form, []) == []


@pytest.mark.parametrize("form", LOSSLESS)
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_writer_keeps_every_type_of_value(form: Format, value: Any) -> None:
    """Each value alone, with others of its type, with all others, and inside a map."""
    for values in ([value], [value, value, None], [value, *VALUES], [{"x": value, "y": 1}] * 2):
        found = [item for _, item, _ in read_back(form, [("k", item, None) for item in values])]
        assert found == values
        assert list(map(type, found)) == list(map(type, values))


@pytest.mark.parametrize("form", LOSSLESS)
@pytest.mark.parametrize("key", ["ä", b"\xff", 0, -(1 << 63), (1 << 64) - 1], ids=repr)
def test_writer_keeps_every_type_of_key(form: Format, key: Any) -> None:
    for keys in ([key], [key, "text", 5, b"\x00"]):
        assert [item for item, _, _ in read_back(form, [(item, 1, 2.5) for item in keys])] == keys


def test_read_msgpack_refuses_truncated_or_malformed_file() -> None:
    target = io.BytesIO()
    out = writer(Format.MSGPACK, target, NO_COLUMNS)
    for number in range(50_000):  # longer than a chunk of the file
        out.write(number, "v" * (number % 50), None)
    whole = target.getvalue()
    assert len(read(Format.MSGPACK, whole)) == 50_000
    with pytest.raises(UsageError, match="record 50000: truncated"):
        read(Format.MSGPACK, whole[:-1])
    with pytest.raises(UsageError, match="record 50001: not msgpack"):
        read(Format.MSGPACK, whole + b"\xc1")
    assert bad(read(Format.MSGPACK, b"\x05"))[1] == "int instead of an object with key and value"


def test_read_msgpack_bounds_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dstash.cli.formats.packed.MAX_FRAME_BYTES", 100_000)
    with pytest.raises(UsageError, match="record 1: larger than 100000 bytes"):
        read(Format.MSGPACK, b"\xc6\x00\x10\x00\x00" + bytes(1 << 20))


def write_csv(records: list[tuple[Any, Any]], columns: Columns = NO_COLUMNS) -> str:
    target = io.BytesIO()
    out = writer(Format.CSV, target, columns)
    for key, value in records:
        out.write(key, value, None)
    return target.getvalue().decode()


def test_csv_writer_takes_columns_from_the_first_record() -> None:
    records = [("a", {"x": "1", "y": 'q"\n'}), ("b", {"y": None, "x": 2})]
    text = write_csv(records)
    assert text == 'key,x,y\na,1,"q""\n"\nb,2,null\n'
    assert good(read(Format.CSV, text.encode())) == [
        ("a", {"x": "1", "y": 'q"\n'}),
        ("b", {"x": "2", "y": "null"}),
    ]
    assert write_csv([("a", "x"), (2, [1])], Columns(key="k")) == "k,value\na,x\n2,[1]\n"
    assert write_csv([("a", {"x": 1})], Columns(value="v")) == 'key,v\na,"{""x"":1}"\n'


def test_csv_writer_refuses_values_it_cannot_hold() -> None:
    with pytest.raises(UsageError, match="its columns differ from those of the first record"):
        write_csv([("a", {"x": 1}), ("b", {"x": 1, "z": 2})])
    with pytest.raises(UsageError, match="its columns differ from those"):
        write_csv([("a", {"x": 1}), ("b", "text")])
    with pytest.raises(UsageError, match=r"^CSV cannot hold keys that are bytes"):
        write_csv([(b"a", "x")])
    with pytest.raises(UsageError, match="time to live"):
        writer(Format.CSV, io.BytesIO(), NO_COLUMNS).write("a", "x", 5.0)


class TestParquet:
    def table(self, **columns: list[Any]) -> bytes:
        """Return a file as other programs write them."""
        target = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), target)
        return bytes(target.getvalue())

    def test_foreign_file_is_read_like_csv_with_its_types(self) -> None:
        data = self.table(id=[1, 2], x=[1.5, None], y=[[1], []], ttl=["a", "b"])
        first = {"x": 1.5, "y": [1], "ttl": "a"}
        assert good(read(Format.PARQUET, data)) == [
            (1, first),
            (2, {"x": None, "y": [], "ttl": "b"}),
        ]
        assert good(read(Format.PARQUET, data, Columns(key="ttl", value="x")))[0] == ("a", 1.5)

    def test_maps_with_the_same_names_become_columns(self) -> None:
        moment = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
        values = [
            {"n": 1, "s": "x", "t": moment, "any": [1]},
            {"n": None, "s": "", "t": moment, "any": 2},
        ]
        data = written(Format.PARQUET, [("a", values[0], None), ("b", values[1], 5.0)])
        schema = pq.read_schema(pa.BufferReader(data))
        assert schema.names == ["key", "n", "s", "t", "any", "ttl"]
        assert list(map(str, schema.types))[1:4] == ["int64", "string", "timestamp[us, tz=UTC]"]
        assert good(read(Format.PARQUET, data)) == [("a", values[0]), ("b", values[1])]

    def test_bad_rows_are_reported_and_the_rest_is_read(self) -> None:
        data = self.table(k=["a", "", None, "d"], v=[1, 2, 3, 4])
        found = read(Format.PARQUET, data)
        assert good(found) == [("a", {"v": 1}), ("d", {"v": 4})]
        assert bad(found).keys() == {2, 3}
        assert "key is empty" in bad(found)[2]

    def test_value_of_another_type_than_its_column_is_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("dstash.cli.formats.columnar._MAX_GROUP_ROWS", 1)
        with pytest.raises(UsageError, match="key 'b': its columns differ from those of the first"):
            written(Format.PARQUET, [("a", {"x": 1}, None), ("b", {"y": 1}, None)])
        with pytest.raises(UsageError, match="key 'b': column 'x' has values of type int, not str"):
            written(Format.PARQUET, [("a", {"x": 1}, None), ("b", {"x": "1"}, None)])

    def test_json_cell_beyond_the_range_of_floats_is_a_bad_row(self) -> None:
        records: list[Any] = [("a", [1.5], None), ("b", {"x": 1}, None)]
        table = pq.read_table(pa.BufferReader(written(Format.PARQUET, records)))
        cells = pa.array(["[1.5]", "[1e400]"])
        target = pa.BufferOutputStream()
        pq.write_table(table.set_column(1, table.schema.field(1), cells), target)
        found = read(Format.PARQUET, bytes(target.getvalue()))
        assert good(found) == [("a", [1.5])]
        assert "number 1e400 is beyond the range of floats" in bad(found)[2]

    def test_row_groups_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dstash.cli.formats.columnar._MAX_GROUP_BYTES", 1000)
        records: list[Any] = [(number, {"v": "x" * 100}, None) for number in range(100)]
        data = written(Format.PARQUET, records)
        assert pq.ParquetFile(pa.BufferReader(data)).num_row_groups == 10
        assert good(read(Format.PARQUET, data)) == [(key, value) for key, value, _ in records]

    def test_malformed_file_and_pipe_are_refused(self) -> None:
        data = self.table(k=["a"])
        for broken in (b"", b"PAR1", data[:-1], data[4:]):
            with pytest.raises(UsageError, match="record 1: not parquet"):
                read(Format.PARQUET, broken)
        with pytest.raises(UsageError, match="no column 'x'; the file has k"):
            read(Format.PARQUET, data, Columns(key="x"))
        with os.fdopen(os.pipe()[0], "rb") as pipe, pytest.raises(UsageError, match="from a pipe"):
            list(read_rows(Format.PARQUET, pipe, NO_COLUMNS))

    def test_missing_pyarrow_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(UsageError, match=r"pip install 'dstash\[parquet\]'"):
            written(Format.PARQUET, [])


def test_csv_without_records_is_read_back() -> None:
    assert written(Format.CSV, []) == b"key,value\n"


def test_column_names_are_refused_for_other_formats() -> None:
    for form in (Format.JSONL, Format.MSGPACK):
        with pytest.raises(UsageError, match="columns of CSV"):
            read(form, b"", Columns(key="a"))
        with pytest.raises(UsageError, match="columns of CSV"):
            writer(form, io.BytesIO(), Columns(value="a"))


def test_row_has_its_size() -> None:
    row = rows.record(1, "key", "v" * 100, None, NO_COLUMNS)
    assert row.size == 3 + 102
