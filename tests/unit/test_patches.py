# SPDX-License-Identifier: GPL-2.0-only
"""Patches: applied to copies, and failures that name the patch, file and hunk."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.errors import BuildError, UsageError
from orchestrator.kernel import patches

LINES = [f"line {number}\n" for number in range(1, 41)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    (root / "kernel").mkdir(parents=True)
    (root / "kernel/a.c").write_text("".join(LINES))
    (root / "kernel/b.c").write_text("".join(LINES))
    return root


@pytest.fixture
def make_patch(source: Path, tmp_path: Path) -> Callable[..., Path]:
    """A patch file with the difference between `source` and the given contents (None: deleted)."""

    def make(name: str, **contents: str | None) -> Path:
        after = tmp_path / "after"
        subprocess.run(["rm", "-rf", after], check=True)
        subprocess.run(["cp", "-a", source, after], check=True)
        for key, content in contents.items():
            path = after / "kernel" / f"{key}.c"
            if content is None:
                path.unlink()
            else:
                path.write_text(content)
        command = ["git", "diff", "--no-index", "--no-renames", "source", "after"]
        difference = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False
        ).stdout
        file = tmp_path / name
        file.write_text(difference.replace("/source/", "/").replace("/after/", "/"))
        return file

    return make


def _apply(files: list[Path], source: Path, scratch: Path) -> dict[str, Path | None]:
    def original(path: str) -> Path | None:
        return source / path if (source / path).is_file() else None

    return patches.apply(files, original, scratch)


def test_files_are_changed_created_and_deleted_in_copies(
    source: Path, tmp_path: Path, make_patch: Callable[..., Path]
) -> None:
    patch = make_patch("1.patch", a="".join(LINES[1:]), b=None, new="int new;\n")
    changed = _apply([patch], source, tmp_path / "scratch")
    assert changed.keys() == {"kernel/a.c", "kernel/b.c", "kernel/new.c"}
    assert changed["kernel/b.c"] is None
    assert changed["kernel/a.c"] == tmp_path / "scratch/kernel/a.c"
    assert (tmp_path / "scratch/kernel/a.c").read_text() == "".join(LINES[1:])
    assert (source / "kernel/a.c").read_text() == "".join(LINES)
    assert (source / "kernel/b.c").exists()


def test_patches_build_on_each_other(
    source: Path, tmp_path: Path, make_patch: Callable[..., Path]
) -> None:
    first = make_patch("1.patch", a="first\n" + "".join(LINES))
    (source / "kernel/a.c").write_text("first\n" + "".join(LINES))
    second = make_patch("2.patch", a="second\nfirst\n" + "".join(LINES))
    (source / "kernel/a.c").write_text("".join(LINES))
    _apply([first, second], source, tmp_path / "scratch")
    assert (tmp_path / "scratch/kernel/a.c").read_text().startswith("second\nfirst\nline 1\n")


def test_a_failure_names_the_patch_file_and_hunk(
    source: Path, tmp_path: Path, make_patch: Callable[..., Path]
) -> None:
    changed = list(LINES)
    changed[4], changed[30] = "five\n", "thirty-one\n"
    patch = make_patch("0007-two-hunks.patch", a="".join(changed))
    other = list(LINES)
    other[29] = "something else\n"
    (source / "kernel/a.c").write_text("".join(other))
    with pytest.raises(BuildError) as caught:
        _apply([patch], source, tmp_path / "scratch")
    assert (
        "0007-two-hunks.patch does not apply: kernel/a.c: hunk #2 does not fit (near line 28)"
        in str(caught.value)
    )


def test_each_failed_hunk_is_listed_with_its_line(
    source: Path, tmp_path: Path, make_patch: Callable[..., Path]
) -> None:
    changed = list(LINES)
    changed[4], changed[30] = "five\n", "thirty-one\n"
    patch = make_patch("1.patch", a="".join(changed), b="".join(changed))
    (source / "kernel/a.c").write_text("".join(f"{line.strip()}!\n" for line in LINES))
    with pytest.raises(BuildError) as caught:
        _apply([patch], source, tmp_path / "scratch")
    hunks = [
        "kernel/a.c: hunk #1 does not fit (near line 2)",
        "kernel/a.c: hunk #2 does not fit (near line 28)",
    ]
    assert str(caught.value).endswith(f"1.patch does not apply: {'; '.join(hunks)}")


def test_what_a_patch_does_to_documentation_is_left_out(source: Path, tmp_path: Path) -> None:
    """The source has no such files: they cannot affect the kernel."""
    text = (
        "--- a/MAINTAINERS\n+++ b/MAINTAINERS\n@@ -1 +1 @@\n-a\n+b\n"
        "--- a/Documentation/x[1].rst\n+++ b/Documentation/x[1].rst\n@@ -1 +1 @@\n-a\n+b\n"
        "--- /dev/null\n+++ b/Documentation/new.rst\n@@ -0,0 +1 @@\n+b\n"
    )
    (tmp_path / "docs.patch").write_text(text)
    (tmp_path / "both.patch").write_text(
        f"{text}--- a/kernel/a.c\n+++ b/kernel/a.c\n@@ -1,2 +1,2 @@\n-line 1\n+one\n line 2\n"
    )
    assert _apply([tmp_path / "docs.patch"], source, tmp_path / "1") == {}
    changed = _apply([tmp_path / "both.patch"], source, tmp_path / "2")
    assert list(changed) == ["kernel/a.c"]
    bad = f"{text}--- a/kernel/a.c\n+++ b/kernel/a.c\n@@ -1 +1 @@\n-x\n+y\n"
    (tmp_path / "bad.patch").write_text(bad)
    with pytest.raises(BuildError, match=r"kernel/a\.c: hunk #1 does not fit"):
        _apply([tmp_path / "bad.patch"], source, tmp_path / "3")


def test_a_patch_to_a_missing_file_is_reported(
    source: Path, tmp_path: Path, make_patch: Callable[..., Path]
) -> None:
    patch = make_patch("1.patch", a="".join(LINES[1:]))
    (source / "kernel/a.c").unlink()
    with pytest.raises(BuildError, match=r"1\.patch does not apply: kernel/a\.c: no such file"):
        _apply([patch], source, tmp_path / "scratch")


def test_patches_apply_inside_another_git_repository(
    source: Path, tmp_path: Path, make_patch: Callable[..., Path]
) -> None:
    patch = make_patch("1.patch", a="".join(LINES[1:]))
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    assert _apply([patch], source, tmp_path / "scratch").keys() == {"kernel/a.c"}


def test_a_file_without_a_patch_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello\n")
    with pytest.raises(UsageError, match="is not a patch"):
        _apply([tmp_path / "notes.txt"], source, tmp_path / "scratch")
    with pytest.raises(UsageError, match="there is no patch"):
        _apply([tmp_path / "gone.patch"], source, tmp_path / "scratch")


def test_paths_outside_the_tree_are_not_touched() -> None:
    assert patches.touched("--- a/../../etc/passwd\n+++ b/kernel/a.c\n") == {"kernel/a.c"}


# --- mails ---------------------------------------------------------------------------------------


GOLDEN = Path(__file__).with_name("golden")
SERIES = GOLDEN / "series-out-of-order-with-cover-and-reply.mbox"


def test_a_series_in_an_mbox_applies_in_the_order_of_its_numbers(
    source: Path, tmp_path: Path
) -> None:
    names = [name.partition("(")[2] for name, _ in patches.read([SERIES])]
    assert names == [
        "[PATCH v2 1/3] kernel: first)",
        "[PATCH v2 2/3] kernel: second)",
        "[PATCH v2 3/3] kernel: third)",
    ]
    changed = _apply([SERIES], source, tmp_path / "scratch")
    assert changed.keys() == {"kernel/a.c"}
    assert (tmp_path / "scratch/kernel/a.c").read_text() == "third\n" + "".join(LINES[1:])
    assert not list(tmp_path.glob("*.patch"))


def test_a_patch_inline_in_a_mail_applies(source: Path, tmp_path: Path) -> None:
    _apply([GOLDEN / "patch-inline-in-a-mail.eml"], source, tmp_path / "scratch")
    assert (tmp_path / "scratch/kernel/a.c").read_text() == "first\n" + "".join(LINES[1:])


def test_the_mail_that_does_not_apply_is_named(source: Path, tmp_path: Path) -> None:
    (source / "kernel/a.c").write_text("line 1\nline 2\n")
    with pytest.raises(
        BuildError, match=r"\(\[PATCH v2 1/3\] kernel: first\) does not apply: kernel/a\.c: hunk #1"
    ):
        _apply([SERIES], source, tmp_path / "scratch")


def _without(tmp_path: Path, word: str) -> Path:
    mails = SERIES.read_text().split("From 1111")
    file = tmp_path / "some.mbox"
    file.write_text("From 1111".join(mail for mail in mails if word not in mail))
    return file


def test_a_series_with_a_gap_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"some\.mbox lacks patch 3 of the series"):
        patches.read([_without(tmp_path, "v2 3/3]")])


def test_two_versions_of_a_series_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "both.mbox"
    file.write_text(SERIES.read_text() + SERIES.read_text().replace("PATCH v2", "PATCH v3"))
    with pytest.raises(UsageError, match="more than one series, or more than one version of it"):
        patches.read([file])


def test_a_single_mail_of_a_series_is_an_ordinary_patch(tmp_path: Path) -> None:
    file = tmp_path / "one.mbox"
    file.write_text("From 1111" + SERIES.read_text().split("From 1111")[3])
    assert [name.partition(" ")[2] for name, _ in patches.read([file])] == [
        "([PATCH v2 1/3] kernel: first)"
    ]


def test_mails_without_a_patch_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "cover.mbox"
    file.write_text("From 1111" + SERIES.read_text().split("From 1111")[1])
    with pytest.raises(UsageError, match="is not a patch"):
        patches.read([file])
