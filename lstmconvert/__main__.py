"""``python -m lstmconvert``."""

import sys

from lstmconvert.cli import main

sys.exit(main())
