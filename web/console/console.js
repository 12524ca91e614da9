// The operator console: this node's figures, every second.

const EVERY_MS = 1_000;
const KEPT = 120;

const $ = (id) => document.getElementById(id);
const history = [];

async function look() {
  try {
    showPushes(await (await fetch("/pushes.json")).json());
    const answer = await fetch("/stats.json");
    if (answer.status === 404) {
      $("node").textContent = "a worker: it has no connections; see /metrics";
    } else {
      show(await answer.json());
    }
  } catch {
    $("ready").textContent = "no answer";
    $("ready").dataset.state = "not-ready";
  }
  setTimeout(look, EVERY_MS);
}

function show(stats) {
  const now = { at: performance.now(), ...stats };
  const last = history.at(-1);
  const seconds = last ? (now.at - last.at) / 1000 : 0;
  now.rate = last ? Math.max(0, (now.deliveries - last.deliveries) / seconds) : 0;
  history.push(now);
  if (history.length > KEPT) history.shift();
  for (const name of ["connections", "deliveries", "channels", "subscriptions"]) {
    $(name).textContent = String(stats[name]);
  }
  $("users").textContent = `${stats.users} users`;
  $("deliveries-rate").textContent = `${Math.round(now.rate).toLocaleString("en")} a second`;
  $("node").textContent = `wyd ${stats.version} · node ${stats.node} · up ${duration(stats.uptime_seconds)}`;
  $("broker").textContent = stats.broker;
  $("memory").textContent = stats.resident_bytes ? `${Math.round(stats.resident_bytes / 2 ** 20)} MiB` : "unknown";
  const namespaces = stats.namespaces.map(({ name, class: kind }) => `${name || "(none)"} (${kind})`);
  $("namespaces").textContent = `Namespaces: ${namespaces.join(", ") || "none"}`;
  const isReady = stats.not_ready.length === 0;
  $("ready").textContent = isReady ? "ready" : `not ready: ${stats.not_ready.join(", ")}`;
  $("ready").dataset.state = isReady ? "ready" : "not-ready";
  draw("connections-line", history.map((point) => point.connections));
  draw("deliveries-line", history.map((point) => point.rate));
}

function showPushes(pushes) {
  $("pushes").hidden = pushes.length === 0;
  const items = pushes.map(({ at_ms: at, device, notification, thread }) => {
    const item = document.createElement("li");
    const said = notification ? `${notification.title}: ${notification.body}` : "(silent)";
    item.textContent = `${new Date(at).toLocaleTimeString("en-GB")} · ${device}… · ${thread} · ${said}`;
    return item;
  });
  $("push-list").replaceChildren(...items);
}

function draw(id, values) {
  const highest = Math.max(1, ...values);
  const points = values.map((value, index) => `${(index * 120) / KEPT},${28 - (value / highest) * 26}`);
  $(id).firstElementChild.setAttribute("points", points.join(" "));
}

function duration(seconds) {
  const minutes = Math.floor(seconds / 60);
  if (minutes < 1) return `${seconds} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 1 ? `${minutes} min` : `${hours} h ${minutes % 60} min`;
}

look();
