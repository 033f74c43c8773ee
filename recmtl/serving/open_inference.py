"""The Open Inference Protocol, version 2, as KServe and Triton speak it, with their extension for binary tensor data.

A tensor is a column of the recipe's query, of shape [N], or [1] where all rows share its value. A list column COL is
two tensors: COL, the values of all rows one after the other, and ``COL.lengths``. ``COL.present``, BOOL, is false where
a value is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from recmtl.encoding.encoder import Encoder
from recmtl.encoding.values import is_list, is_string
from recmtl.inference.exported import ExportedModel
from recmtl.serving.columns import BadRequest, Request

DATATYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    **{f"{sign}INT{bits}": np.dtype(f"{sign.lower()}int{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)},
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": None,
}
"""The protocol's types of elements, as NumPy has them; BYTES are bytes with their length before them."""
HEADER_LENGTH = "Inference-Header-Content-Length"
"""HTTP header: how many bytes of a body are JSON; binary tensor data follow."""


@dataclass(frozen=True)
class Tensor:
    """One named input."""

    name: str
    datatype: str
    values: Any
    """A NumPy array, or a list of bytes."""


@dataclass(frozen=True)
class Wanted:
    """What the client wants of the answer."""

    id: str
    outputs: tuple[str, ...]
    binary: frozenset[str]
    """Outputs to be given as bytes."""


def parse(body: bytes, header_length: int | None, model: ExportedModel, most_rows: int) -> tuple[Request, Wanted]:
    """A request from its body.

    Args:
        body: JSON, followed by binary tensor data.
        header_length: bytes of the JSON; None: all.
        model: whose columns and outputs they are.
        most_rows: more are refused.

    Raises:
        UserError: says what is wrong, in one line.
    """
    if header_length is not None and not 0 <= header_length <= len(body):
        raise BadRequest(f"{HEADER_LENGTH}: {header_length} of a body of {len(body)} bytes")
    try:
        value = orjson.loads(body if header_length is None else body[:header_length])
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"body: not JSON ({error})") from None
    inputs = _get(value, "inputs", list, "body")
    data = memoryview(body)[len(body) if header_length is None else header_length :]
    tensors: dict[str, Tensor] = {}
    for place, entry in enumerate(inputs):
        tensor, data = _tensor(entry, data, f"inputs[{place}]")
        if tensor.name in tensors:
            raise BadRequest(f"inputs: {tensor.name!r} is there twice")
        tensors[tensor.name] = tensor
    if len(data):
        raise BadRequest(f"body: {len(data)} bytes after the last tensor")
    return _request(tensors, model.encoder, most_rows), _wanted(value, model)


def _get(value: Any, key: str, kind: type, where: str) -> Any:
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
        names = {list: "a list", str: "a string", dict: "an object", int: "a whole number"}
        raise BadRequest(f"{where}: {key!r} must be {names[kind]}")
    return found


