#!/usr/bin/env python3
"""Writes the test vectors of the sections "Layer", "Index" and "Forwards" of src/repository/FORMAT.md, from that page alone.

Needs python3 and its `cryptography` package. Run once for each version of the format; the files are committed:

    python3 test/vectors/make-layer.py
"""
import hashlib
import hmac
import json
import os
import struct

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

REPOSITORY = "5f0c9a52-3d1b-4c7e-9e63-0b6a0f5d2c11"
MASTER_KEY = bytes([7]) * 32
LAYER = "a0000000-0000-4000-8000-000000000001"
INDEX = "b0000000-0000-4000-8000-000000000001"
FORWARD = "d0000000-0000-4000-8000-000000000001"
PACKS = ["c0000000-0000-4000-8000-00000000000%d" % n for n in range(3)]
CHUNK_SIZE = 65536
DISK_SIZE = 100 * CHUNK_SIZE - 5


def uuid(text):
    return bytes.fromhex(text.replace("-", ""))


def sha256(data):
    return hashlib.sha256(data).digest()


def seal(encrypted, type_, key, plain):
    if not encrypted:
        return plain
    info = b"blockhaul v1 " + type_.encode()
    type_key = HKDF(algorithm=hashes.SHA256(), length=32, salt=uuid(REPOSITORY), info=info).derive(MASTER_KEY)
    nonce = sha256(key.encode())[:12]
    associated = b"\0".join([type_.encode(), REPOSITORY.encode(), key.encode()])
    return nonce + AESGCM(hmac.digest(type_key, key.encode(), "sha256")).encrypt(nonce, plain, associated)


def varint(value):
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def zigzag(value):
    return varint(value * 2 if value >= 0 else -value * 2 - 1)


def zstd(raw):
    """A zstd frame (RFC 8878) of one raw block: single segment, content size in 4 bytes."""
    assert len(raw) < 1 << 16
    block = struct.pack("<I", len(raw) << 3 | 1)[:3]
    return b"\x28\xb5\x2f\xfd" + b"\xa0" + struct.pack("<I", len(raw)) + block + raw


def encode_runs(runs):
    """Runs are (first, count, None) for zeros or (first, count, (pack, slot))."""
    out, end, pack, slot = b"", runs[0][0], 0, 0
    for first, count, where in runs:
        out += varint(first - end) + varint((count - 1) * 2 + (where is None))
        end = first + count
        if where is not None:
            step = where[0] - pack
            out += zigzag(step) + zigzag(where[1] - (slot if step == 0 else 0))
            pack, slot = where[0], where[1] + count
    return out


def layer(segments, encrypted=False, *, packs=PACKS, slots=50, header=b"BLKHLAYR", magic=b"BLKHLAYR", version=1,
          size=DISK_SIZE, chunk_size=CHUNK_SIZE, raws=None, entries=None, pack_count=None, after_footer=b"",
          footer_length=None, swap=False):
    """Object and manifest digest; the keywords make it lie, with every digest right."""
    key = "layers/" + LAYER
    blocks, footer = [], []
    for number, runs in enumerate(segments):
        raw = encode_runs(runs) if raws is None else raws[number]
        stored = seal(encrypted, "layer", "%s#%d" % (key, number), zstd(raw))
        blocks.append(stored)
        said = (runs[0][0], runs[-1][0] + runs[-1][1], len(runs), len(raw)) if entries is None else entries[number]
        footer.append(struct.pack("<IIIII", *said, len(stored)) + sha256(stored))
    if packs:
        page = b"".join(uuid(pack) + sha256(pack.encode()) + struct.pack("<IQ", slots, 12345) for pack in packs)
        stored = seal(encrypted, "layer", "%s#%d" % (key, len(segments)), page)
        blocks.append(stored)
        footer.append(struct.pack("<I", len(stored)) + sha256(stored))
    if swap:
        blocks[0], blocks[1] = blocks[1], blocks[0]
    count = len(packs) if pack_count is None else pack_count
    plain = struct.pack("<QIII", size, chunk_size, count, len(segments)) + b"".join(footer) + after_footer
    stored = seal(encrypted, "layer", key, plain)
    length = len(stored) if footer_length is None else footer_length
    end = stored + struct.pack("<IHH", length, version, 0) + magic
    head = header + struct.pack("<H", 1) + bytes(6)
    return head + b"".join(blocks) + end, sha256(end).hex()


