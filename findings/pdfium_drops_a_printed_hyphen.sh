#!/usr/bin/env bash
# pypdfium2 5.15.2 (PDFium 159.0.8149.0), fpdf2 2.8.9, pypdf 7.1.1, Python 3.11
#
# A hyphen that is printed at the end of a line, in a word that always has one, is not a hyphen in PDFium's text.
#
# "self-" ends a line and "attention" begins the next. PDFium takes every hyphen at a line's end for one that a
# typesetter put in: get_text_range gives U+FFFE in its place and drops the line break, get_text_bounded gives U+0002
# for the same character, and a search for "self-", which is on the page, finds nothing. pypdf reads the hyphen. So a
# check that looks for the words of a page in its PDF misses each compound that a line breaks, and which of the two
# marks has to be put back depends on the call.
#
# Output seen:
#   range    'self\ufffeattention and well-known words'
#   bounded  'self\x02attention and well-known words'
#   search   self-: None   self: (0, 4)   well-known: (19, 10)
#   pypdf    'self-\nattention and well-known words'
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install --quiet pypdfium2==5.15.2 fpdf2==2.8.9 pypdf==7.1.1
env/bin/python - <<'PY'
import io

import pypdf
import pypdfium2
from fpdf import FPDF

pdf = FPDF()
pdf.add_page()
pdf.set_font("helvetica", size=12)
for line in ("self-", "attention and well-known words"):
    pdf.cell(text=line, new_x="LMARGIN", new_y="NEXT")
page = bytes(pdf.output())

text = pypdfium2.PdfDocument(page)[0].get_textpage()
ranged, bounded = text.get_text_range(), text.get_text_bounded()
print(f"range    {ranged!r}\nbounded  {bounded!r}")
assert ranged == "self\ufffeattention and well-known words"
assert bounded == "self\x02attention and well-known words"
found = {words: text.search(words).get_next() for words in ("self-", "self", "well-known")}
print("search   " + "   ".join(f"{words}: {place}" for words, place in found.items()))
assert found["self-"] is None and found["self"] == (0, 4) and found["well-known"][1] == 10
other = pypdf.PdfReader(io.BytesIO(page)).pages[0].extract_text()
print(f"pypdf    {other!r}")
assert other == "self-\nattention and well-known words"
PY
