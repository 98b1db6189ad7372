"""Keys of a PC keyboard: their scan codes in set 2, the 8042's translation to set 1, and the US layout.

Tables for keyboard.py and i8042.py; no behaviour beyond look-up.
Spec: Microsoft "Keyboard Scan Code Specification" 1.3a (2000), appendices A and C; IBM PS/2 Technical Reference.
"""

from typing import Final

BREAK: Final = 0xF0
EXTENDED: Final = 0xE0

# Translation of set 2 bytes 00 to 7F; above only 83 and 84 change
SET_2_TO_1: Final = bytes.fromhex(
    "ff 43 41 3f 3d 3b 3c 58 64 44 42 40 3e 0f 29 59"
    "65 38 2a 70 1d 10 02 5a 66 71 2c 1f 1e 11 03 5b"
    "67 2e 2d 20 12 05 04 5c 68 39 2f 21 14 13 06 5d"
    "69 31 30 23 22 15 07 5e 6a 72 32 24 16 08 09 5f"
    "6b 33 25 17 18 0b 0a 60 6c 34 35 26 27 19 0c 61"
    "6d 73 28 74 1a 0d 62 6e 3a 36 1c 1b 75 2b 63 76"
    "55 56 77 78 79 7a 0e 7b 7c 4f 7d 4b 47 7e 7f 6f"
    "52 53 50 4c 4d 48 01 45 57 4e 51 4a 37 49 46 54"
) + bytes((0x80, 0x81, 0x82, 0x41, 0x54, *range(0x85, 0x100)))

# Set 2 make codes; 1xx stands for the prefix E0
KEYS: Final = {
    "a": 0x1C, "b": 0x32, "c": 0x21, "d": 0x23, "e": 0x24, "f": 0x2B, "g": 0x34, "h": 0x33, "i": 0x43,
    "j": 0x3B, "k": 0x42, "l": 0x4B, "m": 0x3A, "n": 0x31, "o": 0x44, "p": 0x4D, "q": 0x15, "r": 0x2D,
    "s": 0x1B, "t": 0x2C, "u": 0x3C, "v": 0x2A, "w": 0x1D, "x": 0x22, "y": 0x35, "z": 0x1A,
    "0": 0x45, "1": 0x16, "2": 0x1E, "3": 0x26, "4": 0x25, "5": 0x2E, "6": 0x36, "7": 0x3D, "8": 0x3E, "9": 0x46,
    "grave": 0x0E, "minus": 0x4E, "equal": 0x55, "backslash": 0x5D, "bracket_left": 0x54, "bracket_right": 0x5B,
    "semicolon": 0x4C, "apostrophe": 0x52, "comma": 0x41, "dot": 0x49, "slash": 0x4A, "less": 0x61,
    "backspace": 0x66, "space": 0x29, "tab": 0x0D, "enter": 0x5A, "escape": 0x76, "caps_lock": 0x58,
    "shift": 0x12, "shift_right": 0x59, "ctrl": 0x14, "ctrl_right": 0x114, "alt": 0x11, "alt_right": 0x111,
    "meta": 0x11F, "meta_right": 0x127, "menu": 0x12F,
    "f1": 0x05, "f2": 0x06, "f3": 0x04, "f4": 0x0C, "f5": 0x03, "f6": 0x0B,
    "f7": 0x83, "f8": 0x0A, "f9": 0x01, "f10": 0x09, "f11": 0x78, "f12": 0x07,
    "insert": 0x170, "home": 0x16C, "page_up": 0x17D, "delete": 0x171, "end": 0x169, "page_down": 0x17A,
    "up": 0x175, "left": 0x16B, "down": 0x172, "right": 0x174, "scroll_lock": 0x7E, "num_lock": 0x77,
    "keypad_slash": 0x14A, "keypad_star": 0x7C, "keypad_minus": 0x7B, "keypad_plus": 0x79,
    "keypad_enter": 0x15A, "keypad_dot": 0x71, "keypad_0": 0x70, "keypad_1": 0x69, "keypad_2": 0x72,
    "keypad_3": 0x7A, "keypad_4": 0x6B, "keypad_5": 0x73, "keypad_6": 0x74, "keypad_7": 0x6C,
    "keypad_8": 0x75, "keypad_9": 0x7D,
}  # fmt: skip

PLAIN: Final = {
    " ": "space", "\n": "enter", "\r": "enter", "\t": "tab", "\b": "backspace", "\x7f": "backspace",
    "\x1b": "escape", "`": "grave", "-": "minus", "=": "equal", "\\": "backslash", "[": "bracket_left",
    "]": "bracket_right", ";": "semicolon", "'": "apostrophe", ",": "comma", ".": "dot", "/": "slash",
}  # fmt: skip
SHIFTED: Final = {
    "~": "grave", "!": "1", "@": "2", "#": "3", "$": "4", "%": "5", "^": "6", "&": "7", "*": "8", "(": "9",
    ")": "0", "_": "minus", "+": "equal", "|": "backslash", "{": "bracket_left", "}": "bracket_right",
    ":": "semicolon", '"': "apostrophe", "<": "comma", ">": "dot", "?": "slash",
}  # fmt: skip


def make_code(key: str) -> list[int]:
    """What set 2 sends when ``key`` goes down; ValueError when there is no such key."""
    code = _code_of(key)
    return [EXTENDED, code & 0xFF] if code > 0xFF else [code]


def break_code(key: str) -> list[int]:
    """What set 2 sends when ``key`` comes up."""
    code = _code_of(key)
    return [EXTENDED, BREAK, code & 0xFF] if code > 0xFF else [BREAK, code]


def _code_of(key: str) -> int:
    if key not in KEYS:
        raise ValueError(f"there is no key {key!r}; keys are {', '.join(KEYS)}")
    return KEYS[key]


def keys_for(character: str) -> list[str]:
    """The keys that are held together to type a character, Shift first; ValueError when the layout has none."""
    if character.lower() in KEYS and len(character) == 1:
        return [character] if character == character.lower() else ["shift", character.lower()]
    if character in PLAIN:
        return [PLAIN[character]]
    if character in SHIFTED:
        return ["shift", SHIFTED[character]]
    control = ord(character)
    if 1 <= control <= 26:  # Ctrl-A to Ctrl-Z
        return ["ctrl", chr(control + 96)]
    raise ValueError(f"no key of the US layout types {character!r}")
