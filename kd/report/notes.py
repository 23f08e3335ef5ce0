"""Reads Markdown, text and Word files as plain blocks for kd/report/pdf.py; no text in a block is markup.

read(path) returns heading, paragraph, bullet, code and table blocks and, from Word, figure and note blocks. Markdown
keeps headings, lists, code, tables and quotations; emphasis marks are removed, and a link becomes its text and its
address. The files come from unknown sources: a file that is too large or damaged is one error; what refers to
something outside the file is left out.

Word files are read here and not by python-docx: it passes over the text of content controls, tracked insertions and
formulas, loads every part whatever its unpacked size, accepts a document type, and fails on a missing picture and on
elements nested deeper than 256.
"""

import io
import posixpath
import re
import warnings
import zipfile
from pathlib import Path
from xml.etree import ElementTree

from kd.errors import UserError, need
from kd.files import check_archive, open_regular, read_bytes, reading_errors

# Limits, far above what a person writes: some parsers need time as the square of a text's length.
LARGEST = 2 ** 17  # bytes of a text file
LINE = 10 ** 4  # characters of a line of it
BLOCKS = 2000
CELLS = 20_000  # of a table
WORD = 2 ** 28  # bytes of a Word file
UNPACKED = 2 ** 23  # bytes of one XML part of a Word file, unpacked
PICTURE = 2 ** 24  # bytes of a picture in it
PICTURES = 50  # pictures that are read from one Word file
PIXELS = 10 ** 8  # pixels of all of them
SIDE = 1200  # pixels of the longer side, to which a picture is reduced


def read(path):
    """Blocks of a .md, .txt or .docx file. Raises UserError for a file that cannot be read."""
    path = Path(path)
    reader = {".md": _text, ".txt": _text, ".docx": _word}.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path} is not read as notes", "Notes are .md, .txt or .docx files.")
    with reading_errors(path):
        blocks = reader(path)
        texts = sum(len(block.get("text", "")) for block in blocks)
        if len(blocks) > BLOCKS or texts > LARGEST:
            raise ValueError(f"it has {len(blocks):,} headings, paragraphs and others of {texts:,} characters, and at "
                             f"most {BLOCKS:,} of {LARGEST:,} are read")
        return blocks


def _text(path):
    text = read_bytes(path, LARGEST).decode("utf-8-sig")
    longest = max(map(len, text.split("\n")))
    if longest > LINE:
        raise ValueError(f"it has a line of {longest:,} characters, and at most {LINE:,} are read")
    return (markdown if path.suffix.lower() == ".md" else plain)(text)


def plain(text):
    """Blocks of a text: each part between empty lines is a paragraph, or code if blanks or tabs align its columns."""
    blocks = []
    for part in re.split(r"\n[ \t]*(?:\n[ \t]*)+", text.replace("\r\n", "\n").strip("\n")):
        aligned = "\n" in part and ("\t" in part or re.search(r"\S   *\S|^ {4}", part, re.MULTILINE))
        if aligned and part.strip():
            blocks.append({"kind": "code", "text": part})
        elif part.strip():
            blocks.append({"kind": "paragraph", "text": " ".join(part.split())})
    return blocks


# ---- Markdown


def markdown(text):
    """Blocks of a Markdown text (CommonMark with tables). Raises UserError without markdown-it-py."""
    parser = need("markdown_it", "report").MarkdownIt("commonmark").enable("table")
    blocks, depth, at_bullet, level, rows = [], 0, False, None, None
    for token in parser.parse(text):
        kind = token.type
        if kind in ("bullet_list_open", "ordered_list_open", "bullet_list_close", "ordered_list_close"):
            depth += token.nesting
        elif kind == "list_item_open":
            at_bullet = True  # only the first paragraph of an item is a bullet
        elif kind == "heading_open":
            level = min(3, int(token.tag[1]))
        elif kind == "table_open":
            rows = []
        elif kind == "tr_open":
            rows.append([])
        elif kind == "table_close":
            blocks.append(_table(rows))
            rows = None
        elif kind in ("fence", "code_block"):
            blocks.append({"kind": "code", "text": token.content.rstrip("\n")})
        elif kind in ("inline", "html_block"):
            words = _inline_text(token) if kind == "inline" else " ".join(token.content.split())
            if rows is not None:
                rows[-1].append(words)
            elif level:
                blocks.append({"kind": "heading", "text": words, "level": level})
                level = None
            elif depth and at_bullet:
                blocks.append({"kind": "bullet", "text": words, "level": min(6, depth)})
                at_bullet = False
            else:
                blocks.append({"kind": "paragraph", "text": words})
    return blocks


