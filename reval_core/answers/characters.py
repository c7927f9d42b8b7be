"""Converts Unicode characters to LaTeX, so that one grammar covers both."""

import re
import unicodedata

_SIGNS = {
    "×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ", "∙": r"\cdot ", "•": r"\cdot ", "∗": "*",
    "÷": "/", "∕": "/", "⁄": "/", "∣": "|", "∶": ":", "′": "'", "″": "''",
    "°": r"^\circ ", "º": r"^\circ ", "℃": r"^\circ C", "℉": r"^\circ F", "‰": r"\permil ",
    "∞": r"\infty ", "∅": r"\emptyset ", "≤": r"\le ", "⩽": r"\le ", "≦": r"\le ", "≥": r"\ge ",
    "⩾": r"\ge ", "≧": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "≅": r"\cong ", "≡": r"\equiv ",
    "±": r"\pm ", "∓": r"\mp ", "∪": r"\cup ", "∩": r"\cap ", "∖": r"\setminus ", "∈": r"\in ",
    "∉": r"\notin ", "∨": r"\vee ", "∧": r"\wedge ", "→": r"\to ", "∠": r"\angle ", "△": r"\triangle ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "⟨": r"\langle ", "⟩": r"\rangle ", "〈": r"\langle ", "〉": r"\rangle ", "⌊": r"\lfloor ",
    "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "…": r"\ldots ", "⋯": r"\ldots ",
    "、": ",", "。": ".", "‘": "'", "’": "'", "“": '"', "”": '"', "µ": r"\mu ",
    "∑": r"\sum ", "∏": r"\prod ", "∫": r"\int ", "∂": r"\partial ", "¢": r"\text{cents}",
}  # fmt: skip
_GREEK = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
    "nu",
    "xi",
    "omicron",
    "pi",
    "rho",
    "varsigma",
    "sigma",
    "tau",
    "upsilon",
    "phi",
    "chi",
    "psi",
    "omega",
]
_GREEK_CAPITALS = {"Γ", "Δ", "Θ", "Λ", "Ξ", "Π", "Σ", "Υ", "Φ", "Ψ", "Ω"}
_TABLE = str.maketrans(
    _SIGNS
    | {chr(ord("α") + place): rf"\{name} " for place, name in enumerate(_GREEK)}
    | {
        chr(ord("Α") + place): rf"\{name.capitalize()} "
        for place, name in enumerate(_GREEK)
        if chr(ord("Α") + place) in _GREEK_CAPITALS
    }
    | {"ϕ": r"\phi ", "ϵ": r"\epsilon ", "ϑ": r"\vartheta "}
)
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ"
_SUBSCRIPTS = "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₒₓₕₖₗₘₙₚₛₜᵢⱼ"
_RAISED = re.compile(rf"\s?([{_SUPERSCRIPTS}]+)")
_LOWERED = re.compile(rf"([{_SUBSCRIPTS}]+)")
_FRACTION = re.compile(r"[\u00bc-\u00be\u2150-\u215e\u2189]")
_REPEATED = re.compile(r"((?:[0-9]\u0305)+)|([0-9])\u0307")
_ROOT = re.compile(r"([√∛∜])\s?(?:\(([^()]{1,80})\)|([0-9.]{1,30}|[a-zA-Z]))")
_ROOT_DEGREES = {"√": "", "∛": "[3]", "∜": "[4]"}
_DASH = re.compile(r"[\u2010-\u2015\u2212\ufe58\ufe63\uff0d]")


def as_latex(text: str) -> str:
    r"""Convert Unicode characters to LaTeX: ``x⁴`` to ``x^{4}``, ``√2`` to ``\sqrt{2}``, ``½`` to ``\frac{1}{2}``.

    Dashes become minus signs, full-width and mathematical letters become plain ones, and invisible characters are
    removed. Letters of other scripts are kept.
    """
    if text.isascii():
        return text
    text = _REPEATED.sub(_repeating, text)
    text = _RAISED.sub(lambda run: f"^{{{_plain(run[1])}}}", text)
    text = _LOWERED.sub(lambda run: f"_{{{_plain(run[1])}}}", text)
    text = _FRACTION.sub(_vulgar_fraction, text)
    text = _ROOT.sub(lambda root: rf"\sqrt{_ROOT_DEGREES[root[1]]}{{{root[2] or root[3]}}}", text)
    text = _DASH.sub("-", text).translate(_TABLE)
    text = "".join(one for one in unicodedata.normalize("NFKC", text) if unicodedata.category(one) != "Cf")
    return _DASH.sub("-", text).translate(_TABLE)


def _plain(run: str) -> str:
    return unicodedata.normalize("NFKC", run).replace("\u2212", "-")


def _vulgar_fraction(sign: re.Match[str]) -> str:
    above, _, below = unicodedata.normalize("NFKC", sign[0]).partition("\u2044")
    return rf"\frac{{{above}}}{{{below}}}"


def _repeating(digits: re.Match[str]) -> str:
    if digits[1]:
        return rf"\overline{{{digits[1].replace(chr(0x305), '')}}}"
    return rf"\dot{{{digits[2]}}}"
