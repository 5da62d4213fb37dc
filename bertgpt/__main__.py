"""The `bertgpt` command, also as `python -m bertgpt`."""

import sys


def run() -> int:
    """Runs the command line of this process and returns its exit code."""
    try:
        from bertgpt.cli.huge_pages import restart_with_huge_pages

        restart_with_huge_pages()
        from bertgpt.cli.main import end, main
    except KeyboardInterrupt:  # while modules are imported
        return 130
    return end(main())


if __name__ == "__main__":
    sys.exit(run())
