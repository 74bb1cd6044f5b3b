"""The card: README.md with everything that lets a reader judge the data set.

Its prose lies in `card/`. Numbers come from the manifest and the files that it lists; what only the owners know comes
from them, and is said to be missing where they do not state it. The YAML by which `datasets` loads is that of packing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import yaml

from entire_id.errors import OutputExistsError
from entire_id.hub.changelog import next_changelog
from entire_id.hub.facts import OwnerFacts, read_template
from entire_id.hub.statistics import Histogram, Statistics, collect_statistics, histogram_table, quantile
from entire_id.records import UNKNOWN_CONTINENT, Progress, no_progress
from entire_id.schema import RESERVED_CONFIGS, columns_table, meta_columns, shard_columns
from entire_id.shards.configs import (
    IDENTITY_NOTE,
    NO_TRAIN_NOTE,
    front_matter,
    join_page,
    loading_example,
    read_front_matter,
    render_readme,
    splits_table,
)
from entire_id.shards.manifest import README_FILE, Manifest, read_manifest
from entire_id.staging import sync, work_folder

__all__ = ["NOT_STATED", "Licence", "licence_of", "render_card", "write_card"]

_MARK = "<!-- Made by `entire-id card`: change the facts that it was made of, not this page. -->"
NOT_STATED = "Not stated by the owners."
"""What stands where the owners state nothing."""

_SIZES = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "n>1B"]


class Licence(NamedTuple):
    """The licence that a card states."""

    name: str
    link: str


def write_card(
    folder: str | Path,
    facts: OwnerFacts,
    *,
    previous: str | Path | None = None,
    notes: str = "",
    progress: Progress = no_progress,
) -> None:
    """Make README.md of the data set in `folder` its card. No other file changes, nor does the digest of the content.

    The changelog goes on from the card of the previous version, or from the one that lies there: a second run changes
    the entry of this version, and adds none.

    Args:
        folder: a packed data set.
        facts: what the owners state.
        previous: folder of the version before: its README.md, manifest.json and meta files; None for the first version.
        notes: what the owners say of this version in the changelog.
        progress: told how far it is.

    Raises:
        DatasetNotFoundError: no data set lies in `folder` or `previous`.
        ManifestError: one of them is damaged.
        PreviousVersionError: `previous` is no older version, or is needed.
        OutputExistsError: the README was written by hand, or something else lies where the card is made,
            `<folder>.describing`.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    before = None if previous is None else Path(previous)
    changelog = next_changelog(folder, manifest, _read_page(folder, manifest), before, notes)
    text = render_card(manifest, facts, collect_statistics(folder, manifest, progress), changelog)
    with work_folder(folder, ".describing") as tree:  # beside the folder, where every file is listed
        page = tree / README_FILE
        page.write_text(text, encoding="utf-8")
        sync(page)
        page.replace(folder / README_FILE)
    sync(folder)


def _read_page(folder: Path, manifest: Manifest) -> str:
    """Return the README that lies there, unless it holds words of somebody who would miss them."""
    path = folder / README_FILE
    try:
        page = path.read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    if _MARK not in page and page != render_readme(manifest):
        raise OutputExistsError(path, "it comes neither from packing this version nor from entire-id card")
    return page


def licence_of(readme: str) -> Licence | None:
    r"""Return the licence that a README's YAML states, None where there is none: then it is not to be published.

    >>> licence_of("---\nlicense: other\nlicense_name: lab-1.0\nlicense_link: https://lab.org\n---\n")
    Licence(name='lab-1.0', link='https://lab.org')
    >>> licence_of("# No YAML\n") is None
    True
    """
    front = read_front_matter(readme)
    name, link = front.get("license_name"), front.get("license_link")
    is_stated = front.get("license") == "other" and isinstance(name, str) and isinstance(link, str)
    return Licence(str(name), str(link)) if is_stated and name and link else None


