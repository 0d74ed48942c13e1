# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's machine code and symbols: reading, naming and editing them."""
