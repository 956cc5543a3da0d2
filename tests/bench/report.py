"""The table as text, Markdown and JSON, with what the machine is."""
import datetime
import importlib.metadata
import json
import os
import pathlib
import statistics
import subprocess

import prepare


def machine(program):
    cpu = {}
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        cpu.setdefault(key.strip(), value.strip())
    flags = cpu.get("flags", "").split()
    wide = [name for name in ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx512f", "avx2") if name in flags]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    commit = subprocess.run(["git", "-C", prepare.ROOT, "describe", "--always", "--dirty"], stdout=subprocess.PIPE, text=True).stdout.strip()
    return {"date": datetime.date.today().isoformat(), "cpu": cpu.get("model name", "?"),
            "model": f"family {cpu.get('cpu family')} model {cpu.get('model')}", "cores": len(os.sched_getaffinity(0)), "isa": wide,
            "memory_gib": round(pages / 2**30), "load": os.getloadavg()[0], "graftd": commit,
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "trl")}}


def spread(values, digits=2):
    return f"{min(values):.{digits}f}..{max(values):.{digits}f}"


def number(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def lines_of(rows, amx):
    for row in rows:
        middle = statistics.median(row.ratios)
        target = f"{'>=' if row.more else '<='} {row.target:g}"
        if not amx:
            target += " (with AMX)"
        verdict = "met" if row.met else "missed"
        yield [row.work, row.rival or "-", f"{number(statistics.median(row.ours))} {row.unit}",
               f"{number(statistics.median(row.theirs))} {row.unit}" if row.theirs else "-",
               f"{middle:.2f}", spread(row.ratios), f"{statistics.median(row.processors):.2f}" if row.processors else "-", target,
               verdict, ("WRONG: " if row.wrong else "") + (row.check or "-")]


HEAD = ["work", "rival", "ours", "theirs", "ratio", "spread", "by processor time", "target", "", "check"]


def markdown(head, lines):
    return "\n".join(["| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines]])


def plain(head, lines):
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in [head, *lines])


def describe(about, chosen):
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (f"{about['date']}, {about['cpu']} ({about['model']}; {', '.join(about['isa'])}), {chosen.threads} of {about['cores']} cores,"
            f" {about['memory_gib']} GiB, load {about['load']:.1f} at the start, {os.getloadavg()[0]:.1f} at the end; graftd {about['graftd']};"
            f" {versions}; {chosen.rounds} rounds by turns")


def write(chosen, about, rows, tables, end=False):
    """Writes what there is; at the end prints it, and says what went wrong."""
    amx = "amx_bf16" in about["isa"]
    chosen.out.mkdir(parents=True, exist_ok=True)
    table = list(lines_of(rows, amx))
    parts = [describe(about, chosen), ""] + ([markdown(HEAD, table)] if table else [])
    for title, head, lines in tables:
        parts += ["", title, "", markdown(head, lines)]
    (chosen.out / "results.md").write_text("\n".join(parts) + "\n")
    (chosen.out / "results.json").write_text(json.dumps({
        "machine": about, "threads": chosen.threads, "rounds": chosen.rounds,
        "rows": [{**vars(row), "ratio": statistics.median(row.ratios), "met": row.met, "required": amx} for row in rows],
        "curves": [{"title": title, "head": head, "lines": lines} for title, head, lines in tables]}, indent=1))
    if not end:
        return 0
    print(describe(about, chosen))
    if table:
        print(plain(HEAD, table))
    for title, head, lines in tables:
        print(f"\n{title}\n{plain(head, lines)}")
    print(f"written: {chosen.out}/results.md, results.json")
    return 1 if any(row.wrong or (amx and not row.met) for row in rows) else 0
