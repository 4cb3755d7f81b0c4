"""``python -m loopmoe_train.cli``: the front door where its script is not on the path."""

import sys

from loopmoe_train.cli import main

sys.exit(main())
