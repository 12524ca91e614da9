"""The vocabulary of these tests: gateways that start and stop, tokens, clients, a cuttable network.

WYD_BIN is the binary. With WYD_TEST_REDIS_URL the tests run on Redis as well as in memory, and
with WYD_TEST_KAFKA_BROKERS the channels on Redis are durable.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Awaitable, Callable, Union

from centrifuge import Client, ClientEventHandler, Subscription, SubscriptionEventHandler

SECRET = secrets.token_hex(32)
API_KEY = secrets.token_hex(16)
START_TIMEOUT_SECONDS = 30
WAIT_TIMEOUT_SECONDS = 15


def channel_in(namespace: str) -> str:
    """A channel name nobody used before, on a Redis that other tests and earlier runs share."""
    return f"{namespace}:{secrets.token_hex(6)}"


# --- what a gateway can run on


@dataclass(frozen=True)
class Mode:
    name: str
    broker: str
    durable: bool = False
    env: dict[str, str] = field(default_factory=dict, hash=False)


def modes() -> list[Mode]:
    """Every set-up these tests run on: memory always, Redis where there is one."""
    found = [Mode("memory", "memory")]
    if redis := os.environ.get("WYD_TEST_REDIS_URL"):
        if brokers := os.environ.get("WYD_TEST_KAFKA_BROKERS"):
            found.append(Mode("redis-kafka", "redis", True, {"REDIS_URL": redis, "KAFKA_BROKERS": brokers}))
        else:
            found.append(Mode("redis", "redis", False, {"REDIS_URL": redis}))
    return found


SETTINGS = """
listen = "{listen}"
internal_listen = "{internal_listen}"

[broker]
kind = "{broker}"

# One Kafka broker, and no load balancer that needs time to notice a stop.
[kafka]
replication = 1
min_insync_replicas = 1

[drain]
delay = "0s"
duration = "200ms"

# Nobody may subscribe here, and nobody publish in `quiet`: no rule says so.
[namespaces.closed]
presence = false

[namespaces.quiet]
allow_subscribe_for_client = true

