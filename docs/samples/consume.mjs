// A Node service that reacts to results on stream://finetune-results: node consume.mjs
// Several of them share the work as one consumer group; what one took and did not finish, it gets again when it starts.
// Events come at least once, so what was done is remembered by the event's id.
import { hostname } from "node:os";
import { connect } from "./resp.mjs";

const [stream, group, me] = ["finetune-results", "orders", process.env.CONSUMER ?? hostname()];
const redis = connect(process.env.FINETUNE_REDIS_URL);

async function handle(event) {
  const done = `orders:done:${event.id}`;
  if (await redis.send("EXISTS", done)) return;
  const { state, labels, weights, error } = event.data;
  if (state === "succeeded") console.log(`order ${labels.order}: weights at ${weights.url}`);
  else if (state === "failed") console.log(`order ${labels.order} failed: ${error.message}`);
  await redis.send("SET", done, 1, "EX", 7 * 24 * 3600);
}

await redis.send("XGROUP", "CREATE", stream, group, "0", "MKSTREAM").catch((error) => {
  if (!error.message.startsWith("BUSYGROUP")) throw error; // it was made before
});
for (let from = "0"; ; ) {
  const reply = await redis.send(
    "XREADGROUP", "GROUP", group, me, "COUNT", 10, "BLOCK", 5000, "STREAMS", stream, from);
  const entries = reply?.[0][1] ?? [];
  if (from !== ">" && entries.length === 0) from = ">"; // nothing left over: on to what is new
  for (const [id, fields] of entries) {
    await handle(JSON.parse(fields[fields.indexOf("event") + 1]));
    await redis.send("XACK", stream, group, id);
  }
}
