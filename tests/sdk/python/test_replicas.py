"""Two gateways that share a broker: what crosses from one to the other."""

import asyncio

from centrifuge.client import ClientState

import wyd
from wyd import channel_in, subscribed, until


async def test_publications_cross_in_one_order(replicas, connected):
    one, two = replicas
    channel = channel_in("chat")
    hers = await subscribed(await connected(one, "alice"), channel)
    his = await subscribed(await connected(two, "bob"), channel)

    await asyncio.gather(*((his if number % 2 else hers).publish({"number": number}) for number in range(20)))

    assert await hers.events.data(20) == await his.events.data(20)
    assert hers.events.offsets() == his.events.offsets()


async def test_presence_knows_who_is_at_the_other(replicas, connected):
    one, two = replicas
    channel = channel_in("chat")
    hers = await subscribed(await connected(one, "alice"), channel)
    bob = await connected(two, "bob")
    await subscribed(bob, channel)

    async def users():
        return sorted(info.user for info in (await hers.presence()).clients.values())

    async def both():
        return await users() == ["alice", "bob"]

    async def alice_alone():
        return await users() == ["alice"]

    await until(both, "both in presence")
    await bob.disconnect()
    await until(alice_alone, "bob to be gone")


async def test_a_client_recovers_at_the_other(replicas, connected):
    one, two = replicas
    channel = channel_in("chat")
    async with wyd.Link(one) as link:
        alice = await connected(link, "alice")
        hers = await subscribed(alice, channel)
        await hers.publish({"number": 0})
        await hers.events.data(1)

        link.cut()
        await until(lambda: alice.state == ClientState.CONNECTING, "the client to notice")
        for number in (1, 2, 3):
            await one.api("publish", channel=channel, data={"number": number})
        link.restore(two)

        assert (await hers.events.nth("subscribed", 2)).recovered
        await one.api("publish", channel=channel, data={"number": 4})
        assert await hers.events.data(5) == [{"number": number} for number in range(5)]
        await alice.disconnect()


async def test_the_api_reaches_users_at_the_other(replicas, connected):
    one, two = replicas
    alice = await connected(one, "alice-at-one")
    await two.api("disconnect", user="alice-at-one")
    assert (await alice.events.nth("disconnected")).code == 3503
