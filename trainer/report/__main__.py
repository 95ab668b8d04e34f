"""``python -m trainer.report RUN``."""

import sys

from trainer.report.report import main

if __name__ == "__main__":
    sys.exit(main())
