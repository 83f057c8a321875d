import io
import os
import pickle
import struct
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
from numpy.lib import format as npy_format

from wsssfast.data import safe_pickle
from wsssfast.data.safe_pickle import read_npy
from wsssfast.errors import WsssError

OF_A_DICT = {"descr": "|O", "fortran_order": False, "shape": ()}


def header(**changes):
    buffer = io.BytesIO()
    npy_format.write_array_header_1_0(buffer, {**OF_A_DICT, **changes})
    return buffer.getvalue()


def write(path, pickled, **changes):
    path.write_bytes(header(**changes) + pickled)
    return path


def dumped(value, protocol):
    """The pickle that np.save of a version with that protocol writes."""
    array = np.empty((), dtype=object)
    array[()] = value
    return pickle.dumps(array, protocol=protocol)


def assert_refused(path, text):
    with pytest.raises(WsssError) as caught:
        read_npy(path)
    assert text in caught.value.message
    assert str(path) in caught.value.message
    assert "Nothing of it was run" in caught.value.remedy
    assert caught.value.code == 2


def assert_equal(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_equal(a, b)
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected


VALUES = {
    "labels": {"2007_000032": np.eye(20)[3], "2007_000039": np.zeros(20)},
    "cams": {0: np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4), 14: np.ones((3, 4), "f2")},
    "lists": [np.arange(3), [np.arange(2.0), "text", b"bytes", None, True, 2**70, 0.5]],
    "nested": {"keys": {"a": {"b": {"c": np.arange(4)}}}, "pair": (1, np.arange(2))},
    "scalars": {"f": np.float32(0.1), "i": np.int64(-7), "b": np.bool_(True), "u": np.str_("x")},
    "fortran": {"a": np.asfortranarray(np.arange(24.0).reshape(2, 3, 4))},
    "int64": {"a": np.array([[-(2**60), 1], [2, 3]])},
    "big-endian": {"a": np.arange(5, dtype=">i4")},
    "bool": {"a": np.array([True, False, True])},
    "unicode": {"a": np.array(["aeroplane", "køtt", "猫"]), "b": np.array([b"ab", b"c"])},
    "empty": {"a": np.zeros((0, 4), np.float32), "b": {}, "c": [], "d": ()},
    "large": {"a": np.random.RandomState(0).rand(40, 50), "text": "x" * 300},
}


@pytest.mark.parametrize("name", VALUES)
def test_what_np_save_wrote_comes_back(tmp_path, name):
    np.save(tmp_path / "a.npy", VALUES[name] if name != "lists" else {"a": VALUES[name]})
    found = read_npy(tmp_path / "a.npy")
    assert_equal(found if name != "lists" else found["a"], VALUES[name])


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_every_protocol_that_numpy_ever_used_comes_back(tmp_path, name, protocol):
    assert_equal(read_npy(write(tmp_path / "a.npy", dumped(VALUES[name], protocol))), VALUES[name])


@pytest.mark.parametrize(("old", "new"), [(b"numpy._core.multi", b"numpy.core.multi")])
def test_the_module_names_of_numpy_1_and_2_both_come_back(tmp_path, old, new):
    pickled = dumped(VALUES["labels"], 2)
    assert (old in pickled) != (new in pickled)
    for name in (old, new):
        renamed = pickled.replace(old, name).replace(new, name)
        assert_equal(read_npy(write(tmp_path / "a.npy", renamed)), VALUES["labels"])


def test_text_of_python_2_comes_back(tmp_path):
    pickled = b"\x80\x02}U\x0b2007_000032U\x02\xe9!s."
    assert read_npy(write(tmp_path / "a.npy", pickled)) == {"2007_000032": "é!"}


def test_an_ordered_dict_comes_back_as_a_dict(tmp_path):
    pickled = dumped(OrderedDict(b=1, a=np.arange(2)), 4)
    assert_equal(read_npy(write(tmp_path / "a.npy", pickled)), {"b": 1, "a": np.arange(2)})


