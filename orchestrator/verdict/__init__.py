# SPDX-License-Identifier: GPL-2.0-only
"""The evidence of a run, the checks on it, and the verdict."""
