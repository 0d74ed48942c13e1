# SPDX-License-Identifier: GPL-2.0-only
"""Patches as they come: mails and threads as people send them (tests/data/mails), and refusals."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.kernel import diff, patches
from orchestrator.kernel.model import KernelRequest

DATA = Path(__file__).parent.parent / "data" / "mails"
PLAIN = DATA / "plain.diff"
THREAD = DATA / "thread-with-tip-mails.mbox"
BASE = "0123456789abcdef0123456789abcdef01234567"


def _applied(path: Path, tmp_path: Path) -> str:
    """The first line of kernel/a.c after the patches in `path`."""
    source = tmp_path / "source" / "kernel" / "a.c"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("".join(f"line {number}\n" for number in range(1, 41)))
    scratch = tmp_path / "scratch"
    changed = patches.apply([path], lambda name: source if name == "kernel/a.c" else None, scratch)
    assert changed.keys() == {"kernel/a.c"}
    return (scratch / "kernel/a.c").read_text().splitlines()[0]


def test_the_mbox_of_a_thread_is_the_series_and_nothing_else(tmp_path: Path) -> None:
    subjects = [letter.subject for letter in patches.letters([THREAD])]
    assert subjects == [f"[PATCH v2 {number}/3] kernel: {name}" for number, name in SERIES]
    assert _applied(THREAD, tmp_path) == "third"


SERIES = ((1, "first"), (2, "second"), (3, "third"))


@pytest.mark.parametrize(
    "name",
    ["scissors.eml", "attached-octet-stream.eml", "attached-gzip.eml", "stable-queue-note.eml",
     "stable-review.eml", "plain.diff"],
)  # fmt: skip
def test_one_change_is_one_digest_however_it_is_sent(name: str, tmp_path: Path) -> None:
    assert patches.canonical([DATA / name]) == patches.canonical([PLAIN])
    assert _applied(DATA / name, tmp_path) == "first"


def test_the_subject_below_the_scissors_counts() -> None:
    (letter,) = patches.letters([DATA / "scissors.eml"])
    assert letter.subject == "[PATCH] kernel: count from one"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("refused-quotes-only.eml", "the mail “Re: [PATCH v2 1/3] kernel: first” only quotes one"),
        ("refused-attached-zip.eml", "its attachment count.zip is application/zip"),
        ("refused-html-only.eml", "its text is only text/html"),
        ("refused-wrapped.eml", "`line 3` does not belong to its hunk"),
        ("refused-only-proposals.mbox", "2 patches, all in replies"),
    ],
)
def test_what_is_refused_is_refused_with_the_true_reason(name: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        patches.read([DATA / name])
    assert reason in str(caught.value)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("file", [PLAIN, THREAD])
def test_compressed_files_are_unpacked(file: Path, pack: object, tmp_path: Path) -> None:
    packed = tmp_path / "packed.bin"
    assert callable(pack)
    packed.write_bytes(pack(file.read_bytes()))
    assert patches.canonical([packed]) == patches.canonical([file])


def test_a_damaged_or_unknown_compression_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.patch.gz").write_bytes(gzip.compress(PLAIN.read_bytes())[:-20])
    with pytest.raises(UsageError, match="does not unpack: its end is missing"):
        patches.read([tmp_path / "a.patch.gz"])
    (tmp_path / "a.patch.gz").write_bytes(gzip.compress(PLAIN.read_bytes())[:3] + b"damage" * 9)
    with pytest.raises(UsageError, match="does not unpack"):
        patches.read([tmp_path / "a.patch.gz"])
    (tmp_path / "a.patch.zst").write_bytes(b"\x28\xb5\x2f\xfd...")
    with pytest.raises(UsageError, match="compressed with zstd: unpack it first"):
        patches.read([tmp_path / "a.patch.zst"])


def _split(directory: Path) -> list[Path]:
    """The three patches of the thread, as `git format-patch` and its like name them."""
    directory.mkdir()
    mails = THREAD.read_text().split("From mboxrd")
    cover = next(mail for mail in mails if "v2 0/3]" in mail)
    (directory / "v2-0000-cover-letter.patch").write_text(f"From mboxrd{cover}")
    made = []
    for number, name in SERIES:
        mail = next(mail for mail in mails if f"Subject: [PATCH v2 {number}/3]" in mail)
        made.append(directory / f"v2-000{number}-{name}.patch")
        made[-1].write_text(f"From mboxrd{mail}")
    return made


def test_a_directory_of_format_patch_is_its_series(tmp_path: Path) -> None:
    made = _split(tmp_path / "outgoing")
    (tmp_path / "outgoing" / "notes.txt").write_text("to do\n")
    assert patches.canonical([tmp_path / "outgoing"]) == patches.canonical([THREAD])
    made[1].unlink()
    with pytest.raises(UsageError, match="outgoing lacks patch 2 of the series"):
        patches.read([tmp_path / "outgoing"])


def test_a_directory_without_numbers_is_in_the_order_of_names(tmp_path: Path) -> None:
    for file in _split(tmp_path / "out"):
        file.write_text(file.read_text().replace("[PATCH v2", "[PATCH").replace("/3]", "]"))
        text = file.read_text()
        for number in "123":
            text = text.replace(f"[PATCH {number}]", "[PATCH]")
        file.write_text(text)
    assert patches.canonical([tmp_path / "out"]) == patches.canonical([THREAD])


def test_a_maildir_is_a_series(tmp_path: Path) -> None:
    made = _split(tmp_path / "cur")
    (tmp_path / "new").mkdir()
    for file in made:
        file.rename(file.with_name(f"{17 - int(file.name[6])}.host:2,S"))
    assert patches.canonical([tmp_path]) == patches.canonical([THREAD])


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a directory without a patch"):
        patches.read([tmp_path])


@pytest.mark.parametrize("where", ["patches", "patches/series"])
def test_a_quilt_series_is_applied_in_its_order(where: str, tmp_path: Path) -> None:
    made = _split(tmp_path / "patches")
    lines = [f"{file.name} -p1 # comment\n" for file in made]
    (tmp_path / "patches" / "series").write_text("# our queue\n\n" + "".join(lines))
    assert patches.canonical([tmp_path / where]) == patches.canonical([THREAD])
    (tmp_path / "patches" / "series").write_text(f"{made[0].name} -p0\n")
    with pytest.raises(UsageError, match="series:1: the option -p0 is not supported"):
        patches.read([tmp_path / where])


def test_patches_come_from_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(THREAD.read_bytes())))
    file = patches.argument("-")
    assert file.read_bytes() == THREAD.read_bytes()  # so repeat.sh can name it
    assert file.name.startswith("stdin-")
    assert str(file) in KernelRequest(patches=(file,)).argv()


def test_the_base_commit_of_a_series_is_found_in_its_cover_letter() -> None:
    assert patches.base([THREAD]) == BASE
    assert patches.base([PLAIN]) is None


def test_two_versions_of_one_patch_are_refused(tmp_path: Path) -> None:
    mail = (DATA / "stable-review.eml").read_text().replace("[PATCH 6.1 012/345]", "[PATCH]")
    second = mail.replace("[PATCH]", "[PATCH v2]").replace("+first", "+erst")
    file = tmp_path / "both.mbox"
    file.write_text(f"From a b\n{mail}\nFrom a b\n{second}")
    with pytest.raises(UsageError, match="more than one version of it"):
        patches.read([file])
    file.write_text(f"From a b\n{mail}\nFrom a b\n{mail}")
    assert patches.canonical([file]) == patches.canonical([PLAIN])


def test_a_series_with_a_patch_that_is_not_part_of_it_is_refused(tmp_path: Path) -> None:
    extra = (DATA / "stable-review.eml").read_text().replace("[PATCH 6.1 012/345]", "[PATCH] and")
    file = tmp_path / "more.mbox"
    file.write_text(THREAD.read_text() + "From a b\n" + extra.replace("+first", "+erst"))
    with pytest.raises(UsageError, match="a series and other patches as well, such as “"):
        patches.read([file])


# --- the text of a diff --------------------------------------------------------------------------


def test_canonical_is_as_strict_as_git(tmp_path: Path) -> None:
    text = PLAIN.read_text()
    good = [text, text + "-- \n2.39.5\n", f"Prose.\n{text}"]
    empty = text.replace(" line 3\n", "\n")  # editors remove the space of an empty line
    bad = [text.replace(" line 3\n", ""), text.replace(" line 3\n", "line 3\n")]
    for content, fine in [*((one, True) for one in (*good, empty)), *((one, False) for one in bad)]:
        file = tmp_path / "a.patch"
        file.write_text(content)
        git = subprocess.run(["git", "apply", "--numstat", file], capture_output=True, cwd=tmp_path)
        assert (git.returncode == 0) is fine
        if fine:
            diff.canonical(content)
        else:
            with pytest.raises(diff.Damaged):
                diff.canonical(content)


def test_a_diff_may_lack_its_last_newline(tmp_path: Path) -> None:
    file = tmp_path / "pasted.diff"
    file.write_text(PLAIN.read_text().rstrip("\n"))
    assert _applied(file, tmp_path) == "first"


def test_modes_and_renames_are_part_of_the_change() -> None:
    mode = "diff --git a/x b/x\nold mode 100644\nnew mode 100755\n"
    rename = "diff --git a/x b/y\nsimilarity index 100%\nrename from x\nrename to y\n"
    assert diff.canonical(mode) == "x: old mode 100644\nx: new mode 100755"
    assert diff.canonical(rename) != diff.canonical(rename.replace("y", "z"))


def test_prefix_time_and_function_are_not_part_of_the_change() -> None:
    ours = PLAIN.read_text()
    theirs = "\n".join(ours.splitlines()[2:]) + "\n"
    theirs = theirs.replace("a/kernel", "linux.orig/kernel").replace("b/kernel", "linux/kernel")
    theirs = theirs.replace("@@\n", "@@ int f(void)\n").replace("a.c\n", "a.c\t2026-11-23\n")
    assert diff.canonical(ours) == diff.canonical(theirs)


def test_a_git_that_cannot_write_is_not_the_patchs_fault(tmp_path: Path) -> None:
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from orchestrator.errors import InfraError; from orchestrator.kernel import patches\n"
        "large = Path(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: patches.letters([large])\n"
        "except InfraError as error: print('infra:', error)\n"
    )
    large = tmp_path / "large.eml"
    text = PLAIN.read_text().replace("\n+", "\n+" + "x" * 9000 + "\n+", 1)
    large.write_text(f"From: a <a@example.org>\nSubject: [PATCH] a\n\n{text}")
    done = subprocess.run([sys.executable, "-c", script, large], capture_output=True, text=True)
    assert done.stdout.startswith("infra: "), done.stdout + done.stderr
