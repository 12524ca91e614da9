// Two gateways that share a broker: what crosses from one to the other.
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";

import { channelIn, connected, data, event, Gateway, Link, sharedMode, subscribed, until } from "./wyd.js";

const mode = sharedMode();

describe("two gateways", { skip: !mode && "WYD_TEST_REDIS_URL is not set" }, () => {
  let one;
  let two;
  before(async () => {
    one = await Gateway.start(mode);
    two = await Gateway.start(mode);
  });
  after(async () => {
    await one?.stop();
    await two?.stop();
  });

  it("deliver what was published at the other, in one order", async (t) => {
    const channel = channelIn("chat");
    const alice = await connected(t, one, "alice");
    const bob = await connected(t, two, "bob");
    const hers = await subscribed(alice, channel);
    const his = await subscribed(bob, channel);

    await Promise.all(Array.from({ length: 20 }, (_, number) => (number % 2 ? hers : his).publish({ number })));

    assert.deepEqual(await data(hers, 20), await data(his, 20));
    assert.deepEqual(hers.seen.map(({ offset }) => offset), his.seen.map(({ offset }) => offset));
  });

  it("know who is at the other", async (t) => {
    const channel = channelIn("chat");
    const alice = await connected(t, one, "alice");
    const bob = await connected(t, two, "bob");
    const hers = await subscribed(alice, channel);
    await subscribed(bob, channel);
    const users = async () => Object.values((await hers.presence()).clients).map(({ user }) => user).sort();
    await until(async () => (await users()).join() === "alice,bob", "both in presence");

    bob.disconnect();
    await until(async () => (await users()).join() === "alice", "bob to be gone");
  });

  it("hand over a client that comes back at the other", async (t) => {
    const channel = channelIn("chat");
    const link = await Link.to(one);
    t.after(() => link.close());
    const alice = await connected(t, link, "alice");
    const hers = await subscribed(alice, channel);
    await hers.publish({ number: 0 });
    await data(hers, 1);

    link.cut();
    await until(() => alice.state === "connecting", "the client to notice");
    for (const number of [1, 2, 3]) await one.api("publish", { channel, data: { number } });
    const back = event(hers, "subscribed");
    link.restore(two);

    assert.equal((await back).recovered, true);
    await one.api("publish", { channel, data: { number: 4 } });
    assert.deepEqual(await data(hers, 5), [0, 1, 2, 3, 4].map((number) => ({ number })));
  });

  it("end a user's connections at the other by the API", async (t) => {
    const alice = await connected(t, one, "alice-at-one");
    const ended = event(alice, "disconnected");
    await two.api("disconnect", { user: "alice-at-one" });
    assert.equal((await ended).code, 3503);
  });

  it("send their clients to the other when they stop", async (t) => {
    const channel = channelIn("chat");
    const leaving = await Gateway.start(mode);
    const link = await Link.to(leaving);
    t.after(() => link.close());
    const alice = await connected(t, link, "alice");
    const hers = await subscribed(alice, channel);
    await hers.publish({ number: 0 });
    await data(hers, 1);

    const told = event(alice, "connecting");
    const back = event(hers, "subscribed");
    link.target = two; // New connections go to the other, as behind a load balancer.
    assert.equal(await leaving.stop(), 0);

    assert.equal((await told).code, 3001);
    assert.equal((await back).recovered, true);
    await one.api("publish", { channel, data: { number: 1 } });
    assert.deepEqual(await data(hers, 2), [{ number: 0 }, { number: 1 }]);
  });
});
