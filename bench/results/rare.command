barrage bench fanout --stand --via connector --viewers 5000 --wire-bytes 123 --seconds 4 --rate 20
