"""A pytest plugin for redis-py's own tests: a failure counts unless it is that of a command which KvDB doesn't have."""

import os

import pytest

# What KvDB says where docs/redis.md says that something isn't there.
MISSING = (
    "KvDB doesn't have it",
    "KvDB can't change it",
    "between databases is not supported",
    "SWAPDB is not supported",
    "inside a transaction",
    "with a pattern is not supported by SORT",
)
EXPECTED = set(os.environ.get("EXPECTED_FAILURES", "").split())
counts = {"passed": 0, "missing": 0, "expected": 0, "failed": 0}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.when == "call" and report.passed:
        counts["passed"] += 1
    if not report.failed:
        return
    chain, error = [], call.excinfo.value
    while error is not None and len(chain) < 20:
        chain.append(str(error))
        error = error.__cause__ or error.__context__
    text = " ".join(chain)
    if any(words in text for words in MISSING):
        counts["missing"] += 1
    elif item.name in EXPECTED:
        counts["expected"] += 1
    else:
        counts["failed"] += 1
        print(f"\nFAILED {item.name}: {type(call.excinfo.value).__name__} {chain[0][:300]}", flush=True)


def pytest_sessionfinish(session):
    print("\nredis-py:", " ".join(f"{name}={count}" for name, count in counts.items()), flush=True)
    session.exitstatus = 1 if counts["failed"] or not counts["passed"] else 0
