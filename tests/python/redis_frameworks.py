"""RQ, Dramatiq's results and rate limits, and django-redis against a gateway, as far as they go without scripts, streams,
publish/subscribe and blocking commands. What is missing for each is checked, too, so that docs/redis.md stays right.

usage: redis_frameworks.py REDIS_PORT
"""

import contextlib
import logging
import os
import sys
import threading
import time
import uuid

import redis

PORT = int(sys.argv[1])
# Both use transactions on keys that don't share a hash tag: a colocated database takes them.
RQ_DB, DRAMATIQ_DB, DJANGO_DB = 5, 6, 7


def connect(db):
    return redis.Redis(port=PORT, db=db, socket_timeout=30)


def refuses(function, *words):
    """Whether an error of the server names what is missing."""
    try:
        function()
    except redis.ResponseError as error:
        assert any(word in str(error) for word in words), f"expected one of {words}: {error}"
        return
    raise AssertionError(f"expected an error with one of {words}; docs/redis.md says that it is missing")


@contextlib.contextmanager
def told(name):
    """Collects what is logged, errors with what caused them."""
    lines, logger = [], logging.getLogger(name)
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(logging.Formatter().format(record))
    # Not the handler of the framework's own, which writes them all out.
    before, logger.handlers = logger.handlers, [handler]
    try:
        yield lines
    finally:
        logger.handlers = before


def add(key, number):
    """A job of RQ's: notes in Redis that it ran."""
    return connect(RQ_DB).incrby(key, number)


def fail():
    raise ValueError("as meant")


def rq_():
    """Queues, jobs, dependencies, schedules, registries and workers in bursts. No results: these are streams."""
    from datetime import timedelta

    import rq
    from rq import Queue, SimpleWorker
    from rq.job import Job
    from rq.registry import FailedJobRegistry, FinishedJobRegistry, ScheduledJobRegistry

    connection = connect(RQ_DB)
    key = f"ran:{uuid.uuid4()}"
    queue = Queue(f"queue-{uuid.uuid4()}", connection=connection, default_timeout=60)

    class WithoutChannel:
        """Over its channel a worker is told to stop a job or to shut down."""

        def subscribe(self):
            pass

    class Worker(WithoutChannel, SimpleWorker):
        pass

    class ForkingWorker(WithoutChannel, rq.Worker):
        """The usual one: a process for each job."""

    jobs = [queue.enqueue(add, key, 1, result_ttl=0) for _ in range(10)]
    first = queue.enqueue(add, key, 1000, at_front=True, result_ttl=0)
    assert queue.get_job_ids()[0] == first.id and queue.count == 11
    dependent = queue.enqueue(add, key, 100, depends_on=jobs[-1], result_ttl=0)
    assert dependent.get_status() == "deferred" and len(queue.deferred_job_registry) == 1
    cancelled = queue.enqueue(add, key, 10_000)
    cancelled.cancel()
    assert cancelled.get_status(refresh=True) == "canceled"
    later = queue.enqueue_in(timedelta(hours=1), add, key, 10_000)
    assert later.id in ScheduledJobRegistry(queue=queue)

    worker = Worker([queue], connection=connection)
    worker.work(burst=True, logging_level="ERROR")
    assert int(connection.get(key)) == 10 + 1000 + 100
    worker.refresh()
    assert queue.count == 0 and worker.successful_job_count == 12, worker.successful_job_count
    assert len(queue.deferred_job_registry) == 0 and len(queue.started_job_registry) == 0
    assert len(FailedJobRegistry(queue=queue)) == 0
    assert not Job.exists(first.id, connection=connection), "a job without a result goes"

    # Two workers share a queue.
    [queue.enqueue(add, key, 1, result_ttl=0) for _ in range(10)]
    both = [ForkingWorker([queue], connection=connect(RQ_DB)) for _ in range(2)]
    # Signals belong to the main thread: the workers take turns, a few jobs each.
    for turn in range(4):
        both[turn % 2].work(burst=True, max_jobs=3, logging_level="ERROR")
    assert int(connection.get(key)) == 10 + 1000 + 100 + 10 and queue.count == 0

    # What needs more. A result is an entry of a stream; whoever asks for one that isn't there asks a stream.
    kept = queue.enqueue(add, key, 1)
    with told("rq.worker") as lines:
        worker.work(burst=True, logging_level="ERROR")
    assert any("XADD" in line for line in lines), lines
    assert int(connection.get(key)) == 10 + 1000 + 100 + 10 + 1, "the job has run"
    assert kept.get_status(refresh=True) == "started", "nobody learns that it has"
    refuses(lambda: kept.latest_result(), "XREVRANGE")
    refuses(lambda: queue.enqueue(add, key, 1, job_id=f"once-{uuid.uuid4()}", unique=True), "EVALSHA", "SCRIPT")
    ended = []
    threading.excepthook = lambda told: ended.append(str(told.exc_value))
    queue.enqueue(add, key, 1, result_ttl=0)
    SimpleWorker([queue], connection=connection).work(burst=True, logging_level="CRITICAL")
    assert len(ended) == 1 and "SUBSCRIBE" in ended[0], ended
    assert int(connection.get(key)) == 10 + 1000 + 100 + 10 + 2, "a worker without its channel works"
    threading.excepthook = threading.__excepthook__
    refuses(lambda: Queue.dequeue_any([queue], 1, connection=connection), "BLMOVE", "BLPOP")
    refuses(queue.empty, "EVALSHA", "SCRIPT")


