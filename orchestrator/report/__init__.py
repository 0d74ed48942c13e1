# SPDX-License-Identifier: GPL-2.0-only
"""Reports on results: for people, for other programs, and for many runs at once."""
