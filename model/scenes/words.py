"""The words of the scenes world: object nouns and the art they are drawn with, places, sizes, backgrounds.

Invariant: the order of every tuple is frozen: dense training labels are indices into them.
"""

from __future__ import annotations

# Nouns whose art has another name in the icon sets (all four sets share these icon names).
ICON_OF = {
    "apple": "red-apple", "bee": "honeybee", "burger": "hamburger", "cake": "birthday-cake", "car":
    "automobile", "cheese": "cheese-wedge", "donut": "doughnut", "hippo": "hippopotamus", "orange":
    "tangerine", "piano": "musical-keyboard", "rhino": "rhinoceros", "sheep": "ewe", "sock": "socks",
    "truck": "delivery-truck", "heart": "red-heart", "gift": "wrapped-gift", "tree": "deciduous-tree",
    "book": "closed-book", "bulb": "light-bulb", "moon": "crescent-moon", "leaf": "maple-leaf",
}  # fmt: skip

_ANIMALS = """bat bear beaver bee butterfly camel cat cow crab crocodile deer dog dolphin duck
eagle elephant fish flamingo fox frog giraffe goat hedgehog hippo kangaroo koala lion llama
lobster monkey mouse octopus owl panda parrot peacock penguin pig rabbit rhino rooster scorpion shark
sheep shrimp snail snake spider swan tiger turkey turtle unicorn whale wolf zebra"""
_FOOD = """apple avocado banana bread broccoli burger cake carrot cheese cookie croissant donut
egg eggplant lemon mango mushroom onion orange peach pear pineapple pizza popcorn potato sandwich
strawberry taco tomato watermelon"""
_THINGS = """airplane ambulance anchor axe backpack balloon bed bell bicycle bone book broom bucket
bus cactus camera candle car castle chair cloud crown door drum envelope feather fire ghost
gift guitar hammer heart helicopter house key kite ladder laptop leaf lollipop magnet moon motorcycle
pencil piano rainbow ring robot rocket rose sailboat skateboard skull snowflake snowman sock star sun
sunflower teapot telescope tent tractor tree trophy truck trumpet tulip umbrella violin
"""

NOUNS: tuple[str, ...] = tuple(sorted((_ANIMALS + " " + _FOOD + " " + _THINGS).split()))

_PLURALS = {"deer": "deer", "fish": "fish", "sheep": "sheep", "shrimp": "shrimp",
            "mouse": "mice", "wolf": "wolves", "leaf": "leaves",
            "tomato": "tomatoes", "potato": "potatoes", "mango": "mangoes", "bus": "buses",
            "fox": "foxes", "peach": "peaches", "strawberry": "strawberries",
            "butterfly": "butterflies", "sandwich": "sandwiches", "cactus": "cacti", "popcorn": "popcorn",
            "bread": "bread", "broccoli": "broccoli"}  # fmt: skip

PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
SIZES = ("small", "large")
STYLES = ("noto", "twemoji", "fluent-emoji-flat", "openmoji")
UNSEEN_STYLE = "emojione"  # drawn in evaluations alone; it lacks some of the nouns
PATTERNS = ("plain", "striped", "dotted", "checkered", "shaded")
# Two tones a colour: the ground and the pattern drawn on it.
COLORS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "white": ((250, 250, 250), (228, 230, 232)),
    "gray": ((165, 168, 172), (138, 141, 146)),
    "black": ((38, 38, 42), (66, 66, 72)),
    "red": ((224, 92, 88), (196, 66, 64)),
    "orange": ((247, 176, 98), (232, 148, 62)),
    "yellow": ((250, 229, 128), (238, 209, 84)),
    "green": ((140, 201, 134), (106, 173, 104)),
    "blue": ((134, 180, 232), (98, 148, 210)),
    "purple": ((178, 148, 220), (150, 116, 198)),
    "pink": ((248, 190, 212), (236, 158, 190)),
    "brown": ((170, 130, 98), (142, 104, 76)),
}
COLOR_NAMES = tuple(COLORS)
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def plural(noun: str) -> str:
    return _PLURALS.get(noun, noun + "s")


def article(word: str) -> str:
    return ("an " if word[0] in "aeiou" and not word.startswith("uni") else "a ") + word


def at_place(place: str) -> str:
    """The place as a phrase: "at the top left", "on the left", "in the center"."""
    if place == "center":
        return "in the center"
    return f"on the {place}" if place in ("left", "right") else f"at the {place}"
