"""`python -m studies NAME`, and `python -m studies --status` for all of them."""

import sys

from studies.harness import main

sys.exit(main())
