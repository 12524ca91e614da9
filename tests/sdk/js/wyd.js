// The vocabulary of these tests: gateways that start and stop, tokens, clients, a cuttable network.
//
// WYD_BIN is the binary. With WYD_TEST_REDIS_URL the tests run on Redis as well as in memory, and
// with WYD_TEST_KAFKA_BROKERS the channels on Redis are durable.
import { spawn } from "node:child_process";
import { createHmac, randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

import { Centrifuge } from "centrifuge";
import WebSocket from "ws";

const SECRET = randomBytes(32).toString("hex");
const API_KEY = randomBytes(16).toString("hex");
const START_TIMEOUT_MS = 30_000;
const WAIT_TIMEOUT_MS = 15_000;

/** A channel name nobody used before, on a Redis that other tests and earlier runs share. */
export const channelIn = (namespace) => `${namespace}:${randomBytes(6).toString("hex")}`;

// --- what a gateway can run on

const CHAT = {
  presence: true,
  join_leave: true,
  history_size: 100,
  history_ttl: "1h",
  force_recovery: true,
  allow_subscribe_for_client: true,
  allow_publish_for_subscriber: true,
  allow_history_for_subscriber: true,
  allow_presence_for_subscriber: true,
};

function redisMode() {
  const brokers = process.env.WYD_TEST_KAFKA_BROKERS;
  const env = { REDIS_URL: process.env.WYD_TEST_REDIS_URL };
  if (!brokers) {
    return { name: "on Redis", kind: "redis", durable: false, env };
  }
  return { name: "on Redis and Kafka", kind: "redis", durable: true, env: { ...env, KAFKA_BROKERS: brokers } };
}

/** Every set-up these tests run on: memory always, Redis where there is one. */
export function modes() {
  const memory = { name: "in memory", kind: "memory", durable: false, env: {} };
  return process.env.WYD_TEST_REDIS_URL ? [memory, redisMode()] : [memory];
}

/** The set-up with a broker that several gateways share, or undefined. */
export const sharedMode = () => modes().find((mode) => mode.kind === "redis");

function settings(mode, listen, internalListen) {
  const lines = [
    `listen = "${listen}"`,
    `internal_listen = "${internalListen}"`,
    "[broker]",
    `kind = "${mode.kind}"`,
    // One Kafka broker, and no load balancer that needs time to notice a stop.
    "[kafka]",
    "replication = 1",
    "min_insync_replicas = 1",
    "[drain]",
    'delay = "0s"',
    'duration = "200ms"',
    // Nobody may subscribe here, and nobody publish in `quiet`: no rule says so.
    "[namespaces.closed]",
    "presence = false",
    "[namespaces.quiet]",
    "allow_subscribe_for_client = true",
    "[namespaces.chat]",
    ...Object.entries({ ...CHAT, durable: mode.durable }).map(([key, value]) => `${key} = ${JSON.stringify(value)}`),
  ];
  return `${lines.join("\n")}\n`;
}

// --- gateways

async function freePort() {
  const server = net.createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

/** A `wyd gateway` process. */
export class Gateway {
  static async start(mode) {
    const gateway = new Gateway();
    gateway.folder = mkdtempSync(join(tmpdir(), "wyd-sdk-"));
    gateway.port = await freePort();
    gateway.internalPort = await freePort();
    const file = join(gateway.folder, "wyd.toml");
    writeFileSync(file, settings(mode, `127.0.0.1:${gateway.port}`, `127.0.0.1:${gateway.internalPort}`));
    // Nothing else of this machine's configuration.
    const { PATH, HOME, RUST_LOG = "info" } = process.env;
    const env = { PATH, HOME, RUST_LOG, ...mode.env, JWT_SECRET: SECRET, WYD_API_KEY: API_KEY };
    if (mode.durable) {
      // The topics; the archive's schema goes into a file, as no test here reads it.
      await run(["migrate", "--config", file], { ...env, DATABASE_URL: `sqlite://${gateway.folder}/archive.db` });
    }
    gateway.start([process.env.WYD_BIN, "gateway", "--config", file], env);
    await gateway.ready();
    return gateway;
  }

  start([command, ...args], env) {
    this.log = "";
    this.process = spawn(command, args, { env, stdio: ["ignore", "pipe", "pipe"] });
    this.process.stdout.on("data", (text) => (this.log += text));
    this.process.stderr.on("data", (text) => (this.log += text));
    this.ended = once(this.process, "exit");
  }

  async ready() {
    const until = Date.now() + START_TIMEOUT_MS;
    while (Date.now() < until) {
      if (this.process.exitCode !== null) {
        throw new Error(`wyd gateway ended with ${this.process.exitCode}:\n${this.log}`);
      }
      const answer = await fetch(`http://127.0.0.1:${this.internalPort}/readyz`).catch(() => undefined);
      if (answer?.status === 200) return;
      await sleep(50);
    }
    this.process.kill("SIGKILL");
    throw new Error(`wyd gateway was not ready in time:\n${this.log}`);
  }

  get url() {
    return `ws://127.0.0.1:${this.port}/connection/websocket`;
  }

  /** Calls a method of the server API; returns its result. */
  async api(method, params) {
    const answer = await fetch(`http://127.0.0.1:${this.port}/api/${method}`, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-API-Key": API_KEY },
      body: JSON.stringify(params),
    });
    const { result, error } = await answer.json();
    if (error) throw Object.assign(new Error(error.message), { code: error.code });
    return result;
  }

  /** Ends the process the way an orchestrator does; returns its exit code. */
  async stop() {
    this.process.kill("SIGTERM");
    const timer = setTimeout(() => this.process.kill("SIGKILL"), WAIT_TIMEOUT_MS);
    const [code] = await this.ended;
    clearTimeout(timer);
    rmSync(this.folder, { recursive: true, force: true });
    return code;
  }
}

async function run(args, env) {
  const child = spawn(process.env.WYD_BIN, args, { env, stdio: ["ignore", "pipe", "pipe"] });
  let log = "";
  child.stdout.on("data", (text) => (log += text));
  child.stderr.on("data", (text) => (log += text));
  const [code] = await once(child, "close");
  if (code !== 0) throw new Error(`wyd ${args.join(" ")} ended with ${code}:\n${log}`);
}

// --- a network that can be cut

/** A TCP relay to a gateway: clients go through it, and the test cuts it. */
export class Link {
  static async to(gateway) {
    const link = new Link();
    link.target = gateway;
    link.isUp = true;
    link.sockets = new Set();
    link.server = net.createServer((client) => link.relay(client)).listen(0, "127.0.0.1");
    await once(link.server, "listening");
    return link;
  }

  relay(client) {
    if (!this.isUp) {
      client.destroy();
      return;
    }
    const upstream = net.connect(this.target.port, "127.0.0.1");
    for (const [socket, peer] of [[client, upstream], [upstream, client]]) {
      this.sockets.add(socket);
      socket.on("error", () => {});
      socket.on("close", () => {
        this.sockets.delete(socket);
        peer.destroy();
      });
      socket.pipe(peer);
    }
  }

  get url() {
    return `ws://127.0.0.1:${this.server.address().port}/connection/websocket`;
  }

  /** Breaks every connection and lets no new one through. */
  cut() {
    this.isUp = false;
    for (const socket of this.sockets) socket.destroy();
  }

  /** Lets connections through again, to another gateway if one is given. */
  restore(gateway = this.target) {
    this.target = gateway;
    this.isUp = true;
  }

  close() {
    this.cut();
    this.server.close();
  }
}

// --- tokens and clients

/** Makes a connection token; `claims` adds to or replaces what it holds. */
export function token(user, claims = {}, secret = SECRET) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const seconds = Math.floor(Date.now() / 1000);
  const signed = `${part({ alg: "HS256", typ: "JWT" })}.${part({ sub: user, exp: seconds + 600, ...claims })}`;
  return `${signed}.${createHmac("sha256", secret).update(signed).digest("base64url")}`;
}

