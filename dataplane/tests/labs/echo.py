"""A TCP session that is watched: `echo.py serve PORT` sends back what it gets; `echo.py talk ADDRESS PORT` says a
line every 20 ms over one connection until SIGTERM, then prints how many came back and the longest silence in ms."""

import signal
import socket
import sys
import time


def serve(port):
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    while True:
        connection, _ = listener.accept()
        with connection:
            while data := connection.recv(4096):
                connection.sendall(data)


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


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]))
else:
    talk(sys.argv[2], int(sys.argv[3]))
