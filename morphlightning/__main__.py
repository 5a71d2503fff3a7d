"""``python -m morphlightning`` is the command ``morphlightning``."""

import sys

from morphlightning.cli import main

sys.exit(main())
