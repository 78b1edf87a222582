// Submit a fine-tune from Node: node submit.mjs DATASET_URL ORDER
// It writes the Celery message itself; docs/contract/messages/finetune.run.json is one as Celery writes it.
import { randomUUID } from "node:crypto";
import { connect } from "./resp.mjs";

const [dataset, order] = process.argv.slice(2);
if (order === undefined) {
  console.error("usage: node submit.mjs DATASET_URL ORDER");
  process.exit(1);
}
const request = {
  name: `order-${order}`,
  instance_prompt: "photo of 1MAN",
  trigger_word: "1MAN",
  dataset,
  labels: { order },
  reply_to: ["stream://finetune-results"],
};
const jobId = randomUUID(); // the task's id becomes the job's: the same message twice is one job
const body = [[request], {}, { callbacks: null, errbacks: null, chain: null, chord: null }];
const message = {
  body: Buffer.from(JSON.stringify(body)).toString("base64"),
  "content-encoding": "utf-8",
  "content-type": "application/json",
  headers: { lang: "js", task: "finetune.run", id: jobId, root_id: jobId },
  properties: {
    correlation_id: jobId,
    delivery_mode: 2,
    delivery_info: { exchange: "", routing_key: "finetune" },
    priority: 9,
    body_encoding: "base64",
    delivery_tag: randomUUID(),
  },
};
const redis = connect(process.env.FINETUNE_REDIS_URL);
// The list of priority 9, the last: new requests do not keep what was started from going on.
await redis.send("LPUSH", "{finetune}:finetune\x06\x169", JSON.stringify(message));
redis.close();
console.log(jobId);
