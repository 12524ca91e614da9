// The chat demo: earlier messages from the archive, then what is said now.

import { Client } from "./client.js";

const PAGE = 50;
const TYPING_EVERY_MS = 2_000;
const TYPING_SHOWN_MS = 3_500;
const RESENDS = 5;
const RESEND_AFTER_MS = 1_500;

const $ = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const channel = query.get("channel") ?? "chat:lobby";
const live = `live:${channel.split(":").pop()}`;
const shown = new Map();
const typists = new Map();
let me = "";
let lastTyping = 0;

$("channel").textContent = channel;

function start(name) {
  me = name;
  document.title = `${name} · ${channel}`;
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const client = new Client(`${scheme}://${location.host}/connection/websocket`, async () => {
    const answer = await fetch(`/dev/token?user=${encodeURIComponent(name)}`);
    if (!answer.ok) throw new Error("no token");
    return (await answer.json()).token;
  });
  client.addEventListener("state", ({ detail: { state, detail } }) => {
    $("status").textContent = detail ? `${state}: ${detail}` : state;
    $("status").dataset.state = state;
    $("composer").disabled = $("send").disabled = state !== "connected";
    if (state === "connected") $("composer").focus();
  });
  client.subscribe(channel, {
    onPublication: (publication) => show({
      id: publication.tags?.id,
      offset: publication.offset,
      user: publication.info?.user ?? "",
      name: publication.info?.conn_info?.name,
      text: publication.data?.text,
      time: Date.now(),
    }),
    onSubscribed: async ({ wasRecovering, recovered }) => {
      if (wasRecovering) note(recovered ? "You are back: nothing was missed." : "You are back.");
      if (!wasRecovering || !recovered) await older(client);
      await countHere(client);
    },
    onJoin: () => countHere(client),
    onLeave: () => countHere(client),
  });
  client.subscribe(live, {
    onPublication: ({ info }) => {
      if (info && info.user !== me) seeTyping(info.conn_info?.name ?? info.user);
    },
  });
  $("compose").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = $("composer").value.trim();
    if (!text) return;
    $("composer").value = "";
    send(client, text);
  });
  $("composer").addEventListener("input", () => {
    if (Date.now() - lastTyping < TYPING_EVERY_MS) return;
    lastTyping = Date.now();
    client.publish(live, { typing: true }).catch(() => {});
  });
  client.connect();
}

async function older(client) {
  const { messages } = await client.rpc("message.list", { channel, limit: PAGE });
  for (const message of messages) {
    show({
      id: message.id,
      offset: message.offset,
      user: message.user,
      name: message.info?.conn_info?.name,
      text: message.data?.text,
      time: message.time,
    });
  }
}

// Sent again with the same key until it is acknowledged: it is published once.
async function send(client, text) {
  const key = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
  const item = show({ id: key, user: me, name: me, text, time: Date.now() });
  item.classList.add("pending");
  for (let attempt = 0; attempt < RESENDS; attempt += 1) {
    try {
      const sent = await client.rpc("message.send", { channel, data: { text }, idempotency_key: key });
      // The publication itself may have come first; then this one has done its work.
      const twin = shown.get(sent.id);
      shown.delete(key);
      if (twin && twin !== item) {
        item.remove();
      } else {
        shown.set(sent.id, item);
        item.dataset.id = sent.id;
        place(item, sent.offset);
        item.classList.remove("pending");
      }
      return;
    } catch (error) {
      const isForGood = error.code && !error.temporary;
      if (isForGood) break;
      await new Promise((resolve) => setTimeout(resolve, RESEND_AFTER_MS));
    }
  }
  item.classList.replace("pending", "failed");
  item.title = "This message was not sent.";
}

function show({ id, offset, user, name, text, time }) {
  const known = shown.get(id);
  if (known) {
    if (offset) place(known, offset);
    return known;
  }
  const item = document.createElement("article");
  item.className = user === me ? "message mine" : "message";
  item.dataset.id = id ?? "";
  item.dataset.time = time;
  const head = document.createElement("div");
  head.className = "head";
  const author = document.createElement("span");
  author.className = "author";
  author.textContent = name ?? (user || "server");
  author.style.color = colour(author.textContent);
  const clock = document.createElement("time");
  clock.className = "time";
  clock.dateTime = new Date(time).toISOString();
  clock.textContent = new Date(time).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  const body = document.createElement("div");
  body.className = "text";
  // Never as HTML: it is what somebody wrote.
  body.textContent = typeof text === "string" ? text : "(no text)";
  head.append(author, clock);
  item.append(head, body);
  if (id) shown.set(id, item);
  place(item, offset);
  return item;
}

// Offsets order a channel for good; what has none yet is the newest.
function place(item, offset) {
  const list = $("messages");
  const isAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 80;
  if (offset) item.dataset.offset = offset;
  const own = Number(item.dataset.offset ?? Infinity);
  const later = [...list.querySelectorAll(".message")].find(
    (other) => other !== item && Number(other.dataset.offset ?? Infinity) > own,
  );
  list.insertBefore(item, later ?? null);
  days();
  if (isAtEnd) list.scrollTop = list.scrollHeight;
}

function days() {
  for (const day of document.querySelectorAll(".day")) day.remove();
  let last = new Date().toDateString();
  for (const item of document.querySelectorAll(".message")) {
    const date = new Date(Number(item.dataset.time));
    if (date.toDateString() === last) continue;
    last = date.toDateString();
    const day = document.createElement("p");
    day.className = "day";
    day.textContent = date.toLocaleDateString([], { weekday: "long", day: "numeric", month: "long" });
    item.before(day);
  }
}

function note(text) {
  const item = document.createElement("p");
  item.className = "note";
  item.textContent = text;
  $("messages").append(item);
}

async function countHere(client) {
  const members = await client.presence(channel).catch(() => null);
  if (!members) return;
  const count = new Set(Object.values(members).map((info) => info.user)).size;
  $("here").textContent = count === 1 ? "only you are here ·" : `${count} are here ·`;
}

function seeTyping(name) {
  clearTimeout(typists.get(name));
  typists.set(name, setTimeout(() => {
    typists.delete(name);
    tellTyping();
  }, TYPING_SHOWN_MS));
  tellTyping();
}

function tellTyping() {
  const names = [...typists.keys()];
  $("typing").textContent = names.length ? `${names.join(", ")} ${names.length > 1 ? "are" : "is"} typing…` : "";
}

function colour(name) {
  let hash = 0;
  for (const letter of name) hash = (hash * 31 + letter.codePointAt(0)) % 360;
  return `light-dark(hsl(${hash} 65% 33%), hsl(${hash} 70% 72%))`;
}

const known = query.get("name") ?? localStorage.getItem("wyd-name");
if (known) {
  start(known);
} else {
  $("welcome").showModal();
  $("who").addEventListener("submit", () => {
    const name = $("name").value.trim();
    if (!name) return;
    localStorage.setItem("wyd-name", name);
    start(name);
  });
}
