"""The changelog of a card: one section for each version, newest first, in numbers of `diff_folders`."""

from __future__ import annotations

import re
from pathlib import Path

from entire_id.errors import PreviousVersionError
from entire_id.shards.diff import VersionDiff, diff_folders
from entire_id.shards.manifest import README_FILE, VERSION, Manifest, read_manifest, version_numbers

__all__ = ["changelog_versions", "next_changelog", "read_changelog"]

_HEADING = "\n## Changelog\n"  # the last section of a card: an owner's text before it may have one, too
_ENTRY = re.compile(rf"^### ({VERSION.pattern})\n", re.M)


def changelog_versions(readme: str) -> tuple[str, ...]:
    """Return the versions that the changelog of a README describes, newest first; none where it has no changelog."""
    return tuple(read_changelog(readme))


def read_changelog(readme: str) -> dict[str, str]:
    """Return version → text of its section, in the order of the page."""
    _, heading, text = readme.rpartition(_HEADING)
    starts = list(_ENTRY.finditer(text)) if heading else []
    stops = [start.start() for start in starts] + [len(text)]
    return {start[1]: text[start.end() : stop].strip() for start, stop in zip(starts, stops[1:], strict=True)}


def next_changelog(folder: Path, manifest: Manifest, readme: str, previous: Path | None, notes: str) -> str:
    """Return the changelog of a version: its own entry, and those of the versions before.

    Args:
        folder: of the version.
        manifest: its manifest.
        readme: the page that lies there now; its own entry is made anew, notes that it has stay.
        previous: folder of the version before; None for the first version, and where `readme` follows it already.
        notes: what the owners say of the version, quoted in its entry; `""` for what they said before.

    Raises:
        PreviousVersionError: `previous` is no older version, or is needed.
        DatasetNotFoundError, ManifestError: see `diff_folders`.
    """
    own = read_changelog(readme)
    old = own.pop(manifest.version, "")
    earlier = {one: text for one, text in own.items() if version_numbers(one) < version_numbers(manifest.version)}
    if previous is not None:
        earlier = _entries_before(previous, manifest)
        facts = _since(diff_folders(previous, folder))
    elif not earlier:
        facts = f"The first version: {_totals(manifest)}."
    elif old:
        facts = _without_notes(old)
    else:
        newest = next(iter(earlier))
        raise PreviousVersionError(folder, f"its README ends at {newest}; name that one's folder: --previous DIR")
    quoted = _quote(notes) if notes.strip() else _notes(old)
    entries = earlier | {manifest.version: f"{facts}\n\n{quoted}".strip()}
    ordered = sorted(entries, key=version_numbers, reverse=True)
    return "\n\n".join(f"### {version}\n\n{entries[version]}" for version in ordered)


def _entries_before(previous: Path, manifest: Manifest) -> dict[str, str]:
    """Return the entries of the previous version's card; one for itself where nobody kept any."""
    before = read_manifest(previous)
    if version_numbers(before.version) >= version_numbers(manifest.version):
        raise PreviousVersionError(previous, f"that is version {before.version}, this is {manifest.version}")
    try:
        entries = read_changelog((previous / README_FILE).read_text("utf-8", errors="replace"))
    except OSError:
        entries = {}
    return {before.version: f"No changelog was kept until then: {_totals(before)}."} | entries


def _totals(manifest: Manifest) -> str:
    splits = ", ".join(
        f"{split} {total.rows:,} crops of {total.people:,} identities" for split, total in manifest.splits.items()
    )
    return f"{manifest.num_rows:,} crops in {len(manifest.shards):,} shards; {splits}"


def _since(diff: VersionDiff) -> str:
    """Return what changed, in numbers."""
    lines = [
        f"Since {diff.old_version}: {diff.people_added:,} identities added, {diff.people_removed:,} removed. Shards: "
        f"{diff.shards_added:,} added, {diff.shards_removed:,} removed, {diff.shards_changed:,} changed, "
        f"{diff.shards_kept:,} kept."
    ]
    if diff.splits:
        rows = [
            f"| {split} | {one.added:,} | {one.removed:,} | {one.changed:,} |" for split, one in diff.splits.items()
        ]
        lines.append("\n".join(["| split | crops added | removed | changed |", "|---|---|---|---|", *rows]))
    versions = f"{diff.old_version} and {diff.new_version}"
    if {"query", "gallery"} & diff.splits.keys():
        lines.append(f"**Query or gallery changed: scores of {versions} are not comparable.**")
    else:
        lines.append(f"Query and gallery are the same: scores of {versions} are comparable.")
    return "\n\n".join(lines)


def _quote(notes: str) -> str:
    """Return notes as a quotation, so that no line of theirs is taken for a heading of the card."""
    return "\n".join(f"> {line}".rstrip() for line in notes.strip().splitlines())


def _notes(entry: str) -> str:
    return "\n".join(line for line in entry.splitlines() if line.startswith(">"))


def _without_notes(entry: str) -> str:
    return "\n".join(line for line in entry.splitlines() if not line.startswith(">")).strip()
