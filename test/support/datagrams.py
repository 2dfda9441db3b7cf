# Binds a datagram socket at argv[1], says "ready", and prints what arrives, one datagram a line; ends when its input does.
import os, select, socket, sys

receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
receiver.bind(sys.argv[1])
print("ready", flush=True)
while True:
    readable, _, _ = select.select([receiver, sys.stdin], [], [])
    if sys.stdin in readable and os.read(0, 4096) == b"":
        break
    if receiver in readable:
        print(receiver.recv(4096).decode().replace("\n", " "), flush=True)
