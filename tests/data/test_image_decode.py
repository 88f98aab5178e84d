from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.picture_book import encoded, picture
from tpsprune.data.image_folder import decode
from tpsprune.errors import DataError

WHOLE = {kind: encoded(picture(0, (90, 120, 40), 24), kind) for kind in ("PNG", "JPEG")}


def test_an_image_of_the_wanted_size_comes_out_channel_first() -> None:
    pixels = picture(1, (9, 90, 200))
    assert (decode(encoded(pixels), "x", 12, 3) == pixels.transpose(2, 0, 1)).all()


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG"]),
    cut=st.integers(0, 400),
    place=st.integers(0, 2000),
    value=st.integers(0, 255),
)
def test_any_damage_gives_pixels_or_a_named_fault(kind: str, cut: int, place: int, value: int) -> None:
    raw = bytearray(WHOLE[kind])
    raw[place % len(raw)] = value
    try:
        shape: object = decode(bytes(raw[: len(raw) - cut]), "holiday.png", 16, 3).shape
    except DataError as error:
        shape = str(error).split(": ")[0]
    assert shape in {(3, 16, 16), "holiday.png"}


@pytest.mark.parametrize("raw", [b"", b"hello", b"GIF89a"], ids=["empty", "text", "gif"])
def test_what_is_no_image_is_refused(raw: bytes) -> None:
    with pytest.raises(DataError, match=r"^a\.png: is not a sound JPEG or PNG image \(.+\); leave it out$"):
        decode(raw, "a.png", 8, 3)


@pytest.mark.parametrize("side", [8200, 14_000], ids=["large", "pillow-refuses-it-too"])
def test_a_small_file_that_claims_to_be_huge_is_refused(side: int) -> None:
    stream = io.BytesIO()
    Image.new("1", (side, side)).save(stream, "PNG")
    with pytest.raises(DataError, match=r"^bomb\.png: is (of \d+×\d+ pixels; at most 67108864|not a sound)"):
        decode(stream.getvalue(), "bomb.png", 8, 3)


def test_sixteen_bits_a_channel_are_refused() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(stream, "PNG")
    with pytest.raises(DataError, match=r"^a\.png: has more than 8 bits a channel; 8-bit images would do$"):
        decode(stream.getvalue(), "a.png", 8, 1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_images_of_every_usual_mode_are_read(mode: str) -> None:
    stream = io.BytesIO()
    kind = "JPEG" if mode == "CMYK" else "PNG"
    Image.fromarray(picture(0, (255, 255, 255))).convert("RGB").convert(mode).save(stream, kind)
    assert decode(stream.getvalue(), "a.png", 12, 3).shape == (3, 12, 12)
    assert decode(stream.getvalue(), "a.png", 12, 1).shape == (1, 12, 12)
