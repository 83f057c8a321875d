"""Read the field's pickled `.npy` files without running what they say.

Label files (`cls_labels.npy`) and CAM dumps of this field are numpy object arrays, i.e. pickles,
and a pickle is a program. Here the only things that a file can name are numpy's array, dtype and
scalar constructors, and even those are replaced by inert records, so that no code outside this file
runs and nothing is allocated that the file does not itself hold the bytes of.
"""

import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal

import numpy as np
from numpy.lib import format as npy_format

from wsssfast.errors import WsssError

_MOST_DEPTH = 16
_MOST_SHARED = 64  # bytes that several arrays may have in common
_KINDS = frozenset("biufSU?")


class _Dtype:
    """Stand-in for numpy.dtype: keeps the type string, ignores the rest."""

    def __init__(self, code: object = "O", *_: object) -> None:
        self.code = code
        self.order: Literal["<", ">", "|", "="] = "="

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "="):
            self.order = state[1]

    def build(self) -> np.dtype[Any]:
        code = self.code.decode() if isinstance(self.code, bytes) else self.code
        if not isinstance(code, str):
            raise pickle.UnpicklingError(f"a dtype named by a {type(code).__name__}")
        if code in ("O", "O8"):
            return np.dtype(object)
        if code[:1] not in _KINDS or not code[1:].isdigit():
            raise pickle.UnpicklingError(f"dtype {code[:40]!r} is not allowed")
        kind: np.dtype[Any] = np.dtype(code)
        return kind.newbyteorder(self.order)


class _Array:
    """Stand-in for numpy.ndarray."""

    def __init__(self, *_: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def build(self, depth: int, built: dict[int, Any]) -> object:
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            raise pickle.UnpicklingError("an array without contents")
        _, shape, dtype, fortran, data = self.state
        if not isinstance(shape, tuple) or not all(isinstance(s, int) and s >= 0 for s in shape):
            raise pickle.UnpicklingError("an array with an invalid shape")
        if not isinstance(dtype, _Dtype):
            raise pickle.UnpicklingError("an array without a dtype")
        kind = dtype.build()
        if kind.hasobject:
            return _objects(shape, data, depth, built)
        data = _bytes(data, built)
        if len(data) != math.prod(shape) * kind.itemsize:
            raise pickle.UnpicklingError("an array whose bytes do not fill its shape")
        flat = np.frombuffer(data, kind).copy()
        return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


class _Scalar:
    """Stand-in for numpy scalars."""

    def __init__(self, dtype: object = None, data: object = b"") -> None:
        self.dtype, self.data = dtype, data

    def build(self, built: dict[int, Any]) -> object:
        if not isinstance(self.dtype, _Dtype):
            raise pickle.UnpicklingError("a scalar without a dtype")
        data, kind = _bytes(self.data, built), self.dtype.build()
        if kind.hasobject or len(data) != kind.itemsize:
            raise pickle.UnpicklingError("a scalar whose bytes do not fit its dtype")
        return np.frombuffer(data, kind)[0]


class _Encoded:
    """Stand-in for `_codecs.encode(text, "latin1")`, which protocol 2 uses to write bytes."""

    def __init__(self, text: object = "", *_: object) -> None:
        self.text = text


def _bytes(data: object, built: dict[int, Any]) -> bytes:
    """The bytes that a record holds.

    Only its own: a small file could have a million arrays made of the same bytes.
    """
    text = data.text if isinstance(data, _Encoded) else data
    if not isinstance(text, (str, bytes)):
        raise pickle.UnpicklingError("an array or scalar without contents")
    if len(text) > _MOST_SHARED:
        if id(text) in built:
            raise pickle.UnpicklingError("arrays made of the same bytes")
        built[id(text)] = None
    return text.encode("latin1") if isinstance(text, str) else text


def _ordered() -> dict[Any, Any]:
    """Stand-in for collections.OrderedDict; its items follow as those of a dict do."""
    return {}


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Encoded,
    ("__builtin__", "bytes"): _Encoded,  # protocol 2 writes empty bytes as bytes()
    ("collections", "OrderedDict"): _ordered,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ALLOWED[_module, "_reconstruct"] = _Array
    _ALLOWED[_module, "scalar"] = _Scalar


def _checked(opcode: bytes, check: Callable[[list[Any]], None]) -> Callable[[Any], None]:
    """The unpickler's own function for an opcode, after a look at what it would take."""
    load: Callable[[Any], None] = pickle._Unpickler.dispatch[opcode[0]]

    def checked(unpickler: Any) -> None:
        check(unpickler.stack)
        load(unpickler)

    return checked


def _require_record(stack: list[Any]) -> None:
    if not isinstance(stack[-2], (_Array, _Dtype)):  # it could change a class, for later files too
        raise pickle.UnpicklingError(f"it sets the state of a {type(stack[-2]).__name__}")


def _require_keys(keys: list[Any]) -> None:
    for key in keys:  # nested tuples overflow the C stack, or take for ever, when they are hashed
        if not (key is None or isinstance(key, (int, float, str, bytes, _Scalar))):
            raise pickle.UnpicklingError(f"it has a {type(key).__name__} as a key")


def _refuse(_: list[Any]) -> None:
    raise pickle.UnpicklingError("it holds a set or a bytearray")


class _Unpickler(pickle._Unpickler):
    """The pure-Python unpickler (its memo is a dict: no allocation by index), closed off."""

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: _checked(pickle.BUILD, _require_record),
        pickle.SETITEM[0]: _checked(pickle.SETITEM, lambda stack: _require_keys(stack[-2:-1])),
        pickle.SETITEMS[0]: _checked(pickle.SETITEMS, lambda stack: _require_keys(stack[::2])),
        pickle.DICT[0]: _checked(pickle.DICT, lambda stack: _require_keys(stack[::2])),
        pickle.EMPTY_SET[0]: _checked(pickle.EMPTY_SET, _refuse),
        pickle.FROZENSET[0]: _checked(pickle.FROZENSET, _refuse),
        pickle.BYTEARRAY8[0]: _checked(pickle.BYTEARRAY8, _refuse),  # allocates what it declares
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module[:60]}.{name[:60]}, which is code"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it asks for a persistent object")

    def get_extension(self, code: int) -> Any:
        raise pickle.UnpicklingError("it asks for an extension code")