[namespaces.chat]
durable = {durable}
presence = true
join_leave = true
history_size = 100
history_ttl = "1h"
force_recovery = true
allow_subscribe_for_client = true
allow_publish_for_subscriber = true
allow_history_for_subscriber = true
allow_presence_for_subscriber = true
"""


# --- gateways


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Gateway:
    """A `wyd gateway` process, ready when the constructor returns."""

    def __init__(self, mode: Mode):
        self.folder = Path(tempfile.mkdtemp(prefix="wyd-sdk-"))
        self.port, self.internal_port = free_port(), free_port()
        file = self.folder / "wyd.toml"
        file.write_text(
            SETTINGS.format(
                listen=f"127.0.0.1:{self.port}",
                internal_listen=f"127.0.0.1:{self.internal_port}",
                broker=mode.broker,
                durable=str(mode.durable).lower(),
            )
        )
        binary = os.environ["WYD_BIN"]
        # Nothing else of this machine's configuration.
        ours = {name: os.environ[name] for name in ("PATH", "HOME", "RUST_LOG") if name in os.environ}
        env = {**ours, **mode.env, "JWT_SECRET": SECRET, "WYD_API_KEY": API_KEY}
        if mode.durable:
            # The topics; the archive's schema goes into a file, as no test here reads it.
            archive = {"DATABASE_URL": f"sqlite://{self.folder}/archive.db"}
            subprocess.run([binary, "migrate", "--config", file], env={**env, **archive}, check=True)
        self.log = self.folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([binary, "gateway", "--config", file], env=env, stdout=log, stderr=log)
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"wyd gateway ended with {self.process.returncode}:\n{self.log.read_text()}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.internal_port}/readyz", timeout=2).close()
                return
            except OSError:  # Not listening yet, or 503: it says it is starting.
                time.sleep(0.05)
        self.process.kill()
        raise RuntimeError(f"wyd gateway was not ready in time:\n{self.log.read_text()}")

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/connection/websocket"

    async def api(self, method: str, **params: Any) -> dict[str, Any]:
        """Calls a method of the server API; returns its result."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/{method}",
            data=json.dumps(params).encode(),
            headers={"Content-Type": "application/json", "X-API-Key": API_KEY},
        )

        def call() -> dict[str, Any]:
            with urllib.request.urlopen(request, timeout=WAIT_TIMEOUT_SECONDS) as answer:
                return json.load(answer)

        reply = await asyncio.to_thread(call)
        assert "error" not in reply, reply
        return reply["result"]

    def stop(self) -> int:
        """Ends the process the way an orchestrator does; returns its exit code."""
        self.process.terminate()
        try:
            code = self.process.wait(WAIT_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        return code


# --- a network that can be cut


class Link:
    """A TCP relay to a gateway: clients go through it, and the test cuts it."""

    def __init__(self, target: Gateway):
        self.target = target
        self.is_up = True
        self.writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> "Link":
        self.server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()
        self.server.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.is_up:
            writer.transport.abort()
            return
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self.target.port)
        await asyncio.gather(self._copy(reader, upstream_writer), self._copy(upstream_reader, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        try:
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()
        except OSError:
            pass  # Cut, or gone by itself: the other direction ends, too.
        finally:
            self.writers.discard(writer)
            writer.close()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/connection/websocket"

    def cut(self) -> None:
        """Breaks every connection and lets no new one through."""
        self.is_up = False
        for writer in list(self.writers):
            writer.transport.abort()

    def restore(self, gateway: Union[Gateway, None] = None) -> None:
        """Lets connections through again, to another gateway if one is given."""
        self.target = gateway or self.target
        self.is_up = True


# --- tokens and clients


def token(user: str, secret: str = SECRET, **claims: Any) -> str:
    """Makes a connection token; `claims` adds to or replaces what it holds."""

    def part(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    header = part(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
    body = part(json.dumps({"sub": user, "exp": int(time.time()) + 600, **claims}).encode())
    signature = hmac.new(secret.encode(), f"{header}.{body}".encode(), hashlib.sha256).digest()
    return f"{header}.{body}.{part(signature)}"


class Events:
    """What a client or a subscription reported, in order, as (name, context)."""

    def __init__(self) -> None:
        self.all: list[tuple[str, Any]] = []

    def note(self, name: str, context: Any) -> None:
        self.all.append((name, context))

    def named(self, name: str) -> list[Any]:
        return [context for known, context in self.all if known == name]

    async def nth(self, name: str, count: int = 1) -> Any:
        """The context of the count-th event of that name, waited for."""
        await until(lambda: len(self.named(name)) >= count, f"{name} number {count}, here: {self.all}")
        return self.named(name)[count - 1]


class ClientEvents(ClientEventHandler, Events):
    async def on_connecting(self, ctx):
        self.note("connecting", ctx)

    async def on_connected(self, ctx):
        self.note("connected", ctx)

    async def on_disconnected(self, ctx):
        self.note("disconnected", ctx)


class SubscriptionEvents(SubscriptionEventHandler, Events):
    async def on_subscribed(self, ctx):
        self.note("subscribed", ctx)

    async def on_unsubscribed(self, ctx):
        self.note("unsubscribed", ctx)

    async def on_publication(self, ctx):
        self.note("publication", ctx.pub)

    async def on_join(self, ctx):
        self.note("join", ctx.info)

    async def on_leave(self, ctx):
        self.note("leave", ctx.info)

    async def data(self, count: int) -> list[Any]:
        """Waits for so many publications and returns their data."""
        await self.nth("publication", count)
        return [publication.data for publication in self.named("publication")]

    def offsets(self) -> list[int]:
        return [publication.offset for publication in self.named("publication")]


def client(place: Union[Gateway, Link], user: str, **options: Any) -> Client:
    """A client of the SDK that is not connected yet."""
    options.setdefault("token", token(user))
    return Client(
        place.url,
        events=ClientEvents(),
        min_reconnect_delay=0.02,
        max_reconnect_delay=0.2,
        proxy=None,  # This machine only, whatever the environment says.
        **options,
    )


async def subscribed(who: Client, channel: str, **options: Any) -> Subscription:
    """A subscription that is on."""
    subscription = who.new_subscription(channel, events=SubscriptionEvents(), **options)
    await subscription.subscribe()
    await subscription.ready()
    return subscription


async def until(condition: Callable[[], Union[bool, Awaitable[bool]]], what: str) -> None:
    """Waits until `condition()` is true."""
    end = time.monotonic() + WAIT_TIMEOUT_SECONDS
    while True:
        result = condition()
        if await result if asyncio.iscoroutine(result) else result:
            return
        assert time.monotonic() < end, f"not in time: {what}"
        await asyncio.sleep(0.02)