@pytest.mark.parametrize("order", ["C", "F"])
def test_object_arrays_keep_their_shape_and_order(tmp_path, order):
    array = np.array([["a", None, 1.5], [b"x", (1,), {}]], dtype=object, order=order)
    np.save(tmp_path / "a.npy", array)
    found = read_npy(tmp_path / "a.npy")
    assert found.shape == (2, 3)
    assert found.tolist() == array.tolist()


@pytest.mark.parametrize(
    "array",
    [np.arange(6.0).reshape(2, 3), np.arange(3, dtype="u1"), np.float64(2), np.zeros((0, 3))],
    ids=["float", "byte", "scalar", "empty"],
)
def test_plain_arrays_come_back(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    assert_equal(read_npy(tmp_path / "a.npy"), np.asarray(array))


def test_arrays_that_come_back_can_be_written_to(tmp_path):
    np.save(tmp_path / "a.npy", {"a": np.zeros(3)})
    found = read_npy(tmp_path / "a.npy")["a"]
    found += 1
    assert found.tolist() == [1, 1, 1]


def test_an_array_that_a_file_shares_is_built_once(tmp_path):
    array = np.arange(100.0)
    np.save(tmp_path / "a.npy", {"a": array, "b": array})
    found = read_npy(tmp_path / "a.npy")
    assert found["a"] is found["b"]


class Calls:
    def __init__(self, function, *args):
        self.what = function, args

    def __reduce__(self):
        return self.what


def test_a_pickle_that_runs_a_command_is_refused_and_runs_nothing(tmp_path):
    trace = tmp_path / "trace"
    command = f"touch {trace}"
    np.save(tmp_path / "a.npy", {"a": Calls(os.system, command)})
    assert_refused(tmp_path / "a.npy", f"it asks for {os.name}.system, which is code")
    assert not trace.exists()
    np.load(tmp_path / "a.npy", allow_pickle=True)  # the attack works elsewhere
    assert trace.exists()


@pytest.mark.parametrize(
    ("value", "asks"),
    [
        (Calls(eval, "1 + 1"), "builtins.eval"),
        (Calls(getattr, "text", "upper"), "builtins.getattr"),
        (Calls(np.load, "x.npy"), "numpy.load"),
        (Calls(print, "hello"), "builtins.print"),
        (io.BytesIO(b"x"), "_io.BytesIO"),
        (np.dtype, "numpy.dtype"),
    ],
)
def test_a_pickle_that_names_code_is_refused(tmp_path, value, asks):
    pickled = pickle.dumps({"a": value}, protocol=4)
    text = "it holds a type" if asks == "numpy.dtype" else f"it asks for {asks}, which is code"
    assert_refused(write(tmp_path / "a.npy", pickled), text)


@pytest.mark.parametrize("name", ["ndarray.tofile", "dtype.__class__", "ndarray.__reduce__"])
def test_no_attribute_of_an_allowed_name_can_be_reached(tmp_path, name):
    stack_global = b"\x8c\x05numpy\x8c" + bytes([len(name)]) + name.encode() + b"\x93"
    pickled = b"\x80\x04" + stack_global + b")R."
    assert_refused(write(tmp_path / "a.npy", pickled), f"it asks for numpy.{name}, which is code")


@pytest.mark.parametrize(
    ("pickled", "text"),
    [
        (b"Pname\n.", "it asks for a persistent object"),
        (b"\x80\x02K\x01Q.", "it asks for a persistent object"),
        (b"\x80\x02\x82\x01.", "it asks for an extension code"),
        (b"\x80\x02\x83\x01\x00.", "it asks for an extension code"),
        (b"\x80\x02\x84\x01\x00\x00\x00.", "it asks for an extension code"),
        (pickle.dumps({"a": {1, 2}}, 4), "it holds a set or a bytearray"),
        (pickle.dumps(frozenset("a"), 4), "it holds a set or a bytearray"),
        (pickle.dumps({1}, 2), "it asks for __builtin__.set, which is code"),
        (pickle.dumps({(1, 2): 3}, 4), "it has a tuple as a key"),
        (pickle.dumps({(1, 2): 3, "a": 1}, 4), "it has a tuple as a key"),
        (b"(K\x01\x85K\x02d.", "it has a tuple as a key"),
        (dumped({"a": np.array([1j])}, 4), "dtype 'c16' is not allowed"),
        (dumped({"a": np.array(["2020"], "M8[D]")}, 4), "dtype 'M8' is not allowed"),
        (dumped({"a": np.zeros(2, [("x", "f4")])}, 4), "dtype 'V4' is not allowed"),
    ],
)
def test_what_no_label_file_needs_is_refused(tmp_path, pickled, text):
    assert_refused(write(tmp_path / "a.npy", pickled), text)


def test_a_declared_bytearray_is_refused_before_it_is_allocated(tmp_path):
    pickled = b"\x80\x05\x96" + struct.pack("<Q", 1 << 34) + b"."
    assert_refused(write(tmp_path / "a.npy", pickled), "it holds a set or a bytearray")


def test_a_file_cannot_change_how_the_next_one_is_read(tmp_path):
    before = dict(vars(safe_pickle._Scalar))
    pickled = b"\x80\x02cnumpy.core.multiarray\nscalar\nN}X\x05\0\0\0buildK\x01s\x86b."
    assert_refused(write(tmp_path / "a.npy", pickled), "it sets the state of a type")
    assert dict(vars(safe_pickle._Scalar)) == before


def test_arrays_that_share_their_bytes_are_refused(tmp_path):
    f8 = b"cnumpy\ndtype\n(Vf8\ntR"
    data = b"V" + b"x" * 800 + b"\np1\n"
    array = b"cnumpy\nndarray\n(tR(I1\n(I100\nt" + f8 + b"I00\n%st" + b"b"
    text = b"(dV0\n" + array % data + b"sV1\n" + array % b"g1\n" + b"s."
    assert_refused(write(tmp_path / "a.npy", text), "arrays made of the same bytes")
    alone = b"(dV0\n" + array % data + b"s."
    found = read_npy(write(tmp_path / "a.npy", alone))
    assert found["0"].tobytes() == b"x" * 800


@pytest.mark.parametrize("change", [b"I101\n", b"I99\n", b"I-100\n", b"I4000000000000\n"])
def test_an_array_whose_bytes_do_not_fill_its_shape_is_refused(tmp_path, change):
    f8 = b"cnumpy\ndtype\n(Vf8\ntR"
    pickled = b"cnumpy\nndarray\n(tR(I1\n(I100\nt" + f8 + b"I00\nV" + b"x" * 800 + b"\ntb."
    assert read_npy(write(tmp_path / "a.npy", pickled)).shape == (100,)
    text = "an array with an invalid shape" if b"-" in change else "do not fill its shape"
    assert_refused(write(tmp_path / "a.npy", pickled.replace(b"I100\n", change)), text)


def test_an_object_array_whose_list_does_not_fill_its_shape_is_refused(tmp_path):
    pickled = b"cnumpy\nndarray\n(tR(I1\n(I3\ntcnumpy\ndtype\n(VO8\ntRI00\n(lNatb."
    assert_refused(write(tmp_path / "a.npy", pickled), "list does not fill its shape")


def test_an_array_without_contents_is_refused(tmp_path):
    pickled = b"cnumpy\nndarray\n(tR."
    assert_refused(write(tmp_path / "a.npy", pickled), "an array without contents")


@pytest.mark.parametrize("shape", [(10**12,), (4,), (2, 2)])
def test_a_plain_header_that_declares_more_than_the_file_holds_is_refused(tmp_path, shape):
    path = write(tmp_path / "a.npy", b"\0" * 31, descr="<f8", shape=shape)
    assert_refused(path, "it declares more than it holds")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "magic string"),
        (b"PK\x03\x04 an archive", "the magic string is not correct"),
        (b"\x93NUMPY\x09\x00" + b"x" * 60, "format version (9, 0)"),
        (header(shape=(-1,)) + b"N.", "it declares a negative size"),
        (header(), "it ends early"),
        (header() + b"garbage", "Expected a .npy file of arrays and containers only"),
    ],
)
def test_what_is_no_npy_file_is_refused(tmp_path, content, text):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    assert_refused(path, text)


