"""A tour of KvDB's data API from Python, with stubs generated from the .proto files.

    pip install grpcio grpcio-tools
    python -m grpc_tools.protoc -Iproto --python_out=stubs --grpc_python_out=stubs proto/kvdb/v1/*.proto
    kvdb dev --temporary &
    PYTHONPATH=stubs python examples/python/tour.py 127.0.0.1:7400
"""

import sys
import threading
import time
import uuid

import grpc
from kvdb.v1 import common_pb2 as common, kv_pb2 as pb, kv_pb2_grpc

endpoint = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7400"
# A message may have up to 20 MiB; Python's default is 4.
channel = grpc.insecure_channel(endpoint, options=[("grpc.max_receive_message_length", 20 << 20)])
kv = kv_pb2_grpc.KvStub(channel)

CLIENT = f"tour-{uuid.uuid4()}"
sequence = 0


def request_id():
    """An identity under which a write may be sent again: it takes effect once."""
    global sequence
    sequence += 1
    in_5_minutes = int(time.time() * 1000) + 300_000
    # One write at a time: all before this one are settled.
    return common.RequestId(
        client_id=CLIENT, sequence=sequence, acked_below=sequence, valid_until_ms=in_5_minutes
    )


def write(method, request, timeout=5):
    """Sends a write under its identity.

    Until when an identity is valid is judged by the clock of the key's shard. Where that differs from the clock
    here, the write is refused before anything is done, and the refusal tells the shard's time: stamp the identity
    anew by that and send it again. Never do that after an attempt whose answer was lost: it must stay the same.
    """
    for _ in range(2):
        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as error:
            shard_time_ms = dict(error.trailing_metadata() or ()).get("x-shard-time-ms")
            if shard_time_ms is None:
                raise
            request.request_id.valid_until_ms = int(shard_time_ms) + 300_000
    return method(request, timeout=timeout)


# Put and get. Keys and values are bytes.
put = pb.PutRequest(key=b"tour:greeting", value=b"hello", request_id=request_id())
written = write(kv.Put, put)
assert kv.Get(pb.GetRequest(key=b"tour:greeting"), timeout=5).value == b"hello"

# Compare and set: only if nobody has written since.
update = pb.PutRequest(
    key=b"tour:greeting", value=b"hello again", condition=common.Condition(if_version=written.version)
)
assert kv.Put(update, timeout=5).applied
assert not kv.Put(update, timeout=5).applied, "the version has changed"

# A retry under the same id does not count twice.
increment = pb.IncrementRequest(key=b"tour:visits", delta=1, request_id=request_id())
first = write(kv.Increment, increment).value
assert kv.Increment(increment, timeout=5).value == first

# An identity that was stamped by a clock that is wrong by a day.
late = pb.DeleteRequest(key=b"tour:nothing", request_id=request_id())
late.request_id.valid_until_ms -= 86_400_000
assert not write(kv.Delete, late).applied

# Expiry, changed without the value.
kv.Put(pb.PutRequest(key=b"tour:session", value=b"s", ttl_ms=60_000), timeout=5)
assert kv.Expire(pb.ExpireRequest(key=b"tour:session", ttl_ms=0), timeout=5).applied
assert kv.Get(pb.GetRequest(key=b"tour:session"), timeout=5).expires_at_ms == 0

# Many at once; each has a result of its own.
operations = [
    pb.WriteOperation(key=b"tour:item:%d" % n, put=pb.PutAction(value=b"%d" % n)) for n in range(10)
]
results = kv.BatchWrite(pb.BatchWriteRequest(operations=operations), timeout=5).results
assert all(result.applied for result in results)
keys = [b"tour:item:3", b"tour:missing"]
found = [result.found for result in kv.BatchGet(pb.BatchGetRequest(keys=keys), timeout=5).results]
assert found == [True, False]

# A read that any replica may serve, but not from before our own write.
fresh = pb.GetRequest(key=b"tour:item:3", consistency=common.EVENTUAL, min_version=results[3].version)
assert kv.Get(fresh, timeout=5).value == b"3"

# A scan comes in pages.
items = [item.key for page in kv.Scan(pb.ScanRequest(prefix=b"tour:item:"), timeout=5) for item in page.items]
assert len(items) == 10

# A watch: its first message says that it stands.
watch = kv.Watch(pb.WatchRequest(prefix=b"tour:item:"), timeout=30)
assert next(watch).HasField("progress")
writer = threading.Thread(target=lambda: kv.Delete(pb.DeleteRequest(key=b"tour:item:7"), timeout=5))
writer.start()
for message in watch:
    if message.events:
        event = message.events[0]
        assert (event.kind, event.key) == (pb.WatchEvent.DELETE, b"tour:item:7")
        break
cursor = message.cursor
watch.cancel()
writer.join()

# Another watch goes on from the cursor, at any gateway.
kv.Put(pb.PutRequest(key=b"tour:item:8", value=b"new"), timeout=5)
for message in kv.Watch(pb.WatchRequest(prefix=b"tour:item:", cursor=cursor), timeout=30):
    if message.events:
        assert (message.events[0].key, message.events[0].value) == (b"tour:item:8", b"new")
        break

# A refusal has a status, and a code in the trailers.
try:
    kv.Put(pb.PutRequest(key=b"", value=b"x"), timeout=5)
    raise AssertionError("an empty key was taken")
except grpc.RpcError as refusal:
    assert dict(refusal.trailing_metadata())["x-error-code"] == "INVALID_ARGUMENT"

print("the tour is over: all of it worked")
