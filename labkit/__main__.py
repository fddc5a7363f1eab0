"""`python -m labkit` is the command line, also where its script is not on PATH."""

from labkit.cli.main import main

if __name__ == "__main__":
    main()