def test_a_missing_file_is_named(tmp_path):
    assert_refused(tmp_path / "none.npy", "No such file or directory")


def test_a_list_that_holds_itself_is_refused(tmp_path):
    value = []
    value.append(value)
    pickled = pickle.dumps(value, 4)
    assert_refused(write(tmp_path / "a.npy", pickled), "it nests too deeply")


@pytest.mark.parametrize("depth", [18, 100_000])
@pytest.mark.parametrize("opcodes", [(b"]", b"a"), (b"", b"\x85"), (b"}K\x00", b"s")])
def test_deep_nesting_is_refused(tmp_path, depth, opcodes):
    before, after = opcodes
    pickled = b"\x80\x02" + before * depth + b")" + after * depth + b"."
    assert_refused(write(tmp_path / "a.npy", pickled), "it nests too deeply")


def test_nesting_of_16_comes_back(tmp_path):
    pickled = b"\x80\x02" + b"]" * 16 + b"K\x07" + b"a" * 16 + b"."
    found = read_npy(write(tmp_path / "a.npy", pickled))
    for _ in range(16):
        (found,) = found
    assert found == 7


def test_lists_shared_a_million_million_times_are_built_once(tmp_path):
    shared = [1.5]
    for _ in range(12):
        shared = [shared] * 10
    found = read_npy(write(tmp_path / "a.npy", pickle.dumps(shared, 4)))
    assert found[0] is found[9]