def render_card(manifest: Manifest, facts: OwnerFacts, statistics: Statistics, changelog: str) -> str:
    """Return the text of the card.

    Args:
        manifest: of the data set.
        facts: what the owners state.
        statistics: of its meta files.
        changelog: Markdown, a section for each version.
    """
    name = facts.repository or manifest.name
    terms = read_template("terms.md").substitute(license_name=facts.license_name, license_link=facts.license_link)
    stated = {field: getattr(facts, field) or NOT_STATED for field in OwnerFacts.__slots__}
    body = read_template("README.md.template").substitute(
        stated,
        title=facts.pretty_name or manifest.name,
        version=manifest.version,
        content_sha256=manifest.content_sha256,
        totals=_totals(manifest),
        splits=splits_table(manifest),
        notes_on_splits=_notes_on_splits(manifest, statistics),
        identity_note=IDENTITY_NOTE,
        cameras=_cameras(manifest, statistics),
        columns=_columns(manifest),
        configs=_configs(manifest),
        width_line=_spread(statistics.widths),
        widths=histogram_table({"crops": statistics.widths}, "width, px"),
        height_line=_spread(statistics.heights),
        heights=histogram_table({"crops": statistics.heights}, "height, px"),
        crops_per_identity=_per_identity(statistics.crops_per_identity, "crops", doubling=True),
        cameras_per_identity=_per_identity(statistics.cameras_per_identity, "cameras"),
        examples=_examples(manifest, name),
        protocol_numbers=_protocol_numbers(manifest, statistics, name),
        citation=f"```bibtex\n{facts.citation}\n```" if facts.citation else NOT_STATED,
        terms=terms,
        changelog=changelog,
    )
    return join_page(_front(manifest, facts, terms), f"{_MARK}\n\n{body}")


# --- YAML -------------------------------------------------------------------------------------------------------------


def _front(manifest: Manifest, facts: OwnerFacts, terms: str) -> dict[str, Any]:
    """Return what the Hub shows and asks, then what `datasets` needs.

    The viewer is off: its thumbnails and converted copies of the crops are made outside the versions, where neither
    a gate nor an erasure that the owners make reaches them.
    """
    words = {"language": list(facts.language)} if facts.language else {}
    front = {
        "pretty_name": facts.pretty_name or manifest.name,
        "license": "other",
        "license_name": facts.license_name,
        "license_link": facts.license_link,
        **words,
        "task_categories": ["image-feature-extraction"],
        "tags": list(dict.fromkeys(["person-re-identification", *facts.tags])),
        "size_categories": [_size_category(manifest.num_rows)],
        "version": manifest.version,
        "viewer": False,
        "extra_gated_prompt": terms,
        **yaml.safe_load(read_template("gate.yaml").template),
    }
    return front | {key: value for key, value in front_matter(manifest).items() if key not in front}


def _size_category(num_rows: int) -> str:
    """Return the Hub's name for a number of rows.

    >>> _size_category(999), _size_category(1000), _size_category(4_450_000)
    ('n<1K', '1K<n<10K', '1M<n<10M')
    """
    return _SIZES[min(max(len(str(num_rows)) - 3, 0), len(_SIZES) - 1)]


# --- what it holds ----------------------------------------------------------------------------------------------------


def _totals(manifest: Manifest) -> str:
    num_bytes = sum(entry.bytes for entry in manifest.files)
    kind = "Parquet" if manifest.format == "parquet" else "WebDataset (tar)"
    return (
        f"{manifest.num_rows:,} crops of {len(manifest.people()):,} identities, in {len(manifest.shards):,} {kind} "
        f"shards; {num_bytes:,} bytes in all."
    )


def _notes_on_splits(manifest: Manifest, statistics: Statistics) -> str:
    notes = [] if "train" in manifest.splits else [NO_TRAIN_NOTE]
    junk = ", ".join(f"{number:,} in {split}" for split, number in statistics.junk.items())
    notes.append(f"Junk, crops of nobody in particular: {junk or 'none'}.")
    if statistics.unlabelled:
        unlabelled = ", ".join(f"{number:,} in {split}" for split, number in statistics.unlabelled.items())
        notes.append(f"Distractors without a label (pid -2), wrong for every query: {unlabelled}.")
    if {"query", "gallery"} <= manifest.splits.keys():
        notes.append(
            f"Distractors, identities of the gallery that no query looks for: {statistics.distractors:,}, with "
            f"{statistics.distractor_crops:,} crops."
        )
    return "\n".join(notes)


