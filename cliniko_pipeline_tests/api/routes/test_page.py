"""Tests of the page's files over HTTP: their content and headers, and the refusal of other files."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cliniko_pipeline.runtime import open_runtime
from cliniko_pipeline.settings import load_settings
from cliniko_pipeline_tests.support import services
from cliniko_pipeline_tests.support.api_servers import served

PAGE = Path(__file__).parents[3] / "cliniko_pipeline" / "api" / "page"
FILES = sorted(path.name for path in PAGE.iterdir() if path.name != "index.html")
REFERENCE = re.compile(r"""(?:(?:src|href)=|from |import )["']([^"'#]+)""")
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
SAFE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cache-control": "no-cache",
}.items()


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    # The page needs neither the database nor Dagster.
    settings = load_settings({"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nowhere"})
    with open_runtime(settings) as runtime, served(runtime) as address, services.client(address) as opened:
        yield opened


@pytest.mark.parametrize("path", ["/", *(f"/page/{name}" for name in FILES)])
def test_file_is_served_with_its_type_and_policy(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    stored = PAGE / ("index.html" if path == "/" else path.rpartition("/")[2])
    assert answer.content == stored.read_bytes()
    kinds = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    assert answer.headers["Content-Type"].partition(";")[0] == kinds[stored.suffix[1:]]
    policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
    assert policy == POLICY
    assert dict(answer.headers).items() >= SAFE
    head = client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    del answer.headers["date"], head.headers["date"]
    assert head.headers == answer.headers


def test_unchanged_file_is_304(client: httpx.Client) -> None:
    etag = client.get("/page/page.css").headers["ETag"]
    for sent in (etag, f'"another", W/{etag}'):
        again = client.get("/page/page.css", headers={"If-None-Match": sent})
        assert (again.status_code, again.content) == (304, b"")
        assert "Content-Security-Policy" in again.headers
    assert client.get("/page/app.js", headers={"If-None-Match": etag}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/page/../page_routes.py",
        "/page/..%2fpage_routes.py",
        "/page/%2e%2e%2fpage_routes.py",
        "/page/..%5cpage_routes.py",
        "/page//etc/passwd",
        "/page/%2fetc%2fpasswd",
        "/page/app.js%00.html",
        "/page/nothing.js",
        "/page/",
        "/page",
        "/page/index.html",
        "/docs",
        "/redoc",
    ],
)
def test_unknown_path_is_404(client: httpx.Client, path: str) -> None:
    # A socket is used, because an HTTP client would normalize the path.
    to = client.base_url
    with socket.create_connection((to.host, to.port or 0), timeout=10) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {to.host}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"content-type: application/problem+json\r\n" in answer
    assert path not in {"/docs", "/redoc"} or b"/openapi.json lists all routes" in answer
    assert b"page_router" not in answer
    assert b"root:" not in answer


def test_files_use_no_other_host_and_no_markup_from_text() -> None:
    makes_markup = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function")
    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8")
        referred = {name.removeprefix("page/").removeprefix("./") for name in REFERENCE.findall(text)}
        assert referred <= set(FILES), path.name
        others = re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text.replace("http://www.w3.org/2000/svg", ""))
        assert others == [], path.name
        assert makes_markup.findall(text) == [], path.name
        if path.name == "index.html":
            assert re.findall(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=", text) == []


def test_page_is_not_in_the_description(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()
    assert not [path for path in described["paths"] if path == "/" or path.startswith("/page")]
