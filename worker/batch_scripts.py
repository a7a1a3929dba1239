"""What must happen to a batch at once, as Redis's scripts. Wire layer."""

from __future__ import annotations

from typing import Final

OPEN_NEW: Final = """
if redis.call('HEXISTS', KEYS[1], 'status') == 1 then return 0 end
for at = 1, #ARGV - 4 do
    if redis.call('EXISTS', ARGV[at + 4]) == 1 then redis.call('RENAME', ARGV[at + 4], KEYS[at + 4]) end
end
redis.call('HSET', KEYS[1], 'record', ARGV[2], 'status', 'open')
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
redis.call('ZADD', KEYS[3], ARGV[3], ARGV[1])
redis.call('SADD', KEYS[4], ARGV[4])
return 1
"""
"""Make a batch of what was written under other names, unless there is one, and have it keep its zip: the same batch
may have been forgotten since that was stored. Keys: its hash, the sets of open and of known batches, its blobs, then
what names are to come. Arguments: id, record, time, zip, then the names there are."""

MOVE: Final = """
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('ZADD', KEYS[2], ARGV[1], ARGV[1])
if ARGV[2] == '' then redis.call('HDEL', KEYS[3], ARGV[1]) else redis.call('HSET', KEYS[3], ARGV[1], ARGV[2]) end
if ARGV[3] ~= '' then redis.call('SADD', KEYS[4], ARGV[3]) end
return 1
"""
"""Move an item from one state to another, if it is in the first. Keys: both states', outcomes, blobs. Arguments: its
number, the outcome, a blob that is kept from now on; empty for none."""

END: Final = """
if redis.call('HGET', KEYS[1], 'status') ~= 'open' then return 0 end
for at = 3, 5 do
    if redis.call('ZCARD', KEYS[at]) > 0 then return 0 end
end
redis.call('HSET', KEYS[1], 'status', 'finished', 'ended_at', ARGV[2])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
"""
"""End a batch if all is done. Keys: hash, open batches, waiting, queued, running. Arguments: id, moment."""

CANCEL: Final = """
if redis.call('HGET', KEYS[1], 'status') ~= 'open' then return {} end
redis.call('HSET', KEYS[1], 'status', 'canceled', 'ended_at', ARGV[2])
redis.call('ZREM', KEYS[2], ARGV[1])
local taken = {}
for at = 4, 5 do
    for _, number in ipairs(redis.call('ZRANGE', KEYS[at], 0, -1)) do taken[#taken + 1] = number end
end
redis.call('ZUNIONSTORE', KEYS[6], 4, KEYS[6], KEYS[3], KEYS[4], KEYS[5], 'AGGREGATE', 'MAX')
redis.call('DEL', KEYS[3], KEYS[4], KEYS[5])
return taken
"""
"""Cancel a batch; return the numbers of items whose jobs are under way. As END, and the key of canceled items."""

REOPEN: Final = """
if redis.call('HEXISTS', KEYS[1], 'status') == 0 or redis.call('ZCARD', KEYS[3]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'status', 'open')
redis.call('HDEL', KEYS[1], 'ended_at')
redis.call('ZADD', KEYS[2], 'NX', ARGV[2], ARGV[1])
return 1
"""
"""Have a batch go on if an item waits. Keys: hash, open batches, waiting. Arguments: id, time."""