def _cameras(manifest: Manifest, statistics: Statistics) -> str:
    """Return a table of continents, and what is known of the cameras."""
    rows = ["| continent | cameras | crops | share | identities |", "|---|---|---|---|---|"]
    for continent in manifest.continents:
        crops = [number for (place, _), number in statistics.crops_of_camera.items() if place == continent]
        share = 100 * sum(crops) / manifest.num_rows
        people = len(manifest.people(continent))
        rows.append(f"| {continent} | {len(crops):,} | {sum(crops):,} | {share:.1f} % | {people:,} |")
    camids = {camid for _, camid in statistics.crops_of_camera}
    known = ", ".join(f"`{name}`" for name in statistics.camera_columns)
    notes = [f"Crops come from {len(camids):,} cameras. `cameras.csv` lists {statistics.cameras_listed:,}: {known}."]
    if UNKNOWN_CONTINENT in manifest.continents:
        notes.append("The owners did not say on which continent the cameras under `unknown` are.")
    return "\n".join([*rows, "", *notes])


def _columns(manifest: Manifest) -> str:
    table = columns_table(shard_columns())
    if manifest.format != "parquet":
        return f"{table}\n\nIn the tar files the image is `jpg`, and everything else is in `json`."
    more = tuple(column for column in meta_columns() if column.where == "meta")
    return f"{table}\n\nThe config `meta` has no image, and says where its bytes lie:\n\n{columns_table(more)}"


def _configs(manifest: Manifest) -> str:
    """Return a table of the configs that `datasets` finds."""
    rows = ["| config | splits | crops | bytes to download |", "|---|---|---|---|"]
    for config in front_matter(manifest)["dataset_info"]:
        splits = ", ".join(split["name"] for split in config["splits"])
        crops = sum(split["num_examples"] for split in config["splits"])
        rows.append(f"| `{config['config_name']}` | {splits} | {crops:,} | {config['download_size']:,} |")
    return "\n".join(rows)


def _spread(histogram: Histogram) -> str:
    return f"from {min(histogram):,} to {max(histogram):,}, median {quantile(histogram, 0.5):,}."


def _per_identity(histograms: dict[str, Histogram], what: str, *, doubling: bool = False) -> str:
    """Return a line and a column for each split or part that shows anybody."""
    found = {name: one for name, one in histograms.items() if one}
    if not found:
        return "There is no identity, only junk."
    lines = [
        f"- {name}: {sum(one.values()):,} identities, {what} of each {_spread(one)}" for name, one in found.items()
    ]
    columns = {f"identities in {name}": one for name, one in found.items()}
    return "\n".join([*lines, "", histogram_table(columns, what, doubling=doubling)])


# --- how to use it ----------------------------------------------------------------------------------------------------


def _examples(manifest: Manifest, name: str) -> str:
    """Return code that loads it with `datasets` alone."""
    names = [config["config_name"] for config in front_matter(manifest)["configs"]]
    continents = [one for one in names if one not in RESERVED_CONFIGS]
    shown = {"test": "query and gallery alone", "meta": "no pixels"}
    calls = "".join(
        f"{one} = load_dataset({name!r}, {one!r}, streaming=True)  # {what}\n"
        for one, what in shown.items()
        if one in names
    )
    if continents:
        calls += f"continent = load_dataset({name!r}, {continents[0]!r}, streaming=True)\n"
    parts = f"\n\n```python\nfrom datasets import load_dataset\n\n{calls}```" if calls else ""
    return f"With `datasets` and Pillow:\n\n```python\n{loading_example(manifest, name)}\n```{parts}"


def _protocol_numbers(manifest: Manifest, statistics: Statistics, name: str) -> str:
    if not {"query", "gallery"} <= manifest.splits.keys():
        return "This version has no query and gallery: nothing is scored on it."
    nobody = statistics.junk.get("query", 0) + statistics.unlabelled.get("query", 0)
    queries = manifest.splits["query"].rows - nobody
    code = read_template("score.py.template").substitute(name=repr(name)).strip()
    return (
        f"Here {statistics.queries_without_positive:,} of {queries:,} queries are without a right crop.\n\n"
        f"With the package `entire-id`, and your model in place of the mean colour:\n\n```python\n{code}\n```"
    )
