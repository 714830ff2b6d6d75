barrage bench sweep --stand --via connector --wire-bytes 123 --seconds 2 --no-limit --viewers 5000 --deliveries 2e6 --factor 1.8
