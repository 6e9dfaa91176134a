"""An OpenAI-compatible server that says what it is told to."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Each reply is a text, a status with a header, a whole body, or a function of the question's body."""

    def __init__(self, replies):
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies, self.bodies, self.keys = list(replies), [], []
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.keys.append(self.headers.get("Authorization"))
            reply = self.server.replies.pop(0) if len(self.server.replies) > 1 else self.server.replies[0]
        reply = reply(body) if callable(reply) else reply
        status, kind = 200, "application/json"
        if isinstance(reply, int):
            status, content = reply, json.dumps({"error": {"message": f"no\nbecause {reply}"}})
        elif isinstance(reply, bytes):
            content, kind = reply.decode(), "text/html"
        else:
            message = {"role": "assistant", "content": reply}
            usage = {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100}
            content = json.dumps({"choices": [{"index": 0, "message": message}], "usage": usage})
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *args):
        pass


@contextmanager
def fake_server(replies):
    """A server of these replies; the last one is given for ever."""
    server = Server(replies)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
