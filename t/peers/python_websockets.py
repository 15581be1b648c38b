"""The `websockets` package as a client: prints what it sees of an echo, a line each."""

import asyncio
import sys

import websockets


async def main(base):
    # Offers permessage-deflate, as it does by itself.
    async with websockets.connect(f"{base}/echo?id=py", max_size=2**24, ping_interval=None) as socket:
        # Where newer ones of these packages keep it.
        print("extensions", getattr(socket, "protocol", socket).extensions)
        for text in ["hello", "ümläut 漢字 😀", "x" * 125, "y" * 126, "z" * 65536, "é" * 1_000_000]:
            await socket.send(text)
            # In UTF-16 units, as JavaScript counts.
            print("text", len(text.encode("utf-16-le")) // 2, await socket.recv() == text)
        for size in [1, 126, 65536, 3_000_000]:
            data = bytes(range(256)) * (size // 256) + bytes(size % 256)
            await socket.send(data)
            print("binary", size, await socket.recv() == data)
        # An iterable is sent in fragments.
        await socket.send(["in ", "three ", "fragments"])
        print("fragments", await socket.recv())
        for payload in [b"", b"payload", b"p" * 125]:
            pong = await socket.ping(payload)
            await asyncio.wait_for(pong, 5)
            print("pong", len(payload))
        await asyncio.gather(*[socket.send(f"burst {n}") for n in range(200)])
        print("burst", [await socket.recv() for _ in range(200)] == [f"burst {n}" for n in range(200)])
        await socket.close(4321, "enough")
        print("closed", socket.close_code)

    # Answers the server's pings by itself, and so stays.
    async with websockets.connect(f"{base}/pinged?id=py") as socket:
        try:
            await asyncio.wait_for(socket.recv(), 1.5)
            print("stays", False)
        except asyncio.TimeoutError:
            print("stays", socket.state.name == "OPEN")

    try:
        async with websockets.connect(f"{base}/known?id=nobody") as socket:
            await socket.recv()
    except websockets.ConnectionClosed as closed:
        print("refused", closed.rcvd.code, closed.rcvd.reason)

    async with websockets.connect(f"{base}/ended?id=py") as socket:
        print("footer", await socket.recv())
        try:
            await socket.recv()
        except websockets.ConnectionClosed:
            print("ended", socket.close_code)


asyncio.run(main(sys.argv[1]))
