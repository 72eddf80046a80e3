"""`python -m clipguard`: the command line without the console script, for launchers that start a module."""

from clipguard.cli import main

if __name__ == "__main__":
    main()