def _inline_text(inline):
    """The text of an inline token: a link is its text and its address, an image its text in brackets."""
    parts, links = [], []
    for token in inline.children:
        if token.type == "link_open":
            links.append((token.attrs.get("href", ""), len(parts)))
        elif token.type == "link_close":
            address, start = links.pop()
            if "".join(parts[start:]) != address:
                parts.append(f" ({address})")
        elif token.type in ("softbreak", "hardbreak"):
            parts.append(" ")
        else:  # text, code and HTML, unchanged
            parts.append(f"[{token.content}]" if token.type == "image" else token.content)
    return " ".join("".join(parts).split())


def _table(rows):
    """A table block. The first row gives the headings; short rows are filled with empty cells."""
    width = max(map(len, rows))
    if width * len(rows) > CELLS:
        raise ValueError(f"it has a table of {len(rows):,} rows and {width:,} columns, and at most {CELLS:,} cells "
                         "are read")
    columns, *rows = [row + [""] * (width - len(row)) for row in rows]
    return {"kind": "table", "columns": columns, "rows": rows}


# ---- Word

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_R = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
_PACKAGE = "{http://schemas.openxmlformats.org/package/2006/relationships}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"  # repeats its neighbour
_PICTURE = "{http://schemas.openxmlformats.org/drawingml/2006/main}blip"
_PICTURE_NAME = "{http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing}docPr"
_MATH = "{http://schemas.openxmlformats.org/officeDocument/2006/math}t"
_TEXT = {f"{_W}t", f"{_W}tab", f"{_W}br", f"{_W}cr", _MATH}


class _NoDoctype(ElementTree.TreeBuilder):
    def doctype(self, *_):
        raise ValueError("its XML declares a document type, which Word never does")


def _word(path):
    """Blocks of a Word file, in the order of its text."""
    with open_regular(path, WORD) as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is no .docx file, or not a whole one")
        archive = check_archive(file, path, WORD)
        body = _part(archive, "word/document.xml").find(f"{_W}body")
        names, styles, targets = set(archive.namelist()), {}, {}
        if "word/styles.xml" in names:
            for style in _part(archive, "word/styles.xml").iter(f"{_W}style"):
                name = style.find(f"{_W}name")
                styles[style.get(f"{_W}styleId")] = "" if name is None else name.get(f"{_W}val", "").lower()
        if "word/_rels/document.xml.rels" in names:
            for link in _part(archive, "word/_rels/document.xml.rels").iter(f"{_PACKAGE}Relationship"):
                if link.get("TargetMode") != "External":
                    targets[link.get("Id")] = posixpath.normpath(posixpath.join("word", link.get("Target", "")))
        blocks, pictures, pixels = [], 0, PIXELS
        for element in _walk(body if body is not None else (), {f"{_W}p", f"{_W}tbl"}):
            if element.tag == f"{_W}tbl":
                rows = [_row_texts(row) for row in _walk(element, {f"{_W}tr"})]
                if any(rows):
                    blocks.append(_table([row for row in rows if row]))
                continue
            blocks += _paragraph(element, styles)
            for target, caption in _pictures(element):
                pictures += 1
                if pictures <= PICTURES:
                    block, size = _figure(archive, targets.get(target), names, caption, pixels)
                    blocks.append(block)
                    pixels -= size
        if pictures > PICTURES:
            blocks.append({"kind": "note", "text": f"[{pictures - PICTURES} further pictures]"})
        return blocks


