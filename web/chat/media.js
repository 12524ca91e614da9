// Pictures: announced over the connection, uploaded beside it, and shown when they are ready.

/** Uploads a file into a channel; what comes of it is published there. */
export async function upload(client, channel, file) {
  const bytes = await file.arrayBuffer();
  const medium = await client.rpc("media.create", {
    channel,
    name: file.name,
    content_type: file.type,
    size: file.size,
    sha256: await sha256(bytes),
    idempotency_key: crypto.randomUUID(),
  });
  // One request, or one for each part of a large file; each may be sent again.
  for (const { method, url, headers, offset, size } of medium.upload.requests) {
    const body = bytes.slice(offset, offset + size);
    const answer = await fetch(url, { method, headers, body });
    if (!answer.ok) throw new Error(`upload: ${answer.status} ${await answer.text()}`);
  }
  await client.rpc("media.complete", { id: medium.id });
}

/** Returns where a picture of a good size for a message is, with its size. */
export async function download(client, id) {
  const { download: found } = await client.rpc("media.get", { id });
  const { thumbnails } = found.picture;
  const { url: src, width, height } = thumbnails.find((one) => Math.max(one.width, one.height) >= 400) ?? thumbnails.at(-1);
  return { src, width, height };
}

async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