@pytest.mark.parametrize("depth", [40, 1_000_000])
def test_a_key_of_nested_tuples_is_refused_and_never_hashed(tmp_path, depth):
    """In a process of its own: hashing it takes for ever (40, shared) or crashes Python."""
    shared = b"".join(b"q%ch%c\x86" % (i, i) for i in range(depth)) if depth == 40 else b""
    pickled = b"\x80\x02})" + (shared or b"\x85" * depth) + b"K\x01s."
    path = write(tmp_path / "a.npy", pickled)
    code = "import sys, pathlib; from wsssfast.data.safe_pickle import read_npy\n"
    code += "try: read_npy(pathlib.Path(sys.argv[1]))\nexcept Exception as e: print(e)"
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "it has a tuple as a key" in done.stdout


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_file_cut_anywhere_is_refused(tmp_path, protocol):
    content = header() + dumped({**VALUES["labels"], **VALUES["scalars"]}, protocol)
    path = tmp_path / "a.npy"
    for cut in range(0, len(content), 7):
        path.write_bytes(content[:cut])
        with pytest.raises(WsssError, match=r"Expected a \.npy file") as caught:
            read_npy(path)
        assert not caught.value.message.endswith("but .")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_flipped_bytes_give_a_value_or_a_refusal(tmp_path, protocol):
    content = header() + dumped({**VALUES["labels"], **VALUES["scalars"]}, protocol)
    rng = np.random.RandomState(protocol)
    path = tmp_path / "a.npy"
    refused = 0
    for _ in range(300):
        flipped = bytearray(content)
        for place in rng.randint(0, len(content), rng.randint(1, 4)):
            flipped[place] = rng.randint(256)
        path.write_bytes(flipped)
        try:
            read_npy(path)
        except WsssError as error:
            refused += 1
            assert error.code == 2
    assert 10 < refused < 300
