"""Opens what an encrypted Blockhaul repository holds, for restore.py: FORMAT.md, "Keys" and "Sealing"."""
import ctypes
import ctypes.util
import getpass
import hashlib
import hmac
import os
from functools import lru_cache
from pathlib import Path


class DoesNotOpen(Exception):
    """Other bytes, another place, or another key than it was sealed with."""


def sha256(data):
    return hashlib.sha256(data).digest()


def unseal(key, sealed, associated):
    """AES-256-GCM of nonce 12 B, ciphertext, tag 16 B. Python has none, but the library behind its hashlib has."""
    name = ctypes.util.find_library("crypto")
    if name is None:
        raise OSError("the repository is encrypted, and OpenSSL's libcrypto was not found; install OpenSSL")
    lib, length = ctypes.CDLL(name), ctypes.c_int()
    lib.EVP_CIPHER_CTX_new.restype = lib.EVP_aes_256_gcm.restype = ctypes.c_void_p
    context, body = ctypes.c_void_p(lib.EVP_CIPHER_CTX_new()), sealed[12:-16]
    plain, rest = ctypes.create_string_buffer(len(body) + 16), ctypes.create_string_buffer(16)
    try:
        lib.EVP_DecryptInit_ex(context, ctypes.c_void_p(lib.EVP_aes_256_gcm()), None, key, sealed[:12])
        lib.EVP_DecryptUpdate(context, None, ctypes.byref(length), associated, len(associated))
        lib.EVP_DecryptUpdate(context, plain, ctypes.byref(length), body, len(body))
        lib.EVP_CIPHER_CTX_ctrl(context, 0x11, 16, sealed[-16:])  # EVP_CTRL_AEAD_SET_TAG
        if len(sealed) < 28 or lib.EVP_DecryptFinal_ex(context, rest, ctypes.byref(length)) != 1:
            raise DoesNotOpen()
    finally:
        lib.EVP_CIPHER_CTX_free(context)
    return plain.raw[:len(body)]


class Keys:
    """All keys of a repository, derived from the master key that a password opens."""

    def __init__(self, folder, repository, config, record):
        """config: repository.json as stored; record: checks and parses one."""
        self.repository = repository.encode()
        path = os.environ.get("BLOCKHAUL_PASSWORD_FILE")
        password = Path(path).read_bytes() if path else getpass.getpass().encode()
        for slot in sorted(Path(folder).glob("keys/*.json")):
            if self.unlock(slot, password.rstrip(b"\r\n"), config, record):
                return
        raise OSError("the password opens none of the keys in %s" % (Path(folder) / "keys"))

    def unlock(self, path, password, config, record):
        """Tries one slot. Whoever changed repository.json or its seal knew no password: that is no slot to be tried."""
        key, text = b"keys/" + path.name.encode(), path.read_bytes()
        try:
            slot = record(text, key.decode())
            cost = {name: slot["scrypt"][name] for name in "nrp"}
            if cost["n"] > 1 << 18 or cost["r"] > 16 or cost["p"] > 4:
                return False
            salt = bytes.fromhex(slot["scrypt"]["salt"])
            wrapping = hashlib.scrypt(password, salt=salt, **cost, maxmem=300 << 20, dklen=32)
            self.master = unseal(wrapping, bytes.fromhex(slot["wrapped"]), b"\0".join((b"key", self.repository, key)))
        except (DoesNotOpen, ValueError, record.failure):
            return False  # another password's, most likely
        seal = hmac.digest(self.derived("key slot"), sha256(config) + text[:text.rindex(b',"seal":')] + b"}", "sha256")
        if seal.hex() != slot["seal"]:
            raise record.failure("repository.json or %s is damaged: its seal does not fit" % key.decode())
        return True

    @lru_cache(None)
    def derived(self, label):
        """HKDF-SHA-256 of the master key."""
        salt = bytes.fromhex(self.repository.decode().replace("-", ""))
        return hmac.digest(hmac.digest(salt, self.master, "sha256"), b"blockhaul v1 %s\1" % label.encode(), "sha256")

    def open(self, kind, key, stored):
        """An object, or a piece of one, that was sealed under this key as this kind (R15)."""
        own = hmac.digest(self.derived(kind), key.encode(), "sha256")
        return unseal(own, stored, b"\0".join((kind.encode(), self.repository, key.encode())))

    def open_blob(self, chunk_id, stored):
        return unseal(hmac.digest(self.derived("blob"), chunk_id, "sha256"), stored, chunk_id)

    def chunk_id(self, raw):
        return hmac.digest(self.derived("chunk id"), raw, "sha256")
