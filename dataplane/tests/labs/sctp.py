"""SCTP (RFC 9260) in as much as a message takes, over raw sockets: not every kernel speaks it.

  sctp.py serve PORT            accepts associations and sends every message back, in capitals
  sctp.py say ADDRESS PORT TEXT opens an association, sends the text, prints the answer, shuts the association down

Both check the CRC32c and the verification tag of every packet that they get and end with an error at the first that is
wrong.
"""

import os
import socket
import struct
import sys
import time

SCTP = 132
DATA, INIT, INIT_ACK, SACK, ABORT, SHUTDOWN, SHUTDOWN_ACK, COOKIE_ECHO, COOKIE_ACK, SHUTDOWN_COMPLETE = (
    0, 1, 2, 3, 6, 7, 8, 10, 11, 14)
STATE_COOKIE = 7
WINDOW = 65536
PATIENCE = 5


def table_entry(value):
    # The Castagnoli polynomial, bits reversed (RFC 9260, appendix A).
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


TABLE = [table_entry(value) for value in range(256)]


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def chunk(kind, body=b"", flags=0):
    return struct.pack("!BBH", kind, flags, 4 + len(body)) + body + bytes(-len(body) % 4)


def data_chunk(tsn, text):
    # One message, whole (B and E), of stream 0, payload protocol 0.
    return chunk(DATA, struct.pack("!IHHI", tsn, 0, 0, 0) + text, flags=3)


class Endpoint:
    """Packets from and to one port of ours."""

    def __init__(self, family, port):
        self.family, self.port = family, port
        self.socket = socket.socket(family, socket.SOCK_RAW, SCTP)
        self.socket.settimeout(PATIENCE)

    def send(self, address, port, tag, *chunks):
        head = struct.pack("!HHI", self.port, port, tag)
        body = b"".join(chunks)
        # The checksum goes out with its least byte first (RFC 9260, section 6.8).
        crc = struct.pack("<I", crc32c(head + bytes(4) + body))
        self.socket.sendto(head + crc + body, (address, 0))

    def receive(self):
        """The next packet for our port: address, port, tag, chunks as (kind, body)."""
        while True:
            packet, sender = self.socket.recvfrom(65536)
            if self.family == socket.AF_INET:
                packet = packet[(packet[0] & 15) * 4:]
            source, port, tag = struct.unpack("!HHI", packet[:8])
            if port != self.port:
                continue
            if struct.unpack("<I", packet[8:12])[0] != crc32c(packet[:8] + bytes(4) + packet[12:]):
                sys.exit(f"a packet from {sender[0]} port {source} has a wrong CRC32c")
            chunks, rest = [], packet[12:]
            while rest:
                kind, _, length = struct.unpack("!BBH", rest[:4])
                chunks.append((kind, rest[4:length]))
                rest = rest[length + -length % 4:]
            return sender[0], source, tag, chunks

    def expect(self, kind, tag):
        """The body of the first chunk of that kind; the packet must carry our tag."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            _, _, got, chunks = self.receive()
            if got != tag:
                sys.exit(f"verification tag {got:#x} instead of {tag:#x}")
            for found, body in chunks:
                if found == kind:
                    return body
                if found == ABORT:
                    sys.exit("the association was aborted")
        sys.exit(f"no chunk of type {kind} within {PATIENCE} s")


def serve(port):
    # One socket for each family, a process each.
    family = socket.AF_INET6 if os.fork() == 0 else socket.AF_INET
    endpoint = Endpoint(family, port)
    endpoint.socket.settimeout(None)
    own, theirs, tsn = 0x0B0B0B0B, {}, 1000
    print("ready", flush=True)
    while True:
        address, source, tag, chunks = endpoint.receive()
        client = (address, source)
        for kind, body in chunks:
            if kind == INIT:
                theirs[client] = struct.unpack("!I", body[:4])[0]
                cookie = struct.pack("!HH", STATE_COOKIE, 8) + b"tasty"[:4]
                reply = struct.pack("!IIHHI", own, WINDOW, 1, 1, tsn) + cookie
                endpoint.send(address, source, theirs[client], chunk(INIT_ACK, reply))
                continue
            if client not in theirs or tag != own:
                sys.exit(f"a packet of no association from {client}, tag {tag:#x}")
            if kind == COOKIE_ECHO:
                endpoint.send(address, source, theirs[client], chunk(COOKIE_ACK))
            elif kind == DATA:
                got = struct.unpack("!I", body[:4])[0]
                sack = chunk(SACK, struct.pack("!IIHH", got, WINDOW, 0, 0))
                endpoint.send(address, source, theirs[client], sack, data_chunk(tsn, body[12:].upper()))
                tsn += 1
            elif kind == SHUTDOWN:
                endpoint.send(address, source, theirs[client], chunk(SHUTDOWN_ACK))


def say(address, port, text):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    endpoint = Endpoint(family, 40000 + os.getpid() % 20000)
    own, tsn = 0x0A0A0A0A, 500
    endpoint.send(address, port, 0, chunk(INIT, struct.pack("!IIHHI", own, WINDOW, 1, 1, tsn)))
    body = endpoint.expect(INIT_ACK, own)
    theirs, cookie = struct.unpack("!I", body[:4])[0], body[20:24]
    endpoint.send(address, port, theirs, chunk(COOKIE_ECHO, cookie))
    endpoint.expect(COOKIE_ACK, own)
    endpoint.send(address, port, theirs, data_chunk(tsn, text.encode()))
    answer = endpoint.expect(DATA, own)
    got = struct.unpack("!I", answer[:4])[0]
    endpoint.send(address, port, theirs, chunk(SACK, struct.pack("!IIHH", got, WINDOW, 0, 0)))
    endpoint.send(address, port, theirs, chunk(SHUTDOWN, struct.pack("!I", got)))
    endpoint.expect(SHUTDOWN_ACK, own)
    endpoint.send(address, port, theirs, chunk(SHUTDOWN_COMPLETE))
    print(answer[12:].decode())


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        say(sys.argv[2], int(sys.argv[3]), sys.argv[4])
