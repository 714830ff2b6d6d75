barrage bench fanout --stand --via connector --viewers 5000 --chat --seconds 3 --deliveries 5e6 --dialect native
