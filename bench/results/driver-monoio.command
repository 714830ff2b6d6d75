barrage bench fanout --stand --via connector --viewers 5000 --wire-bytes 123 --seconds 4 --deliveries 10e6 --set connector.driver=monoio
