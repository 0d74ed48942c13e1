# SPDX-License-Identifier: GPL-2.0-only
"""`python -m orchestrator`."""

import sys

from orchestrator.cli import main

sys.exit(main())
