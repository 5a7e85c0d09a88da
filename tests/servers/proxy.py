"""A proxy before a real server, which loses answers after the server has done what was asked, and changes what is sent."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit

NOT_PASSED = ("connection", "keep-alive", "transfer-encoding", "content-length", "accept-encoding")


@dataclass
class Proxy:
    """`base` is the server's base as it is reached through the proxy; `passed` are method and path of what went through."""

    base: str
    passed: list[tuple[str, str]] = field(default_factory=list)
    loses: Callable[[str, str], bool] = lambda method, path: False
    change: Callable[[str, bytes], bytes] = lambda method, body: body
    before: Callable[[str, str], None] = lambda method, path: None  # called before each request goes on

    def reset(self) -> None:
        """Let everything through again."""
        for name in ("loses", "change", "before"):
            setattr(self, name, getattr(Proxy, name))
        self.passed.clear()


@contextmanager
def before(target: str) -> Iterator[Proxy]:
    """A proxy on a free port of 127.0.0.1."""
    parts = urlsplit(target)
    proxy = Proxy("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def serve(self) -> None:
            method, path = self.command, self.path
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            proxy.before(method, path)
            body = proxy.change(method, body)
            connection = HTTPConnection(str(parts.hostname), parts.port, timeout=60)
            try:
                headers = {n: v for n, v in self.headers.items() if n.lower() not in NOT_PASSED}
                connection.request(method, path, body or None, headers)
                answer = connection.getresponse()
                content = answer.read().replace(parts.netloc.encode(), netloc.encode())  # its links lead here
            finally:
                connection.close()
            proxy.passed.append((method, path))
            if proxy.loses(method, path):
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in NOT_PASSED:
                    self.send_header(name, value.replace(parts.netloc, netloc))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_DELETE = serve  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    netloc = f"127.0.0.1:{server.server_address[1]}"
    proxy.base = f"http://{netloc}{parts.path.rstrip('/')}"
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
