#!/usr/bin/env python3
"""Writes the test vectors of src/repository/FORMAT.md, from that page and nothing else of the project.

Needs python3 and its `cryptography` package. Run once for each version of the format; the files are committed:

    python3 test/vectors/make.py
"""
import base64
import hashlib
import hmac
import json
import os
import struct
import uuid
import zlib

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

REPOSITORY = "5f0c9a52-3d1b-4c7e-9e63-0b6a0f5d2c11"
MASTER_KEY = bytes(range(32))
PACK = "c0ffee00-1111-4222-8333-444455556666"
CHUNK_SIZE = 65536
MIB = 1 << 20
TYPES = ["directory", "index", "layer", "manifest", "run", "lease", "forward", "condemned", "damaged", "checked", "hold", "profile"]


def derive(label):
    salt = bytes.fromhex(REPOSITORY.replace("-", ""))
    info = b"blockhaul v1 " + label.encode()
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=info).derive(MASTER_KEY)


def seal(type_, key, plain, nonce):
    object_key = hmac.digest(derive(type_), key.encode(), "sha256")
    associated = b"\0".join([type_.encode(), REPOSITORY.encode(), key.encode()])
    return nonce + AESGCM(object_key).encrypt(nonce, plain, associated)


def nonce_of(text):
    return hashlib.sha256(text.encode()).digest()[:12]


def record(document):
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    digest = hashlib.sha256(text).hexdigest().encode()
    return text[:-1] + b',"sha256":"' + digest + b'"}\n'


# --- Packs ---------------------------------------------------------------------------------------------------------


def blob(raw, encrypted):
    """Returns id and stored bytes of a chunk, not compressed."""
    if not encrypted:
        return hashlib.sha256(raw).digest(), raw
    chunk_id = hmac.digest(derive("chunk id"), raw, "sha256")
    nonce = nonce_of("blob")
    key = hmac.digest(derive("blob"), chunk_id, "sha256")
    return chunk_id, nonce + AESGCM(key).encrypt(nonce, raw, chunk_id)


def slot(chunk_id, stored, raw_length, codec=0):
    return chunk_id + struct.pack("<IIBI", len(stored), raw_length, codec, zlib.crc32(stored))


def pack(slots, encrypted, *, blobs=None, version=1, flags=None, directory=None, count=None, offset=None, length=None,
         digest=None, magic=b"BLKHPEND", header=b"BLKHPACK"):
    """A pack of (id, stored, raw length, codec); the keywords make it lie, with every checksum right."""
    flags = (1 if encrypted else 0) if flags is None else flags
    blobs = b"".join(stored for _, stored, _, _ in slots) if blobs is None else blobs
    plain = b"".join(slot(*each) for each in slots) if directory is None else directory
    stored = seal("directory", "packs/" + PACK, plain, nonce_of("directory")) if encrypted else plain
    before = header + struct.pack("<HHI", version, flags, 0) + blobs
    everything = before + stored
    checksums = b"".join(
        struct.pack("<I", zlib.crc32(everything[at:at + MIB])) for at in range(0, len(everything), MIB)
    )
    end = struct.pack(
        "<QII",
        len(before) if offset is None else offset,
        len(stored) if length is None else length,
        len(slots) if count is None else count,
    )
    end += (hashlib.sha256(stored).digest() if digest is None else digest) + struct.pack("<HH", version, flags)
    end += struct.pack("<I", zlib.crc32(checksums + end)) + magic
    return everything + checksums + end


