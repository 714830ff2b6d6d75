"""usage: python.py LIBRARY, with URL and ROOM in the environment. Prints the library's version when all came back."""

import asyncio
import json
import os
import sys
from importlib.metadata import version

URL, ROOM, LIBRARY = os.environ["URL"], os.environ["ROOM"], sys.argv[1]
PROTOCOL = "barrage.v1.json"
MESSAGES = 4
# Long enough that every library finds it worth compressing, and the same each time: the second refers back.
TEXT = "弹幕 the same line of live chat, " * 40


class Dialogue:
    """What is sent next; `done` when everything came back."""

    def __init__(self):
        self.published = self.arrived = 0

    def first(self):
        return json.dumps({"request": 1, "connect": {"name": LIBRARY}})

    def publish(self):
        body = {"channel": ROOM, "clientMessageId": f"m{self.published}", "type": "text", "text": TEXT}
        return json.dumps({"request": 10 + self.published, "publish": body})

    def heard(self, text):
        frame = json.loads(text)
        if "connected" in frame:
            return json.dumps({"request": 2, "subscribe": {"channel": ROOM}})
        if "subscribed" in frame:
            return self.publish()
        if "published" in frame:
            self.published += 1
            return self.publish() if self.published < MESSAGES else None
        if "message" in frame:
            assert frame["message"]["text"] == TEXT
            self.arrived += 1
            return None
        raise RuntimeError(text)

    @property
    def done(self):
        return self.published == MESSAGES and self.arrived == MESSAGES


async def websockets(dialogue):
    from websockets.asyncio.client import connect

    async with connect(URL, subprotocols=[PROTOCOL]) as socket:
        await socket.send(dialogue.first())
        while not dialogue.done:
            if answer := dialogue.heard(await socket.recv()):
                await socket.send(answer)


async def aiohttp(dialogue):
    from aiohttp import ClientSession

    async with ClientSession() as session, session.ws_connect(URL, protocols=[PROTOCOL], compress=15) as socket:
        await socket.send_str(dialogue.first())
        while not dialogue.done:
            if answer := dialogue.heard(await socket.receive_str()):
                await socket.send_str(answer)


async def tornado(dialogue):
    from tornado.websocket import websocket_connect

    socket = await websocket_connect(URL, subprotocols=[PROTOCOL], compression_options={})
    await socket.write_message(dialogue.first())
    while not dialogue.done:
        if answer := dialogue.heard(await socket.read_message()):
            await socket.write_message(answer)


def websocket_client(dialogue):
    from websocket import create_connection

    socket = create_connection(URL, subprotocols=[PROTOCOL])
    socket.send(dialogue.first())
    while not dialogue.done:
        if answer := dialogue.heard(socket.recv()):
            socket.send(answer)
    socket.close()


def wsproto(dialogue):
    import socket as sockets
    from urllib.parse import urlsplit

    from wsproto import ConnectionType, WSConnection
    from wsproto.events import AcceptConnection, Message, Request, TextMessage
    from wsproto.extensions import PerMessageDeflate

    url = urlsplit(URL)
    socket = sockets.create_connection((url.hostname, url.port))
    connection = WSConnection(ConnectionType.CLIENT)
    request = Request(host=url.netloc, target=url.path, subprotocols=[PROTOCOL], extensions=[PerMessageDeflate()])
    socket.sendall(connection.send(request))
    text = ""
    while not dialogue.done:
        connection.receive_data(socket.recv(65536))
        for event in connection.events():
            answer = None
            if isinstance(event, AcceptConnection):
                answer = dialogue.first()
            elif isinstance(event, TextMessage):
                text += event.data
                if event.message_finished:
                    answer, text = dialogue.heard(text), ""
            else:
                raise RuntimeError(event)
            if answer:
                socket.sendall(connection.send(Message(data=answer)))


def main():
    dialogue = Dialogue()
    run = {"websocket-client": websocket_client}.get(LIBRARY) or globals()[LIBRARY]
    result = run(dialogue)
    if result:
        asyncio.run(asyncio.wait_for(result, 30))
    print(version(LIBRARY))


main()