def read_npy(path: Path) -> Any:
    """What a `.npy` file holds: an array, or the built-in containers and arrays of an object array.

    A 0-dimensional object array (a pickled dict) gives its one element.

    Raises:
        WsssError: not such a file, or one that names anything but arrays and containers.
    """
    try:
        with path.open("rb") as file:
            return _read(file, path.stat().st_size)
    except Exception as error:  # a damaged pickle can fail in any way, inside pickle and numpy
        raise WsssError(
            f"Expected a .npy file of arrays and containers only at {path}, but "
            f"{str(error) or 'it ends early'}.",
            "Nothing of it was run; get the file from a source that you trust.",
        ) from error


def _read(file: BinaryIO, size: int) -> Any:
    version = npy_format.read_magic(file)
    readers = {
        (1, 0): npy_format.read_array_header_1_0,
        (2, 0): npy_format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"it has format version {version}")
    shape, _, dtype = readers[version](file)
    if not dtype.hasobject:
        if math.prod(shape) * dtype.itemsize > size - file.tell():
            raise ValueError("it declares more than it holds")
        file.seek(0)
        return np.load(file, allow_pickle=False)
    if any(side < 0 for side in shape):
        raise ValueError("it declares a negative size")
    pickled = io.BytesIO(file.read())  # reads are then bounded by what the file holds
    value = _plain(_Unpickler(pickled, encoding="latin1").load(), 0, {})
    if shape == () and isinstance(value, np.ndarray) and value.dtype.hasobject:
        return value.item()
    return value


def _plain(value: Any, depth: int, built: dict[int, Any]) -> Any:
    """Replace the stand-ins by arrays, all the way down.

    `built` keeps what each object became: what a pickle shares a million times is built once.
    """
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    if id(value) in built:
        return built[id(value)]
    if depth > _MOST_DEPTH:
        raise pickle.UnpicklingError("it nests too deeply")
    result: Any
    if isinstance(value, _Array):
        result = value.build(depth, built)
    elif isinstance(value, _Scalar):
        result = value.build(built)
    elif isinstance(value, _Encoded):
        result = _bytes(value, built)
    elif isinstance(value, dict):
        items = value.items()
        result = {_plain(k, depth + 1, built): _plain(v, depth + 1, built) for k, v in items}
    elif isinstance(value, (list, tuple)):
        result = type(value)(_plain(v, depth + 1, built) for v in value)
    else:
        raise pickle.UnpicklingError(f"it holds a {type(value).__name__}")
    built[id(value)] = result
    return result


def _objects(shape: tuple[int, ...], data: object, depth: int, built: dict[int, Any]) -> object:
    if not isinstance(data, list) or len(data) != math.prod(shape):
        raise pickle.UnpicklingError("an object array whose list does not fill its shape")
    array = np.empty(len(data), dtype=object)
    for index, value in enumerate(data):
        array[index] = _plain(value, depth + 1, built)
    return array.reshape(shape)
