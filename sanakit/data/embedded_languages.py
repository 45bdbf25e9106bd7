"""OpenMoji named in 14 languages, by the package `emoji` (Unicode CLDR): the base reads the English title, a candidate
the name in any of them."""

from dataclasses import replace

from sanakit.data.embedded import emoji_of, openmoji
from sanakit.data.embedded_captions import PLAIN
from sanakit.data.table import DATASETS, ImageDataset

LANGUAGES = ("en", "es", "ja", "ko", "pt", "it", "fr", "de", "fa", "id", "zh", "ru", "tr", "ar")


@DATASETS.register(
    "openmoji-languages", title="OpenMoji 17 named in 14 languages", licence="CC BY-SA 4.0", embedded=True
)
def openmoji_languages() -> ImageDataset:
    """Emoji that Unicode itself names, with a caption in each of LANGUAGES, which `caption_kinds` are; captions_base is
    the plain English title, once for each. Others, which are titled by their parts in English alone, are left out."""
    images = openmoji()
    titled = [names_of(emoji_of(name.removeprefix("openmoji/"))) for name in images.names]
    rows = [row for row, names in enumerate(titled) if names]
    titles = [images.captions[row][PLAIN] for row in rows]
    captions = [[title, *titled[row][1:]] for title, row in zip(titles, rows, strict=True)]
    return replace(
        images.subset(rows),
        source="openmoji-languages",
        captions=captions,
        captions_base=[[title] * len(LANGUAGES) for title in titles],
        caption_kinds=LANGUAGES,
    )


def names_of(text: str) -> list[str]:
    """The name of an emoji in each of LANGUAGES; [] where the package does not know the whole text."""
    import emoji

    for language in LANGUAGES[1:]:
        emoji.config.load_language(language)
    entry = emoji.EMOJI_DATA.get(text) or emoji.EMOJI_DATA.get(text + "\ufe0f")
    if not entry or not all(entry.get(language) for language in LANGUAGES):
        return []
    return [entry[language].strip(":").replace("_", " ") for language in LANGUAGES]
