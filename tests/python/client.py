"""A client generated from the .proto files: the gateway's data API, and a wrong node's hints."""

import sys

import grpc
from kvdb.v1 import coordinator_pb2, coordinator_pb2_grpc, kv_pb2, kv_pb2_grpc, node_pb2, node_pb2_grpc

OFFSET = int(sys.argv[1])
GATEWAY = f"127.0.0.1:{7400 + OFFSET}"


def data_api():
    kv = kv_pb2_grpc.KvStub(grpc.insecure_channel(GATEWAY))
    assert kv.Put(kv_pb2.PutRequest(key=b"python", value=b"\x00\xff"), timeout=5).applied
    got = kv.Get(kv_pb2.GetRequest(key=b"python"), timeout=5)
    assert got.found and got.value == b"\x00\xff" and got.version > 0
    items = [item for page in kv.Scan(kv_pb2.ScanRequest(prefix=b"pyth"), timeout=5) for item in page.items]
    assert [item.key for item in items] == [b"python"], items
    assert kv.Delete(kv_pb2.DeleteRequest(key=b"python"), timeout=5).applied
    assert not kv.Get(kv_pb2.GetRequest(key=b"python"), timeout=5).found
    try:
        kv.Put(kv_pb2.PutRequest(key=b"", value=b"x"), timeout=5)
        raise AssertionError("an empty key was taken")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
        assert dict(error.trailing_metadata())["x-error-code"] == "INVALID_ARGUMENT"


def hints_of_a_wrong_node():
    coordinator = coordinator_pb2_grpc.CoordinatorStub(grpc.insecure_channel(GATEWAY))
    shard_map = coordinator.GetShardMap(coordinator_pb2.GetShardMapRequest(), timeout=5).map
    addresses = {node.node_id: node.address for node in shard_map.nodes}
    # Every shard is asked until one owns the key: only that one can say who leads it.
    seen = set()
    for shard in shard_map.shards:
        other = next(r.node_id for r in shard.descriptor.replicas if r.node_id != shard.leader_node_id)
        node = node_pb2_grpc.NodeStub(grpc.insecure_channel(addresses[other]))
        for epoch in (shard.descriptor.range_epoch, shard.descriptor.range_epoch + 7):
            request = node_pb2.NodeGetRequest(
                shard_id=shard.descriptor.shard_id, epoch=epoch, keyspace_id=shard.descriptor.keyspace_id, key=b"python"
            )
            try:
                node.Get(request, timeout=5)
                raise AssertionError("a follower has answered a strong read")
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
                trailers = dict(error.trailing_metadata())
                assert trailers["x-shard-id"] == str(shard.descriptor.shard_id)
                code = trailers["x-error-code"]
                seen.add(code)
                if code == "NOT_LEADER":
                    assert trailers["x-leader-hint"] == addresses[shard.leader_node_id], trailers
                elif code == "STALE_EPOCH":
                    assert trailers["x-shard-epoch"] == str(shard.descriptor.range_epoch)
                    assert trailers["x-shard-descriptors-bin"]
                else:
                    assert code == "SHARD_MOVED" and trailers["x-new-node-hint"] in addresses.values()
    assert seen == {"NOT_LEADER", "STALE_EPOCH", "SHARD_MOVED"}, seen


data_api()
hints_of_a_wrong_node()
print("python client: 2 passed, 0 failed")