/** A client of the SDK at `place` (a Gateway or a Link), not connected yet; it goes when the test ends. */
export function client(t, place, user, options = {}) {
  const made = new Centrifuge(place.url, {
    websocket: WebSocket,
    token: token(user),
    minReconnectDelay: 20,
    maxReconnectDelay: 200,
    ...options,
  });
  t.after(() => made.disconnect());
  return made;
}

/** A connected client. */
export async function connected(t, place, user, options) {
  const made = client(t, place, user, options);
  const ready = event(made, "connected");
  made.connect();
  made.context = await ready;
  return made;
}

/** A subscription that is on, with `seen`, the publications that came so far. */
export async function subscribed(who, channel, options) {
  const subscription = who.newSubscription(channel, { minResubscribeDelay: 20, maxResubscribeDelay: 200, ...options });
  subscription.seen = [];
  subscription.on("publication", (publication) => subscription.seen.push(publication));
  const ready = event(subscription, "subscribed");
  subscription.subscribe();
  subscription.context = await ready;
  return subscription;
}

/** The next event of that name. */
export function event(emitter, name) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no "${name}" event in time`)), WAIT_TIMEOUT_MS);
    emitter.once(name, (context) => {
      clearTimeout(timer);
      resolve(context);
    });
  });
}

/** Waits until `condition()` is true. */
export async function until(condition, what) {
  const end = Date.now() + WAIT_TIMEOUT_MS;
  while (!(await condition())) {
    if (Date.now() > end) throw new Error(`not in time: ${what}`);
    await sleep(20);
  }
}

/** Waits for so many publications and returns their data. */
export async function data(subscription, count) {
  await until(() => subscription.seen.length >= count, `${count} publications, here: ${subscription.seen.length}`);
  return subscription.seen.map((publication) => publication.data);
}
