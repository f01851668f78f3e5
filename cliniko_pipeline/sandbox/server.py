"""The simulated Cliniko's HTTP server, with authentication, rate limit, lists, and faults.

A URL has the form `http://HOST:PORT/{shard}/v1/{resource}`. The shard in the path stands for the host
`api.{shard}.cliniko.com`, so that one address serves accounts of every shard. `queries` parses queries, `faults`
decides about faults, and `accounts` contains the data.

Where the API's behaviour is not published, the sandbox is strict. An Accept header without `application/json` leads to
a 406, and `page=0` to a 400. A request for a single record that lists hide leads to a 404, unless the request has the
filters that show the record in a list. The rate limit is a sliding window. A `per_page` above the maximum is reduced to
the maximum.
"""

import asyncio
import json
import math
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from contextlib import contextmanager
from email.utils import formatdate
from urllib.parse import parse_qsl

from aiohttp import web

from cliniko_pipeline.errors import ArgumentError
from cliniko_pipeline.sandbox.accounts.account import Account
from cliniko_pipeline.sandbox.answers import (
    BLOCKED_PAGE,
    FIXED_ANSWERS,
    HTML,
    Answer,
    Call,
    error,
    list_answer,
    record_answer,
    to_json,
)
from cliniko_pipeline.sandbox.connections import authority, basic_user, close, is_loopback, reset
from cliniko_pipeline.sandbox.counters import Counters, RecordedRequest
from cliniko_pipeline.sandbox.faults import Fault, FaultDice, Faults, Misfortune
from cliniko_pipeline.sandbox.queries import Query, QueryError, read_query
from cliniko_pipeline.sandbox.rate_limit import RateLimit
from cliniko_pipeline.sandbox.resources import RESOURCES, SETTINGS

DEFAULT_REQUESTS_PER_MINUTE = 200
_START_SECONDS = 30.0
_STOP_SECONDS = 30.0
_TURNS_TO_ACCEPT = 10
_API_PATH = re.compile(r"/(?P<shard>[a-z]{2}[0-9]{1,2})/v1/(?P<resource>[a-z_]+)(?:/(?P<record_id>[^/]+))?")
_USER_AGENT = re.compile(r"\S.*\([^()\s@]+@[^()\s@]+\.[^()\s@]+\)")


