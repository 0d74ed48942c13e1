# SPDX-License-Identifier: GPL-2.0-only
"""orchestrator: does this kernel still patch its own code safely while every CPU executes it?"""

__version__ = "0.1.0"
