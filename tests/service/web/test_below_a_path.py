"""The page in a real browser, behind a proxy that serves the API below /ml."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from playwright.sync_api import expect

from tests.helpers.browser import Open, photo, read_mask
from tests.helpers.service_fixtures import Place, http_api

_HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive"}


@contextmanager
def _proxy(api: httpx.Client, *, strips: bool, announces: bool) -> Iterator[httpx.Client]:
    """A proxy that knows the API below /ml alone, as nginx, Traefik and Caddy are set up; yields a client of it."""

    class Forward(BaseHTTPRequestHandler):
        def _forward(self) -> None:
            if not self.path.startswith("/ml"):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {**dict(self.headers), **({"X-Forwarded-Prefix": "/ml"} if announces else {})}
            path = (self.path.removeprefix("/ml") or "/") if strips else self.path
            upstream = http.client.HTTPConnection("127.0.0.1", api.base_url.port or 0, timeout=70)
            upstream.request(self.command, path, body or None, headers)
            answer = upstream.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in {*_HOP_BY_HOP, "content-length", "date"}:
                    self.send_header(name, value)
            if answer.status not in (204, 304):
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            upstream.close()

        do_GET = do_HEAD = do_POST = do_DELETE = _forward  # noqa: N815 (http.server's names)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Forward)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.server_port}/ml/", timeout=70) as client:
            yield client
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("settings", "strips", "announces"),
    [
        ({"root_path": "/ml"}, True, False),
        ({"root_path": "/ml"}, False, False),
        ({"trusted_proxies": "127.0.0.1"}, True, True),
    ],
    ids=["root path, stripped", "root path, passed on", "X-Forwarded-Prefix"],
)
def test_the_page_works_below_a_path(
    place: Place, visit: Open, settings: dict[str, str], strips: bool, announces: bool
) -> None:
    with http_api(place, **settings) as api, _proxy(api, strips=strips, announces=announces) as outside:
        content, page = photo(), visit(outside)
        page.make(content, "cat", "bowl")
        mask = outside.get(f"jobs/{page.job_id()}/mask.png").content
        page.wait_for_mask(mask, share=1)
        assert read_mask(page.download("Mask PNG")).shape == read_mask(mask).shape
        assert page.download("Overlay PNG")
        page.slide("Background threshold", 0.9)
        expect(page.page.locator("#reset")).to_be_visible()
        page.page.reload()
        page.page.locator(".entry").first.click()  # from the history
        page.is_in("result")
        page.page.get_by_role("link", name="API").click()
        expect(page.page.locator("details.call").first).to_be_visible()
        expect(page.page.locator("#calls")).to_contain_text("/pseudo-mask")
