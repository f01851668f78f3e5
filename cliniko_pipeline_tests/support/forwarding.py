"""A program that forwards TCP connections to the same ports of another host.

Its arguments are the host to listen on, the target's host, and the ports.
"""

import asyncio
import sys
from contextlib import suppress


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    target.close()


async def _serve(listening_host: str, target_host: str, port: int) -> None:
    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            target_reader, target_writer = await asyncio.open_connection(target_host, port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_copy(reader, target_writer), _copy(target_reader, writer))

    await (await asyncio.start_server(forward, listening_host, port)).serve_forever()


async def _main(listening_host: str, target_host: str, *ports: str) -> None:
    await asyncio.gather(*(_serve(listening_host, target_host, int(port)) for port in ports))


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
