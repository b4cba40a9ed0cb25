"""`python -m bayesqid` is the same as `bayesqid`."""

from bayesqid.cli import main

if __name__ == "__main__":  # workers of `measure` import this module again
    raise SystemExit(main())
