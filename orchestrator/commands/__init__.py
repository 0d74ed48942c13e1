# SPDX-License-Identifier: GPL-2.0-only
"""The commands, one module each. Every module has the same four names, and cli.py loops over them:

NAME          the word on the command line
HELP          one line for `orchestrator --help`
add_options   adds its options to a parser, and may set the parser's description
main          takes the parsed options, returns the exit status

The module's imports are light: whatever a command needs to do its work is imported in main, so that `--help` and
completion answer at once.
"""