def _parameters(value: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a request, an input or an output."""
    found = value.get("parameters")
    return found if isinstance(found, dict) else {}


def _tensor(entry: Any, data: memoryview, where: str) -> tuple[Tensor, memoryview]:
    """One input, and the binary data that are left."""
    name, datatype = _get(entry, "name", str, where), _get(entry, "datatype", str, where)
    where = f"{where} ({name[:100]!r})"
    shape = _get(entry, "shape", list, where)
    if datatype not in DATATYPES:
        raise BadRequest(f"{where}: no datatype {datatype[:100]!r}; there are {', '.join(DATATYPES)}")
    if len(shape) == 2 and shape[1] == 1:  # clients that know no vectors
        shape = shape[:1]
    if len(shape) != 1 or not isinstance(shape[0], int) or isinstance(shape[0], bool) or shape[0] < 0:
        raise BadRequest(f"{where}: its shape must be [N], or [1] for a value that all rows share")
    size = _parameters(entry).get("binary_data_size")
    if size is None:
        return Tensor(name, datatype, _from_json(entry, datatype, shape[0], where)), data
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(data):
        raise BadRequest(f"{where}: binary_data_size is {str(size)[:50]}, and {len(data)} bytes are left")
    return Tensor(name, datatype, _from_bytes(data[:size], datatype, shape[0], where)), data[size:]


def _from_json(entry: dict[str, Any], datatype: str, count: int, where: str) -> Any:
    values = _get(entry, "data", list, where)
    if len(values) == count and all(isinstance(value, list) and len(value) == 1 for value in values):
        values = [value[0] for value in values]
    if len(values) != count:
        raise BadRequest(f"{where}: {len(values)} values, and its shape says {count}")
    kinds = {"BOOL": (bool,), "BYTES": (str,), "FP16": (int, float), "FP32": (int, float), "FP64": (int, float)}
    wanted = kinds.get(datatype, (int,))
    if wrong := [v for v in values if not isinstance(v, wanted) or (isinstance(v, bool) and datatype != "BOOL")]:
        raise BadRequest(f"{where}: {str(wrong[0])[:100]} is no {datatype}")
    if datatype == "BYTES":
        return [value.encode() for value in values]
    try:
        return np.array(values, DATATYPES[datatype])
    except OverflowError:
        raise BadRequest(f"{where}: a value is no {datatype}") from None


def _from_bytes(data: memoryview, datatype: str, count: int, where: str) -> Any:
    if datatype == "BYTES":
        return list(_byte_strings(data, count, where))
    kind = np.dtype(DATATYPES[datatype])
    if len(data) != count * kind.itemsize:
        raise BadRequest(f"{where}: {len(data)} bytes, and {count} of {datatype} take {count * kind.itemsize}")
    return np.frombuffer(data, kind)


def _byte_strings(data: memoryview, count: int, where: str) -> list[bytes]:
    """Strings with their length before them, 4 bytes, little-endian."""
    found, start = [], 0
    for _ in range(count):
        end = start + 4
        if end <= len(data):
            start, end = end, end + int.from_bytes(data[start:end], "little")
        if end > len(data):
            raise BadRequest(f"{where}: fewer bytes than its {count} strings take")
        found.append(bytes(data[start:end]))
        start = end
    if start != len(data):
        raise BadRequest(f"{where}: more bytes than its {count} strings take")
    return found


def _request(tensors: Mapping[str, Tensor], encoder: Encoder, most_rows: int) -> Request:
    columns = {field.name: _column(field, tensors) for field in encoder.schema}
    lengths = {name: len(values) for name, values in columns.items()}
    rows = next((count for count in lengths.values() if count != 1), 1)
    for name, count in lengths.items():
        if count not in (1, rows):
            first = next(other for other, n in lengths.items() if n == rows)
            raise BadRequest(f"column {name!r} has {count} rows, and {first!r} has {rows}")
    if rows > most_rows:
        raise BadRequest(f"{rows} rows are more than {most_rows}; send several requests")
    encoder.check_aligned(columns)
    return Request(rows, {name: encoder.column(columns, name) for name in columns})


def _column(field: pa.Field, tensors: Mapping[str, Tensor]) -> pa.Array:
    name = field.name
    if name not in tensors:
        raise BadRequest(f"no input {name!r}; {name}.present = false says that a value is missing")
    tensor = tensors[name]
    counts = _counts(field, tensors)
    items = _items_present(field, tensors)
    present = tensors.get(f"{name}.present")
    if present is None:
        return _array(tensor, counts, items, field)
    rows = len(tensor.values) if counts is None else len(counts)
    if present.datatype != "BOOL" or len(present.values) != rows:
        raise BadRequest(f"{name}.present: must be BOOL, one for each of {rows} rows")
    # What stands in the place of a missing value is dropped unread: it need not be a value of the column.
    kept = present.values if counts is None else np.repeat(present.values, counts)
    values = list(compress(tensor.values, kept)) if tensor.datatype == "BYTES" else tensor.values[kept]
    there = Tensor(name, tensor.datatype, values)
    counts, items = (None if counts is None else counts[present.values]), (None if items is None else items[kept])
    return _array(there, counts, items, field).take(_places(present.values))


def _items_present(field: pa.Field, tensors: Mapping[str, Tensor]) -> np.ndarray | None:
    """Which values of a list column are none that is missing, bool [n]; None: all."""
    items = tensors.get(name := f"{field.name}.items.present")
    if items is None:
        return None
    values = len(tensors[field.name].values)
    if not is_list(field.type) or items.datatype != "BOOL" or len(items.values) != values:
        raise BadRequest(f"{name}: must be BOOL, one for each of {values} values of a column that holds lists")
    return np.asarray(items.values)


def _counts(field: pa.Field, tensors: Mapping[str, Tensor]) -> np.ndarray | None:
    """How many values each row of a list column has, int64 [N]; None for other columns."""
    name = field.name
    lengths = tensors.get(f"{name}.lengths")
    if not is_list(field.type):
        if lengths is not None:
            raise BadRequest(f"column {name!r} holds no lists; leave out {name}.lengths")
        return None
    if lengths is None:
        raise BadRequest(f"column {name!r} holds lists; give {name}.lengths, how many values each row has")
    counts = np.asarray(lengths.values) if lengths.datatype != "BYTES" else None
    if counts is None or counts.dtype.kind not in "iu" or (len(counts) and counts.min() < 0):
        raise BadRequest(f"{name}.lengths: must be whole numbers from 0 on")
    values = len(tensors[name].values)
    if counts.sum(dtype=np.float64) != values:
        raise BadRequest(f"{name}.lengths: their sum is not the number of values of {name!r}, {values}")
    return counts.astype(np.int64)


def _array(tensor: Tensor, counts: np.ndarray | None, items: np.ndarray | None, field: pa.Field) -> pa.Array:
    """The values of a column, or its lists where `counts` says how long they are and `items` which are not missing."""
    values = _values(tensor, field)
    if items is not None:
        values = pc.if_else(pa.array(items), values, None)
    if counts is None:
        return values
    offsets = np.concatenate(([0], np.cumsum(counts)))
    return pa.LargeListArray.from_arrays(pa.array(offsets), values)


def _places(present: np.ndarray) -> pa.Array:
    """For every row its place among those that are present; null for the others."""
    return pa.array(np.cumsum(present) - 1, mask=~present)


def _values(tensor: Tensor, field: pa.Field) -> pa.Array:
    kind = field.type.value_type if is_list(field.type) else field.type
    if tensor.datatype != "BYTES":
        return pa.array(tensor.values.astype(np.float32) if tensor.datatype == "FP16" else tensor.values)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return pa.array(tensor.values, kind)
    try:
        found = pa.array([value.decode() for value in tensor.values], pa.string())
        return found if is_string(kind) or pa.types.is_integer(kind) else found.cast(kind)
    except (UnicodeDecodeError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise BadRequest(f"column {field.name!r}: {reason}; the model wants {kind}") from None


def _wanted(value: dict[str, Any], model: ExportedModel) -> Wanted:
    all_binary = bool(_parameters(value).get("binary_data_output"))
    entries = value.get("outputs")
    there = model.signature.outputs
    if not entries:
        names = tuple(there[: len(model.tasks)])
        return Wanted(str(value.get("id", ""))[:200], names, frozenset(names if all_binary else ()))
    if not isinstance(entries, list):
        raise BadRequest("outputs: must be a list")
    names_, binary = [], set()
    for place, entry in enumerate(entries):
        name = _get(entry, "name", str, f"outputs[{place}]")
        if name not in there:
            raise _no_output(place, name, there)
        names_.append(name)
        if _parameters(entry).get("binary_data", all_binary):
            binary.add(name)
    return Wanted(str(value.get("id", ""))[:200], tuple(names_), frozenset(binary))


def _no_output(place: int, name: str, there: tuple[str, ...]) -> BadRequest:
    return BadRequest(f"outputs[{place}]: no output {name[:100]!r}; there are {', '.join(there)}")


def answer(name: str, model: ExportedModel, wanted: Wanted, scores: np.ndarray) -> tuple[bytes, int | None]:
    """The response's body, and how many bytes of it are JSON where binary data follow.

    Raises:
        BadRequest: another model than the one that the request was read for gave the scores, and it lacks an output.
    """
    outputs, data = [], []
    there = model.signature.outputs
    for place, output in enumerate(wanted.outputs):
        if output not in there:
            raise _no_output(place, output, there)
        values = np.ascontiguousarray(scores[:, there.index(output)])
        described: dict[str, Any] = {"name": output, "datatype": "FP32", "shape": [len(values)]}
        if output in wanted.binary:
            data.append(values.tobytes())
            described["parameters"] = {"binary_data_size": len(data[-1])}
        else:
            described["data"] = values
        outputs.append(described)
    body: dict[str, Any] = {"model_name": name, "model_version": model.version, "outputs": outputs}
    if wanted.id:
        body["id"] = wanted.id
    header = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    return header + b"".join(data), len(header) if data else None


def metadata(name: str, model: ExportedModel) -> dict[str, Any]:
    """What the model takes and gives."""
    inputs = []
    for column, kind in model.features.items():
        value = kind.value_type if is_list(kind) else kind
        inputs.append({"name": column, "datatype": _datatype(value), "shape": [-1]})
        if is_list(kind):
            inputs.append({"name": f"{column}.lengths", "datatype": "INT64", "shape": [-1]})
    outputs = [{"name": output, "datatype": "FP32", "shape": [-1]} for output in model.signature.outputs]
    return {"name": name, "versions": [model.version], "platform": "recmtl", "inputs": inputs, "outputs": outputs}


def _datatype(kind: pa.DataType) -> str:
    """The protocol's type for the values of a column."""
    types = pa.types
    if types.is_boolean(kind):
        return "BOOL"
    if types.is_integer(kind):
        return "UINT64" if kind == pa.uint64() else "INT64"
    return "FP64" if types.is_floating(kind) else "BYTES"
