# SPDX-License-Identifier: GPL-2.0-only
"""Many runs: sweeps, bisections, mutants and nightly sweeps. Each run is a child process."""
