// Opens what the worker's `encrypt` stage has sealed with AES-256-GCM. Runs in browsers and in Node.js; pages must come over https or from localhost.
//
//     const open = await opener({ k7: keyBytes });                  // by key id, 32 bytes each
//     source.onmessage = async (event) => show(await open(event.data));
//
// Whoever has the key can read everything sealed with it: it belongs to partners, not into a public page.

const bytes = (base64) => Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
const utf8 = (text) => new TextEncoder().encode(text);

export async function opener(keys) {
    const masters = {};
    for (const [id, key] of Object.entries(keys)) {
        masters[id] = await crypto.subtle.importKey("raw", key, "HKDF", false, ["deriveKey"]);
    }
    // One key for each run of the worker, by key id and salt.
    const derived = new Map();
    const keyOf = ({ alg, kid, salt }) => {
        const name = `${kid} ${salt}`;
        if (!derived.has(name)) {
            if (!masters[kid]) throw new Error(`no key ${kid}`);
            const way = { name: "HKDF", hash: "SHA-256", salt: bytes(salt), info: utf8(`push-stream 1 ${alg}`) };
            derived.set(name, crypto.subtle.deriveKey(way, masters[kid], { name: "AES-GCM", length: 256 }, false, ["decrypt"]));
        }
        return derived.get(name);
    };
    return async (text) => {
        const envelope = JSON.parse(text);
        if (envelope.v !== 1 || envelope.alg !== "aes-256-gcm") throw new Error("not an envelope that this opens");
        const additionalData = utf8(`1\0${envelope.kid}\0${envelope.id}`);
        const how = { name: "AES-GCM", iv: bytes(envelope.nonce), additionalData };
        // Fails if a single bit of it, or its event id, is not what was sealed.
        return new TextDecoder().decode(await crypto.subtle.decrypt(how, await keyOf(envelope), bytes(envelope.data)));
    };
}
