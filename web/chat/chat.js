// The chat demo: earlier messages from the archive, then what is said now.

import { Client } from "./client.js";
import { download, upload } from "./media.js";

const PAGE = 50;
const PAGE_MAX = 300;
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
// Own messages that have no place in the channel yet, by their text.
const pending = new Map();
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
    // A member once is one for good; a channel without members says so, and needs none.
    onSubscribing: () => client.rpc("channel.join", { channel }).catch(() => {}),
    onPublication: (publication) => published(client, publication),
    onSubscribed: async ({ wasRecovering, recovered }) => {
      if (wasRecovering) note("You are back.");
      if (!recovered) await earlier(client);
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
  $("picture").addEventListener("change", () => {
    for (const file of $("picture").files) sendPicture(client, file);
    $("picture").value = "";
  });
  client.connect();
}

// The picture shows when its thumbnails are made: for its sender as for everybody.
async function sendPicture(client, file) {
  const sending = note(`Sending ${file.name}…`);
  try {
    await upload(client, channel, file);
    sending.remove();
  } catch (error) {
    sending.textContent = `${file.name} was not sent: ${error.message}`;
  }
}

async function showPicture(client, item, { id, name }) {
  if (item.querySelector("img")) return;
  const picture = document.createElement("img");
  picture.alt = name || "picture";
  item.querySelector(".text").after(picture);
  try {
    const { src, width, height } = await download(client, id);
    Object.assign(picture, { src, width, height });
  } catch {
    picture.remove();
  }
}

// What was said before: the archive has it all, but runs a moment behind; the newest are in the
// channel's history. Offsets order both, ids tell what is the same.
async function earlier(client) {
  const seen = newestOffset();
  const [archived, kept] = await Promise.allSettled([
    seen ? archivedSince(client, seen) : archivedPage(client, { limit: PAGE }),
    client.history(channel, PAGE),
  ]);
  for (const message of archived.value ?? []) {
    said(client, {
      id: message.id,
      offset: message.offset,
      user: message.user,
      name: message.info?.conn_info?.name,
      tags: message.tags,
      data: message.deleted_at ? { text: "(deleted)" } : message.data,
      time: message.time,
    });
  }
  for (const publication of (kept.value ?? []).reverse()) published(client, publication);
  if (archived.reason && kept.reason) note("Earlier messages cannot be read.");
}

async function archivedSince(client, after) {
  const all = [];
  for (;;) {
    const page = await archivedPage(client, { after: all.at(-1)?.offset ?? after, limit: PAGE_MAX });
    all.push(...page);
    if (page.length < PAGE_MAX) return all;
  }
}

async function archivedPage(client, where) {
  return (await client.rpc("message.list", { channel, ...where })).messages;
}

function newestOffset() {
  return Math.max(0, ...[...shown.values()].map((item) => Number(item?.dataset.offset ?? 0)));
}

function published(client, { tags, offset, info, data }) {
  // The tag, not the data: anybody may publish data that looks like an edit.
  if (tags?.["wyd.kind"]) {
    changed(tags["wyd.kind"], tags["wyd.target"], data);
    return;
  }
  const user = info?.user ?? "";
  const own = user === me && !shown.has(tags?.id) ? pending.get(data?.text) : undefined;
  if (own && tags?.id) {
    // One's own message comes back before its answer does.
    confirm(own, tags.id, offset);
    return;
  }
  said(client, { id: tags?.id, tags, offset, user, name: info?.conn_info?.name, data, time: Date.now() });
}

// A message is a text, or what the server says about somebody's picture.
function said(client, { data, tags, ...message }) {
  // The tag, not the data: only the server can set it.
  const { type, media } = tags?.["wyd.media"] ? data : {};
  if (type === "media.ready") {
    const item = show({ ...message, user: media.user, name: media.user, text: media.name || "picture" });
    if (media.picture) showPicture(client, item, media);
  } else if (type === "media.rejected") {
    if (media.user === me && !shown.has(message.id)) {
      note(`${media.name || "The picture"} was not taken: ${media.reason.message}`);
    }
    shown.set(message.id, null);
  } else {
    show({ ...message, text: data?.text });
  }
}

function changed(kind, id, data) {
  const body = shown.get(id)?.querySelector(".text");
  if (!body) return;
  const text = kind === "deleted" ? "(deleted)" : data?.data?.text;
  body.textContent = typeof text === "string" ? text : "(no text)";
}

function confirm(item, id, offset) {
  if (pending.get(item.dataset.text) === item) pending.delete(item.dataset.text);
  shown.set(id, item);
  item.dataset.id = id;
  item.classList.remove("pending");
  place(item, offset);
}

// Sent again with the same key until it is acknowledged: it is published once.
async function send(client, text) {
  const key = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
  const item = show({ user: me, name: me, text, time: Date.now() });
  item.dataset.text = text;
  item.classList.add("pending");
  pending.set(text, item);
  const isPlaced = () => Boolean(item.dataset.offset);
  for (let attempt = 0; attempt < RESENDS; attempt += 1) {
    try {
      const sent = await client.rpc("message.send", { channel, data: { text }, idempotency_key: key });
      const twin = shown.get(sent.id);
      if (!twin && !isPlaced()) confirm(item, sent.id, sent.offset);
      // Another one of the same words came first and took this one's place.
      else if (twin && twin !== item && !isPlaced()) item.remove();
      break;
    } catch (error) {
      const isForGood = error.code && !error.temporary;
      if (isForGood) break;
      await new Promise((resolve) => setTimeout(resolve, RESEND_AFTER_MS));
    }
  }
  if (pending.get(text) === item) pending.delete(text);
  if (!isPlaced()) item.classList.replace("pending", "failed");
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
  return item;
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
  const ask = () => me || $("welcome").showModal();
  ask();
  // Without a name there is nothing to show: Escape asks again.
  $("welcome").addEventListener("close", ask);
  $("who").addEventListener("submit", () => {
    const name = $("name").value.trim();
    if (!name) return;
    localStorage.setItem("wyd-name", name);
    start(name);
  });
}
