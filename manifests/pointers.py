"""Recognises the small text files that Git LFS and git-annex leave in place of contents that were not fetched."""

LFS = b"version https://git-lfs.github.com/spec/"
ANNEX = (b"/annex/objects/", b"../.git/annex/objects/", b".git/annex/objects/")
HEAD = 64  # bytes; a pointer is known by so many


def pointer(head: bytes) -> str | None:
    """Return the error words for a file that begins with these bytes where the file is a pointer, else None."""
    if head.startswith(LFS):
        return "is a Git LFS pointer, not the file itself; run `git lfs pull`"
    if head.startswith(ANNEX):
        return "is a git-annex pointer, not the file itself; run `git annex get`"
    return None
