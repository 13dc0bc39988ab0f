"""`python -m talaria`: the command line."""

from talaria.cli import main

if __name__ == "__main__":
    main()
