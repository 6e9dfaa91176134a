"""Writes VLN-Ego: one line per whole episode, its frames before it (see `habitat_vlnr1.records`)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from habitat_vlnr1.errors import RecordError
from habitat_vlnr1.files import differences, drop_half_line, full_disk_is_said, is_text, write_first
from habitat_vlnr1.frame_files import read_picture, write_pack
from habitat_vlnr1.lock import FolderLock
from habitat_vlnr1.records import FORMAT, Episode, read_episode_lines, read_meta


class EpisodeWriter:
    """Writes a VLN-Ego folder episode by episode; stopping it at any moment loses at most the episode in hand.

    An episode's line is written after its frames, so a line means that the episode is whole. Opening an existing
    folder drops a half-written last line and goes on; `done` then holds the finished episodes by id.

    Args:
        root: the folder.
        meta: what is exported; an existing folder must have been made with the same. `packed` packs the frames of
            each episode into one file.
        shard: names this process's file `episodes-<shard>.jsonl` when several write into one folder.
        patient: wait for another process that writes this shard, as long as it takes.

    Raises:
        RecordError: the folder was made from something else.
        FolderInUse: another process writes this shard.
    """

    def __init__(self, root: str | os.PathLike[str], meta: dict[str, Any], shard: str = "", *, patient: bool = False):
        self.root = Path(root)
        self.file = self.root / (f"episodes-{shard}.jsonl" if shard else "episodes.jsonl")
        self._lock = FolderLock(self.root, self.file.stem, patient=patient)
        try:
            self._open(meta)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, meta: dict[str, Any]) -> None:
        claim_folder(self.root / "meta.json", {"format": FORMAT, **meta}, "choose another vlnr1.data.source")
        drop_half_line(self.file)
        self._packed = bool(meta.get("packed"))
        there = read_episode_lines(self.file) if self.file.exists() else ()
        self.done = {episode.episode_id: episode for episode in there}
        self._lines = self.file.open("a", encoding="utf-8")

    def write(self, episode: Episode, jpegs: Sequence[bytes | Path], depths: Sequence[bytes] = ()) -> None:
        """Write one whole episode: `jpegs[i]` is the frame at which `actions[i]` was taken, encoded, or as a file
        (see `place_frame`).

        Args:
            depths: encoded depth images of the same frames, or none.

        An episode with the frames of another (`frames_of`), which is written already, brings none.
        """
        if episode.episode_id in self.done:
            raise RecordError(f"episode {episode.episode_id} is already in {self.file}")
        if episode.frames_of and (jpegs or depths or episode.frames_of not in self.done):
            raise RecordError(f"episode {episode.episode_id}: the frames of {episode.frames_of} must be there before")
        if not episode.frames_of and len(jpegs) != len(episode.actions):
            raise RecordError(f"episode {episode.episode_id}: {len(jpegs)} frames, {len(episode.actions)} actions")
        if depths and len(depths) != len(episode.actions):
            raise RecordError(f"episode {episode.episode_id}: {len(depths)} depths, {len(episode.actions)} actions")
        line = json.dumps(episode.to_json(), ensure_ascii=False)
        if not is_text(line):
            raise RecordError(f"episode {episode.episode_id}: info holds text that UTF-8 cannot write")
        with full_disk_is_said(self.root):
            self._write(episode, line, jpegs, depths)
        self.done[episode.episode_id] = episode

    def _write(self, episode: Episode, line: str, jpegs: Sequence[bytes | Path], depths: Sequence[bytes]) -> None:
        pictures = {self.root / episode.frame(step): jpeg for step, jpeg in enumerate(jpegs)}
        pictures |= {self.root / episode.depth(step): png for step, png in enumerate(depths)}
        folder = self.root / episode.folder
        if pictures and self._packed:
            write_pack(folder, {path.name: picture_bytes(picture) for path, picture in pictures.items()})
        elif pictures:
            folder.mkdir(parents=True, exist_ok=True)
            for path, picture in pictures.items():
                place_frame(picture, path)
        self._lines.write(line + "\n")
        self._lines.flush()

    def close(self) -> None:
        """Let another process go on."""
        with suppress(OSError):  # a full disk: the line that does not fit has been said
            self._lines.close()
        self._lock.release()


def picture_bytes(picture: bytes | Path) -> bytes:
    """An encoded picture, given as it is or by the path of its frame."""
    return picture if isinstance(picture, bytes) else read_picture(picture)


def place_frame(jpeg: bytes | Path, target: Path) -> None:
    """Put a picture where it belongs: encoded bytes are written, a file is linked, or copied where it cannot be."""
    if isinstance(jpeg, Path) and not jpeg.is_file():  # it lies in a pack
        jpeg = read_picture(jpeg)
    target.unlink(missing_ok=True)  # it may be a link to a frame of another data set, which must not change
    if isinstance(jpeg, bytes):
        target.write_bytes(jpeg)
        return
    try:
        os.link(os.path.realpath(jpeg), target)  # not a link to a link, which may lead nowhere from here
    except OSError:
        half = target.with_name(f".{target.name}.half")
        shutil.copyfile(jpeg, half)
        half.replace(target)


def claim_folder(file: Path, content: dict[str, Any], remedy: str) -> None:
    """Write down what a folder is made from; a folder that was made from something else is refused.

    A folder of an older version, which says nothing about its `task`, is taken with a line.

    Args:
        file: where that stands, in the folder.
        remedy: what to do then, for the message.
    """
    content = json.loads(json.dumps(content))
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists() and write_first(file, json.dumps(content, indent=2, ensure_ascii=False).encode()):
        return
    check_claim(file, content, remedy)


def check_claim(file: Path, content: dict[str, Any], remedy: str) -> None:
    """RecordError when a folder was made from something else than `content`; see `claim_folder`."""
    old = read_meta(file)
    if "task" in content and "task" not in old:
        print(f"{file} does not say which episodes it was made from (an older version wrote it): not compared")
        content = {key: value for key, value in content.items() if key != "task"}
    changed = differences(old, content)
    if changed:
        raise RecordError(f"{file.parent} was made from something else ({changed[0]}): {remedy} or delete the folder")
