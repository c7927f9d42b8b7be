"""`python -m reval.flows.cli`: the command `reval`."""

from reval.flows.cli import main

if __name__ == "__main__":
    main()
