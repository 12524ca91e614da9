// The chat demo and the operator console of `wyd dev`, the way a newcomer meets them.
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { crc32, deflateSync } from "node:zlib";

import { Dev, launch, screenshot, tab } from "./wyd.js";

const HELLO = "hello Bob, are you there?";
const ANSWER = "I am — and I see you, Alice 🙂";

const isOnline = (page) => page.locator("#status", { hasText: /^\s*connected\s*$/ }).waitFor();
const message = (page, text) => page.locator("#messages .message", { hasText: text });
const sees = (page, text) => message(page, text).waitFor();

/** The first visit: the demo asks for a name. */
async function enter(page, url, name) {
  await page.goto(url);
  await page.locator("#name").fill(name);
  await page.locator("#enter").click();
  await isOnline(page);
}

async function say(page, text) {
  await page.locator("#composer").fill(text);
  await page.locator("#send").click();
}

/** The picture of a message is loaded, and small. */
async function seesPicture(page, name) {
  const picture = message(page, name).locator("img");
  await picture.waitFor();
  const end = Date.now() + 15_000;
  for (;;) {
    const width = await picture.evaluate((img) => (img.complete ? img.naturalWidth : 0));
    if (width > 0) {
      assert.ok(width <= 480, `a thumbnail of ${width} pixels`);
      return;
    }
    assert.ok(Date.now() < end, "the picture was not loaded");
    await page.waitForTimeout(100);
  }
}

/** A PNG of 900 × 600 red pixels. */
function redSquare() {
  const chunk = (type, data) => {
    const body = Buffer.concat([Buffer.from(type), data]);
    const frame = Buffer.alloc(8 + body.length);
    frame.writeUInt32BE(data.length);
    body.copy(frame, 4);
    frame.writeUInt32BE(crc32(body), 4 + body.length);
    return frame;
  };
  const header = Buffer.from([0, 0, 3, 132, 0, 0, 2, 88, 8, 2, 0, 0, 0]);
  const row = Buffer.concat([Buffer.from([0]), Buffer.alloc(900 * 3).fill(Buffer.from([200, 20, 30]))]);
  const rows = deflateSync(Buffer.concat(Array(600).fill(row)));
  const signature = Buffer.from([137, 80, 78, 71, 13, 10, 26, 10]);
  return Buffer.concat([signature, chunk("IHDR", header), chunk("IDAT", rows), chunk("IEND", Buffer.alloc(0))]);
}

