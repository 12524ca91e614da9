"""One gateway, by the public Python SDK, on every broker."""

import asyncio
import re
import time

import pytest
from centrifuge import CentrifugeError, ReplyError, StreamPosition, SubscriptionState
from centrifuge.client import ClientState

import wyd
from wyd import channel_in, subscribed, token, until

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


async def refused(code: int, call) -> None:
    with pytest.raises(ReplyError) as caught:
        await call
    assert caught.value.code == code


# --- connecting


async def test_a_token_connects(gateway, connected):
    alice = await connected(gateway, "alice")
    context = await alice.events.nth("connected")
    assert UUID.fullmatch(context.client)
    assert context.version


@pytest.mark.parametrize(
    "bad, code",
    [(token("mallory", secret="x" * 32), 3500), ("let me in", 3500), ("", 3501)],
    ids=["signed by somebody else", "not a token", "no token"],
)
async def test_a_bad_token_ends_for_good(gateway, bad, code):
    mallory = wyd.client(gateway, "mallory", token=bad)
    await mallory.connect()
    assert (await mallory.events.nth("disconnected")).code == code
    assert mallory.state == ClientState.DISCONNECTED


async def test_an_expired_token_makes_the_sdk_ask_for_another(gateway, connected):
    asked = []

    async def get_token():
        asked.append(True)
        return token("alice")

    await connected(gateway, "alice", token=token("alice", exp=int(time.time()) - 60), get_token=get_token)
    assert len(asked) == 1


async def test_a_token_is_renewed_without_a_new_connection(gateway, connected):
    asked = []

    async def get_token():
        asked.append(True)
        return token("alice")

    alice = await connected(gateway, "alice", token=token("alice", exp=int(time.time()) + 2), get_token=get_token)
    await until(lambda: asked, "a request for a new token")
    await asyncio.sleep(1.5)  # Past the end of the first token: nothing may happen.
    assert len(alice.events.named("connected")) == 1
    assert alice.state == ClientState.CONNECTED


# --- publications


async def test_publications_reach_everybody_with_the_authors_name(gateway, connected):
    channel = channel_in("chat")
    alice = await connected(gateway, "alice", token=token("alice", info={"name": "Alice"}))
    bob = await connected(gateway, "bob")
    hers, his = await subscribed(alice, channel), await subscribed(bob, channel)

    await hers.publish({"text": "hello, “Bob” 🙂"})

    for subscription in (hers, his):
        assert await subscription.events.data(1) == [{"text": "hello, “Bob” 🙂"}]
        publication = subscription.events.named("publication")[0]
        assert publication.info.user == "alice"
        assert publication.info.client == (await alice.events.nth("connected")).client
        assert publication.info.conn_info == {"name": "Alice"}
        assert publication.offset > 0


async def test_publications_come_in_order_without_a_gap(gateway, connected):
    channel = channel_in("chat")
    hers = await subscribed(await connected(gateway, "alice"), channel)
    his = await subscribed(await connected(gateway, "bob"), channel)

    await asyncio.gather(*((his if number % 2 else hers).publish({"number": number}) for number in range(20)))

    assert await hers.events.data(20) == await his.events.data(20)
    first = hers.events.offsets()[0]
    assert hers.events.offsets() == list(range(first, first + 20)) == his.events.offsets()


async def test_the_server_api_publishes(gateway, connected):
    channel = channel_in("chat")
    hers = await subscribed(await connected(gateway, "alice"), channel)

    result = await gateway.api("publish", channel=channel, data={"text": "from the backend"})

    assert await hers.events.data(1) == [{"text": "from the backend"}]
    publication = hers.events.named("publication")[0]
    assert publication.offset == result["offset"]
    assert publication.info is None


async def test_publishing_needs_a_rule_that_allows_it(gateway, connected):
    alice = await connected(gateway, "alice")
    hers = await subscribed(alice, channel_in("quiet"))
    await refused(103, hers.publish({"text": "psst"}))
    await refused(103, alice.publish(channel_in("chat"), {"text": "not a subscriber"}))
    await refused(102, alice.publish("nowhere:1", {"text": "no such namespace"}))


async def test_durable_publications_carry_the_messages_id(gateway, mode, connected):
    if not mode.durable:
        pytest.skip("not durable")
    hers = await subscribed(await connected(gateway, "alice"), channel_in("chat"))
    await hers.publish({"text": "for the archive"})
    publication = await hers.events.nth("publication")
    assert UUID.fullmatch(publication.tags["id"])


# --- subscriptions


async def test_unsubscribing_ends_the_deliveries(gateway, connected):
    channel = channel_in("chat")
    alice = await connected(gateway, "alice")
    hers = await subscribed(alice, channel)
    await hers.unsubscribe()
    assert (await hers.events.nth("unsubscribed")).code == 0

    # The gateway has read the unsubscribe when it answers what was sent after it.
    await refused(103, alice.history(channel, limit=1))
    await gateway.api("publish", channel=channel, data={})
    witness = await subscribed(alice, channel_in("chat"))
    await witness.publish({})
    await witness.events.data(1)
    assert hers.events.named("publication") == []


