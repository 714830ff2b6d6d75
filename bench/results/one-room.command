barrage bench fanout --stand --via connector --wire-bytes 123 --seconds 4 --viewers 15000 --deliveries 127.5e3
