"""Programs that people build on Redis's collections, with redis-py against a cluster: a leaderboard, two job queues whose
workers crash, and tags and sessions. They run at the same time, and a node is killed in the middle.

usage: redis_programs.py REDIS_PORT [KVDB ENDPOINT FOLDER_WITH_PIDS_OF_NODES]
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
import uuid

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

PORT = int(sys.argv[1])
KVDB, ENDPOINT, PIDS = sys.argv[2:5] if len(sys.argv) > 2 else (None, None, None)
# A database of one shard: the second queue is there, and its leader is the node that is killed.
COLOCATED = 2
JOBS = 200
# How often a worker crashes at each of two places in a job.
CRASHES = 0.04
# What a worker ends with: it has taken a job and not done it, or done it and not said so.
CRASHED_BEFORE, CRASHED_AFTER = 11, 12


def connect(db=0):
    """A client that doesn't try again by itself: what it asks for counts once."""
    return redis.Redis(port=PORT, db=db, socket_timeout=30, retry=Retry(NoBackoff(), 0), decode_responses=True)


# Set once a node is dead, or at once where none is to be killed.
KILLED = threading.Event()


def turns(least):
    """Counts turns: at least so many before a node dies, and as many after it."""
    number = 0
    while number < least or not KILLED.is_set():
        yield number
        number += 1
    yield from range(number, number + least)


def in_threads(*functions):
    """Runs functions at the same time; the first failure of any is raised."""
    failures = []

    def guarded(function):
        try:
            function()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    if failures:
        raise failures[0]


def leaderboard():
    """Games add to scores; the ranking is right at each look, and in the end every game counts once."""
    tag = uuid.uuid4()
    board, best = f"{{board:{tag}}}points", f"{{board:{tag}}}best"
    players = [f"player-{number:02}" for number in range(30)]
    points, highest = dict.fromkeys(players, 0), {}
    lock = threading.Lock()
    over = threading.Event()

    def play(seed):
        client, rng = connect(), random.Random(seed)
        for _ in turns(40):
            player, won = rng.choice(players), rng.randint(1, 50)
            with client.pipeline(transaction=True) as pipe:
                pipe.zincrby(board, won, player)
                pipe.zadd(best, {player: won}, gt=True)
                total, _ = pipe.execute()
            with lock:
                points[player] += won
                highest[player] = max(won, highest.get(player, 0))
                assert total >= won and total <= sum(points.values()) + 4 * 50

    def watch():
        client, seen = connect(), {}
        while not over.is_set():
            with client.pipeline(transaction=True) as pipe:
                pipe.zrevrange(board, 0, -1, withscores=True)
                pipe.zcard(board)
                pipe.zrevrange(board, 0, 2)
                pipe.zrevrank(board, players[7])
                pipe.zrank(board, players[7])
                ranking, count, top, rank, from_below = pipe.execute()
            names = [name for name, _ in ranking]
            assert ranking == sorted(ranking, key=lambda row: (row[1], row[0]), reverse=True), ranking
            assert len(set(names)) == len(names) == count and top == names[:3]
            if players[7] in names:
                assert rank == names.index(players[7]) and from_below == count - 1 - rank
            for name, score in ranking:
                assert score >= seen.get(name, 0), f"{name} has lost points"
                seen[name] = score

    def play_all():
        try:
            in_threads(*(lambda seed=seed: play(seed) for seed in range(4)))
        finally:
            over.set()

    in_threads(play_all, watch)
    client = connect()
    assert dict(client.zrange(board, 0, -1, withscores=True)) == {name: won for name, won in points.items() if won}
    assert dict(client.zrange(best, 0, -1, withscores=True)) == highest
    above = [name for name, won in points.items() if won >= 500]
    assert client.zcount(board, 500, "+inf") == len(above)
    if above:
        assert client.zremrangebyscore(board, 500, "inf") == len(above)
        assert set(client.zrange(board, 0, -1)) == {name for name, won in points.items() if 0 < won < 500}