def layer_vectors():
    first = [(0, 3, (0, 7)), (3, 1, None), (10, 2, (1, 0)), (12, 5, (1, 2)), (17, 1, (0, 9))]
    second = [(40, 20, None), (60, 40, (2, 10))]
    both = [first, second]

    def flat(segments):
        return [
            {"first": run[0], "count": run[1], "where": "zero" if run[2] is None
             else {"pack": PACKS[run[2][0]], "slot": run[2][1]}}
            for runs in segments for run in runs
        ]

    def vector(name, made, **more):
        return {"name": name, "hex": made[0].hex(), "digest": made[1], **more}

    empty = layer([], packs=[])
    passing = [
        vector("plain", layer(both), encrypted=False, runs=flat(both)),
        vector("encrypted", layer(both, True), encrypted=True, runs=flat(both)),
        vector("nothing mentioned", empty, encrypted=False, runs=[]),
    ]
    one = [[(5, 2, (0, 0))]]
    raw = encode_runs(one[0])

    def said(first=5, end=7, runs=1, length=len(raw)):
        return [(first, end, runs, length)]

    failing = [
        vector("other header", layer(one, header=b"BLKHPACK"), code="E_LAYER"),
        vector("other magic at the end", layer(one, magic=b"BLKHPACK"), code="E_LAYER"),
        vector("newer version", layer(one, version=2), code="E_LAYER_VERSION"),
        vector("footer longer than the object", layer(one, footer_length=1000), code="E_LAYER"),
        vector("footer of 4 GiB", layer(one, footer_length=0xFFFFFFFF), code="E_LAYER"),
        vector("footer too short", layer(one, footer_length=80), code="E_LAYER"),
        vector("bytes after the footer", layer(one, after_footer=b"\0"), code="E_TRAILING"),
        vector("disk past 64 TiB", layer(one, size=(64 << 40) + 1), code="E_LAYER"),
        vector("chunk size not a power of two", layer(one, chunk_size=65537), code="E_LAYER"),
        vector("chunk size zero", layer(one, chunk_size=0), code="E_LAYER"),
        vector("segments in the wrong order", layer([second, first]), code="E_LAYER"),
        vector("segment past the disk's end", layer([[(99, 2, None)]]), code="E_LAYER"),
        vector("blocks swapped", layer(both, swap=True), code="E_LAYER"),
        vector("more packs than pages hold", layer(one, pack_count=5000), code="E_TRUNCATED"),
        vector("page shorter than its packs", layer(one, pack_count=4), code="E_LAYER"),
        vector("page longer than its packs", layer(one, pack_count=2), code="E_LAYER"),
        vector("pack number past the table", layer([[(5, 2, (3, 0))]]), code="E_LAYER"),
        vector("pack number below zero", layer([[(5, 2, (-1, 0))]]), code="E_LAYER"),
        vector("slot below zero", layer([[(5, 2, (0, -1))]]), code="E_LAYER"),
        vector("slots past the pack's", layer([[(5, 2, (0, 49))]]), code="E_LAYER"),
        vector("fewer runs than said", layer(one, entries=said(runs=2)), code="E_TRUNCATED"),
        vector("more runs than said", layer([first], entries=[(0, 18, 4, len(encode_runs(first)))]), code="E_TRAILING"),
        vector("no runs", layer(one, entries=said(runs=0)), code="E_LAYER"),
        vector("begins elsewhere", layer(one, entries=said(first=4)), code="E_LAYER"),
        vector("ends elsewhere", layer(one, entries=said(end=8)), code="E_LAYER"),
        vector("decompresses to more", layer(one, entries=said(length=len(raw) - 1)), code="E_LAYER"),
        vector("decompresses to less", layer(one, entries=said(length=len(raw) + 1)), code="E_LAYER"),
        vector("raw length of 4 GiB", layer(one, entries=said(length=0xFFFFFFFF)), code="E_LAYER"),
        vector("number not in its shortest form", layer(one, raws=[b"\x80\x00" + raw[1:]],
                                                        entries=said(length=len(raw) + 1)), code="E_VARINT"),
        vector("run of 2^40 chunks", layer(one, raws=[b"\0" + varint(1 << 41) + b"\0\0"],
                                           entries=said(length=len(varint(1 << 41)) + 3)), code="E_LAYER"),
    ]
    return {"layer": LAYER, "size": DISK_SIZE, "chunkSize": CHUNK_SIZE, "pass": passing, "fail": failing}


