"""`python -m bertgpt` is the `bertgpt` command."""

import sys

if __name__ == "__main__":
    try:
        from bertgpt.cli.main import main
    except KeyboardInterrupt:  # while modules are imported
        sys.exit(130)
    sys.exit(main())
