"""Text of any script in pictures: drawn in a font that has it, or written beside."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from habitat_vlnr1.actions import ActionSpace
from habitat_vlnr1.episode_writer import EpisodeWriter
from habitat_vlnr1.evaluation import lettering
from habitat_vlnr1.evaluation.lettering import NOTE, bundled, stretches, undrawable
from habitat_vlnr1.evaluation.pictures import Page, font
from habitat_vlnr1.interchange.card import write_sheet
from habitat_vlnr1.memory import make_memory
from habitat_vlnr1.records import Episode, VLNEgo
from tests.test_records import META, jpeg

HINDI, TELUGU, CHINESE = "बाईं ओर मुड़ें और रुकें।", "నీలం అల్మారా వద్ద ఆగండి.", "左转穿过门"


def drawn(text):
    page = Page(400, 40)
    page.text((5, 5), text, 20)
    return np.asarray(page.image)


@pytest.fixture
def bare_machine(monkeypatch):
    """Without fonts of its own."""
    monkeypatch.setattr(lettering, "_system_fonts", lambda: ())
    caches = (lettering.face_of, stretches)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def test_the_languages_of_rxr_are_drawn_on_any_machine(bare_machine):
    for text, name in ((HINDI, "NotoSansDevanagari"), (TELUGU, "NotoSansTelugu")):
        assert undrawable(text) == ""
        assert any(name in str(face.place) for _, face in stretches(text))
        assert "".join(part for part, _ in stretches(text)) == text
    assert (drawn("मुड़ें") != drawn("रुकें")).any()  # not the same boxes
    assert undrawable("Go to the café — left → Москва, Γειά") == ""


def test_english_is_drawn_in_one_piece_as_pillow_does():
    assert stretches("Go left, stop.") == (("Go left, stop.", bundled()[0]),)
    page = Page(400, 40)
    page.draw.text((5, 5), "Go left, stop.", (33, 37, 46), font(20))
    assert (np.asarray(page.image) == drawn("Go left, stop.")).all()


def test_what_has_no_font_is_a_note_and_a_text_beside(bare_machine, tmp_path):
    assert undrawable(f"go {CHINESE} now") == CHINESE
    assert [part for part, _ in stretches(f"go {CHINESE} now")] == ["go ", NOTE, " now"]
    writer = EpisodeWriter(tmp_path / "ego", META)
    for name, text in (("1", HINDI), ("2", f"{CHINESE} \U0001f6aa")):
        writer.write(Episode(name, "house", text, (0,)), [jpeg(1)])
    writer.close()
    records = VLNEgo(tmp_path / "ego").records(make_memory("current", budget=0), 1)
    picture = write_sheet(records, ActionSpace(), tmp_path)
    assert picture.with_suffix(".txt").read_text(encoding="utf-8") == f"{HINDI}\n{CHINESE} \U0001f6aa\n"
    picture.with_suffix(".txt").unlink()
    write_sheet(records.sources[0].records(make_memory("current", budget=0), 1), ActionSpace(), tmp_path, count=1)
    assert not picture.with_suffix(".txt").exists()  # the first record alone is Hindi


def test_fonts_of_the_machine_are_used(bare_machine, monkeypatch):
    telugu = next(Path(face.place) for face in bundled() if face.place and "Telugu" in face.place.name)
    monkeypatch.setattr(lettering, "bundled", lambda: bundled()[:2])
    assert undrawable(TELUGU)
    lettering.face_of.cache_clear()
    monkeypatch.setattr(lettering, "_system_fonts", lambda: (Path(__file__), telugu))  # one of them is no font
    assert undrawable(TELUGU) == ""


def test_control_characters_are_not_drawn_and_long_words_are_cut():
    assert (drawn("a\0b\a\u200b c") == drawn("ab c")).all()
    lines = Page(400, 40).wrap("word " + "x" * 200, 20, 380)
    assert "".join(lines) == "word" + "x" * 200
    assert all(Page(1, 1).length(line, 20) <= 380 for line in lines)
    assert isinstance(Page(10, 10).image, Image.Image)
