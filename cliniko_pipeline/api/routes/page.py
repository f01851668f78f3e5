"""The page for people who want to look: static files and the headers that confine them. It reads the API as any other
program does, with a token that whoever looks at it enters; nothing here is anybody's, so no token is asked for.
"""

import hashlib
from dataclasses import dataclass
from importlib import resources

from fastapi import APIRouter, Header, Response

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
        # Where a browser knows it, no text ever becomes HTML.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    # Kept, but asked for anew each time: after an upgrade no browser mixes the files of two versions.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str


def page_router() -> APIRouter:
    """The routes `/` and `/page/NAME`, with the files as they are now."""
    files = _files()
    router = APIRouter(include_in_schema=False)

    @router.api_route("/", methods=["GET", "HEAD"])
    def get_page(if_none_match: str = Header(default="")) -> Response:  # pyright: ignore[reportUnusedFunction]
        return _answer(files[INDEX], if_none_match)

    @router.api_route("/page/{name}", methods=["GET", "HEAD"])
    def get_file(name: str, if_none_match: str = Header(default="")) -> Response:  # pyright: ignore[reportUnusedFunction]
        # Looked up among what there is: a name is never a path.
        if name == INDEX or name not in files:
            raise not_found("The page has no such file: open it at its address, without a path.")
        return _answer(files[name], if_none_match)

    return router


def _files() -> dict[str, _File]:
    found: dict[str, _File] = {}
    for each in (resources.files("cliniko_pipeline.api") / "page").iterdir():
        media_type = MEDIA_TYPES.get("." + each.name.rpartition(".")[2])
        if media_type is not None:
            content = each.read_bytes()
            found[each.name] = _File(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return found


def _answer(file: _File, if_none_match: str) -> Response:
    headers = HEADERS | {"ETag": file.etag}
    if file.etag in {each.strip().removeprefix("W/") for each in if_none_match.split(",")}:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