def pack_vectors():
    passing, failing = [], []
    texts = [b"one small chunk", b"and another, longer one", b"third"]
    for encrypted in (False, True):
        slots = []
        for raw in texts:
            chunk_id, stored = blob(raw, encrypted)
            slots.append((chunk_id, stored, len(raw), 0))
        object_ = pack(slots, encrypted)
        directory_length = 45 * len(slots) + (28 if encrypted else 0)
        trailer = 4 + 64
        passing.append({
            "name": "encrypted" if encrypted else "plain",
            "encrypted": encrypted,
            "hex": object_.hex(),
            "digest": hashlib.sha256(object_[-trailer - directory_length:-trailer]).hexdigest(),
            "slots": [
                {"id": i.hex(), "stored": s.hex(), "raw": raw.hex(), "rawLength": n, "codec": c}
                for (i, s, n, c), raw in zip(slots, texts)
            ],
        })
    big = [(hashlib.sha256(b"%d" % n).digest(), bytes([n + 1]) * 65536, 65536, 0) for n in range(20)]
    large = pack(big, False)
    passing.append({
        "name": "two spans, by its digest only",
        "encrypted": False,
        "repeated": {"count": 20, "length": 65536},
        "sha256": hashlib.sha256(large).hexdigest(),
    })

    good = [(hashlib.sha256(b"x").digest(), b"x" * 10, 10, 0)]
    one = good[0]

    def bad(name, code, object_):
        failing.append({"name": name, "code": code, "hex": object_.hex()})

    bad("no slots", "E_PACK_TRAILER", pack([], False, blobs=b"x"))
    bad("more slots counted than there are", "E_PACK_TRAILER", pack(good, False, count=2))
    bad("directory offset before the blobs", "E_PACK_TRAILER", pack(good, False, offset=0))
    bad("directory offset past the end", "E_PACK_TRAILER", pack(good, False, offset=1 << 40))
    bad("directory offset past 2^53", "E_TOO_LARGE", pack(good, False, offset=(1 << 64) - 1))
    bad("directory length of 4 GiB", "E_PACK_TRAILER", pack(good, False, length=0xFFFFFFFF, count=0xFFFFFFFF // 45))
    bad("newer version", "E_PACK_TRAILER", pack(good, False, version=2))
    bad("unknown flag", "E_PACK_TRAILER", pack(good, False, flags=2))
    bad("sealed in a plain repository", "E_PACK_TRAILER", pack(good, False, flags=1))
    bad("wrong end mark", "E_PACK_TRAILER", pack(good, False, magic=b"BLKHPENE"))
    bad("wrong digest", "E_PACK_DIRECTORY", pack(good, False, digest=bytes(32)))
    bad("lengths that add up to less", "E_PACK_DIRECTORY", pack(good, False, blobs=b"x" * 11))
    bad("lengths that add up to more", "E_PACK_DIRECTORY", pack(good, False, blobs=b"x" * 9))
    bad("chunk of no bytes", "E_PACK_DIRECTORY", pack([(one[0], b"x", 0, 1)], False))
    bad("chunk longer than the repository's", "E_PACK_DIRECTORY", pack([(one[0], b"x", CHUNK_SIZE + 1, 1)], False))
    bad("unknown codec", "E_PACK_DIRECTORY", pack([(one[0], b"x" * 10, 10, 2)], False))
    bad("raw, yet shorter than the chunk", "E_PACK_DIRECTORY", pack([(one[0], b"x" * 9, 10, 0)], False))
    bad("zstd, yet not shorter than the chunk", "E_PACK_DIRECTORY", pack([(one[0], b"x" * 10, 10, 1)], False))
    bad("blob of no bytes", "E_PACK_DIRECTORY", pack([(one[0], b"", 10, 1), (one[0], b"x", 10, 1)], False))
    whole = pack(good, False)
    bad("cut at the front", "E_PACK_TRAILER", whole[1:])
    bad("cut at the end", "E_PACK_TRAILER", whole[:-1])
    bad("only an end", "E_PACK_TRAILER", whole[-64:])
    bad("nothing", "E_PACK_TRAILER", b"")
    checksum = bytearray(whole)
    checksum[-68] ^= 1
    bad("wrong checksum of a span", "E_PACK_TRAILER", bytes(checksum))
    return {"pack": PACK, "chunkSize": CHUNK_SIZE, "pass": passing, "fail": failing}


# --- Sealing -------------------------------------------------------------------------------------------------------


def sealing_vectors():
    key = "generations/web/019aa8f0-1c00-7000-8000-000000000001.json"
    plain = b'{"some":"manifest"}'
    sealed = seal("manifest", key, plain, nonce_of("manifest"))
    flipped = bytearray(sealed)
    flipped[20] ^= 4
    other = key.replace("web", "db")
    return {
        "masterKey": MASTER_KEY.hex(),
        "chunkKeys": {"id": derive("chunk id").hex(), "blob": derive("blob").hex()},
        "pass": [{"name": "manifest", "type": "manifest", "key": key, "plain": plain.hex(), "sealed": sealed.hex()}] + [
            {"name": type_, "type": type_, "key": f"{type_}/x", "plain": type_.encode().hex(),
             "sealed": seal(type_, f"{type_}/x", type_.encode(), nonce_of(type_)).hex()} for type_ in TYPES
        ] + [
            {"name": "piece of an object", "type": "layer", "key": "layers/x#7", "plain": "",
             "sealed": seal("layer", "layers/x#7", b"", nonce_of("piece")).hex()},
        ],
        "fail": [
            {"name": "one bit", "type": "manifest", "key": key, "sealed": bytes(flipped).hex()},
            {"name": "moved to another source", "type": "manifest", "key": other, "sealed": sealed.hex()},
            {"name": "taken for another type", "type": "run", "key": key, "sealed": sealed.hex()},
            {"name": "cut off", "type": "manifest", "key": key, "sealed": sealed[:-1].hex()},
            {"name": "shorter than any seal", "type": "manifest", "key": key, "sealed": sealed[:27].hex()},
            {"name": "not sealed", "type": "manifest", "key": key, "sealed": (plain * 2).hex()},
        ],
    }


# --- Records -------------------------------------------------------------------------------------------------------

CONFIG = {
    "format": 1,
    "repository": REPOSITORY,
    "createdAt": "2026-11-22T03:00:00.000Z",
    "hash": "sha256",
    "encrypted": False,
    "chunkSize": 262144,
    "packSize": 67108864,
    "partSize": 16777216,
}


def config_vectors():
    good = record(CONFIG)
    failing = []

    def bad(name, code, bytes_):
        failing.append({"name": name, "code": code, "hex": bytes_.hex()})

    def changed(**fields):
        document = {**CONFIG, **fields}
        return record({name: value for name, value in document.items() if value is not ...})

    bad("newer format", "E_REPOSITORY_VERSION", changed(format=2, novelty=True))
    bad("format as text", "E_RECORD", changed(format="1"))
    bad("format 0", "E_RECORD", changed(format=0))
    bad("unknown field", "E_RECORD", changed(novelty=True))
    bad("missing field", "E_RECORD", changed(hash=...))
    bad("chunk size not a power of two", "E_RECORD", changed(chunkSize=262145))
    bad("chunk size too small", "E_RECORD", changed(chunkSize=32768))
    bad("chunk size too large", "E_RECORD", changed(chunkSize=8388608))
    bad("packs smaller than parts", "E_RECORD", changed(packSize=8388608))
    bad("part size of zero", "E_RECORD", changed(partSize=0))
    bad("repository id in capitals", "E_RECORD", changed(repository=REPOSITORY.upper()))
    bad("unknown hash", "E_RECORD", changed(hash="md5"))
    locked = {**CONFIG, "objectLock": {"mode": "compliance", "days": 30}}
    bad("lock of no days", "E_RECORD", changed(objectLock={"mode": "compliance", "days": 0}))
    bad("lock of an unknown mode", "E_RECORD", changed(objectLock={"mode": "legal", "days": 30}))
    bad("lock that is null", "E_RECORD", changed(objectLock=None))
    bad("no checksum", "E_RECORD", json.dumps(CONFIG).encode())
    bad("checksum of something else", "E_RECORD", good.replace(b"262144", b"131072"))
    bad("checksum in capitals", "E_RECORD", good[:-67] + good[-67:-3].upper() + good[-3:])
    bad("bytes after its end", "E_RECORD", good + b"\n")
    bad("cut off", "E_RECORD", good[:-1])
    bad("empty", "E_RECORD", b"")
    bad("not UTF-8", "E_RECORD", good.replace(b"sha256", b"sha\xff56", 1))
    bad("byte order mark", "E_RECORD", b"\xef\xbb\xbf" + good)
    text = b"[1"
    digest = hashlib.sha256(text + b"}").hexdigest().encode()
    bad("not JSON, well summed", "E_RECORD", text + b',"sha256":"' + digest + b'"}\n')
    return {
        "pass": [
            {"name": "defaults", "hex": good.hex(), "config": CONFIG},
            {"name": "with Object Lock", "hex": record(locked).hex(), "config": locked},
        ],
        "fail": failing,
    }


# --- Keys ----------------------------------------------------------------------------------------------------------

KEY = "0b5e55ed-0000-4000-8000-00000000c0de"
PASSWORD = "correct horse b\u00e4ttery staple"


def wrap(password, scrypt_, key, repository=REPOSITORY, nonce="wrap"):
    n, r, p = scrypt_["n"], scrypt_["r"], scrypt_["p"]
    wrapping = hashlib.scrypt(password.encode(), salt=bytes.fromhex(scrypt_["salt"]), n=n, r=r, p=p,
                              maxmem=128 * r * (n + p + 2), dklen=32)
    associated = f"key\0{repository}\0keys/{key}.json".encode()
    nonce = nonce_of(nonce)
    return (nonce + AESGCM(wrapping).encrypt(nonce, MASTER_KEY, associated)).hex()


def key_slot(fields, config, ascii_=False):
    """A slot with a right seal over whatever its fields say."""
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=ascii_)
    seal_ = hmac.digest(derive("key slot"), hashlib.sha256(config).digest() + text.encode(), "sha256")
    text = text[:-1] + ',"seal":"' + seal_.hex() + '"}'
    return text[:-1].encode() + b',"sha256":"' + hashlib.sha256(text.encode()).hexdigest().encode() + b'"}\n'


def resummed(stored):
    """A record that was changed, with the checksum that fits."""
    body = stored[:-78] + b"}"
    return body[:-1] + b',"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'


def key_vectors():
    config = record({**CONFIG, "encrypted": True})
    usual = {"n": 131072, "r": 8, "p": 1, "salt": hashlib.sha256(b"salt").hexdigest()}
    largest = {"n": 262144, "r": 8, "p": 1, "salt": "ab" * 16}
    good = {"format": 1, "repository": REPOSITORY, "key": KEY, "createdAt": "2026-11-22T03:00:00.000Z",
            "label": "sheet in the s\u00e4fe", "host": "vm1", "scrypt": usual, "wrapped": wrap(PASSWORD, usual, KEY)}

    def changed(**fields):
        return {name: value for name, value in {**good, **fields}.items() if value is not ...}

    def with_scrypt(**fields):
        return changed(scrypt={name: value for name, value in {**usual, **fields}.items() if value is not ...})

    def case(name, bytes_):
        return {"name": name, "hex": bytes_.hex()}

    failing = []

    def bad(name, code, document):
        failing.append({"name": name, "code": code, "hex": key_slot(document, config).hex()})

    bad("of another repository", "E_MISPLACED", changed(repository=PACK))
    bad("of another name", "E_MISPLACED", changed(key=PACK))
    bad("newer format", "E_RECORD", changed(format=2))
    bad("unknown field", "E_RECORD", changed(novelty=1))
    bad("missing field", "E_RECORD", changed(host=...))
    bad("control characters in what is shown", "E_RECORD", changed(label="\u001b[2J"))
    bad("scrypt of 1 GiB", "E_RECORD", with_scrypt(n=1 << 20))
    bad("scrypt of 512 MiB", "E_RECORD", with_scrypt(n=1 << 18, r=16))
    bad("scrypt of 2^53", "E_RECORD", with_scrypt(n=1 << 53))
    bad("scrypt that is too cheap", "E_RECORD", with_scrypt(n=1 << 16))
    bad("n not a power of two", "E_RECORD", with_scrypt(n=131073))
    bad("r too small", "E_RECORD", with_scrypt(r=1))
    bad("r too large", "E_RECORD", with_scrypt(r=1 << 20))
    bad("r of a broken number", "E_RECORD", with_scrypt(r=8.5))
    bad("p of zero", "E_RECORD", with_scrypt(p=0))
    bad("p too large", "E_RECORD", with_scrypt(p=5))
    bad("no p", "E_RECORD", with_scrypt(p=...))
    bad("salt too short", "E_RECORD", with_scrypt(salt="ab" * 15))
    bad("salt too long", "E_RECORD", with_scrypt(salt="ab" * 65))
    bad("salt in capitals", "E_RECORD", with_scrypt(salt="AB" * 16))
    bad("wrapped key too short", "E_RECORD", changed(wrapped=good["wrapped"][2:]))
    bad("wrapped key too long", "E_RECORD", changed(wrapped=good["wrapped"] + "00"))
    failing.append({**case("seal not before the checksum", record({"seal": "00" * 32, **good})), "code": "E_RECORD"})
    failing.append({**case("no seal", record(good)), "code": "E_RECORD"})
    flipped = "%02x" % (int(good["wrapped"][40:42], 16) ^ 1)
    other_nonce = "%02x" % (int(good["wrapped"][:2], 16) ^ 1)
    return {
        "config": config.hex(), "key": KEY, "password": PASSWORD, "masterKey": MASTER_KEY.hex(),
        "pass": [
            case("as blockhaul writes it", key_slot(good, config)),
            case("the most memory", key_slot(
                changed(scrypt=largest, wrapped=wrap(PASSWORD, largest, KEY)), config)),
            case("its JSON in ASCII", key_slot(good, config, ascii_=True)),
        ],
        "fail": failing,
        "closed": [
            case("another password", key_slot(changed(wrapped=wrap(PASSWORD + " ", usual, KEY)), config)),
            case("wrapped for another slot", key_slot(changed(wrapped=wrap(PASSWORD, usual, PACK)), config)),
            case("wrapped for another repository", key_slot(changed(wrapped=wrap(PASSWORD, usual, KEY, PACK)), config)),
            case("other salt", key_slot(with_scrypt(salt="00" * 32), config)),
            case("other p", key_slot(with_scrypt(p=2), config)),
            case("one bit of the wrapped key",
                 key_slot(changed(wrapped=good["wrapped"][:40] + flipped + good["wrapped"][42:]), config)),
            case("one bit of the nonce", key_slot(changed(wrapped=other_nonce + good["wrapped"][2:]), config)),
        ],
        "unsealed": [
            case("of another repository.json", key_slot(good, record({**CONFIG, "encrypted": False}))),
            case("other label", resummed(key_slot(good, config).replace(b"sheet", b"paper"))),
            case("other time", resummed(key_slot(good, config).replace(b"2026", b"2025"))),
        ],
    }


def manifest_vectors():
    counts = {
        "bytesRead": 5, "chunksRead": 1, "bytesZero": 0, "chunksZero": 0, "bytesUnchanged": 0, "chunksUnchanged": 0,
        "bytesDeduplicated": 0, "chunksDeduplicated": 0, "bytesStored": 5, "bytesPacked": 5, "chunksStored": 1,
    }
    parent = "019aa8f0-1c00-7000-8000-000000000001"
    generation = "019aa950-0000-7000-8000-000000000002"
    disk = {
        "name": "vda", "size": 5, "chunkSize": CHUNK_SIZE, "kind": "incremental", "reason": "bitmap b1",
        "layers": [{"layer": "a0000000-0000-4000-8000-000000000001", "digest": "11" * 32, "storedBytes": 321}],
        "bitmap": "b1", "counts": counts,
    }
    good = {
        "format": 1, "repository": REPOSITORY, "generation": generation, "source": "web",
        "run": "019aa94f-0000-7000-8000-00000000000a",
        "parent": {"generation": parent, "digest": "22" * 32},
        "sequence": 2, "kind": "incremental", "reason": "bitmap b1",
        "startedAt": "2026-11-22T03:00:00.000Z", "frozenAt": "2026-11-22T03:00:01.000Z",
        "committedAt": "2026-11-22T03:00:09.000Z", "consistency": "crash", "tags": {"why": "n\u00e4chtlich"},
        "disks": [disk],
        "stats": {**counts, "seconds": 8.5, "metadataBytes": 400, "peakRssBytes": 100000000,
                  "requests": {"PutObject": 3}},
        "writer": "blockhaul 0.1.0",
    }
    key = f"generations/web/{generation}.json"
    failing = []

    def bad(name, code, document, bytes_=None):
        failing.append({"name": name, "code": code, "hex": (bytes_ or record(document)).hex()})

    def changed(**fields):
        return {name: value for name, value in {**good, **fields}.items() if value is not ...}

    def with_disk(**fields):
        return changed(disks=[{name: value for name, value in {**disk, **fields}.items() if value is not ...}])

    bad("of another repository", "E_MISPLACED", changed(repository="00000000-0000-4000-8000-000000000000"))
    bad("of another source", "E_MISPLACED", changed(source="db"))
    bad("of another generation", "E_MISPLACED", changed(generation="019aa951-0000-7000-8000-000000000002"))
    bad("incremental without a parent", "E_RECORD", changed(parent=None))
    bad("a parent that is not older", "E_RECORD", changed(parent={"generation": generation, "digest": "22" * 32}))
    bad("generation id without a time", "E_RECORD", changed(generation=PACK))
    bad("no disks", "E_RECORD", changed(disks=[]))
    bad("two disks of one name", "E_RECORD", changed(disks=[disk, disk]))
    bad("sequence 0", "E_RECORD", changed(sequence=0))
    bad("unknown kind", "E_RECORD", changed(kind="partial"))
    bad("time without milliseconds", "E_RECORD", changed(committedAt="2026-11-22T03:00:09Z"))
    bad("time with an offset", "E_RECORD", changed(committedAt="2026-11-22T04:00:09.000+01:00"))
    bad("unknown field", "E_RECORD", changed(novelty=1))
    bad("missing field", "E_RECORD", changed(writer=...))
    bad("name that is a path", "E_RECORD", with_disk(name="../vda"))
    bad("disk of no bytes", "E_RECORD", with_disk(size=0))
    bad("disk past 64 TiB", "E_RECORD", with_disk(size=(64 << 40) + 1))
    bad("disk of a broken size", "E_RECORD", with_disk(size=1.5))
    bad("17 layers", "E_RECORD", with_disk(layers=disk["layers"] * 17))
    bad("layer called by its digest (R4)", "E_RECORD", with_disk(layers=[{**disk["layers"][0], "layer": "11" * 32}]))
    bad("layer without a digest (R4)", "E_RECORD",
        with_disk(layers=[{"layer": disk["layers"][0]["layer"], "storedBytes": 321}]))
    bad("counts below zero", "E_RECORD", with_disk(counts={**counts, "bytesRead": -1}))
    return {
        "source": "web", "generation": generation, "key": key,
        "pass": [
            {"name": "plain", "encrypted": False, "hex": record(good).hex(), "manifest": good},
            {"name": "encrypted", "encrypted": True, "manifest": good,
             "hex": seal("manifest", key, record(good), nonce_of("good manifest")).hex()},
        ],
        "fail": failing,
    }


def hold_vectors():
    generation = "019aa950-0000-7000-8000-000000000002"
    good = {
        "format": 1, "repository": REPOSITORY, "source": "web", "generation": generation,
        "heldAt": "2026-11-22T03:00:00.000Z", "reason": "vor dem Umbau, f\u00fcr die Pr\u00fcfung", "host": "alpha",
        "writer": "blockhaul 0.1.0",
    }
    silent = {**good, "reason": None}
    key = f"holds/web/{generation}.json"
    failing = []

    def bad(name, code, **fields):
        document = {name_: value for name_, value in {**good, **fields}.items() if value is not ...}
        failing.append({"name": name, "code": code, "hex": record(document).hex()})

    bad("of another repository", "E_MISPLACED", repository="00000000-0000-4000-8000-000000000000")
    bad("of another source", "E_MISPLACED", source="db")
    bad("of another generation", "E_MISPLACED", generation="019aa951-0000-7000-8000-000000000002")
    bad("generation id without a time", "E_RECORD", generation=PACK)
    bad("missing reason", "E_RECORD", reason=...)
    bad("reason of 1,025 units", "E_RECORD", reason="x" * 1025)
    bad("time without milliseconds", "E_RECORD", heldAt="2026-11-22T03:00:00Z")
    bad("unknown field", "E_RECORD", novelty=1)
    bad("newer format", "E_RECORD", format=2)
    whole = record(good)
    failing.append({"name": "a letter of the reason", "code": "E_RECORD", "hex": whole.replace(b"Umbau", b"Anbau").hex()})
    failing.append({"name": "empty", "code": "E_RECORD", "hex": ""})
    return {
        "source": "web", "generation": generation, "key": key,
        "pass": [
            {"name": "plain", "encrypted": False, "hex": whole.hex(), "hold": good},
            {"name": "plain, without a reason", "encrypted": False, "hex": record(silent).hex(), "hold": silent},
            {"name": "encrypted", "encrypted": True, "hold": good,
             "hex": seal("hold", key, whole, nonce_of("good hold")).hex()},
        ],
        "fail": failing,
    }


def drill_vectors():
    drill = "019aa952-0000-7000-8000-00000000000d"
    good = {
        "format": 1, "repository": REPOSITORY, "source": "web", "drill": drill,
        "generation": "019aa950-0000-7000-8000-000000000002", "digest": "ab" * 32,
        "endedAt": "2026-11-22T03:02:00.000Z", "outcome": "passed",
        "proofs": [{"kind": "agent", "seconds": 12.5}, {"kind": "script", "seconds": 14}],
        "error": None, "accelerator": "kvm", "seconds": 15.25, "bytesFetched": 104857600, "bytesRead": 209715200,
        "bytesWritten": 4096, "requests": {"GetObject": 61}, "host": "alpha", "writer": "blockhaul 0.1.0",
    }
    lost = {
        **good, "outcome": "failed", "proofs": [{"kind": "files", "seconds": None}], "accelerator": None,
        "error": {"code": "E_DRILL_FILES", "message": "Das Dateisystem ist besch\u00e4digt"}, "requests": {},
    }
    key = f"runs/web/{drill}.drill.json"
    failing = []

    def bad(name, code, **fields):
        document = {name_: value for name_, value in {**good, **fields}.items() if value is not ...}
        failing.append({"name": name, "code": code, "hex": record(document).hex()})

    bad("of another repository", "E_MISPLACED", repository="00000000-0000-4000-8000-000000000000")
    bad("of another source", "E_MISPLACED", source="db")
    bad("of another drill", "E_MISPLACED", drill="019aa953-0000-7000-8000-00000000000d")
    bad("drill id without a time", "E_RECORD", drill=PACK)
    bad("generation id without a time", "E_RECORD", generation=PACK)
    bad("digest in upper case", "E_RECORD", digest="AB" * 32)
    bad("unknown outcome", "E_RECORD", outcome="done")
    bad("no proof", "E_RECORD", proofs=[])
    bad("five proofs", "E_RECORD", proofs=[{"kind": "agent", "seconds": 1}] * 5)
    bad("unknown proof", "E_RECORD", proofs=[{"kind": "hope", "seconds": 1}])
    bad("time below zero", "E_RECORD", proofs=[{"kind": "agent", "seconds": -1}])
    bad("unknown accelerator", "E_RECORD", accelerator="hvf")
    bad("half a byte", "E_RECORD", bytesFetched=0.5)
    bad("missing error", "E_RECORD", error=...)
    bad("unknown field", "E_RECORD", novelty=1)
    bad("newer format", "E_RECORD", format=2)
    whole = record(good)
    failing.append({"name": "another outcome", "code": "E_RECORD", "hex": record(lost).replace(b'"failed"', b'"passed"').hex()})
    failing.append({"name": "empty", "code": "E_RECORD", "hex": ""})
    return {
        "source": "web", "drill": drill, "key": key,
        "pass": [
            {"name": "plain", "encrypted": False, "hex": whole.hex(), "record": good},
            {"name": "plain, failed", "encrypted": False, "hex": record(lost).hex(), "record": lost},
            {"name": "encrypted", "encrypted": True, "record": good,
             "hex": seal("run", key, whole, nonce_of("good drill")).hex()},
        ],
        "fail": failing,
    }


def profile_vectors():
    profile = "0b5e55ed-0000-4000-8000-000000000b00"
    good = {
        "format": 1, "repository": REPOSITORY, "source": "web", "profile": profile,
        "generation": "019aa950-0000-7000-8000-000000000002", "recordedAt": "2026-11-22T03:10:00.000Z",
        "disks": ["vda", "vdb"], "reads": [[0, 0, 1], [0, 4095, 1], [0, 8, 24], [1, 0, 2], [0, 1, 7]],
    }
    key = f"profiles/web/{profile}.json"
    failing = []

    def bad(name, code, **fields):
        document = {name_: value for name_, value in {**good, **fields}.items() if value is not ...}
        failing.append({"name": name, "code": code, "hex": record(document).hex()})

    bad("of another repository", "E_MISPLACED", repository="00000000-0000-4000-8000-000000000000")
    bad("of another source", "E_MISPLACED", source="db")
    bad("of another name", "E_MISPLACED", profile=PACK)
    bad("a disk that it does not list", "E_RECORD", reads=[[2, 0, 1]])
    bad("no disks", "E_RECORD", disks=[])
    bad("no reads", "E_RECORD", reads=[])
    bad("a run of no chunks", "E_RECORD", reads=[[0, 0, 0]])
    bad("a run of 16,385 chunks", "E_RECORD", reads=[[0, 0, 16385]])
    bad("two runs of 16,385 chunks together", "E_RECORD", reads=[[0, 0, 16384], [1, 0, 1]])
    bad("a chunk beyond every disk", "E_RECORD", reads=[[0, 1 << 30, 1]])
    bad("a run of two numbers", "E_RECORD", reads=[[0, 0]])
    bad("unknown field", "E_RECORD", novelty=1)
    bad("newer format", "E_RECORD", format=2)
    whole = record(good)
    failing.append({"name": "a digit of a chunk", "code": "E_RECORD", "hex": whole.replace(b"4095", b"4094").hex()})
    return {
        "source": "web", "profile": profile, "key": key,
        "pass": [
            {"name": "plain", "encrypted": False, "hex": whole.hex(), "content": good},
            {"name": "encrypted", "encrypted": True, "content": good,
             "hex": seal("profile", key, whole, nonce_of("good profile")).hex()},
        ],
        "fail": failing,
    }


def forgotten_vectors():
    manifests = manifest_vectors()
    generation = manifests["generation"]
    key = f"forgotten/web/{generation}.json"
    def copy_of(vector):
        return {
            "format": 1, "repository": REPOSITORY, "source": "web", "generation": generation,
            "forgottenAt": "2026-11-23T03:00:00.000Z",
            "manifest": base64.b64encode(bytes.fromhex(vector["hex"])).decode(),
        }
    plain, sealed = (copy_of(vector) for vector in manifests["pass"])
    failing = []

    def bad(name, code, **fields):
        document = {name_: value for name_, value in {**plain, **fields}.items() if value is not ...}
        failing.append({"name": name, "code": code, "hex": record(document).hex()})

    bad("of another repository", "E_MISPLACED", repository="00000000-0000-4000-8000-000000000000")
    bad("of another source", "E_MISPLACED", source="db")
    bad("of another generation", "E_MISPLACED", generation="019aa951-0000-7000-8000-000000000002")
    bad("without the manifest", "E_RECORD", manifest=...)
    bad("a manifest that is not base64", "E_RECORD", manifest="{}")
    bad("time without milliseconds", "E_RECORD", forgottenAt="2026-11-23T03:00:00Z")
    bad("unknown field", "E_RECORD", novelty=1)
    bad("newer format", "E_RECORD", format=2)
    return {
        "source": "web", "generation": generation, "key": key, "manifest": manifests["pass"][0]["manifest"],
        "pass": [
            {"name": "plain", "encrypted": False, "hex": record(plain).hex(), "record": plain},
            {"name": "encrypted", "encrypted": True, "record": sealed,
             "hex": seal("forgotten", key, record(sealed), nonce_of("good forgotten")).hex()},
        ],
        "fail": failing,
    }


def condemned_vectors():
    prune = "c0de0000-0000-4000-8000-000000000001"
    good = {
        "format": 1, "repository": REPOSITORY, "prune": prune, "since": "2026-11-23T03:00:00.000Z",
        "packs": ["c0000000-0000-4000-8000-000000000000", "c0000000-0000-4000-8000-000000000001"],
        "layers": ["1a000000-0000-4000-8000-000000000000"],
    }
    key = f"condemned/{prune}.json"
    failing = []

    def bad(name, code, **fields):
        document = {name_: value for name_, value in {**good, **fields}.items() if value is not ...}
        failing.append({"name": name, "code": code, "hex": record(document).hex()})

    bad("of another repository", "E_MISPLACED", repository="00000000-0000-4000-8000-000000000000")
    bad("of another prune", "E_MISPLACED", prune="c0de0000-0000-4000-8000-000000000002")
    bad("without layers", "E_RECORD", layers=...)
    bad("a pack that is no UUID", "E_RECORD", packs=["all"])
    bad("time without milliseconds", "E_RECORD", since="2026-11-23T03:00:00Z")
    bad("unknown field", "E_RECORD", novelty=1)
    bad("newer format", "E_RECORD", format=2)
    whole = record(good)
    failing.append({"name": "one pack made another", "code": "E_RECORD",
                    "hex": whole.replace(b"c0000000-0000-4000-8000-000000000001", b"c0000000-0000-4000-8000-000000000002").hex()})
    return {
        "prune": prune, "key": key,
        "pass": [
            {"name": "plain", "encrypted": False, "hex": whole.hex(), "record": good},
            {"name": "encrypted", "encrypted": True, "record": good,
             "hex": seal("condemned", key, whole, nonce_of("good condemned")).hex()},
        ],
        "fail": failing,
    }


def ledger_vectors():
    key = "checked/1ed9e500-0000-4000-8000-000000000001"
    packs = [f"c0000000-0000-4000-8000-00000000000{number}" for number in range(3)]

    def page(runs, entries, *, count=None, magic=b"BLKHCHKD", version=1, sealed=False, spoil=b""):
        body = struct.pack("<II", runs, len(entries) if count is None else count)
        for pack_, last in entries:
            body += uuid.UUID(pack_).bytes + struct.pack("<I", last)
        body += spoil
        if sealed:
            body = seal("checked", key, body, nonce_of("ledger"))
        stored = magic + struct.pack("<H6x", version) + body
        return stored + hashlib.sha256(stored).digest()

    entries = [(packs[0], 7), (packs[1], 3), (packs[2], 8)]
    good = page(7, entries)
    failing = [
        ("packs out of order", "E_LEDGER", page(7, [entries[1], entries[0]])),
        ("a pack twice", "E_LEDGER", page(7, [entries[0], entries[0]])),
        ("a run after the one that goes on", "E_LEDGER", page(7, [(packs[0], 9)])),
        ("more packs than there are", "E_LEDGER", page(7, entries, count=4)),
        ("fewer packs than there are", "E_LEDGER", page(7, entries, count=2)),
        ("a byte too many", "E_LEDGER", page(7, entries, spoil=b"\0")),
        ("another magic", "E_LEDGER", page(7, entries, magic=b"BLKHCHKX")),
        ("a newer version", "E_LEDGER_VERSION", page(7, entries, version=2)),
        ("one bit", "E_LEDGER", good[:30] + bytes([good[30] ^ 4]) + good[31:]),
        ("cut off", "E_LEDGER", good[:-1]),
        ("empty", "E_LEDGER", b""),
    ]
    return {
        "key": key,
        "pass": [
            {"name": "plain", "encrypted": False, "runs": 7, "last": dict(entries), "hex": good.hex()},
            {"name": "encrypted", "encrypted": True, "runs": 7, "last": dict(entries),
             "hex": page(7, entries, sealed=True).hex()},
            {"name": "of no packs", "encrypted": False, "runs": 0, "last": {}, "hex": page(0, []).hex()},
        ],
        "fail": [{"name": name, "code": code, "hex": bytes_.hex()} for name, code, bytes_ in failing],
    }


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    vectors = {
        "sealing": sealing_vectors(),
        "packs": pack_vectors(),
        "config": config_vectors(),
        "keys": key_vectors(),
        "manifests": manifest_vectors(),
        "holds": hold_vectors(),
        "forgotten": forgotten_vectors(),
        "condemned": condemned_vectors(),
        "checked": ledger_vectors(),
        "drills": drill_vectors(),
        "profiles": profile_vectors(),
    }
    for name, content in vectors.items():
        with open(os.path.join(here, name + ".json"), "w", encoding="utf-8") as file:
            json.dump({"repository": REPOSITORY, **content}, file, indent=2, ensure_ascii=False)
            file.write("\n")


main()