def dramatiq_():
    """Results and rate limits. The broker itself is one script."""
    import dramatiq
    from dramatiq.brokers.redis import RedisBroker
    from dramatiq.brokers.stub import StubBroker
    from dramatiq.rate_limits import Barrier, BucketRateLimiter, ConcurrentRateLimiter, WindowRateLimiter
    from dramatiq.rate_limits.backends import RedisBackend as LimitsBackend
    from dramatiq.results import ResultFailure, ResultMissing, Results
    from dramatiq.results.backends import RedisBackend

    results = RedisBackend(client=connect(DRAMATIQ_DB), namespace=f"results-{uuid.uuid4()}")
    broker = StubBroker()
    broker.add_middleware(Results(backend=results))
    dramatiq.set_broker(broker)

    @dramatiq.actor(store_results=True)
    def double(number):
        return 2 * number

    @dramatiq.actor(store_results=True, max_retries=0)
    def failing():
        raise ValueError("as meant")

    messages = [double.send(number) for number in range(10)]
    try:
        messages[0].get_result()
        raise AssertionError("nothing has run yet")
    except ResultMissing:
        pass
    failed = failing.send()
    logging.getLogger("dramatiq").setLevel(logging.CRITICAL + 1)
    worker = dramatiq.Worker(broker, worker_threads=2)
    worker.start()
    broker.join(double.queue_name, fail_fast=False)
    worker.join()
    worker.stop()
    assert [message.get_result() for message in messages] == [2 * number for number in range(10)]
    assert messages[3].get_result() == 6, "a result can be read again"
    try:
        failed.get_result()
        raise AssertionError("a failure is a result, too")
    except ResultFailure as failure:
        assert "as meant" in str(failure)

    limits = LimitsBackend(client=connect(DRAMATIQ_DB))
    one = ConcurrentRateLimiter(limits, f"one-{uuid.uuid4()}", limit=2)
    with one.acquire(), one.acquire():
        with one.acquire(raise_on_failure=False) as acquired:
            assert not acquired, "two of two are taken"
    with one.acquire(raise_on_failure=False) as acquired:
        assert acquired
    for limiter in (
        BucketRateLimiter(limits, f"bucket-{uuid.uuid4()}", limit=3, bucket=600_000),
        WindowRateLimiter(limits, f"window-{uuid.uuid4()}", limit=3, window=600),
    ):
        taken = []

        def take(limiter=limiter, taken=taken):
            with limiter.acquire(raise_on_failure=False) as acquired:
                taken.append(acquired)

        threads = [threading.Thread(target=take) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert sorted(taken) == [False] * 5 + [True] * 3, (limiter, taken)
    barrier = Barrier(limits, f"barrier-{uuid.uuid4()}")
    assert barrier.create(parties=2)
    assert not barrier.wait(block=False)
    assert barrier.wait(block=False)

    # What needs more.
    refuses(lambda: messages[0].copy(options={}).get_result(block=True, timeout=1000), "BRPOPLPUSH")
    broker = RedisBroker(client=connect(DRAMATIQ_DB))
    refuses(lambda: broker.enqueue(messages[0].copy(options={})), "EVALSHA", "SCRIPT")


def django_():
    """django-redis's cache in an application: values, counters, expiry, patterns, sets, hashes, sorted sets, locks."""
    from django.conf import settings

    location = f"redis://127.0.0.1:{PORT}/{DJANGO_DB}"
    settings.configure(CACHES={"default": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": location}})
    from django.core.cache import cache
    from django_redis import get_redis_connection

    cache.clear()
    assert cache.set("user", {"name": "Ada"}, timeout=60) and cache.get("user") == {"name": "Ada"}
    assert 0 < cache.ttl("user") <= 60
    assert cache.get_or_set("made", lambda: 7) == 7 and cache.add("made", 8) is False
    assert cache.incr("made") == 8 and cache.decr("made", 3) == 5
    cache.set_many({f"page:{number}": number for number in range(50)}, timeout=300)
    assert cache.get_many([f"page:{number}" for number in range(3)]) == {"page:0": 0, "page:1": 1, "page:2": 2}
    assert sorted(cache.iter_keys("page:1*")) == sorted(f"page:{number}" for number in [1, *range(10, 20)])
    assert cache.delete_pattern("page:*", itersize=10) == 50 and cache.keys("page:*") == []
    assert cache.touch("user", 600) and cache.ttl("user") > 60 and cache.persist("user") and cache.ttl("user") is None
    cache.sadd("tags", "a", "b")
    assert cache.smembers("tags") == {"a", "b"} and cache.sismember("tags", "a")
    cache.hset("profile", "city", "Bern")
    assert cache.hexists("profile", "city") and cache.hlen("profile") == 1
    cache.zadd("board", {"ada": 3.0, "bob": 1.0})
    assert cache.zincrby("board", 5, "bob") == 6 and cache.zrevrange("board", 0, 0) == ["bob"]
    cache.set("short", 1, timeout=1)
    until = time.monotonic() + 30
    while "short" in cache:
        assert time.monotonic() < until, "it never ends"
        time.sleep(0.05)
    assert get_redis_connection("default").ping()
    cache.clear()
    assert cache.get("user") is None and cache.keys("*") == []

    # What needs more: a lock that is let go, and increments. These fall back to reading and writing, which aren't atomic.
    try:
        cache.incr("missing", ignore_key_check=True)
        raise AssertionError("it takes a script")
    except TypeError as error:
        assert "EVAL" in str(error.__context__)
    lock = cache.lock("lock", timeout=10)
    assert lock.acquire() and not cache.lock("lock").acquire(blocking=False)
    refuses(lock.release, "EVALSHA", "SCRIPT")


if __name__ == "__main__":
    # Jobs name their functions by the module that is imported, not by the program.
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import redis_frameworks

    for program in (redis_frameworks.rq_, redis_frameworks.dramatiq_, redis_frameworks.django_):
        started = time.monotonic()
        program()
        print(f"{program.__name__.rstrip('_')}: ok, {time.monotonic() - started:.1f} s", flush=True)
