"""Prints the prompts of a getp input file with their completions.

show_completions.py MODEL PROMPTS IDS
"""

import sys
from pathlib import Path

import trivium


def main() -> None:
    model, prompts, ids = sys.argv[1:4]
    tokenizer = trivium.Tokenizer(model)
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    lines = Path(prompts).read_text().splitlines()[1:]
    for prompt, line in zip(lines, Path(ids).read_text().splitlines(), strict=True):
        text = tokenizer.decode([int(i) for i in line.split()])
        print(f"{bold}{prompt}{plain}{text}".replace("\n", "\n    "))


if __name__ == "__main__":
    main()
