"""The demo's dataset: eight drawn pictures of one subject, a small tin robot, with a caption each."""

import math
from pathlib import Path

from PIL import Image, ImageDraw

TRIGGER = "T1NBOT"
PROMPT = f"a picture of {TRIGGER}, a small tin robot"
SIDE = 1024

_SCENES = (
    ("on a meadow", "#8ecf7a", "#bfe3ff"),
    ("on a beach", "#ecd9a0", "#8fd3f4"),
    ("on a wooden table", "#b98552", "#f3e9dc"),
    ("in the snow", "#f4f8fb", "#b9cfe4"),
    ("on a red carpet", "#b8322f", "#e9c7a5"),
    ("at night", "#26304d", "#0f1428"),
    ("in a desert", "#d99a4e", "#f7d79b"),
    ("on a grey floor", "#8b929b", "#cfd4da"),
)


def draw_dataset(folder: Path) -> list[Path]:
    """Draw the pictures into ``folder``, each with its caption, and return them. The same ones every time."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for number, (place, ground, sky) in enumerate(_SCENES):
        picture = folder / f"robot{number + 1}.jpg"
        _draw(number, ground, sky).save(picture, "JPEG", quality=88)
        picture.with_suffix(".txt").write_text(f"{TRIGGER}, a small tin robot, {place}\n", encoding="utf-8")
        pictures.append(picture)
    return pictures


def _draw(number: int, ground: str, sky: str) -> Image.Image:
    """One scene: the robot somewhere else, of another size, looking another way."""
    image = Image.new("RGB", (SIDE, SIDE), sky)
    draw = ImageDraw.Draw(image)
    horizon = 560 + 30 * (number % 3)
    draw.rectangle((0, horizon, SIDE, SIDE), fill=ground)
    _robot(
        draw,
        x=512 + 170 * math.sin(2.1 * number),
        foot=horizon + 170 + 60 * math.cos(1.3 * number),
        unit=34 + 7 * math.sin(1.7 * number),
        look=math.sin(2.9 * number),
    )
    return image


def _robot(draw: ImageDraw.ImageDraw, *, x: float, foot: float, unit: float, look: float) -> None:
    tin, dark, light = "#c3ccd6", "#56616e", "#ffd84d"

    def box(corners: tuple[float, float, float, float], fill: str, round_by: float = 0.4) -> None:
        left, top, right, bottom = corners
        area = (x + left * unit, foot + top * unit, x + right * unit, foot + bottom * unit)
        draw.rounded_rectangle(area, radius=round_by * unit, fill=fill, outline=dark, width=max(2, int(unit / 8)))

    for side in (-1, 1):
        middle = side * 1.6
        box((middle - 0.7, -3, middle + 0.7, 0), tin)  # leg
        box((side * 3.7 - 0.6, -8, side * 3.7 + 0.6, -4 + look * side), tin)  # arm
    box((-3, -8.5, 3, -2.6), tin)
    box((-1.4, -6.8, 1.4, -4.6), "#d1495b")
    box((-0.25, -14.6, 0.25, -12.6), dark, 0.1)
    box((-0.6, -15.6, 0.6, -14.4), "#d1495b", 0.6)
    box((-2.4, -13, 2.4, -8.7), tin, 0.8)
    for side in (-1, 1):
        middle = side * 1.1 + look * 0.5
        box((middle - 0.55, -11.8, middle + 0.55, -10.7), light, 0.55)
    box((-1.2 + look * 0.4, -10, 1.2 + look * 0.4, -9.5), dark, 0.2)
