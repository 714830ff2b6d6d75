-- Sessions in each channel over the live nodes. KEYS[4..]: the channels' rows; ARGV: ms that an index is
-- kept, then the channels.
local sums = {}
for i = 4, #KEYS do sums[i - 3] = total(KEYS[i], ARGV[i - 2]) end
-- An index that this has made.
if redis.call('PTTL', KEYS[2]) == -1 then redis.call('PEXPIRE', KEYS[2], ARGV[1]) end
return sums
