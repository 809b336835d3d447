"""A small Fish Fillets NG as Debian's packages lay it out: three levels, two languages."""

from __future__ import annotations

from pathlib import Path

from scipy.signal import resample_poly

from tests.speech.layouts.voices import synthesise_lines, write_audio, write_text

LEVELS = {"aztec": "train", "barrel": "train", "cancan": "dev", "chest": "test"}
LINES = {
    "let-m-divna": ("font_small", "A strange ship", "Co je to za divnou loď?", "Wat een schip!"),
    "let-v-oko": ("font_big", "An eye", 'Je to oko \\"gyroskop\\".', "’t Is een oog..."),
    "let-x-tri": ("font_parrot", "Three", "Tři!", "Drie."),
    "let-m-cislo": ("font_small", "1 more", "Ještě 1.", "Nog 1."),
}
"""By name: font, English, Czech, Dutch."""
VOICES = {"cs": ("cs+m1", "cs+f2"), "nl": ("nl+m3", "nl+f4")}
RATES_HZ = {"cs": 22_050, "nl": 44_100}


def lay_out(root: Path) -> Path:
    """Writes the tree below ``root`` and returns it."""
    for number, language in enumerate(("cs", "nl")):
        texts = [values[2 + number].replace("\\", "") for values in LINES.values()]
        spoken = [
            (text, VOICES[language][font == "font_big"])
            for text, (font, *_) in zip(texts, LINES.values(), strict=True)
        ]
        waves = synthesise_lines(tuple(spoken))
        for index, level in enumerate(LEVELS):
            script = root / "script" / level / f"dialogs_{language}.lua"
            write_text(script, _make_script(2 + number))
            for name, wave in zip(LINES, waves, strict=True):
                rate = RATES_HZ[language]
                samples = resample_poly(wave * (0.6 + 0.1 * index), rate // 50, 320)
                write_audio(root / "sound" / level / language / f"{name}.ogg", samples, rate)
    write_audio(root / "sound" / "aztec" / "cs" / "no-line.ogg", samples, RATES_HZ["nl"])
    write_audio(root / "sound" / "share" / "sp-bubles_00.ogg", samples, RATES_HZ["nl"])
    return root


def _make_script(column: int) -> list[str]:
    lines = ["", 'dialogId("untold", "font_small", "Nobody says this.")', ""]
    for name, values in LINES.items():
        lines += [
            f'dialogId("{name}", "{values[0]}", "{values[1]}")',
            f'dialogStr("{values[column]}")',
            "",
            "",
        ]
    return lines
