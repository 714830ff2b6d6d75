barrage bench fanout --stand --via connector --wire-bytes 123 --seconds 4 --room-sizes 10000,500x10 --rates 8.5,4250
