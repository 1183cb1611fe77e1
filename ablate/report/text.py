"""Foreign text (titles, reasons, notes of a study) made harmless: it can neither break a table nor drive a terminal."""

from __future__ import annotations

import io
import os
import re
import sys
import unicodedata


def one_line(text: str) -> str:
    """Return the text on one line; control characters and invisible marks (bidi overrides) are shown, not sent."""
    return visible(" ".join(text.split()))


def visible(text: str, *, keep: str = "") -> str:
    """Return the text with what no screen shows spelt out, but for the characters in ``keep``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


# what ASCII terminals print in place of the signs that we use ourselves
_ASCII = str.maketrans(
    {
        "±": "+/-", "Δ": "diff", "−": "-", "×": "x", "·": "-", "→": "->", "≥": ">=", "└": "`-", "†": "^",
        "—": "--", "…": "...", "─": "-", "●": "o", "│": "|", "✓": "x",
    }
)  # fmt: skip


def in_encoding(text: str, encoding: str) -> str:
    """Return the text as a console of this encoding can print it; what it lacks is spelt out or escaped."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_ASCII)
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def make_streams_safe() -> None:
    """See to it that no character can end a command: what a stream's encoding lacks is escaped.

    Under LANG=C Python writes UTF-8 all the same; a terminal that was told so shows it as rubbish, and gets ASCII.
    """
    locale = os.environ.get("LC_ALL") or os.environ.get("LANG")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            is_plain = locale in ("C", "POSIX") and sys.flags.utf8_mode and stream.isatty()
            stream.reconfigure(encoding="ascii" if is_plain else None, errors="backslashreplace")


def markdown(text: str) -> str:
    """Return foreign text so that GitHub's Markdown prints it as it stands, inside a pipe table too."""
    text = re.sub(r"([\\`*\[\]<|~$])", r"\\\1", one_line(text))
    # inside a word an underscore is plain in GitHub's dialect, and val_acc stays readable
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)
    text = re.sub(r"&(?=#?\w+;)", r"\\&", text)
    text = re.sub(r"^([#>+=-])", r"\\\1", text)
    return re.sub(r"^(\d+)([.)])", r"\1\\\2", text)


# --- LaTeX ---------------------------------------------------------------------------------------------------------

_TEX_TEXT = r"""
\ \textbackslash{}  { \{  } \}  $ \$  & \&  # \#  % \%  _ \_  ~ \textasciitilde{}  ^ \textasciicircum{}
< \textless{}  > \textgreater{}  | \textbar{}  ` \textasciigrave{}  " {\ttfamily\char34}
ß {\ss}  ø {\o}  Ø {\O}  æ {\ae}  Æ {\AE}  œ {\oe}  Œ {\OE}  ł {\l}  Ł {\L}  ı {\i}  – \textendash{}  — \textemdash{}
‘ \textquoteleft{}  ’ \textquoteright{}  “ \textquotedblleft{}  ” \textquotedblright{}  … \dots{}  § \S{}  ¶ \P{}
© \textcopyright{}  £ \pounds{}  € \texteuro{}  ° \textdegree{}
¡ \textexclamdown{}  ¿ \textquestiondown{}
"""
_TEX_MATH = r"""
± \pm  † \dagger  ‡ \ddagger  • \bullet  − -  × \times  · \cdot  → \to  ← \leftarrow  ↔ \leftrightarrow  ↑ \uparrow
↓ \downarrow  ⇒ \Rightarrow  ≤ \leq  ≥ \geq  ≠ \neq  ≈ \approx  ∞ \infty  √ \surd  ∑ \sum  ∂ \partial  ∇ \nabla
∈ \in  ÷ \div  ¬ \neg  ∼ \sim  ∝ \propto  ⊕ \oplus  ⊗ \otimes  ∘ \circ  ✓ \checkmark  └ \hookrightarrow  ² ^2  ³ ^3
¹ ^1  ½ \frac12  ¼ \frac14  µ \mu  ∆ \Delta  ℓ \ell  α \alpha  β \beta  γ \gamma  δ \delta  ε \varepsilon  ζ \zeta
η \eta  θ \theta  ι \iota  κ \kappa  λ \lambda  μ \mu  ν \nu  ξ \xi  π \pi  ρ \rho  σ \sigma  τ \tau  υ \upsilon
φ \varphi  χ \chi  ψ \psi  ω \omega  Γ \Gamma  Δ \Delta  Θ \Theta  Λ \Lambda  Ξ \Xi  Π \Pi  Σ \Sigma  Υ \Upsilon
Φ \Phi  Ψ \Psi  Ω \Omega
"""
_TEX = {
    **dict(zip(_TEX_TEXT.split()[::2], _TEX_TEXT.split()[1::2], strict=True)),
    **{
        c: f"\\ensuremath{{{command}}}"
        for c, command in zip(_TEX_MATH.split()[::2], _TEX_MATH.split()[1::2], strict=True)
    },
    "\u00a0": "~",
}
_TEX_ACCENTS = dict(
    zip("\u0300\u0301\u0302\u0303\u0308\u030a\u030c\u0327\u0304\u0306\u0307\u030b", "`'^~\"rvc=u.H", strict=True)
)


def latex(text: str) -> str:
    """Return foreign text so that LaTeX prints it as it stands, in a table and in a caption too.

    It is ASCII, but for what pdfLaTeX has no font for: ``\\ablatechar`` gets such a character and its number.
    """
    escaped = "".join(map(_latex, unicodedata.normalize("NFC", one_line(text))))
    escaped = re.sub(r"([-',])(?=\1)", r"\1{}", escaped)  # two of them would become another sign
    return re.sub(r"^([\[*])", r"{\1}", escaped)  # the row above ends in \\, which takes these for its own


def comment(text: str) -> str:
    """Return foreign text for a line of comment in LaTeX."""
    return one_line(text).encode("ascii", "backslashreplace").decode()


def _latex(c: str) -> str:
    if c in _TEX:
        return _TEX[c]
    if c.isascii():
        return c
    letter, mark = unicodedata.normalize("NFD", c)[:1], unicodedata.normalize("NFD", c)[1:]
    if mark in _TEX_ACCENTS and letter.isascii():
        dotless = f"\\{letter}" if letter in "ij" and mark != "\u0327" else letter
        return f"\\{_TEX_ACCENTS[mark]}{{{dotless}}}"
    return f"\\ablatechar{{{c}}}{{{ord(c):04X}}}"
