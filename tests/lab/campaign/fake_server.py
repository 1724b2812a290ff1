"""A scripted OpenAI-compatible server on the standard library alone: behaves, or misbehaves as told.

    python fake_server.py --script '{"2": "exit"}' [the flags of `headrace serve`]

The script maps a value of --max-num-seqs to a behaviour, so that a plan can sweep over behaviours.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behaviour = "good"
    seats = ""
    models: tuple[str, ...] = ()
    served = 0
    lock = threading.Lock()

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(503 if self.behaviour == "never ready" else 200, {})
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
                f'vllm:num_preemptions_total{{engine="0"}} {Handler.served}.0\n',
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
        if self.behaviour == "freezes" and count == 3:
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.behaviour == "500":
            return self.answer(500, {"error": {"message": "nothing works today"}})
        if body["model"] not in self.models:
            return self.answer(404, {"error": {"message": "no such model"}})
        if self.behaviour == "slow":
            time.sleep(0.2)
        return self.stream(body)

    def stream(self, body: dict) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        tokens = body["max_tokens"]
        for _ in range(tokens):
            self.event({"choices": [{"index": 0, "text": " word", "finish_reason": None}]})
        self.event({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
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
    if behaviour == "never listens":
        time.sleep(600)
    if behaviour == "leaves a worker":
        worker = [sys.executable, "-c", "import time; time.sleep(600)"]
        subprocess.Popen(worker, start_new_session=True)
    Handler.behaviour = behaviour
    Handler.seats = known.max_num_seqs
    Handler.models = ("somebody-else",) if behaviour == "wrong model" else tuple(known.served_model_name)
    server = Server(("127.0.0.1", known.port), Handler)
    # shutdown() waits for the loop that this very thread runs, so it must come from another.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever(poll_interval=0.02)


if __name__ == "__main__":
    main()
