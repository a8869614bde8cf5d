return redis.call('SET', KEYS[2], ARGV[2])
