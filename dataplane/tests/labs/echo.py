"""Sessions that are watched.

`echo.py serve PORT` sends back what it gets over TCP; `echo.py talk ADDRESS PORT` says a line every 20 ms over one
connection until SIGTERM, then prints how many came back and the longest silence in ms. `echo.py say ADDRESS PORT` says one word over a
connection and prints it when it came back. `echo.py reflect ADDRESS PORT`
sends datagrams back; `echo.py tick ADDRESS PORT` sends one every 2 ms from one port until SIGTERM, then prints how many came
back and every silence of 20 ms or more, in ms: from the last answer before it to the first one after."""

import contextlib
import signal
import socket
import sys
import threading
import time


def serve(port):
    def session(connection):
        with connection, contextlib.suppress(ConnectionError):
            while data := connection.recv(4096):
                connection.sendall(data)

    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=session, args=(connection,), daemon=True).start()


def talk(address, port):
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    count, longest = 0, 0.0
    with socket.create_connection((address, port), timeout=30) as connection:
        print("connected", flush=True)
        while not ended:
            asked = time.monotonic()
            connection.sendall(b"%08d" % count)
            answer = b""
            while len(answer) < 8:
                more = connection.recv(8 - len(answer))
                if not more:
                    sys.exit("the session broke after %d lines" % count)
                answer += more
            if int(answer) != count:
                sys.exit("line %d came back as %r" % (count, answer))
            count += 1
            longest = max(longest, time.monotonic() - asked)
            time.sleep(0.02)
    print(count, round(longest * 1000))


def say(address, port):
    with socket.create_connection((address, port), timeout=5) as connection:
        connection.sendall(b"well")
        print(connection.recv(8).decode())


def reflect(address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as server:
        server.bind((address, port))
        while True:
            datagram, client = server.recvfrom(2048)
            server.sendto(datagram, client)


def tick(address, port):
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    count, last, silences = 0, None, []
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.connect((address, port))
        client.settimeout(0.002)
        while not ended:
            began = time.monotonic()
            try:
                client.send(b"tick")
                client.recv(2048)
                heard = time.monotonic()
                count += 1
                if last is not None and heard - last >= 0.02:
                    silences.append(round((heard - last) * 1000))
                last = heard
            except (TimeoutError, ConnectionRefusedError):
                pass
            time.sleep(max(0, began + 0.002 - time.monotonic()))
    print(count, *silences)


commands = {"serve": serve, "talk": talk, "say": say, "reflect": reflect, "tick": tick}
commands[sys.argv[1]](*sys.argv[2:-1], int(sys.argv[-1]))
