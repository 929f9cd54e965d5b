"""What people build on Redis, with redis-py against a cluster: a rate limiter, a session store with expiry, a guard
for idempotency keys and a cache in front of a slow function. A node is killed while they run.

usage: redis_clients.py REDIS_PORT [FILE_WITH_PID_OF_A_NODE]
"""

import os
import signal
import sys
import threading
import time
import uuid

import redis

PORT = int(sys.argv[1])
PID_FILE = sys.argv[2] if len(sys.argv) > 2 else None
# The gateway retries by itself; the client adds nothing to it.
CLIENT = redis.Redis(port=PORT, socket_timeout=30)


def rate_limiter():
    """Of 50 calls from 5 threads exactly 20 are let through in a window."""
    key = f"limit:{uuid.uuid4()}"
    allowed = []

    def call():
        for _ in range(10):
            with CLIENT.pipeline(transaction=True) as pipe:
                pipe.incr(key)
                pipe.expire(key, 60, nx=True)
                count, _ = pipe.execute()
            if count <= 20:
                allowed.append(count)

    threads = [threading.Thread(target=call) for _ in range(5)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(allowed) == list(range(1, 21)), allowed
    assert int(CLIENT.get(key)) == 50, "each call counts once"
    assert 0 < CLIENT.ttl(key) <= 60


def sessions():
    """A session lives as long as it is used, and no longer."""
    session = f"session:{uuid.uuid4()}"
    CLIENT.set(session, "user 7", px=1500)
    for _ in range(3):
        time.sleep(0.3)
        assert CLIENT.getex(session, px=1500) == b"user 7"
    assert CLIENT.expiretime(session) >= time.time() - 2
    deadline = time.monotonic() + 20
    while CLIENT.get(session) is not None:
        assert time.monotonic() < deadline, "the session never ends"
        time.sleep(0.1)
    assert CLIENT.exists(session) == 0 and CLIENT.ttl(session) == -2


def idempotency():
    """Of many who try the same payment, one carries it out and the others see its result."""
    key = f"payment:{uuid.uuid4()}"
    winners = []

    def pay(number):
        if CLIENT.set(key, f"paid by {number}", nx=True, ex=600):
            winners.append(number)

    threads = [threading.Thread(target=pay, args=(number,)) for number in range(10)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(winners) == 1, winners
    assert CLIENT.get(key) == f"paid by {winners[0]}".encode()


def cache():
    """A slow function is called once a key; many keys are asked for at once."""
    calls = []

    def slow(number):
        calls.append(number)
        return str(number * number)

    def cached(numbers):
        prefix = f"{cache_id}:"
        found = CLIENT.mget([prefix + str(number) for number in numbers])
        missing = {number: slow(number) for number, value in zip(numbers, found) if value is None}
        if missing:
            CLIENT.mset({prefix + str(number): value for number, value in missing.items()})
        return [int(missing.get(number, value)) for number, value in zip(numbers, found)]

    cache_id = f"cache:{uuid.uuid4()}"
    numbers = list(range(100))
    for _ in range(3):
        assert cached(numbers) == [number * number for number in numbers]
    assert len(calls) == 100


def optimistic_transfer():
    """WATCH: nothing is lost between accounts that many move money between."""
    tag = uuid.uuid4()
    left, right = f"{{{tag}}}left", f"{{{tag}}}right"
    CLIENT.mset({left: 100, right: 100})

    def move():
        for _ in range(10):
            with CLIENT.pipeline() as pipe:
                while True:
                    try:
                        pipe.watch(left, right)
                        amounts = int(pipe.get(left)), int(pipe.get(right))
                        pipe.multi()
                        pipe.set(left, amounts[0] - 1)
                        pipe.set(right, amounts[1] + 1)
                        pipe.execute()
                        break
                    except redis.WatchError:
                        continue

    threads = [threading.Thread(target=move) for _ in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert [int(value) for value in CLIENT.mget(left, right)] == [70, 130]


def counters_while_a_node_dies():
    """Every increment that was answered counts once."""
    tag = uuid.uuid4()
    keys = [f"count:{tag}:{number}" for number in range(16)]
    answered = dict.fromkeys(keys, 0)

    def count(some):
        for turn in range(60):
            for key in some:
                value = CLIENT.incr(key)
                answered[key] += 1
                assert value == answered[key], f"{key}: {value} after {answered[key]} answers"
            if turn == 15 and some is chunks[0] and PID_FILE:
                with open(PID_FILE) as file:
                    os.kill(int(file.read()), signal.SIGKILL)

    chunks = [keys[0:4], keys[4:8], keys[8:12], keys[12:16]]
    failures = []

    def guarded(some):
        try:
            count(some)
        except Exception as error:  # told below, by the thread that decides
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(some,)) for some in chunks]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not failures, failures
    assert [int(value) for value in CLIENT.mget(keys)] == [60] * 16


def both_versions_and_scans():
    """RESP3, large pipelines, and a walk over all keys."""
    client = redis.Redis(port=PORT, protocol=3, db=4)
    client.flushdb()
    pipe = client.pipeline(transaction=False)
    for number in range(2000):
        pipe.set(f"walk:{number}", number)
        pipe.get(f"walk:{number}")
    results = pipe.execute()
    assert results[1::2] == [str(number).encode() for number in range(2000)]
    assert {int(key.split(b":")[1]) for key in client.scan_iter("walk:*", count=100)} == set(range(2000))
    assert client.dbsize() == 2000
    assert client.config_get("maxclients") == {"maxclients": "10000"}


for program in (
    rate_limiter,
    sessions,
    idempotency,
    cache,
    optimistic_transfer,
    both_versions_and_scans,
    counters_while_a_node_dies,
    rate_limiter,
    sessions,
    idempotency,
    cache,
):
    started = time.monotonic()
    program()
    print(f"{program.__name__}: ok, {time.monotonic() - started:.1f} s")
