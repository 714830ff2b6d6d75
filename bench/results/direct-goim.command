barrage bench fanout --stand --via connector --viewers 5000 --wire-bytes 123 --seconds 8 --deliveries 20.4e6 --dialect goim
