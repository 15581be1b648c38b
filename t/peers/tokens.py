"""Makes keys and tokens with PyJWT, as applications do.

    tokens.py DIR < WANTED

WANTED is a JSON array. Each element has `key`, a name; `algorithm`; `claims`; and, if wanted, `headers`. A key that does not exist yet is
made and kept in DIR: NAME.jwk has what is verified with it as a JWK, and NAME.pem as PEM if it is a pair. The tokens are printed as a
JSON array in the same order.
"""

import base64
import json
import os
import secrets
import sys

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa


def encode(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value, length=None):
    return encode(value.to_bytes(length or (value.bit_length() + 7) // 8, "big"))


def make(algorithm):
    """A new private key and its public JWK."""
    if algorithm.startswith("HS"):
        secret = secrets.token_bytes(64)
        return secret, {"kty": "oct", "k": encode(secret)}
    if algorithm.startswith(("RS", "PS")):
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        numbers = private.public_key().public_numbers()
        return private, {"kty": "RSA", "n": number(numbers.n), "e": number(numbers.e)}
    if algorithm.startswith("ES"):
        curve, name, length = {"ES256": (ec.SECP256R1(), "P-256", 32), "ES384": (ec.SECP384R1(), "P-384", 48)}[algorithm]
        private = ec.generate_private_key(curve)
        numbers = private.public_key().public_numbers()
        return private, {"kty": "EC", "crv": name, "x": number(numbers.x, length), "y": number(numbers.y, length)}
    private = ed25519.Ed25519PrivateKey.generate()
    raw = private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return private, {"kty": "OKP", "crv": "Ed25519", "x": encode(raw)}


def private_key(directory, name, algorithm):
    path = os.path.join(directory, name)
    if os.path.exists(path + ".secret"):
        with open(path + ".secret", "rb") as file:
            return file.read()
    if os.path.exists(path + ".private"):
        with open(path + ".private", "rb") as file:
            return serialization.load_pem_private_key(file.read(), None)
    key, jwk = make(algorithm)
    with open(path + ".jwk", "w") as file:
        json.dump(jwk, file)
    if isinstance(key, bytes):
        with open(path + ".secret", "wb") as file:
            file.write(key)
    else:
        plain = serialization.NoEncryption()
        with open(path + ".private", "wb") as file:
            file.write(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
        with open(path + ".pem", "wb") as file:
            public = key.public_key()
            file.write(public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return key


directory = sys.argv[1]
tokens = []
for wanted in json.load(sys.stdin):
    algorithm = wanted["algorithm"]
    key = private_key(directory, wanted["key"], algorithm)
    tokens.append(jwt.encode(wanted["claims"], key, algorithm=algorithm, headers=wanted.get("headers")))
json.dump(tokens, sys.stdout)
