"""Tries connections between network namespaces, all at once.

Standard input: {"places": {ADDRESS: NAMESPACE}, "rows": [{"from": ADDRESS, "to": ADDRESS, "protocol": N, "key": N or null,
"allowed": BOOL}]}. Standard output: a list that says of each row whether it came through.

A TCP connection is opened, a datagram is echoed, an echo is asked for by ICMP; what else there is (SCTP, say, which not
every kernel speaks) has to arrive. What is expected to come through has five seconds; what is not is tried for as long as
that takes, and at least for half a second.
"""

import ctypes
import errno
import json
import os
import selectors
import socket
import struct
import sys
import time

from sctp import crc32c

PATIENCE = 5
# As long as nothing may come through.
SILENCE = 0.5
AGAIN = 0.15
TCP, UDP, ICMP, SCTP = 6, 17, 1, 132
CLONE_NEWNET = 0x40000000

libc = ctypes.CDLL(None, use_errno=True)
selector = selectors.DefaultSelector()


def enter(namespace):
    with open(f"/run/netns/{namespace}") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {namespace}")


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def internet_checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Row:
    def __init__(self, number, row):
        self.source, self.to = row["from"], row["to"]
        self.protocol, self.key = row["protocol"], row["key"]
        self.wanted = row["allowed"]
        self.came = False
        # Tells rows of one run, and runs of one lab, apart.
        self.tag = os.urandom(6) + struct.pack("!H", number)
        self.socket = None

    def packet(self):
        """What is sent where no kernel speaks the protocol for us."""
        if self.protocol == ICMP:
            kind, code = divmod(self.key, 256)
            head = struct.pack("!BBHHH", kind, code, 0, *struct.unpack("!HH", self.tag[:4]))
            check = internet_checksum(head + self.tag)
            return head[:2] + struct.pack("!H", check) + head[4:] + self.tag
        if self.protocol == SCTP:
            # INIT, whose tag is ours (RFC 9260, 3.3.2).
            chunk = struct.pack("!BBH4sIHHI", 1, 0, 20, self.tag[4:], 65536, 1, 1, 1)
            source = 32768 + int.from_bytes(self.tag[:2], "big") % 28000
            head = struct.pack("!HHI", source, self.key, 0)
            return head + struct.pack("<I", crc32c(head + bytes(4) + chunk)) + chunk
        return self.tag

    def mark(self):
        """What packets of this row, or answers to them, have in them."""
        return self.tag[4:] if self.protocol == SCTP else self.tag

    def begin(self, namespace):
        enter(namespace)
        ip = family(self.to)
        kind = {TCP: socket.SOCK_STREAM, UDP: socket.SOCK_DGRAM}.get(self.protocol, socket.SOCK_RAW)
        protocol = 0 if self.protocol in (TCP, UDP) else self.protocol
        self.socket = socket.socket(ip, kind, protocol)
        self.socket.setblocking(False)
        if ip == family(self.source):
            self.socket.bind((self.source, 0))
        if self.protocol == TCP:
            self.socket.connect_ex((self.to, self.key))
            selector.register(self.socket, selectors.EVENT_WRITE, self.connected)
        else:
            if self.protocol in (UDP, ICMP):
                selector.register(self.socket, selectors.EVENT_READ, self.answered)
            self.send()

    def send(self):
        if self.protocol == TCP or self.came:
            return
        try:
            self.socket.sendto(self.packet(), (self.to, self.key if self.protocol == UDP else 0))
        except OSError as error:
            # An error that was reported for what was sent before; whether it came through is seen at the other end.
            if error.errno not in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.ECONNREFUSED):
                raise

    def connected(self):
        error = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error == errno.ECONNREFUSED:
            raise SystemExit(f"{self.to} has no listener at {self.key}")
        self.came = error == 0
        selector.unregister(self.socket)

    def answered(self):
        data = self.socket.recv(2048)
        # An echo's reply: what the kernel answered with, not what was asked on a loopback.
        is_reply = self.protocol != ICMP or data[(data[0] & 15) * 4] == 0
        self.came |= is_reply and self.mark() in data


def listen(rows, namespaces):
    """What answers, one for each address, protocol and port."""
    kept, there = [], set()
    for row in rows:
        if row.protocol == ICMP:
            continue
        place = (row.to, row.protocol, row.key if row.protocol in (TCP, UDP) else 0)
        if place in there:
            continue
        there.add(place)
        enter(namespaces[row.to])
        if row.protocol == TCP:
            server = socket.create_server((row.to, row.key), family=family(row.to), backlog=64)
        elif row.protocol == UDP:
            server = socket.socket(family(row.to), socket.SOCK_DGRAM)
            server.bind((row.to, row.key))
            selector.register(server, selectors.EVENT_READ, lambda server=server: echo(server))
        else:
            server = socket.socket(family(row.to), socket.SOCK_RAW, row.protocol)
            server.bind((row.to, 0))
            selector.register(server, selectors.EVENT_READ, lambda server=server, place=place: arrive(server, rows, place))
        kept.append(server)
    return kept


def echo(server):
    data, sender = server.recvfrom(2048)
    server.sendto(data, sender)


def arrive(server, rows, place):
    data = server.recv(2048)
    for row in rows:
        if (row.to, row.protocol) == place[:2] and row.mark() in data:
            row.came = True


def main():
    task = json.load(sys.stdin)
    rows = [Row(number, row) for number, row in enumerate(task["rows"])]
    servers = listen(rows, task["places"])
    start = time.monotonic()
    for row in rows:
        row.begin(task["places"][row.source])
    again = start + AGAIN
    while True:
        now = time.monotonic()
        waits = any(row.wanted and not row.came for row in rows)
        if now - start > (PATIENCE if waits else SILENCE):
            break
        if now >= again:
            for row in rows:
                row.send()
            again = now + AGAIN
        for key, _ in selector.select(max(0, min(again, start + SILENCE) - time.monotonic()) + 0.001):
            key.data()
    json.dump([row.came for row in rows], sys.stdout)
    for server in servers:
        server.close()


main()
