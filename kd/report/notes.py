"""Notes from Markdown, text and Word files, as the plain blocks of kd/report/pdf.py: text in which nothing is markup any more.

read(path) gives heading, paragraph, bullet, code, table and, from Word, figure and note blocks. Of Markdown: headings, lists,
code, tables and quotations; emphasis is taken off, a link is its words and its address. Files
are strangers': what is too large, damaged or refers to anything outside itself is one error or is left out.
"""

import io
import posixpath
import re
import warnings
import zipfile
from pathlib import Path
from xml.etree import ElementTree

from kd.errors import UserError, need

LARGEST = 2 ** 22  # bytes of a text
UNPACKED = 2 ** 24  # bytes of a part of a Word file, unpacked
PICTURES = 50  # of a Word file
PIXELS = 5 * 10 ** 7  # of a picture
SIDE = 1200  # pixels that a picture keeps of its longer side


def read(path):
    """The blocks of a .md, .txt or .docx file. Raises UserError where it cannot be read."""
    path = Path(path)
    reader = {".md": _text, ".txt": _text, ".docx": _word}.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path} is not read as notes", "Notes are .md, .txt or .docx files.")
    try:
        return reader(path)
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {path}: it is not text in UTF-8", "Save it again in UTF-8.") from error
    except Exception as error:  # parsers of foreign files raise anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"cannot read {path}: {' '.join(reason.split())[:300]}") from error


