"""Converts texts in folders named after their labels into one JSONL file.

python -m bertgpt.experiments.finetune.folders FOLDER OUT.jsonl
"""

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8") as lines:
        for file in sorted(source.glob("*/*.txt")):
            text = file.read_bytes().decode("utf-8", errors="replace")
            lines.write(json.dumps({"text": text, "label": file.parent.name}, ensure_ascii=False) + "\n")
