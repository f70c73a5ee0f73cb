"""Writes pictures, and what ADM's centre crop in Pillow makes of each of them.

usage: python crops.py FOLDER

Writes FOLDER/NAME with a picture, and FOLDER/NAME.SIZE.rgb with its crop to SIZE x SIZE pixels. Prints a line "NAME SIZE"
for each crop.
"""

import pathlib
import sys

from PIL import Image

from jpegs import encoded, photograph


def center_crop(picture, size):
    """ADM's preparation: box-halve, bicubic to the short side, cut the centre."""
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), resample=Image.BOX)
    scale = size / min(picture.size)
    width, height = round(picture.width * scale), round(picture.height * scale)
    picture = picture.resize((width, height), resample=Image.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return picture.crop((left, top, left + size, top + size))


def cases():
    for subsampling in ["4:2:0", "4:2:2", "4:4:4"]:
        name = subsampling.replace(":", "")
        yield f"wide-{name}.jpg", encoded(photograph(250, 187), subsampling=subsampling), [32, 64, 128]
        yield f"tall-{name}.jpg", encoded(photograph(149, 223), subsampling=subsampling), [64, 100, 256]
    yield "progressive.jpg", encoded(photograph(200, 150), progressive=True), [64, 200]
    yield "poor.jpg", encoded(photograph(200, 150), quality=10), [64]
    yield "grey.jpg", encoded(photograph(120, 90, "L")), [64]
    yield "cmyk.jpg", encoded(photograph(120, 90, "CMYK")), [64]
    for width, height in [(1, 300), (300, 1), (2, 90), (170, 10), (7, 119), (129, 8), (64, 1000), (1, 1)]:
        yield f"{width}x{height}.jpg", encoded(photograph(width, height), quality=95), [16, 64]


def main(folder):
    for name, file, sizes in cases():
        path = folder / name
        path.write_bytes(file)
        for size in sizes:
            crop = center_crop(Image.open(path).convert("RGB"), size)
            (folder / f"{name}.{size}.rgb").write_bytes(crop.tobytes())
            print(name, size)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
