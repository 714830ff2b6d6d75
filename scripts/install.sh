#!/usr/bin/env bash
# Installs what the tests can use, on Debian, where it is missing: Redis, Java and Maven (Kafka), Node, Chromium.
set -euo pipefail
missing=()
need() { command -v "$1" >/dev/null || missing+=("${@:2}"); }
need redis-server redis-server
need java openjdk-17-jre-headless
need mvn maven
need node nodejs npm
need chromium chromium fonts-noto-cjk
if [ ${#missing[@]} -gt 0 ]; then
    sudo=""
    [ "$(id -u)" = 0 ] || sudo=sudo
    $sudo apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi
