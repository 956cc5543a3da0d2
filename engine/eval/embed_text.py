"""Writes a text file as a C string: embed_text.py INPUT OUTPUT SYMBOL (run by the build)."""
import sys

source, target, symbol = sys.argv[1:4]
data = open(source, "rb").read()
with open(target, "w", encoding="ascii") as out:
    out.write(f"static const char {symbol}[] = {{\n")
    for start in range(0, len(data), 24):
        out.write(",".join(str(byte) for byte in data[start:start + 24]) + ",\n")
    out.write("0};\n")
