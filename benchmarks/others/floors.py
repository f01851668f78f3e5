# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Floors, which are programs that do only the unavoidable work.

They download all pages, store the records and compute the active patients.

The page numbers are known, and eight connections read the pages. There is a floor for each of three HTTP clients. The
pipeline is compared with the fastest floor.
"""

import asyncio
import base64
import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from urllib.parse import urlsplit

import aiohttp
import pycurl

from benchmarks.measuring import Stopwatch, Taken
from benchmarks.others.copying import Copying
from benchmarks.others.floor_tables import make_tables
from benchmarks.others.tasks import HEADERS, Task
from benchmarks.others.transforming import transform

CONNECTIONS = 8

Take = Callable[[str, bytes], None]


def run(task: Task, client: str) -> Taken:
    """Measure the floor with this HTTP client."""
    watch = Stopwatch()
    make_tables(task)
    with ExitStack() as stack:
        copying = Copying(task, stack)
        watch.start()
        DOWNLOADS[client](task, copying.take)
        copying.finish()
        transform(task)
        watch.stop()
    return watch.taken()


def _headers(task: Task) -> dict[str, str]:
    key = base64.b64encode(f"{task.api_key}:".encode()).decode()
    return {**HEADERS, "Authorization": f"Basic {key}"}


# The downloads call `take` with every page, from one thread.


def with_pycurl(task: Task, take: Take) -> None:
    """Download with libcurl, with one thread per connection."""
    threads = threading.local()

    def connect() -> None:
        threads.curl = curl = pycurl.Curl()
        curl.setopt(pycurl.HTTPHEADER, [f"{name}: {value}" for name, value in _headers(task).items()])
        curl.setopt(pycurl.NOSIGNAL, 1)
        curl.setopt(pycurl.PROXY, "")
        curl.setopt(pycurl.BUFFERSIZE, 512 * 1024)

    def fetch(page: tuple[str, str]) -> tuple[str, bytes]:
        resource, path = page
        body = io.BytesIO()
        threads.curl.setopt(pycurl.URL, f"{task.api_url}/{path}")
        threads.curl.setopt(pycurl.WRITEDATA, body)
        threads.curl.perform()
        _require_success(threads.curl.getinfo(pycurl.RESPONSE_CODE))
        return resource, body.getvalue()

    with ThreadPoolExecutor(CONNECTIONS, initializer=connect) as executor:
        for resource, body in executor.map(fetch, task.pages()):
            take(resource, body)


async def with_aiohttp(task: Task, take: Take) -> None:
    """Download with aiohttp, with one coroutine per connection."""
    pages = iter(task.pages())
    connector = aiohttp.TCPConnector(limit=CONNECTIONS)
    async with aiohttp.ClientSession(connector=connector, headers=_headers(task), read_bufsize=2**20) as session:

        async def fetch() -> None:
            for resource, path in pages:
                async with session.get(f"{task.api_url}/{path}") as response:
                    _require_success(response.status)
                    body = await response.read()
                take(resource, body)

        await asyncio.gather(*(fetch() for _ in range(CONNECTIONS)))


async def with_streams(task: Task, take: Take) -> None:
    """Download with asyncio's streams, with only the parts of HTTP that this server needs."""
    address = urlsplit(task.api_url)
    head = "".join(f"{name}: {value}\r\n" for name, value in _headers(task).items())
    pages = iter(task.pages())

    async def fetch() -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=2**20)
        for resource, path in pages:
            request = f"GET {address.path}/{path} HTTP/1.1\r\nHost: {address.netloc}\r\n{head}\r\n"
            writer.write(request.encode())
            status, *fields = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
            _require_success(int(status.split()[1]))
            length = next(int(field[15:]) for field in fields if field.startswith(b"content-length:"))
            take(resource, await reader.readexactly(length))
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(fetch() for _ in range(CONNECTIONS)))


def _require_success(status: int) -> None:
    if status != 200:
        raise RuntimeError(f"The simulated Cliniko answered {status}")


DOWNLOADS: dict[str, Callable[[Task, Take], None]] = {
    "pycurl": with_pycurl,
    "aiohttp": lambda task, take: asyncio.run(with_aiohttp(task, take)),
    "streams": lambda task, take: asyncio.run(with_streams(task, take)),
}
