"""`recmtl serve` in a real process: both protocols, mistakes, swaps, the end."""

from __future__ import annotations

import json
import math
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from serving import Answer, Server, as_json, infer_body, serving
from trained import FEATURE_COLUMNS

import recmtl

TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def export(esmm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of its own, to be damaged and linked to."""
    return Path(shutil.copytree(esmm / "export", tmp_path_factory.mktemp("serve") / "export"))


@pytest.fixture(scope="module")
def rows(esmm: Path, tmp_path_factory: pytest.TempPathFactory, run_recmtl) -> pa.Table:
    """The columns of the recipe's query that the model reads, and what `recmtl predict` says of them."""
    out = tmp_path_factory.mktemp("predicted") / "out"
    words = ("--keep", ",".join(FEATURE_COLUMNS), "--conditional")
    run_recmtl("predict", esmm / "export", esmm / "raw", out, *words)
    table = pq.read_table(out)
    # JSON has no infinity; NaN is missing, as null is.
    return table.filter(pa.array([value is None or not math.isinf(value) for value in table["double"].to_pylist()]))


@pytest.fixture(scope="module")
def server(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the export."""
    folder = tmp_path_factory.mktemp("log")
    with serving(export, folder / "log", "--limits.rows", 1000, "--limits.body-mb", 2, "--limits.seconds", 20) as found:
        yield found


def probabilities(answer: Answer, tasks: tuple[str, ...]) -> np.ndarray:
    assert answer.status == 200, answer.body
    return np.array([[row[task] for task in tasks] for row in answer.json["predictions"]], np.float32)


def wanted(rows: pa.Table, names: tuple[str, ...] = ("p_click", "p_like")) -> np.ndarray:
    return np.stack([rows[name].to_numpy() for name in names], axis=1)


def test_plain_rows_are_scored_as_predict_scores_them(server: Server, rows: pa.Table) -> None:
    answer = server.predict(as_json(rows.select(FEATURE_COLUMNS)))
    assert np.abs(probabilities(answer, ("click", "like")) - wanted(rows)).max() < TOLERANCE
    assert answer.json["model"] == "kinds"
    assert answer.json["version"] == answer.headers["x-model-version"]


def test_the_open_protocol_gives_the_same_in_binary_and_as_numbers(server: Server, rows: pa.Table) -> None:
    names = ("p_like_given_click", "p_click")
    outputs = [{"name": names[0], "parameters": {"binary_data": True}}, {"name": names[1]}]
    body, length = infer_body(rows.select(FEATURE_COLUMNS), outputs=outputs, id="seven")
    answer = server.call("POST", "/v2/models/kinds/infer", body, Inference_Header_Content_Length=str(length))
    assert answer.status == 200, answer.body
    header = int(answer.headers["inference-header-content-length"])
    described = json.loads(answer.body[:header])
    assert described["id"] == "seven"
    assert [(o["name"], o["datatype"], o["shape"]) for o in described["outputs"]] == [
        (name, "FP32", [len(rows)]) for name in names
    ]
    binary = np.frombuffer(answer.body[header:], np.float32)
    found = np.stack([binary, np.array(described["outputs"][1]["data"], np.float32)], axis=1)
    assert np.abs(found - wanted(rows, names)).max() < TOLERANCE


def test_what_rows_share_is_given_once(server: Server, rows: pa.Table) -> None:
    few = as_json(rows.slice(0, 20).select(FEATURE_COLUMNS))
    common = {"user": few[0]["user"], "words": few[0]["words"], "day": few[0]["day"]}
    shared = [{name: value for name, value in row.items() if name not in common} for row in few]
    spelled = server.predict([row | common for row in few])
    together = server.predict(shared, common)
    difference = probabilities(together, ("click", "like")) - probabilities(spelled, ("click", "like"))
    assert np.abs(difference).max() < TOLERANCE


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_rows(server: Server, rows: pa.Table, count: int) -> None:
    answer = server.predict(as_json(rows.slice(0, count).select(FEATURE_COLUMNS)))
    found = probabilities(answer, ("click", "like")).reshape(count, 2)
    assert np.abs(found - wanted(rows.slice(0, count))).max(initial=0) < TOLERANCE


def test_metadata_and_health(server: Server, export: Path) -> None:
    model = recmtl.load(export)
    described = server.call("GET", "/v2/models/kinds").json
    assert described["versions"] == [model.version]
    inputs = {entry["name"]: entry["datatype"] for entry in described["inputs"]}
    assert set(model.features) <= set(inputs)
    assert (inputs["item"], inputs["flag"], inputs["double"], inputs["text"]) == ("INT64", "BOOL", "FP64", "BYTES")
    assert inputs["words.lengths"] == "INT64"
    assert [entry["name"] for entry in described["outputs"]] == list(model.signature.outputs)
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/kinds/ready", "/v2"):
        assert server.call("GET", path).status == 200


MISTAKES = {
    "not JSON": (b"{", "body: not JSON"),
    "no object": (b"[]", "body: must be an object"),
    "deep": (b'{"rows": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "body: not JSON"),
    "no rows": (b'{"common": {}}', "rows: must be a list"),
    "unknown key": (b'{"rows": [], "row": []}', "no key 'row'"),
    "rows of numbers": (b'{"rows": [1]}', "rows: must be a list of objects"),
    "NaN": (b'{"rows": [{"price": NaN}]}', "body: not JSON"),
    "no text": (b'{"rows": [{"text": "\xff"}]}', "body: not JSON"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_body_is_one_line(server: Server, name: str) -> None:
    body, line = MISTAKES[name]
    answer = server.call("POST", "/predict", body)
    assert answer.status == 400
    assert line in answer.json["error"]
    assert "\n" not in answer.json["error"]


WRONG = {
    "user": (7, "column 'user'"),
    "item": ("seven", "column 'item'"),
    "price": ("cheap", "column 'price'"),
    "day": ("yesterday", "column 'day'"),
    "flag": ([True], "column 'flag'"),
    "words": ("a", "column 'words'"),
    "place": ({"a": 1}, "column 'place'"),
}


@pytest.mark.parametrize("column", WRONG)
def test_a_wrong_value_names_its_column(server: Server, rows: pa.Table, column: str) -> None:
    value, line = WRONG[column]
    row = as_json(rows.slice(3, 1).select(FEATURE_COLUMNS))[0]
    answer = server.predict([row | {column: value}])
    assert answer.status == 400, answer.body
    assert line in answer.json["error"]
    absent = server.predict([row, {name: value for name, value in row.items() if name != column}])
    assert absent.status == 400
    assert f"rows[1]: no column '{column}'" in absent.json["error"]
    assert server.predict([row | {column: None}]).status == 200


def test_too_much_is_refused(server: Server, rows: pa.Table) -> None:
    row = as_json(rows.slice(0, 1).select(FEATURE_COLUMNS))[0]
    assert "more than 1000" in server.predict([row] * 1001).json["error"]
    large = server.predict([row | {"text": "x" * 3_000_000}])
    assert (large.status, large.json["error"]) == (413, "body: more than 2 MB; send several requests")
    assert server.predict([row | {"text": "x" * 1_000_000}]).status == 200
    assert server.call("POST", "/v2/models/other/infer", b"{}").status == 404
    assert server.call("GET", "/predict").status == 405


def test_mistakes_of_the_open_protocol(server: Server, rows: pa.Table) -> None:
    body, length = infer_body(rows.slice(0, 2).select(FEATURE_COLUMNS))

    def error(body: bytes, length: int | str) -> str:
        answer = server.call("POST", "/v2/models/kinds/infer", body, Inference_Header_Content_Length=str(length))
        assert answer.status == 400, answer.body
        return answer.json["error"]

    header, data = json.loads(body[:length]), body[length:]

    def changed(place: int, **fields: object) -> tuple[bytes, int]:
        inputs = [entry | fields if number == place else entry for number, entry in enumerate(header["inputs"])]
        text = json.dumps({"inputs": inputs}).encode()
        return text + data, len(text)

    assert "of a body of" in error(body, len(body) + 1)
    assert "is no number of bytes" in error(body, "many")
    assert "bytes after the last tensor" in error(body + b"x", length)
    assert "bytes are left" in error(body[:-1], length)
    assert "no datatype 'INT65'" in error(*changed(0, datatype="INT65"))
    assert "its shape must be" in error(*changed(0, shape=[2, 2]))
    assert "bytes, and 3 of FP64 take 24" in error(*changed(0, shape=[3]))
    assert "no input 'place'" in error(*changed(0, name="other"))
    assert "'name' must be a string" in error(*changed(0, name=7))


def test_slow_and_broken_clients_are_no_matter_of_the_others(server: Server, rows: pa.Table) -> None:
    def half(text: bytes) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", server.port))
        client.sendall(text)
        return client

    clients = [half(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{") for _ in range(20)]
    clients += [half(b"POST /predict HT"), half(b"\x00\x01\x02\r\n\r\n"), half(b"GET / HTTP/9.9\r\n\r\n")]
    row = as_json(rows.slice(0, 1).select(FEATURE_COLUMNS))[0]
    assert server.predict([row]).status == 200
    for client in clients:
        client.close()
    assert server.predict([row]).status == 200
    assert server.process.poll() is None


def test_many_clients_at_once_get_their_own_rows(server: Server, rows: pa.Table) -> None:
    every = as_json(rows.select(FEATURE_COLUMNS))
    right = wanted(rows)
    wrong: list[str] = []

    def client(start: int) -> None:
        for first in range(start, start + 10):
            count = 1 + first % 7
            answer = server.predict(every[first : first + count])
            if answer.status != 200:
                wrong.append(answer.body.decode())
            elif np.abs(probabilities(answer, ("click", "like")) - right[first : first + count]).max() > TOLERANCE:
                wrong.append(f"rows {first} to {first + count}")
            if server.predict([{**every[first], "item": "text"}]).status != 400:
                wrong.append("a mistake passed")

    threads = [threading.Thread(target=client, args=(30 * number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_metrics_tell_of_rows_mistakes_and_unseen_values(server: Server, rows: pa.Table) -> None:
    row = as_json(rows.slice(0, 1).select(FEATURE_COLUMNS))[0]
    lines = ('recmtl_unseen_values_total{feature="user"}', 'recmtl_missing_rows_total{feature="day"}')
    count = "recmtl_requests_total"
    ok, bad = f'{count}{{path="/predict",status="200"}}', f'{count}{{path="/predict",status="400"}}'
    before = [server.metric(line) for line in (*lines, ok, bad, "recmtl_rows_total")]
    server.predict([row | {"user": "nobody", "day": None}] * 3)
    server.predict([{}])
    after = [server.metric(line) for line in (*lines, ok, bad, "recmtl_rows_total")]
    assert [b - a for a, b in zip(before, after, strict=True)] == [3, 3, 1, 1, 3]


def test_access_log_is_json(server: Server) -> None:
    server.call("GET", "/v2/nothing")
    until = time.monotonic() + 30
    # The line is written after the answer, which so does not wait for it.
    while "/v2/nothing" not in server.log.read_text() and time.monotonic() < until:
        time.sleep(0.05)
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    last = [line for line in lines if line.get("path") == "/v2/nothing"][-1]
    assert last["status"] == 404
    assert last["level"] == "info"


def test_a_link_that_leads_elsewhere_is_followed_and_a_damaged_export_is_not(
    export: Path, rows: pa.Table, tmp_path: Path
) -> None:
    row = as_json(rows.slice(0, 1).select(FEATURE_COLUMNS))[0]
    other = Path(shutil.copytree(export, tmp_path / "other"))
    # Another export of the same model: its card differs, and so does its version.
    (other / "README.md").write_text("another card\n")
    from recmtl.inference.manifest import write_manifest

    (other / "manifest.json").unlink()
    write_manifest(other)
    damaged = Path(shutil.copytree(export, tmp_path / "damaged"))
    with (damaged / "config.toml").open("a") as file:
        file.write("\n")
    live = tmp_path / "live"
    live.symlink_to(export)

    def lead_to(folder: Path) -> None:
        (tmp_path / "next").symlink_to(folder)
        (tmp_path / "next").rename(live)

    def wait(line: str) -> None:
        for _ in range(300):
            if line in server.log.read_text():
                return
            time.sleep(0.1)
        raise AssertionError(server.log.read_text())

    with serving(live, tmp_path / "log", "--watch-seconds", 0.1) as server:
        first = server.predict([row]).json["version"]
        lead_to(damaged)
        wait("config.toml: damaged")
        assert server.predict([row]).json["version"] == first
        lead_to(other)
        wait("taken over")
        assert server.predict([row]).json["version"] == recmtl.load(other).version != first
        assert server.metric("recmtl_model_swaps_total") == 2
        assert server.metric("recmtl_model_refusals_total") == 1


def test_sigterm_answers_what_was_accepted(export: Path, rows: pa.Table, tmp_path: Path) -> None:
    every = as_json(rows.select(FEATURE_COLUMNS))
    found: list[Answer] = []
    with serving(export, tmp_path / "log") as server:
        threads = [threading.Thread(target=lambda: found.append(server.predict(every))) for _ in range(6)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 30
        while server.metric("recmtl_rows_total") == 0 and time.monotonic() < until:
            time.sleep(0.01)
        code = server.stop()
        for thread in threads:
            thread.join()
    assert code in (0, 143)
    assert [answer.status for answer in found] == [200] * len(threads)


def test_what_was_scored_is_written(export: Path, rows: pa.Table, tmp_path: Path) -> None:
    with serving(export, tmp_path / "log", "--log-features", tmp_path / "features") as server:
        answer = server.predict(as_json(rows.select(FEATURE_COLUMNS)))
        server.stop()
    written = pq.read_table(tmp_path / "features")
    assert written.num_rows == rows.num_rows
    assert set(written["model_version"].to_pylist()) == {answer.json["version"]}
    assert np.abs(wanted(written) - wanted(rows)).max() < TOLERANCE
    for name in ("user", "item", "day", "price", "words"):
        assert written[name].to_pylist() == rows[name].to_pylist()


def test_several_workers_serve_and_count_together(export: Path, rows: pa.Table, tmp_path: Path) -> None:
    few = as_json(rows.slice(0, 3).select(FEATURE_COLUMNS))
    with serving(export, tmp_path / "log", "--workers", 2) as server:
        for _ in range(8):
            answer = server.predict(few)
            assert np.abs(probabilities(answer, ("click", "like")) - wanted(rows.slice(0, 3))).max() < TOLERANCE
        assert server.metric("recmtl_rows_total") == 24
        assert server.stop() in (0, 143)


def test_mistakes_at_the_start_are_one_line(export: Path, tmp_path: Path, run_recmtl) -> None:
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    port = taken.getsockname()[1]
    for words, line in (
        ((tmp_path / "nothing",), "no such folder"),
        ((tmp_path,), "is no export"),
        ((export, "--port", port), f"--port {port}: cannot listen there"),
        ((export, "--workers", 0), "--workers"),
        ((export, "--limits.seconds", "nan"), "--limits.seconds"),
    ):
        done = run_recmtl("serve", *words)
        assert done.returncode == 2
        assert line in done.stderr
        assert len(done.stderr.splitlines()) == 1
