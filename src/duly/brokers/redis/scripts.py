"""What must happen in one step on the server, as Lua: each text says what its keys and values are.

Invariants they keep: nobody takes back what another receiver has claimed meanwhile; nobody reads
for an ordered group without its lease; trimming never passes what a group has not read or has
not finished; a consumer's name goes only when nothing is pending under it.
"""

from __future__ import annotations

from hashlib import sha1
from typing import Any, NamedTuple

from duly.brokers.redis.entries import Part
from duly.brokers.redis.link import CALL_SECONDS, Link, raised

__all__ = [
    "ACQUIRE",
    "CONSUMER",
    "FENCED",
    "LEAVE",
    "MOVE",
    "REAP",
    "RELEASED",
    "SURRENDER",
    "TRIM",
    "run",
]

CONSUMER = "duly-"  # what the names of our consumers begin with
RELEASED = "released"  # the consumer under which given back entries wait for the next claim


class Script(NamedTuple):
    """A text and its digest, by which the server knows it after the first time."""

    text: str
    digest: str


def _script(text: str) -> Script:
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


# KEYS: stream. ARGV: group, owner, new owner, idle milliseconds, ids. Gives the ids that were
# moved: those still pending under the owner. To itself with idle 0 it is a heartbeat.
MOVE = _script(
    """
local moved = {}
for i = 5, #ARGV do
  if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2]) > 0 then
    moved[#moved + 1] = ARGV[i]
  end
end
if #moved > 0 then
  local claim = {'XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0}
  for _, id in ipairs(moved) do claim[#claim + 1] = id end
  claim[#claim + 1] = 'IDLE'
  claim[#claim + 1] = ARGV[4]
  claim[#claim + 1] = 'JUSTID'
  redis.call(unpack(claim))
end
return moved
"""
)

# KEYS: stream. ARGV: group, consumer, released consumer, idle milliseconds. Moves all that is
# pending under the consumer and deletes its name, which by itself would drop them.
LEAVE = _script(
    """
local count = 0
for round = 1, 1000 do
  local rows = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1000, ARGV[2])
  if #rows == 0 then break end
  local claim = {'XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0}
  for _, row in ipairs(rows) do claim[#claim + 1] = row[1] end
  claim[#claim + 1] = 'IDLE'
  claim[#claim + 1] = ARGV[4]
  claim[#claim + 1] = 'JUSTID'
  count = count + #redis.call(unpack(claim))
end
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) == 0 then
  redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
end
return count
"""
)

# KEYS: stream. ARGV: group, beginning of our names, idle milliseconds. Deletes consumers of ours
# that are gone for long and hold nothing.
REAP = _script(
    """
local gone = 0
for _, row in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local one = {}
  for i = 1, #row, 2 do one[row[i]] = row[i + 1] end
  if one['pending'] == 0 and one['idle'] > tonumber(ARGV[3])
      and string.sub(one['name'], 1, #ARGV[2]) == ARGV[2] then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], one['name'])
    gone = gone + 1
  end
end
return gone
"""
)

# KEYS: stream. ARGV: the id below which entries are old enough. Gives how many went.
TRIM = _script(
    """
local function before(a, b)
  local am, as = string.match(a, '(%d+)-(%d+)')
  local bm, bs = string.match(b, '(%d+)-(%d+)')
  am, as, bm, bs = tonumber(am), tonumber(as), tonumber(bm), tonumber(bs)
  return am < bm or (am == bm and as < bs)
end
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local groups = redis.call('XINFO', 'GROUPS', KEYS[1])
if #groups == 0 then return 0 end
local low = ARGV[1]
for _, row in ipairs(groups) do
  local one = {}
  for i = 1, #row, 2 do one[row[i]] = row[i + 1] end
  local needed = one['last-delivered-id']
  local pending = redis.call('XPENDING', KEYS[1], one['name'])
  if pending[1] > 0 and before(pending[2], needed) then needed = pending[2] end
  if before(needed, low) then low = needed end
end
return redis.call('XTRIM', KEYS[1], 'MINID', '~', low)
"""
)

# KEYS: lease. ARGV: holder, milliseconds. 1 when the lease is the holder's now.
ACQUIRE = _script(
    """
local now = redis.call('GET', KEYS[1])
if now == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return 1
elseif not now then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return 1
end
return 0
"""
)

# KEYS: lease. ARGV: holder.
SURRENDER = _script(
    "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end return 1"
)

# KEYS: lease, stream. ARGV: holder, group, consumer, count, cursor. With a cursor all that is
# pending in the group, else what is new; 0 without the lease.
FENCED = _script(
    """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[5] ~= '' then
  return redis.call('XAUTOCLAIM', KEYS[2], ARGV[2], ARGV[3], 0, ARGV[5], 'COUNT', ARGV[4])
end
local got = redis.call('XREADGROUP', 'GROUP', ARGV[2], ARGV[3], 'COUNT', ARGV[4],
  'STREAMS', KEYS[2], '>')
return {ARGV[5], got and got[1][2] or {}}
"""
)


def run(link: Link, script: Script, keys: tuple[str, ...], *values: Part) -> Any:
    """Run a script. Raises what the server's answer is mapped to."""
    arguments = (len(keys), *keys, *values)
    known = ("EVALSHA", script.digest, *arguments)
    answer = link.ask_all([known], timeout_seconds=CALL_SECONDS)[0]
    if isinstance(answer, Exception) and "No matching script" in str(answer):
        return link.ask("EVAL", script.text, *arguments)
    return raised(link, answer)
