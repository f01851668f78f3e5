"""Prints how many pages a second the sandbox serves here: `python -m cliniko_pipeline_tests.sandbox.measure`.

The server runs in a process of its own, as it does for a benchmark; the client reads raw sockets, so that it is
not what is measured. Never a test: the number depends on the machine and on what else it does.
"""

import argparse
import base64
import multiprocessing
import socket
import sys
import threading
import time
from datetime import UTC, datetime

from cliniko_pipeline.sandbox.generated import GENERATED_KEY, generated_account
from cliniko_pipeline.sandbox.server import running_sandbox

EVERYTHING = "q[]=archived_at:*&q[]=cancelled_at:*&q[]=deleted_at:*&per_page=100"


def serve(patients, appointments, addresses, ended):
    started = time.perf_counter()
    account = generated_account(patients, appointments, 1, datetime(2026, 1, 1, tzinfo=UTC))
    sys.stdout.write(
        f"built {patients:,} patients, {appointments:,} appointments: {time.perf_counter() - started:.1f} s\n"
    )
    with running_sandbox([account]) as served:
        addresses.put(served.host)
        ended.wait()


def read_pages(host, pages, sizes):
    address, port = host.split(":")
    key = base64.b64encode(f"{GENERATED_KEY}:".encode()).decode()
    with socket.create_connection((address, int(port)), timeout=60) as connection:
        stream = connection.makefile("rb")
        for page in pages:
            connection.sendall(
                f"GET /au5/v1/individual_appointments?{EVERYTHING}&page={page} HTTP/1.1\r\nHost: {host}\r\n"
                f"Accept: application/json\r\nUser-Agent: measure (measure@example.org)\r\n"
                f"Authorization: Basic {key}\r\n\r\n".encode()
            )
            length = 0
            assert b" 200 " in stream.readline()
            while (line := stream.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            sizes.append(len(stream.read(length)))


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--patients", type=int, default=2_000)
    arguments.add_argument("--appointments", type=int, default=20_000)
    arguments.add_argument("--pages", type=int, default=2_000)
    arguments.add_argument("--connections", type=int, default=4)
    given = arguments.parse_args()
    context = multiprocessing.get_context("spawn")
    addresses, ended = context.Queue(), context.Event()
    server = context.Process(target=serve, args=(given.patients, given.appointments, addresses, ended))
    server.start()
    host = addresses.get(timeout=600)
    last = given.appointments // 100
    pages = [1 + number % last for number in range(given.pages)]
    sizes = []
    readers = [
        threading.Thread(target=read_pages, args=(host, pages[start :: given.connections], sizes))
        for start in range(given.connections)
    ]
    started = time.perf_counter()
    for one in readers:
        one.start()
    for one in readers:
        one.join()
    seconds = time.perf_counter() - started
    sys.stdout.write(
        f"{len(sizes)} pages, {sum(sizes) / 1e6:.0f} MB in {seconds:.2f} s: {len(sizes) / seconds:,.0f} pages/s\n"
    )
    ended.set()
    server.join()


if __name__ == "__main__":
    main()
