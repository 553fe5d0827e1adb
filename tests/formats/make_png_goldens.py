# Makes png_goldens.json: PNG files of every colour type and depth, written here from the specification (W3C PNG), with
# the 8-bit pixels they must give. Needs only Python; run: python3 make_png_goldens.py > png_goldens.json
import base64, json, struct, zlib

WIDTH, HEIGHT = 11, 9
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
PALETTE = [(i * 16, 255 - i * 16, i * i % 256) for i in range(16)]

def sample(x, y, channel, depth):
    return (x * 7919 + y * 104729 + channel * 31337 + x * y * 17) % (2**depth)

def chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

def pack(samples, depth):
    if depth == 16:
        return b"".join(struct.pack(">H", s) for s in samples)
    bits = "".join(format(s, "0%db" % depth) for s in samples)
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i:i + 8], 2) for i in range(0, len(bits), 8))

def paeth(a, b, c):
    p = a + b - c
    return min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]

def rows(xs, ys, kind, depth):
    before, out = None, b""
    step = max(1, depth * CHANNELS[kind] // 8)
    for number, y in enumerate(ys):
        line = pack([sample(x, y, c, depth) for x in xs for c in range(CHANNELS[kind])], depth)
        up = before or bytes(len(line))
        method = number % 5  # every filter of the specification
        left = lambda i, row: row[i - step] if i >= step else 0
        guess = [
            lambda i: 0,
            lambda i: left(i, line),
            lambda i: up[i],
            lambda i: (left(i, line) + up[i]) // 2,
            lambda i: paeth(left(i, line), up[i], left(i, up)),
        ][method]
        out += bytes([method]) + bytes((line[i] - guess(i)) % 256 for i in range(len(line)))
        before = line
    return out

def png(kind, depth, interlaced):
    if interlaced:
        data = b""
        for x0, y0, dx, dy in PASSES:
            xs, ys = range(x0, WIDTH, dx), range(y0, HEIGHT, dy)
            if len(xs) > 0:
                data += rows(xs, ys, kind, depth)
    else:
        data = rows(range(WIDTH), range(HEIGHT), kind, depth)
    file = b"\x89PNG\r\n\x1a\n"
    file += chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, kind, 0, 0, interlaced))
    file += chunk(b"tEXt", b"Comment\0skipped")
    if kind == 3:
        file += chunk(b"PLTE", bytes(v for colour in PALETTE[:2**depth] for v in colour))
        file += chunk(b"tRNS", b"\x80")
    packed = zlib.compress(data)
    file += chunk(b"IDAT", packed[:20]) + chunk(b"IDAT", packed[20:]) + chunk(b"IEND", b"")
    return file

def pixels(kind, depth):
    out = []
    for y in range(HEIGHT):
        for x in range(WIDTH):
            if kind == 3:
                out += PALETTE[sample(x, y, 0, depth)]
            else:
                channels = 3 if kind in (2, 6) else 1
                out += [int(sample(x, y, c, depth) * 255 / (2**depth - 1) + 0.5) for c in range(channels)]
    return out

goldens = {}
for kind, depths in {0: [1, 2, 4, 8, 16], 2: [8, 16], 3: [1, 2, 4], 4: [8, 16], 6: [8, 16]}.items():
    for depth in depths:
        for interlaced in [0, 1]:
            goldens["colour %d, %d bits%s" % (kind, depth, ", interlaced" * interlaced)] = {
                "file": base64.b64encode(png(kind, depth, interlaced)).decode(),
                "shape": [HEIGHT, WIDTH, 3 if kind in (2, 3, 6) else 1],
                "pixels": pixels(kind, depth),
            }
print(json.dumps(goldens))
