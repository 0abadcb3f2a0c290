"""Training under its short name: the contents of `vitutils.training`.

From the command line `python -m vitutils.train --help`; in several processes `torchrun ... -m vitutils.train`.
"""

if __name__ == "__main__":
    from vitutils.cli import main

    main()
else:
    from vitutils.training import *  # noqa: F403