def _text(path):
    with open(path, "rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"it has more than {LARGEST >> 20} MiB")
    return (markdown if path.suffix.lower() == ".md" else plain)(data.decode("utf-8-sig"))


def plain(text):
    """Blocks of a text: what stands between empty lines is a paragraph, or code where it is aligned with blanks."""
    blocks = []
    for part in re.split(r"\n[ \t]*(?:\n[ \t]*)+", text.replace("\r\n", "\n").strip("\n")):
        aligned = "\n" in part and ("\t" in part or re.search(r"\S   *\S|^ {4}", part, re.MULTILINE))
        if part.strip():
            blocks.append({"kind": "code", "text": part} if aligned else {"kind": "paragraph", "text": " ".join(part.split())})
    return blocks


# ---- Markdown


def markdown(text):
    """Blocks of a Markdown text (CommonMark, and tables). Raises UserError without markdown-it-py."""
    parser = need("markdown_it", "report").MarkdownIt("commonmark").enable("table")
    blocks, depth, first, heading, rows = [], 0, False, None, None
    for token in parser.parse(text):
        kind = token.type
        if kind in ("bullet_list_open", "ordered_list_open", "bullet_list_close", "ordered_list_close"):
            depth += token.nesting
        elif kind == "list_item_open":
            first = True  # a further paragraph of the item is a paragraph
        elif kind == "heading_open":
            heading = min(3, int(token.tag[1]))
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
            words = _words_of(token) if kind == "inline" else " ".join(token.content.split())
            if rows is not None:
                rows[-1].append(words)
            elif heading:
                blocks.append({"kind": "heading", "text": words, "level": heading})
                heading = None
            elif depth and first:
                blocks.append({"kind": "bullet", "text": words, "level": min(6, depth)})
                first = False
            else:
                blocks.append({"kind": "paragraph", "text": words})
    return blocks


def _words_of(inline):
    """The text of an inline token: emphasis is taken off, a link is its words and its address, an image its words."""
    parts, links = [], []
    for token in inline.children:
        if token.type == "link_open":
            links.append((token.attrs.get("href", ""), len(parts)))
        elif token.type == "link_close":
            address, start = links.pop()
            parts += [f" ({address})"] if "".join(parts[start:]) != address else []
        elif token.type in ("softbreak", "hardbreak"):
            parts.append(" ")
        else:  # text, code and HTML as they are
            parts.append(f"[{token.content}]" if token.type == "image" else token.content)
    return " ".join("".join(parts).split())


def _table(rows):
    """The first row is the head; short rows are filled up."""
    wide = max(map(len, rows))
    head, *rows = [row + [""] * (wide - len(row)) for row in rows]
    return {"kind": "table", "columns": head, "rows": rows}


# ---- Word

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_R = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
_PACKAGE = "{http://schemas.openxmlformats.org/package/2006/relationships}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"  # says again what stands beside it
_PICTURE = "{http://schemas.openxmlformats.org/drawingml/2006/main}blip"
_NAMED = "{http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing}docPr"


class _NoDoctype(ElementTree.TreeBuilder):
    def doctype(self, *_):
        raise ValueError("its XML declares a document type, which Word never does")


def _word(path):
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is no .docx file, or not a whole one")
    with zipfile.ZipFile(path) as archive:
        body = _part(archive, "word/document.xml").find(f"{_W}body")
        names = set(archive.namelist())
        styles, pictures = {}, {}
        if "word/styles.xml" in names:
            for style in _part(archive, "word/styles.xml").iter(f"{_W}style"):
                name = style.find(f"{_W}name")
                styles[style.get(f"{_W}styleId")] = "" if name is None else name.get(f"{_W}val", "").lower()
        if "word/_rels/document.xml.rels" in names:
            pictures = {link.get("Id"): posixpath.normpath(posixpath.join("word", link.get("Target", "")))
                        for link in _part(archive, "word/_rels/document.xml.rels").iter(f"{_PACKAGE}Relationship")
                        if link.get("TargetMode") != "External"}
        blocks, shown = [], 0
        for element in _walk(body if body is not None else (), {f"{_W}p", f"{_W}tbl"}):
            if element.tag == f"{_W}tbl":
                rows = [_word_cells(row) for row in element.iter(f"{_W}tr")]
                if any(rows):
                    blocks.append(_table([row for row in rows if row]))
            else:
                blocks += _paragraph(element, styles)
                for name, words in _shown(element):
                    shown += 1
                    blocks += _figure(archive, pictures.get(name), names, words) if shown <= PICTURES else []
        return blocks + [{"kind": "note", "text": f"[{shown - PICTURES} further pictures]"}] * (shown > PICTURES)


def _part(archive, name):
    """The root of an XML part. Sizes in a zip's directory can lie: what is unpacked is counted."""
    try:
        return ElementTree.fromstring(_unpacked(archive, name), ElementTree.XMLParser(target=_NoDoctype()))
    except KeyError:
        raise ValueError(f"there is no {name} in it") from None


def _unpacked(archive, name):
    with archive.open(name) as file:
        data = file.read(UNPACKED + 1)
    if len(data) > UNPACKED:
        raise ValueError(f"{name} in it unpacks to more than {UNPACKED >> 20} MiB")
    return data


def _walk(element, tags):
    """The outermost elements below `element` that have one of `tags`, in order, however deep they are."""
    stack = list(element)[::-1]
    while stack:
        child = stack.pop()
        if child.tag in tags:
            yield child
        elif child.tag != _FALLBACK:
            stack += list(child)[::-1]


def _words(element):
    """The text of an element on one line; deleted text is none."""
    parts = [child.text or "" if child.tag.endswith("}t") else " "
             for child in _walk(element, {f"{_W}t", f"{_W}tab", f"{_W}br", f"{_W}cr", _MATH})]
    return " ".join("".join(parts).split())


_MATH = "{http://schemas.openxmlformats.org/officeDocument/2006/math}t"


def _paragraph(element, styles):
    text = _words(element)
    properties = element.find(f"{_W}pPr")
    style, level = "", None
    if properties is not None:
        named, depth = properties.find(f"{_W}pStyle"), properties.find(f"{_W}numPr/{_W}ilvl")
        style = "" if named is None else styles.get(named.get(f"{_W}val"), "")
        if properties.find(f"{_W}numPr") is not None:
            level = 1 + int(depth.get(f"{_W}val")) if depth is not None else 1
    if not text:
        return []
    heading = re.fullmatch(r"heading (\d)", style)
    if heading or style == "title":
        return [{"kind": "heading", "text": text, "level": min(3, int(heading[1])) if heading else 1}]
    listed = re.fullmatch(r"list (?:bullet|number)(?: (\d))?", style)
    if level or listed:
        return [{"kind": "bullet", "text": text, "level": min(6, level or int(listed[1] or 1))}]
    return [{"kind": "paragraph", "text": text}]


def _word_cells(row):
    """The texts of a row, with empty cells where one spans several columns."""
    cells = []
    for cell in row.findall(f"{_W}tc"):
        span = cell.find(f"{_W}tcPr/{_W}gridSpan")
        more = int(span.get(f"{_W}val", 1)) - 1 if span is not None else 0
        cells += [" ".join(filter(None, map(_words, cell.iter(f"{_W}p")))), *[""] * min(more, 50)]
    return cells


def _shown(element):
    """(relationship, words about it) of each picture of a paragraph."""
    words = ""
    for child in _walk(element, {_NAMED, _PICTURE}):
        if child.tag == _NAMED:
            words = child.get("descr", "")
        else:
            yield child.get(f"{_R}embed"), words


def _figure(archive, name, names, words):
    """The picture drawn again as PNG, so that nothing of the file but its pixels is passed on."""
    from PIL import Image
    try:
        if name not in names:
            raise ValueError
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(_unpacked(archive, name)), formats=("PNG", "JPEG", "GIF", "BMP", "TIFF"))
            if picture.width * picture.height > PIXELS:
                raise ValueError
            picture.thumbnail((SIDE, SIDE))
            file = io.BytesIO()
            picture.convert("RGBA" if "A" in picture.getbands() or "transparency" in picture.info else "RGB").save(file, "PNG")
    except Exception:  # decoders raise anything; the words around a broken picture are still wanted
        return [{"kind": "note", "text": f"[a picture that cannot be shown: {words}]" if words else "[a picture that cannot be shown]"}]
    return [{"kind": "figure", "png": file.getvalue(), "caption": words}]
