"""Runs each client through a proxy that reads the handshake and the frames' first bytes, and prints a table.

Bilibili's clients are given a comment twice a second by the HTTP API.

usage: run.py WORK PORT HTTP_PORT [LIBRARY...]
"""

import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request

WORK, PORT, HTTP_PORT = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
WANTED = sys.argv[4:]
ROOM_ID = "5440"
TIMEOUT_S = 60
PYTHON = f"{WORK}/python/bin/python"
JAVA = ["java", "-cp", f"{WORK}/java/target/*:{WORK}/java/target/dependency/*"]
HERE = os.path.dirname(os.path.abspath(__file__))

# Name, version's source, command.
CLIENTS = [
    *((name, [PYTHON, f"{HERE}/python.py", name]) for name in ("websockets", "aiohttp", "websocket-client", "tornado", "wsproto")),
    *((name, ["node", f"{WORK}/node.mjs", name]) for name in ("ws", "undici", "faye-websocket")),
    *((name, [f"{WORK}/go/client", name]) for name in ("gorilla/websocket", "coder/websocket")),
    *((name, [*JAVA, main]) for name, main in (
        ("netty", "NettyClient"),
        ("vert.x", "VertxClient"),
        ("jetty", "JettyClient"),
        ("okhttp", "OkHttpClient_"),
        ("java-websocket", "JavaWebSocketClient"),
    )),
]

BILIBILI = [
    *((name, ["node", f"{WORK}/bilibili.mjs", name]) for name in (
        "bilibili-live-ws",
        "bilibili-live-ws TCP",
        "tiny-bilibili-ws",
        "blive-message-listener",
        "bilibili-live-danmaku",
    )),
    *((name, [PYTHON, f"{HERE}/bilibili.py", name]) for name in ("blivedm", "bilibili-api-python")),
]


def comment():
    body = '{"type":"text","text":"弹幕","from":{"uid":"1001","name":"Ann"}}'.encode()
    url = f"http://127.0.0.1:{HTTP_PORT}/v1/rooms/{ROOM_ID}/messages"
    while True:
        request = urllib.request.Request(url, body, {"content-type": "application/json"})
        urllib.request.urlopen(request).close()
        time.sleep(0.5)


class Proxy:
    """One connection: what was offered and answered, and how many frames each way were compressed."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.offer = self.answer = "-"
        self.compressed = [0, 0]
        threading.Thread(target=self.run, daemon=True).start()

    @property
    def port(self):
        return self.listener.getsockname()[1]

    def run(self):
        try:
            client, _ = self.listener.accept()
        except OSError:
            return
        server = socket.create_connection(("127.0.0.1", PORT))
        threading.Thread(target=self.pump, args=(client, server, 0), daemon=True).start()
        self.pump(server, client, 1)

    def pump(self, source, to, way):
        data, head = b"", False
        try:
            while chunk := source.recv(65536):
                to.sendall(chunk)
                data += chunk
                if not head and b"\r\n\r\n" in data:
                    text, data = data.split(b"\r\n\r\n", 1)
                    head = True
                    found = re.search(rb"(?im)^sec-websocket-extensions: *(.*?)\r?$", text)
                    if found:
                        setattr(self, ("offer", "answer")[way], found[1].decode())
                while head and len(data) >= 2:
                    length, at = data[1] & 127, 2
                    if length == 126:
                        length, at = int.from_bytes(data[2:4]), 4
                    elif length == 127:
                        length, at = int.from_bytes(data[2:10]), 10
                    at += 4 if data[1] & 128 else 0
                    if len(data) < at + length:
                        break
                    self.compressed[way] += bool(data[0] & 0x40)
                    data = data[at + length :]
        except OSError:
            pass
        for end in (source, to):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def run(command, port):
    """Whether it worked, its version, and why not."""
    env = {**os.environ, "URL": f"ws://127.0.0.1:{port}/sub", "ROOM": "room:" + re.sub(r"\W", "-", command[-1]), "ROOM_ID": ROOM_ID}
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return False, "?", ": no end in time"
    works = done.returncode == 0
    last = lambda text: (text.strip().splitlines() or ["?"])[-1][:120]
    return works, last(done.stdout), "" if works else ": " + last(done.stderr)


def wanted(clients):
    for name, command in clients:
        here = not os.path.isabs(command[0]) or os.path.exists(command[0])
        if here and (not WANTED or name in WANTED):
            yield name, command


def main():
    failed = False
    cell = lambda text: "–" if text == "-" else f"`{text}`"
    print("| library | version | it offers | it is answered | it sends compressed | works |")
    print("|---|---|---|---|---|---|")
    for name, command in wanted(CLIENTS):
        proxy = Proxy()
        works, version, why = run(command, proxy.port)
        proxy.listener.close()
        failed |= not works
        sent = f"{proxy.compressed[0]} frames" if proxy.compressed[0] else "no"
        print(f"| {name} | {version} | {cell(proxy.offer)} | {cell(proxy.answer)} | {sent} | {'yes' if works else 'no' + why} |", flush=True)
    threading.Thread(target=comment, daemon=True).start()
    print("\n| Bilibili's | version | comment, user and popularity |")
    print("|---|---|---|")
    for name, command in wanted(BILIBILI):
        works, version, why = run(command, PORT)
        failed |= not works
        print(f"| {name} | {version} | {'yes' if works else 'no' + why} |", flush=True)
    sys.exit(failed)


main()
