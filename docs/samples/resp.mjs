// As much of the Redis protocol as the samples need, so that they run with Node alone. In production use a client
// library such as ioredis: it also does TLS, reconnects and Sentinel.
import net from "node:net";

export function connect(url) {
  const { hostname, port, username, password, pathname } = new URL(url);
  const socket = net.connect(Number(port || 6379), hostname);
  const waiting = [];
  let received = Buffer.alloc(0);

  socket.on("data", (chunk) => {
    received = Buffer.concat([received, chunk]);
    for (let reply; waiting.length && (reply = parse(received, 0)); ) {
      received = received.subarray(reply.end);
      const { resolve, reject } = waiting.shift();
      reply.value instanceof Error ? reject(reply.value) : resolve(reply.value);
    }
  });
  const fail = (error) => waiting.splice(0).forEach(({ reject }) => reject(error));
  socket.on("error", fail);
  socket.on("close", () => fail(new Error("the connection to Redis was closed")));

  const send = (...words) =>
    new Promise((resolve, reject) => {
      waiting.push({ resolve, reject });
      const parts = words.map(String).map((word) => `$${Buffer.byteLength(word)}\r\n${word}\r\n`);
      socket.write(`*${words.length}\r\n${parts.join("")}`);
    });
  if (password) send("AUTH", ...[username, password].filter(Boolean).map(decodeURIComponent)).catch(fail);
  if (pathname.length > 1) send("SELECT", pathname.slice(1)).catch(fail);
  return { send, close: () => socket.end() };
}

// One reply that starts at `at`: { value, end }, or undefined while a part of it is missing.
function parse(bytes, at) {
  const line = bytes.indexOf("\r\n", at);
  if (line < 0) return undefined;
  const text = bytes.toString("utf8", at + 1, line);
  let end = line + 2;
  switch (String.fromCharCode(bytes[at])) {
    case "+": return { value: text, end };
    case "-": return { value: new Error(text), end };
    case ":": return { value: Number(text), end };
    case "$": {
      if (text === "-1") return { value: null, end };
      const last = end + Number(text);
      return bytes.length < last + 2 ? undefined : { value: bytes.toString("utf8", end, last), end: last + 2 };
    }
    case "*": {
      if (text === "-1") return { value: null, end };
      const value = [];
      while (value.length < Number(text)) {
        const item = parse(bytes, end);
        if (!item) return undefined;
        value.push(item.value);
        end = item.end;
      }
      return { value, end };
    }
    default: throw new Error("this is not Redis");
  }
}
