// One gateway, by the public JavaScript SDK, on every broker.
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import { channelIn, client, connected, data, event, Gateway, Link, modes, subscribed, token, until } from "./wyd.js";

for (const mode of modes()) {
  describe(mode.name, () => {
    let gateway;
    before(async () => {
      gateway = await Gateway.start(mode);
    });
    after(() => gateway?.stop());

    describe("connecting", () => {
      it("works with a token", async (t) => {
        const alice = await connected(t, gateway, "alice");
        assert.match(alice.context.client, /^[0-9a-f-]{36}$/);
        assert.equal(alice.context.transport, "websocket");
      });

      it("ends for good with a token signed by somebody else", async (t) => {
        const mallory = client(t, gateway, "mallory", { token: token("mallory", {}, "x".repeat(32)) });
        const ended = event(mallory, "disconnected");
        mallory.connect();
        assert.equal((await ended).code, 3500);
      });

      it("ends for good with something that is no token", async (t) => {
        const mallory = client(t, gateway, "mallory", { token: "let me in" });
        const ended = event(mallory, "disconnected");
        mallory.connect();
        assert.equal((await ended).code, 3500);
      });

      it("ends for good without a token", async (t) => {
        const nobody = client(t, gateway, "", { token: "" });
        const ended = event(nobody, "disconnected");
        nobody.connect();
        assert.equal((await ended).code, 3501);
      });

      it("asks the app for a new token when the old one has expired", async (t) => {
        let asked = 0;
        const getToken = async () => {
          asked += 1;
          return token("alice");
        };
        const expired = token("alice", { exp: Math.floor(Date.now() / 1000) - 60 });
        await connected(t, gateway, "alice", { token: expired, getToken });
        assert.equal(asked, 1);
      });

      it("goes on over the end of a token that is renewed", async (t) => {
        let asked = 0;
        const getToken = async () => {
          asked += 1;
          return token("alice");
        };
        const short = token("alice", { exp: Math.floor(Date.now() / 1000) + 2 });
        const alice = await connected(t, gateway, "alice", { token: short, getToken });
        let reconnects = 0;
        alice.on("connecting", () => (reconnects += 1));
        await until(() => asked === 1, "a request for a new token");
        await sleep(1500); // Past the end of the first token: nothing may happen.
        assert.equal(reconnects, 0);
        assert.equal(alice.state, "connected");
      });
    });

    describe("publications", () => {
      it("reach every subscriber, the author too, with the author's name", async (t) => {
        const channel = channelIn("chat");
        const alice = await connected(t, gateway, "alice", { token: token("alice", { info: { name: "Alice" } }) });
        const bob = await connected(t, gateway, "bob");
        const hers = await subscribed(alice, channel);
        const his = await subscribed(bob, channel);

        await hers.publish({ text: "hello, “Bob” 🙂" });

        for (const subscription of [hers, his]) {
          assert.deepEqual(await data(subscription, 1), [{ text: "hello, “Bob” 🙂" }]);
          const { info, offset } = subscription.seen[0];
          assert.equal(info.user, "alice");
          assert.equal(info.client, alice.context.client);
          assert.deepEqual(info.connInfo, { name: "Alice" });
          assert.ok(offset > 0);
        }
      });

      it("come in the order of their offsets, without a gap", async (t) => {
        const channel = channelIn("chat");
        const alice = await connected(t, gateway, "alice");
        const bob = await connected(t, gateway, "bob");
        const hers = await subscribed(alice, channel);
        const his = await subscribed(bob, channel);

        await Promise.all(Array.from({ length: 20 }, (_, number) => (number % 2 ? hers : his).publish({ number })));

        const received = await data(hers, 20);
        assert.deepEqual(await data(his, 20), received);
        const first = hers.seen[0].offset;
        assert.deepEqual(hers.seen.map(({ offset }) => offset), Array.from({ length: 20 }, (_, index) => first + index));
        // What one connection publishes keeps its order.
        const odd = received.map(({ number }) => number).filter((number) => number % 2);
        assert.deepEqual(odd, [...odd].sort((a, b) => a - b));
      });

      it("may come from the server API", async (t) => {
        const channel = channelIn("chat");
        const alice = await connected(t, gateway, "alice");
        const hers = await subscribed(alice, channel);

        const { offset, epoch } = await gateway.api("publish", { channel, data: { text: "from the backend" } });

        assert.deepEqual(await data(hers, 1), [{ text: "from the backend" }]);
        assert.equal(hers.seen[0].offset, offset);
        assert.equal(hers.seen[0].info, undefined);
        assert.equal(typeof epoch, "string");
      });

      it("are refused where no rule allows them", async (t) => {
        const alice = await connected(t, gateway, "alice");
        const hers = await subscribed(alice, channelIn("quiet"));
        await assert.rejects(hers.publish({ text: "psst" }), { code: 103 });
        await assert.rejects(alice.publish(channelIn("chat"), { text: "not a subscriber" }), { code: 103 });
        await assert.rejects(alice.publish("nowhere:1", { text: "no such namespace" }), { code: 102 });
      });

      it("of durable channels carry the message's id", { skip: !mode.durable && "not durable" }, async (t) => {
        const alice = await connected(t, gateway, "alice");
        const hers = await subscribed(alice, channelIn("chat"));
        await hers.publish({ text: "for the archive" });
        await data(hers, 1);
        assert.match(hers.seen[0].tags.id, /^[0-9a-f-]{36}$/);
      });
    });

    describe("subscriptions", () => {
      it("end when the client says so", async (t) => {
        const channel = channelIn("chat");
        const alice = await connected(t, gateway, "alice");
        const hers = await subscribed(alice, channel);
        const ended = event(hers, "unsubscribed");
        hers.unsubscribe();
        assert.equal((await ended).code, 0);

        // The gateway has read the unsubscribe when it answers what was sent after it.
        await assert.rejects(alice.history(channel, { limit: 1 }), { code: 103 });
        await gateway.api("publish", { channel, data: {} });
        const witness = await subscribed(alice, channelIn("chat"));
        await witness.publish({});
        await data(witness, 1);
        assert.equal(hers.seen.length, 0);
      });

      it("are refused for good in a namespace nobody configured", async (t) => {
        const alice = await connected(t, gateway, "alice");
        const subscription = alice.newSubscription("nowhere:1");
        const ended = event(subscription, "unsubscribed");
        subscription.subscribe();
        assert.equal((await ended).code, 102);
      });

      it("are refused for good where no rule allows them", async (t) => {
        const alice = await connected(t, gateway, "alice");
        const subscription = alice.newSubscription(channelIn("closed"));
        const ended = event(subscription, "unsubscribed");
        subscription.subscribe();
        assert.equal((await ended).code, 103);
      });

      it("tell who joins and who leaves", async (t) => {
        const channel = channelIn("chat");
        const alice = await connected(t, gateway, "alice");
        const hers = await subscribed(alice, channel, { joinLeave: true });
        const names = { join: [], leave: [] };
        for (const name of ["join", "leave"]) hers.on(name, ({ info }) => names[name].push(info.user));

        const bob = await connected(t, gateway, "bob");
        const his = await subscribed(bob, channel);
        await until(() => names.join.includes("bob"), "bob's join");
        his.unsubscribe();
        await until(() => names.leave.includes("bob"), "bob's leave");
      });
    });

    describe("presence and history", () => {
      it("say who is here", async (t) => {
        const channel = channelIn("chat");
        const alice = await connected(t, gateway, "alice");
        const hers = await subscribed(alice, channel);
        const phone = await connected(t, gateway, "bob");
        const laptop = await connected(t, gateway, "bob");
        await subscribed(phone, channel);
        await subscribed(laptop, channel);

        const { clients } = await hers.presence();
        assert.deepEqual(
          Object.fromEntries(Object.values(clients).map((info) => [info.client, info.user])),
          { [alice.context.client]: "alice", [phone.context.client]: "bob", [laptop.context.client]: "bob" },
        );
        const stats = await hers.presenceStats();
        assert.deepEqual([stats.numClients, stats.numUsers], [3, 2]);

        laptop.disconnect();
        await until(async () => (await hers.presenceStats()).numClients === 2, "the laptop to be gone");
      });

      it("say what was written, from either end", async (t) => {
        const alice = await connected(t, gateway, "alice");
        const hers = await subscribed(alice, channelIn("chat"));
        for (const number of [1, 2, 3, 4]) await hers.publish({ number });
        await data(hers, 4);
        const numbers = ({ publications }) => publications.map((publication) => publication.data.number);

        const all = await hers.history({ limit: -1 });
        assert.deepEqual(numbers(all), [1, 2, 3, 4]);
        assert.equal(all.offset, hers.seen[3].offset);
        assert.equal(all.publications[0].info.user, "alice");
        assert.deepEqual(numbers(await hers.history({ limit: 2, reverse: true })), [4, 3]);
        const since = { offset: hers.seen[1].offset, epoch: all.epoch };
        assert.deepEqual(numbers(await hers.history({ limit: 10, since })), [3, 4]);
        assert.deepEqual((await hers.history({ limit: 0 })).publications, []);
        await assert.rejects(hers.history({ limit: 1, since: { offset: 1, epoch: "another" } }), { code: 112 });
      });

      it("are refused where they are off", async (t) => {
        const alice = await connected(t, gateway, "alice");
        const hers = await subscribed(alice, channelIn("quiet"));
        await assert.rejects(hers.presence(), { code: 108 });
        await assert.rejects(hers.history({ limit: 1 }), { code: 108 });
      });
    });

    describe("a dropped connection", () => {
      it("comes back and gets exactly what it missed", async (t) => {
        const channel = channelIn("chat");
        const link = await Link.to(gateway);
        t.after(() => link.close());
        const alice = await connected(t, link, "alice");
        const hers = await subscribed(alice, channel);
        await hers.publish({ number: 0 });
        await data(hers, 1);

        link.cut();
        await until(() => alice.state === "connecting", "the client to notice");
        for (const number of [1, 2, 3]) await gateway.api("publish", { channel, data: { number } });
        const back = event(hers, "subscribed");
        link.restore();

        const { wasRecovering, recovered } = await back;
        assert.deepEqual({ wasRecovering, recovered }, { wasRecovering: true, recovered: true });
        await gateway.api("publish", { channel, data: { number: 4 } });
        assert.deepEqual(await data(hers, 5), [0, 1, 2, 3, 4].map((number) => ({ number })));
      });

      it("is told when what it missed is gone", async (t) => {
        const channel = channelIn("chat");
        const link = await Link.to(gateway);
        t.after(() => link.close());
        const alice = await connected(t, link, "alice");
        const hers = await subscribed(alice, channel);
        await hers.publish({ number: 0 });
        await data(hers, 1);

        link.cut();
        await until(() => alice.state === "connecting", "the client to notice");
        for (const number of [1, 2]) await gateway.api("publish", { channel, data: { number } });
        await gateway.api("history_remove", { channel });
        const back = event(hers, "subscribed");
        link.restore();

        const { wasRecovering, recovered } = await back;
        assert.deepEqual({ wasRecovering, recovered }, { wasRecovering: true, recovered: false });
      });
    });

    describe("the server", () => {
      it("does not know that method", async (t) => {
        const alice = await connected(t, gateway, "alice");
        await assert.rejects(alice.rpc("no.such.method", {}), ({ code }) => code === 104 || code === 108);
      });

      it("ends a user's connections for good by the API", async (t) => {
        const alice = await connected(t, gateway, "alice-to-go");
        const bob = await connected(t, gateway, "bob");
        const ended = event(alice, "disconnected");
        await gateway.api("disconnect", { user: "alice-to-go" });
        assert.equal((await ended).code, 3503);
        await bob.ready();
      });

      it("refuses a wrong API key", async () => {
        const answer = await fetch(`http://127.0.0.1:${gateway.port}/api/info`, {
          method: "POST",
          headers: { "X-API-Key": "wrong" },
          body: "{}",
        });
        assert.equal(answer.status, 401);
      });
    });
  });
}
