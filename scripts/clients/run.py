"""Runs each client through a proxy that reads the handshake and the frames' first bytes, and prints a table.

usage: run.py WORK PORT [LIBRARY...]
"""

import os
import re
import socket
import subprocess
import sys
import threading

WORK, PORT = sys.argv[1], int(sys.argv[2])
WANTED = sys.argv[3:]
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


def main():
    failed = False
    print("| library | version | it offers | it is answered | it sends compressed | works |")
    print("|---|---|---|---|---|---|")
    for name, command in CLIENTS:
        if (WANTED and name not in WANTED) or (os.path.isabs(command[0]) and not os.path.exists(command[0])):
            continue
        proxy = Proxy()
        env = {**os.environ, "URL": f"ws://127.0.0.1:{proxy.port}/ws", "ROOM": "room:" + re.sub(r"\W", "-", name)}
        try:
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
            works, version = done.returncode == 0, (done.stdout.strip().splitlines() or ["?"])[-1]
            why = "" if works else ": " + (done.stderr.strip().splitlines() or ["?"])[-1][:120]
        except subprocess.TimeoutExpired:
            works, version, why = False, "?", ": no end in time"
        proxy.listener.close()
        failed |= not works
        sent = f"{proxy.compressed[0]} frames" if proxy.compressed[0] else "no"
        cell = lambda text: "–" if text == "-" else f"`{text}`"
        print(f"| {name} | {version} | {cell(proxy.offer)} | {cell(proxy.answer)} | {sent} | {'yes' if works else 'no' + why} |", flush=True)
    sys.exit(failed)


main()
