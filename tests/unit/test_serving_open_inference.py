"""The Open Inference Protocol without a server: what a request says, and what a model that took over may lack."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from recmtl.encoding.encoder import Encoder
from recmtl.serving import open_inference
from recmtl.serving.columns import BadRequest

OUTPUTS = ("p_click", "p_buy", "p_buy_given_click")


def model(outputs: tuple[str, ...] = OUTPUTS, **columns: pa.DataType) -> SimpleNamespace:
    """What of a model the protocol looks at."""
    schema = pa.schema(list(columns.items()))
    return SimpleNamespace(
        encoder=Encoder((), (), {}, schema),
        signature=SimpleNamespace(outputs=outputs),
        tasks=("click", "buy"),
        version="0123456789ab",
    )


def parse(of: SimpleNamespace, *inputs: dict, **more: object) -> tuple:
    return open_inference.parse(json.dumps({"inputs": inputs, **more}).encode(), None, of, 100)


def tensor(name: str, datatype: str, data: list) -> dict:
    return {"name": name, "datatype": datatype, "shape": [len(data)], "data": data}


MISSING = {
    "day": (pa.date32(), "2026-01-31", ["", "never"]),
    "moment": (pa.timestamp("us"), "2026-01-31 12:00:00", ["", "now"]),
    "price": (pa.decimal128(9, 2), "19.90", ["", "free"]),
    "text": (pa.string(), "a", ["", "b"]),
}


@pytest.mark.parametrize("name", MISSING)
def test_what_stands_for_a_missing_value_is_not_read(name: str) -> None:
    kind, value, others = MISSING[name]
    inputs = tensor(name, "BYTES", [others[0], value, others[1]])
    request, _ = parse(model(**{name: kind}), inputs, tensor(f"{name}.present", "BOOL", [False, True, False]))
    assert request.columns[name].equals(pa.array([None, value, None]).cast(kind))
    if kind != pa.string():
        with pytest.raises(BadRequest, match=f"column '{name}'"):
            parse(model(**{name: kind}), inputs)


def test_what_stands_for_a_missing_list_is_not_read() -> None:
    days = tensor("days", "BYTES", ["2026-01-31", "never", "2026-02-01", "2026-02-02"])
    lengths = tensor("days.lengths", "UINT64", [1, 1, 0, 2])
    present = tensor("days.present", "BOOL", [True, False, True, True])
    request, _ = parse(model(days=pa.list_(pa.date32())), days, lengths, present)
    found = [value and list(map(str, value)) for value in request.columns["days"].to_pylist()]
    assert found == [["2026-01-31"], None, [], ["2026-02-01", "2026-02-02"]]
    with pytest.raises(BadRequest, match="must be BOOL, one for each of 4 rows"):
        parse(model(days=pa.list_(pa.date32())), days, lengths, tensor("days.present", "BOOL", [True]))


def test_an_output_that_the_model_which_took_over_lacks_is_a_mistake_of_one_line() -> None:
    columns = {"item": pa.int64()}
    wanted = [{"name": "p_buy"}, {"name": "p_buy_given_click"}]
    _, found = parse(model(**columns), tensor("item", "INT64", [1, 2]), outputs=wanted)
    scores = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], np.float32)
    body, length = open_inference.answer("shop", model(**columns), found, scores)
    assert length is None
    assert [output["name"] for output in json.loads(body)["outputs"]] == ["p_buy", "p_buy_given_click"]
    with pytest.raises(BadRequest) as caught:
        open_inference.answer("shop", model(OUTPUTS[:2], **columns), found, scores[:, :2])
    assert str(caught.value) == "outputs[1]: no output 'p_buy_given_click'; there are p_click, p_buy"
    assert caught.value.status == 400
