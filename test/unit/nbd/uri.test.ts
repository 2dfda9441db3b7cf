import { expect, test } from "vitest";
import { isNbdUri, parseNbdUri, type NbdAddress } from "../../../src/nbd/uri.ts";

const tcp = (host: string, port = 10_809): NbdAddress["socket"] => ({ host, port });

/** From the tables of uri.md and of nbd_connect_uri(3). */
test.each<[string, NbdAddress["socket"], string]>([
  ["nbd://example.com/disk", tcp("example.com"), "disk"],
  ["nbd://example.com", tcp("example.com"), ""],
  ["nbd://example.com/", tcp("example.com"), ""],
  ["nbd://example.com//disk", tcp("example.com"), "/disk"],
  ["nbd://example.com/hello%20world", tcp("example.com"), "hello world"],
  ["nbd://example.com/a/../b", tcp("example.com"), "a/../b"],
  ["nbd://example.com/%C3%A9", tcp("example.com"), "é"],
  ["nbd://example.com/a+b%2B", tcp("example.com"), "a+b+"],
  ["nbd://example.com/a:b@c", tcp("example.com"), "a:b@c"],
  ["NBD://example.com:1/x", tcp("example.com", 1), "x"],
  ["nbd://example.com:/x", tcp("example.com"), "x"],
  ["nbd://127.0.0.1:65535", tcp("127.0.0.1", 65_535), ""],
  ["nbd://[::1]:10810/x", tcp("::1", 10_810), "x"],
  ["nbd://[fe80::1%25eth0]/x", tcp("fe80::1%eth0"), "x"],
  ["nbd:///x", tcp("localhost"), "x"],
  ["nbd://:10810/x", tcp("localhost", 10_810), "x"],
  ["nbd+unix:///disk?socket=nbd.sock", { path: "nbd.sock" }, "disk"],
  ["nbd+unix:///?socket=/run/a%20b%26c", { path: "/run/a b&c" }, ""],
  ["nbd+unix://?socket=/run/x", { path: "/run/x" }, ""],
  ["nbd+unix:///?socket=%00/abstract", { path: "\0/abstract" }, ""],
])("%s", (uri, socket, exportName) => {
  expect(isNbdUri(uri)).toBe(true);
  expect(parseNbdUri(uri)).toEqual({ tls: false, socket, exportName, uri });
});

test.each<[string, NonNullable<NbdAddress["tlsSettings"]>]>([
  ["nbds://h/", { type: "x509", verifyPeer: true, hostname: "h" }],
  ["nbds://h/?tls-certificates=/c", { type: "x509", verifyPeer: true, hostname: "h", certificates: "/c" }],
  ["nbds://h/?tls-hostname=other", { type: "x509", verifyPeer: true, hostname: "other" }],
  ["nbds://h/?tls-verify-peer=0", { type: "x509", verifyPeer: false, hostname: "h" }],
  ["nbds+unix://h/?socket=/s", { type: "x509", verifyPeer: true, hostname: "h" }],
  ["nbds+unix:///?socket=/s&tls-hostname=h", { type: "x509", verifyPeer: true, hostname: "h" }],
  ["nbds+unix:///?socket=/s&tls-verify-peer=false", { type: "x509", verifyPeer: false }],
  [
    "nbds://me@h/?tls-psk-file=/k",
    { type: "psk", verifyPeer: true, hostname: "h", pskFile: "/k", username: "me" },
  ],
  [
    "nbds+unix://me@/?socket=/s&tls-psk-file=/k&tls-type=psk",
    { type: "psk", verifyPeer: true, pskFile: "/k", username: "me" },
  ],
  [
    "nbds://h/?tls-psk-file=/k&tls-username=me",
    { type: "psk", verifyPeer: true, hostname: "h", pskFile: "/k", username: "me" },
  ],
])("%s", (uri, tlsSettings) => {
  expect(parseNbdUri(uri)).toMatchObject({ tls: true, tlsSettings, uri });
  expect(parseNbdUri(uri).tlsSettings).toEqual(tlsSettings);
});

