barrage bench sweep --stand --via connector --wire-bytes 123 --seconds 2 --no-limit --viewers 10000 --deliveries 100e3 --grow rooms --factor 6 --steps 5
