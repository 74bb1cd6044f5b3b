from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from entire_id.errors import OutputExistsError
from entire_id.staging import new_folder, work_folder

KILLED = """
import os, signal, sys
from pathlib import Path
from entire_id.staging import new_folder
with new_folder(Path(sys.argv[1])) as partial:
    (partial / "half").write_text("done")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def has_info(folder: Path) -> bool:
    return (folder / "info.json").is_file()


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("exists", [True, False])
def test_folder_appears_when_it_is_complete(tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as partial:
        (partial / "file").write_text("text")
        assert not (tmp_path / "out" / "file").exists()
    assert names(tmp_path) == ["out", "out/file"]


def test_error_leaves_nothing_not_even_parents(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "a" / "b" / "out") as partial:
        (partial / "file").write_text("text")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_parents_that_others_use_stay(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "a" / "out"):
        (tmp_path / "a" / "mine").write_text("text")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["a", "a/mine"]


def test_killed_run_leaves_nothing_under_the_name_and_the_next_clears_up(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "out"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert names(tmp_path) == [
        "out.partial",
        "out.partial/.unfinished",
        "out.partial/notes",
        "out.partial/tree",
        "out.partial/tree/half",
    ]
    with new_folder(tmp_path / "out") as partial:
        (partial / "file").write_text("text")
    assert names(tmp_path) == ["out", "out/file"]


@pytest.mark.parametrize("name", ["out", "out.partial"])
def test_what_others_put_there_is_refused_and_untouched(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").write_text("text")
    with pytest.raises(OutputExistsError), new_folder(tmp_path / "out", replaces=has_info):
        pass
    assert names(tmp_path) == [name, f"{name}/mine"]


def test_file_of_that_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("text")
    with pytest.raises(OutputExistsError, match="Name a new folder"), new_folder(tmp_path / "out"):
        pass


def test_older_output_is_replaced_only_at_the_end(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with new_folder(tmp_path / "out", replaces=has_info) as partial:
            (partial / "info.json").write_text(text)
            if text == "new":
                assert (tmp_path / "out" / "info.json").read_text() == "old"
    assert (tmp_path / "out" / "info.json").read_text() == "new"


def test_relative_and_dotted_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with new_folder(Path("v1.2")):
        pass
    assert names(tmp_path) == ["v1.2"]


def test_two_runs_at_once_the_second_is_refused(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as tree:
        with pytest.raises(OutputExistsError, match="another run is making it"), new_folder(tmp_path / "out"):
            pass
        (tree / "file").write_text("first")
    assert names(tmp_path) == ["out", "out/file"]


# --- work that is kept for the next run


class Stopped(Exception):
    """An error after which a run can go on."""


def stop(out: Path, error: type[BaseException], keeps: tuple[type[BaseException], ...] = (Stopped,)) -> None:
    with pytest.raises(error), new_folder(out, keeps=keeps) as tree:
        (tree / "half").write_text("done")
        (tree.parent / "notes" / "half.json").write_text("{}")
        raise error


KEPT = [".unfinished", "notes", "notes/half.json", "tree", "tree/half"]


def test_work_stays_after_an_error_to_go_on_after_and_the_next_run_finds_it(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    stop(out, Stopped)
    assert names(tmp_path / "a") == ["out.partial", *(f"out.partial/{name}" for name in KEPT)]
    with new_folder(out, keeps=(Stopped,)) as tree:
        assert tree == tmp_path / "a" / "out.partial" / "tree"
        assert names(tree.parent) == KEPT
    assert names(tmp_path) == ["a", "a/out", "a/out/half"], "work and notes are gone, what was made is there"


def test_work_stays_after_an_error_of_a_kind_of_those(tmp_path: Path) -> None:
    stop(tmp_path / "out", FileNotFoundError, keeps=(OSError, Stopped))
    assert names(tmp_path / "out.partial") == KEPT


def test_other_errors_remove_the_work_of_earlier_runs_too(tmp_path: Path) -> None:
    for error in (ValueError, KeyboardInterrupt):
        stop(tmp_path / "out", Stopped)
        stop(tmp_path / "out", error)
        assert names(tmp_path) == []


def test_a_run_that_does_not_go_on_clears_what_another_left(tmp_path: Path) -> None:
    stop(tmp_path / "out", Stopped)
    with new_folder(tmp_path / "out") as tree:
        assert names(tree.parent) == [".unfinished", "notes", "tree"]
    assert names(tmp_path) == ["out"]


def test_a_killed_run_leaves_its_work_for_one_that_goes_on(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, tmp_path / "out"], check=False)
    with new_folder(tmp_path / "out", keeps=(Stopped,)) as tree:
        assert (tree / "half").read_text() == "done"
    assert names(tmp_path) == ["out", "out/half"]


def test_a_run_is_refused_while_another_is_at_work_and_goes_on_after_it_stopped(tmp_path: Path) -> None:
    with pytest.raises(Stopped), new_folder(tmp_path / "out", keeps=(Stopped,)) as tree:
        (tree / "half").write_text("done")
        stop_refused(tmp_path / "out")
        assert (tree / "half").read_text() == "done"
        raise Stopped
    with new_folder(tmp_path / "out", keeps=(Stopped,)) as tree:
        assert (tree / "half").read_text() == "done"


def stop_refused(out: Path) -> None:
    with pytest.raises(OutputExistsError, match="another run"), new_folder(out, keeps=(Stopped,)):
        pass


def test_kept_work_is_no_excuse_to_write_over_what_has_come_to_be(tmp_path: Path) -> None:
    stop(tmp_path / "out", Stopped)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("text")
    with pytest.raises(OutputExistsError), new_folder(tmp_path / "out", keeps=(Stopped,)):
        pass
    assert (tmp_path / "out" / "mine").read_text() == "text"


def test_kept_work_becomes_an_empty_folder_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    stop(tmp_path / "out", Stopped)
    with new_folder(tmp_path / "out", keeps=(Stopped,)):
        pass
    assert names(tmp_path) == ["out", "out/half"]


def test_a_work_folder_is_empty_and_vanishes_however_the_work_ends(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for error in (None, KeyboardInterrupt):
        try:
            with work_folder(tmp_path / "set", ".repairing") as work:
                assert work.parent == tmp_path / "set.repairing"
                assert names(work) == []
                (work / "half").write_text("done")
                if error:
                    raise error
        except KeyboardInterrupt:
            pass
        assert names(tmp_path) == ["set"]


def test_a_work_folder_of_somebody_else_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "set.repairing").mkdir()
    (tmp_path / "set.repairing" / "mine").touch()
    with pytest.raises(OutputExistsError, match="holds something else"), work_folder(tmp_path / "set", ".repairing"):
        pass
    assert names(tmp_path) == ["set.repairing", "set.repairing/mine"]
