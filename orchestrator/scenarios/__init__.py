# SPDX-License-Identifier: GPL-2.0-only
"""The scenarios of a run and the steps that they become."""