@pytest.mark.parametrize("namespace, code", [("nowhere", 102), ("closed", 103)])
async def test_a_refused_subscription_ends_for_good(gateway, connected, namespace, code):
    alice = await connected(gateway, "alice")
    subscription = alice.new_subscription(channel_in(namespace), events=wyd.SubscriptionEvents())
    await subscription.subscribe()
    assert (await subscription.events.nth("unsubscribed")).code == code
    assert subscription.state == SubscriptionState.UNSUBSCRIBED


async def test_joins_and_leaves_are_told(gateway, connected):
    channel = channel_in("chat")
    hers = await subscribed(await connected(gateway, "alice"), channel, join_leave=True)
    his = await subscribed(await connected(gateway, "bob"), channel)
    await until(lambda: "bob" in [info.user for info in hers.events.named("join")], "bob's join")
    await his.unsubscribe()
    await until(lambda: "bob" in [info.user for info in hers.events.named("leave")], "bob's leave")


# --- presence and history


async def test_presence_says_who_is_here(gateway, connected):
    channel = channel_in("chat")
    alice = await connected(gateway, "alice")
    hers = await subscribed(alice, channel)
    phone, laptop = await connected(gateway, "bob"), await connected(gateway, "bob")
    for bob in (phone, laptop):
        await subscribed(bob, channel)

    clients = (await hers.presence()).clients
    assert sorted(info.user for info in clients.values()) == ["alice", "bob", "bob"]
    assert (await alice.events.nth("connected")).client in clients
    stats = await hers.presence_stats()
    assert (stats.num_clients, stats.num_users) == (3, 2)

    await laptop.disconnect()

    async def two_are_left():
        return (await hers.presence_stats()).num_clients == 2

    await until(two_are_left, "the laptop to be gone")


async def test_history_says_what_was_written(gateway, connected):
    hers = await subscribed(await connected(gateway, "alice"), channel_in("chat"))
    for number in (1, 2, 3, 4):
        await hers.publish({"number": number})
    await hers.events.data(4)
    offsets = hers.events.offsets()

    def numbers(result):
        return [publication.data["number"] for publication in result.publications]

    everything = await hers.history(limit=-1)
    assert numbers(everything) == [1, 2, 3, 4]
    assert everything.offset == offsets[3]
    assert everything.publications[0].info.user == "alice"
    assert numbers(await hers.history(limit=2, reverse=True)) == [4, 3]
    assert numbers(await hers.history(limit=10, since=StreamPosition(offsets[1], everything.epoch))) == [3, 4]
    assert (await hers.history(limit=0)).publications == []
    await refused(112, hers.history(limit=1, since=StreamPosition(1, "another")))


async def test_what_is_off_is_not_available(gateway, connected):
    hers = await subscribed(await connected(gateway, "alice"), channel_in("quiet"))
    await refused(108, hers.presence())
    await refused(108, hers.history(limit=1))


# --- a dropped connection


async def test_a_client_that_comes_back_gets_exactly_what_it_missed(gateway, connected):
    channel = channel_in("chat")
    async with wyd.Link(gateway) as link:
        alice = await connected(link, "alice")
        hers = await subscribed(alice, channel)
        await hers.publish({"number": 0})
        await hers.events.data(1)

        link.cut()
        await until(lambda: alice.state == ClientState.CONNECTING, "the client to notice")
        for number in (1, 2, 3):
            await gateway.api("publish", channel=channel, data={"number": number})
        link.restore()

        back = await hers.events.nth("subscribed", 2)
        assert (back.was_recovering, back.recovered) == (True, True)
        await gateway.api("publish", channel=channel, data={"number": 4})
        assert await hers.events.data(5) == [{"number": number} for number in range(5)]
        await alice.disconnect()


async def test_a_client_is_told_when_what_it_missed_is_gone(gateway, connected):
    channel = channel_in("chat")
    async with wyd.Link(gateway) as link:
        alice = await connected(link, "alice")
        hers = await subscribed(alice, channel)
        await hers.publish({"number": 0})
        await hers.events.data(1)

        link.cut()
        await until(lambda: alice.state == ClientState.CONNECTING, "the client to notice")
        for number in (1, 2):
            await gateway.api("publish", channel=channel, data={"number": number})
        await gateway.api("history_remove", channel=channel)
        link.restore()

        back = await hers.events.nth("subscribed", 2)
        assert (back.was_recovering, back.recovered) == (True, False)
        await alice.disconnect()


# --- the server


async def test_an_unknown_method_is_an_error(gateway, connected):
    alice = await connected(gateway, "alice")
    with pytest.raises(CentrifugeError) as caught:
        await alice.rpc("no.such.method", {})
    assert caught.value.code in (104, 108)


async def test_the_api_ends_a_users_connections_for_good(gateway, connected):
    alice = await connected(gateway, "alice-to-go")
    bob = await connected(gateway, "bob")
    await gateway.api("disconnect", user="alice-to-go")
    assert (await alice.events.nth("disconnected")).code == 3503
    await bob.ready()
