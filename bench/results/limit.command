barrage bench limit
