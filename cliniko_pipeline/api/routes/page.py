"""Static files of the web page, with headers that restrict what the page can load and do.

The page uses the HTTP API with the token that its user enters. The files contain no data, so they need no token.
"""

from dataclasses import dataclass
from importlib import resources

from fastapi import APIRouter, Header, Response

from cliniko_pipeline.api.etags import etag, etag_matches
from cliniko_pipeline.api.problems import not_found

INDEX = "index.html"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Browsers that know trusted types refuse to turn text into HTML.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    # Browsers revalidate each file. Otherwise they would mix files of two versions after an upgrade.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str


def page_router() -> APIRouter:
    """Read the files, and return the routes `/` and `/page/NAME`."""
    files = _read_files()
    router = APIRouter(include_in_schema=False)

    @router.api_route("/", methods=["GET", "HEAD"])
    def get_page(if_none_match: str = Header(default="")) -> Response:  # pyright: ignore[reportUnusedFunction]
        return _answer(files[INDEX], if_none_match)

    @router.api_route("/page/{name}", methods=["GET", "HEAD"])
    def get_file(name: str, if_none_match: str = Header(default="")) -> Response:  # pyright: ignore[reportUnusedFunction]
        # The name only selects one of the files that were read. It is never used as a path.
        if name == INDEX or name not in files:
            raise not_found("The page has no such file: open the page at its address, without a path.")
        return _answer(files[name], if_none_match)

    return router


def _read_files() -> dict[str, _File]:
    files: dict[str, _File] = {}
    for file in (resources.files("cliniko_pipeline.api") / "page").iterdir():
        media_type = MEDIA_TYPES.get("." + file.name.rpartition(".")[2])
        if media_type is not None:
            content = file.read_bytes()
            files[file.name] = _File(content, media_type, etag(content))
    return files


def _answer(file: _File, if_none_match: str) -> Response:
    headers = HEADERS | {"ETag": file.etag}
    if etag_matches(file.etag, if_none_match):
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
