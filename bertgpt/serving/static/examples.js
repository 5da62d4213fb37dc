/** Inputs that a reader can try with one click: by tool, from the model to {en, zh}, lists of {title, values}. */

import { drawn } from "./picture.js";

const text = (title, inputs) => ({ title, values: { inputs } });
const question = (title, asked, context) => ({ title, values: { question: asked, context } });
const sentences = (title, ...lines) => ({ title, values: { sentences: lines.join("\n") } });
const ranking = (title, query, ...lines) => ({ title, values: { query, documents: lines.join("\n") } });

const LIGHTHOUSE =
  "The lighthouse of Alexandria was built in the third century BC on the island of Pharos. It was about 100 metres " +
  "tall, and its fire could be seen from far out at sea. Earthquakes destroyed it in the fourteenth century.";

export const EXAMPLES = {
  fill_mask: ({ mask }) => ({
    en: [
      text("a film review", `This film is ${mask} and the story is very ${mask}.`),
      text("a capital", `The capital of France is ${mask}.`),
    ],
    zh: [text("一句中文", `今天天气很${mask}，我们去公园玩。`)],
  }),
  classify: () => ({
    en: [
      text("praise", "A warm, funny and beautifully acted film that never loses its way."),
      text("blame", "The plot is thin, the jokes are stale, and it goes on for far too long."),
      text("both", "The actors are wonderful, but the story is dull and predictable."),
    ],
    zh: [text("一句中文", "演员很出色，但是故事又长又无聊。")],
  }),
  ner: () => ({
    en: [
      text("people and places", "Marie Curie was born in Warsaw and worked at the University of Paris."),
      text("companies", "Tim Cook said on Monday that Apple will open a new office in Munich."),
    ],
    zh: [text("一句中文", "钱学森出生在上海，后来在北京的中国科学院工作。")],
  }),
  qa: () => ({
    en: [
      question("where?", "Where was the lighthouse built?", LIGHTHOUSE),
      question("what destroyed it?", "What destroyed the lighthouse?", LIGHTHOUSE),
    ],
    zh: [
      question(
        "一个中文问题",
        "长江有多长？",
        "长江发源于青藏高原，全长约6300公里，是亚洲第一长河，在上海附近流入东海。",
      ),
    ],
  }),
  generate: () => ({
    en: [
      { title: "a film", values: { prompt: "This film is" } },
      { title: "a story", values: { prompt: "Once upon a time, there was" } },
      { title: "greedy", values: { prompt: "The best thing about", temperature: 0 } },
    ],
    zh: [{ title: "一个故事", values: { prompt: "从前，山里有一座" } }],
  }),
  summarize: () => ({
    en: [
      text(
        "a news item",
        "The city council voted on Tuesday to close the old harbour bridge for six months. Engineers had found cracks " +
          "in two of its pillars. Buses will take another route, and a ferry will carry cyclists and pedestrians free " +
          "of charge.",
      ),
    ],
    zh: [
      text(
        "一则中文新闻",
        "市议会周二决定，将旧港大桥关闭六个月，因为工程师在两根桥墩上发现了裂缝。公交车将改道，行人可以免费乘坐渡轮。",
      ),
    ],
  }),
  translate: () => ({
    en: [text("a sentence", "The house is small, but the garden is wonderful.")],
    zh: [text("一句中文", "房子很小，但是花园很漂亮。")],
  }),
  similarity: () => ({
    en: [
      sentences(
        "three topics",
        "The cat sleeps on the sofa.",
        "A kitten is napping on the couch.",
        "The stock market fell sharply today.",
        "Shares lost value this morning.",
        "She plays the violin in an orchestra.",
      ),
      sentences(
        "not quite the same",
        "How do I reset my password?",
        "I forgot my login credentials.",
        "How do I delete my account?",
        "What is your refund policy?",
      ),
    ],
    zh: [sentences("几句中文", "猫在沙发上睡觉。", "小猫正在沙发上打盹。", "今天股市大跌。", "股票今早下跌。")],
  }),
  rerank: () => ({
    en: [
      ranking(
        "a question",
        "How do I bake bread?",
        "Trains leave for the coast every hour.",
        "Mix flour, water, salt and yeast, and knead the dough.",
        "The oven should be at 230 °C before the loaf goes in.",
        "Bread prices rose by three per cent.",
      ),
    ],
    zh: [
      ranking(
        "一个中文查询",
        "怎么做面包？",
        "火车每小时一班。",
        "把面粉、水、盐和酵母混合，然后揉面。",
        "面包涨价了。",
      ),
    ],
  }),
  lens: ({ mask }) => ({
    en: mask
      ? [
          text("a film review", `The acting is ${mask} and the plot makes no ${mask}.`),
          text("a capital", `The capital of France is ${mask}.`),
        ]
      : [text("a film", "This film is one of the best"), text("a story", "Once upon a time")],
    zh: [text("一句中文", mask ? `今天天气很${mask}。` : "今天天气很")],
  }),
  attention: () => ({
    en: [
      text("a pronoun", "The animal did not cross the street because it was too tired."),
      text("a clause", "The film that my brother liked was boring."),
    ],
    zh: [text("一句中文", "小猫没有过马路，因为它太累了。")],
  }),
  image: () => {
    const picture = (title, shape, colour) => ({
      title,
      values: { picture: drawn(shape, colour), question: "What shape is this?" },
    });
    const en = [picture("a circle", "circle", "#c62828"), picture("a square", "square", "#1565c0")];
    return { en, zh: [{ ...picture("三角形", "triangle", "#2e7d32") }] };
  },
  tokenize: () => ({
    en: [
      text("long words", "Tokenization splits unbelievably long words, e.g. antidisestablishmentarianism."),
      text("emoji and accents", "Café 🙂 naïve — 3.14159"),
    ],
    zh: [text("一句中文", "我爱自然语言处理，也爱 BERT。")],
  }),
};
