/** All words of the page: [English, Chinese]. `{name}` is filled in. */

export const STRINGS = {
  subtitle: ["Playground for the loaded models", "在页面上试用已加载的模型"],
  skip: ["Skip to the tool", "跳到工具"],
  tools: ["Tools", "工具"],
  theme: ["Colours", "配色"],
  theme_system: ["System", "跟随系统"],
  theme_light: ["Light", "浅色"],
  theme_dark: ["Dark", "深色"],
  api_docs: ["API documentation", "API 文档"],
  missing: [
    "Not shown, because no loaded model can do it: {tools}.",
    "以下工具没有显示，因为已加载的模型都不支持：{tools}。",
  ],
  comma: [", ", "、"],
  loading: ["Loading the list of models …", "正在读取模型列表……"],
  no_models: ["No loaded model can do anything that this page shows.", "已加载的模型都不支持本页面的工具。"],
  retry: ["Try again", "重试"],

  model: ["Model", "模型"],
  run: ["Run", "运行"],
  stop: ["Stop", "停止"],
  running: ["Waiting for the model …", "等待模型返回……"],
  running_long: [
    "Still waiting. The first call for a length compiles its program.",
    "仍在等待：某一长度的首次调用要先编译程序。",
  ],
  done: ["Done in {seconds} s.", "完成，用时 {seconds} 秒。"],
  shortcut: ["or Ctrl + Enter", "或按 Ctrl + Enter"],
  examples: ["Examples", "示例"],
  result: ["Result", "结果"],
  empty: ["The result appears here. Press Run, or pick an example.", "结果会显示在这里。点“运行”，或选一个示例。"],
  code: ["Code for this call", "此次调用的代码"],
  copy: ["Copy", "复制"],
  copied: ["Copied", "已复制"],
  copy_failed: ["Select the text and copy it", "请手动选择并复制"],
  text: ["Text", "文本"],
  max_len: ["up to {count} tokens", "最多 {count} 个词元"],

  token_label: ["Bearer token", "访问令牌（bearer token）"],
  token_note: ["Kept in memory only, until this page is closed.", "只保存在内存里，关闭页面即清除。"],
  token_use: ["Use token", "使用令牌"],

  error_stopped: ["Stopped.", "已停止。"],
  error_network: [
    "The server cannot be reached. Check the network and whether bertgpt serve is still running.",
    "连不上服务器。请检查网络，以及 bertgpt serve 是否仍在运行。",
  ],
  error_silence: ["The server has sent nothing for {seconds} seconds.", "服务器已有 {seconds} 秒没有返回任何内容。"],
  error_token: ["This server asks for a bearer token. Enter it above.", "此服务器需要访问令牌，请在上方填写。"],
  error_token_wrong: ["The server does not accept this bearer token.", "服务器不接受这个访问令牌。"],
  error_busy: ["The server is busy. Try again later.", "服务器正忙，请稍后再试。"],
  error_busy_seconds: ["The server is busy. Try again in {seconds} s.", "服务器正忙，请在 {seconds} 秒后重试。"],
  error_server: ["The server failed ({status}). {message}", "服务器出错（{status}）。{message}"],
  error_status: ["The server refused the request ({status}).", "服务器拒绝了请求（{status}）。"],
  error_json: ["The server's answer is not JSON.", "服务器返回的不是 JSON。"],
  error_cut: ["The connection was cut before the text was complete.", "文本还没生成完，连接就断开了。"],
  not_finite: ["The model's numbers are not finite.", "模型给出的数值不是有限数。"],
  error_page: ["The page cannot show this answer: {message}", "页面无法显示此结果：{message}"],

  fill_mask: ["Fill-mask", "完形填空"],
  fill_mask_about: ["Most probable tokens for each {mask}.", "预测每个 {mask} 处最可能的词元。"],
  insert_mask: ["Insert {mask}", "插入 {mask}"],
  top_k: ["Candidates per mask", "每处的候选数"],
  mask_number: ["Mask {number}", "第 {number} 处"],
  no_mask: ["The text has no {mask}.", "文本里没有 {mask}。"],

  classify: ["Classification", "文本分类"],
  classify_about: [
    "Probability of each label, and what each token adds to the decision.",
    "各标签的概率，以及每个词元对结果的影响。",
  ],
  labels: ["Labels", "标签"],
  labels_note: [
    "Separated by commas; classified without training on them (zero-shot).",
    "用逗号分隔；无需训练即可分类（零样本）。",
  ],
  saliency: ["Saliency per token", "词元显著度"],
  saliency_about: [
    "Gradient × input for “{label}”. Blue supports the label, orange speaks against it.",
    "对“{label}”的梯度 × 输入。蓝色支持该标签，橙色相反。",
  ],
  saliency_label: ["Explain label", "解释哪个标签"],
  value: ["Value", "数值"],

  ner: ["Entities", "实体识别"],
  ner_about: ["Spans that the tagger finds, with their labels.", "标出模型找到的片段及其标签。"],
  no_entities: ["No entity found.", "没有找到实体。"],
  span: ["Span", "片段"],
  label: ["Label", "标签"],
  characters: ["Characters", "字符位置"],
  score: ["Score", "得分"],

  qa: ["Question answering", "抽取式问答"],
  qa_about: ["The answer is marked in the passage.", "在文章中标出答案。"],
  question: ["Question", "问题"],
  passage: ["Passage", "文章"],
  no_answer: ["The model finds no answer in this passage.", "模型认为文章里没有答案。"],
  answer: ["Answer", "答案"],

  generate: ["Generation", "文本生成"],
  generate_about: [
    "The text streams in. Point at a token to see its alternatives; the more orange its underline, the less probable it was.",
    "边生成边显示。把指针移到词元上可看到其他候选；下划线越橙，概率越低。",
  ],
  prompt: ["Prompt", "提示"],
  settings: ["Settings", "参数"],
  max_tokens: ["New tokens", "生成长度"],
  temperature: ["Temperature", "温度"],
  temperature_note: ["0 always takes the most probable token.", "0 表示总取概率最大的词元。"],
  top_p: ["Top-p", "Top-p"],
  seed: ["Seed", "随机种子"],
  seed_note: ["Empty: different each time.", "留空则每次不同。"],
  stop_text: ["Stop at", "停止串"],
  stop_note: ["Text at which generation ends; may be empty.", "遇到该文本即停止；可留空。"],
  alternatives: ["Alternatives of token {number}", "第 {number} 个词元的候选"],
  hint_tokens: ["Point at a token, or use Tab and the arrow keys.", "把指针移到词元上，或用 Tab 和方向键选择。"],
  finish_stop: ["{count} tokens; ended by itself.", "{count} 个词元；自然结束。"],
  finish_length: ["{count} tokens; stopped at the limit.", "{count} 个词元；达到长度上限。"],
  finish_cut: ["{count} tokens; stopped by you.", "{count} 个词元；已手动停止。"],

  summarize: ["Summary", "摘要"],
  summarize_about: ["A summary of the text.", "为文本生成摘要。"],
  translate: ["Translation", "翻译"],
  translate_about: [
    "A translation of the text, in the languages that the model was trained on.",
    "翻译文本，语言取决于模型的训练数据。",
  ],

  source: ["From", "源语言"],
  target: ["To", "目标语言"],
  languages_note: [
    "English names; only for models of several languages.",
    "用英文名称，如 English；仅多语言模型需要。",
  ],

  similarity: ["Similarity", "句子相似度"],
  similarity_about: ["Cosine similarity of the embeddings of all pairs.", "两两比较句向量的余弦相似度。"],
  sentences: ["Sentences, one per line", "句子，每行一句"],
  need_two: ["Write at least two lines.", "请至少写两行。"],
  most_similar: ["Most similar pair: {a} and {b}, {value}.", "最相似的一对：{a} 和 {b}，{value}。"],
  sentence: ["Sentence", "句子"],

  rerank: ["Reranking", "重排序"],
  rerank_about: ["Documents ordered by their relevance to the query.", "按与查询的相关程度排列文档。"],
  query: ["Query", "查询"],
  documents: ["Documents, one per line", "文档，每行一篇"],

  image: ["Image", "图像"],
  image_about: [
    "Captions, answers and labels for a picture. It is sent to this server only.",
    "为图片生成描述、回答问题或给出类别。图片只会发送到本服务器。",
  ],
  picture: ["Picture", "图片"],
  picture_note: [
    "PNG, JPEG, GIF or WebP. Choose a file, drop one here, or paste a picture.",
    "PNG、JPEG、GIF 或 WebP。可选择文件、拖到此处，或直接粘贴。",
  ],
  picture_alt: ["Preview of {name}", "{name} 的预览"],
  picture_type: ["{name} is no PNG, JPEG, GIF or WebP file.", "{name} 不是 PNG、JPEG、GIF 或 WebP 文件。"],
  picture_broken: ["{name} cannot be read as a picture.", "无法读取图片 {name}。"],
  picture_scaled: [
    "scaled to {width} × {height}, because it has more than 3 MB",
    "文件超过 3 MB，已缩小到 {width} × {height}",
  ],
  picture_missing: ["Choose a picture first.", "请先选择一张图片。"],
  question_image: ["Question or statement", "问题或陈述"],
  question_note: ["Leave empty for a caption.", "留空则生成图片描述。"],
  labels_image_note: ["Labels to choose from, separated by commas.", "候选标签，用逗号分隔。"],
  more_labels: ["{count} further labels are less probable.", "另有 {count} 个标签概率更低。"],
  empty_text: ["(empty text)", "（空文本）"],

  lens: ["Logit lens", "逐层预测"],
  lens_about: [
    "What the model would predict if it ended after each layer. The stronger the colour, the more probable.",
    "假如模型到某一层就结束，会预测什么。颜色越深概率越大。",
  ],
  layer: ["Layer", "层"],
  layer_number: ["Layer {number}", "第 {number} 层"],
  layer_zero: ["Embeddings", "词嵌入"],
  lens_cell: ["{layer}, token {position} “{token}”", "{layer}，第 {position} 个词元“{token}”"],
  hint_cells: ["Point at a cell, or use Tab and the arrow keys.", "把指针移到单元格上，或用 Tab 和方向键选择。"],

  attention: ["Attention", "注意力"],
  attention_about: [
    "How strongly each token attends to the others, per layer and head.",
    "每一层、每个头里，词元之间的注意力权重。",
  ],
  head: ["Head", "头"],
  head_number: ["Head {number}", "第 {number} 个头"],
  head_mean: ["Mean", "平均"],
  view: ["View", "视图"],
  view_lines: ["Lines", "连线"],
  view_map: ["Heat map", "热力图"],
  map_note: ["The colour grows with the square root of the weight.", "颜色深浅与权重的平方根成正比。"],
  attends: ["from", "从"],
  attended: ["to", "到"],
  attends_most: ["“{token}” attends most to", "“{token}”最关注的词元"],
  attention_pair: ["“{a}” attends to “{b}” with weight {value}.", "“{a}”对“{b}”的注意力权重为 {value}。"],

  tokenize: ["Tokenizer", "分词器"],
  tokenize_about: ["How the text is split, with ids and character offsets.", "文本如何切分，附编号和字符位置。"],
  token_count: ["{count} tokens, {special} of them special", "{count} 个词元，其中特殊词元 {special} 个"],
  token: ["Token", "词元"],
  id: ["Id", "编号"],
};

export const LANGUAGES = ["en", "zh"];
let column = 0;

export function setLanguage(language) {
  column = LANGUAGES.indexOf(language);
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
}

export const language = () => LANGUAGES[column];

/** The text of a key in the page's language. */
export function t(key, values = {}) {
  return STRINGS[key][column].replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}
