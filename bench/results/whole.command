barrage bench fanout --stand --via http --dialect goim --viewers 5000 --wire-bytes 123 --seconds 8 --deliveries 10.2e6
