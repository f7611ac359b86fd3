"""A service's backend and its clients. Every question is answered with the backend's name and the client's address and
port, as the backend sees them.

  backend.py serve NAME PORT             answers over TCP and UDP
  backend.py ask ADDRESS PORT COUNT      COUNT connections, one question each; prints the answers
  backend.py ask-udp ADDRESS PORT COUNT  the same by datagrams, each from a socket of its own
  backend.py ask-as SOURCE ADDRESS PORT  one connection from that address, which is given up after a second
  backend.py bound SPORT ADDRESS PORT …  datagrams from one source port to every ADDRESS PORT; prints the answers
  backend.py talk ADDRESS PORT COUNT     COUNT sessions at a time that ask every 50 ms until SIGTERM; then prints for each its
                                         backend, its answers and whether it is "whole" or "broken"
"""

import select
import signal
import socket
import sys
import threading
import time

PATIENCE = 5


def plain(address):
    return address.removeprefix("::ffff:")


def serve(name, port):
    def answer(client):
        return f"{name} {plain(client[0])} {client[1]}\n".encode()

    def session(connection, client):
        with connection:
            while connection.recv(4096):
                connection.sendall(answer(client))

    def datagrams():
        listener = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::", port))
        while True:
            _, client = listener.recvfrom(65536)
            listener.sendto(answer(client), client)

    threading.Thread(target=datagrams, daemon=True).start()
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=256)
    while True:
        connection, client = listener.accept()
        threading.Thread(target=session, args=(connection, client), daemon=True).start()


def connect(address, port, kind=socket.SOCK_STREAM, sport=0):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    connection = socket.socket(family, kind)
    connection.settimeout(PATIENCE)
    if sport:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        connection.bind(("", sport))
    connection.connect((address, port))
    return connection


def ask(address, port, count, kind):
    for _ in range(count):
        with connect(address, port, kind) as connection:
            connection.sendall(b"?")
            print(connection.recv(4096).decode().strip(), flush=True)


def ask_as(source, address, port):
    with socket.create_connection((address, port), timeout=1, source_address=(source, 0)) as connection:
        connection.sendall(b"?")
        print(connection.recv(4096).decode().strip(), flush=True)


def bound(sport, places):
    for address, port in zip(places[::2], places[1::2]):
        with connect(address, int(port), socket.SOCK_DGRAM, sport) as connection:
            connection.sendall(b"?")
            print(connection.recv(4096).decode().strip(), flush=True)


def talk(address, port, count):
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    sessions = {connect(address, port): ["?", 0, "whole"] for _ in range(count)}
    print("connected", flush=True)
    while not ended:
        asked = [connection for connection, session in sessions.items() if session[2] == "whole"]
        for connection in list(asked):
            try:
                connection.sendall(b"?")
            except OSError:
                sessions[connection][2] = "broken"
                asked.remove(connection)
        until = time.monotonic() + PATIENCE
        while asked and time.monotonic() < until:
            for connection in select.select(asked, [], [], PATIENCE)[0]:
                try:
                    answer = connection.recv(4096).decode().split()
                except OSError:
                    answer = []
                session = sessions[connection]
                if answer:
                    session[0], session[1] = answer[0], session[1] + 1
                else:
                    session[2] = "broken"
                asked.remove(connection)
        for connection in asked:
            sessions[connection][2] = "broken"
        time.sleep(0.05)
    for name, answers, state in sessions.values():
        print(name, answers, state)


what, rest = sys.argv[1], sys.argv[2:]
if what == "serve":
    serve(rest[0], int(rest[1]))
elif what == "ask-as":
    ask_as(rest[0], rest[1], int(rest[2]))
elif what == "bound":
    bound(int(rest[0]), rest[1:])
elif what == "talk":
    talk(rest[0], int(rest[1]), int(rest[2]))
else:
    ask(rest[0], int(rest[1]), int(rest[2]), socket.SOCK_DGRAM if what == "ask-udp" else socket.SOCK_STREAM)
