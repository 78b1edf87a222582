// A web sink in Node, with the signature checked (Standard Webhooks): node webhook.mjs
// FINETUNE_SIGNING_SECRET is the same as the workers'. Prints the port that it listens on.
import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";

const key = Buffer.from(process.env.FINETUNE_SIGNING_SECRET.replace("whsec_", ""), "base64");
const FIVE_MINUTES = 300;

function isSigned(headers, body) {
  const [id, time] = [headers["webhook-id"], headers["webhook-timestamp"]];
  if (!id || !(Math.abs(Date.now() / 1000 - Number(time)) < FIVE_MINUTES)) return false;
  const expected = createHmac("sha256", key).update(`${id}.${time}.`).update(body).digest();
  return (headers["webhook-signature"] ?? "").split(" ").some((text) => {
    const given = Buffer.from(text.replace("v1,", ""), "base64");
    return given.length === expected.length && timingSafeEqual(given, expected);
  });
}

const server = createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const body = Buffer.concat(chunks);
  if (!isSigned(request.headers, body)) return response.writeHead(401).end();
  const event = JSON.parse(body);
  console.log(`${event.id} ${event.data.state}`); // a real one keeps the id, and does its work after the answer
  response.writeHead(204).end();
});
server.listen(Number(process.env.PORT ?? 0), "127.0.0.1", () => console.log(`listening on ${server.address().port}`));