def work(db, prefix, number):
    """A worker: a process of its own. It takes a job into a list of its own, does it, and then says so in a transaction."""
    client, rng = connect(db), random.Random(number)
    own = f"{prefix}taken:{number}"
    while client.get(f"{prefix}closed") is None or client.llen(f"{prefix}waiting") > 0:
        if number % 2:
            job = client.rpoplpush(f"{prefix}waiting", own)
        else:
            job = client.lmove(f"{prefix}waiting", own, "RIGHT", "LEFT")
        if job is None:
            time.sleep(0.02)
            continue
        if rng.random() < CRASHES:
            os._exit(CRASHED_BEFORE)
        client.hincrby(f"{prefix}done", job, 1)
        if rng.random() < CRASHES:
            os._exit(CRASHED_AFTER)
        with client.pipeline(transaction=True) as pipe:
            pipe.lrem(own, 1, job)
            pipe.lpush(f"{prefix}finished", job)
            removed, _ = pipe.execute()
        assert removed == 1, f"{job} was taken by somebody else, too"


def job_queue(db, prefix):
    """A reliable queue: what a crashed worker had taken goes back. No job is lost, none is done more often than that."""
    client = connect(db)
    expected = {f"job-{number}": 1 for number in range(JOBS)}
    crashes = {CRASHED_BEFORE: 0, CRASHED_AFTER: 0}

    def produce():
        producer = connect(db)
        for job in expected:
            producer.lpush(f"{prefix}waiting", job)
        producer.set(f"{prefix}closed", 1)

    fork(produce)
    running, born = {}, 0
    while running or client.llen(f"{prefix}finished") < JOBS:
        # All may have crashed or gone home, and left jobs to those who come next.
        while len(running) < 3:
            born += 1
            running[fork(lambda: work(db, prefix, born))] = born
        process, status = os.wait()
        code, number = os.waitstatus_to_exitcode(status), running.pop(process, None)
        if number is None:
            assert code == 0, "the producer has failed"
            continue
        own = f"{prefix}taken:{number}"
        held = client.lrange(own, 0, -1)
        if code == 0:
            assert held == [], f"worker {number} has left {held}"
            if client.llen(f"{prefix}finished") == JOBS:
                break
            continue
        assert code in crashes, f"worker {number} ended with {code}"
        assert len(held) == 1, f"worker {number} had taken one job, not {held}"
        crashes[code] += 1
        expected[held[0]] += code == CRASHED_AFTER
        assert client.lmove(own, f"{prefix}waiting", "LEFT", "RIGHT") == held[0]
    for _ in running:
        assert os.wait()[1] == 0
    done = {job: int(times) for job, times in client.hgetall(f"{prefix}done").items()}
    wrong = {job: (times, done.get(job, 0)) for job, times in expected.items() if done.get(job, 0) != times}
    assert not wrong, f"expected and done: {wrong}"
    assert sorted(client.lrange(f"{prefix}finished", 0, -1)) == sorted(expected), "each is finished once"
    assert client.llen(f"{prefix}waiting") == 0
    assert crashes[CRASHED_BEFORE] and crashes[CRASHED_AFTER], crashes
    print(f"  crashes of workers: {crashes[CRASHED_BEFORE]} before a job, {crashes[CRASHED_AFTER]} after one", flush=True)


def fork(function):
    """Runs a function in a process of its own. (This one must have no threads.)"""
    process = os.fork()
    if process == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return process


