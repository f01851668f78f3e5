# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The floors: eight connections read all pages by their known numbers, and either drop them or copy them into tables.

Written by hand with three HTTP clients; ours is compared with the fastest.
"""

import asyncio
import base64
import io
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

import aiohttp
import pycurl

from benchmarks.measuring import Stopwatch, Taken
from benchmarks.others.copying import opened_copying
from benchmarks.others.floor_tables import make_tables
from benchmarks.others.tasks import HEADERS, Task

CONNECTIONS = 8

Take = Callable[[str, bytes], None]


def run(task: Task, variant: str) -> Taken:
    """Measure `CLIENT-download` or `CLIENT-copy`."""
    client, _, what = variant.partition("-")
    watch = Stopwatch()
    if what == "download":
        watch.start()
        DOWNLOADS[client](task, lambda _resource, _body: None)
        watch.stop()
        return watch.taken()
    make_tables(task)
    with opened_copying(task) as copying:
        watch.start()
        DOWNLOADS[client](task, copying.take)
        copying.finish()
        watch.stop()
    return watch.taken()


def _headers(task: Task) -> dict[str, str]:
    key = base64.b64encode(f"{task.api_key}:".encode()).decode()
    return {**HEADERS, "Authorization": f"Basic {key}"}


# Each calls `take` with every page, in one thread.


def with_pycurl(task: Task, take: Take) -> None:
    """Download with libcurl in eight threads."""
    pages = queue.SimpleQueue[tuple[str, str]]()
    bodies = queue.SimpleQueue[tuple[str, bytes] | Exception]()
    asked_for = task.pages()
    for page in asked_for:
        pages.put(page)
    for _ in range(CONNECTIONS):
        threading.Thread(target=_fetch, args=(task, pages, bodies), daemon=True).start()
    for _ in asked_for:
        answer = bodies.get()
        if isinstance(answer, Exception):
            raise answer
        take(*answer)


def _fetch(
    task: Task,
    pages: "queue.SimpleQueue[tuple[str, str]]",
    bodies: "queue.SimpleQueue[tuple[str, bytes] | Exception]",
) -> None:
    curl = pycurl.Curl()
    curl.setopt(pycurl.HTTPHEADER, [f"{name}: {value}" for name, value in _headers(task).items()])
    curl.setopt(pycurl.NOSIGNAL, 1)
    curl.setopt(pycurl.PROXY, "")
    curl.setopt(pycurl.BUFFERSIZE, 512 * 1024)
    with suppress(queue.Empty):
        while True:
            resource, path = pages.get_nowait()
            body = io.BytesIO()
            try:
                curl.setopt(pycurl.URL, f"{task.api_url}/{path}")
                curl.setopt(pycurl.WRITEDATA, body)
                curl.perform()
                _require_success(curl.getinfo(pycurl.RESPONSE_CODE))
            except Exception as error:  # noqa: BLE001 (raised again by the waiting thread)
                bodies.put(error)
                return
            bodies.put((resource, body.getvalue()))


def with_aiohttp(task: Task, take: Take) -> None:
    """Download with aiohttp, one coroutine a connection."""

    async def download() -> None:
        pages = iter(task.pages())
        connector = aiohttp.TCPConnector(limit=CONNECTIONS)
        async with aiohttp.ClientSession(connector=connector, headers=_headers(task), read_bufsize=2**20) as session:

            async def work() -> None:
                for resource, path in pages:
                    async with session.get(f"{task.api_url}/{path}") as response:
                        _require_success(response.status)
                        body = await response.read()
                    take(resource, body)

            await asyncio.gather(*(work() for _ in range(CONNECTIONS)))

    asyncio.run(download())


def with_streams(task: Task, take: Take) -> None:
    """Download with asyncio's streams, and as much HTTP as this server needs."""
    address = urlsplit(task.api_url)
    head = "".join(f"{name}: {value}\r\n" for name, value in _headers(task).items())

    async def download() -> None:
        pages = iter(task.pages())

        async def work() -> None:
            reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=2**20)
            for resource, path in pages:
                request = f"GET {address.path}/{path} HTTP/1.1\r\nHost: {address.netloc}\r\n{head}\r\n"
                writer.write(request.encode())
                status, *fields = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
                _require_success(int(status.split()[1]))
                length = next(int(each[15:]) for each in fields if each.startswith(b"content-length:"))
                take(resource, await reader.readexactly(length))
            writer.close()
            await writer.wait_closed()

        await asyncio.gather(*(work() for _ in range(CONNECTIONS)))

    asyncio.run(download())


def _require_success(status: int) -> None:
    if status != 200:
        raise RuntimeError(f"The simulated Cliniko answered {status}")


DOWNLOADS: dict[str, Callable[[Task, Take], None]] = {
    "pycurl": with_pycurl,
    "aiohttp": with_aiohttp,
    "streams": with_streams,
}