def index(packs, encrypted=False, *, magic=b"BLKHINDX", version=1, count=None, after=b"", slots=None, blob_bytes=None):
    key = "index/web/" + INDEX
    overhead = 28 if encrypted else 0
    body = struct.pack("<I", len(packs) if count is None else count)
    for pack, ids in packs:
        blobs = len(ids) * (10 + overhead) if blob_bytes is None else blob_bytes
        slot = b"".join(chunk_id + struct.pack("<IIBI", 10 + overhead, 10, 0, 0) for chunk_id in ids)
        body += uuid(pack) + struct.pack("<IQ", len(ids) if slots is None else slots, blobs)
        body += seal(encrypted, "directory", "packs/" + pack, slot)
    object_ = magic + struct.pack("<H", version) + bytes(6) + seal(encrypted, "index", key, body + after)
    return object_ + sha256(object_)


def index_vectors():
    ids = [sha256(b"%d" % n) for n in range(5)]
    packs = [(PACKS[0], ids[:3]), (PACKS[1], ids[3:])]

    def vector(name, encrypted):
        return {
            "name": name, "encrypted": encrypted, "hex": index(packs, encrypted).hex(),
            "packs": [{"pack": pack, "ids": [chunk_id.hex() for chunk_id in of]} for pack, of in packs],
        }

    def bad(name, code, object_):
        return {"name": name, "code": code, "hex": object_.hex()}

    good = index(packs)
    failing = [
        bad("empty", "E_INDEX", b""),
        bad("cut off", "E_INDEX", good[:-1]),
        bad("bytes after its end", "E_INDEX", good + b"\0"),
        bad("other magic", "E_INDEX", index(packs, magic=b"BLKHLAYR")),
        bad("newer version", "E_INDEX_VERSION", index(packs, version=2)),
        bad("more packs than said", "E_TRAILING", index(packs, count=1)),
        bad("fewer packs than said", "E_TRUNCATED", index(packs, count=3)),
        bad("4 Gi packs", "E_TRUNCATED", index(packs, count=0xFFFFFFFF)),
        bad("bytes after the packs", "E_TRAILING", index(packs, after=b"\0")),
        bad("slots that are not there", "E_TRUNCATED", index(packs[:1], slots=4)),
        bad("4 Gi slots", "E_INDEX", index(packs, slots=0xFFFFFFFF)),
        bad("no slots", "E_PACK_DIRECTORY", index(packs, slots=0)),
        bad("blobs of another length", "E_PACK_DIRECTORY", index(packs, blob_bytes=31)),
    ]
    return {"key": "index/web/" + INDEX, "pass": [vector("plain", False), vector("encrypted", True)], "fail": failing}


def forward(runs, targets, encrypted=False, *, key=None, magic=b"BLKHFWRD", version=1, reserved=bytes(6), slots=None,
            blob_bytes=None, target_count=None, run_count=None, raw_runs=None, after=b""):
    """A forward of PACKS[0], which has 8 slots. Targets are (pack, slots); runs (first, slots, target, slot there)."""
    overhead = 28 if encrypted else 0
    key = "forwards/" + PACKS[0] + "/" + FORWARD if key is None else key
    slot = b"".join(sha256(b"%d" % n) + struct.pack("<IIBI", 10 + overhead, 10, 0, n) for n in range(8))
    body = uuid(PACKS[0]) + struct.pack("<I", 8 if slots is None else slots)
    body += struct.pack("<Q", 8 * (10 + overhead) if blob_bytes is None else blob_bytes)
    body += seal(encrypted, "directory", "packs/" + PACKS[0], slot)
    body += struct.pack("<I", len(targets) if target_count is None else target_count)
    for pack, count in targets:
        body += uuid(pack) + sha256(pack.encode()) + struct.pack("<IQ", count, count * (10 + overhead))
    body += struct.pack("<I", len(runs) if run_count is None else run_count)
    end = 0
    for first, count, target, there in runs:
        body += varint(first - end) + varint(count - 1) + varint(target) + varint(there)
        end = first + count
    body += raw_runs or b""
    object_ = magic + struct.pack("<H", version) + reserved + seal(encrypted, "forward", key, body + after)
    return object_ + sha256(object_)


