# SPDX-License-Identifier: GPL-2.0-only
"""The commands, one module each. parser.py goes through them, and each has the same five names:

NAME          the word on the command line
HELP          its line in `orchestrator --help`
EXAMPLES      command lines without `orchestrator`, each with a few words about it or none
STATUSES      its exit statuses, only where they differ from those of parser.py: they are verdicts,
              and hold if the report cannot be printed
add_options   adds the command's options to a parser, and may set the parser's description
main          takes the parsed options and returns the exit status

The modules import little. main() imports whatever the command needs, so that --help and completion
answer at once; tests/unit/test_cli.py checks that.
"""
