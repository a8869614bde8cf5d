#!/usr/bin/env python3
"""Draws a terminal's text as SVG: standard input to standard output.

    tmux capture-pane -ep | scripts/terminal-svg.py > docs/demo.svg
"""
import html
import re
import sys

WIDTH, HEIGHT, MARGIN = 8.4, 19, 16
BACKGROUND, FOREGROUND = "#16181d", "#d5d8de"
COLOURS = {
    30: "#4b5160", 31: "#f0717a", 32: "#8fce7e", 33: "#e6c07b",
    34: "#6cb0f2", 35: "#c98ee0", 36: "#56c2cc", 37: "#d5d8de", 90: "#8b919c",
}


def spans(line):
    """The runs of one style in a line: column, text, colour, bold."""
    column, colour, bold = 0, FOREGROUND, False
    for part in re.split(r"(\x1b\[[0-9;]*m)", line):
        if part.startswith("\x1b["):
            for code in (int(code or 0) for code in part[2:-1].split(";")):
                if code in (0, 39):
                    colour = FOREGROUND
                if code in (0, 1, 22):
                    bold = code == 1
                colour = COLOURS.get(code, colour)
        elif part:
            yield column, part, colour, bold
            column += len(part)


lines = sys.stdin.read().rstrip().split("\n")
columns = max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in lines)
width, height = columns * WIDTH + 2 * MARGIN, len(lines) * HEIGHT + 2 * MARGIN
print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}"'
      f' width="{width:.0f}" font-family="ui-monospace, Menlo, Consolas, monospace" font-size="14">')
print(f'<rect width="100%" height="100%" rx="8" fill="{BACKGROUND}"/>')
for row, line in enumerate(lines):
    y = MARGIN + (row + 0.75) * HEIGHT
    for column, text, colour, bold in spans(line):
        if text.strip():
            x, length = MARGIN + column * WIDTH, len(text) * WIDTH
            weight = ' font-weight="bold"' if bold else ""
            # A fixed length keeps the columns, whatever font there is.
            print(f'<text x="{x:.1f}" y="{y:.1f}" textLength="{length:.1f}" fill="{colour}"{weight}'
                  f' xml:space="preserve">{html.escape(text)}</text>')
print("</svg>")
