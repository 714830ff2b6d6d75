barrage bench sweep --stand --via connector --wire-bytes 123 --seconds 2 --no-limit --viewers 1000 --rate 1000 --grow viewers --factor 2 --steps 4
