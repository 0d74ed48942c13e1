# SPDX-License-Identifier: GPL-2.0-only
"""Kernel configurations: parsing, and finding the options that got lost."""

from __future__ import annotations

import pytest

from orchestrator.errors import UsageError
from orchestrator.kernel import config


def test_render_is_the_inverse_of_parse() -> None:
    text = 'CONFIG_SMP=y\n# CONFIG_PCI is not set\nCONFIG_NR_CPUS=64\nCONFIG_CMDLINE="a=b c"\n'
    options = config.parse(f"# comment\n\n{text}", "here")
    assert options == {
        "CONFIG_SMP": "y",
        "CONFIG_PCI": "n",
        "CONFIG_NR_CPUS": "64",
        "CONFIG_CMDLINE": '"a=b c"',
    }
    assert config.render(options) == text


def test_a_parse_error_names_file_and_line() -> None:
    with pytest.raises(UsageError, match="mine:2: `SMP=y` is neither"):
        config.parse("CONFIG_X=y\nSMP=y\n", "mine")


def test_a_setting_may_omit_the_prefix() -> None:
    assert config.settings(["SMP=n", "CONFIG_HZ=1000"]) == {"CONFIG_SMP": "n", "CONFIG_HZ": "1000"}
    for wrong in ("SMP", "=y", "SMP=", "A B=y"):
        with pytest.raises(UsageError, match="a setting is"):
            config.settings([wrong])


def test_lost_options_name_their_last_requester() -> None:
    requests = [
        ("base", {"CONFIG_A": "y", "CONFIG_B": "y", "CONFIG_TEXT": '""'}),
        ("extra", {"CONFIG_B": "n", "CONFIG_GONE": "m", "CONFIG_ABSENT": "n", "CONFIG_NR": "8"}),
    ]
    result = {"CONFIG_A": "y", "CONFIG_NR": "64"}
    assert config.lost(requests, {**result, "CONFIG_B": "y"}) == [
        config.LostOption("CONFIG_B", "n", "y", "extra"),
        config.LostOption("CONFIG_GONE", "m", "n (unknown, or its dependencies fail)", "extra"),
        config.LostOption("CONFIG_NR", "8", "64", "extra"),
    ]
    assert str(config.lost(requests, result)[-1]) == "CONFIG_NR=8 (requested by extra) became 64"
