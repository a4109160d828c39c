"""``python -m dha`` is ``dha``."""

import sys

from dha.cli import main

sys.exit(main())
