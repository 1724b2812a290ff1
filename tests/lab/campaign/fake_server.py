"""A scripted OpenAI-compatible server on the standard library alone: behaves, or misbehaves as told.

    python fake_server.py --script '{"2": "exit"}' [the flags of `headrace serve`]

The script maps a value of --max-num-seqs to a behaviour, so that a plan can sweep over behaviours.
Every way to misbehave is in `Handler.do_POST`, `Handler.stream` or `main`, under its name.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# behaviour -> the answer to every completion
STATUSES: dict[str, tuple[int, dict | str]] = {
    "500": (500, {"error": {"message": "nothing works today"}}),
    "401": (401, {"error": {"message": "A valid API key is needed"}}),
    "429": (429, {"error": {"message": "too many requests"}}),
    "completions are missing": (404, "404 page not found"),
    "an error page": (200, "<!doctype html><title>Bad gateway</title>"),
    "redirects": (302, ""),
}
# behaviour -> the body of every stream
RAW = {
    "garbage": b"\x00\xff\xfe\x7f no events here\n\n" * 3,
    "half a character": b'data: {"choices": [{"index": 0, "text": "\xe2\x82',
    "truncated JSON": b'data: {"choices": [{"index": 0, "te\n\n',
    "no choices": b'data: {"object": "ping"}\n\ndata: [DONE]\n\n',
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behaviour = "good"
    seats = ""
    models: tuple[str, ...] = ()
    served = 0
    tokens = 0
    lock = threading.Lock()

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(503 if self.behaviour in ("never ready", "loads for ever") else 200, {})
        elif any(os.environ.get(name) for name in ("HEADRACE_API_KEY", "VLLM_API_KEY")):  # as `headrace serve` does
            self.answer(401, {"error": {"message": "A valid API key is needed"}})
        elif self.path == "/v1/models":
            self.answer(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})
        elif self.path == "/version":
            self.answer(200, {"version": "fake-1"})
        elif self.path == "/metrics":
            size = 32 if self.behaviour == "other block size" else 16
            self.answer(
                200,
                f'vllm:cache_config_info{{block_size="{size}",num_gpu_blocks="100"}} 1.0\n'
                f'headrace:config_info{{dtype="float32",max_num_seqs="{self.seats}"}} 1.0\n'
                f'vllm:num_preemptions_total{{engine="0"}} {Handler.served}.0\n'
                f'vllm:generation_tokens_total{{engine="0"}} {Handler.tokens}.0\n',
            )
        else:
            self.answer(404, {"error": {"message": "no such page"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            Handler.served += 1
            count = Handler.served
        if self.behaviour == "dies" and count == 3:
            print("RuntimeError: the roof fell in", file=sys.stderr, flush=True)
            os._exit(3)
        if self.behaviour == "is killed" and count == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.behaviour == "dies of memory" and count == 3:
            print("torch.OutOfMemoryError: tried to allocate 8 GiB", file=sys.stderr, flush=True)
            os._exit(1)
        if self.behaviour == "freezes" and count == 3:
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.behaviour in STATUSES:
            status, text = STATUSES[self.behaviour]
            return self.answer(status, text)
        if self.behaviour == "resets":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()  # it holds the socket open
            return self.connection.close()
        if self.behaviour == "fails one in three" and count % 3 == 0:
            return self.answer(500, {"error": {"message": "not this one"}})
        if body["model"] not in self.models:
            return self.answer(404, {"error": {"message": "no such model"}})
        if self.behaviour == "slow":
            time.sleep(0.2)
        if self.behaviour.startswith("takes "):  # "takes 50 ms"
            time.sleep(float(self.behaviour.split()[1]) / 1000)
        return self.stream(body)

    def stream(self, body: dict) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        tokens = body["max_tokens"]
        if self.behaviour == "empty answers":
            return
        if self.behaviour in RAW:
            self.wfile.write(RAW[self.behaviour])
            return
        for number in range(tokens):
            if number == 1 and self.behaviour == "closes early":
                return
            if number == 1 and self.behaviour == "error in the middle":
                self.event({"error": {"message": "the engine is dead", "code": 500}})
                return
            if number == 1 and self.behaviour == "hangs in mid-stream":
                time.sleep(600)
            with self.lock:
                Handler.tokens += 1
            self.event({"choices": [{"index": 0, "text": " word", "finish_reason": None}]})
        while self.behaviour == "never ends":
            with self.lock:
                Handler.tokens += 1
            self.event({"choices": [{"index": 0, "text": " word", "finish_reason": None}]})
            time.sleep(0.05)
        self.event({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
        if self.behaviour != "no usage":
            usage = {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}
            self.event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, data: dict) -> None:
        self.wfile.write(b"data: " + json.dumps({"object": "text_completion", **data}).encode() + b"\n\n")

    def answer(self, status: int, data: dict | str) -> None:
        body = data.encode() if isinstance(data, str) else json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(data, str) else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--script", type=json.loads, default={})
    parser.add_argument("--port", type=int)
    parser.add_argument("--served-model-name", nargs="+")
    parser.add_argument("--max-num-seqs", default="")
    known, _ = parser.parse_known_args()
    behaviour = known.script.get(known.max_num_seqs, "good")
    print(f"fake server: {behaviour}", flush=True)
    if behaviour == "exit":
        sys.exit("ValueError: this cannot work")
    if behaviour == "refuse":
        print("R10: To serve at least one request with the model's max seq len (512), 9 GiB", file=sys.stderr)
        sys.exit(2)
    if behaviour == "out of memory":
        raise MemoryError
    if behaviour == "port taken":
        sys.exit("OSError: [Errno 98] error while attempting to bind on address: address already in use")
    if behaviour == "disk full":
        sys.exit("OSError: [Errno 28] No space left on device: '/cache'")
    if behaviour == "says out of memory and hangs":
        print(
            "(Worker pid=7) ERROR 01-01 00:00:00 [worker.py:1] torch.OutOfMemoryError: CUDA out of memory", flush=True
        )
        time.sleep(600)
    if behaviour == "gives up and hangs":  # as vLLM 0.32 does
        print("(EngineCore pid=7) ERROR 01-01 00:00:00 [core.py:1] EngineCore failed to start.", flush=True)
        print("(EngineCore pid=7) ERROR 01-01 00:00:00 [core.py:1] ValueError: no such head size", flush=True)
        time.sleep(600)
    if behaviour == "never listens":
        time.sleep(600)
    if behaviour == "loads for ever":
        print("INFO 01-01 00:00:00 [loader.py:1] Loading safetensors checkpoint shards: 12%", flush=True)
    if behaviour == "floods its log":
        print("x" * 100 + "\n", end="", flush=True)
        threading.Thread(target=lambda: [print("y" * 1000) for _ in range(20_000)], daemon=True).start()
    if behaviour == "leaves a worker":
        worker = [sys.executable, "-c", "import time; time.sleep(600)"]
        subprocess.Popen(worker, start_new_session=True)
        subprocess.Popen(worker)
    Handler.behaviour = behaviour
    Handler.seats = known.max_num_seqs
    Handler.models = ("somebody-else",) if behaviour == "wrong model" else tuple(known.served_model_name)
    server = Server(("127.0.0.1", known.port), Handler)
    if behaviour == "ignores SIGTERM":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        server.serve_forever(poll_interval=0.02)
    # shutdown() waits for the loop that this very thread runs, so it must come from another.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever(poll_interval=0.02)


if __name__ == "__main__":
    main()
