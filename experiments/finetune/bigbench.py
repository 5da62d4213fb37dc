"""Two tasks of BIG-bench as .jsonl files: disfl_qa (Gupta et al. 2021) and social_iqa (Sap et al. 2019).

pip download --no-deps --no-binary :all: bigbench==1.0.0   # 358 MB; unpack benchmark_tasks/{disfl_qa,social_iqa}
python -m bertgpt.experiments.finetune.bigbench …/benchmark_tasks/disfl_qa/task.json OUT.jsonl

disfl_qa becomes questions with SQuAD 2.0 contexts. Its texts have spaces between all tokens, its answers only in part;
each answer is located in the context and written as it occurs there. social_iqa becomes questions with three choices.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bertgpt.tasks.squad import find_answer


def disfl_qa(examples: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for example in examples:
        question, context = (part.strip() for part in example["input"].split("\ncontext:", 1))
        answers = []
        if example["target"].strip().lower() != "unknown":
            span = find_answer(context, example["target"])
            found = example["target"] if span is None else context[span.start : span.end]
            answers = [{"text": found, "answer_start": 0 if span is None else span.start}]
        yield {"question": question, "context": context, "answers": answers}


def social_iqa(examples: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for example in examples:
        choices, scores = zip(*example["target_scores"].items(), strict=True)
        yield {"question": example["input"].strip(), "choices": choices, "label": scores.index(1)}


def main(source: str, out: str) -> None:
    task = json.loads(Path(source).read_text(encoding="utf-8"))
    convert = social_iqa if "target_scores" in task["examples"][0] else disfl_qa
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    with open(out, "w", encoding="utf-8") as file:
        for record in convert(task["examples"]):
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    print(f"{out}: {len(task['examples'])} questions")


if __name__ == "__main__":
    main(*sys.argv[1:])
