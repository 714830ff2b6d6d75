-- Sessions in each channel over the live nodes. KEYS[4..]: the channels' rows; ARGV: the channels.
local sums = {}
for i = 4, #KEYS do sums[i - 3] = total(KEYS[i], ARGV[i - 3]) end
return sums
