// What people build on Redis, with ioredis against a cluster: a rate limiter, a session store with expiry, a guard for
// idempotency keys and a cache in front of a slow function.
// usage: node ioredis.mjs PATH_OF_IOREDIS REDIS_PORT
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

const [ioredis, port] = process.argv.slice(2);
const Redis = createRequire(import.meta.url)(ioredis);
const client = new Redis({ port: Number(port) });

async function rateLimiter() {
  const key = `limit:${randomUUID()}`;
  const call = async () => {
    const [[, count]] = await client.multi().incr(key).expire(key, 60, "NX").exec();
    return count <= 20;
  };
  const allowed = await Promise.all(Array.from({ length: 50 }, call));
  assert.equal(allowed.filter(Boolean).length, 20);
  assert.equal(await client.get(key), "50");
}

async function sessions() {
  const key = `session:${randomUUID()}`;
  await client.set(key, "user 7", "PX", 1000);
  assert.equal(await client.getex(key, "PX", 1000), "user 7");
  const until = Date.now() + 20_000;
  while ((await client.get(key)) !== null) {
    assert(Date.now() < until, "the session never ends");
    await sleep(100);
  }
  assert.equal(await client.ttl(key), -2);
}

async function idempotency() {
  const key = `payment:${randomUUID()}`;
  const tries = Array.from({ length: 10 }, (_, number) => client.set(key, number, "EX", 600, "NX"));
  const results = await Promise.all(tries);
  assert.equal(results.filter((result) => result === "OK").length, 1);
  assert.equal(await client.get(key), String(results.indexOf("OK")));
}

async function cache() {
  const prefix = `cache:${randomUUID()}:`;
  let calls = 0;
  const numbers = Array.from({ length: 100 }, (_, number) => number);
  const cached = async () => {
    const found = await client.mget(numbers.map((number) => prefix + number));
    const pipeline = client.pipeline();
    const values = found.map((value, number) => {
      if (value !== null) return Number(value);
      calls += 1;
      pipeline.set(prefix + number, number * number);
      return number * number;
    });
    await pipeline.exec();
    return values;
  };
  for (let turn = 0; turn < 3; turn += 1) {
    assert.deepEqual(await cached(), numbers.map((number) => number * number));
  }
  assert.equal(calls, 100);
}

for (const program of [rateLimiter, sessions, idempotency, cache]) {
  await program();
  console.log(`${program.name}: ok`);
}
await client.quit();
