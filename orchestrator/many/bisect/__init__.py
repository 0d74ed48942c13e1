# SPDX-License-Identifier: GPL-2.0-only
"""Finding the first bad kernel of many, even if the fault shows rarely."""
