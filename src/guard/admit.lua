local highest = redis.call('GET', KEYS[1])
if highest and tonumber(highest) > tonumber(ARGV[1]) then
  return redis.error_reply('STALETOKEN ' .. highest)
end
redis.call('SET', KEYS[1], ARGV[1])
