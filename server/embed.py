"""Writes a file's bytes as a C array: embed.py INPUT OUTPUT SYMBOL (run by the build)."""
import sys

source, target, symbol = sys.argv[1:4]
data = open(source, "rb").read()
with open(target, "w", encoding="ascii") as out:
    out.write(f'#include "server/openapi.h"\n\nconst unsigned char {symbol}[] = {{\n')
    for start in range(0, len(data), 24):
        out.write(",".join(str(byte) for byte in data[start:start + 24]) + ",\n")
    out.write(f"}};\nconst size_t {symbol}_length = sizeof({symbol});\n")