class Sandbox:
    """The handle of the running server. Call `stop` on the server's event loop."""

    def __init__(
        self,
        accounts: Iterable[Account],
        *,
        requests_per_minute: int | None = None,
        retry_after: bool = True,
        faults: Faults | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.accounts: dict[str, Account] = {}
        self.counters = Counters()
        self.host = ""
        self._dice = FaultDice(faults or Faults())
        self._order = random.Random(self.faults.seed)  # noqa: S311 - dice, not a secret
        self._clock = clock
        self._retry_after = retry_after
        self._requests_per_minute = requests_per_minute
        self._keys: dict[tuple[str, str], Account] = {}
        self._limits: dict[str, RateLimit] = {}
        self._stopping = asyncio.Event()
        self._date = (0, "")
        for account in accounts:
            self.add(account)

    @property
    def faults(self) -> Faults:
        """The faults in force, which may be replaced while the server runs."""
        return self._dice.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._dice.faults = faults

    def add(self, account: Account) -> None:
        """Serve an account. Raise ArgumentError if another account has the same name or key."""
        if account.name in self.accounts or (account.shard, account.bare_key) in self._keys:
            raise ArgumentError("The sandbox has an account of this name or API key; give each its own.")
        self.accounts[account.name] = account
        self._keys[account.shard, account.bare_key] = account

    def base_url(self, account: Account | str) -> str:
        """Return the base URL without a final slash; raise KeyError if the account is unknown."""
        served = self.accounts[account] if isinstance(account, str) else account
        return f"http://{self.host}/{served.shard}/v1"

    async def serve(self, host: str, port: int, started: "Future[asyncio.AbstractEventLoop]") -> None:
        """Serve until `stop` is called; give `started` the event loop once clients can connect."""
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family, backlog=1024) as listening:
            runner = web.ServerRunner(web.Server(self._handle, access_log=None), shutdown_timeout=1.0)
            await runner.setup()
            try:
                await web.SockSite(runner, listening).start()
                self.host = authority(listening)
                started.set_result(loop)
                await self._stopping.wait()
                # The runner closes only connections that it knows. So accept no more connections, and let it learn
                # of the latest connections before it stops.
                loop.remove_reader(listening)
                for _ in range(_TURNS_TO_ACCEPT):
                    await asyncio.sleep(0)
            finally:
                await runner.cleanup()

    def stop(self) -> None:
        """End `serve`; call it on the server's event loop."""
        self._stopping.set()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        call = Call(request, self._clock())
        if request.path.startswith("/sandbox/"):
            return self._respond(await self._control(request))
        answer = self._refusal(call)
        if answer is not None or call.account is None:
            return self._finish(call, answer or error(404, "Not found"))
        misfortune = self._dice.roll(call.account.name)
        if misfortune.delay_seconds > 0:
            await self._wait(misfortune.delay_seconds)
        return await self._answer(call, call.account, misfortune)

    # Refusals that come before the account's data is read, in the order of the real service.

    def _refusal(self, call: Call) -> Answer | None:
        return (
            self._refused_headers(call)
            or self._unknown_path(call)
            or self._unknown_key(call)
            or self._over_limit(call)
            or self._missing_right(call)
        )

    def _refused_headers(self, call: Call) -> Answer | None:
        headers = call.request.headers
        if not _USER_AGENT.match(headers.get("User-Agent", "")):
            return Answer(403, BLOCKED_PAGE, HTML)
        if "application/json" not in headers.get("Accept", ""):
            return error(406, "Accept must be application/json")
        return None

    def _unknown_path(self, call: Call) -> Answer | None:
        parts = _API_PATH.fullmatch(call.request.path)
        if parts is None:
            return error(404, "Not found")
        call.shard, call.resource, call.record_id = parts["shard"], parts["resource"], parts["record_id"]
        call.parameters = tuple(parse_qsl(call.request.query_string, keep_blank_values=True))
        return None

    def _unknown_key(self, call: Call) -> Answer | None:
        key = basic_user(call.request.headers.get("Authorization", ""))
        account = None if key is None else self._keys.get((call.shard, key.removesuffix(f"-{call.shard}")))
        if account is None or account.revoked:
            return error(401, "The API key is not known")
        call.account = account
        return None

    def _over_limit(self, call: Call) -> Answer | None:
        if self._requests_per_minute is None or call.account is None:
            return None
        limit = self._limits.setdefault(call.account.name, RateLimit(self._requests_per_minute))
        possible_again = limit.admit(call.at)
        return None if possible_again is None else self._too_many_requests(call.at, possible_again)

    def _missing_right(self, call: Call) -> Answer | None:
        if call.account is None or (call.resource not in RESOURCES and call.list_path != SETTINGS):
            return error(404, "Not found")
        if call.request.method != "GET":
            return Answer(405, to_json({"message": "Method not allowed"}), headers=(("Allow", "GET"),))
        if call.resource in call.account.forbidden_resources:
            return error(403, "The user of this API key may not see this")
        return None

    def _too_many_requests(self, now: float, possible_again: float) -> Answer:
        headers = [("X-RateLimit-Reset", str(math.ceil(possible_again)))]
        if self._retry_after:
            headers.append(("Retry-After", str(max(1, math.ceil(possible_again - now)))))
        return Answer(429, to_json({"message": "Too many requests"}), headers=tuple(headers))

    # Responses with the account's data.

    async def _answer(self, call: Call, account: Account, misfortune: Misfortune) -> web.StreamResponse:
        instead = self._instead(call, misfortune)
        if instead is not None:
            return self._finish(call, instead)
        if misfortune.fault in {Fault.HANG, Fault.RESET_BEFORE_BODY}:
            return await self._break_connection(call, misfortune.fault)
        if call.resource == SETTINGS:
            found = account.settings
            answer = error(404, "Not found") if found is None else Answer(200, to_json(found))
            return await self._send(call, answer, misfortune.fault)
        try:
            refused = self.faults.refused(account.name, call.resource)
            query = read_query(RESOURCES[call.resource], call.parameters, refused)
        except QueryError as refused:
            return self._finish(call, error(400, str(refused)))
        return await self._answer_query(call, account, query, misfortune.fault)

    async def _answer_query(
        self, call: Call, account: Account, query: Query, fault: Fault | None
    ) -> web.StreamResponse:
        inactive = call.list_path == "practitioners/inactive" and account.has_inactive_list
        if call.record_id is not None and not inactive:
            return await self._send(call, record_answer(call, account, call.record_id, query), fault)
        page = account.page(call.resource, query, None if self.faults.stable_ties else self._order, inactive=inactive)
        unlucky = self.faults.broken_record(account.name, call.resource, page.ids, query.per_page)
        if unlucky is not None:
            return self._finish(call, error(unlucky.status, "Something went wrong"))
        answer = list_answer(call, page, query, self.faults.next_links_to)
        broken = self._dice.broken_page(account.name, call.resource, query.page, query.per_page)
        if broken is not None:
            if not broken.truncated:
                return self._finish(call, error(broken.status, "Something went wrong"))
            return await self._send_half(call, answer, Fault.TRUNCATED_BODY)
        return await self._send(call, answer, fault)

    async def _send(self, call: Call, answer: Answer, fault: Fault | None) -> web.StreamResponse:
        if fault in {Fault.TRUNCATED_BODY, Fault.RESET_IN_BODY}:
            return await self._send_half(call, answer, fault)
        return self._finish(call, answer)

    # Faults.

    def _instead(self, call: Call, misfortune: Misfortune) -> Answer | None:
        match misfortune.fault:
            case Fault.SERVER_ERROR:
                return error(misfortune.status, "Something went wrong")
            case Fault.TOO_MANY_REQUESTS:
                now = self._clock()
                return self._too_many_requests(now, now + self.faults.too_many_requests_wait_seconds)
            case Fault.REDIRECT:
                location = f"{self.faults.redirect_to}{call.request.path_qs}"
                return Answer(302, b"{}", headers=(("Location", location),))
            case None:
                return None
            case other:
                return FIXED_ANSWERS.get(other)

    async def _break_connection(self, call: Call, fault: Fault) -> web.StreamResponse:
        self._record_request(call, 0)
        if fault is Fault.HANG:
            await self._wait(self.faults.hang_seconds)
            close(call.request)
        else:
            reset(call.request)
        return web.Response()

    async def _send_half(self, call: Call, answer: Answer, fault: Fault) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers=self._headers(answer))
        response.content_length = len(answer.body)
        self._record_request(call, answer.status)
        await response.prepare(call.request)
        await response.write(answer.body[: len(answer.body) // 2])
        if fault is Fault.RESET_IN_BODY:
            reset(call.request)
        else:
            close(call.request)
        return response

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return

    # The control interface for another process, and the headers of every response.

    async def _control(self, request: web.BaseRequest) -> Answer:
        if not is_loopback(request.remote):
            return error(403, "Only from this machine")
        match request.method, request.path.split("/")[2:]:
            case "GET", ["counters"]:
                return Answer(200, to_json(self.counters.as_json()))
            case "GET", ["faults"]:
                return Answer(200, to_json(self.faults.as_json()))
            case "PUT", ["faults"]:
                return await self._put_faults(request)
            case "GET", ["accounts", name] if name in self.accounts:
                return self._all_records(request, self.accounts[name])
            case _:
                return error(404, "Not found")

    async def _put_faults(self, request: web.BaseRequest) -> Answer:
        try:
            self.faults = Faults.from_json(json.loads(await request.read()))
        except ValueError:
            return error(400, "The body is not JSON")
        except ArgumentError as refused:
            return error(400, str(refused))
        return Answer(200, to_json(self.faults.as_json()))

    def _all_records(self, request: web.BaseRequest, account: Account) -> Answer:
        base_url = f"http://{request.host}/{account.shard}/v1"
        resources = [name for name, resource in RESOURCES.items() if resource.stored]
        return Answer(200, to_json({name: account.wire_records(name, base_url) for name in resources}))

    def _finish(self, call: Call, answer: Answer) -> web.Response:
        self._record_request(call, answer.status)
        return self._respond(answer)

    def _respond(self, answer: Answer) -> web.Response:
        return web.Response(status=answer.status, body=answer.body, headers=self._headers(answer))

    def _record_request(self, call: Call, status: int) -> None:
        self.counters.record(
            RecordedRequest(
                at=call.at,
                method=call.request.method,
                account=call.account.name if call.account else None,
                resource=call.resource,
                record_id=call.record_id,
                parameters=call.parameters,
                status=status,
                authorized="Authorization" in call.request.headers,
            )
        )

    def _headers(self, answer: Answer) -> list[tuple[str, str]]:
        now = int(self._clock())
        if self._date[0] != now:
            self._date = (now, formatdate(now, usegmt=True))
        date = self._date[1] if self.faults.date is None else self.faults.date
        own = [("Content-Type", answer.content_type), ("Date", date), ("Server", "sandbox")]
        return [*own, *answer.headers]


@contextmanager
def running_sandbox(
    accounts: Iterable[Account],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    requests_per_minute: int | None = None,
    retry_after: bool = True,
    faults: Faults | None = None,
    clock: Callable[[], float] = time.time,
) -> Generator[Sandbox]:
    """Serve the accounts in a separate thread until the block ends.

    With `port` 0, a free port is used. With `requests_per_minute` None, there is no rate limit. With `retry_after`, a
    429 has a Retry-After header besides X-RateLimit-Reset. `clock` returns UNIX seconds, for the Date header and the
    rate limit. Raise ArgumentError if the server cannot listen at the address.
    """
    sandbox = Sandbox(
        accounts,
        requests_per_minute=requests_per_minute,
        retry_after=retry_after,
        faults=faults,
        clock=clock,
    )
    started: Future[asyncio.AbstractEventLoop] = Future()
    thread = threading.Thread(target=_run, args=(sandbox, host, port, started), name="cliniko-sandbox")
    thread.start()
    try:
        loop = started.result(_START_SECONDS)
    except OSError as error:
        thread.join(_STOP_SECONDS)
        message = "The sandbox cannot serve at this address; choose another host or port."
        raise ArgumentError(message) from error
    try:
        yield sandbox
    finally:
        loop.call_soon_threadsafe(sandbox.stop)
        thread.join(_STOP_SECONDS)


def _run(sandbox: Sandbox, host: str, port: int, started: "Future[asyncio.AbstractEventLoop]") -> None:
    try:
        asyncio.run(sandbox.serve(host, port, started))
    except Exception as error:
        if started.done():
            raise
        started.set_exception(error)
