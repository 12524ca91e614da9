// A small chat load on one or more gateways: connect with a token, subscribe, publish, receive.
//
//   WYD_URLS          comma-separated WebSocket URLs of the replicas
//   WYD_TOKEN_SECRET  the HMAC secret the gateways check tokens with
//   WYD_VUS, WYD_DURATION_SECONDS, WYD_ROOM_SIZE   the load (40 users, 20 s, 4 users a room)
//
// The users of a room are spread over the replicas, so most deliveries cross from one to another.
import { check } from "k6";
import crypto from "k6/crypto";
import encoding from "k6/encoding";
import exec from "k6/execution";
import { Counter, Trend } from "k6/metrics";
import { WebSocket } from "k6/websockets";

const URLS = (__ENV.WYD_URLS || "ws://127.0.0.1:8000/connection/websocket").split(",");
const SECRET = __ENV.WYD_TOKEN_SECRET;
const VUS = Number(__ENV.WYD_VUS || 40);
const DURATION_SECONDS = Number(__ENV.WYD_DURATION_SECONDS || 20);
const ROOM_SIZE = Number(__ENV.WYD_ROOM_SIZE || 4);
const PUBLISH_EVERY_MS = 1000;
// The last publications need time to arrive before the connection is closed.
const SETTLE_MS = 2000;

const connectTime = new Trend("wyd_connect_time", true);
const deliveryTime = new Trend("wyd_delivery_time", true);
const published = new Counter("wyd_published");
const received = new Counter("wyd_received");
const errors = new Counter("wyd_errors");

export const options = {
  scenarios: {
    chat: {
      executor: "per-vu-iterations",
      vus: VUS,
      iterations: 1,
      maxDuration: `${DURATION_SECONDS + 20}s`,
    },
  },
  thresholds: {
    wyd_connect_time: ["p(95)<1000"],
    wyd_delivery_time: ["p(95)<500", "p(99)<1000"],
    wyd_received: ["count>0"],
    wyd_errors: ["count==0"],
    checks: ["rate>0.99"],
  },
};

function token(user) {
  const part = (value) => encoding.b64encode(JSON.stringify(value), "rawurl");
  const claims = { sub: user, exp: Math.floor(Date.now() / 1000) + 600 };
  const signed = `${part({ alg: "HS256", typ: "JWT" })}.${part(claims)}`;
  return `${signed}.${crypto.hmac("sha256", SECRET, signed, "base64rawurl")}`;
}

export function setup() {
  if (!SECRET) {
    exec.test.abort("WYD_TOKEN_SECRET is not set");
  }
  // Rooms of an earlier run on the same Redis must not be ours.
  return { run: `${Date.now()}` };
}

export default function (shared) {
  const vu = exec.vu.idInTest - 1;
  const user = `user-${vu}`;
  const channel = `chat:k6-${shared.run}-${Math.floor(vu / ROOM_SIZE)}`;
  const socket = new WebSocket(URLS[vu % URLS.length]);
  const begun = Date.now();

  // Replies by command id; a publication of a room member is told by its sender and number.
  const waiting = new Map();
  let lastId = 0;
  let lastNumber = 0;
  let acknowledged = 0;
  let own = 0;
  let lastOffset = 0;
  let inOrder = true;
  let isConnected = false;
  let isSubscribed = false;
  let isClosing = false;

  function command(body, onReply) {
    lastId += 1;
    waiting.set(lastId, onReply);
    socket.send(JSON.stringify(Object.assign({ id: lastId }, body)));
  }

  function onPublication(publication) {
    received.add(1);
    deliveryTime.add(Date.now() - publication.data.at);
    if (publication.offset !== lastOffset + 1) {
      inOrder = false;
    }
    lastOffset = publication.offset;
    if (publication.data.user === user) {
      own += 1;
    }
  }

  function publish() {
    lastNumber += 1;
    published.add(1);
    const data = { user, number: lastNumber, at: Date.now(), text: "how are things in the other replica?" };
    command({ publish: { channel, data } }, () => {
      acknowledged += 1;
    });
  }

  function onSubscribed(result) {
    isSubscribed = true;
    lastOffset = result.offset || 0;
    // Spread over the second, as people are.
    setTimeout(() => {
      publish();
      const timer = setInterval(publish, PUBLISH_EVERY_MS);
      setTimeout(() => clearInterval(timer), DURATION_SECONDS * 1000 - SETTLE_MS);
    }, Math.random() * PUBLISH_EVERY_MS);
    setTimeout(() => {
      isClosing = true;
      socket.close();
    }, DURATION_SECONDS * 1000 + SETTLE_MS);
  }

  function onReply(reply) {
    if (reply.id) {
      const done = waiting.get(reply.id);
      waiting.delete(reply.id);
      if (reply.error) {
        errors.add(1);
        console.error(`${user}: ${reply.error.code} ${reply.error.message}`);
      } else {
        done(reply);
      }
    } else if (reply.push && reply.push.pub) {
      onPublication(reply.push.pub);
    } else if (!reply.push) {
      socket.send("{}"); // An empty reply is a ping; the answer is an empty command.
    }
  }

  socket.onopen = () => {
    command({ connect: { token: token(user), name: "k6" } }, () => {
      isConnected = true;
      connectTime.add(Date.now() - begun);
      command({ subscribe: { channel } }, (reply) => onSubscribed(reply.subscribe));
    });
  };
  socket.onmessage = (event) => {
    for (const line of event.data.split("\n")) {
      onReply(JSON.parse(line));
    }
  };
  socket.onerror = (event) => {
    if (!isClosing) {
      errors.add(1);
      console.error(`${user}: ${event.error}`);
    }
  };
  socket.onclose = () => {
    check(null, {
      connected: () => isConnected,
      subscribed: () => isSubscribed,
      "stayed connected to the end": () => isClosing,
      "every publish was acknowledged": () => acknowledged === lastNumber && lastNumber > 0,
      "every own publication came back": () => own === lastNumber,
      "publications came in order, without a gap": () => inOrder,
    });
  };
}
