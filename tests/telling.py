"""Runs of the command `bayesqid` that tell in a file what each of their processes is at; for tests that kill them.

Orders come as lines of JSON on stdin, one run after another: `words` of the command, `lanes_bytes` for
`together.LANES_BYTES`, and the files `told`, `errors` and `ended`. Each run is forked from here, and so are its
workers: starting Python anew for each kill would take most of the time.
"""

import json
import os
import sys
import traceback
from multiprocessing import get_context

from bayesqid import cli, files
from bayesqid.measure import checkpoint, run, together

OUT = os.O_WRONLY | os.O_APPEND | os.O_CREAT
told = -1


def tell(module, name: str, doing: str, after: str = "else") -> None:
    """Have a module's function tell when it is called and when it is done."""
    inner = getattr(module, name)

    def telling(*args, **kwargs):
        os.write(told, f"{os.getpid()} {doing}\n".encode())
        result = inner(*args, **kwargs)
        os.write(told, f"{os.getpid()} {after}\n".encode())
        return result

    setattr(module, name, telling)


def measure(order: dict) -> None:
    """Run the command in this process; never returns."""
    global told
    code: object = 1
    try:
        os.setsid()
        told = os.open(order["told"], OUT)
        errors = os.open(order["errors"], OUT)
        os.dup2(errors, 1)
        os.dup2(errors, 2)
        together.LANES_BYTES = order["lanes_bytes"]
        sys.argv = ["bayesqid", *order["words"]]
        cli.main()
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


tell(together, "quantize_block", "quantizing")
tell(checkpoint, "write_part", "writing")
# what is merged is written at once
tell(run, "merged", "merging", "merging")
run.get_context = lambda kind: get_context("fork")

for line in sys.stdin:
    wanted = json.loads(line)
    pid = os.fork()
    if not pid:
        measure(wanted)
    print(pid, flush=True)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    files.write_text(wanted["ended"], str(status))