const LONG = "s".repeat(108);
test.each<[string, string]>([
  ["http://h/x", "must begin with nbd://"],
  ["nbd+vsock:///x", "must begin with nbd://"],
  ["/dev/nbd0", "must begin with nbd://"],
  ["", "must begin with nbd://"],
  ["nbd:unix:/run/s", "must have // after nbd:"],
  ["nbd:h:10809:exportname=x", "must have // after nbd:"],
  ["nbd://user:secret@h/x", "has a password"],
  ["nbd://me@h/x", "has a user name, which only nbds:// can use"],
  ["nbd://h/x#y", "has a #"],
  ["nbd://h/a b", 'has the character " "; write %20'],
  ["nbd://h/é", 'has the character "é"; write %C3%A9'],
  ["nbd://h/%zz", "has a wrong percent-encoding"],
  ["nbd://h/%ff", "has a wrong percent-encoding"],
  ["nbd://h:0/x", "has port 0"],
  ["nbd://h:65536/x", "has port 65536"],
  ["nbd://h:x/x", "where host:port should be"],
  ["nbd://::1/x", "put IPv6 in [brackets]"],
  ["nbd://a%00b/x", "which is no host name"],
  ["nbd://[::zz]/x", "which is no IPv6 address"],
  ["nbd://h/x?socket=/s", "needs nbd+unix://"],
  ["nbd+unix:///x", "needs ?socket="],
  ["nbd+unix:///x?socket=", "needs ?socket="],
  ["nbd+unix:///x?socket", "has the parameter socket without a value"],
  ["nbd+unix:///x?socket=/a&socket=/b", "has socket twice"],
  ["nbd+unix:///x?socket=/a%00b", "has a NUL character"],
  [`nbd+unix:///x?socket=${LONG}`, "has a socket path of more than 107 bytes"],
  ["nbd+unix://run/sock?socket=/a", "write three slashes"],
  ["nbd+unix://:1/?socket=/a", "has a port"],
  ["nbd://h/x?timeout=3", "has an unknown parameter: timeout"],
  ["nbd://h/x?tls-psk-file=/k", "has tls-psk-file, which needs nbds://"],
  ["nbd+unix:///x?socket=/a&tls-hostname=h", "has tls-hostname, which needs nbds+unix://"],
  ["nbds://h/?tls-type=anon", "proves nothing"],
  ["nbds://h/?tls-type=x", "use x509 or psk"],
  ["nbds://h/?tls-type=psk", "needs tls-psk-file"],
  ["nbds://h/?tls-type=x509&tls-psk-file=/k", "needs tls-type=psk"],
  ["nbds://h/?tls-psk-file=/k&tls-certificates=/c", "has both"],
  ["nbds://a@h/?tls-psk-file=/k&tls-username=b", "has two user names"],
  ["nbds://h/?tls-verify-peer=2", "use 0 or 1"],
  ["nbds+unix:///?socket=/s", "needs tls-hostname=NAME"],
])("%s is refused", (uri, reason) => {
  const parse = (): NbdAddress => parseNbdUri(uri);
  expect(parse).toThrow(reason);
  expect(parse).toThrow(expect.objectContaining({ kind: "usage", code: "E_NBD_URI" }));
});

test("a password is not repeated in the message", () => {
  expect(() => parseNbdUri("nbds://user:secret@h/")).toThrow(/^NBD URI "nbds:\/\/…@h\/" has a password/);
});

test("an export name that no server could take is refused", () => {
  expect(() => parseNbdUri(`nbd://h/${"x".repeat(4097)}`)).toThrow("at most 4096 bytes");
  expect(() => parseNbdUri("nbd://h/a%00b")).toThrow("no NUL");
});

test("other things are no NBD URIs", () => {
  const others = ["/disk.raw", "qmp:/s", "nbdx://h", "image:/x", "libvirt:dom", "nbd"];
  expect(others.filter(isNbdUri)).toEqual([]);
});