def forward_vectors():
    targets = [(PACKS[1], 300), (PACKS[2], 5)]
    runs = [(0, 2, 0, 40), (3, 1, 1, 4), (5, 2, 0, 200), (7, 1, 0, 12)]
    key = "forwards/" + PACKS[0] + "/" + FORWARD

    def vector(name, encrypted):
        return {
            "name": name, "encrypted": encrypted, "hex": forward(runs, targets, encrypted).hex(),
            "ids": [sha256(b"%d" % n).hex() for n in range(8)],
            "moves": [
                {"slot": first + n, "pack": targets[target][0], "digest": sha256(targets[target][0].encode()).hex(),
                 "to": there + n}
                for first, count, target, there in runs for n in range(count)
            ],
        }

    def bad(name, code, object_):
        return {"name": name, "code": code, "hex": object_.hex()}

    good = forward(runs, targets)
    one = [(0, 1, 0, 0)]
    first = targets[:1]
    failing = [
        bad("empty", "E_FORWARD", b""),
        bad("cut off", "E_FORWARD", good[:-1]),
        bad("bytes after its end", "E_FORWARD", good + b"\0"),
        bad("other magic", "E_FORWARD", forward(runs, targets, magic=b"BLKHINDX")),
        bad("newer version", "E_FORWARD_VERSION", forward(runs, targets, version=2)),
        bad("reserved bytes", "E_FORWARD", forward(runs, targets, reserved=bytes(5) + b"\1")),
        bad("4 Gi slots", "E_FORWARD", forward(runs, targets, slots=0xFFFFFFFF)),
        bad("no slots", "E_PACK_DIRECTORY", forward(runs, targets, slots=0)),
        bad("blobs of another length", "E_PACK_DIRECTORY", forward(runs, targets, blob_bytes=81)),
        bad("blobs past 2^53", "E_TOO_LARGE", forward(runs, targets, blob_bytes=1 << 60)),
        bad("no targets", "E_FORWARD", forward(one, [], target_count=0)),
        bad("more targets than slots", "E_FORWARD", forward(one, first, target_count=9)),
        bad("targets that are not there", "E_TRUNCATED", forward(one, first, target_count=8)),
        bad("target of no slots", "E_FORWARD", forward(one, [(PACKS[1], 0)])),
        bad("target of 65,537 slots", "E_FORWARD", forward(one, [(PACKS[1], 65537)])),
        bad("to its own pack", "E_FORWARD", forward(one, [(PACKS[0], 8)])),
        bad("no runs", "E_FORWARD", forward([], first)),
        bad("more runs than slots", "E_FORWARD", forward(one, first, run_count=9)),
        bad("fewer runs than said", "E_TRUNCATED", forward(one, first, run_count=2)),
        bad("more runs than said", "E_TRAILING", forward(runs, targets, run_count=3)),
        bad("bytes after the runs", "E_TRAILING", forward(runs, targets, after=b"\0")),
        bad("slots past the pack's", "E_FORWARD", forward([(7, 2, 0, 0)], first)),
        bad("slots past the target's", "E_FORWARD", forward([(0, 2, 0, 299)], first)),
        bad("unknown target", "E_FORWARD", forward([(0, 1, 1, 0)], first)),
        bad("gap of 2^50 slots", "E_FORWARD", forward([], first, run_count=1, raw_runs=varint(1 << 50) + b"\0\0\0")),
        bad("run of 2^52 slots", "E_FORWARD", forward([], first, run_count=1,
                                                     raw_runs=b"\0" + varint(1 << 52) + b"\0\0")),
        bad("number not in its shortest form", "E_VARINT", forward([], first, run_count=1,
                                                                  raw_runs=b"\x80\0" + b"\0\0\0")),
    ]
    return {"key": key, "pass": [vector("plain", False), vector("encrypted", True)], "fail": failing}


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    vectors = {"layers": layer_vectors(), "indexes": index_vectors(), "forwards": forward_vectors()}
    for name, content in vectors.items():
        with open(os.path.join(here, name + ".json"), "w", encoding="utf-8") as file:
            json.dump({"repository": REPOSITORY, **content}, file, indent=2)
            file.write("\n")


main()
