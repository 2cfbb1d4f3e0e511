"""Reads a memory snapshot as PyTorch's memory viewer does, replays its events and prints the totals as JSON."""
import json
import pickle
import pickletools
import sys

# The opcodes that the viewer's reader knows.
KNOWN = {
    "APPEND", "APPENDS", "BINGET", "BININT", "BININT1", "BININT2", "EMPTY_DICT", "EMPTY_LIST", "FRAME", "LONG1",
    "LONG_BINGET", "MARK", "MEMOIZE", "PROTO", "SETITEMS", "SHORT_BINUNICODE", "BINUNICODE", "STOP",
}

data = open(sys.argv[1], "rb").read()
unknown = {opcode.name for opcode, _, _ in pickletools.genops(data)} - KNOWN
assert not unknown, unknown
snapshot = pickle.loads(data)
events = snapshot["device_traces"][-1]
if any("category" in event for event in events):
    assert any(event.get("category") == "unknown" for event in events)

live, waiting, segments = {}, {}, {}
peak = reserved_peak = 0
for event in events:
    assert all(set(frame) == {"filename", "line", "name"} for frame in event["frames"])
    action, address, size = event["action"], event.get("addr"), event["size"]
    if action == "alloc":
        assert address not in live and address not in waiting
        assert any(first <= address and address + size <= first + bytes for first, bytes in segments.items())
        live[address] = size
    elif action == "free_requested":
        assert live.pop(address) == size
        waiting[address] = size
    elif action == "free_completed":
        assert waiting.pop(address) == size
    elif action == "segment_alloc":
        segments[address] = size
    elif action == "segment_free":
        assert segments.pop(address) == size
    elif action == "oom":
        assert event["device_free"] >= 0
    else:
        assert action == "snapshot"
    peak = max(peak, sum(live.values()))
    reserved_peak = max(reserved_peak, sum(segments.values()))

blocks = {}  # of the snapshot itself
for segment in snapshot["segments"]:
    assert segments.pop(segment["address"]) == segment["total_size"]
    address = segment["address"]
    for block in segment["blocks"]:
        assert block["address"] == address and block["requested_size"] <= block["size"]
        blocks[address] = block["state"]
        address += block["size"]
    assert address == segment["address"] + segment["total_size"]
assert not segments
assert {a for a, state in blocks.items() if state == "active_allocated"} == set(live)
assert {a for a, state in blocks.items() if state == "active_pending_free"} == set(waiting)

print(json.dumps({
    "allocated": sum(live.values()),
    "peak": peak,
    "reserved": sum(segment["total_size"] for segment in snapshot["segments"]),
    "reserved_peak": reserved_peak,
    "allocated_of_segments": sum(segment["allocated_size"] for segment in snapshot["segments"]),
    "waiting": len(waiting),
    "ooms": sum(event["action"] == "oom" for event in events),
    "frames": sorted({frame["filename"] for event in events for frame in event["frames"]}),
}))
