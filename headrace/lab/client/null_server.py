"""A server that answers at a wanted rate and does nothing else: what the client can do is measured against it.

`python -m headrace.lab.client.null_server [--cpu N] [--first]` prints its port and serves until its standard input ends
(`--first` takes precedence over other processes, as root).  A body
says how: `max_tokens` events, `null_gap_us` apart (0: as fast as they can be written), the first after
`null_first_us`.  Each event's text is the time at which it was written, in nanoseconds of the monotonic clock that all
processes of a machine share: what a client's stamp is later by is the client's own (and the kernel's) delay.
"""

from __future__ import annotations

import heapq
import json
import os
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field

from headrace.lab.client.calibration import STAMP_DIGITS

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_BEFORE = b'data: {"id":"null","object":"text_completion","choices":[{"index":0,"text":" '
_AFTER = b'","finish_reason":null}]}\n\n'
_SIZE = b"%x\r\n" % (len(_BEFORE) + STAMP_DIGITS + len(_AFTER))
_EVENT = _SIZE + _BEFORE + b"%018d" + _AFTER + b"\r\n"
_MODELS = b'{"object":"list","data":[{"id":"null","object":"model","max_model_len":1000000}]}'
_POLL_EVERY = 64  # events between looks at the sockets
_SPIN_NS = 100_000  # the system's timers are late by about as much
_LATE_NS = 1_000_000  # behind by so much, the server delays all streams instead of catching up in a burst


@dataclass(slots=True)
class _Stream:
    sock: socket.socket
    left: int
    gap_ns: int
    total: int
    prompt_tokens: int
    waiting: bytes = b""  # what the client's window had no room for


@dataclass(slots=True)
class _Peer:
    sock: socket.socket
    received: bytes = b""
    streams: list[_Stream] = field(default_factory=list)


class NullServer:
    """Own loop, plain sockets: an event costs one formatting and one send."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._due: list[tuple[int, int, _Stream]] = []
        self._number = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._stop = False
        self._shift_ns = 0  # how much later than planned all streams are

    def run(self) -> None:
        """Serve until the standard input ends."""
        self._selector.register(sys.stdin, selectors.EVENT_READ)
        now = time.perf_counter_ns
        due = self._due
        while not self._stop:
            wait_ns = due[0][0] + self._shift_ns - now() if due else 1_000_000_000
            if wait_ns < -_LATE_NS:
                self._shift_ns -= wait_ns
            if wait_ns > _SPIN_NS:
                if due and wait_ns < 2_000_000:
                    time.sleep((wait_ns - _SPIN_NS // 2) / 1e9)
                    self._poll(0)
                else:
                    self._poll((wait_ns - _SPIN_NS) / 1e9)
                continue
            self._poll(0)
            for _ in range(_POLL_EVERY):
                if not due or due[0][0] + self._shift_ns > now():
                    break
                self._event(due[0][2])

    def _event(self, stream: _Stream) -> None:
        """Write the event that is due first, and put the stream back in line."""
        due_ns, number, _ = self._due[0]
        if stream.left <= 1:
            heapq.heappop(self._due)
        else:
            heapq.heapreplace(self._due, (due_ns + stream.gap_ns, number, stream))
        data = _EVENT % time.perf_counter_ns()
        stream.left -= 1
        if stream.left <= 0:
            data += _end(stream)
        try:
            if stream.waiting:
                data, stream.waiting = stream.waiting + data, b""
            sent = stream.sock.send(data)
            if sent < len(data):
                stream.waiting = data[sent:]
        except BlockingIOError:
            stream.waiting = data
        except OSError:
            stream.left = 0  # the client has gone; its socket's end is read below
        if stream.left <= 0 and stream.waiting:
            stream.sock.setblocking(True)
            stream.sock.sendall(stream.waiting)
            stream.sock.setblocking(False)

    def _poll(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj is sys.stdin:
                self._stop = not os.read(0, 1000)
            else:
                self._read(key.data)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(sock, selectors.EVENT_READ, _Peer(sock))

    def _read(self, peer: _Peer) -> None:
        try:
            data = peer.sock.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(peer.sock)
            peer.sock.close()
            return
        peer.received += data
        while (end := peer.received.find(b"\r\n\r\n")) >= 0:
            head = peer.received[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(peer.received) < end + 4 + length:
                return
            body, peer.received = peer.received[end + 4 : end + 4 + length], peer.received[end + 4 + length :]
            self._answer(peer, head, body)

    def _answer(self, peer: _Peer, head: bytes, body: bytes) -> None:
        if not head.startswith(b"post") or b"completions" not in head.split(b"\r\n", 1)[0]:
            status = b"200 OK" if b"/v1/models" in head.split(b"\r\n", 1)[0] else b"404 Not Found"
            answer = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            peer.sock.sendall(answer % (status, len(_MODELS), _MODELS))
            return
        asked = json.loads(body)
        total = int(asked.get("max_tokens") or asked.get("max_completion_tokens") or 1)
        prompt = asked.get("prompt", "")
        stream = _Stream(peer.sock, total, int(asked.get("null_gap_us", 0)) * 1000, total, len(prompt))
        peer.sock.send(_HEAD)
        self._number += 1
        # Streams that begin together would write together: each has a phase of its own.
        phase_ns = int(self._number * 0.618034 % 1.0 * stream.gap_ns)
        first_ns = time.perf_counter_ns() - self._shift_ns + int(asked.get("null_first_us", 0)) * 1000 + phase_ns
        heapq.heappush(self._due, (first_ns, self._number, stream))


def _end(stream: _Stream) -> bytes:
    usage = {
        "prompt_tokens": stream.prompt_tokens,
        "completion_tokens": stream.total,
        "total_tokens": stream.prompt_tokens + stream.total,
    }
    texts = [
        json.dumps({"id": "null", "choices": [{"index": 0, "text": "", "finish_reason": "length"}]}),
        json.dumps({"id": "null", "choices": [], "usage": usage}),
        "[DONE]",
    ]
    payload = "".join(f"data: {text}\n\n" for text in texts).encode()
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(payload), payload)


def main() -> None:
    if "--cpu" in sys.argv:
        os.sched_setaffinity(0, {int(sys.argv[sys.argv.index("--cpu") + 1])})
    if "--first" in sys.argv:  # before the machine's other work; Linux groups processes by session
        os.setsid()
        with open("/proc/self/autogroup", "w") as group:
            group.write("-20")
        os.nice(-20)
    server = NullServer()
    print(server.port, flush=True)
    server.run()


if __name__ == "__main__":
    main()
