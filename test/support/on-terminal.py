"""Runs a program on a terminal of its own and answers its questions, as somebody at the keyboard does.

    on-terminal.py ANSWERS PROGRAM ARG...

ANSWERS is a JSON list of [what to wait for, what to type]. Prints JSON: "shown", all that the terminal showed, and
"code", the exit code.
"""
import json
import os
import pty
import select
import sys

LIMIT_SECONDS = 60

answers, argv = json.loads(sys.argv[1]), sys.argv[2:]
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(argv[0], argv)

shown = b""
looked = 0
while True:
    ready, _, _ = select.select([terminal], [], [], LIMIT_SECONDS)
    if not ready:
        os.kill(pid, 9)
        sys.exit("nothing more was shown, after: " + repr(shown))
    try:
        piece = os.read(terminal, 4096)
    except OSError:  # EIO: the program has closed it
        piece = b""
    if not piece:
        break
    shown += piece
    if answers:
        at = shown.find(answers[0][0].encode(), looked)
        if at >= 0:
            looked = at + len(answers[0][0].encode())
            os.write(terminal, answers.pop(0)[1].encode())
_, status = os.waitpid(pid, 0)
print(json.dumps({"shown": shown.decode(), "code": os.waitstatus_to_exitcode(status)}))
