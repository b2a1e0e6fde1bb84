"""`python -m backsweep` is the command `backsweep`."""

from backsweep.cli.app import main

if __name__ == "__main__":
    main()
