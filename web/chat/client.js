// A small client of the Centrifuge JSON protocol: what a phone's SDK does, in one file.
//
// It connects with a token, subscribes with recovery, answers pings, and comes back by itself
// after a break, with the position it had. Products use an official SDK; this one shows the wire.

const RETRY_MIN_MS = 500;
const RETRY_MAX_MS = 20_000;
const COMMAND_TIMEOUT_MS = 5_000;
// The server pings; silence for longer than its interval and this means that the link is dead.
const SILENCE_GRACE_MS = 10_000;
// The error of a token whose time is over: the next connect brings a new one.
const TOKEN_EXPIRED = 109;

export class Client extends EventTarget {
  #url;
  #token;
  #socket = null;
  #id = 0;
  #waiting = new Map();
  #channels = new Map();
  #attempt = 0;
  #silence = null;
  #pingMs = 25_000;
  #isClosed = false;
  #refusal = "";

  /** `token` is an async function that returns a connection token. */
  constructor(url, token) {
    super();
    this.#url = url;
    this.#token = token;
  }

  connect() {
    this.#open();
  }

  close() {
    this.#isClosed = true;
    this.#socket?.close();
  }

  /**
   * Subscribes now and after every reconnect; `handler` gets publications, joins, leaves, and is
   * asked before each.
   */
  subscribe(channel, handler) {
    this.#channels.set(channel, { handler, position: null });
    if (this.#socket?.readyState === WebSocket.OPEN && this.#id > 0) this.#subscribe(channel);
  }

  publish(channel, data) {
    return this.#call({ publish: { channel, data } });
  }

  /** The newest publications that are kept in the channel's history, newest first. */
  history(channel, limit) {
    return this.#call({ history: { channel, limit, reverse: true } }).then((reply) => reply.history.publications);
  }

  presence(channel) {
    return this.#call({ presence: { channel } }).then((reply) => reply.presence.presence ?? {});
  }

  rpc(method, data) {
    return this.#call({ rpc: { method, data } }).then((reply) => reply.rpc.data);
  }

  async #open() {
    this.#say("connecting");
    let token;
    try {
      token = await this.#token();
    } catch {
      this.#retry();
      return;
    }
    const socket = new WebSocket(this.#url);
    this.#socket = socket;
    socket.onopen = async () => {
      try {
        const reply = await this.#call({ connect: { token, name: "demo" } });
        this.#attempt = 0;
        this.#pingMs = (reply.connect.ping ?? 25) * 1000;
        this.#listen();
        await Promise.all([...this.#channels.keys()].map((channel) => this.#subscribe(channel)));
        this.#say("connected");
      } catch (error) {
        // What will be refused again is not asked again: no token of ours, no such channel.
        this.#refusal = error.code && !error.temporary && error.code !== TOKEN_EXPIRED ? error.message : "";
        socket.close();
      }
    };
    socket.onmessage = (event) => {
      this.#listen();
      for (const line of event.data.split("\n")) this.#receive(JSON.parse(line));
    };
    socket.onclose = (event) => {
      if (this.#socket !== socket) return;
      clearTimeout(this.#silence);
      this.#socket = null;
      for (const { reject } of this.#waiting.values()) reject(new Error("connection lost"));
      this.#waiting.clear();
      const isFinal = (event.code >= 3500 && event.code < 4000) || (event.code >= 4500 && event.code < 5000);
      if (this.#refusal) this.#say("offline", this.#refusal);
      else if (isFinal || this.#isClosed) this.#say("offline", event.reason || `closed (${event.code})`);
      else this.#retry();
    };
  }

  // Full jitter: clients that were cut off together do not come back together.
  #retry() {
    const longest = Math.min(RETRY_MAX_MS, RETRY_MIN_MS * 2 ** this.#attempt);
    this.#attempt += 1;
    this.#say("offline", "reconnecting");
    setTimeout(() => this.#open(), RETRY_MIN_MS + Math.random() * longest);
  }

  #listen() {
    clearTimeout(this.#silence);
    this.#silence = setTimeout(() => this.#socket?.close(), this.#pingMs + SILENCE_GRACE_MS);
  }

  async #subscribe(channel) {
    const known = this.#channels.get(channel);
    await known.handler.onSubscribing?.();
    const request = { channel, recoverable: true, join_leave: true };
    if (known.position) Object.assign(request, { recover: true, ...known.position });
    const { subscribe } = await this.#call({ subscribe: request });
    const wasRecovering = Boolean(subscribe.was_recovering);
    if (subscribe.epoch !== undefined) {
      known.position = { offset: subscribe.offset ?? 0, epoch: subscribe.epoch };
    }
    for (const publication of subscribe.publications ?? []) this.#publication(known, publication);
    known.handler.onSubscribed?.({ wasRecovering, recovered: Boolean(subscribe.recovered) });
  }

  #receive(message) {
    if (message.id) {
      const waiting = this.#waiting.get(message.id);
      this.#waiting.delete(message.id);
      if (message.error) waiting?.reject(Object.assign(new Error(message.error.message), message.error));
      else waiting?.resolve(message);
    } else if (message.push) {
      this.#push(message.push);
    } else {
      this.#socket?.send("{}");
    }
  }

  #push(push) {
    const known = this.#channels.get(push.channel);
    if (!known) return;
    if (push.pub) this.#publication(known, push.pub);
    if (push.join) known.handler.onJoin?.(push.join.info);
    if (push.leave) known.handler.onLeave?.(push.leave.info);
    // From 2500 on the server asks for a new subscription, with the position that is known.
    if (push.unsubscribe?.code >= 2500) this.#subscribe(push.channel).catch(() => this.#socket?.close());
  }

  #publication(known, publication) {
    if (known.position && publication.offset) known.position.offset = publication.offset;
    known.handler.onPublication?.(publication);
  }

  #call(command) {
    return new Promise((resolve, reject) => {
      if (this.#socket?.readyState !== WebSocket.OPEN) {
        reject(new Error("not connected"));
        return;
      }
      this.#id += 1;
      const id = this.#id;
      const timer = setTimeout(() => {
        this.#waiting.delete(id);
        reject(new Error("no answer in time"));
      }, COMMAND_TIMEOUT_MS);
      const settle = (done) => (value) => {
        clearTimeout(timer);
        done(value);
      };
      this.#waiting.set(id, { resolve: settle(resolve), reject: settle(reject) });
      this.#socket.send(JSON.stringify({ id, ...command }));
    });
  }

  #say(state, detail = "") {
    this.dispatchEvent(new CustomEvent("state", { detail: { state, detail } }));
  }
}
