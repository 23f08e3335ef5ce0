"""Draws the SVG that matplotlib writes onto a page of a PDF, as vectors with text that can be found.

What matplotlib uses of SVG, and no more: groups, paths, uses, texts, images, clips; absolute path
commands; style as CSS declarations, with colours that may be CSS variables and their fallback.
"""

import base64
import io
import re
from xml.etree import ElementTree

_ARGUMENTS = {"M": 2, "L": 2, "Q": 4, "C": 6, "z": 0}
_START = {"fill": "#000000", "stroke": "none", "stroke-width": "1", "font-size": "12px"}
_OWN = {"opacity", "clip-path", "transform"}  # of an element, not of what stands in it


class Drawing:
    """width, height: in the SVG's units."""

    def __init__(self, svg):
        self.root = ElementTree.fromstring(re.sub(r"var\(--[\w-]+,\s*([^()]*)\)", r"\1", svg))
        self.width, self.height = (float(number) for number in self.root.get("viewBox").split()[2:])
        self.named = {f"#{element.get('id')}": element for element in self.root.iter() if element.get("id")}

    def draw(self, canvas, x, y, scale, fonts):
        """Draw with the lower left corner at x, y (points). fonts: reportlab's names of (regular, bold)."""
        self.canvas, self.fonts = canvas, fonts
        canvas.saveState()
        canvas.translate(x, y + scale * self.height)
        canvas.scale(scale, -scale)
        self._draw(self.root, _START, 1.0)
        canvas.restoreState()

    def _draw(self, element, style, opacity):
        kind = element.tag.split("}")[-1]
        if kind in ("defs", "clipPath", "metadata", "style"):
            return
        if kind == "g" and not element.keys():
            for child in element:
                self._draw(child, style, opacity)
            return
        own = {key.split("}")[-1]: value for key, value in element.items()}
        own.update(declaration.split(":", 1) for declaration in own.pop("style", "").split(";") if ":" in declaration)
        own = {key.strip(): value.strip() for key, value in own.items()}
        if "font" in own:  # weight and size stand in one declaration
            own["font-size"] = re.search(r"[\d.]+px", own["font"])[0]
            own["font-weight"] = own["font"].split("px")[0]
        opacity *= float(own.get("opacity", 1))
        style = {**style, **{key: value for key, value in own.items() if key not in _OWN}}
        self.canvas.saveState()
        self._transform(own.get("transform", ""))
        clip = self.named.get(own.get("clip-path", "")[4:-1])
        if clip is not None and len(clip):
            self.canvas.clipPath(self._path(clip[0]), stroke=0, fill=0)
        if kind in ("path", "rect"):
            self._paint(element, style, opacity)
        elif kind == "text":
            self._text(element, own, style, opacity)
        elif kind == "image":
            self._image(own)
        elif kind == "use" and own["href"] in self.named:
            self.canvas.translate(float(own.get("x", 0)), float(own.get("y", 0)))
            self._draw(self.named[own["href"]], style, opacity)
        for child in element if kind in ("svg", "g", "a") else ():
            self._draw(child, style, opacity)
        self.canvas.restoreState()

    def _transform(self, text):
        for name, numbers in re.findall(r"(\w+)\(([^)]*)\)", text):
            n = _numbers(numbers)
            if name == "matrix":
                self.canvas.transform(*n)
            elif name == "translate":
                self.canvas.translate(n[0], n[1] if len(n) > 1 else 0)
            elif name == "scale":
                self.canvas.scale(n[0], n[-1])
            elif name == "rotate" and n[0]:
                x, y = n[1:] or (0, 0)
                self.canvas.translate(x, y)
                self.canvas.rotate(n[0])
                self.canvas.translate(-x, -y)

    def _path(self, element):
        path = self.canvas.beginPath()
        if element.tag.split("}")[-1] == "rect":
            path.rect(*(float(element.get(key, 0)) for key in ("x", "y", "width", "height")))
            return path
        x = y = 0
        for command, numbers in re.findall(r"([A-Za-z])([^A-Za-z]*(?:e-?\d+[^A-Za-z]*)*)", element.get("d", "")):
            n, step = _numbers(numbers), _ARGUMENTS[command]
            for k in range(0, max(len(n), 1), max(step, 1)):
                part = n[k:k + step]
                if command == "M":
                    path.moveTo(*part)
                elif command == "L":
                    path.lineTo(*part)
                elif command == "C":
                    path.curveTo(*part)
                elif command == "Q":  # a cubic with the same shape
                    a, b, c, d = part
                    path.curveTo(x + 2 / 3 * (a - x), y + 2 / 3 * (b - y), c + 2 / 3 * (a - c), d + 2 / 3 * (b - d), c, d)
                else:
                    path.close()
                x, y = part[-2:] or (x, y)
        return path

    def _paint(self, element, style, opacity):
        from reportlab.lib.colors import HexColor
        canvas = self.canvas
        hatch = self.named.get(style["fill"][4:-1])  # its lines are left out, and its ground is drawn
        if hatch is not None:
            style = {**style, "fill": hatch[0].get("fill", "none")}
        fill, stroke = (style[key].startswith("#") for key in ("fill", "stroke"))  # and not "none"
        if fill:
            canvas.setFillColor(HexColor(style["fill"]))
            canvas.setFillAlpha(opacity * float(style.get("fill-opacity", 1)))
        if stroke:
            canvas.setStrokeColor(HexColor(style["stroke"]))
            canvas.setStrokeAlpha(opacity * float(style.get("stroke-opacity", 1)))
            canvas.setLineWidth(_numbers(style["stroke-width"])[0])
            canvas.setLineCap({"round": 1, "square": 2}.get(style.get("stroke-linecap"), 0))
            canvas.setLineJoin({"round": 1, "bevel": 2}.get(style.get("stroke-linejoin"), 0))
            dashes = _numbers(style.get("stroke-dasharray", ""))
            if dashes:
                canvas.setDash(dashes, _numbers(style.get("stroke-dashoffset", "0"))[0])
        if fill or stroke:
            canvas.drawPath(self._path(element), stroke=stroke, fill=fill, fillMode=1)

    def _text(self, element, own, style, opacity):
        from reportlab.lib.colors import HexColor
        bold = re.search(r"bold|[6-9]00", style.get("font-weight", "")) is not None
        canvas, size = self.canvas, _numbers(style["font-size"])[0]
        canvas.setFillColor(HexColor(style["fill"]))
        canvas.setFillAlpha(opacity * float(style.get("fill-opacity", 1)))
        canvas.setFont(self.fonts[bold], size)
        canvas.transform(1, 0, 0, -1, float(own.get("x", 0)), float(own.get("y", 0)))  # letters stand upright where y grows downwards
        write = {"middle": canvas.drawCentredString, "end": canvas.drawRightString}.get(style.get("text-anchor"), canvas.drawString)
        write(0, 0, "".join(element.itertext()).strip())

    def _image(self, own):
        from reportlab.lib.utils import ImageReader
        x, y, width, height = (float(own.get(key, 0)) for key in ("x", "y", "width", "height"))
        picture = ImageReader(io.BytesIO(base64.b64decode(own["href"].split(",", 1)[1])))
        self.canvas.transform(1, 0, 0, -1, x, y + height)
        self.canvas.drawImage(picture, 0, 0, width, height, mask="auto")


def _numbers(text):
    return [float(number) for number in re.findall(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?", text)]
