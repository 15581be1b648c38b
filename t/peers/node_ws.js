// The `ws` package as a client: prints what it sees of an echo, a line each.
"use strict";

const WebSocket = require("ws");
const base = process.argv[2];

function open(path) {
    const socket = new WebSocket(base + path, { maxPayload: 2 ** 24 });
    const waiting = [];
    const come = [];
    const push = (event) => (waiting.length ? waiting.shift()(event) : come.push(event));
    socket.on("message", (data, isBinary) => push({ data, isBinary }));
    socket.on("pong", (data) => push({ pong: data }));
    socket.on("close", (code, reason) => push({ code, reason: reason.toString() }));
    socket.on("error", (error) => push({ error: error.message }));
    socket.next = () => (come.length ? Promise.resolve(come.shift()) : new Promise((resolve) => waiting.push(resolve)));
    return new Promise((resolve, reject) => socket.on("open", () => resolve(socket)).on("error", reject));
}

async function main() {
    const socket = await open("/echo?id=js");
    console.log("extensions", JSON.stringify(socket.extensions));
    for (const text of ["hello", "ümläut 漢字 😀", "x".repeat(125), "y".repeat(126), "z".repeat(65536), "é".repeat(1000000)]) {
        socket.send(text);
        const { data, isBinary } = await socket.next();
        console.log("text", text.length, !isBinary && data.toString() === text);
    }
    for (const size of [1, 126, 65536, 3000000]) {
        const bytes = Buffer.alloc(size, "\x00\xff\xfe binary", "latin1");
        socket.send(bytes);
        const { data, isBinary } = await socket.next();
        console.log("binary", size, isBinary && bytes.equals(data));
    }
    socket.send("in ", { fin: false });
    socket.send("three ", { fin: false });
    socket.send("fragments", { fin: true });
    console.log("fragments", (await socket.next()).data.toString());
    for (const payload of ["", "payload", "p".repeat(125)]) {
        socket.ping(payload);
        console.log("pong", (await socket.next()).pong.length);
    }
    for (let n = 0; n < 200; n++) socket.send(`burst ${n}`);
    let right = true;
    for (let n = 0; n < 200; n++) right &&= (await socket.next()).data.toString() === `burst ${n}`;
    console.log("burst", right);
    socket.close(4321, "enough");
    console.log("closed", (await socket.next()).code);

    const pinged = await open("/pinged?id=js");
    await new Promise((resolve) => setTimeout(resolve, 1500));
    console.log("stays", pinged.readyState === WebSocket.OPEN);
    pinged.terminate();

    const refused = await (await open("/known?id=nobody")).next();
    console.log("refused", refused.code, refused.reason);

    const ended = await open("/ended?id=js");
    console.log("footer", (await ended.next()).data.toString());
    console.log("ended", (await ended.next()).code);
}

main().catch((error) => {
    console.log("failed", error.stack);
    process.exitCode = 1;
});
