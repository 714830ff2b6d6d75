barrage bench fanout --stand --via http --dialect goim --viewers 5000 --wire-bytes 123 --seconds 4 --deliveries 10.5e6
