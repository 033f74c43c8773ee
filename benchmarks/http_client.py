"""One client of an HTTP server, a process that needs nothing but Python: it sends requests one after the other.

    python http_client.py PORT FIRST < REQUESTS

The requests, whole with their headers, are on standard input, each after its length in 4 bytes. The client says
"ready" and waits for a line. It sends requests from the FIRST on, round and round, for as many seconds as the line
says, and prints a JSON object: the milliseconds of each, how many had another status than 200, and its own CPU seconds.
"""

from __future__ import annotations

import json
import socket
import sys
import time


def read_requests() -> list[bytes]:
    """The requests on standard input; 0 ends them."""
    found = []
    while length := int.from_bytes(sys.stdin.buffer.read(4), "little"):
        found.append(sys.stdin.buffer.read(length))
    return found


def exchange(connection: socket.socket, request: bytes) -> bytes:
    """The status line's code of the answer to a request, once it is read whole."""
    connection.sendall(request)
    data = connection.recv(65536)
    while (end := data.find(b"\r\n\r\n")) < 0:
        data += _more(connection)
    head = data[:end].lower()
    length = int(head[head.index(b"content-length:") + 15 :].split(b"\r\n", 1)[0])
    left = length - (len(data) - end - 4)
    while left > 0:
        left -= len(_more(connection))
    return head.split(b" ", 2)[1]


def _more(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise ConnectionError("the server closed the connection")
    return data


def main() -> None:
    """Send and time."""
    port, first = map(int, sys.argv[1:])
    requests = read_requests()
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    exchange(connection, requests[first % len(requests)])
    print("ready", flush=True)
    until = float(sys.stdin.buffer.readline()) + time.perf_counter()
    milliseconds, failed, cpu = [], 0, time.process_time()
    while (began := time.perf_counter()) < until:
        first += 1
        failed += exchange(connection, requests[first % len(requests)]) != b"200"
        milliseconds.append(round(1000 * (time.perf_counter() - began), 3))
    print(json.dumps({"milliseconds": milliseconds, "failed": failed, "cpu": time.process_time() - cpu}))


if __name__ == "__main__":
    main()
