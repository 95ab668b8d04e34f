"""``python -m trainer.report RUN``."""

import sys

from trainer.report.report import main

sys.exit(main())
