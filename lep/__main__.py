"""`python -m lep` is `lep`."""

from lep.run import main

if __name__ == "__main__":
    main()
