"""usage: bilibili.py LIBRARY, with URL and ROOM_ID in the environment. Prints the version when a comment with its user, and a
popularity, were told. Both libraries have Bilibili's addresses built in: only those are replaced here."""

import asyncio
import logging
import os
import sys
from importlib.metadata import version

URL, ROOM, LIBRARY = os.environ["URL"], int(os.environ["ROOM_ID"]), sys.argv[1]


async def blivedm(done):
    import blivedm

    class Client(blivedm.BLiveClient):
        async def init_room(self):
            self._room_id = self._room_short_id = ROOM
            self._host_server_list = [{"host": "here", "wss_port": 0}]
            connect = self._session.ws_connect
            self._session.ws_connect = lambda _url, ssl=None, **rest: connect(URL, **rest)
            return True

    class Handler(blivedm.BaseHandler):
        async def _on_danmaku(self, client, message):
            done(comment=f"{message.uname}: {message.msg}")

        async def _on_heartbeat(self, client, message):
            done(popularity=message.popularity)

    client = Client(ROOM, heartbeat_interval=2)
    client.add_handler(Handler())
    client.start()


async def bilibili_api(done):
    from bilibili_api import Credential, live
    from bilibili_api.utils import network

    async def room_id(self):
        return ROOM

    async def danmu_info(self):
        return {"host_list": [{"host": "here", "wss_port": 0}], "token": ""}

    live.LiveRoom.get_room_id = room_id
    live.LiveRoom.get_danmu_info = danmu_info
    client = network.get_client()
    create = client.ws_create
    client.ws_create = lambda _url, **rest: create(URL, **rest)
    network.get_client = live.get_client = lambda: client
    danmaku = live.LiveDanmaku(ROOM, credential=Credential(buvid3="0"))

    @danmaku.on("DANMU_MSG")
    async def _(event):
        info = event["data"]["info"]
        done(comment=f"{info[2][1]}: {info[1]}")

    @danmaku.on("VIEW")
    async def _(event):
        done(popularity=event["data"])

    tasks.append(asyncio.create_task(danmaku.connect()))


tasks = []


async def main():
    logging.basicConfig(level=logging.WARNING)
    seen, whole = {}, asyncio.Event()

    def done(**what):
        seen.update(what)
        if len(seen) == 2:
            whole.set()

    await {"blivedm": blivedm, "bilibili-api-python": bilibili_api}[LIBRARY](done)
    await asyncio.wait_for(whole.wait(), 45)
    assert seen["comment"] == "Ann: 弹幕", seen
    print(version(LIBRARY), flush=True)
    os._exit(0)


asyncio.run(main())