/** Waits until the number a console element shows satisfies `condition`. */
async function shows(page, selector, condition, what) {
  const end = Date.now() + 15_000;
  let text;
  do {
    text = await page.locator(selector).innerText();
    if (condition(Number(text.replace(/[\s,.']/g, "")))) return;
    await page.waitForTimeout(100);
  } while (Date.now() < end);
  assert.fail(`${selector} shows "${text}", expected ${what}`);
}

/** Every message has its parts, visible, and none covers another. */
async function looksRight(page) {
  const messages = await page.locator("#messages .message").all();
  let previous;
  for (const element of messages) {
    const author = await element.locator(".author").innerText();
    const time = await element.locator(".time").innerText();
    const text = await element.locator(".text").innerText();
    assert.ok(author.trim() && text.trim(), `a message without author or text: "${author}", "${text}"`);
    assert.match(time, /\d{1,2}:\d{2}/);
    assert.ok(await element.getAttribute("data-id"), "a message without data-id");
    assert.ok(Number(await element.getAttribute("data-offset")) > 0, "a message without data-offset");

    const box = await element.boundingBox();
    assert.ok(box.height > 0 && box.width > 0, "a message that cannot be seen");
    const { width } = page.viewportSize();
    assert.ok(box.x >= 0 && box.x + box.width <= width, "a message that is wider than the window");
    for (const part of [".author", ".time", ".text"]) {
      const inner = await element.locator(part).boundingBox();
      assert.ok(inner.y >= box.y - 1 && inner.y + inner.height <= box.y + box.height + 1, `${part} sticks out of its message`);
    }
    const overlap = (a, b) =>
      a.x + 1 < b.x + b.width && b.x + 1 < a.x + a.width && a.y + 1 < b.y + b.height && b.y + 1 < a.y + a.height;
    const [authorBox, timeBox, textBox] = await Promise.all(
      [".author", ".time", ".text"].map((part) => element.locator(part).boundingBox()),
    );
    assert.ok(!overlap(authorBox, timeBox), "author and time overlap");
    assert.ok(!overlap(authorBox, textBox), "author and text overlap");
    assert.ok(!overlap(timeBox, textBox), "time and text overlap");
    if (previous) assert.ok(!overlap(previous, box), "two messages overlap");
    previous = box;
  }
}

describe("wyd dev", () => {
  let dev;
  let browser;
  let alice;
  let bob;
  before(async () => {
    dev = await Dev.start();
    browser = await launch();
    alice = await tab(browser);
    bob = await tab(browser);
  });
  after(async () => {
    await browser?.close();
    await dev?.remove();
  });

  it("lets two people chat at once", async () => {
    await enter(alice, dev.demo, "alice");
    await enter(bob, dev.demo, "bob");

    await say(alice, HELLO);
    await sees(bob, HELLO);
    await say(bob, ANSWER);

    for (const page of [alice, bob]) {
      await sees(page, HELLO);
      await sees(page, ANSWER);
      assert.equal(await message(page, HELLO).count(), 1);
      assert.equal(await message(page, ANSWER).count(), 1);
      assert.equal(await message(page, HELLO).locator(".author").innerText(), "alice");
      assert.equal(await message(page, ANSWER).locator(".author").innerText(), "bob");
    }
  });

  it("shows author, time and text of each message, without overlap", async () => {
    await looksRight(alice);
    await looksRight(bob);
    await screenshot(alice, "chat-alice");
    await screenshot(bob, "chat-bob");
  });

  it("counts both in the operator console", async () => {
    const desk = await tab(browser, { width: 1024, height: 720 });
    await desk.goto(dev.console);
    await shows(desk, "#connections", (number) => number >= 2, "2 or more");
    await shows(desk, "#subscriptions", (number) => number >= 2, "2 or more");
    await shows(desk, "#channels", (number) => number >= 1, "1 or more");
    await shows(desk, "#deliveries", (number) => number >= 4, "4 or more: two messages to two people");
    await screenshot(desk, "console");
    assert.deepEqual(desk.troubles, []);
    await desk.context().close();
  });

  it("shows markup in a message as text", async () => {
    const markup = "<img src=x onerror=\"document.title='owned'\"> & <b>bold</b>";
    await say(alice, markup);
    await sees(bob, markup);
    assert.equal(await bob.locator("#messages img, #messages b").count(), 0);
    assert.notEqual(await bob.title(), "owned");
  });

  it("sends a picture, which shows in the other tab and after a reload", async () => {
    const name = "red square.png";
    await alice.locator("#picture").setInputFiles({ name, mimeType: "image/png", buffer: redSquare() });
    for (const page of [alice, bob]) await seesPicture(page, name);
    assert.equal(await message(bob, name).locator(".author").innerText(), "alice");
    await screenshot(bob, "chat-picture");
    await bob.reload();
    await isOnline(bob);
    await seesPicture(bob, name);
  });

  it("says why a file that only calls itself a picture is not taken", async () => {
    const buffer = Buffer.from('<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>');
    await alice.locator("#picture").setInputFiles({ name: "not one.png", mimeType: "image/png", buffer });
    await alice.locator(".note", { hasText: "not image/png" }).waitFor();
    assert.equal(await message(bob, "not one.png").count(), 0);
  });

  it("shows earlier messages after a reload, once each", async () => {
    await bob.reload();
    await isOnline(bob); // The name is remembered: no question.
    await sees(bob, HELLO);
    await sees(bob, ANSWER);
    assert.equal(await message(bob, HELLO).count(), 1);
    await looksRight(bob);
  });

  it("shows them after a restart of the process, too, to open tabs and to new ones", async () => {
    assert.equal(await dev.stop(), 0);
    await dev.start();
    await isOnline(alice); // By itself, as its connection came back.
    await bob.reload();
    await isOnline(bob);
    await sees(bob, HELLO);
    await sees(bob, ANSWER);
    const again = "back after the restart";
    await say(alice, again);
    await sees(bob, again);
    assert.equal(await message(alice, HELLO).count(), 1);
    assert.equal(await message(bob, HELLO).count(), 1);

    const carol = await tab(browser);
    await carol.goto(`${dev.demo}?name=carol`);
    await isOnline(carol);
    await sees(carol, HELLO);
    await sees(carol, again);
    await screenshot(carol, "chat-after-restart");
    assert.deepEqual(carol.troubles, []);
    await carol.context().close();
  });

  it("had no error in the pages and asked no other host", () => {
    assert.deepEqual([...alice.troubles, ...bob.troubles], []);
  });
});
