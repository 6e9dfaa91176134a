"""Frames as files: packed ones are read like loose ones, and what is evaluated goes through the export's codec."""

import io
import os
import zipfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from PIL import Image

from habitat_vlnr1.errors import RecordError
from habitat_vlnr1.frame_files import (
    check_jpeg,
    decode_picture,
    encode_jpeg,
    jpeg_roundtrip,
    picture_size,
    read_picture,
    write_pack,
)
from habitat_vlnr1.lvlm.frames import FrameError, read_frame

NAMES = [f"{step:04d}.jpg" for step in range(40)]


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)


@pytest.fixture
def jpegs():
    return {name: encode_jpeg(picture(number), 92) for number, name in enumerate(NAMES)}


@pytest.fixture
def folder(tmp_path, jpegs):
    write_pack(tmp_path / "house/7.1", jpegs)  # a dot in an id is no ending
    return tmp_path / "house/7.1"


def test_a_packed_frame_is_read_by_the_path_that_a_loose_one_has(folder, jpegs):
    assert not folder.exists() and (folder.parent / "7.1.zip").is_file()
    for name in reversed(NAMES):
        assert read_picture(folder / name) == jpegs[name]
        assert picture_size(folder / name) == len(jpegs[name])
        check_jpeg(folder / name)
    assert (read_frame(str(folder / NAMES[3])) == decode_picture(jpegs[NAMES[3]])).all()


def test_forked_processes_read_side_by_side(folder, jpegs):
    read_picture(folder / NAMES[0])  # the directory is known before the fork
    with ProcessPoolExecutor(3, get_context("fork")) as pool:
        assert list(pool.map(read_picture, [folder / name for name in NAMES * 5])) == list(jpegs.values()) * 5


def test_a_pack_of_another_program_is_read_and_a_compressed_one_is_refused(tmp_path):
    content = encode_jpeg(picture(1), 92)
    entry = zipfile.ZipInfo("0000.jpg")
    entry.extra = b"\x99\x99\x04\0abcd"
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(entry, content)
    assert read_picture(tmp_path / "a/0000.jpg") == content
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("0000.jpg", content)
    with pytest.raises(RecordError, match=r"b\.zip: its frames are compressed once more"):
        read_picture(tmp_path / "b/0000.jpg")


def test_what_is_wrong_with_a_pack_is_one_line_with_its_name(folder):
    with pytest.raises(RecordError, match=r"0099.jpg: frame is missing"):
        check_jpeg(folder / "0099.jpg")
    pack = folder.parent / "7.1.zip"
    whole = pack.read_bytes()
    os.truncate(pack, len(whole) // 2)
    with pytest.raises(FrameError, match=r"0099.jpg: cannot be read"):
        read_frame(folder / "0099.jpg")  # forgets what was known
    with pytest.raises(RecordError, match=r"7\.1\.zip: not a whole file of frames"):
        read_picture(folder / NAMES[0])
    with pytest.raises(FrameError, match=r"not a whole file of frames"):
        read_frame(folder / NAMES[0])


def test_a_frame_that_is_written_after_it_was_missed_is_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_picture(tmp_path / "1/0000.jpg")
    content = encode_jpeg(picture(1), 92)
    with zipfile.ZipFile(tmp_path / "1.zip", "w") as file:  # by another process
        file.writestr("0000.jpg", content)
    assert read_picture(tmp_path / "1/0000.jpg") == content


def test_a_round_trip_is_what_training_reads_of_an_export(tmp_path):
    frames = np.stack([picture(seed) for seed in range(3)])
    seen = jpeg_roundtrip(frames, 92)
    assert seen.dtype == np.uint8 and seen.shape == frames.shape and (seen != frames).any()
    for frame, same in zip(frames, seen, strict=True):
        (tmp_path / "f.jpg").write_bytes(encode_jpeg(frame, 92))
        assert (read_frame(tmp_path / "f.jpg") == same).all()
        with Image.open(io.BytesIO(encode_jpeg(frame, 92))) as image:
            assert (np.array(image) == same).all()
    with_alpha = np.concatenate([frames, frames[..., :1]], axis=-1)
    assert (jpeg_roundtrip(with_alpha, 92) == seen).all()
    assert jpeg_roundtrip(frames[:0], 92).shape == (0, 12, 10, 3)
