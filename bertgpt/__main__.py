"""`python -m bertgpt` is the `bertgpt` command."""

import sys

from bertgpt.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