def _part(archive, name):
    """The root element of an XML part."""
    try:
        return ElementTree.fromstring(_unpacked(archive, name, UNPACKED), ElementTree.XMLParser(target=_NoDoctype()))
    except KeyError:
        raise ValueError(f"there is no {name} in it") from None


def _unpacked(archive, name, limit):
    """The bytes of a part. The size in a zip's directory can be false, so the unpacked bytes are counted."""
    with archive.open(name) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{name} in it unpacks to more than {limit >> 20} MiB")
    return data


def _walk(element, tags):
    """The outermost elements below `element` that have one of `tags`, in order."""
    stack = list(element)[::-1]  # no recursion: a file may nest its elements deeper than Python's stack
    while stack:
        child = stack.pop()
        if child.tag in tags:
            yield child
        elif child.tag != _FALLBACK:
            stack += list(child)[::-1]


def _line(element):
    """The text of an element on one line, without deleted text."""
    parts = [child.text or "" if child.tag.endswith("}t") else " " for child in _walk(element, _TEXT)]
    return " ".join("".join(parts).split())


def _paragraph(element, styles):
    """[heading, bullet or paragraph block], or [] of a paragraph without text. styles: {id: name in small letters}."""
    text = _line(element)
    if not text:
        return []
    style, level = "", 0
    properties = element.find(f"{_W}pPr")
    if properties is not None:
        style_id, list_level = properties.find(f"{_W}pStyle"), properties.find(f"{_W}numPr/{_W}ilvl")
        if style_id is not None:
            style = styles.get(style_id.get(f"{_W}val"), "")
        if properties.find(f"{_W}numPr") is not None:
            level = 1 if list_level is None else 1 + int(list_level.get(f"{_W}val"))
    heading = re.fullmatch(r"heading (\d)", style)
    if heading or style == "title":
        return [{"kind": "heading", "text": text, "level": min(3, int(heading[1])) if heading else 1}]
    list_style = re.fullmatch(r"list (?:bullet|number)(?: (\d))?", style)
    if level or list_style:
        return [{"kind": "bullet", "text": text, "level": min(6, level or int(list_style[1] or 1))}]
    return [{"kind": "paragraph", "text": text}]


def _row_texts(row):
    """The texts of a row's cells; a cell that spans several columns is followed by empty ones."""
    texts = []
    for cell in row.findall(f"{_W}tc"):
        span = cell.find(f"{_W}tcPr/{_W}gridSpan")
        columns = int(span.get(f"{_W}val", 1)) if span is not None else 1
        lines = [_line(paragraph) for paragraph in _walk(cell, {f"{_W}p"})]
        texts += [" ".join(filter(None, lines)), *[""] * min(columns - 1, 50)]
    return texts


def _pictures(element):
    """(relationship, caption) of each picture of a paragraph."""
    caption = ""
    for child in _walk(element, {_PICTURE_NAME, _PICTURE}):
        if child.tag == _PICTURE_NAME:
            caption = child.get("descr", "")
        else:
            yield child.get(f"{_R}embed"), caption


def _figure(archive, name, names, caption, largest):
    """(a figure block, or a note where the picture cannot be shown; the number of its pixels).

    Only its pixels are passed on: as a new PNG. largest: how many there may be.
    """
    from PIL import Image
    pixels = 0
    try:
        if name not in names:
            raise ValueError
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            data = io.BytesIO(_unpacked(archive, name, PICTURE))
            picture = Image.open(data, formats=("PNG", "JPEG", "GIF", "BMP", "TIFF"))
            pixels = picture.width * picture.height
            if pixels > largest:
                raise ValueError
            picture.thumbnail((SIDE, SIDE))
            transparent = "A" in picture.getbands() or "transparency" in picture.info
            file = io.BytesIO()
            picture.convert("RGBA" if transparent else "RGB").save(file, "PNG")
    except Exception:  # decoders raise anything; the text around a broken picture is still read
        text = f"[a picture that cannot be shown{caption and ': '}{caption}]"
        return {"kind": "note", "text": text}, min(pixels, largest)
    return {"kind": "figure", "png": file.getvalue(), "caption": caption}, pixels
