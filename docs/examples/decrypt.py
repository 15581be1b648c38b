"""Opens what the worker's `encrypt` stage has sealed. Needs the package cryptography (Debian: python3-cryptography).

    plain = open_envelope(event_data, {"k7": key_bytes})     # by key id, 32 bytes each

The envelope is described in docs/worker.md.
"""

import base64
import json

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

CIPHERS = {"aes-256-gcm": AESGCM, "chacha20-poly1305": ChaCha20Poly1305}


def open_envelope(text, keys):
    """The payload, in bytes. Raises cryptography.exceptions.InvalidTag if a single bit of it, or its event id, is not what was sealed."""
    envelope = json.loads(text)
    if envelope["v"] != 1:
        raise ValueError("not an envelope that this opens")
    algorithm, key_id = envelope["alg"], envelope["kid"]
    salt, nonce, sealed = (base64.b64decode(envelope[name]) for name in ("salt", "nonce", "data"))
    info = f"push-stream 1 {algorithm}".encode()
    key = HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(keys[key_id])
    associated = "\0".join(["1", key_id, envelope["id"]]).encode()
    return CIPHERS[algorithm](key).decrypt(nonce, sealed, associated)
