"""Builds everything from the records: figures, tables, both PDFs, the README's table and picture.

    python -m report.build            # seconds; needs typst and matplotlib: pip install .[report]
    python -m report.build --pages D  # also every page as D/Report_1-1.png, to look at

`build.json` holds the hashes of all inputs and outputs, by which a test finds what is older than the records.
"""

import argparse
import datetime
import hashlib
import json
import os
import re
import shutil
import sys
from pathlib import Path

from report import records

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
REPORTS = {1: ROOT / "Miniproject_1" / "Report_1.pdf", 2: ROOT / "Miniproject_2" / "Report_2.pdf"}  # where graders look
MARKERS = "<!-- results -->", "<!-- /results -->"
MOST_PAGES = 3  # of text; references may follow


def sources():
    """All that the build reads, without what only measures."""
    code = [HERE / name for name in ("build.py", "figures.py", "records.py", "style.typ", "references.yml")]
    return sorted([*code, *HERE.glob("Report_*.typ"), *(path for path in records.RESULTS.rglob("*") if path.is_file())])


def digest(path):
    """Hash of the content; for text, the same with any line endings."""
    content = path.read_bytes()
    if path.suffix not in (".png", ".pdf"):
        content = content.replace(b"\r\n", b"\n")
    return hashlib.sha256(content).hexdigest()


def digests(paths):
    return {path.relative_to(ROOT).as_posix(): digest(path) for path in paths}


def pages_of(pdf):
    """Number of pages of a PDF whose page objects are not compressed, as Typst writes them."""
    return len(re.findall(rb"/Type\s*/Page\b", pdf))


ALLOWED_WORDS = "Noise2Noise", "CBM3D", "TransposeConv2d", "Conv2d", "CBSD68", "bfloat16"
ALLOWED_IN_FORMULAE = {"0", "0.5", "1", "2", "3", "4", "5", "10", "32"}  # exponents, kernels and the size of the images


def typed_numbers(source):
    """Numbers in a Typst source's text that are not from the records; also placeholders and semicolons that vanish."""
    text = re.sub(r"//.*", "", source)
    text = re.sub(r'\b(n|rows|picture|sheet|bibliography)\("[^"]*"\)?', "", text)  # names, not shown
    text = re.sub(r"#import.*|`[^`]*`|@[\w-]+|<[\w-]+>|\b[\d.]+fr\b", "", text)
    for word in ALLOWED_WORDS:
        text = text.replace(word, "")
    formulae = re.findall(r"\$([^$]*)\$", text)
    typed = [
        number for f in formulae for number in re.findall(r"\d+(?:\.\d+)?", f) if number not in ALLOWED_IN_FORMULAE
    ]
    text = re.sub(r"\$[^$]*\$", "", text)
    typed += re.findall(r"\d[\d.,]*", text)
    typed += re.findall(r'\bn\("[^"]*"\);', source)  # the semicolon would end the expression and vanish: \;
    return typed + re.findall(r"\?\?|\bxx\b|(?i:\bto ?do\b|\btbd\b)", text)


def write(path, content):
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def with_table(text, table):
    """The README's text with the table between its two markers."""
    begin, end = (text.find(marker) for marker in MARKERS)
    if not 0 <= begin < end:
        raise ValueError(f"README.md needs the lines {' and '.join(MARKERS)}, in this order, around the table")
    return f"{text[: begin + len(MARKERS[0])]}\n{table}\n{text[end:]}"


def newest_record():
    """Noon of the newest record's day: the PDFs' date, so equal records make equal files."""
    lines = [row for path in records.RESULTS.glob("*.jsonl") for row in records.read_lines(path)]
    day = datetime.date.fromisoformat(max(row["recorded"] for row in lines if "recorded" in row))
    return int(datetime.datetime(day.year, day.month, day.day, 12, tzinfo=datetime.timezone.utc).timestamp())


def typeset(number, pages=None):
    """One PDF and its copy; returns what `build.json` says of it."""
    import typst

    source, pdf = HERE / f"Report_{number}.typ", HERE / f"Report_{number}.pdf"
    if typed := typed_numbers(source.read_text(encoding="utf-8")):
        raise ValueError(f"{source.name} may show only numbers from the records; got {', '.join(typed)}: use n(name)")
    given = {"records": json.dumps({"facts": records.facts(number), "tables": records.tables(number)})}
    options = {"root": str(HERE), "sys_inputs": given, "ignore_system_fonts": True}
    content, warnings = typst.compile_with_warnings(str(source), timestamp=newest_record(), **options)
    write(pdf, content)
    shutil.copyfile(pdf, REPORTS[number])
    last = typst.query(str(source), "<end-of-text>", field="value", one=True, **options)
    if pages:
        pages.mkdir(parents=True, exist_ok=True)
        typst.compile(str(source), str(pages / f"Report_{number}-{{p}}.png"), format="png", ppi=110, **options)
    return {
        "pages": pages_of(content),
        "text_pages": json.loads(last),
        "warnings": [str(getattr(warning, "message", warning)) for warning in warnings],
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description="Builds figures, tables, PDFs and the README's results from the records."
    )
    parser.add_argument("--pages", type=Path, help="also write every page as an image into this folder")
    options = parser.parse_args(arguments)
    try:
        import matplotlib  # noqa: F401
        import typst  # noqa: F401
    except ImportError as error:
        parser.exit(1, f"build.py: the reports need typst and matplotlib: pip install .[report] ({error})\n")
    from report import figures

    drawn = figures.draw_all(HERE / "figures")
    reports = {f"Report_{number}.pdf": typeset(number, options.pages) for number in REPORTS}
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    write(readme, with_table(text, records.readme_table()).encode())
    pdfs = [path for number, copy in REPORTS.items() for path in (HERE / f"Report_{number}.pdf", copy)]
    state = {"inputs": digests(sources()), "outputs": digests([*drawn, *pdfs]), "reports": reports}
    write(HERE / "build.json", (json.dumps(state, indent=1) + "\n").encode())
    for name, entry in reports.items():
        print(f"{name}: {entry['pages']} pages, text on {entry['text_pages']}", *entry["warnings"], sep="\n  ")
    too_long = [name for name, entry in reports.items() if entry["text_pages"] > MOST_PAGES]
    if too_long:
        sys.exit(f"the text may fill {MOST_PAGES} pages: shorten {' and '.join(too_long)}")


if __name__ == "__main__":
    main()
