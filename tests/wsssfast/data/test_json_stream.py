import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsssfast.data import json_stream
from wsssfast.data.json_stream import JsonStream

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


def whole(data, chunk):
    """A file's members, arrays element by element: [(key, value)] and the texts found again."""
    stream = JsonStream(io.BytesIO(data), chunk)
    found = {}
    for key in stream.members():
        values = list(stream.elements()) if stream.peek() == "[" else [stream.value()]
        found[key] = [value.parsed for value in values]
        for value in values:
            assert data[value.offset : value.offset + len(value.text)] == value.text
            assert json.loads(value.text) == value.parsed
    stream.finish()
    return found


def listed(data):
    found = json.loads(data)
    return {key: value if isinstance(value, list) else [value] for key, value in found.items()}


@given(
    found=st.dictionaries(st.text(max_size=6), VALUES, max_size=5),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 0, "\t", "\r\n  "]),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    chunk=st.integers(1, 40),
)
def test_the_stream_finds_what_json_finds(found, ascii_only, indent, mark, chunk):
    text = json.dumps(found, ensure_ascii=ascii_only, indent=indent)
    data = mark + text.encode("utf-8", "surrogatepass")
    assert whole(data, chunk) == listed(data)


HARD = (
    '{"a": [{"}": "]\\"}{[", "\\\\": "\\\\"}, "é \\u00e9 \U0001f600 \\ud83d", 1.5e-3, -0, 12 ,true'
    ' ], "b": -1.25E+2, "c": [], "d": {}, "e": {"f": {"g": [[], [{}]]}}, "": Infinity, "a": [2]}\n '
)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 64, 1 << 20])
def test_chunks_may_end_anywhere(chunk):
    data = HARD.encode()
    assert whole(data, chunk) == listed(data)


@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
def test_a_cut_file_is_refused_wherever_it_is_cut(chunk):
    data = HARD.encode().rstrip()
    for end in range(len(data)):
        with pytest.raises(ValueError, match=r"byte|codec"):
            whole(data[:end], chunk)


@given(position=st.integers(0, len(HARD.encode()) - 1), byte=st.binary(max_size=2))
def test_a_changed_byte_is_refused_where_json_refuses_it(position, byte):
    data = HARD.encode()
    data = data[:position] + byte + data[position + 1 :]
    try:
        expected = listed(data)
    except ValueError:
        expected = None
    except AttributeError:  # no object
        expected = None
    if expected is None:
        with pytest.raises(ValueError):
            whole(data, 5)
    else:
        assert whole(data, 5) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", r"Expecting { \(byte 0\)"),
        ("[]", r"Expecting { \(byte 0\)"),
        ("{} {}", r"Extra data \(byte 3\)"),
        ('{"a" 1}', r"Expecting a delimiter \(byte 4\)"),
        ('{"a": 1, }', r"Expecting a key in double quotes \(byte 9\)"),
        ('{"a": [1, ]}', r"Expecting value \(byte 10\)"),
        ('{"a": [1 2]}', r"Expecting a delimiter \(byte 8\)"),
        ('{"a": [01]}', r"Expecting a delimiter \(byte 8\)"),
        ('{"a": {"b": x}}', r"Expecting value \(byte 12\)"),
        ('{"a": "\n"}', r"Invalid control character at \(byte 7\)"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_the_place_of_an_error_is_told(text, reason, chunk):
    with pytest.raises(ValueError, match=reason):
        whole(text.encode(), chunk)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_other_encodings_are_refused(encoding):
    with pytest.raises(ValueError, match="expected UTF-8, found utf-"):
        whole('{"a": 1}'.encode(encoding), 7)


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(ValueError, match="utf-8"):
        whole(b'{"a": ["\xe9"]}', 7)


def test_unknown_values_are_passed_one_element_at_a_time(monkeypatch):
    monkeypatch.setattr(json_stream, "LONGEST", 100)
    many = {"a": list(range(1000)), "b": {str(n): [n] for n in range(1000)}, "c": 1}
    stream = JsonStream(io.BytesIO(json.dumps(many).encode()), 16)
    found = []
    for key in stream.members():
        found.append(key)
        stream.skip()
    stream.finish()
    assert found == ["a", "b", "c"]


@pytest.mark.parametrize("value", ['"' + "x" * 1000, "[" + "1, " * 1000, "[1 2" + ", 3" * 1000])
def test_a_broken_value_is_not_read_to_the_end_of_the_file(monkeypatch, value):
    monkeypatch.setattr(json_stream, "LONGEST", 100)
    file = io.BytesIO(b'{"a": [' + value.encode())
    with pytest.raises(ValueError, match="or a value of over 100 bytes"):
        list(next_elements(JsonStream(file, 16)))
    assert file.tell() < 300


def next_elements(stream):
    for _ in stream.members():
        yield from stream.elements()


def test_deep_nesting_is_an_error_of_python():
    with pytest.raises(RecursionError):
        whole(b'{"a": [' + b"[" * 200_000, 1 << 20)
