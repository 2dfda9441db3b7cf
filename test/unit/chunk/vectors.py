"""Writes vectors.json: blobs made without any code of Blockhaul, by Python's cryptography package and the zstd program.

    python3 test/unit/chunk/vectors.py > test/unit/chunk/vectors.json
"""

import hashlib
import hmac
import json
import subprocess
import zlib

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

ID_KEY = bytes(range(32))
BLOB_KEY = bytes(range(32, 64))
NONCE = bytes(range(64, 76))

RAW = {
    "text": b"The quick brown fox jumps over the lazy dog. " * 40,
    "digests": b"".join(hashlib.sha256(bytes([i])).digest() for i in range(8)),
    "one byte": b"\x01",
}


def vector(name: str, raw: bytes, zstd: bool, sealed: bool) -> dict:
    payload = raw
    if zstd:
        payload = subprocess.run(["zstd", "-1", "-c", "--no-check"], input=raw, stdout=subprocess.PIPE, check=True).stdout
    if sealed:
        chunk_id = hmac.new(ID_KEY, raw, hashlib.sha256).digest()
        key = hmac.new(BLOB_KEY, chunk_id, hashlib.sha256).digest()
        stored = NONCE + AESGCM(key).encrypt(NONCE, payload, chunk_id)
    else:
        chunk_id = hashlib.sha256(raw).digest()
        stored = payload
    return {
        "name": f"{name}, {'zstd' if zstd else 'raw'}, {'sealed' if sealed else 'plain'}",
        "sealed": sealed,
        "codec": 1 if zstd else 0,
        "raw": raw.hex(),
        "id": chunk_id.hex(),
        "stored": stored.hex(),
        "crc32": zlib.crc32(stored),
    }


blobs = [vector(name, RAW[name], zstd, sealed) for sealed in (False, True) for name, zstd in
         (("text", True), ("text", False), ("digests", False), ("one byte", False), ("one byte", True))]
print(json.dumps({"idKey": ID_KEY.hex(), "blobKey": BLOB_KEY.hex(), "blobs": blobs}, indent=1))
