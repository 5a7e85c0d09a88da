"""The languages of the report: each text stands in English where it is used, `texts/<language>.json` gives the others."""

import json
import re
import unicodedata
from datetime import date
from importlib.resources import files

LANGUAGES = ("en", "da")
_DECIMAL_COMMA = ("da",)


class Texts:
    """Texts and numbers in one language; called with the English text, gives that of the language.

    A key of the catalogue with `{}` stands for every text of that form (`under {} at diagnosis`). What the catalogue does
    not know (names that a site's own codes brought in) stays as it is.
    """

    def __init__(self, lang: str) -> None:
        """Open the catalogue of a language of `LANGUAGES`."""
        self.lang = lang
        found: dict[str, str] = {}
        if lang != "en":
            found = json.loads((files("crmo_fhir.export") / "texts" / f"{lang}.json").read_text(encoding="utf-8"))
        self._catalogue = found
        self._forms = [
            (re.compile(re.escape(key).replace(r"\{\}", "(.+?)")), text) for key, text in found.items() if "{}" in key
        ]

    def __call__(self, text: str, **values: object) -> str:
        """The text, with the values in its {places}; these are given as they are to be shown."""
        found = self.find(text)
        return found.format(**values) if values else found

    def find(self, text: str) -> str:
        """The text in this language; the same text where the catalogue does not know it."""
        if text in self._catalogue:
            return self._catalogue[text]
        for form, other in self._forms:
            if match := form.fullmatch(text):
                return other.format(*(self.find(part) for part in match.groups()))
        return text

    def number(self, text: str) -> str:
        """A number that was rounded already, or several, with the decimal sign of the language."""
        return re.sub(r"(?<=\d)\.(?=\d)", ",", text) if self.lang in _DECIMAL_COMMA else text

    def day(self, day: date) -> str:
        """A day; as ISO 8601 in every language, which nobody can misread."""
        return day.isoformat()


_UNCOMMON = re.compile(r"[^\t\n -~\u00a1-\u00ac\u00ae-\u02ff]")
"""Characters that need a look: not those of Latin script, of which all can be read."""


def readable(text: str) -> str:
    """Text without control and formatting characters (among them those that turn the direction of text)."""
    return _UNCOMMON.sub(lambda m: "\ufffd" if unicodedata.category(m[0]) in {"Cc", "Cf", "Cs", "Co"} else m[0], text)
