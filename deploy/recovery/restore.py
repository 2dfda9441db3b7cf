#!/usr/bin/env python3
"""Restores a disk from a bare copy of a Blockhaul repository, without Blockhaul, into a new sparse raw file.

    restore.py DIRECTORY                                  lists the generations that the copy holds
    restore.py DIRECTORY SOURCE[@ID] FILE [--disk NAME]   restores the latest, or the one whose id begins with ID

Needs Python 3.9, the two files beside this one, and the program `zstd`; for an encrypted repository also its password,
typed or in the file that BLOCKHAUL_PASSWORD_FILE names, and OpenSSL. Every hash from the manifest to the chunk is
checked. Exits with 0: done, 1: an object is damaged, which is named, 2: anything else.
"""
import argparse
import os
import struct
import sys
from array import array

from objects import Damaged, Repository, check, record, refs, sha256, unzstd, varints, zigzag

BATCH, ZERO = 32 << 20, -1


def manifests(repository, source, prefix=""):
    """Of the newest four generations whose ids begin so: the highest id need not be the latest (R22)."""
    names = sorted(path.name for path in repository.folder.glob("generations/%s/*.json" % source))
    for name in [name for name in names if name.startswith(prefix)][-4:]:
        key = "generations/%s/%s" % (source, name)
        document = record(repository.open(key, repository.read(key), "open", "manifest", key), key)
        place = [document[field] for field in ("repository", "source", "generation")]
        check(place == [repository.id, source, name[:-5]], key, "it belongs elsewhere")  # R15
        yield document


def places(repository, disk):
    """The disk's map: its packs, and for each chunk ZERO, or (number of the pack) << 16 | slot."""
    packs, where = {}, array("q", [ZERO]) * -(-disk["size"] // disk["chunkSize"])
    for layer in reversed(disk["layers"]):  # the newest mention wins, so it is painted last
        size = paint(repository, "layers/" + layer["layer"], layer["digest"], disk["chunkSize"], packs, where)
    check(size == disk["size"], "layers/" + layer["layer"], "it is of another size than the disk")
    return list(packs), where


def paint(repository, key, digest, chunk_size, packs, where):
    data = repository.read(key)
    footer_at = max(0, len(data) - 16 - int.from_bytes(data[-16:-12], "little"))
    check(sha256(data[footer_at:]).hex() == digest, key, "it is not the one that the manifest names")
    footer = repository.open(key, data[footer_at:-16], "open", "layer", key)
    size, own_chunk_size, _, segments = struct.unpack_from("<QIII", footer)
    check(own_chunk_size == chunk_size, key, "it has another chunk size than the disk")
    blocks, at, pages_at = [], 16, 20 + 52 * segments
    entries = list(struct.iter_unpack("<5I32s", footer[20:pages_at]))
    for *_, length, block_digest in entries + list(struct.iter_unpack("<I32s", footer[pages_at:])):
        block, name = data[at:at + length], "%s#%d" % (key, len(blocks))
        check(sha256(block) == block_digest, key, "block %d is not what was stored" % len(blocks))
        blocks.append(repository.open(key, block, "open", "layer", name))
        at += length
    table = refs(b"".join(blocks[segments:]))
    end = -(-size // chunk_size)  # R9: behind the end of its disk nothing older counts
    where[end:] = array("q", [ZERO]) * max(0, len(where) - end)
    for (chunk, _, runs, length, *_), block in zip(entries, blocks):
        numbers, pack, slot = varints(unzstd([block], length, key)), 0, 0
        for _ in range(runs):
            chunk, shape = chunk + next(numbers), next(numbers)
            count = shape // 2 + 1
            fits = max(0, min(count, len(where) - chunk))  # the disk may have been larger
            if shape % 2 == 1:
                where[chunk:chunk + fits] = array("q", [ZERO]) * fits
            else:
                step, jump = zigzag(next(numbers)), zigzag(next(numbers))
                pack, slot = pack + step, jump + (slot if step == 0 else 0)
                first = (packs.setdefault(table[pack], len(packs)) << 16) + slot
                where[chunk:chunk + fits] = array("q", range(first, first + fits))
                slot += count
            chunk += count
    return size


def restore(repository, disk, out):
    """Pack by pack, in batches, so that zstd is started once for many chunks."""
    packs, where = places(repository, disk)
    chunks = sorted((chunk for chunk in range(len(where)) if where[chunk] != ZERO), key=where.__getitem__)
    out.truncate(disk["size"])
    step = max(1, BATCH // disk["chunkSize"])
    for batch in (chunks[at:at + step] for at in range(0, len(chunks), step)):
        blobs = [repository.payload(packs[where[chunk] >> 16], where[chunk] & 65535) for chunk in batch]
        packed = [(payload, slot.raw) for payload, slot, _ in blobs if slot.codec == 1]
        raw, at = unzstd([frame for frame, _ in packed], sum(length for _, length in packed), blobs[0][2]), 0
        for chunk, (payload, slot, what) in zip(batch, blobs):
            if slot.codec == 1:
                payload, at = raw[at:at + slot.raw], at + slot.raw
            offset = chunk * disk["chunkSize"]
            identity = repository.keys.chunk_id(payload) if repository.keys else sha256(payload)
            check(identity == slot.id, what, "a blob holds another chunk than its id says")
            check(len(payload) == min(disk["chunkSize"], disk["size"] - offset), what, "a chunk has a wrong length")
            out.seek(offset)
            out.write(payload)


def find(repository, name):
    """The manifest that SOURCE or SOURCE@ID means."""
    source, _, prefix = name.partition("@")
    found = list(manifests(repository, source, prefix))
    if not found or (prefix and len(found) > 1):
        raise OSError("%s %s" % ("several generations are" if found else "there is no", name))
    return max(found, key=lambda one: (one["sequence"], one["committedAt"], one["generation"]))


def overview(repository):
    for path in sorted(repository.folder.glob("generations/*/*.json")):
        for one in manifests(repository, path.parent.name, path.name):
            disks = ", ".join("%s (%d bytes)" % (disk["name"], disk["size"]) for disk in one["disks"])
            print("%s@%s  %s  %s" % (one["source"], one["generation"], one["frozenAt"], disks))


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("\n\n")[1].strip())
    for argument in ("directory", "generation", "file"):
        parser.add_argument(argument, nargs=None if argument == "directory" else "?")
    parser.add_argument("--disk")
    given = parser.parse_args()
    repository = Repository(given.directory)
    if given.file is None:
        return overview(repository)
    manifest = find(repository, given.generation)
    disks = [disk for disk in manifest["disks"] if given.disk in (None, disk["name"])]
    if len(disks) != 1:
        raise OSError("choose with --disk: " + ", ".join(disk["name"] for disk in manifest["disks"]))
    with open(given.file, "xb") as out:  # never over a file that is there
        try:
            restore(repository, disks[0], out)
        except BaseException:
            os.remove(given.file)  # what is not complete must not look as if it were
            raise
    print("restored %s of %s@%s, every chunk checked" % (disks[0]["name"], manifest["source"], manifest["generation"]))


if __name__ == "__main__":
    try:
        main()
    except Damaged as damage:
        sys.exit("restore.py: %s" % damage)  # exit code 1
    except OSError as error:
        print("restore.py: %s" % error, file=sys.stderr)
        sys.exit(2)
