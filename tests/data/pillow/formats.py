"""Writes pictures in formats other than JPEG, and what Pillow makes of each of them.

usage: python formats.py FOLDER

Writes FOLDER/NAME.FORMAT for each case, and FOLDER/NAME.FORMAT.rgb with the pixels of Image.open(f).convert("RGB").
Prints a line "NAME.FORMAT WIDTH HEIGHT" or "NAME.FORMAT refused: REASON" for each case.
"""

import io
import pathlib
import random
import struct
import sys
import zlib

from PIL import Image

from jpegs import photograph, write

SIZE = (40, 40)


def transparent(mode="RGBA"):
    """A photograph with every level of opacity, and colors under the transparent pixels."""
    picture = photograph(*SIZE).convert(mode)
    picture.putalpha(Image.linear_gradient("L").resize(SIZE))
    return picture


def saved(picture, format, **options):
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def png_of(color_type, depth, rows, *chunks):
    """A PNG file of a color type and a depth that Pillow does not write."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", SIZE[0], len(rows), depth, color_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    others = b"".join(chunk(kind, data) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + others + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def deep_png(color_type, channels, *chunks):
    rng = random.Random(color_type)
    return png_of(color_type, 16, [rng.randbytes(2 * channels * SIZE[0]) for _ in range(SIZE[1])], *chunks)


def pngs():
    picture = photograph(*SIZE)
    yield "rgb", saved(picture, "PNG")
    yield "grey", saved(picture.convert("L"), "PNG")
    yield "bits", saved(picture.convert("1"), "PNG")
    yield "palette", saved(picture.quantize(200), "PNG")
    yield "palette-2", saved(picture.quantize(2), "PNG")
    yield "palette-4", saved(picture.quantize(4), "PNG")
    yield "palette-16", saved(picture.quantize(16), "PNG")
    yield "palette-transparent", saved(picture.quantize(200), "PNG", transparency=7)
    yield "palette-alpha", saved(picture.quantize(200), "PNG", transparency=bytes(range(200)))
    yield "rgba", saved(transparent(), "PNG")
    yield "la", saved(transparent("LA"), "PNG")
    yield "rgb-transparent", saved(picture, "PNG", transparency=picture.getpixel((3, 3)))
    yield "grey-transparent", saved(picture.convert("L"), "PNG", transparency=120)
    yield "bits-transparent", saved(picture.convert("1"), "PNG", transparency=0)
    yield "rgb16", deep_png(2, 3)
    yield "rgb16-transparent", deep_png(2, 3, (b"tRNS", bytes(6)))
    yield "la16", deep_png(4, 2)
    yield "rgba16", deep_png(6, 4)
    yield "gamma", saved(picture, "PNG", gamma=0.5)
    yield "icc", saved(picture, "PNG", icc_profile=b"a profile" * 100)
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "rotated", saved(photograph(40, 24), "PNG", exif=exif)
    frames = [photograph(*SIZE).rotate(90 * n) for n in range(3)]
    yield "animated", saved(frames[0], "PNG", save_all=True, append_images=frames[1:])
    whole = saved(picture, "PNG")
    yield "cut", whole[: len(whole) // 2]
    yield "no-end", whole[:-12]
    yield "trailing", whole + b"trailing bytes"


def gifs():
    picture = photograph(*SIZE)
    yield "palette", saved(picture, "GIF")
    yield "grey", saved(picture.convert("L"), "GIF")
    yield "bits", saved(picture.convert("1"), "GIF")
    yield "transparent", saved(picture.quantize(50), "GIF", transparency=7)
    yield "interlaced", saved(picture, "GIF", interlace=1)
    frames = [photograph(*SIZE).rotate(90 * n) for n in range(3)]
    yield "animated", saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    whole = saved(picture, "GIF")
    yield "cut", whole[: len(whole) // 2]
    yield "trailing", whole + b"trailing bytes"


def webps():
    picture = photograph(*SIZE)
    yield "lossless", saved(picture, "WEBP", lossless=True)
    yield "lossless-rgba", saved(transparent(), "WEBP", lossless=True, exact=True)
    yield "lossy", saved(picture, "WEBP", quality=90)
    yield "lossy-odd", saved(photograph(41, 33), "WEBP", quality=80)
    yield "lossy-rgba", saved(transparent(), "WEBP", quality=90, exact=True)
    frames = [photograph(*SIZE).rotate(90 * n) for n in range(3)]
    yield "animated", saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    whole = saved(picture, "WEBP")
    yield "cut", whole[: len(whole) // 2]


def tiffs():
    picture = photograph(*SIZE)
    for compression in ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"]:
        yield f"rgb-{compression}", saved(picture, "TIFF", compression=compression)
    yield "grey", saved(picture.convert("L"), "TIFF")
    yield "bits", saved(picture.convert("1"), "TIFF")
    yield "rgba", saved(transparent(), "TIFF")
    yield "la", saved(transparent("LA"), "TIFF")
    yield "palette", saved(picture.quantize(200), "TIFF")
    yield "cmyk", saved(picture.convert("CMYK"), "TIFF")
    yield "jpeg", saved(picture, "TIFF", compression="jpeg")
    yield "fax", saved(picture.convert("1"), "TIFF", compression="group4")
    yield "pages", saved(picture, "TIFF", save_all=True, append_images=[picture.rotate(90)])
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "rotated", saved(photograph(40, 24), "TIFF", exif=exif)
    whole = saved(picture, "TIFF")
    yield "cut", whole[: len(whole) // 2]


def bmps():
    picture = photograph(*SIZE)
    yield "rgb", saved(picture, "BMP")
    yield "grey", saved(picture.convert("L"), "BMP")
    yield "bits", saved(picture.convert("1"), "BMP")
    yield "palette", saved(picture.quantize(200), "BMP")
    yield "rgba", saved(transparent(), "BMP")
    whole = saved(picture, "BMP")
    yield "cut", whole[: len(whole) // 2]


def main(folder):
    for format, cases in [("png", pngs), ("gif", gifs), ("webp", webps), ("tiff", tiffs), ("bmp", bmps)]:
        for name, file in cases():
            name = f"{name}.{format}"
            write(folder / name, name, file)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
