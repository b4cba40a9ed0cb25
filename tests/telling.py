"""The command `bayesqid`, telling in a file what each of its processes is at, with few recipes in work at once.

Run by the tests that kill it: SOAK_TOLD names the file, SOAK_BYTES stands for `together.LANES_BYTES`.
"""

import os
import sys

from bayesqid import cli
from bayesqid.measure import checkpoint, run, together

told = os.open(os.environ["SOAK_TOLD"], os.O_WRONLY | os.O_APPEND)
together.LANES_BYTES = int(os.environ["SOAK_BYTES"])


def tell(module, name: str, doing: str, after: str = "else") -> None:
    """Have a module's function tell when it is called and when it is done."""
    inner = getattr(module, name)

    def telling(*args, **kwargs):
        os.write(told, f"{os.getpid()} {doing}\n".encode())
        result = inner(*args, **kwargs)
        os.write(told, f"{os.getpid()} {after}\n".encode())
        return result

    setattr(module, name, telling)


tell(together, "quantize_block", "quantizing")
tell(checkpoint, "write_part", "writing")
# what is merged is written at once
tell(run, "merged", "merging", "merging")

if __name__ == "__main__":
    sys.exit(cli.main())