def tags_and_sessions():
    """Articles with tags in sets, whose combinations always fit; sessions in hashes, which end, and whose fields do."""
    site = f"{{site:{uuid.uuid4()}}}"
    names = ["rust", "raft", "disk", "sleep"]
    over = threading.Event()
    tagged = {}

    def write(seed):
        client, rng = connect(), random.Random(seed)
        for turn in turns(30):
            article = f"{seed}-{turn % 20}"
            wanted = set(rng.sample(names, rng.randint(1, 4)))
            with client.pipeline(transaction=True) as pipe:
                for name in names:
                    (pipe.sadd if name in wanted else pipe.srem)(f"{site}tag:{name}", article)
                pipe.delete(f"{site}tags:{article}")
                pipe.sadd(f"{site}tags:{article}", *wanted)
                pipe.execute()
            tagged[article] = wanted

    def read():
        client = connect()
        while not over.is_set():
            with client.pipeline(transaction=True) as pipe:
                pipe.smembers(f"{site}tag:rust")
                pipe.smembers(f"{site}tag:raft")
                pipe.sinter(f"{site}tag:rust", f"{site}tag:raft")
                pipe.sunion(f"{site}tag:rust", f"{site}tag:raft")
                pipe.sdiff(f"{site}tag:rust", f"{site}tag:raft")
                pipe.sintercard(2, [f"{site}tag:rust", f"{site}tag:raft"])
                rust, raft, both, either, only, count = pipe.execute()
            assert both == rust & raft and either == rust | raft and only == rust - raft and count == len(both)

    def write_all():
        try:
            in_threads(*(lambda seed=seed: write(seed) for seed in range(2)))
        finally:
            over.set()

    def sessions():
        client = connect()
        for number in range(10):
            session, of_user = f"{site}session:{number}", f"{site}sessions-of:{number % 2}"
            with client.pipeline(transaction=True) as pipe:
                pipe.hset(session, mapping={"user": number % 2, "seen": 0, "notice": "welcome"})
                pipe.hexpire(session, 3600, "seen")
                pipe.hpexpire(session, 1500, "notice")
                pipe.expire(session, 600)
                pipe.sadd(of_user, number)
                pipe.execute()
            for _ in range(5):
                client.hincrby(session, "seen", 1)
        # Number 0 isn't used any more.
        client.pexpire(f"{site}session:0", 1000)
        until = time.monotonic() + 30
        while client.exists(f"{site}session:0") or any(client.hexists(f"{site}session:{n}", "notice") for n in range(1, 10)):
            assert time.monotonic() < until, "a session or a notice never ends"
            time.sleep(0.1)
        assert client.hgetall(f"{site}session:0") == {}
        for number in range(1, 10):
            session = f"{site}session:{number}"
            assert client.hgetall(session) == {"user": str(number % 2), "seen": "5"}
            assert client.hlen(session) == 2 and 0 < client.ttl(session) <= 600
            assert 0 < client.httl(session, "seen")[0] <= 3600 and client.httl(session, "user") == [-1]
        # Everywhere logged out.
        ended = client.smembers(f"{site}sessions-of:1")
        assert client.delete(*(f"{site}session:{number}" for number in ended)) == 5

    in_threads(write_all, read, sessions)
    client = connect()
    for name in names:
        expected = {article for article, tags in tagged.items() if name in tags}
        assert client.smembers(f"{site}tag:{name}") == expected, name
    for article, tags in tagged.items():
        assert client.smembers(f"{site}tags:{article}") == tags, article


def kill_a_leader(finished):
    """Kills the node that leads the database of one shard, once a third of the jobs of the queue in it are done."""
    client = connect(COLOCATED)
    until = time.monotonic() + 120
    while client.llen(finished) < JOBS // 3:
        assert time.monotonic() < until, "the queue doesn't get on"
        time.sleep(0.05)

    def ask(what):
        told = subprocess.run([KVDB, "--endpoint", ENDPOINT, "admin", what, "--json"], check=True, capture_output=True)
        return json.loads(told.stdout)[what]

    name = next(one["name"] for one in ask("keyspaces") if one["redis_db"] == COLOCATED)
    leader = next(one["leader_node_id"] for one in ask("shards") if one["keyspace"] == name)
    with open(f"{PIDS}/node-{leader}.pid") as file:
        os.kill(int(file.read()), signal.SIGKILL)
    print(f"node {leader} is killed, with {client.llen(finished)} of {JOBS} jobs done", flush=True)


def main():
    # The database is there before its queue is used.
    connect(COLOCATED).set("ready", 1)
    started = time.monotonic()

    def timed(name, program):
        program()
        print(f"{name}: ok, {time.monotonic() - started:.1f} s", flush=True)

    queues = f"{{queue:{uuid.uuid4()}}}", f"queue:{uuid.uuid4()}:"
    processes = [
        fork(lambda: timed("job queue in one hash tag", lambda: job_queue(0, queues[0]))),
        fork(lambda: timed("job queue in a colocated database", lambda: job_queue(COLOCATED, queues[1]))),
    ]

    def join(process):
        assert os.waitpid(process, 0)[1] == 0, "a job queue has failed, see above"

    programs = [
        lambda: timed("leaderboard", leaderboard),
        lambda: timed("tags and sessions", tags_and_sessions),
        *(lambda process=process: join(process) for process in processes),
    ]

    def kill():
        try:
            if PIDS:
                kill_a_leader(f"{queues[1]}finished")
        finally:
            KILLED.set()

    in_threads(kill, *programs)


if __name__ == "__main__":
    main()
