// The vocabulary of these tests: `wyd dev` in a folder of its own, and Chromium.
//
// WYD_BIN is the binary, WYD_CHROMIUM the browser, WYD_SCREENSHOTS the folder for pictures.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

import { chromium } from "playwright-core";

const START_TIMEOUT_MS = 30_000;
// Longer than the default drain.
const STOP_TIMEOUT_MS = 30_000;

async function freePort() {
  const server = net.createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

/** `wyd dev`: can be stopped and started again on the same ports and the same data. */
export class Dev {
  static async start() {
    const dev = new Dev();
    dev.folder = mkdtempSync(join(tmpdir(), "wyd-dev-"));
    dev.port = await freePort();
    dev.internalPort = await freePort();
    await dev.start();
    return dev;
  }

  get demo() {
    return `http://127.0.0.1:${this.port}/`;
  }

  get console() {
    return `http://127.0.0.1:${this.internalPort}/`;
  }

  async start() {
    // Nothing of this machine's configuration: what a newcomer has is what is tested.
    const { PATH, HOME } = process.env;
    const env = {
      PATH,
      HOME,
      WYD__LISTEN: `127.0.0.1:${this.port}`,
      WYD__INTERNAL_LISTEN: `127.0.0.1:${this.internalPort}`,
    };
    this.log = "";
    this.process = spawn(process.env.WYD_BIN, ["dev"], { cwd: this.folder, env, stdio: ["ignore", "pipe", "pipe"] });
    this.process.stdout.on("data", (text) => (this.log += text));
    this.process.stderr.on("data", (text) => (this.log += text));
    this.ended = once(this.process, "exit");
    const until = Date.now() + START_TIMEOUT_MS;
    while (Date.now() < until) {
      if (this.process.exitCode !== null) {
        throw new Error(`wyd dev ended with ${this.process.exitCode}:\n${this.log}`);
      }
      const answer = await fetch(`${this.console}readyz`).catch(() => undefined);
      if (answer?.status === 200) return;
      await sleep(50);
    }
    this.process.kill("SIGKILL");
    throw new Error(`wyd dev was not ready in time:\n${this.log}`);
  }

  /** Ends the process, not the data; returns its exit code. */
  async stop() {
    this.process.kill("SIGTERM");
    const timer = setTimeout(() => this.process.kill("SIGKILL"), STOP_TIMEOUT_MS);
    const [code] = await this.ended;
    clearTimeout(timer);
    return code;
  }

  async remove() {
    if (this.process.exitCode === null) await this.stop();
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** Headless Chromium that looks nothing up on the network by itself. */
export function launch() {
  const args = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ];
  // Chromium's sandbox refuses to run as root, which is what containers are.
  if (process.getuid() === 0) args.push("--no-sandbox");
  return chromium.launch({ executablePath: process.env.WYD_CHROMIUM ?? "/usr/bin/chromium", headless: true, args });
}

/** Opens a tab of its own context: its own storage, as another person's browser. */
export async function tab(browser, size = { width: 480, height: 720 }) {
  const context = await browser.newContext({ viewport: size });
  const page = await context.newPage();
  page.setDefaultTimeout(15_000);
  // What went wrong inside the page, to be empty at the end.
  page.troubles = [];
  page.on("pageerror", (error) => page.troubles.push(`${error}`));
  page.on("request", (request) => {
    if (!request.url().startsWith("data:") && new URL(request.url()).hostname !== "127.0.0.1") {
      page.troubles.push(`the page asked another host: ${request.url()}`);
    }
  });
  return page;
}

export const screenshot = (page, name) =>
  page.screenshot({ path: join(process.env.WYD_SCREENSHOTS ?? tmpdir(), `${name}.png`) });
