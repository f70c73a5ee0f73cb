"""Writes JPEG files, whole and damaged, and what Pillow makes of each of them.

usage: python jpegs.py FOLDER

Writes FOLDER/NAME.jpg for each case, and FOLDER/NAME.rgb with the pixels of Image.open(f).convert("RGB") unless Pillow
refuses the file. Prints a line "NAME WIDTH HEIGHT" or "NAME refused: REASON" for each case.
"""

import io
import math
import pathlib
import random
import sys

from PIL import Image, ImageDraw


def photograph(width, height, mode="RGB"):
    """Gradients, texture, hard edges and saturated colors, like those of a photograph."""
    rng = random.Random(3)
    picture = Image.new("RGB", (width, height))
    for y in range(height):
        for x in range(width):
            wave = 40 * math.sin(x / 7) * math.cos(y / 11)
            noise = rng.gauss(0, 6)
            levels = (90 + wave + 80 * x / width, 120 - wave + 60 * y / height, 140 + wave / 2 - 70 * x * y / width / height)
            picture.putpixel((x, y), tuple(max(0, min(255, round(level + noise))) for level in levels))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((width // 6, height // 5, width // 2, height // 2), fill=(220, 30, 40))
    draw.rectangle((width // 2, height // 2, width * 5 // 6, height * 4 // 5), fill=(20, 60, 200))
    draw.line((0, height, width, 0), fill=(250, 250, 240), width=2)
    return picture.convert(mode)


def encoded(picture, **options):
    file = io.BytesIO()
    picture.save(file, "JPEG", **{"quality": 90, **options})
    return file.getvalue()


def segments(jpeg):
    """Yields the position and the marker of each segment before the compressed data of the first scan."""
    at = 2
    while jpeg[at + 1] != 0xDA:
        yield at, jpeg[at + 1]
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    yield at, 0xDA


def start_of(jpeg, *markers):
    return next(at for at, marker in segments(jpeg) if marker in markers)


def inserted(jpeg, at, data):
    return jpeg[:at] + data + jpeg[at:]


def segment(marker, data):
    return bytes([0xFF, marker]) + (len(data) + 2).to_bytes(2, "big") + data


def whole_files():
    square = photograph(96, 96)
    odd = photograph(75, 61)
    yield "420", encoded(square, subsampling="4:2:0")
    yield "422", encoded(square, subsampling="4:2:2")
    yield "444", encoded(square, subsampling="4:4:4")
    yield "411", encoded(square, subsampling="4:1:1")
    yield "odd-420", encoded(odd, subsampling="4:2:0")
    yield "odd-422", encoded(odd, subsampling="4:2:2")
    yield "odd-411", encoded(odd, subsampling="4:1:1")
    yield "tiny-420", encoded(photograph(1, 1), subsampling="4:2:0")
    yield "narrow-420", encoded(photograph(3, 40), subsampling="4:2:0")
    yield "rgb", encoded(square, keep_rgb=True)
    yield "grey", encoded(photograph(96, 96, "L"))
    yield "cmyk", encoded(photograph(64, 64, "CMYK"))
    yield "progressive", encoded(square, progressive=True)
    yield "progressive-420-odd", encoded(odd, progressive=True, subsampling="4:2:0")
    yield "progressive-grey", encoded(photograph(64, 64, "L"), progressive=True)
    yield "restarts", encoded(square, restart_marker_blocks=3)
    yield "restarts-progressive", encoded(square, restart_marker_blocks=3, progressive=True)
    yield "optimized", encoded(square, optimize=True)
    yield "low-quality", encoded(square, quality=5)
    yield "best-quality", encoded(square, quality=100, subsampling="4:4:4")
    yield "icc", encoded(square, icc_profile=b"a profile" * 9000)
    yield "comment", encoded(square, comment=b"a comment")
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "rotated", encoded(photograph(80, 48), exif=exif)


def with_adobe(jpeg, transform):
    """Replaces Pillow's Adobe segment, or adds one."""
    for at, marker in segments(jpeg):
        if marker == 0xEE:
            end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
            jpeg = jpeg[:at] + jpeg[end:]
            break
    data = b"Adobe" + bytes([0, 100, 0, 0, 0, 0, transform])
    return inserted(jpeg, 2, segment(0xEE, data))


def without(jpeg, *markers):
    for at, marker in reversed(list(segments(jpeg))):
        if marker in markers:
            end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
            jpeg = jpeg[:at] + jpeg[end:]
    return jpeg


def changed(jpeg, at, value):
    return jpeg[:at] + bytes([value]) + jpeg[at + 1 :]


def odd_headers(name, jpeg):
    sof = start_of(jpeg, 0xC0, 0xC2)
    sos = start_of(jpeg, 0xDA)
    for transform in range(4):
        yield f"{name}-adobe-{transform}", with_adobe(jpeg, transform)
    yield f"{name}-no-app", without(jpeg, 0xE0, 0xEE)
    yield f"{name}-no-tables", without(jpeg, 0xC4)
    yield f"{name}-no-quantization", without(jpeg, 0xDB)
    yield f"{name}-no-frame", without(jpeg, 0xC0, 0xC2)
    yield f"{name}-many-app", inserted(jpeg, 2, b"".join(segment(0xE0 + n, b"x" * 100 * n) for n in range(1, 16)))
    yield f"{name}-app-full", inserted(jpeg, 2, segment(0xE5, b"\xff\xd9" * 32766))
    yield f"{name}-app-too-long", inserted(jpeg, 2, b"\xff\xe5\xff\xff" + b"short")
    for length in [0, 1, 2, 3]:
        yield f"{name}-app-length-{length}", inserted(jpeg, 2, b"\xff\xe5" + length.to_bytes(2, "big"))
        yield f"{name}-frame-length-{length}", jpeg[: sof + 2] + length.to_bytes(2, "big") + jpeg[sof + 4 :]
        yield f"{name}-scan-length-{length}", jpeg[: sos + 2] + length.to_bytes(2, "big") + jpeg[sos + 4 :]
    yield f"{name}-two-frames", inserted(jpeg, sos, jpeg[sof:][: 2 + int.from_bytes(jpeg[sof + 2 : sof + 4], "big")])
    yield f"{name}-12-bit", changed(jpeg, sof + 4, 12)
    yield f"{name}-height-0", jpeg[: sof + 5] + b"\0\0" + jpeg[sof + 7 :]
    yield f"{name}-width-0", jpeg[: sof + 7] + b"\0\0" + jpeg[sof + 9 :]
    yield f"{name}-taller", jpeg[: sof + 5] + b"\0\x80" + jpeg[sof + 7 :]
    yield f"{name}-shorter", jpeg[: sof + 5] + b"\0\x30" + jpeg[sof + 7 :]
    yield f"{name}-wider", jpeg[: sof + 7] + b"\0\x90" + jpeg[sof + 9 :]
    for count in [0, 2, 4, 5]:
        yield f"{name}-{count}-components", changed(jpeg, sof + 9, count)
    for factors in [0x00, 0x12, 0x21, 0x14, 0x33, 0x51, 0x44]:
        yield f"{name}-sampling-{factors:02x}", changed(jpeg, sof + 11, factors)
    for kind in [0xC1, 0xC3, 0xC5, 0xC9, 0xCA, 0xCB, 0xDE]:
        yield f"{name}-frame-{kind:02x}", changed(jpeg, sof + 1, kind)
    yield f"{name}-soi-twice", inserted(jpeg, 2, b"\xff\xd8")
    yield f"{name}-lines-0", inserted(jpeg, sos, segment(0xDC, b"\0\0"))
    yield f"{name}-lines", jpeg[:-2] + segment(0xDC, b"\0\x40") + jpeg[-2:]
    yield f"{name}-leading-byte", b"\0" + jpeg
    yield f"{name}-only-soi", jpeg[:2]


def junk(name, jpeg):
    sos = start_of(jpeg, 0xDA)
    for number, (at, _) in enumerate(segments(jpeg)):
        yield f"{name}-junk-{number}", inserted(jpeg, at, b"\x00\x11junk")
        yield f"{name}-padding-{number}", inserted(jpeg, at, b"\xff" * 5)
        yield f"{name}-escaped-{number}", inserted(jpeg, at, b"\xff\x00\xff\x00")
        yield f"{name}-restart-{number}", inserted(jpeg, at, b"\xff\xd3")
        yield f"{name}-zeros-{number}", inserted(jpeg, at, bytes(300))
    for marker in [0x02, 0xBF, 0xC8, 0xDF, 0xF0, 0xFD]:
        yield f"{name}-unknown-{marker:02x}", inserted(jpeg, sos, segment(marker, b"1234"))
    middle = (sos + len(jpeg)) // 2
    for label, data in [("zeros", bytes(20)), ("ones", b"\xff" * 20), ("text", b"some text"), ("restart", b"\xff\xd0"),
                        ("end", b"\xff\xd9"), ("start", b"\xff\xd8"), ("app", segment(0xE3, b"app")), ("comment", segment(0xFE, b"com"))]:
        yield f"{name}-inside-{label}", inserted(jpeg, middle, data)
        yield f"{name}-over-{label}", jpeg[:middle] + data + jpeg[middle + len(data) :]
        yield f"{name}-before-end-{label}", inserted(jpeg, len(jpeg) - 2, data)


def ends(name, jpeg):
    body = jpeg[:-2]
    yield f"{name}-no-end", body
    yield f"{name}-half-end", body + b"\xff"
    for count in [1, 2, 3, 100, 70000]:
        yield f"{name}-end-zeros-{count}", body + bytes(count)
        yield f"{name}-end-ones-{count}", body + b"\xff" * count
    yield f"{name}-end-text", body + b"no marker"
    yield f"{name}-end-restart", body + b"\xff\xd5"
    yield f"{name}-end-start", body + b"\xff\xd8"
    yield f"{name}-end-unknown", body + b"\xff\x05"
    yield f"{name}-trailing", jpeg + b"trailing bytes"
    yield f"{name}-trailing-zeros", jpeg + bytes(5000)
    yield f"{name}-twice", jpeg + jpeg
    yield f"{name}-no-end-twice", body + jpeg
    yield f"{name}-no-end-app", body + segment(0xE1, b"an application segment")
    yield f"{name}-no-end-app-cut", body + segment(0xE1, b"an application segment")[:-3]
    yield f"{name}-no-end-frame", body + segment(0xC0, b"\x08\0\x10\0\x10\x01\x01\x11\0")


def cuts(name, jpeg):
    sos = start_of(jpeg, 0xDA)
    lengths = {*range(0, sos, 23), *range(len(jpeg) - 14, len(jpeg))}
    lengths |= {sos + (len(jpeg) - sos) * n // 12 for n in range(12)}
    for length in sorted(lengths):
        yield f"{name}-cut-{length}", jpeg[:length]
        if length > sos:
            yield f"{name}-cut-{length}-end", jpeg[:length] + b"\xff\xd9"
            yield f"{name}-cut-{length}-zeros", jpeg[:length] + bytes(len(jpeg) - length)


def flips(name, jpeg, count):
    rng = random.Random(name)
    sos = start_of(jpeg, 0xDA)
    for number in range(count):
        at = rng.randrange(2, sos if number % 2 else len(jpeg))
        yield f"{name}-flip-{number}", changed(jpeg, at, jpeg[at] ^ (1 << rng.randrange(8)))


def cases():
    whole = dict(whole_files())
    yield from whole.items()
    for name in ["420", "progressive", "restarts", "restarts-progressive", "grey", "cmyk"]:
        jpeg = whole[name]
        yield from odd_headers(name, jpeg)
        yield from junk(name, jpeg)
        yield from ends(name, jpeg)
        yield from cuts(name, jpeg)
    for name in ["odd-420", "progressive-420-odd", "422", "411", "rgb", "progressive-grey", "icc"]:
        yield from ends(name, whole[name])
    for name, jpeg in whole.items():
        yield from flips(name, jpeg, 12)


def write(path, name, file):
    """Writes a file, and its pixels if Pillow can decode it. Prints the size or the refusal."""
    path.write_bytes(file)
    try:
        picture = Image.open(io.BytesIO(file)).convert("RGB")
    except Exception as error:  # Pillow raises many types
        print(f"{name} refused: {error}")
    else:
        (path.parent / f"{name}.rgb").write_bytes(picture.tobytes())
        print(name, *picture.size)


def main(folder):
    for name, jpeg in cases():
        write(folder / f"{name}.jpg", name, jpeg)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
