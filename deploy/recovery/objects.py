"""What a bare copy of a Blockhaul repository holds, object by object, each checked: for restore.py. The words and rules
(R9, ...) are those of src/repository/FORMAT.md."""
import hashlib
import itertools
import json
import os
import struct
import subprocess
import tempfile
import zlib
from collections import namedtuple
from functools import lru_cache
from pathlib import Path
from uuid import UUID

import sealed

Ref = namedtuple("Ref", "pack digest slots blob_bytes")  # how layers and forwards name a pack
Slot = namedtuple("Slot", "id stored raw codec crc")  # what a pack's directory says of a blob
REF, SLOT = struct.Struct("<16s32sIQ"), struct.Struct("<32sIIBI")


class Damaged(Exception):
    pass


def check(good, what, why):
    if not good:
        raise Damaged("%s is damaged: %s" % (what, why))


def sha256(data):
    return hashlib.sha256(data).digest()


def record(text, what):
    """A JSON document whose last field is the SHA-256 of the text without it."""
    body = text[:-78] + b"}"
    check(text[-78:] == b',"sha256":"%s"}\n' % sha256(body).hex().encode(), what, "its checksum does not match")
    return json.loads(body)
record.failure = Damaged


def varints(data):
    value = shift = 0
    for byte in data:
        value, shift = value | (byte & 127) << shift, shift + 7
        if byte < 128:
            yield value
            value = shift = 0


def zigzag(value):
    return value >> 1 if value % 2 == 0 else -(value >> 1) - 1


def refs(data):
    return [Ref(str(UUID(bytes=pack)), *more) for pack, *more in REF.iter_unpack(data)]


def unzstd(frames, length, what):
    """What the frames hold, one after the other: so many bytes, and never more memory than that."""
    if not frames:
        return b""
    with tempfile.TemporaryFile() as stdin:
        stdin.writelines(frames)
        stdin.seek(0)
        try:
            child = subprocess.Popen(["zstd", "-dcq"], stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        except FileNotFoundError:
            raise OSError("the program zstd is not installed; on Debian: apt install zstd")
        with child.stdout as stdout:
            raw = stdout.read(length + 1)
        check(child.wait() == 0 and len(raw) == length, what, "it does not decompress to %d bytes" % length)
    return raw


class Repository:
    def __init__(self, folder):
        self.folder = Path(folder)
        stored = (self.folder / "repository.json").read_bytes()
        config = record(stored, "repository.json")
        if config["format"] != 1:
            raise OSError("the repository has format %s; look for a newer restore.py" % config["format"])
        if "BLOCKHAUL_PASSWORD_FILE" in os.environ and not config["encrypted"]:  # R14
            raise OSError("there is a password, but the repository is not encrypted: is it the one you mean?")
        self.id = config["repository"]
        self.keys = sealed.Keys(folder, self.id, stored, record) if config["encrypted"] else None

    def read(self, key, offset=0, length=-1):
        check((self.folder / key).is_file(), key, "it is gone")
        with open(self.folder / key, "rb") as file:
            file.seek(offset)
            return file.read(length)

    def open(self, key, stored, unseal, *place):
        """The bytes themselves, or in an encrypted repository what `unseal` makes of them."""
        try:
            return getattr(self.keys, unseal)(*place, stored) if self.keys else stored
        except sealed.DoesNotOpen:
            raise Damaged("%s is damaged: its seal does not fit its bytes, its place, or the key" % key)

    def stored_length(self, ref):
        return ref.slots * SLOT.size + (28 if self.keys else 0)

    def directory(self, ref, stored):
        """The slots of a pack, and where its blobs begin, from the stored directory."""
        key = "packs/" + ref.pack
        check(sha256(stored) == ref.digest, key, "its directory is not the one that its layer or forward names")
        slots = [Slot(*each) for each in SLOT.iter_unpack(self.open(key, stored, "open", "directory", key))]
        offsets = list(itertools.accumulate((slot.stored for slot in slots), initial=16))
        check((len(slots), offsets[-1]) == (ref.slots, 16 + ref.blob_bytes), key, "its lengths do not add up")
        return slots, offsets

    @lru_cache(16)
    def pack(self, ref):
        return self.directory(ref, self.read("packs/" + ref.pack, 16 + ref.blob_bytes, self.stored_length(ref)))

    @lru_cache(16)
    def forward(self, key, ref):
        """Of a pack that was rewritten: its slots, and for those that moved the new pack and the slot there."""
        data = self.read(key)
        check(sha256(data[:-32]) == data[-32:], key, "its checksum does not match")
        body, at = self.open(key, data[16:-32], "open", "forward", key), 28 + self.stored_length(ref)
        slots, _ = self.directory(ref, body[28:at])  # R10: what the layer vouches for
        runs_at, ways, slot = at + 8 + REF.size * int.from_bytes(body[at:at + 4], "little"), {}, 0
        targets, numbers = refs(body[at + 4:runs_at - 4]), varints(body[runs_at:])
        for gap, more, target, to in zip(numbers, numbers, numbers, numbers):
            slot += gap
            ways.update((slot + n, (targets[target], to + n)) for n in range(more + 1))
            slot += more + 1
        return slots, ways

    def locate(self, ref, slot, chain=8):
        """Where a blob lies by now: the pack's key, the offset, and what the directory vouched for says of it."""
        key, problem = "packs/" + ref.pack, Damaged("packs/%s is gone" % ref.pack)
        if (self.folder / key).is_file():
            slots, offsets = self.pack(ref)
            return key, offsets[slot], slots[slot]
        for path in sorted(self.folder.glob("forwards/%s/*" % ref.pack)) if chain > 0 else []:
            name = "forwards/%s/%s" % (ref.pack, path.name)
            try:
                slots, ways = self.forward(name, ref)
                if slot in ways:
                    there = self.locate(*ways[slot], chain - 1)
                    check(there[2] == slots[slot], name, "it leads to another blob")
                    return there
            except Damaged as error:  # another may know the way
                problem = error
        raise problem

    def payload(self, ref, number):
        key, offset, slot = self.locate(ref, number)
        stored, what = self.read(key, offset, slot.stored), "%s (slot %d of %s)" % (key, number, ref.pack)
        check(zlib.crc32(stored) == slot.crc, what, "a blob's checksum does not match")
        return self.open(what, stored, "open_blob", slot.id), slot, what
